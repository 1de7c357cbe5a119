//! Requests that entered a version and were not answered yet.
use std::{collections::HashSet, sync::LazyLock};

use seldon_records::{Identity, header};
use xxhash_rust::xxh3::xxh3_64;

use crate::{Flow, arrival::Arrival};

/// How long a request without a time limit may take: as long as the model gateway gives a model.
const RUN_MS: i64 = 120_000;
/// Records beside the output are this much later than the answer at most, as far as an update waits for them.
const BESIDE_MS: i64 = 10_000;
/// How long a record that is written may take until it is read back.
const BACK_MS: i64 = 10_000;
/// Requests in flight that are named to who takes the pipeline over; of more it only learns until when.
const NAMED: usize = 256;

/// What is in flight in a version, for a process that takes the pipeline over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Which version.
    pub version: u32,
    /// Nobody waits any more then.
    pub until_ms: i64,
    /// The requests, as digests of their identities; none: not known.
    pub requests: Vec<u32>,
}

/// Enough to tell those apart that are in flight at a time.
fn digest(identity: &Identity) -> u32 {
    (xxh3_64(identity.as_str().as_bytes()) >> 32) as u32
}

/// Stands for all that another process began.
static WHOEVER: LazyLock<Identity> = LazyLock::new(|| Identity::derived(&[]));

impl Flow {
    /// Another process had the pipeline: requests that it began are in flight and not known here, as `known` says, or
    /// perhaps in each version. Until they end, or this long, their versions are not idle; where they are not known, what
    /// shows that one is under way keeps its version from being so.
    pub fn inherit(&mut self, known: Option<&[InFlight]>, until_ms: i64) {
        for (version, live) in &mut self.versions {
            let (until, requests) = match known {
                None => (until_ms, &[][..]),
                Some(known) => match known.iter().find(|one| one.version == *version) {
                    Some(one) => (one.until_ms, &one.requests[..]),
                    None => continue,
                },
            };
            let due = self.runs.add(until, (*version, WHOEVER.clone()));
            if let Some(former) = live.runs.insert(WHOEVER.clone(), due) {
                self.runs.remove(former);
            }
            live.inherited = requests.iter().copied().collect();
            if requests.is_empty() {
                live.inherited_until = until;
            }
        }
    }

    /// What is in flight in each version, to be written down for who takes over.
    pub fn in_flight(&self) -> Vec<InFlight> {
        let busy = self.versions.iter();
        let busy = busy.filter(|(_, live)| !live.runs.is_empty());
        let of = |(version, live): (&u32, &crate::live::Live)| {
            let until_ms = live.runs.values().map(|due| due.0).max();
            let is_unknown = live.inherited.is_empty() && live.runs.contains_key(&*WHOEVER);
            let mut requests = Vec::new();
            if !is_unknown && live.runs.len() + live.inherited.len() <= NAMED {
                let known = live.runs.keys().filter(|known| **known != *WHOEVER);
                requests = known.map(digest).collect();
                requests.extend(&live.inherited);
                requests.sort_unstable();
            }
            InFlight {
                version: *version,
                until_ms: until_ms.unwrap_or_default(),
                requests,
            }
        };
        busy.map(of).collect()
    }

    /// A request enters a version.
    pub(crate) fn begin(&mut self, version: u32, arrival: &Arrival, now_ms: i64) {
        let limit = arrival
            .headers
            .text(header::DEADLINE)
            .and_then(|text| text.parse().ok());
        let until = limit.unwrap_or(now_ms.saturating_add(RUN_MS));
        self.run(version, &arrival.identity, until);
    }

    /// A record that this process writes will be read back: its version is not idle before.
    pub(crate) fn expect(&mut self, version: u32, identity: &Identity, now_ms: i64) {
        self.run(version, identity, now_ms.saturating_add(BACK_MS));
    }

    fn run(&mut self, version: u32, identity: &Identity, until_ms: i64) {
        self.ended_elsewhere(version, identity);
        let Some(live) = self.versions.get_mut(&version) else {
            return;
        };
        match live.runs.get(identity) {
            Some(due) if due.0 >= until_ms => return,
            Some(due) => self.runs.remove(*due),
            None => {}
        }
        let due = self.runs.add(until_ms, (version, identity.clone()));
        live.runs.insert(identity.clone(), due);
        let most = self.limits.remembered;
        if live.runs.len() > most
            && let Some((version, oldest)) = self.runs.pop_where(|(of, _)| *of == version)
            && let Some(live) = self.versions.get_mut(&version)
        {
            live.runs.remove(&oldest);
        }
    }

    /// A request was answered.
    pub(crate) fn end(&mut self, version: u32, identity: &Identity, now_ms: i64) {
        let inherited = self.ended_elsewhere(version, identity);
        let Some(live) = self.versions.get_mut(&version) else {
            return;
        };
        let due = match live.runs.remove(identity) {
            Some(due) => {
                self.runs.remove(due);
                due.0
            }
            None if inherited => i64::MAX,
            None => return,
        };
        if live.graph.outlasts_answer {
            let until = due.min(now_ms.saturating_add(BESIDE_MS));
            let due = self.runs.add(until, (version, identity.clone()));
            live.runs.insert(identity.clone(), due);
        }
    }

    /// A request that another process began is known here now, or is over. Whether it was one.
    fn ended_elsewhere(&mut self, version: u32, identity: &Identity) -> bool {
        let Some(live) = self.versions.get_mut(&version) else {
            return false;
        };
        if live.inherited.is_empty() || !live.inherited.remove(&digest(identity)) {
            return false;
        }
        if live.inherited.is_empty()
            && let Some(due) = live.runs.remove(&*WHOEVER)
        {
            self.runs.remove(due);
        }
        true
    }

    /// Whether a request is in flight in a version, as far as is known.
    pub(crate) fn runs_in(&self, version: u32, identity: &Identity, now_ms: i64) -> bool {
        let Some(live) = self.versions.get(&version) else {
            return false;
        };
        live.runs.contains_key(identity)
            || now_ms < live.inherited_until
            || live.inherited.contains(&digest(identity))
    }

    /// Nobody waits any more for the answers of some requests.
    pub(crate) fn expire_runs(&mut self, now_ms: i64) {
        while let Some((version, identity)) = self.runs.pop(now_ms) {
            if let Some(live) = self.versions.get_mut(&version) {
                live.runs.remove(&identity);
                if identity == *WHOEVER {
                    live.inherited = HashSet::new();
                }
            }
        }
    }
}
