//! Start-up: until the servers that were there before are back, nothing is moved or removed.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{Config, Now, Synchronisation, server::Server};

/// What is waited for.
#[derive(Clone, Debug)]
pub(crate) struct StartUp {
    pub(crate) done: bool,
    pub(crate) deadline: Duration,
    by_notify: bool,
    /// Whether the store, or its absence, has spoken.
    restored: bool,
    /// Replicas of each server that the store knows of.
    recorded: BTreeMap<Arc<str>, u32>,
    /// Replicas of each server that the first notification named.
    announced: Option<BTreeMap<Arc<str>, u32>>,
}

impl StartUp {
    pub(crate) fn new(config: &Config, now: Now) -> StartUp {
        let (by_notify, timeout) = match config.synchronisation {
            Synchronisation::AfterTimeout(timeout) => (false, timeout),
            Synchronisation::FirstServers { timeout } => (true, timeout),
        };
        StartUp {
            done: false,
            deadline: now.monotonic + timeout,
            by_notify,
            restored: false,
            recorded: BTreeMap::new(),
            announced: None,
        }
    }

    /// The store has spoken: these servers had as many replicas.
    pub(crate) fn restored(&mut self, servers: impl IntoIterator<Item = (Arc<str>, u32)>) {
        self.restored = true;
        self.recorded.extend(servers);
    }

    /// Whatever comes first without the store having spoken means that there is none.
    pub(crate) fn no_store(&mut self) {
        self.restored = true;
    }

    pub(crate) fn announce(&mut self, servers: impl Iterator<Item = (Arc<str>, u32)>) {
        self.announced.get_or_insert_with(|| servers.collect());
    }

    /// A client says how many replicas there are to be now, whatever the store remembers.
    pub(crate) fn expect(&mut self, server: &str, replicas: u32) {
        if let Some(recorded) = self.recorded.get_mut(server) {
            *recorded = replicas;
        }
    }

    pub(crate) fn forget(&mut self, server: &str) {
        self.recorded.remove(server);
    }

    /// Ends the wait when there is nothing left to wait for; true once, when it ends.
    pub(crate) fn check(&mut self, servers: &BTreeMap<Arc<str>, Server>, now: Now) -> bool {
        if self.done {
            return false;
        }
        let connected = |name: &Arc<str>| {
            servers
                .get(name)
                .map_or(0, |server| server.connected().count())
        };
        let all_back = |known: &BTreeMap<Arc<str>, u32>| {
            let mut known = known.iter();
            known.all(|(name, expected)| connected(name) >= *expected as usize)
        };
        let recorded_back = all_back(&self.recorded);
        let known_back = recorded_back && (!self.by_notify || !self.recorded.is_empty());
        let announced_back = self.announced.as_ref().is_some_and(all_back);
        let timed_out = now.monotonic >= self.deadline;
        self.done = timed_out || (self.restored && (known_back || announced_back));
        self.done
    }

    /// What is still missing, in words.
    pub(crate) fn missing(&self, servers: &BTreeMap<Arc<str>, Server>) -> String {
        let waiting: Vec<String> = self
            .recorded
            .iter()
            .map(|(name, expected)| {
                (
                    name,
                    servers.get(name).map_or(0, |s| s.connected().count()),
                    expected,
                )
            })
            .filter(|(_, back, expected)| *back < **expected as usize)
            .map(|(name, back, expected)| format!("{back} of {expected} replicas of server {name}"))
            .collect();
        match waiting.is_empty() {
            true => "waiting for the first list of servers".to_owned(),
            false => format!("waiting for servers to come back: {}", waiting.join(", ")),
        }
    }
}
