//! From a Model to a folder with its artefact: where it comes from, whether it may, and why it did not arrive.
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use seldon_proto::scheduler::{ModelSpec, storage_config};
use serde_json::{Value, json};

use super::downloads::{Downloads, Fetched};
use super::keep::Bounds;
use super::rclone::RcloneError;
use super::remotes::Remotes;
use super::secrets::SecretError;
use super::storage::{Storage, StorageError};
use super::uri::{self, Location, Policy, UriError};

/// Why an artefact did not arrive. No text holds a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Uri(#[from] UriError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("secret {name:?} cannot be used: {error}")]
    SecretStorage { name: String, error: StorageError },
    #[error("no artefact at {0}: nothing is there")]
    Nothing(String),
    #[error("no artefact at {0}: the bucket does not exist")]
    NoBucket(String),
    #[error("{uri} cannot be read: {error}")]
    Rclone { uri: String, error: RcloneError },
    #[error(
        "{uri} was not downloaded within {limit:?}, see --max-download-minutes: what has arrived is kept for the next try"
    )]
    TooSlow { uri: String, limit: Duration },
    #[error(
        "the disk of {} has no room for {uri} ({free} bytes are free): free some, or give the agent a larger volume", folder.display()
    )]
    DiskFull {
        uri: String,
        folder: PathBuf,
        free: u64,
    },
    #[error("{path} cannot be used: {reason}")]
    Disk { path: PathBuf, reason: String },
    #[error("the download was broken off")]
    Unwanted,
}

/// What the operator set.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of downloads; shared with rclone.
    pub folder: PathBuf,
    pub local_roots: Vec<PathBuf>,
    pub http_hosts: BTreeSet<String>,
    pub concurrent: usize,
    /// The longest time a single download may take.
    pub limit: Duration,
    /// How long transient failures are tried again.
    pub retry_for: Duration,
    /// What is kept of former downloads.
    pub keep: Bounds,
}

impl Settings {
    pub fn back_off(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times()
            .with_total_delay(Some(self.retry_for))
    }
}

/// Where to copy from: equal ones are the same artefact. It holds the credentials, so that no download is shared
/// between models that came with different ones.
pub struct Source {
    location: Location,
    /// The remote in rclone's object form.
    fs: Value,
}

impl Source {
    /// As errors show it.
    pub fn shown(&self) -> String {
        uri::redacted(&self.location.to_string())
    }

    /// Tells sources apart; a secret.
    pub fn identity(&self) -> String {
        format!("{:?} {}", self.location, self.fs)
    }

    /// As a folder: without the slash, an object store is asked for a file of that name first, and takes every
    /// failure of that for a file.
    pub fn fs(&self) -> Value {
        let mut fs = self.fs.clone();
        if let Some(root) = fs["_root"].as_str().filter(|root| !root.ends_with('/')) {
            fs["_root"] = Value::String(format!("{root}/"));
        }
        fs
    }

    /// As what may be a file.
    pub fn fs_of_file(&self) -> Value {
        self.fs.clone()
    }
}

/// Fetches artefacts through rclone.
pub struct Artefacts {
    remotes: Arc<Remotes>,
    settings: Settings,
    downloads: Downloads,
}

impl Artefacts {
    /// Takes over what a former agent left in the folder of downloads.
    pub fn open(remotes: Arc<Remotes>, settings: Settings) -> anyhow::Result<Self> {
        let downloads = Downloads::open(remotes.rclone().clone(), settings.clone())?;
        Ok(Self {
            remotes,
            settings,
            downloads,
        })
    }

    /// Brings a model's artefact into a folder of its own. Dropping this ends the download, unless others want it.
    pub async fn fetch(&self, spec: &ModelSpec) -> Result<Fetched, FetchError> {
        let source = self.source(spec).await?;
        self.downloads.fetch(source).await
    }

    async fn source(&self, spec: &ModelSpec) -> Result<Source, FetchError> {
        let storage = self.storage(spec).await?;
        let location = self.locate(&spec.uri, storage.as_ref()).await?;
        let fs = match (&location, &storage) {
            (Location::Remote { path, .. }, Some(storage)) => storage.fs(path),
            (Location::Remote { name, path }, None) => json!({"_name": name, "_root": path}),
            (Location::Local(path), _) => {
                json!({"type": "local", "_root": self.real_path(path).await?})
            }
            (Location::Http { origin, path }, _) => {
                json!({"type": "http", "url": origin, "_root": path})
            }
        };
        Ok(Source { location, fs })
    }

    /// The configuration that came with the Model, or that it names.
    async fn storage(&self, spec: &ModelSpec) -> Result<Option<Storage>, FetchError> {
        let config = spec.storage_config.as_ref();
        let Some(config) = config.and_then(|config| config.config.as_ref()) else {
            return Ok(None);
        };
        let wanted = uri::remote_name(&spec.uri).unwrap_or_default();
        match config {
            storage_config::Config::StorageSecretName(name) => {
                let storage = self.remotes.secrets().read(name).await?.storage(wanted)?;
                let named = |error| FetchError::SecretStorage {
                    name: name.clone(),
                    error,
                };
                storage.check_untrusted(wanted).map_err(named)?;
                Ok(Some(storage))
            }
            storage_config::Config::StorageRcloneConfig(text) => {
                let storage = Storage::parse(text)?;
                storage.check_untrusted(wanted)?;
                Ok(Some(storage))
            }
        }
    }

    async fn locate(
        &self,
        storage_uri: &str,
        storage: Option<&Storage>,
    ) -> Result<Location, FetchError> {
        let mut policy = Policy {
            remotes: BTreeSet::new(),
            local_roots: self.settings.local_roots.clone(),
            http_hosts: self.settings.http_hosts.clone(),
        };
        if let Some(storage) = storage {
            policy.remotes.insert(storage.name.clone());
        } else if let Some(wanted) = uri::remote_name(storage_uri) {
            let names = (|| self.remotes.names(wanted))
                .retry(self.settings.back_off())
                .when(RcloneError::is_transient)
                .await;
            let names = names.map_err(|error| FetchError::Rclone {
                uri: "rclone's list of remotes".to_owned(),
                error,
            })?;
            policy.remotes.extend(names);
        }
        Ok(uri::parse(storage_uri, &policy)?)
    }

    /// Resolves links, which must not lead out of the allowed roots.
    async fn real_path(&self, path: &std::path::Path) -> Result<String, FetchError> {
        let real = match tokio::fs::canonicalize(path).await {
            Ok(real) => real,
            // A volume that only rclone's container has: rclone will say whether the path is there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(path.to_string_lossy().into_owned());
            }
            Err(error) => {
                return Err(FetchError::Disk {
                    path: path.to_owned(),
                    reason: error.to_string(),
                });
            }
        };
        let mut roots = Vec::new();
        for root in &self.settings.local_roots {
            roots.push(
                tokio::fs::canonicalize(root)
                    .await
                    .unwrap_or_else(|_| root.clone()),
            );
        }
        if !uri::inside(&real, &roots) {
            let (path, roots) = (
                uri::redacted(&path.display().to_string()),
                uri::names(&self.settings.local_roots),
            );
            return Err(UriError::OutsideRoots { path, roots }.into());
        }
        Ok(real.to_string_lossy().into_owned())
    }
}
