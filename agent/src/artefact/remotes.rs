//! Remotes of the agent's configuration, kept equal in rclone.
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::rclone::{Rclone, RcloneError};
use super::secrets::Secrets;
use super::storage::Storage;
use crate::config::RcloneConfig;

/// How long a list of remotes is used for the next models of a burst.
const NAMES_FOR: Duration = Duration::from_secs(2);

/// What this agent has configured in rclone. Remotes that others configured are left alone.
pub struct Remotes {
    rclone: Rclone,
    secrets: Secrets,
    /// No one else configures this rclone: what is there at the start is what a former agent left.
    exclusive: bool,
    /// Mistakes of the configuration that were logged.
    told: Mutex<BTreeSet<String>>,
    applied: Mutex<BTreeMap<String, Storage>>,
    names: Mutex<Option<(Instant, Vec<String>)>>,
}

impl Remotes {
    pub fn new(rclone: Rclone, secrets: Secrets) -> Self {
        Self {
            rclone,
            secrets,
            exclusive: false,
            told: Mutex::default(),
            applied: Mutex::default(),
            names: Mutex::default(),
        }
    }

    /// For an rclone that only this agent configures: remotes of a former agent are removed, too.
    pub fn exclusive(rclone: Rclone, secrets: Secrets) -> Self {
        Self {
            exclusive: true,
            ..Self::new(rclone, secrets)
        }
    }

    /// Makes rclone's remotes those of the configuration. A bad one is reported and the others are applied.
    pub async fn apply(&self, config: &RcloneConfig) -> Result<(), RcloneError> {
        let wanted = self.wanted(config).await;
        let mut applied = self.applied.lock().await;
        let mut existing = self.rclone.remotes().await?;
        let left = existing.iter().filter(|_| self.exclusive);
        let dropped: BTreeSet<String> = applied
            .keys()
            .chain(left)
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        for name in dropped {
            self.rclone.forget(&name).await?;
            applied.remove(&name);
            existing.retain(|existing| *existing != name);
        }
        for (name, storage) in wanted {
            let exists = existing.contains(&name);
            if exists && applied.get(&name) == Some(&storage) {
                continue;
            }
            self.configure(&storage, exists).await?;
            tracing::info!(
                remote = name,
                kind = storage.kind,
                "remote configured in rclone"
            );
            applied.insert(name, storage);
        }
        Ok(())
    }

    /// The remotes of a configuration. This is asked every few seconds: a secret that changed is followed, and a mistake
    /// is told once.
    async fn wanted(&self, config: &RcloneConfig) -> BTreeMap<String, Storage> {
        let mut found: Vec<Result<Storage, String>> = Vec::new();
        for (index, text) in config.config.iter().enumerate() {
            let parsed = Storage::parse(text);
            found.push(parsed.map_err(|error| format!("remote {index} is left out: {error}")));
        }
        for name in &config.config_secrets {
            let storages = match self.secrets.read(name).await {
                Ok(secret) => secret.storages(),
                Err(error) => vec![Err(error)],
            };
            let told = |error| format!("a secret of config_secrets is left out: {error}");
            found.extend(storages.into_iter().map(|storage| storage.map_err(told)));
        }
        let (mut wanted, mut mistakes) = (BTreeMap::new(), BTreeSet::new());
        for storage in found {
            let replaced = storage.map(|storage| wanted.insert(storage.name.clone(), storage));
            match replaced {
                Ok(None) => {}
                Ok(Some(former)) => drop(mistakes.insert(format!(
                    "remote {:?} is configured more than once: the last one counts",
                    former.name
                ))),
                Err(mistake) => drop(mistakes.insert(mistake)),
            }
        }
        let mut told = self.told.lock().await;
        for mistake in mistakes.difference(&told) {
            tracing::error!("the agent's configuration of rclone: {mistake}");
        }
        *told = mistakes;
        wanted
    }

    async fn configure(&self, storage: &Storage, exists: bool) -> Result<(), RcloneError> {
        if exists && self.rclone.kind(&storage.name).await? != storage.kind {
            // An update cannot change the type.
            self.rclone.forget(&storage.name).await?;
            return self.rclone.configure(storage, false).await;
        }
        self.rclone.configure(storage, exists).await
    }

    /// Names that a `storageUri` may use. They may be as old as `NAMES_FOR`, unless `wanted` is not among them.
    pub async fn names(&self, wanted: &str) -> Result<Vec<String>, RcloneError> {
        let mut names = self.names.lock().await;
        if let Some((at, known)) = names.as_ref()
            && at.elapsed() < NAMES_FOR
            && known.iter().any(|name| name == wanted)
        {
            return Ok(known.clone());
        }
        let fresh = self.rclone.remotes().await?;
        *names = Some((Instant::now(), fresh.clone()));
        Ok(fresh)
    }

    /// Where secrets are read from.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// The client that these remotes are configured in.
    pub fn rclone(&self) -> &Rclone {
        &self.rclone
    }
}
