//! What workers say: that they are there, and how orders ended.
use std::sync::Arc;

use seldon_proto::{
    chainer::{PipelineUpdateStatusMessage, pipeline_update_message::PipelineOperation},
    scheduler::{ModelUpdateStatusMessage, model_update_message::ModelOperation},
};

use super::pipelines::doubt;
use crate::{
    Effect, Endpoint, PIPELINE_GATEWAYS, Refusal, State, StreamId, Worker,
    pipeline::{Doing, Member, Taken, Task},
    world::Timer,
};

pub(crate) fn connected(
    state: &mut State,
    worker: Worker,
    stream: StreamId,
    name: Arc<str>,
    endpoint: Option<Endpoint>,
) -> Result<(), Refusal> {
    if name.is_empty() {
        return Err(Refusal::Invalid(
            "the worker has no name: subscribe with one that no other has".into(),
        ));
    }
    if worker == Worker::PipelineGateway && endpoint.is_none() {
        return Err(Refusal::Invalid(format!(
            "pipeline gateway {name} has no address: subscribe with the one where Envoys find it"
        )));
    }
    let doubtful = state.fleets.in_doubt(&state.world);
    let world = &mut state.world;
    let fleet = state.fleets.of_mut(worker);
    let index = fleet.free_index(&name);
    let known = fleet.members.get(&name);
    let present = known.is_some_and(|member| member.present(world));
    let fresh = known.is_none();
    let member = fleet.members.entry(name.clone()).or_insert_with(|| Member {
        index,
        stream: None,
        lost_at: None,
        left: false,
        endpoint: None,
        objects: Default::default(),
        doubtful,
    });
    (member.stream, member.lost_at, member.left) = (Some(stream), None, false);
    let endpoint = endpoint.map(|endpoint| Endpoint {
        replica: member.index,
        ..endpoint
    });
    if worker == Worker::PipelineGateway && member.endpoint != endpoint {
        member.endpoint = endpoint;
        world.grow();
        let changed = Effect::EndpointsChanged(PIPELINE_GATEWAYS.into());
        world.effects.push(changed);
    }
    if fresh && doubtful {
        doubt(state, worker, &name);
    }
    each_task(state, worker, &name, Task::reconnected);
    if !present {
        touch_all(state, worker);
    }
    Ok(())
}

pub(crate) fn disconnected(state: &mut State, worker: Worker, stream: StreamId, name: &Arc<str>) {
    let now = state.world.now.monotonic;
    let member = state.fleets.of_mut(worker).members.get_mut(name);
    let Some(member) = member.filter(|member| member.stream == Some(stream)) else {
        return;
    };
    (member.stream, member.lost_at) = (None, Some(now));
    let config = &state.world.config;
    let spans = [
        config.replace_after,
        config.keep_terminated.max(config.replace_after),
    ];
    for span in spans {
        let timer = Timer::Worker(worker, name.clone());
        state.world.timers.insert((now + span, timer));
    }
    each_task(state, worker, name, Task::disconnected);
}

/// A worker that is lost is given up, or forgotten.
pub(crate) fn worker_due(state: &mut State, worker: Worker, name: &Arc<str>) {
    let Some(member) = state.fleets.of(worker).get(name) else {
        return;
    };
    if member.expired(&state.world) {
        each_task(state, worker, name, |_| {});
        state.fleets.leaving.insert((worker, name.clone()));
    } else if !member.present(&state.world) {
        touch_all(state, worker);
    }
}

/// After a restart nobody is given anything until those who have it are back.
pub(crate) fn wait_for_them(state: &mut State) {
    let (now, config) = (state.world.now.monotonic, &state.world.config);
    state.fleets.hold_until = now + config.replace_after;
    state.fleets.back_by = now + config.replace_after * 2;
    state.fleets.doubt_until = now + config.keep_terminated;
    for at in [state.fleets.hold_until, state.fleets.back_by] {
        state.world.timers.insert((at, Timer::Workers));
    }
}

/// They were waited for long enough.
pub(crate) fn workers_due(state: &mut State) {
    // Pipelines see to their engines and gateways alike.
    for worker in [Worker::Engine, Worker::ModelGateway] {
        touch_all(state, worker);
    }
}

pub(crate) fn shards(state: &mut State, shards: u32) {
    let shards = shards.max(1);
    if state.world.config.shards != shards {
        state.world.config.shards = shards;
        for worker in [Worker::PipelineGateway, Worker::ModelGateway] {
            touch_all(state, worker);
        }
    }
}

/// Owners may be others.
fn touch_all(state: &mut State, worker: Worker) {
    match worker {
        Worker::ModelGateway if state.fleets.model_gateways.members.is_empty() => {}
        Worker::ModelGateway => state.touch_readers(),
        _ => state.pipelines.touch_all(),
    }
}

