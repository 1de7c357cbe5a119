//! Brings one pipeline a step nearer to what is wanted; run whenever something about it may have changed.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seldon_proto::scheduler::{
    PipelineStatusResponse, pipeline_status_response::PipelineOperation,
};

use super::{
    Entry, Pipelines, Version,
    fleet::Fleets,
    message,
    route::{await_envoys, publish},
    status::{refresh, version_status},
    task::{Doing, Phase, Task},
};
use crate::{
    Effect, Order, Record, Worker, model,
    world::{Timer, World},
};

/// Versions that have ended and are still shown.
const MOST_ENDED: usize = 5;
/// A former engine is waited for as long as this many times the time after which a lost one is replaced.
const HANDOVER: u32 = 3;
/// As many gateways as two are of use even where nothing is shared out.
const FEWEST_GATEWAYS: usize = 2;

/// Runs all rules on a pipeline.
pub(crate) fn reconcile(
    entry: &mut Entry,
    pipelines: &mut Pipelines,
    fleets: &mut Fleets,
    models: &BTreeMap<Arc<str>, model::Entry>,
    world: &mut World,
) {
    drop_expired(entry, fleets, world);
    for version in &mut entry.versions {
        version.was_ready |= version.engine_ready();
    }
    let owners = gateway_owners(entry, fleets, world);
    let open = fleets.open(world);
    if open && !entry.deleted {
        want_gateways(entry, &owners);
    }
    publish(entry, &owners, fleets, world);
    if open {
        cut_over(entry, &owners);
        release_gateways(entry, &owners, world);
        place_engine(entry, fleets, world);
    }
    send(entry, fleets, world);
    if open {
        end_versions(entry, fleets, world);
        if end(entry, fleets, world) {
            pipelines.touch(&entry.name);
        }
    }
    note_workers(entry, fleets);
    await_envoys(entry, pipelines, world);
    if refresh(entry, &owners, fleets, models, world) {
        let changed = Effect::PipelineChanged(entry.name.clone());
        world.effects.push(changed);
    }
    for model in pipelines.index(entry) {
        world.touch(&model);
    }
    set_timer(entry, world);
}

/// What the store keeps of a pipeline.
pub(crate) fn record(entry: &Entry) -> Record {
    let living = entry.versions.iter();
    // Of one that is gone, workers that are away may have any.
    let living = living.filter(|version| entry.deleted || version.ended.is_none());
    let mut versions: Vec<_> = living.map(|version| version.spec.clone()).collect();
    if versions.is_empty() {
        versions.push(entry.latest().spec.clone());
    }
    versions.extend(entry.next.clone());
    Record::Pipeline {
        name: entry.name.clone(),
        versions,
        deleted: entry.deleted,
    }
}

fn gateway_owners(entry: &Entry, fleets: &Fleets, world: &World) -> Vec<Arc<str>> {
    let config = &world.config;
    let count = FEWEST_GATEWAYS.max(config.shards as usize);
    let most = config.pipeline_gateways_max;
    let fleet = &fleets.pipeline_gateways;
    fleet.owners(&entry.name, count, most, world)
}

type Workers = BTreeSet<(Worker, Arc<str>)>;

fn workers(entry: &Entry) -> Workers {
    let gateways = entry.gateways.0.keys();
    let gateways = gateways.map(|name| (Worker::PipelineGateway, name.clone()));
    let engines = entry.versions.iter();
    let engines = engines.flat_map(|version| version.engines.0.keys());
    let engines = engines.map(|name| (Worker::Engine, name.clone()));
    gateways.chain(engines).collect()
}

fn note_workers(entry: &mut Entry, fleets: &mut Fleets) {
    let now = workers(entry);
    for (worker, name) in entry.on.difference(&now) {
        fleets.note(*worker, name, &entry.name, false);
    }
    for (worker, name) in now.difference(&entry.on) {
        fleets.note(*worker, name, &entry.name, true);
    }
    entry.on = now;
}

/// Workers that were away for too long have nothing any more, unless requests can go nowhere else.
fn drop_expired(entry: &mut Entry, fleets: &Fleets, world: &World) {
    for version in &mut entry.versions {
        version.engines.0.retain(|name, _| {
            let member = fleets.engines.get(name);
            member.is_some_and(|member| !member.expired(world))
        });
    }
    let routed = entry.splits.first().map(|split| &split.replicas.replicas);
    entry.gateways.0.retain(|name, _| {
        let member = fleets.pipeline_gateways.get(name);
        member.is_some_and(|member| {
            !member.expired(world) || routed.is_some_and(|routed| routed.contains(&member.index))
        })
    });
}

