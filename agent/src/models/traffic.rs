//! How models are used: for the scheduler, which decides by it.
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use seldon_proto::agent::{ModelVersion, ReplicaUsage};

use super::entry::{Entry, State};
use super::{Registry, name_of};
use crate::scaling::Watched;

impl Registry {
    /// How this replica is used now.
    pub fn usage(&self) -> ReplicaUsage {
        let entries = self.entries();
        let evicted = entries
            .iter()
            .filter(|entry| entry.state() == State::Evicted);
        let evicted = evicted.count();
        let in_flight: usize = entries.iter().map(|entry| entry.wanted_by()).sum();
        ReplicaUsage {
            evicted_models: evicted.try_into().unwrap_or(u32::MAX),
            requests_in_flight: in_flight.try_into().unwrap_or(u32::MAX),
        }
    }

    /// Models whose requests are watched, and that can be asked.
    pub fn watched(&self) -> Vec<Watched> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let entries = self.entries();
        let watched = entries.iter().filter(|entry| {
            entry.watched.load(Ordering::Relaxed)
                && matches!(entry.state(), State::Loaded | State::Evicted)
        });
        let look = |entry: &Arc<Entry>| {
            let version = entry.version();
            let in_flight = entry.wanted_by();
            let idle = match in_flight {
                0 => now.saturating_sub(entry.last_used()),
                _ => Duration::ZERO,
            };
            Watched {
                name: name_of(&version).to_owned(),
                version: version.version,
                in_flight: in_flight.try_into().unwrap_or(u32::MAX),
                idle,
                resting: entry.is_resting(),
                asked: entry.is_asked_at_rest(),
            }
        };
        watched.map(look).collect()
    }
}

/// Before the scheduler has said so: what scales by itself has bounds.
pub(super) fn has_bounds(version: &ModelVersion) -> bool {
    let model = version.model.as_ref();
    model
        .and_then(|model| model.deployment_spec.as_ref())
        .is_some_and(|deployment| deployment.min_replicas > 0 || deployment.max_replicas > 0)
}