/// Does something about each task of a worker, and has its object looked at.
fn each_task(state: &mut State, worker: Worker, name: &Arc<str>, mut act: impl FnMut(&mut Task)) {
    let Some(member) = state.fleets.of(worker).get(name) else {
        return;
    };
    for object in &member.objects {
        if worker == Worker::ModelGateway {
            if let Some(reader) = state.pipelines.readers.get_mut(object) {
                let task = reader.tasks.0.get_mut(name);
                task.into_iter().for_each(&mut act);
            }
            state.world.dirty.insert(object.clone());
            continue;
        }
        if let Some(entry) = state.pipelines.entries.get_mut(object) {
            match worker {
                Worker::Engine => entry
                    .all_versions_mut()
                    .filter_map(|version| version.engines.0.get_mut(name))
                    .for_each(&mut act),
                _ => entry
                    .gateways
                    .0
                    .get_mut(name)
                    .into_iter()
                    .for_each(&mut act),
            }
        }
        state.pipelines.dirty.insert(object.clone());
    }
}

/// An engine or a pipeline gateway says how an order ended. What is about an older one says nothing.
pub(crate) fn reported(state: &mut State, worker: Worker, report: &PipelineUpdateStatusMessage) {
    let Some(update) = &report.update else {
        return;
    };
    let leaves = update.op() == PipelineOperation::Rebalance && update.pipeline.is_empty();
    if worker == Worker::Engine && leaves {
        return left(state, worker, &update.stream.as_str().into());
    }
    let Some(entry) = state.pipelines.entries.get_mut(update.pipeline.as_str()) else {
        return;
    };
    let create = match update.op() {
        PipelineOperation::Create | PipelineOperation::Ready => true,
        PipelineOperation::Delete | PipelineOperation::Rebalance => false,
        _ => return,
    };
    let order = (update.stream.as_str(), update.timestamp);
    let (success, reason, world) = (report.success, report.reason.as_str(), &state.world);
    let taken = |tasks: &mut crate::pipeline::Tasks| match tasks
        .reported(order, create, success, reason, world)
    {
        Taken::Stale => None,
        taken => Some(taken),
    };
    let known = match worker {
        Worker::Engine => entry
            .all_versions_mut()
            .filter(|version| version.number() == update.version)
            .find_map(|version| {
                let taken = taken(&mut version.engines)?;
                version.drained |= matches!(taken, Taken::Done(Doing::Delete { .. }));
                Some(taken)
            }),
        _ => taken(&mut entry.gateways),
    };
    let Some(known) = known else {
        return;
    };
    let cleaned = Doing::Delete { keep_topics: false };
    entry.cleaned |=
        worker == Worker::Engine && matches!(known, Taken::Done(doing) if doing == cleaned);
    let name = entry.name.clone();
    state.pipelines.touch(&name);
}

/// An engine or a model gateway has given up all it had, and ends: others take over at once.
fn left(state: &mut State, worker: Worker, name: &Arc<str>) {
    let Some(member) = state.fleets.of_mut(worker).members.get_mut(name) else {
        return;
    };
    member.left = true;
    let objects: Vec<Arc<str>> = member.objects.iter().cloned().collect();
    for object in objects {
        if worker == Worker::ModelGateway {
            if let Some(reader) = state.pipelines.readers.get_mut(&object) {
                reader.tasks.0.remove(name);
            }
        } else if let Some(entry) = state.pipelines.entries.get_mut(&object) {
            for version in entry.all_versions_mut() {
                version.engines.0.remove(name);
            }
        }
    }
    touch_all(state, worker);
}

/// A model gateway says how an order ended.
pub(crate) fn model_reported(state: &mut State, report: &ModelUpdateStatusMessage) {
    let Some(update) = &report.update else {
        return;
    };
    if update.op() == ModelOperation::Delete && update.model.is_empty() {
        return left(state, Worker::ModelGateway, &update.stream.as_str().into());
    }
    let Some(reader) = state.pipelines.readers.get_mut(&update.model) else {
        return;
    };
    let create = match update.op() {
        ModelOperation::Create => true,
        ModelOperation::Delete => false,
        ModelOperation::Unknown => return,
    };
    let order = (update.stream.as_str(), update.timestamp);
    let (tasks, success) = (&mut reader.tasks, report.success);
    match tasks.reported(order, create, success, &report.reason, &state.world) {
        Taken::Stale => return,
        Taken::Failed => {}
        Taken::Done(doing) => reader.done(doing),
    }
    state.world.touch(&update.model.as_str().into());
}
