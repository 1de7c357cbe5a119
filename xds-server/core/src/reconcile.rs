//! Brings one model a step nearer to what is wanted; run whenever something about it may have changed.
use std::sync::Arc;

use seldon_proto::agent::model_operation_message::Operation;

use crate::{
    Effect, Record,
    model::{Entry, Replica, Version},
    replica_state::{
        ReplicaState::{self, *},
        can_receive_traffic, is_loaded, is_loading, is_unloading,
    },
    retire::{retire_all, retire_old, retire_replaced, retire_surplus},
    route::{promote, publish},
    scaling,
    schedule::{Decision, decide},
    server::Standing,
    status::refresh_shown,
    world::World,
};

/// More passes than any model needs to come to rest.
const MOST_PASSES: usize = 8;

/// Runs all rules on a model until nothing changes any more.
pub(crate) fn reconcile(entry: &mut Entry, world: &mut World) {
    for _ in 0..MOST_PASSES {
        world.moved = false;
        expire(entry, world);
        follow_replicas(entry, world);
        scaling::follow_rest(entry, world);
        if world.sync.done {
            match entry.deleted {
                true => retire_all(entry, world),
                false => {
                    place(entry, world);
                    retire_old(entry, world);
                    retire_replaced(entry, world);
                    retire_surplus(entry, world);
                }
            }
        }
        publish(entry, world);
        promote(entry, world);
        if world.sync.done {
            unload_released(entry, world);
        }
        entry.changed |= world.moved;
        if !world.moved {
            break;
        }
    }
    finish(entry, world);
}

/// Where a version's replica stands; a replica that is not known has left.
pub(crate) fn standing(version: &Version, index: u32, world: &World) -> Standing {
    let server = version
        .server
        .as_ref()
        .and_then(|name| world.servers.get(name));
    server
        .and_then(|server| server.replicas.get(&index))
        .map_or(Standing::Left, |replica| {
            replica.standing(world.now.monotonic, &world.config)
        })
}

/// Replicas that Envoys use and that may still answer. One that is gone for good stays in the route when there is no
/// other, but it does not count.
pub(crate) fn available(version: &Version, world: &World) -> usize {
    let gone = |index| {
        matches!(
            standing(version, index, world),
            Standing::Expired | Standing::Left
        )
    };
    let replicas = version.replicas.iter();
    replicas
        .filter(|replica| replica.state == Available && !gone(replica.index))
        .count()
}

/// Whether a model takes memory that others have been given. It answers there, as they leave theirs to it, but it goes where
/// there is room.
pub(crate) fn is_crowded(version: &Version, replica: &Replica, world: &World) -> bool {
    let server = version.server.as_ref();
    let host = server.and_then(|name| world.servers.get(name)?.replicas.get(&replica.index));
    replica.crowded && host.is_some_and(|host| host.excess > 0)
}

pub(crate) fn connected(version: &Version, index: u32, world: &World) -> bool {
    let server = version
        .server
        .as_ref()
        .and_then(|name| world.servers.get(name));
    server
        .and_then(|server| server.replicas.get(&index))
        .is_some_and(|replica| replica.stream.is_some())
}

/// Records that a load failed: it is tried again after a while, but not for ever. Failures of several replicas in one
/// round are one.
pub(crate) fn fail_load(version: &mut Version, at: usize, reason: &str, world: &mut World) {
    version.failures += u32::from(!version.has_failed());
    world.set_state(version, at, LoadFailed, Some(reason));
    version.last_failure = version.replicas[at].reason.clone();
    if let Some(server) = &version.server {
        let place = (server.clone(), version.replicas[at].index);
        version.avoided.insert(place);
    }
    version.failed_epoch = world.epoch;
    version.retry_at = (version.failures < world.config.retry_limit)
        .then(|| world.now.monotonic + world.config.backoff(version.failures));
}