fn want_gateways(entry: &mut Entry, owners: &[Arc<str>]) {
    let number = entry.latest().number();
    for name in owners {
        let task = entry.gateways.0.entry(name.clone());
        task.or_insert_with(|| Task::new(Doing::Create, number))
            .want(Doing::Create, number);
    }
}

/// Gateways that are to go are told so when no Envoy can ask them any more.
fn release_gateways(entry: &mut Entry, owners: &[Arc<str>], world: &World) {
    let number = entry.latest().number();
    for (name, task) in &mut entry.gateways.0 {
        let wanted = !entry.deleted && owners.contains(name);
        let released = task.gate.is_some_and(|gate| gate <= world.released);
        if !wanted && released {
            task.want(Doing::Delete { keep_topics: true }, number);
        }
    }
}

/// The newest version runs everywhere: those before it end.
fn cut_over(entry: &mut Entry, owners: &[Arc<str>]) {
    let latest = entry.latest();
    let number = latest.number();
    let ready = |name: &Arc<str>| {
        let task = entry.gateways.0.get(name);
        task.is_some_and(|task| task.ready() && task.version == number)
    };
    let answers = owners.is_empty() || (entry.taken && owners.iter().any(ready));
    if entry.deleted || !latest.engine_ready() || !answers {
        return;
    }
    let older = entry.versions.len() - 1;
    for version in &mut entry.versions[..older] {
        version.leaving = true;
    }
}

/// Whether no gateway can still wait for an answer.
fn gateways_done(entry: &Entry, fleets: &Fleets, world: &World) -> bool {
    entry.gateways.0.iter().all(|(name, task)| {
        let given_up = task.failures >= world.config.retry_limit;
        given_up || !fleets.pipeline_gateways.present(name, world)
    })
}

/// Chooses the engine, and has former ones let go before it begins.
fn place_engine(entry: &mut Entry, fleets: &Fleets, world: &World) {
    let engines = &fleets.engines;
    let owner = engines.owners(&entry.name, 1, 0, world).pop();
    let done = entry.deleted && gateways_done(entry, fleets, world);
    let clean = entry.deleted && entry.clean_topics();
    let newest = entry.versions.len() - 1;
    let mut outstanding = false;
    for (at, version) in entry.versions.iter_mut().enumerate() {
        let (lives, number) = (version.lives(), version.number());
        for (name, task) in &mut version.engines.0 {
            if lives && !entry.deleted && owner.as_ref() == Some(name) {
                continue;
            }
            if lives && entry.deleted && !done {
                continue;
            }
            let keep_topics = !(clean && at == newest);
            task.want(Doing::Delete { keep_topics }, number);
            let given_up = task.failures >= world.config.retry_limit;
            outstanding |= lives && !given_up && engines.connected(name);
        }
    }
    if outstanding && entry.heir != owner {
        // Another owner waits anew: whom the former wait was for may have begun meanwhile.
        (entry.handover, entry.heir) = (None, owner.clone());
    }
    let blocked = outstanding && {
        let wait = world.config.replace_after * HANDOVER;
        let now = world.now.monotonic;
        now < *entry.handover.get_or_insert(now + wait)
    };
    if !outstanding {
        entry.handover = None;
        entry.heir = None;
    }
    let Some(owner) = owner.filter(|_| !blocked && !entry.deleted) else {
        return;
    };
    for version in entry.versions.iter_mut().filter(|version| version.lives()) {
        let number = version.number();
        let task = version.engines.0.entry(owner.clone());
        task.or_insert_with(|| Task::new(Doing::Create, number))
            .want(Doing::Create, number);
    }
}

