//! What Envoys' filters count of experiments: read while a roll-out waits for it, and when someone asks.
mod fetch;
mod prometheus;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use seldon_ads::{Engine, EnvoyStatus};
use seldon_core::{Event, Measurement};

use crate::writer::{Handle, Names};

/// How often counters are read while someone waits for them.
const EVERY: Duration = Duration::from_secs(2);

/// What an Envoy has counted of a candidate since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that it was chosen for, and those that have ended.
    pub begun: u64,
    pub requests: u64,
    pub errors: u64,
    pub microseconds: u64,
    /// Copies, of a mirror.
    pub mirrored: u64,
}

/// By experiment and candidate.
pub type Table = BTreeMap<(String, String), Counts>;

/// What all Envoys together have counted.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub table: Table,
    /// Envoys that are connected and could not be read, with the reason.
    pub unmeasured: Vec<String>,
}

/// Reads Envoys' counters.
#[derive(Clone)]
pub struct Meter {
    engine: Engine,
    /// For Envoys that name none in their metadata.
    default_port: u16,
}

impl Meter {
    pub fn new(engine: Engine, default_port: u16) -> Self {
        Self {
            engine,
            default_port,
        }
    }

    /// Sums up what Envoys have counted since each of them started.
    pub async fn totals(&self) -> Totals {
        let envoys = self.targets();
        let mut totals = Totals::default();
        for (envoy, read) in self.read(envoys).await {
            match read {
                Ok(table) => {
                    for (key, counts) in table {
                        let sum = totals.table.entry(key).or_default();
                        sum.add(counts);
                    }
                }
                Err(reason) if envoy.connected => {
                    totals
                        .unmeasured
                        .push(format!("{}: {reason}", envoy.address));
                }
                Err(_) => {} // it has left: most likely it is gone
            }
        }
        totals
    }

    /// Tells the rules what was counted, while they wait for it; for ever.
    pub async fn follow(self, writer: Handle) {
        let mut wanted = writer.measured();
        while wanted.wait_for(|names| !names.is_empty()).await.is_ok() {
            let mut known = Known::default();
            loop {
                let names = wanted.borrow_and_update().clone();
                if names.is_empty() {
                    break;
                }
                // Nothing counted is told as well: a step counts from readings after it began.
                writer.happened(match self.round(&mut known, &names).await {
                    Some(measured) => Event::Measured(measured),
                    None => Event::Unmeasured,
                });
                tokio::time::sleep(EVERY).await;
            }
        }
    }

    /// `None` where Envoys are connected and none could be read.
    async fn round(&self, known: &mut Known, wanted: &Names) -> Option<Vec<Measurement>> {
        let targets = self.targets();
        known.keep(&targets);
        let (mut any, mut lost) = (false, false);
        for (target, read) in self.read(targets).await {
            match read {
                Ok(table) => {
                    any = true;
                    known.take(target.address, table);
                }
                Err(reason) => {
                    lost |= target.connected;
                    if known.lose(&target.address) && target.connected {
                        tracing::warn!(
                            envoy = target.address,
                            reason,
                            "its counters cannot be read: roll-outs do without it"
                        );
                    }
                }
            }
        }
        let measured = known.drain(wanted);
        (any || !lost).then_some(measured)
    }

    async fn read(&self, targets: Vec<Target>) -> Vec<(Target, Result<Table, String>)> {
        let all = targets.into_iter().map(|target| async move {
            let read = match target.socket {
                Some(socket) => fetch::counters(socket).await,
                None => Err("its address is not known".to_owned()),
            };
            (target, read.map(|text| prometheus::parse(&text)))
        });
        join_all(all).await
    }

    /// One of each Envoy, though it may have left and come back by another stream.
    fn targets(&self) -> Vec<Target> {
        let mut seen: BTreeMap<String, Target> = BTreeMap::new();
        for envoy in self.engine.envoys() {
            let target = self.target(&envoy);
            let known = seen.entry(target.address.clone());
            known
                .and_modify(|known| known.connected |= target.connected)
                .or_insert(target);
        }
        seen.into_values().collect()
    }

    fn target(&self, envoy: &EnvoyStatus) -> Target {
        let port = envoy.node.metadata["seldon"]["stats_port"]
            .as_f64() // protobuf's Struct knows no integers
            .filter(|port| (1.0..=65535.0).contains(port))
            .map_or(self.default_port, |port| port as u16);
        let ip = envoy.node.address.parse::<IpAddr>().ok();
        let socket = ip.map(|ip| SocketAddr::new(ip.to_canonical(), port));
        Target {
            address: match socket {
                Some(socket) => socket.to_string(),
                None => format!("stream {}", envoy.stream),
            },
            socket,
            connected: envoy.connected,
        }
    }
}

