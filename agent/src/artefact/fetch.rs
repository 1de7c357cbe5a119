//! Downloads: checked, bounded, retried, and shared by models that ask for the same artefact at the same time.
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use seldon_proto::scheduler::{ModelSpec, storage_config};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::rclone::RcloneError;
use super::remotes::Remotes;
use super::storage::{Storage, StorageError};
use super::uri::{self, Location, Policy, UriError};
use crate::permits::Permits;

/// Why an artefact did not arrive. No text holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Uri(#[from] UriError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(
        "storage secret {0:?} cannot be read: secrets need Kubernetes, give the configuration itself instead"
    )]
    Secret(String),
    #[error("no artefact at {0}: nothing is there")]
    Nothing(String),
    #[error("{uri} cannot be read: {error}")]
    Rclone { uri: String, error: RcloneError },
    #[error("{path} cannot be used: {reason}")]
    Disk { path: PathBuf, reason: String },
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
}

/// A downloaded artefact; its folder is removed when the last user is gone. While anyone uses it, others share it.
#[derive(Debug, Clone)]
pub struct Fetched {
    pub folder: PathBuf,
    _copy: Arc<Shared>,
}

#[derive(Debug)]
struct Download {
    folder: PathBuf,
}

impl Drop for Download {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.folder);
        let remove = move || drop(crate::repository::remove_folder(&folder));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// Where to copy from: equal keys are the same artefact. The object holds the credentials, so none is shared
/// between models that came with different ones.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Source {
    location: Location,
    fs: String,
}

type Shared = OnceCell<Download>;

/// Fetches artefacts through rclone.
pub struct Artefacts {
    remotes: Arc<Remotes>,
    settings: Settings,
    permits: Permits,
    running: Mutex<HashMap<Source, Weak<Shared>>>,
    number: AtomicU64,
}

impl Artefacts {
    /// Removes what a former agent left in the folder of downloads.
    pub fn open(remotes: Arc<Remotes>, settings: Settings) -> anyhow::Result<Self> {
        crate::repository::remove_folder(&settings.folder)?;
        std::fs::create_dir_all(&settings.folder)?;
        let permits = Permits::new(settings.concurrent);
        Ok(Self {
            remotes,
            settings,
            permits,
            running: Mutex::default(),
            number: AtomicU64::new(0),
        })
    }

    /// Brings a model's artefact into a folder of its own.
    pub async fn fetch(&self, spec: &ModelSpec) -> Result<Fetched, FetchError> {
        let source = self.source(spec).await?;
        let shared = self.shared(&source);
        let folder = shared
            .get_or_try_init(|| self.permits.run(self.download(&source)))
            .await?
            .folder
            .clone();
        Ok(Fetched {
            folder,
            _copy: shared,
        })
    }

    /// One download for all who ask while it runs or is in use.
    fn shared(&self, source: &Source) -> Arc<Shared> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, shared| shared.strong_count() > 0);
        if let Some(shared) = running.get(source).and_then(Weak::upgrade) {
            return shared;
        }
        let shared = Arc::new(Shared::new());
        running.insert(source.clone(), Arc::downgrade(&shared));
        shared
    }

    async fn source(&self, spec: &ModelSpec) -> Result<Source, FetchError> {
        let storage = storage_of(spec)?;
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
        Ok(Source {
            location,
            fs: fs.to_string(),
        })
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
                .retry(self.back_off())
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

    async fn download(&self, source: &Source) -> Result<Download, FetchError> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let folder = self.settings.folder.join(format!(
            "{}-{number}",
            crate::hash::fnv32a(&source.location.to_string())
        ));
        let fetched = Download { folder };
        let from: Value = serde_json::from_str(&source.fs).unwrap_or_default();
        let copy = || {
            self.remotes
                .rclone()
                .copy(from.clone(), &fetched.folder, self.settings.limit)
        };
        let uri = uri::redacted(&source.location.to_string());
        match copy
            .retry(self.back_off())
            .when(RcloneError::is_transient)
            .await
        {
            Ok(()) => {}
            Err(RcloneError::NotFound) => return Err(FetchError::Nothing(uri)),
            Err(error) => return Err(FetchError::Rclone { uri, error }),
        }
        // Buckets have no folders: a path that nothing lies under is copied "successfully".
        let Ok(mut entries) = tokio::fs::read_dir(&fetched.folder).await else {
            return Err(FetchError::Nothing(uri));
        };
        match entries.next_entry().await {
            Ok(Some(_)) => Ok(fetched),
            _ => Err(FetchError::Nothing(uri)),
        }
    }

    fn back_off(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times()
            .with_total_delay(Some(self.settings.retry_for))
    }
}

fn storage_of(spec: &ModelSpec) -> Result<Option<Storage>, FetchError> {
    let Some(config) = spec
        .storage_config
        .as_ref()
        .and_then(|config| config.config.as_ref())
    else {
        return Ok(None);
    };
    match config {
        storage_config::Config::StorageSecretName(name) => Err(FetchError::Secret(name.clone())),
        storage_config::Config::StorageRcloneConfig(text) => {
            let storage = Storage::parse(text)?;
            let wanted = uri::remote_name(&spec.uri).unwrap_or_default();
            storage.check_untrusted(wanted)?;
            Ok(Some(storage))
        }
    }
}
