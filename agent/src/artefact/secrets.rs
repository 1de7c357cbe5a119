//! Storage secrets: rclone configurations that a Model (`secretName`) or `agent.yaml` (`config_secrets`) names.
//!
//! Outside Kubernetes they lie in a folder. A secret's value never leaves this module but as a [`Storage`], which
//! shows the names of its parameters only; errors name the secret, the key and the way out.
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use serde_json::Value;

use super::storage::{Storage, StorageError};
use crate::config::{self, DocumentError};

/// As much as Kubernetes keeps in a secret.
const MAX_BYTES: u64 = 1 << 20;
/// A secret that is one file: the configuration itself, or a Kubernetes manifest.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Where secrets come from.
#[derive(Debug, Clone, Default)]
pub enum Secrets {
    #[default]
    None,
    /// `<folder>/<secret>/<key>`, as Kubernetes mounts a secret, or `<folder>/<secret>.yaml`.
    Folder(PathBuf),
}

/// Why a secret cannot be used. No text holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    #[error(
        "secret {0:?} cannot be read: this agent has no folder of secrets, see --secrets-path (SELDON_SECRETS_PATH)"
    )]
    Unavailable(String),
    #[error("{0:?} cannot be a secret's name: small letters, digits, '-' and '.' only")]
    Name(String),
    #[error(
        "secret {name:?} is not in {folder}: it is looked for as {name}/<key> and as {name}.yaml"
    )]
    Missing { name: String, folder: String },
    #[error("secret {name:?} cannot be read: {path}: {reason}")]
    Unreadable {
        name: String,
        path: String,
        reason: String,
    },
    #[error("secret {name:?} cannot be used: {path} {error}")]
    Document {
        name: String,
        path: String,
        error: DocumentError,
    },
    #[error("secret {name:?} cannot be used: {path} holds a secret called {found:?}")]
    OtherName {
        name: String,
        path: String,
        found: String,
    },
    #[error(
        "secret {name:?} cannot be used: its key {key:?} is not text, or not base64 under \"data\""
    )]
    NotText { name: String, key: String },
    #[error("secret {0:?} has no key: it needs one whose value is the configuration of a remote")]
    NoKey(String),
    #[error(
        "secret {name:?} has several keys ({keys}), and it is not clear which is for remote {wanted:?}: call that key {wanted:?}"
    )]
    SeveralKeys {
        name: String,
        keys: String,
        wanted: String,
    },
    #[error("key {key:?} of secret {name:?}: {error}")]
    Storage {
        name: String,
        key: String,
        error: StorageError,
    },
}

/// A secret's values by their keys.
pub struct Secret {
    name: String,
    values: BTreeMap<String, String>,
}

impl Secrets {
    /// Reads a secret as it is now, so that a changed one counts from the next model on.
    pub async fn read(&self, name: &str) -> Result<Secret, SecretError> {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if name.is_empty()
            || name.len() > 253
            || name.starts_with('.')
            || !name.chars().all(is_name)
        {
            return Err(SecretError::Name(name.to_owned()));
        }
        let Self::Folder(folder) = self else {
            return Err(SecretError::Unavailable(name.to_owned()));
        };
        let (folder, name) = (folder.clone(), name.to_owned());
        let broken_off = SecretError::Missing {
            name: name.clone(),
            folder: folder.display().to_string(),
        };
        tokio::task::spawn_blocking(move || from_folder(&folder, name))
            .await
            .unwrap_or(Err(broken_off))
    }
}

impl Secret {
    /// The configuration of a remote: the only key's, that of the key called as the remote, or that of the only key
    /// whose configuration is for it.
    pub fn storage(&self, wanted: &str) -> Result<Storage, SecretError> {
        if self.values.is_empty() {
            return Err(SecretError::NoKey(self.name.clone()));
        }
        if self.values.len() == 1 || self.values.contains_key(wanted) {
            let named = self.values.get_key_value(wanted);
            if let Some((key, text)) = named.or_else(|| self.values.first_key_value()) {
                return self.parse(key, text);
            }
        }
        let parsed = self
            .values
            .iter()
            .flat_map(|(key, text)| self.parse(key, text));
        let mut fitting = parsed.filter(|storage| storage.name == wanted);
        match (fitting.next(), fitting.next()) {
            (Some(storage), None) => Ok(storage),
            _ => Err(SecretError::SeveralKeys {
                name: self.name.clone(),
                keys: self.values.keys().cloned().collect::<Vec<_>>().join(", "),
                wanted: wanted.to_owned(),
            }),
        }
    }

