//! Storage configurations: one rclone remote as JSON or YAML, from a secret, a Model or the agent's own configuration.
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{self, DocumentError};

/// Backends that read another remote or the agent's own disk, which a Model's author must not choose.
const WRAPPERS: [&str; 13] = [
    "alias",
    "cache",
    "chunker",
    "combine",
    "compress",
    "crypt",
    "hasher",
    // Hosts are for the operator to allow, see --allowed-http-hosts.
    "http",
    "local",
    "memory",
    "union",
    "archive",
    "tardigrade",
];

/// One remote: `name`, `type` and `parameters`, with `opt` for `config/create`.
#[derive(Clone, Deserialize, PartialEq)]
pub struct Storage {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub parameters: Map<String, Value>,
    #[serde(default)]
    pub opt: Map<String, Value>,
}

/// Parameters may be credentials: only their names are shown.
impl std::fmt::Debug for Storage {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parameters: Vec<_> = self.parameters.keys().collect();
        out.debug_struct("Storage")
            .field("name", &self.name)
            .field("type", &self.kind)
            .field("parameters", &parameters)
            .finish()
    }
}

/// Why a storage configuration is refused. No text holds a value of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    #[error("storage configuration {0}")]
    Document(#[from] DocumentError),
    #[error("storage configuration lacks {0:?}: it needs name, type and parameters")]
    Missing(&'static str),
    #[error(
        "storage configuration is called {name:?}, but storageUri names remote {wanted:?}: both must be the same"
    )]
    OtherName { name: String, wanted: String },
    #[error(
        "storage type {0:?} is not allowed in a model's storage configuration: it reads other remotes, the agent's disk or hosts that are not allowed"
    )]
    TypeNotAllowed(String),
    #[error(
        "storage parameter {0:?} is not allowed: it would start a program, or use files or credentials of the agent"
    )]
    ParameterNotAllowed(String),
    #[error("storage parameter {0:?} must be a string, number or boolean")]
    ParameterNotScalar(String),
}

impl Storage {
    /// Parses JSON or YAML.
    pub fn parse(text: &str) -> Result<Self, StorageError> {
        let document = config::document(text)?;
        for field in ["name", "type", "parameters"] {
            if document.get(field).is_none_or(Value::is_null) {
                return Err(StorageError::Missing(field));
            }
        }
        // serde's own message may quote a value of the wrong type.
        serde_json::from_value(document)
            .map_err(|_| DocumentError::Shape("has a field of a wrong type").into())
    }

    /// Checks what a Model's author may say. `wanted` is the remote that the Model's `storageUri` names.
    pub fn check_untrusted(&self, wanted: &str) -> Result<(), StorageError> {
        if self.name != wanted {
            return Err(StorageError::OtherName {
                name: self.name.clone(),
                wanted: wanted.to_owned(),
            });
        }
        if WRAPPERS.contains(&self.kind.as_str()) || !is_word(&self.kind) {
            return Err(StorageError::TypeNotAllowed(self.kind.clone()));
        }
        for (name, value) in &self.parameters {
            if name.ends_with("command")
                || name == "ssh"
                || name == "ssl_key"
                || name.ends_with("_file")
                || (name == "env_auth" && !is_off(value))
                || !is_word(name)
                || name.starts_with('_')
            {
                return Err(StorageError::ParameterNotAllowed(name.clone()));
            }
            if value.is_array() || value.is_object() {
                return Err(StorageError::ParameterNotScalar(name.clone()));
            }
        }
        Ok(())
    }

    /// The remote with a path in rclone's object form, which rclone never prints as a string.
    pub fn fs(&self, path: &str) -> Value {
        let mut fs = Map::new();
        for (name, value) in &self.parameters {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Null => continue,
                other => other.to_string(),
            };
            fs.insert(name.clone(), Value::String(text));
        }
        fs.insert("type".to_owned(), Value::String(self.kind.clone()));
        fs.insert("_root".to_owned(), Value::String(path.to_owned()));
        Value::Object(fs)
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::String(text) => text.eq_ignore_ascii_case("false"),
        _ => false,
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S3: &str = "type: s3\nname: s3\nparameters:\n  provider: minio\n  env_auth: false\n  access_key_id: minioadmin\n  secret_access_key: PLANTED\n  endpoint: http://minio.minio-system:9000\n";

    #[test]
    fn documented_secret_becomes_an_object() {
        let storage = Storage::parse(S3).unwrap();
        assert_eq!(storage.check_untrusted("s3"), Ok(()));
        let fs = storage.fs("models/iris");
        assert_eq!(fs["_root"], "models/iris");
        assert_eq!(fs["env_auth"], "false");
        assert_eq!(fs["type"], "s3");
        assert!(!format!("{storage:?}").contains("PLANTED"));
        let json = serde_json::json!({"name": "gs", "type": "google cloud storage", "parameters": {"anonymous": true}});
        let storage = Storage::parse(&json.to_string()).unwrap();
        assert_eq!(storage.check_untrusted("gs"), Ok(()));
        assert_eq!(storage.fs("b")["anonymous"], "true");
    }

    #[test]
    fn bad_configurations_are_named_without_their_values() {
        let check = |text: &str| {
            Storage::parse(text)
                .and_then(|storage| storage.check_untrusted("x"))
                .unwrap_err()
        };
        assert_eq!(
            check("{\"name\":\"x\",\"parameters\":{}}"),
            StorageError::Missing("type")
        );
        assert!(matches!(
            check("{\"name\":\"y\",\"type\":\"s3\",\"parameters\":{}}"),
            StorageError::OtherName { .. }
        ));
        for kind in ["local", "alias", "union", "crypt", "http", "s3,x=1"] {
            let text = serde_json::json!({"name": "x", "type": kind, "parameters": {}}).to_string();
            assert_eq!(check(&text), StorageError::TypeNotAllowed(kind.to_owned()));
        }
        for parameter in [
            "bearer_token_command",
            "ssh",
            "server_command",
            "env_auth",
            "service_account_file",
            "_root",
            "a=b",
        ] {
            let text = serde_json::json!({"name": "x", "type": "webdav", "parameters": {parameter: "PLANTED"}}).to_string();
            let error = check(&text);
            assert!(
                matches!(error, StorageError::ParameterNotAllowed(_)),
                "{error}"
            );
            assert!(!error.to_string().contains("PLANTED"));
        }
        for text in [
            "PLANTED",
            "{\"name\": PLANTED",
            "name: [PLANTED\n",
            "{\"name\":\"x\",\"type\":\"s3\",\"parameters\":\"PLANTED\"}",
        ] {
            let error = check(text).to_string();
            assert!(!error.contains("PLANTED"), "{error}");
        }
    }
}
