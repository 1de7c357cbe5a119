//! Which model gateway reads a model's topics.
use std::{collections::BTreeSet, sync::Arc};

use seldon_proto::scheduler::{
    ModelStatusResponse, model_status::ModelState, model_status_response::ModelOperation,
};

use super::{
    fleet::Fleets,
    task::{Doing, Phase, Task, Tasks},
};
use crate::{Effect, Order, Worker, model, status, world::World};

/// A model at model gateways.
#[derive(Clone, Debug)]
pub(crate) struct ModelTasks {
    pub(crate) tasks: Tasks,
    /// Gateways that have something to do with it, as they know.
    on: BTreeSet<Arc<str>>,
    pub(crate) state: ModelState,
    pub(crate) reason: String,
}

impl Default for ModelTasks {
    fn default() -> Self {
        Self {
            tasks: Tasks::default(),
            on: BTreeSet::new(),
            state: ModelState::ModelCreate,
            reason: String::new(),
        }
    }
}

/// Tells model gateways of a model; `used`: by a pipeline. Serving it by HTTP and gRPC does not depend on that.
pub(crate) fn settle_model(
    entry: &mut model::Entry,
    used: bool,
    fleets: &mut Fleets,
    world: &mut World,
) {
    if fleets.model_gateways.members.is_empty() && entry.gateway.tasks.is_empty() {
        entry.gateway.state = match entry.deleted {
            true => ModelState::ModelTerminated,
            false => ModelState::ModelCreate,
        };
        return;
    }
    let spec = &entry.latest().spec;
    let asked = used || spec.dataflow_spec.is_some() || spec.stream_spec.is_some();
    let wanted = !entry.deleted && (asked || !world.config.topics_on_demand);
    if fleets.open(world) {
        place(entry, wanted, fleets, world);
    }
    send(entry, fleets, world);
    let now: BTreeSet<Arc<str>> = entry.gateway.tasks.0.keys().cloned().collect();
    for name in entry.gateway.on.difference(&now) {
        fleets.note(Worker::ModelGateway, name, &entry.name, false);
    }
    for name in now.difference(&entry.gateway.on) {
        fleets.note(Worker::ModelGateway, name, &entry.name, true);
    }
    entry.gateway.on = now;
    let (state, reason) = shown(entry, wanted, fleets, world);
    if (state, reason.as_str()) != (entry.gateway.state, entry.gateway.reason.as_str()) {
        (entry.gateway.state, entry.gateway.reason) = (state, reason);
        let changed = Effect::ModelChanged(entry.name.clone());
        world.effects.push(changed);
    }
}

fn place(entry: &mut model::Entry, wanted: bool, fleets: &Fleets, world: &World) {
    let fleet = &fleets.model_gateways;
    let most = world.config.model_gateways_max;
    let owner = fleet.owners(&entry.name, 1, most, world).pop();
    let owner = owner.filter(|_| wanted);
    let number = entry.latest().number;
    let deleted = entry.deleted;
    let tasks = &mut entry.gateway.tasks.0;
    tasks.retain(|name, _| fleet.get(name).is_some_and(|member| !member.expired(world)));
    let mut blocked = false;
    for (name, task) in tasks.iter_mut() {
        if owner.as_ref() == Some(name) {
            continue;
        }
        let keep_topics = !deleted;
        task.want(Doing::Delete { keep_topics }, number);
        // An answer that fails, or is late once, is not waited for.
        blocked |= task.failures == 0 && fleet.connected(name);
    }
    if let Some(owner) = owner {
        let has = tasks.get(&owner).is_some_and(Task::is_create);
        if has || !blocked {
            let task = tasks.entry(owner);
            task.or_insert_with(|| Task::new(Doing::Create, number))
                .want(Doing::Create, number);
        }
    }
}

fn send(entry: &mut model::Entry, fleets: &mut Fleets, world: &mut World) {
    let due = |task: &Task| task.phase == Phase::Waiting || task.due.is_some();
    if !entry.gateway.tasks.0.values().any(due) {
        return;
    }
    let status = status::model_status(entry, false, world);
    let tasks = &mut entry.gateway.tasks;
    tasks.send(Worker::ModelGateway, fleets, world, |_, task| {
        let (operation, keep_topics) = match task.doing {
            Doing::Delete { keep_topics } => (ModelOperation::ModelDelete, keep_topics),
            _ => (ModelOperation::ModelCreate, false),
        };
        Some(Order::Model(Box::new(ModelStatusResponse {
            keep_topics,
            timestamp: task.timestamp,
            operation: operation.into(),
            ..status.clone()
        })))
    });
}

fn shown(
    entry: &model::Entry,
    wanted: bool,
    fleets: &Fleets,
    world: &World,
) -> (ModelState, String) {
    let tasks = &entry.gateway.tasks;
    if entry.deleted {
        let failed = tasks.0.values().any(Task::failed);
        return match (tasks.is_empty(), failed) {
            (true, _) => (ModelState::ModelTerminated, String::new()),
            (_, true) => (
                ModelState::ModelTerminateFailed,
                tasks.failure().unwrap_or_default(),
            ),
            _ => (ModelState::ModelTerminating, tasks.counts()),
        };
    }
    if !wanted {
        let text = "no pipeline uses it: its topics are made on demand";
        return (ModelState::ModelCreate, text.to_owned());
    }
    let creating = || tasks.0.values().filter(|task| task.is_create());
    if creating().any(Task::ready) {
        return (ModelState::ModelAvailable, tasks.counts());
    }
    if creating().any(Task::failed) {
        let failure = tasks.failure().unwrap_or_default();
        return (ModelState::ModelFailed, failure);
    }
    let fleet = &fleets.model_gateways;
    if fleet.owners(&entry.name, 1, 0, world).is_empty() {
        let text = "no model gateway is available".to_owned();
        return (ModelState::ModelCreate, text);
    }
    let text = "waits for its model gateway".to_owned();
    (ModelState::ModelProgressing, text)
}

/// The model is forgotten: so it is by its gateways' entries.
pub(crate) fn forget_model(entry: &model::Entry, fleets: &mut Fleets) {
    for name in &entry.gateway.on {
        fleets.note(Worker::ModelGateway, name, &entry.name, false);
    }
}
