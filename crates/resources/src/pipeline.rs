//! `kind: Pipeline`.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use seldon_proto::scheduler as proto;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Dataflow, Join, ObjectMeta, model::null_is_default};

/// A pipeline: models joined by streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Pipeline {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: PipelineSpec,
    /// Written by an API server; read by nobody here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// The steps and how they are joined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PipelineSpec {
    /// Input from other pipelines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<PipelineInput>,
    /// The models, each with its inputs.
    pub steps: Vec<PipelineStep>,
    /// What the pipeline answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<PipelineOutput>,
    /// What becomes of the topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataflow: Option<Dataflow>,
    /// Allows a step to come again.
    #[serde(default)]
    pub allow_cycles: bool,
    /// How often a step may come again.
    #[serde(default)]
    pub max_step_revisits: u32,
}

/// One model of a pipeline.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PipelineStep {
    pub name: String,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub inputs: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs_join_type: Option<Join>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_window_ms: Option<u32>,
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub tensor_map: BTreeMap<String, String>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub triggers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggers_join_type: Option<Join>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

/// Gathers requests before a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Batch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolling: Option<bool>,
}

/// Input from other pipelines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PipelineInput {
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub external_inputs: Vec<String>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub external_triggers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_window_ms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_type: Option<Join>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggers_join_type: Option<Join>,
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub tensor_map: BTreeMap<String, String>,
}

/// What a pipeline answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PipelineOutput {
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub steps: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_window_ms: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_join: Option<Join>,
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub tensor_map: BTreeMap<String, String>,
}

impl Pipeline {
    /// The message that loads this pipeline.
    pub fn to_proto(&self) -> proto::Pipeline {
        let spec = &self.spec;
        proto::Pipeline {
            name: self.metadata.name.clone(),
            steps: spec.steps.iter().map(PipelineStep::to_proto).collect(),
            output: spec.output.as_ref().map(PipelineOutput::to_proto),
            kubernetes_meta: Some(self.metadata.kubernetes_meta()),
            input: spec.input.as_ref().map(PipelineInput::to_proto),
            dataflow_spec: spec.dataflow.as_ref().map(Dataflow::to_proto),
            allow_cycles: spec.allow_cycles,
            max_step_revisits: spec.max_step_revisits,
            ..Default::default()
        }
    }
}

impl PipelineStep {
    fn to_proto(&self) -> proto::PipelineStep {
        use proto::pipeline_step::JoinOp;
        proto::PipelineStep {
            name: self.name.clone(),
            inputs: self.inputs.clone(),
            join_window_ms: self.join_window_ms,
            tensor_map: self.tensor_map.clone(),
            inputs_join: JoinOp::from(self.inputs_join_type.unwrap_or_default()).into(),
            triggers: self.triggers.clone(),
            triggers_join: JoinOp::from(self.triggers_join_type.unwrap_or_default()).into(),
            batch: self.batch.as_ref().map(|batch| proto::Batch {
                size: batch.size,
                window_ms: batch.window_ms,
            }),
        }
    }
}

impl PipelineInput {
    fn to_proto(&self) -> proto::PipelineInput {
        use proto::pipeline_input::JoinOp;
        proto::PipelineInput {
            external_inputs: self.external_inputs.clone(),
            external_triggers: self.external_triggers.clone(),
            join_window_ms: self.join_window_ms,
            join_type: JoinOp::from(self.join_type.unwrap_or_default()).into(),
            triggers_join: JoinOp::from(self.triggers_join_type.unwrap_or_default()).into(),
            tensor_map: self.tensor_map.clone(),
        }
    }
}

impl PipelineOutput {
    fn to_proto(&self) -> proto::PipelineOutput {
        use proto::pipeline_output::JoinOp;
        proto::PipelineOutput {
            steps: self.steps.clone(),
            join_window_ms: self.join_window_ms.unwrap_or_default(),
            steps_join: JoinOp::from(self.steps_join.unwrap_or_default()).into(),
            tensor_map: self.tensor_map.clone(),
        }
    }
}
