//! Remotes of the agent's configuration, kept equal in rclone.
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::rclone::{Rclone, RcloneError};
use super::storage::Storage;
use crate::config::RcloneConfig;

/// How long a list of remotes is used for the next models of a burst.
const NAMES_FOR: Duration = Duration::from_secs(2);

/// What this agent has configured in rclone. Remotes that others configured are left alone.
pub struct Remotes {
    rclone: Rclone,
    /// No one else configures this rclone: what is there at the start is what a former agent left.
    exclusive: bool,
    /// The configuration whose mistakes were logged.
    told: Mutex<Option<RcloneConfig>>,
    applied: Mutex<BTreeMap<String, Storage>>,
    names: Mutex<Option<(Instant, Vec<String>)>>,
}

impl Remotes {
    pub fn new(rclone: Rclone) -> Self {
        Self {
            rclone,
            exclusive: false,
            told: Mutex::default(),
            applied: Mutex::default(),
            names: Mutex::default(),
        }
    }

    /// For an rclone that only this agent configures: remotes of a former agent are removed, too.
    pub fn exclusive(rclone: Rclone) -> Self {
        Self {
            exclusive: true,
            ..Self::new(rclone)
        }
    }

    /// Makes rclone's remotes those of the configuration. A bad one is reported and the others are applied.
    pub async fn apply(&self, config: &RcloneConfig) -> Result<(), RcloneError> {
        // Applied every few seconds: a mistake is told once.
        let mut told = self.told.lock().await;
        let news = told.as_ref() != Some(config);
        let mut wanted = BTreeMap::new();
        for (index, text) in config.config.iter().enumerate() {
            match Storage::parse(text) {
                Ok(storage) => drop(wanted.insert(storage.name.clone(), storage)),
                Err(error) if news => {
                    tracing::error!(%error, "remote {index} of the agent's configuration is left out")
                }
                Err(_) => {}
            }
        }
        for secret in config.config_secrets.iter().filter(|_| news) {
            tracing::warn!(
                secret,
                "storage secrets are read in Kubernetes only, this one is left out"
            );
        }
        *told = Some(config.clone());
        drop(told);
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

    /// The client that these remotes are configured in.
    pub fn rclone(&self) -> &Rclone {
        &self.rclone
    }
}