/// Sends orders that are due.
fn send(entry: &mut Entry, fleets: &mut Fleets, world: &mut World) {
    let names = world.config.names.clone();
    for version in &mut entry.versions {
        let spec = version.spec.clone();
        version
            .engines
            .send(Worker::Engine, fleets, world, |name, task| {
                let mut message = match task.doing {
                    Doing::Delete { keep_topics } => message::delete(&spec, &names, !keep_topics),
                    _ => message::create(&spec, &names),
                };
                message.timestamp = task.timestamp;
                message.stream = name.to_owned();
                Some(Order::Update(Box::new(message)))
            });
    }
    let due = |task: &Task| task.phase == Phase::Waiting || task.due.is_some();
    if !entry.gateways.0.values().any(due) {
        return;
    }
    let status = version_status(entry.latest());
    let pipeline_name = entry.name.to_string();
    entry
        .gateways
        .send(Worker::PipelineGateway, fleets, world, |_, task| {
            let operation = match task.doing {
                Doing::Delete { .. } => PipelineOperation::PipelineDelete,
                _ => PipelineOperation::PipelineCreate,
            };
            Some(Order::Pipeline(Box::new(PipelineStatusResponse {
                pipeline_name: pipeline_name.clone(),
                versions: vec![status.clone()],
                timestamp: task.timestamp,
                operation: operation.into(),
            })))
        });
}

/// Whether an engine that may come back soon has yet to end the version.
fn engine_busy(version: &Version, fleets: &Fleets, world: &World, patient: bool) -> bool {
    version.engines.0.iter().any(|(name, task)| {
        let given_up = !patient && task.failures >= world.config.retry_limit;
        !given_up && fleets.engines.present(name, world)
    })
}

/// Versions that were replaced are gone when their engine says so; of these the last few are shown for a while.
fn end_versions(entry: &mut Entry, fleets: &Fleets, world: &mut World) {
    let now = world.now.monotonic;
    let mut over = false;
    for version in entry.versions.iter_mut().filter(|version| version.leaving) {
        if version.ended.is_none() && !engine_busy(version, fleets, world, true) {
            (version.ended, over) = (Some(now), true);
        }
    }
    if over && !entry.deleted {
        world.effects.push(Effect::Persist(record(entry)));
    }
    let keep = world.config.keep_terminated;
    let mut ended = entry
        .versions
        .iter()
        .filter(|version| version.ended.is_some())
        .count();
    let newest = entry.latest().number();
    entry.versions.retain(|version| {
        let over = version.ended.is_some_and(|at| {
            version.number() != newest && (ended > MOST_ENDED || now >= at + keep)
        });
        ended -= usize::from(over);
        !over
    });
}

/// A deleted pipeline is gone when nobody has it; what was asked for since begins then (true).
fn end(entry: &mut Entry, fleets: &Fleets, world: &mut World) -> bool {
    if !entry.deleted || !entry.splits.is_empty() || !gateways_done(entry, fleets, world) {
        return false;
    }
    let patient = entry.next.is_none();
    let mut versions = entry.versions.iter();
    if versions.any(|version| engine_busy(version, fleets, world, patient)) {
        return false;
    }
    if let Some(next) = entry.next.take() {
        let former = std::mem::replace(entry, Entry::new(next));
        (entry.restored, entry.unconfirmed) = (former.restored, former.unconfirmed);
        (entry.route_generation, entry.rejected) = (former.route_generation, former.rejected);
        (entry.uses, entry.timer, entry.on) = (former.uses, former.timer, former.on);
        // Workers that are away are told when they come back.
        entry.gateways = former.gateways;
        let stale = former
            .versions
            .into_iter()
            .flat_map(|version| version.engines.0);
        world.effects.push(Effect::Persist(record(entry)));
        let number = entry.latest().number();
        for (name, mut task) in stale {
            task.want(Doing::Perhaps, number);
            entry.versions[0].engines.0.insert(name, task);
        }
        return true;
    }
    if entry.gone_at.is_none() {
        let now = world.now.monotonic;
        entry.gone_at = Some(now + world.config.keep_terminated);
        entry.unconfirmed |= !workers(entry).is_empty();
        for version in &mut entry.versions {
            version.ended.get_or_insert(now);
        }
        if !entry.unconfirmed {
            let forget = Effect::ForgetPipeline(entry.name.clone());
            world.effects.push(forget);
        }
    }
    false
}

fn set_timer(entry: &mut Entry, world: &mut World) {
    let now = world.now.monotonic;
    let engines = entry.versions.iter();
    let engines = engines.filter_map(|version| version.engines.next_due());
    let due: Option<Duration> = engines
        .chain(entry.gateways.next_due())
        .chain(entry.handover)
        .chain(entry.gone_at)
        .filter(|due| *due > now)
        .min();
    if due == entry.timer {
        return;
    }
    let timer = Timer::Pipeline(entry.name.clone());
    if let Some(former) = entry.timer {
        world.timers.remove(&(former, timer.clone()));
    }
    world.timers.extend(due.map(|due| (due, timer)));
    entry.timer = due;
}
