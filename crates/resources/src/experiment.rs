//! `kind: Experiment`. `cohort` and `rollout` are ours; a manifest without them is a documented one.
use schemars::JsonSchema;
use seldon_proto::scheduler as proto;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ObjectMeta, tree::Step};

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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExperimentSpec {
    /// The model or pipeline whose traffic is split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Takers of the traffic; may be empty where there is a mirror.
    #[serde(default)]
    pub candidates: Vec<Candidate>,
    /// Gets a copy of some of the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// `model` or `pipeline`; anything else means `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_type: Option<String>,
    /// Requests with the same value of a header always get the same candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cohort: Option<Cohort>,
    /// Moves weight from the default to the other candidate in steps, while it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
}

/// What makes requests belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cohort {
    /// The header whose value decides; upper and lower case are the same.
    pub header: String,
}

/// A guarded roll-out; what is left out has the scheduler's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// Percent of the requests that the candidate gets, rising; default 10, 25, 50, 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<u32>,
    /// Seconds that a step must hold; default 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_seconds: Option<u32>,
    /// Requests of each side that a judgement needs; default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
    /// Percentage points by which the candidate's share of errors may exceed the default's; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_error_rate_increase: Option<f64>,
    /// How many times the default's mean latency the candidate's may be; default 1.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_latency_ratio: Option<f64>,
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
            cohort: spec.cohort.as_ref().map(|cohort| proto::ExperimentCohort {
                header: cohort.header.to_ascii_lowercase(),
            }),
            rollout: spec.rollout.as_ref().map(Rollout::to_proto),
        }
    }
}

impl Rollout {
    fn to_proto(&self) -> proto::ExperimentRollout {
        proto::ExperimentRollout {
            steps: self.steps.clone(),
            interval_seconds: self.interval_seconds.unwrap_or_default(),
            min_requests: self.min_requests.unwrap_or_default(),
            max_error_rate_increase: self.max_error_rate_increase,
            max_latency_ratio: self.max_latency_ratio,
        }
    }
}

/// Numbers that do not fit their field, told with the object's name, which serde does not know.
pub(crate) fn numbers(manifest: &Value) -> Vec<(Vec<Step<'static>>, String)> {
    let spec = &manifest["spec"];
    let mut found = Vec::new();
    let mut look = |object: &Value, path: &[Step<'static>], key: &'static str, range: &str| {
        let value = &object[key];
        let fits = value.as_u64().is_some_and(|n| u32::try_from(n).is_ok());
        if value.is_number() && !fits {
            let name = object["name"].as_str().unwrap_or_default();
            let path = path.iter().copied().chain([Step::Key(key)]).collect();
            found.push((
                path,
                format!("the {key} of {name} is {value}, use a whole number {range}"),
            ));
        }
    };
    let candidates = spec["candidates"].as_array().map_or(&[][..], Vec::as_slice);
    for (index, candidate) in candidates.iter().enumerate() {
        let path = [
            Step::Key("spec"),
            Step::Key("candidates"),
            Step::Index(index),
        ];
        look(candidate, &path, "weight", "from 0 to 4294967295");
    }
    let path = [Step::Key("spec"), Step::Key("mirror")];
    look(&spec["mirror"], &path, "percent", "from 0 to 100");
    found
}
