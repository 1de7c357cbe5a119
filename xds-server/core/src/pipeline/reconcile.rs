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
    engines::{beside, place_engine},
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
    // Before engines begin: whether models' topics are read is looked at by then.
    for model in pipelines.index(entry) {
        world.touch(&model);
    }
    if open {
        cut_over(entry, &owners, fleets);
        release_gateways(entry, &owners, world);
        place_engine(entry, pipelines, fleets, world);
        clean(entry, fleets, world);
        if forget_strays(entry, fleets, world) {
            world.effects.push(Effect::Persist(record(entry)));
        }
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
    if refresh(entry, &owners, fleets, (models, &pipelines.readers), world) {
        let changed = Effect::PipelineChanged(entry.name.clone());
        world.effects.push(changed);
    }
    for model in pipelines.index(entry) {
        world.touch(&model);
    }
    forget(entry, pipelines, models, world);
    set_timer(entry, fleets, world);
}

/// What the store keeps of a pipeline.
pub(crate) fn record(entry: &Entry) -> Record {
    let living = entry.versions.iter();
    // Of one that is gone, workers that are away may have any.
    let living = living.filter(|version| entry.deleted || version.ended.is_none());
    let specs = |version: &Version| version.spec.clone();
    let mut versions: Vec<_> = living.map(specs).collect();
    if versions.is_empty() {
        versions.push(entry.latest().spec.clone());
    }
    versions.extend(entry.next.clone());
    Record::Pipeline {
        name: entry.name.clone(),
        versions,
        deleted: entry.deleted,
        former: entry.strays.iter().map(specs).collect(),
    }
}

fn gateway_owners(entry: &Entry, fleets: &Fleets, world: &World) -> Vec<Arc<str>> {
    let config = &world.config;
    let count = FEWEST_GATEWAYS.max(config.shards as usize);
    let most = config.most_pipeline_gateways();
    let fleet = &fleets.pipeline_gateways;
    fleet.owners(&entry.name, count, most, world)
}

type Workers = BTreeSet<(Worker, Arc<str>)>;