/// Records that an unload failed: it is tried again after a while, but not for ever.
pub(crate) fn fail_unload(version: &mut Version, at: usize, reason: &str, world: &mut World) {
    world.set_state(version, at, UnloadFailed, Some(reason));
    let replica = &mut version.replicas[at];
    replica.failures += 1;
    replica.deadline = (replica.failures < world.config.retry_limit)
        .then(|| world.now.monotonic + world.config.backoff(replica.failures));
}

/// Acts on deadlines that have passed.
fn expire(entry: &mut Entry, world: &mut World) {
    let now = world.now.monotonic;
    let Entry {
        name,
        versions,
        unconfirmed,
        ..
    } = entry;
    for version in versions {
        for at in (0..version.replicas.len()).rev() {
            let replica = &version.replicas[at];
            if replica.deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            let index = replica.index;
            match replica.state {
                state if is_loading(state) => {
                    *unconfirmed = true;
                    fail_load(
                        version,
                        at,
                        "the agent did not finish loading in time",
                        world,
                    );
                }
                UnloadRequested | Unloading => {
                    fail_unload(
                        version,
                        at,
                        "the agent did not finish unloading in time",
                        world,
                    );
                }
                UnloadFailed if connected(version, index, world) => {
                    start_unload(version, at, world)
                }
                // Whoever asked for the drain is answered by the server's rules; this replica is all the model has.
                Draining => version.replicas[at].deadline = Some(now + world.config.drain_timeout),
                _ => version.replicas[at].deadline = None,
            }
        }
        let new_world =
            version.failures >= world.config.retry_limit && world.epoch > version.failed_epoch;
        if new_world {
            version.failures = 0;
            version.avoided.clear();
        }
        if new_world || version.retry_at.is_some_and(|retry| retry <= now) {
            version.retry_at = None;
            remove_where(name, version, world, |state| state == LoadFailed);
        }
    }
}

fn remove_where(
    name: &Arc<str>,
    version: &mut Version,
    world: &mut World,
    rule: impl Fn(ReplicaState) -> bool,
) {
    for at in (0..version.replicas.len()).rev() {
        if rule(version.replicas[at].state) {
            world.remove_replica(name, version, at);
        }
    }
}

/// Follows what became of the replicas' agents.
fn follow_replicas(entry: &mut Entry, world: &mut World) {
    let Entry {
        name,
        versions,
        unconfirmed,
        ..
    } = entry;
    for version in versions {
        for at in (0..version.replicas.len()).rev() {
            let (index, state) = (version.replicas[at].index, version.replicas[at].state);
            let standing = standing(version, index, world);
            let leaving = matches!(standing, Standing::Leaving | Standing::Left);
            let absent = !connected(version, index, world);
            match state {
                state if is_loaded(state) && leaving => {
                    world.set_state(version, at, Draining, Some("trigger to drain"));
                    version.replicas[at].gate = None;
                }
                Draining if !leaving && standing != Standing::Expired => {
                    world.set_state(version, at, Loaded, None);
                    version.replicas[at].gate = None;
                }
                // Should the agent come back, it says itself what it has.
                LoadFailed if absent => world.remove_replica(name, version, at),
                state if is_loading(state) && absent && standing != Standing::Suspect => {
                    *unconfirmed = true;
                    world.remove_replica(name, version, at);
                }
                UnloadRequested | Unloading | UnloadFailed
                    if absent && matches!(standing, Standing::Expired | Standing::Left) =>
                {
                    *unconfirmed = true;
                    world.remove_replica(name, version, at);
                }
                _ => {}
            }
        }
    }
}

