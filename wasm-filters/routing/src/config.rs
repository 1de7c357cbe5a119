//! What the control plane tells the filter: experiments only, so that it stays small.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{json::Reader, name::is_header_value, read};

/// What requests add to an experiment's name.
pub const EXPERIMENT_SUFFIX: &str = ".experiment";

/// The filter's configuration, carried as JSON by ECDS.
///
/// Unknown fields are ignored, so that a newer scheduler can drive an older module; what is known must be right, or
/// Envoy refuses the configuration and keeps its last good one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Names this configuration in Envoy's log; no meaning otherwise.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// By name; requests use `<name>.experiment`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub experiments: BTreeMap<String, Experiment>,
    /// Other names that requests use, such as `iris` or `p.pipeline`, and the experiment that each belongs to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub endpoints: BTreeMap<String, String>,
}

/// How requests for one name are shared out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experiment {
    /// Who can answer now. Where none has a weight, requests that name none go where the scope of their name leads.
    pub candidates: Vec<Candidate>,
    /// Who gets copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Requests with the same value of this header, in lower case, get the same candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cohort: Option<String>,
}

/// One share of an experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The model or pipeline; names it in counters, and in the hash of cohorts.
    pub name: String,
    /// Its share, relative to the others; 0 means only those requests that name its route.
    pub weight: u32,
    /// What answers for it; at least one.
    pub versions: Vec<Version>,
}

/// One version of a candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// `<name>_<version>` or `<name>.pipeline`: its scope's key is `i:` and this, and its answers carry it between
    /// colons in `x-seldon-route`.
    pub route: String,
    /// Its share of the candidate's requests, relative to the other versions.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
}

/// Who gets copies of an experiment's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The model or pipeline; names it in counters.
    pub name: String,
    /// How many of a hundred requests are copied.
    pub percent: u32,
    /// Where a copy goes; at least one.
    pub versions: Vec<Copy>,
}

/// One version of a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// `seldon-internal-model` of the copy: `<name>_<version>`.
    pub model: String,
    /// The Envoy cluster.
    pub cluster: String,
    /// The one for gRPC, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_cluster: Option<String>,
    /// Its share of the copies, relative to the other versions.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

// Serde hands the field over by reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(weight: &u32) -> bool {
    *weight == 1
}

/// Why a configuration is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Not JSON, or not of this shape.
    Json(String),
    /// Shape right, content unusable.
    Experiment {
        /// The experiment's name in the configuration.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Json(error) => write!(f, "filter configuration: {error}"),
            Self::Experiment { name, reason } => write!(f, "experiment {name:?}: {reason}"),
        }
    }
}
impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and validates a configuration. Nothing at all stands for the empty configuration.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| ConfigError::Json(format!("not UTF-8: {error}")))?;
        let mut reader = Reader::new(text);
        let config = read::config(&mut reader).map_err(|expected| {
            let at = text.len().saturating_sub(reader.left());
            ConfigError::Json(format!("expected {expected} at byte {at}"))
        })?;
        config.validate()?;
        Ok(config)
    }

    /// The form that [`Config::from_json`] reads; equal configurations have equal bytes.
    pub fn to_json(&self) -> String {
        // Maps with string keys, strings and numbers: nothing here can fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The experiment that requests of this name belong to: `<name>.experiment`, or an endpoint.
    pub fn experiment_of(&self, name: &str) -> Option<(&str, &Experiment)> {
        let named = name
            .strip_suffix(EXPERIMENT_SUFFIX)
            .and_then(|bare| self.experiments.get_key_value(bare));
        let (name, experiment) = match named {
            Some(found) => found,
            None => self
                .experiments
                .get_key_value(self.endpoints.get(name)?.as_str())?,
        };
        Some((name, experiment))
    }

    /// Refuses what the filter could not act on.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refused = |name: &str, reason| ConfigError::Experiment {
            name: name.to_owned(),
            reason,
        };
        for (name, experiment) in &self.experiments {
            experiment
                .validate()
                .map_err(|reason| refused(name, reason))?;
        }
        match self
            .endpoints
            .iter()
            .find(|(_, e)| !self.experiments.contains_key(*e))
        {
            Some((_, missing)) => Err(refused(missing, "an endpoint's experiment is not there")),
            None => Ok(()),
        }
    }
}

impl Experiment {
    fn validate(&self) -> Result<(), &'static str> {
        for candidate in &self.candidates {
            if candidate.versions.is_empty() {
                return Err("a candidate has no versions");
            }
            if !candidate.versions.iter().all(|v| is_route(&v.route)) {
                return Err(
                    "a candidate's route is empty, too long, no header value, or has a colon or comma",
                );
            }
        }
        let Some(mirror) = &self.mirror else {
            return Ok(());
        };
        if mirror.percent > 100 {
            return Err("the mirror's percent is above 100");
        }
        if mirror.versions.is_empty() {
            return Err("the mirror has no versions");
        }
        let usable = |v: &Copy| {
            is_header_value(&v.model)
                && is_header_value(&v.cluster)
                && v.grpc_cluster.as_deref().is_none_or(is_header_value)
        };
        if !mirror.versions.iter().all(usable) {
            return Err("the mirror's cluster or model is empty, too long, or no header value");
        }
        Ok(())
    }
}

/// Whether it can be a scope's key and stand between colons in a list.
fn is_route(route: &str) -> bool {
    is_header_value(route) && !route.bytes().any(|b| matches!(b, b':' | b','))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
