//! What the control plane tells the filter: experiments only, so that it stays small.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::is_header_value;

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
    /// By the name that requests use: `<name>.experiment`, or the model or pipeline that is the default.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub experiments: BTreeMap<String, Experiment>,
}

/// How requests for one name are shared out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experiment {
    /// Who can answer now; at least one has a weight.
    pub candidates: Vec<Candidate>,
    /// Who gets copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
}

/// One share of an experiment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its scope: the key is `i:` and this.
    pub scope: String,
    /// What its answers carry in `x-seldon-route`, without the colons: `<name>_<version>`, or `<name>.pipeline`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// Its share, relative to the others; 0 means only those requests that name its route.
    pub weight: u32,
}

/// Who gets copies of an experiment's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The Envoy cluster.
    pub cluster: String,
    /// `seldon-internal-model` of the copy.
    pub model: String,
    /// How many of a hundred requests are copied.
    pub percent: u32,
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
        let config: Self =
            serde_json::from_slice(bytes).map_err(|error| ConfigError::Json(error.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// The form that [`Config::from_json`] reads; equal configurations have equal bytes.
    pub fn to_json(&self) -> String {
        // Maps with string keys, strings and numbers: nothing here can fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Refuses what the filter could not act on.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, experiment) in &self.experiments {
            experiment
                .validate()
                .map_err(|reason| ConfigError::Experiment {
                    name: name.clone(),
                    reason,
                })?;
        }
        Ok(())
    }
}

impl Experiment {
    fn validate(&self) -> Result<(), &'static str> {
        if self.candidates.is_empty() {
            return Err("no candidates");
        }
        if self.candidates.iter().all(|c| c.weight == 0) {
            return Err("all weights are 0");
        }
        if self.candidates.iter().any(|c| !is_header_value(&c.scope)) {
            return Err("a candidate's scope is empty, too long, or no header value");
        }
        let mut routes = self.candidates.iter().flat_map(|c| &c.routes);
        if routes.any(|r| r.is_empty() || r.contains([':', ','])) {
            return Err("a candidate's route is empty or contains a colon or comma");
        }
        match &self.mirror {
            Some(m) if m.percent > 100 => Err("the mirror's percent is above 100"),
            Some(m) if !is_header_value(&m.cluster) || !is_header_value(&m.model) => {
                Err("the mirror's cluster or model is empty, too long, or no header value")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