    /// The configurations of all keys.
    pub fn storages(&self) -> Vec<Result<Storage, SecretError>> {
        if self.values.is_empty() {
            return vec![Err(SecretError::NoKey(self.name.clone()))];
        }
        let parse = |(key, text): (&String, &String)| self.parse(key, text);
        self.values.iter().map(parse).collect()
    }

    fn parse(&self, key: &str, text: &str) -> Result<Storage, SecretError> {
        Storage::parse(text).map_err(|error| SecretError::Storage {
            name: self.name.clone(),
            key: key.to_owned(),
            error,
        })
    }
}

fn from_folder(folder: &Path, name: String) -> Result<Secret, SecretError> {
    let mounted = folder.join(&name);
    if mounted.is_dir() {
        return from_mount(&mounted, name);
    }
    for ending in ENDINGS {
        let path = folder.join(format!("{name}.{ending}"));
        if path.exists() {
            return from_file(&path, name);
        }
    }
    let folder = folder.display().to_string();
    Err(SecretError::Missing { name, folder })
}

/// A folder with a file for each key. Kubernetes lays links to a hidden folder beside them.
fn from_mount(folder: &Path, name: String) -> Result<Secret, SecretError> {
    let unreadable = |error: io::Error| unreadable(&name, folder, &error.to_string());
    let mut values = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let key = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !key.starts_with('.') && path.is_file() {
            values.insert(key, read(&path, &name)?);
        }
    }
    Ok(Secret { name, values })
}

/// A configuration, or a manifest of kind Secret.
fn from_file(path: &Path, name: String) -> Result<Secret, SecretError> {
    let text = read(path, &name)?;
    let document = config::document(&text).map_err(|error| SecretError::Document {
        name: name.clone(),
        path: path.display().to_string(),
        error,
    })?;
    if document.get("kind").and_then(Value::as_str) != Some("Secret") {
        let key = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let values = BTreeMap::from([(key, text)]);
        return Ok(Secret { name, values });
    }
    let found = document.pointer("/metadata/name").and_then(Value::as_str);
    if let Some(found) = found.filter(|found| *found != name) {
        let (path, found) = (path.display().to_string(), found.to_owned());
        return Err(SecretError::OtherName { name, path, found });
    }
    let mut values = BTreeMap::new();
    for (field, decode) in [
        ("data", decoded as fn(&str) -> Option<String>),
        ("stringData", plain),
    ] {
        let Some(entries) = document.get(field).and_then(Value::as_object) else {
            continue;
        };
        for (key, value) in entries {
            let Some(value) = value.as_str().and_then(decode) else {
                let key = key.clone();
                return Err(SecretError::NotText { name, key });
            };
            values.insert(key.clone(), value);
        }
    }
    Ok(Secret { name, values })
}

