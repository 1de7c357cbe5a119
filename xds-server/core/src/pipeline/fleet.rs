//! Workers, who of them owns what, and when they are given up.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{Effect, Endpoint, Generation, PIPELINE_GATEWAYS, StreamId, Worker, world::World};

/// A worker by name.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Of a pipeline gateway: its place in clusters, kept for as long as it is known.
    pub(crate) index: u32,
    pub(crate) stream: Option<StreamId>,
    pub(crate) lost_at: Option<Duration>,
    /// It said that it goes and has nothing any more: nobody waits for it.
    pub(crate) left: bool,
    pub(crate) endpoint: Option<Endpoint>,
    /// Pipelines or models that it has, may have or is to have.
    pub(crate) objects: BTreeSet<Arc<str>>,
    /// It came when it could have anything from before a restart of the scheduler.
    pub(crate) doubtful: bool,
}

/// All workers of one kind.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pub(crate) members: BTreeMap<Arc<str>, Member>,
}

/// All workers.
#[derive(Debug, Default)]
pub(crate) struct Fleets {
    pub(crate) engines: Fleet,
    pub(crate) model_gateways: Fleet,
    pub(crate) pipeline_gateways: Fleet,
    /// Orders so far; grows over restarts as well.
    last_timestamp: u64,
    /// Workers to be forgotten as soon as they have nothing to do with anything.
    pub(crate) leaving: BTreeSet<(Worker, Arc<str>)>,
    /// After a restart: until then nobody is given anything, as those who have it may not be back.
    pub(crate) hold_until: Duration,
    /// After a restart: until then workers that come may have anything.
    pub(crate) doubt_until: Duration,
    /// After a restart: pipelines whose route is not back, and until when Envoys wait for them.
    pub(crate) unrouted: BTreeSet<Arc<str>>,
    pub(crate) back_by: Duration,
}

impl Member {
    pub(crate) fn connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Connected, or lost for so short a time that it keeps what it owns.
    pub(crate) fn present(&self, world: &World) -> bool {
        let patience = world.config.replace_after;
        let lost = |lost| world.now.monotonic >= lost + patience;
        !self.left && !self.lost_at.is_some_and(lost)
    }

    /// Lost for so long that it is not expected any more.
    pub(crate) fn expired(&self, world: &World) -> bool {
        let patience = world.config.keep_terminated.max(world.config.replace_after);
        self.lost_at
            .is_some_and(|lost| world.now.monotonic >= lost + patience)
    }
}

impl Fleet {
    pub(crate) fn get(&self, name: &str) -> Option<&Member> {
        self.members.get(name)
    }

    pub(crate) fn connected(&self, name: &str) -> bool {
        self.get(name).is_some_and(Member::connected)
    }

    pub(crate) fn present(&self, name: &str, world: &World) -> bool {
        self.get(name).is_some_and(|member| member.present(world))
    }

    /// The `count` owners of `key` among those present, of which `most` may own anything (0: all).
    ///
    /// By highest score, so that a worker that comes or goes moves only what becomes, or was, its own. The original's
    /// ring of MD5 hashes is not needed: no worker computes owners by itself.
    pub(crate) fn owners(
        &self,
        key: &str,
        count: usize,
        most: u32,
        world: &World,
    ) -> Vec<Arc<str>> {
        let most = match most {
            0 => usize::MAX,
            most => most as usize,
        };
        let present = self
            .members
            .iter()
            .filter(|(_, member)| member.present(world));
        let mut scored: Vec<(u64, &Arc<str>)> = present
            .take(most)
            .map(|(name, _)| (score(key, name), name))
            .collect();
        scored.sort_unstable_by(|one, other| other.cmp(one));
        scored.truncate(count);
        scored.into_iter().map(|(_, name)| name.clone()).collect()
    }

    /// The ordinal in the name, as stateful sets give it, where it is free; else one that follows from the name alone, so
    /// that it is the same after a restart, in whatever order gateways come back: Envoys' clusters are called by it.
    pub(crate) fn free_index(&self, name: &str) -> u32 {
        let taken: BTreeSet<u32> = self.members.values().map(|member| member.index).collect();
        let ordinal = name.rsplit('-').next().and_then(|last| last.parse().ok());
        let ordinal = ordinal.filter(|ordinal| *ordinal < ORDINALS && !taken.contains(ordinal));
        let own = u32::try_from(score("", name) % (1 << 30)).unwrap_or(0);
        ordinal
            .or_else(|| (ORDINALS + own..).find(|index| !taken.contains(index)))
            .unwrap_or(u32::MAX)
    }
}

impl Fleets {
    pub(crate) fn of(&self, worker: Worker) -> &Fleet {
        match worker {
            Worker::Engine => &self.engines,
            Worker::ModelGateway => &self.model_gateways,
            Worker::PipelineGateway => &self.pipeline_gateways,
        }
    }