fn workers(entry: &Entry) -> Workers {
    let gateways = entry.gateways.0.keys();
    let gateways = gateways.map(|name| (Worker::PipelineGateway, name.clone()));
    let engines = entry.all_versions();
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
    for version in entry.all_versions_mut() {
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

/// The newest version runs everywhere: those before it end. Each gateway that can be asked has it first, so that none lets
/// requests into a version that ends.
fn cut_over(entry: &mut Entry, owners: &[Arc<str>], fleets: &Fleets) {
    let latest = entry.latest();
    let number = latest.number();
    let ready = |name: &Arc<str>| {
        let task = entry.gateways.0.get(name);
        task.is_some_and(|task| task.ready() && task.version == number)
    };
    let behind = |name: &&Arc<str>| {
        let failed = entry.gateways.0.get(*name).is_some_and(Task::failed);
        fleets.pipeline_gateways.connected(name) && !ready(name) && !failed
    };
    let all = owners.iter().any(ready) && !owners.iter().any(|name| behind(&name));
    let answers = owners.is_empty() || (entry.taken && all);
    if entry.deleted || !latest.engine_ready() || !answers {
        return;
    }
    let older = entry.versions.len() - 1;
    for version in &mut entry.versions[..older] {
        version.leaving = true;
    }
}

/// Whether no gateway can still wait for an answer.
pub(super) fn gateways_done(entry: &Entry, fleets: &Fleets, world: &World) -> bool {
    entry.gateways.0.iter().all(|(name, task)| {
        let given_up = task.failures >= world.config.retry_limit;
        given_up || !fleets.pipeline_gateways.present(name, world)
    })
}

/// Has the topics of a pipeline that has ended deleted, by whichever engine is there.
fn clean(entry: &mut Entry, fleets: &Fleets, world: &World) {
    if !entry.cleans() || !over(entry, fleets, world) {
        return;
    }
    let engines = &fleets.engines;
    let Some(owner) = engines.owners(&entry.name, 1, 0, world).pop() else {
        return;
    };
    let doing = Doing::Delete { keep_topics: false };
    if let Some(version) = entry.versions.last_mut() {
        let number = version.number();
        let task = version.engines.0.entry(owner);
        task.or_insert_with(|| Task::new(doing, number))
            .want(doing, number);
    }
}

/// Engines that may have a version of a life before are told until they say that they have not. Whether any was forgotten.
fn forget_strays(entry: &mut Entry, fleets: &Fleets, world: &World) -> bool {
    let before = entry.strays.len();
    let unknown = entry.restored && fleets.in_doubt(world);
    entry
        .strays
        .retain(|stray| unknown || !stray.engines.is_empty());
    entry.strays.len() < before
}

/// Sends orders that are due; to those who may have versions of a life before, first of these.
fn send(entry: &mut Entry, fleets: &mut Fleets, world: &mut World) {
    let names = world.config.names.clone();
    let running = beside(entry);
    for version in entry.all_versions_mut() {
        let spec = version.spec.clone();
        version
            .engines
            .send(Worker::Engine, fleets, world, |name, task| {
                let mut message = match task.doing {
                    Doing::HandOver => message::hand_over(&spec, &names),
                    Doing::Delete { keep_topics } => message::delete(&spec, &names, !keep_topics),
                    _ => {
                        let others = running.iter().filter(|(engine, other)| {
                            **engine == *name && other.version != spec.version
                        });
                        let others = others.map(|(_, other)| &**other);
                        message::create_with(&spec, others, &names)
                    }
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
        let may_end = entry.deleted || !version.drains();
        if version.ended.is_none() && may_end && !engine_busy(version, fleets, world, true) {
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

/// Whether nobody who is there has a deleted pipeline any more.
fn over(entry: &Entry, fleets: &Fleets, world: &World) -> bool {
    if !entry.deleted || !entry.splits.is_empty() || !gateways_done(entry, fleets, world) {
        return false;
    }
    let patient = entry.next.is_none();
    let mut versions = entry.all_versions();
    !versions.any(|version| engine_busy(version, fleets, world, patient))
}

/// A deleted pipeline is gone when nobody has it; what was asked for since begins then (true).
fn end(entry: &mut Entry, fleets: &Fleets, world: &mut World) -> bool {
    if !over(entry, fleets, world) {
        return false;
    }
    if let Some(next) = entry.next.take() {
        let former = std::mem::replace(entry, Entry::new(next));
        (entry.restored, entry.unconfirmed) = (former.restored, former.unconfirmed);
        (entry.route_generation, entry.rejected) = (former.route_generation, former.rejected);
        (entry.uses, entry.timer, entry.on) = (former.uses, former.timer, former.on);
        // Workers that are away are told when they come back.
        entry.gateways = former.gateways;
        entry.strays = former.strays;
        entry.strays.extend(former.versions);
        entry
            .strays
            .iter_mut()
            .for_each(|stray| stray.leaving = true);
        let next = entry.versions.remove(0);
        entry.add(next);
        forget_strays(entry, fleets, world);
        world.effects.push(Effect::Persist(record(entry)));
        return true;
    }
    if entry.gone_at.is_none() {
        let now = world.now.monotonic;
        entry.gone_at = Some(now + world.config.keep_terminated);
        entry.unconfirmed |= !workers(entry).is_empty() || entry.cleans();
        for version in &mut entry.versions {
            version.ended.get_or_insert(now);
        }
    }
    false
}

/// The store forgets a pipeline that has ended once nobody may have anything of it: no worker, and no model gateway the
/// topics of a model that nothing else tells of.
fn forget(
    entry: &mut Entry,
    pipelines: &mut Pipelines,
    models: &BTreeMap<Arc<str>, model::Entry>,
    world: &mut World,
) {
    // Workers that are away may have it: the store keeps it for as long as it is shown.
    if entry.gone_at.is_none() || entry.forgotten || entry.unconfirmed {
        pipelines.ended.remove(&entry.name);
        return;
    }
    let read = |model: &str| {
        let (readers, users) = (&pipelines.readers, &pipelines.users);
        let is_read = readers.get(model).is_some_and(|one| !one.tasks.is_empty());
        is_read && !users.contains_key(model) && !models.contains_key(model)
    };
    let mut steps = entry
        .versions
        .iter()
        .flat_map(|version| &version.spec.steps);
    if steps.any(|step| read(&step.name)) {
        pipelines.ended.insert(entry.name.clone());
        return;
    }
    pipelines.ended.remove(&entry.name);
    entry.forgotten = true;
    let forget = Effect::ForgetPipeline(entry.name.clone());
    world.effects.push(forget);
}

fn set_timer(entry: &mut Entry, fleets: &Fleets, world: &mut World) {
    let now = world.now.monotonic;
    let engines = entry.all_versions();
    let engines = engines.filter_map(|version| version.engines.next_due());
    let keep = world.config.keep_terminated;
    let ended = entry.versions.iter().filter_map(|version| version.ended);
    let doubt = (entry.restored && !entry.strays.is_empty()).then_some(fleets.doubt_until);
    let due: Option<Duration> = engines
        .chain(entry.gateways.next_due())
        .chain(entry.handover)
        .chain(entry.begin_by)
        .chain(entry.gone_at)
        .chain(ended.map(|at| at + keep))
        .chain(doubt)
        .filter(|due| *due > now)
        .min();
    world.set_timer(Timer::Pipeline, &entry.name, &mut entry.timer, due);
}