/// Places what the latest version lacks.
fn place(entry: &mut Entry, world: &mut World) {
    let (server, replicas, short) = match decide(entry, world) {
        Decision::Placed => (None, Vec::new(), None),
        Decision::Load {
            server,
            replicas,
            short,
        } => (Some(server), replicas, short),
        Decision::Unplaced(reason) => (None, Vec::new(), Some(reason)),
    };
    if entry.unplaced.as_deref() != short.as_deref() {
        entry.unplaced = short.map(Arc::from);
    }
    let unplaced = entry.unplaced.as_ref();
    entry.short_since = unplaced.map(|_| entry.short_since.unwrap_or(world.now.monotonic));
    let wish = unplaced.and_then(|_| scaling::consider_more(entry, world));
    match wish {
        Some(wish) => scaling::request(entry, &wish, world),
        None => scaling::withdraw(entry, world),
    }
    let Some(server) = server else { return };
    let latest = entry.latest();
    if !latest.is_on(&server) && !latest.replicas.is_empty() {
        // What is loaded elsewhere keeps its number, so that both can be told apart.
        let moved = Version {
            failures: latest.failures,
            last_failure: latest.last_failure.clone(),
            avoided: latest.avoided.clone(),
            resting: latest.resting,
            ..Version::new(entry.next_number(), latest.spec.clone())
        };
        entry.versions.push(moved);
        world.effects.push(Effect::Persist(record(entry)));
    }
    let at = entry.latest_position();
    let Entry { name, versions, .. } = entry;
    let latest = &mut versions[at];
    if !latest.is_on(&server) {
        world.count_set(latest);
        latest.server = Some(server);
    }
    let avoided = |index: &u32| {
        let place = latest.server.clone().map(|server| (server, *index));
        place.is_some_and(|place| latest.avoided.contains(&place))
    };
    if replicas.iter().any(avoided) {
        // There is nowhere else to go: the round begins again.
        latest.avoided.clear();
    }
    for index in replicas {
        let at = world.add_replica(name, latest, index);
        world.set_state(latest, at, Loading, None);
        world.send(latest, index, Operation::LoadModel);
    }
}

/// What the store keeps of a model.
pub(crate) fn record(entry: &Entry) -> Record {
    let latest = entry.latest();
    Record::Model {
        name: entry.name.clone(),
        version: latest.number,
        spec: latest.spec.clone(),
        deleted: entry.deleted,
        born: entry.born,
        scaled: entry.scaling.replicas,
    }
}

/// Unloads what no Envoy can ask for any more.
fn unload_released(entry: &mut Entry, world: &mut World) {
    let Entry {
        name,
        versions,
        unconfirmed,
        ..
    } = entry;
    if entry.rejected.is_some() {
        // An Envoy that refused a route goes on with the one before, until it has taken that there is none any more.
        if !entry.deleted {
            return;
        }
        if entry.route_generation > world.released {
            world
                .awaiting_release
                .insert((entry.route_generation, name.clone()));
            return;
        }
    }
    for version in versions {
        for at in (0..version.replicas.len()).rev() {
            let replica = &version.replicas[at];
            let released = replica.gate.is_some_and(|gate| gate <= world.released);
            if replica.state != UnloadEnvoyRequested || !released {
                continue;
            }
            let index = replica.index;
            if connected(version, index, world) {
                start_unload(version, at, world);
            } else if matches!(
                standing(version, index, world),
                Standing::Expired | Standing::Left
            ) {
                *unconfirmed = true;
                world.remove_replica(name, version, at);
            }
        }
    }
}

fn start_unload(version: &mut Version, at: usize, world: &mut World) {
    let index = version.replicas[at].index;
    world.set_state(version, at, UnloadRequested, None);
    world.send(version, index, Operation::UnloadModel);
    world.set_state(version, at, Unloading, None);
}

/// Brings the indexes, the timer and what is shown in step.
fn finish(entry: &mut Entry, world: &mut World) {
    for version in &mut entry.versions {
        world.count_set(version);
    }
    let latest = entry.latest().number;
    entry.versions.retain(|version| {
        !version.replicas.is_empty() || (!version.stray && version.number == latest)
    });
    finish_deletion(entry, world);
    if entry.deleted {
        scaling::withdraw(entry, world);
    }
    let exhausted = entry.latest().failures >= world.config.retry_limit;
    if !entry.deleted && (entry.unplaced.is_some() || exhausted) {
        if !world.unplaced.contains(&entry.name) {
            world.unplaced.insert(entry.name.clone());
        }
    } else {
        world.unplaced.remove(&entry.name);
    }
    refresh_shown(entry, world);
    if std::mem::take(&mut entry.changed) {
        entry.since = world.now.wall;
        entry.settled_at = world.now.monotonic;
        world.effects.push(Effect::ModelChanged(entry.name.clone()));
    }
    refresh_timer(entry, world);
}

