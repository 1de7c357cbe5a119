//! `kind: Experiment`.
use schemars::JsonSchema;
use seldon_proto::scheduler as proto;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ObjectMeta;

/// An experiment: traffic split over candidates, and perhaps copied to a mirror.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Experiment {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: ExperimentSpec,
    /// Written by an API server; read by nobody here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// Who takes part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExperimentSpec {
    /// The model or pipeline whose traffic is split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Takers of the traffic.
    pub candidates: Vec<Candidate>,
    /// Gets a copy of some of the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// `model` or `pipeline`; anything else means `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_type: Option<String>,
}

/// Takes a share of the traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Candidate {
    pub name: String,
    #[serde(default)]
    pub weight: u32,
}

/// Gets a copy of some of the traffic; its answers are dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Mirror {
    pub name: String,
    #[serde(default)]
    pub percent: u32,
}

impl Experiment {
    /// The message that starts this experiment.
    pub fn to_proto(&self) -> proto::Experiment {
        let spec = &self.spec;
        let resource_type = match spec.resource_type.as_deref() {
            Some("pipeline") => proto::ResourceType::Pipeline,
            _ => proto::ResourceType::Model,
        };
        proto::Experiment {
            name: self.metadata.name.clone(),
            default: spec.default.clone(),
            candidates: spec
                .candidates
                .iter()
                .map(|candidate| proto::ExperimentCandidate {
                    name: candidate.name.clone(),
                    weight: candidate.weight,
                })
                .collect(),
            mirror: spec.mirror.as_ref().map(|mirror| proto::ExperimentMirror {
                name: mirror.name.clone(),
                percent: mirror.percent,
            }),
            config: None,
            kubernetes_meta: Some(self.metadata.kubernetes_meta()),
            resource_type: resource_type.into(),
        }
    }
}