/// Where an Envoy is asked.
struct Target {
    address: String,
    socket: Option<SocketAddr>,
    connected: bool,
}

/// What was read last, to tell what was counted since.
#[derive(Default)]
struct Known {
    last: HashMap<String, Table>,
    /// Envoys that could not be read the last time.
    unread: BTreeSet<String>,
    fresh: Table,
}

impl Known {
    fn keep(&mut self, targets: &[Target]) {
        let there: BTreeSet<&str> = targets.iter().map(|t| t.address.as_str()).collect();
        self.last
            .retain(|address, _| there.contains(address.as_str()));
        self.unread
            .retain(|address| there.contains(address.as_str()));
    }

    /// What an Envoy counts until it can be read again belongs to no reading. Whether that is news.
    fn lose(&mut self, address: &str) -> bool {
        self.last.remove(address);
        self.unread.insert(address.to_owned())
    }

    /// The first reading of an Envoy only says where its counters stand, also of one that started again.
    fn take(&mut self, address: String, now: Table) {
        self.unread.remove(&address);
        let before = self.last.get(&address);
        let before = before.filter(|before| {
            let mut keys = before.iter();
            keys.all(|(key, counts)| now.get(key).is_some_and(|now| now.follows(*counts)))
        });
        if let Some(before) = before {
            for (key, counts) in &now {
                let since = counts.since(before.get(key).copied().unwrap_or_default());
                self.fresh.entry(key.clone()).or_default().add(since);
            }
        }
        self.last.insert(address, now);
    }

    fn drain(&mut self, wanted: &Names) -> Vec<Measurement> {
        let fresh = std::mem::take(&mut self.fresh);
        let wanted = fresh.into_iter().filter(|((experiment, _), counts)| {
            *counts != Counts::default() && wanted.contains(experiment.as_str())
        });
        wanted
            .map(|((experiment, candidate), counts)| Measurement {
                experiment: experiment.into(),
                candidate: Arc::from(candidate),
                begun: counts.begun,
                requests: counts.requests,
                errors: counts.errors,
                microseconds: counts.microseconds,
            })
            .collect()
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.begun = self.begun.saturating_add(other.begun);
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        self.microseconds = self.microseconds.saturating_add(other.microseconds);
        self.mirrored = self.mirrored.saturating_add(other.mirrored);
    }

    /// Whether these may have been counted on from `before`; an Envoy that started again begins at 0.
    fn follows(&self, before: Self) -> bool {
        self.begun >= before.begun
            && self.requests >= before.requests
            && self.errors >= before.errors
            && self.microseconds >= before.microseconds
    }

    fn since(self, before: Self) -> Self {
        Self {
            begun: self.begun.saturating_sub(before.begun),
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
            microseconds: self.microseconds.saturating_sub(before.microseconds),
            mirrored: self.mirrored.saturating_sub(before.mirrored),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(requests: u64, errors: u64) -> Table {
        let counts = Counts {
            begun: requests,
            requests,
            errors,
            microseconds: requests * 1000,
            mirrored: 0,
        };
        [(("e".to_owned(), "iris".to_owned()), counts)].into()
    }

    #[test]
    fn only_what_is_new_is_told_also_after_a_restart_of_envoy() {
        let mut known = Known::default();
        let wanted: Names = ["e".into()].into();
        let mut told = |address: &str, now| {
            known.take(address.to_owned(), now);
            let measured = known.drain(&wanted);
            measured
                .first()
                .map(|m| (m.requests, m.errors, m.microseconds))
        };
        assert_eq!(told("a", table(100, 9)), None, "of before");
        assert_eq!(told("a", table(103, 9)), Some((3, 0, 3000)));
        assert_eq!(told("a", table(103, 9)), None);
        assert_eq!(told("b", Table::new()), None, "nothing counted yet");
        assert_eq!(told("b", table(7, 1)), Some((7, 1, 7000)));
        assert_eq!(told("a", table(2, 0)), None, "it started again");
        assert_eq!(told("a", table(4, 0)), Some((2, 0, 2000)));
        assert!(known.lose("a") && !known.lose("a"), "news once");
        known.take("a".into(), table(9, 0));
        let all = known.drain(&["e".into()].into());
        assert!(all.is_empty(), "nobody knows when that was");
        known.take("a".into(), table(10, 0));
        assert!(known.drain(&Names::new()).is_empty(), "nobody asked");
    }
}
