//! `agent.yaml` or `agent.json`: remotes that every model of this server may use.
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// Why a document cannot be read. Documents hold credentials: no text of theirs is repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("is neither JSON nor YAML (line {line})")]
    Syntax { line: usize },
    #[error("{0}")]
    Shape(&'static str),
}

/// Reads JSON or YAML whose top is an object.
pub fn document(text: &str) -> Result<Value, DocumentError> {
    let text = text.trim_start_matches('\u{feff}');
    let value: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| DocumentError::Syntax { line: error.line() })?
    } else {
        serde_saphyr::from_str(text).map_err(|error| {
            let line = error
                .location()
                .map_or(0, |location| location.line() as usize);
            DocumentError::Syntax { line }
        })?
    };
    if value.is_object() {
        Ok(value)
    } else {
        Err(DocumentError::Shape("is not an object with fields"))
    }
}

/// The agent's configuration file. Other parts of it (such as `kafka`) are not the agent's.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
pub struct Config {
    #[serde(default)]
    pub rclone: RcloneConfig,
}

/// Remotes: as text, or by the names of secrets.
#[derive(Clone, Default, Deserialize, PartialEq, Eq)]
pub struct RcloneConfig {
    #[serde(default, alias = "config_list")]
    pub config: Vec<String>,
    #[serde(default, alias = "configSecrets")]
    pub config_secrets: Vec<String>,
}

impl std::fmt::Debug for RcloneConfig {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "RcloneConfig({} remotes, secrets {:?})",
            self.config.len(),
            self.config_secrets
        )
    }
}

impl Config {
    /// Reads `agent.yaml` or `agent.json` in a folder; neither is fine and means no remotes.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        for name in ["agent.yaml", "agent.json"] {
            let path = folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    return Self::parse(&text)
                        .map_err(|error| anyhow::anyhow!("{} {error}", path.display()));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => anyhow::bail!("{} cannot be read: {error}", path.display()),
            }
        }
        Ok(Self::default())
    }

    /// Reads the text of a configuration file.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut value = document(text)?;
        if let Some(rclone) = value.get_mut("rclone").and_then(Value::as_object_mut) {
            // Keys without a value are empty lists, as a chart writes them.
            rclone.retain(|_, value| !value.is_null());
            if let Some(Value::Array(items)) = rclone.get_mut("config") {
                // A remote may stand there as an object instead of as text.
                items
                    .iter_mut()
                    .filter(|item| item.is_object())
                    .for_each(|item| *item = Value::String(item.to_string()));
            }
        }
        serde_json::from_value(value)
            .map_err(|_| DocumentError::Shape("has a field of a wrong type under \"rclone\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_forms() {
        let yaml = "kafka:\n  broker: x\nrclone:\n  config_secrets:\n    - seldon-rclone-gs-public\n  config:\n  - '{\"name\":\"gs\",\"type\":\"alias\",\"parameters\":{\"remote\":\"/m\"}}'\n  - name: s3\n    type: s3\n    parameters: {}\n";
        let config = Config::parse(yaml).unwrap();
        assert_eq!(config.rclone.config_secrets, ["seldon-rclone-gs-public"]);
        assert_eq!(config.rclone.config.len(), 2);
        assert!(config.rclone.config[1].contains("\"s3\""));
        let json = "{\"rclone\":{\"config_secrets\":[\"a\"],\"config\":null}}";
        assert_eq!(Config::parse(json).unwrap().rclone.config_secrets, ["a"]);
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert_eq!(
            Config::parse("rclone:\n").is_ok(),
            Config::parse("{\"rclone\":null}").is_ok()
        );
        assert!(matches!(
            Config::parse("{\n\"a\": PLANTED"),
            Err(DocumentError::Syntax { line: 2 })
        ));
        assert!(!format!("{config:?}").contains("remote\":"));
    }
}
