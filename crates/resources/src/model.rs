//! `kind: Model`.
use schemars::JsonSchema;
use seldon_proto::scheduler as proto;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use crate::{ObjectMeta, Quantity};

/// A model: one artefact that is to be loaded on a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Model {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: ModelSpec,
    /// Written by an API server; read by nobody here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// What is to be loaded, and on what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelSpec {
    /// Where the artefact is: `gs://…`, `s3://…` or a local folder.
    pub storage_uri: String,
    /// Added to the requirements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_type: Option<String>,
    /// The version folder of the artefact to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_version: Option<u32>,
    /// Accepted and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_uri: Option<String>,
    /// A secret that holds the credentials of the storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// Capabilities that a server must have.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub requirements: Vec<String>,
    /// Memory that the model needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Replicas wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// The fewest replicas that scaling may leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_replicas: Option<u32>,
    /// The most replicas that scaling may make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_replicas: Option<u32>,
    /// The only server to load on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Accepted and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preloaded: Option<bool>,
    /// Accepted and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedicated: Option<bool>,
    /// Present: payloads are logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<Logger>,
    /// Present: the model explains another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explainer: Option<Explainer>,
    /// Present: the model is a language model's runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<Llm>,
    /// Settings handed to the inference server.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub parameters: Vec<Parameter>,
    /// Topics of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataflow: Option<Dataflow>,
}

/// Logging of payloads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Logger {
    /// Accepted and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
}

/// What an explainer explains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Explainer {
    /// The method, such as `anchor_tabular`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The model explained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_ref: Option<String>,
    /// The pipeline explained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_ref: Option<String>,
}

/// What a language model's runtime refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Llm {
    /// A model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_ref: Option<String>,
    /// A pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_ref: Option<String>,
}

/// A setting handed to the inference server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Parameter {
    pub name: String,
    #[serde(deserialize_with = "scalar_text")]
    pub value: String,
}

/// What becomes of the topics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dataflow {
    /// Deletes the topics together with the object.
    #[serde(default)]
    pub clean_topics_on_delete: bool,
}

impl Dataflow {
    pub(crate) fn to_proto(&self) -> proto::DataflowSpec {
        proto::DataflowSpec {
            clean_topics_on_delete: self.clean_topics_on_delete,
        }
    }
}

impl Model {
    /// The message that loads this model.
    pub fn to_proto(&self) -> proto::Model {
        let spec = &self.spec;
        proto::Model {
            meta: Some(proto::MetaData {
                name: self.metadata.name.clone(),
                kubernetes_meta: Some(self.metadata.kubernetes_meta()),
                ..Default::default()
            }),
            model_spec: Some(spec.to_proto()),
            deployment_spec: Some(proto::DeploymentSpec {
                replicas: wanted_replicas(spec.replicas, spec.min_replicas),
                min_replicas: spec.min_replicas.unwrap_or_default(),
                max_replicas: spec.max_replicas.unwrap_or_default(),
                log_payloads: spec.logger.is_some(),
            }),
            stream_spec: None,
            dataflow_spec: spec.dataflow.as_ref().map(Dataflow::to_proto),
        }
    }
}

/// Replicas to start with: as written, else the minimum, else one.
pub(crate) fn wanted_replicas(replicas: Option<u32>, min: Option<u32>) -> u32 {
    replicas.unwrap_or_else(|| min.filter(|min| *min > 0).unwrap_or(1))
}

impl ModelSpec {
    fn to_proto(&self) -> proto::ModelSpec {
        let requirements = self
            .requirements
            .iter()
            .chain(&self.model_type)
            .cloned()
            .collect();
        let explainer = self.explainer.as_ref().map(|explainer| {
            proto::model_spec::ModelSpec::Explainer(proto::ExplainerSpec {
                r#type: explainer.kind.clone(),
                model_ref: explainer.model_ref.clone(),
                pipeline_ref: explainer.pipeline_ref.clone(),
            })
        });
        let llm = self.llm.as_ref().map(|llm| {
            proto::model_spec::ModelSpec::Llm(proto::LlmSpec {
                model_ref: llm.model_ref.clone(),
                pipeline_ref: llm.pipeline_ref.clone(),
            })
        });
        proto::ModelSpec {
            uri: self.storage_uri.clone(),
            artifact_version: self.artifact_version,
            storage_config: self.secret_name.clone().map(|secret| proto::StorageConfig {
                config: Some(proto::storage_config::Config::StorageSecretName(secret)),
            }),
            requirements,
            memory_bytes: self.memory.as_ref().map(Quantity::bytes),
            server: self.server.clone(),
            parameters: self
                .parameters
                .iter()
                .map(|parameter| proto::ParameterSpec {
                    name: parameter.name.clone(),
                    value: parameter.value.clone(),
                })
                .collect(),
            model_runtime_info: None,
            model_spec: explainer.or(llm),
        }
    }
}

/// An API server writes an empty list as `null` at times.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A text; a bare number or boolean is taken as it is written.
fn scalar_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(yes) => Ok(yes.to_string()),
        _ => Err(de::Error::custom("invalid type, expected a string")),
    }
}