/// A deleted model is forgotten once no agent has it.
fn finish_deletion(entry: &mut Entry, world: &mut World) {
    let alive = entry
        .versions
        .iter()
        .any(|version| !version.replicas.is_empty());
    if !entry.deleted || alive || !world.sync.done {
        (entry.gone_at, entry.forgotten) = (None, false);
        return;
    }
    if entry.gone_at.is_none() {
        entry.gone_at = Some(world.now.monotonic + world.config.keep_terminated);
        entry.changed = true;
    }
}

/// Whether the model is gone and need not be known any more. `held`: a model gateway still has to be told something.
pub(crate) fn forget(entry: &mut Entry, held: bool, world: &mut World) -> bool {
    let Some(gone) = entry.gone_at.filter(|_| !held) else {
        return false;
    };
    let over = gone <= world.now.monotonic;
    // Agents that are missing may have it: the store keeps it for as long as it is shown.
    if !entry.forgotten && (over || !entry.unconfirmed) {
        entry.forgotten = true;
        world.effects.push(Effect::ForgetModel(entry.name.clone()));
    }
    over
}

pub(crate) fn refresh_timer(entry: &mut Entry, world: &mut World) {
    use crate::world::Timer;
    let deadlines = entry.versions.iter().flat_map(|version| {
        version
            .replicas
            .iter()
            .filter_map(|replica| replica.deadline)
            .chain(version.retry_at)
    });
    // A server may be asked to grow for it then.
    let pause = world.config.scale_server_up_pause;
    let short = entry.short_since.map(|since| since + pause);
    let short = short.filter(|due| *due > world.now.monotonic);
    // One that is held beyond that is looked at when its gateway answers.
    let gone = entry.gone_at.filter(|gone| *gone > world.now.monotonic);
    let next = deadlines.chain(gone).chain(short).min();
    world.set_timer(Timer::Model, &entry.name, &mut entry.timer, next);
}

/// Whether requests for the model may still reach a replica that drains, and something can be done about it.
pub(crate) fn holds_up_drain(entry: &Entry, server: &str, index: u32, world: &World) -> bool {
    let there = entry
        .versions
        .iter()
        .filter(|version| version.is_on(server));
    there
        .flat_map(|version| &version.replicas)
        .filter(|replica| replica.index == index)
        .any(|replica| {
            let unplaced = entry.unplaced.is_some() && !entry.deleted;
            let released = replica.gate.is_some_and(|gate| gate <= world.released);
            (can_receive_traffic(replica.state) && !unplaced)
                || (is_unloading(replica.state)
                    && replica.state == UnloadEnvoyRequested
                    && !released)
        })
}

/// How many replicas the latest version must have before it takes all requests.
pub(crate) fn cut_over_at(entry: &Entry) -> usize {
    let latest = entry.latest();
    let formerly: usize = older(entry)
        .map(|version| {
            version
                .replicas
                .iter()
                .filter(|replica| can_receive_traffic(replica.state))
                .count()
        })
        .sum();
    let least = entry.minimum();
    let placed = latest.placed().count();
    // Where only some replicas can be placed, and the model is content with those, waiting for more would be for ever.
    let most = match entry.unplaced.is_some() && least > 0 && placed >= least {
        true => placed,
        false => entry.target(),
    };
    most.min(formerly).max(1)
}

/// Versions that the latest replaces.
pub(crate) fn older(entry: &Entry) -> impl Iterator<Item = &Version> {
    let latest = entry.latest_position();
    entry
        .versions
        .iter()
        .enumerate()
        .filter(move |(at, version)| *at != latest && !version.stray)
        .map(|(_, v)| v)
}
