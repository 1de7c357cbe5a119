//! The rules' settings.
use std::time::Duration;

/// What is waited for after a start, before anything is moved or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronisation {
    /// The servers known from the store, or this long. With none known there is nothing to wait for. For local use.
    AfterTimeout(Duration),
    /// The servers known from the store, or as many replicas as the first `ServerNotify` names, or this long.
    FirstServers { timeout: Duration },
}

/// The rules' settings; all times are spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub synchronisation: Synchronisation,
    /// How long a replica whose stream is lost keeps its endpoints, unless they are a model's last.
    pub suspect: Duration,
    /// How long a stream may be lost before replacements are placed; at most `suspect`.
    pub replace_after: Duration,
    /// An agent's own limit for a load, and for an unload.
    pub load_timeout: Duration,
    pub unload_timeout: Duration,
    /// A drain is answered at the latest after this.
    pub drain_timeout: Duration,
    /// The wait after the first failure to load or unload; doubles with each.
    pub retry_first: Duration,
    /// Failures in a row after which a load waits for a new agent or a new version.
    pub retry_limit: u32,
    /// How long a model that is gone is still shown, and kept from being revived by an agent that was away.
    pub keep_terminated: Duration,
}

impl Config {
    /// Settings with documented or generous times.
    pub fn new(synchronisation: Synchronisation) -> Config {
        Config {
            synchronisation,
            suspect: Duration::from_secs(60),
            replace_after: Duration::from_secs(5),
            load_timeout: Duration::from_secs(2 * 3600),
            unload_timeout: Duration::from_secs(15 * 60),
            drain_timeout: Duration::from_secs(100),
            retry_first: Duration::from_secs(5),
            retry_limit: 5,
            keep_terminated: Duration::from_secs(3600),
        }
    }

    /// The wait after `failures` failures in a row.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        self.retry_first * 2u32.pow(failures.saturating_sub(1).min(6))
    }
}
