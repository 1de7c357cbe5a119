//! Envoys that left: each may serve its last world until its lease ends.
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use crate::{EnvoyStatus, Generation, Rejection, engine::Connected};

/// An Envoy whose stream is lost.
pub(crate) struct Departed {
    pub(crate) status: EnvoyStatus,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) lost: Duration,
    pub(crate) released: Generation,
}

#[derive(Default)]
pub(crate) struct Departures(Vec<Departed>);

impl Departures {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn push(&mut self, departed: Departed) {
        self.0.push(departed);
    }

    /// Forgets those whose lease is over. One that refused something may be back on a stream that has not said so again:
    /// it is remembered, for another lease at most, until every newer stream has answered for all that it was told of.
    pub(crate) fn expire(
        &mut self,
        now: Duration,
        lease: Duration,
        streams: &BTreeMap<u64, Connected>,
    ) {
        let may_be_back = |d: &Departed| {
            let mut newer = streams.values().filter(|c| c.since >= d.lost);
            newer.any(|c| !c.stream.quiet() || !c.stream.covers(&d.status.types))
        };
        self.0.retain(|d| {
            let refused = !d.status.rejections.is_empty() && now < d.lost + lease * 2;
            now < d.lost + lease || (refused && may_be_back(d))
        });
    }

    /// What every Envoy within its lease has acknowledged; `None` without any.
    pub(crate) fn released(&self) -> Option<Generation> {
        self.0.iter().map(|d| d.released).min()
    }

    pub(crate) fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        self.0.iter().flat_map(|d| &d.status.rejections)
    }

    pub(crate) fn status(
        &self,
        now: Duration,
        lease: Duration,
    ) -> impl Iterator<Item = EnvoyStatus> {
        let within = self.0.iter().filter(move |d| now < d.lost + lease);
        within.map(move |d| EnvoyStatus {
            since: now.saturating_sub(d.lost),
            ..d.status.clone()
        })
    }

    /// Ends leases early where it is certain that every Envoy of that identity is back and up to date.
    ///
    /// Node ids are all alike, and several Envoys may share an address. So those of one identity count as back only
    /// together: when as many streams that brought versions with them have been opened since, and each of these has
    /// subscribed to all that was subscribed to and has acknowledged the latest world.
    pub(crate) fn match_returned(
        &mut self,
        streams: &mut BTreeMap<u64, Connected>,
        latest: Generation,
    ) {
        let identities: Vec<_> = self.0.iter().map(identity).collect();
        for of in identities {
            let gone: Vec<&Departed> = self.0.iter().filter(|d| identity(d) == of).collect();
            let last = gone.iter().map(|d| d.lost).max().unwrap_or_default();
            let back = |c: &&mut Connected| {
                let same =
                    c.ip.is_some() && (c.stream.node.id.as_str(), c.ip) == (of.0.as_str(), of.1);
                let current = c.stream.quiet() && c.stream.released == latest;
                let new = c.since >= last && c.stream.returning && !c.credited;
                let covers = |d: &&Departed| c.stream.covers(&d.status.types);
                same && current && new && gone.iter().all(covers)
            };
            let mut returned: Vec<_> = streams.values_mut().filter(back).collect();
            if gone.is_empty() || returned.len() < gone.len() {
                continue;
            }
            let count = gone.len();
            returned
                .iter_mut()
                .take(count)
                .for_each(|c| c.credited = true);
            self.0.retain(|d| identity(d) != of);
        }
    }
}

fn identity(departed: &Departed) -> (String, Option<IpAddr>) {
    (departed.status.node.id.clone(), departed.ip)
}