    pub(crate) fn of_mut(&mut self, worker: Worker) -> &mut Fleet {
        match worker {
            Worker::Engine => &mut self.engines,
            Worker::ModelGateway => &mut self.model_gateways,
            Worker::PipelineGateway => &mut self.pipeline_gateways,
        }
    }

    /// The next order's number: microseconds, so that it grows over restarts.
    pub(crate) fn stamp(&mut self, world: &World) -> u64 {
        let wall = u64::try_from(world.now.wall.as_micros()).unwrap_or(u64::MAX / 2);
        self.last_timestamp = wall.max(self.last_timestamp + 1);
        self.last_timestamp
    }

    /// Whether owners may be chosen.
    pub(crate) fn open(&self, world: &World) -> bool {
        world.now.monotonic >= self.hold_until
    }

    /// Whether a worker that came may have what it was given in an earlier life of the scheduler.
    pub(crate) fn in_doubt(&self, world: &World) -> bool {
        world.now.monotonic < self.doubt_until
    }

    /// Whether pipelines of before the restart are back, or were waited for long enough.
    pub(crate) fn back(&self, world: &World) -> bool {
        self.unrouted.is_empty() || world.now.monotonic >= self.back_by
    }

    /// Remembers, or forgets, that a worker has something to do with an object.
    pub(crate) fn note(&mut self, worker: Worker, name: &str, object: &Arc<str>, has: bool) {
        let Some(member) = self.of_mut(worker).members.get_mut(name) else {
            return;
        };
        match has {
            true if !member.objects.contains(object) => {
                member.objects.insert(object.clone());
            }
            false => {
                member.objects.remove(object);
                if member.objects.is_empty() && member.lost_at.is_some() {
                    self.leaving.insert((worker, name.into()));
                }
            }
            true => {}
        }
    }

    /// Forgets workers that were away for too long and have nothing.
    pub(crate) fn prune(&mut self, world: &mut World) {
        for (worker, name) in std::mem::take(&mut self.leaving) {
            let members = &mut self.of_mut(worker).members;
            let over = members
                .get(&name)
                .is_some_and(|member| member.expired(world) && member.objects.is_empty());
            if !over {
                continue;
            }
            members.remove(&name);
            if worker == Worker::PipelineGateway {
                world.grow();
                let changed = Effect::EndpointsChanged(PIPELINE_GATEWAYS.into());
                world.effects.push(changed);
            }
        }
    }
}

/// FNV-1a of both, well mixed.
fn score(key: &str, member: &str) -> u64 {
    let bytes = member.bytes().chain([0]).chain(key.bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Indexes below are ordinals of names.
const ORDINALS: u32 = 1_000;

/// A number that Envoys cannot have taken yet.
pub(crate) const NEVER: Generation = Generation::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Now, Synchronisation};

    fn member(index: u32) -> Member {
        Member {
            index,
            stream: Some(1),
            lost_at: None,
            left: false,
            endpoint: None,
            objects: BTreeSet::new(),
            doubtful: false,
        }
    }

    #[test]
    fn a_worker_that_comes_takes_only_its_own_part() {
        let world = World::new(
            Config::new(Synchronisation::AfterTimeout(Duration::ZERO)),
            Now::default(),
        );
        let mut fleet = Fleet::default();
        for index in 0..4 {
            let name = format!("engine-{index}");
            assert_eq!(fleet.free_index(&name), index);
            fleet.members.insert(name.into(), member(index));
        }
        let keys: Vec<String> = (0..1000).map(|number| format!("p{number}")).collect();
        let owner = |fleet: &Fleet, key: &str| fleet.owners(key, 1, 0, &world)[0].clone();
        let before: Vec<Arc<str>> = keys.iter().map(|key| owner(&fleet, key)).collect();
        fleet.members.insert("engine-4".into(), member(4));
        let mut moved = 0;
        for (key, former) in keys.iter().zip(before) {
            let now = owner(&fleet, key);
            moved += u32::from(now != former);
            assert!(
                now == former || &*now == "engine-4",
                "{key} moved between others"
            );
        }
        assert!((120..280).contains(&moved), "{moved} of 1000 moved");
        assert_eq!(fleet.owners("p", 2, 1, &world).len(), 1);
    }

    #[test]
    fn an_index_follows_from_the_name_in_whatever_order_gateways_come() {
        let indexes = |names: [&str; 4]| {
            let mut fleet = Fleet::default();
            for name in names {
                let index = fleet.free_index(name);
                fleet.members.insert(name.into(), member(index));
            }
            let members = fleet.members.into_iter();
            let all: Vec<(Arc<str>, u32)> = members.map(|(name, one)| (name, one.index)).collect();
            all
        };
        let first = indexes(["host-a1", "host-b2", "pg-3", "host-c3"]);
        assert_eq!(first, indexes(["host-c3", "pg-3", "host-b2", "host-a1"]));
        assert!(
            first
                .iter()
                .any(|(name, index)| &**name == "pg-3" && *index == 3)
        );
        let different: BTreeSet<u32> = first.iter().map(|(_, index)| *index).collect();
        assert_eq!(different.len(), 4);
    }
}