fn plain(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn decoded(text: &str) -> Option<String> {
    let engine = base64::engine::general_purpose::STANDARD;
    String::from_utf8(engine.decode(text.trim()).ok()?).ok()
}

fn read(path: &Path, name: &str) -> Result<String, SecretError> {
    let large = std::fs::metadata(path).is_ok_and(|file| file.len() > MAX_BYTES);
    if large {
        return Err(unreadable(name, path, "it is larger than 1 MiB"));
    }
    std::fs::read_to_string(path).map_err(|error| unreadable(name, path, &error.to_string()))
}

fn unreadable(name: &str, path: &Path, reason: &str) -> SecretError {
    SecretError::Unreadable {
        name: name.to_owned(),
        path: path.display().to_string(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As printed in the documentation.
    const MANIFEST: &str = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: minio-secret\n  namespace: seldon-mesh\ntype: Opaque\nstringData:\n  s3: |\n    type: s3\n    name: s3\n    parameters:\n      provider: minio\n      env_auth: false\n      access_key_id: minioadmin\n      secret_access_key: PLANTED\n      endpoint: http://minio.minio-system:9000\n";

    fn storage(name: &str) -> String {
        format!(r#"{{"name":"{name}","type":"s3","parameters":{{"secret_access_key":"PLANTED"}}}}"#)
    }

    async fn read(files: &[(&str, &str)], name: &str) -> Result<Secret, SecretError> {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Secrets::Folder(folder.path().to_owned()).read(name).await
    }

    async fn chosen(files: &[(&str, &str)], wanted: &str) -> Result<String, SecretError> {
        let secret = read(files, "x").await?;
        secret.storage(wanted).map(|storage| storage.name)
    }

    #[tokio::test]
    async fn the_documented_manifest_is_read_as_it_is() {
        let secret = read(&[("minio-secret.yaml", MANIFEST)], "minio-secret").await;
        let storage = secret.unwrap().storage("s3").unwrap();
        assert_eq!(storage.kind, "s3");
        assert_eq!(storage.check_untrusted("s3"), Ok(()));
        let other = read(&[("a.yaml", MANIFEST)], "a").await.err();
        assert!(
            matches!(other, Some(SecretError::OtherName { found, .. }) if found == "minio-secret")
        );
        let data = base64::engine::general_purpose::STANDARD.encode(super::tests::storage("gs"));
        let manifest = serde_json::json!({"kind": "Secret", "data": {"k": data}}).to_string();
        assert_eq!(chosen(&[("x.json", &manifest)], "gs").await.unwrap(), "gs");
    }

    #[tokio::test]
    async fn the_key_that_is_meant_is_found() {
        let (s3, gs) = (storage("s3"), storage("gs"));
        // A mounted secret, with what Kubernetes lays beside the keys.
        let one = [("x/any", s3.as_str()), ("x/..data/any", "no")];
        assert_eq!(chosen(&one, "s3").await.unwrap(), "s3");
        assert_eq!(chosen(&[("x.yml", &s3)], "s3").await.unwrap(), "s3");
        let by_key = [("x/gs", gs.as_str()), ("x/s3", s3.as_str())];
        assert_eq!(chosen(&by_key, "s3").await.unwrap(), "s3");
        let by_name = [
            ("x/a", gs.as_str()),
            ("x/b", s3.as_str()),
            ("x/ca.crt", "no"),
        ];
        assert_eq!(chosen(&by_name, "s3").await.unwrap(), "s3");
        let twice = [("x/a", s3.as_str()), ("x/b", s3.as_str())];
        for (files, wanted) in [(&twice[..], "s3"), (&by_name[..], "other")] {
            let error = chosen(files, wanted).await.unwrap_err();
            assert!(matches!(error, SecretError::SeveralKeys { .. }), "{error}");
        }
        let all = read(&by_name, "x").await.unwrap().storages();
        let names: Vec<_> = all
            .iter()
            .flatten()
            .map(|storage| storage.name.as_str())
            .collect();
        assert_eq!((names, all.len()), (vec!["gs", "s3"], 3));
    }

    #[tokio::test]
    async fn errors_name_the_secret_and_never_its_value() {
        let broken = "kind: Secret\nstringData: [PLANTED\n";
        let unkeyed = "kind: Secret\nmetadata: {name: x}\n";
        let coded = "kind: Secret\ndata: {k: PLANTED!}\n";
        for (files, part) in [
            (&[][..], "is not in"),
            (&[("x/.hidden", "PLANTED")][..], "no key"),
            (&[("x/k", "PLANTED")][..], "key \"k\" of secret \"x\""),
            (
                &[("x/k", r#"{"name":"s3","type":"PLANTED"}"#)][..],
                "\"parameters\"",
            ),
            (&[("x.yaml", broken)][..], "neither JSON nor YAML"),
            (&[("x.yaml", unkeyed)][..], "no key"),
            (&[("x.yaml", coded)][..], "base64"),
        ] {
            let error = chosen(files, "s3").await.unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(part) && text.contains("\"x\""), "{text}");
            assert!(!text.contains("PLANTED"), "{text}");
        }
        for name in ["", "../x", "a/b", ".", "..", "A", "a b"] {
            let error = read(&[], name).await.err();
            assert_eq!(error, Some(SecretError::Name(name.to_owned())));
        }
        let none = Secrets::None.read("x").await.err().unwrap().to_string();
        assert!(none.contains("--secrets-path"), "{none}");
    }
}
