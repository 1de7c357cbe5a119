//! Which model gateway reads a model's topics: of each model that is loaded, and of each that a pipeline sends records to,
//! loaded or not, so that every record is answered.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seldon_proto::scheduler::{
    ModelStatusResponse, Pipeline, model_status::ModelState, model_status_response::ModelOperation,
};

use super::{
    Pipelines,
    fleet::Fleets,
    task::{Doing, Phase, Task, Tasks},
};
use crate::{
    Effect, Order, Worker, model, status,
    world::{Timer, World},
};

/// A model's topics at model gateways.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) tasks: Tasks,
    /// Gateways that have something to do with it, as they know.
    on: BTreeSet<Arc<str>>,
    pub(crate) state: ModelState,
    pub(crate) reason: String,
    /// A gateway has begun to read: what is written from then on is not missed, whoever reads later.
    begun: bool,
    /// The topics went with the model.
    cleaned: bool,
    timer: Option<Duration>,
}

/// All of them, by model.
#[derive(Debug, Default)]
pub(crate) struct Readers(BTreeMap<Arc<str>, Reader>);

impl Reader {
    fn new(fleets: &Fleets) -> Reader {
        let mut tasks = Tasks::default();
        // Of what these were given in a former life of the scheduler nothing is known.
        for (name, member) in &fleets.model_gateways.members {
            if member.doubtful {
                tasks.0.insert(name.clone(), Task::doubtful());
            }
        }
        Reader {
            tasks,
            on: BTreeSet::new(),
            state: ModelState::ModelCreate,
            reason: String::new(),
            begun: false,
            cleaned: false,
            timer: None,
        }
    }

    /// Takes in how an order ended.
    pub(crate) fn done(&mut self, doing: Doing) {
        match doing {
            Doing::Create => self.begun = true,
            Doing::Delete { keep_topics: false } => (self.begun, self.cleaned) = (false, true),
            _ => {}
        }
    }
}

impl Readers {
    pub(crate) fn get(&self, model: &str) -> Option<&Reader> {
        self.0.get(model)
    }

    pub(crate) fn get_mut(&mut self, model: &str) -> Option<&mut Reader> {
        self.0.get_mut(model)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }

    /// What is shown of a model.
    pub(crate) fn shown(&self, entry: &model::Entry) -> (ModelState, &str) {
        match self.0.get(&entry.name) {
            Some(reader) => (reader.state, &reader.reason),
            None if entry.deleted => (ModelState::ModelTerminated, ""),
            None => (ModelState::ModelCreate, ""),
        }
    }

    /// A model is not known any more.
    pub(crate) fn forget(&mut self, model: &str) {
        let idle = |reader: &Reader| reader.tasks.is_empty();
        if self.0.get(model).is_some_and(idle) {
            self.0.remove(model);
        }
    }

    /// A gateway came that may read anything, such as for `steps` of pipelines that are remembered.
    pub(crate) fn doubt(
        &mut self,
        gateway: &Arc<str>,
        steps: impl IntoIterator<Item = Arc<str>>,
        fleets: &Fleets,
    ) {
        for step in steps {
            self.0.entry(step).or_insert_with(|| Reader::new(fleets));
        }
        for reader in self.0.values_mut() {
            let task = reader.tasks.0.entry(gateway.clone());
            task.or_insert_with(Task::doubtful);
        }
    }

    /// Steps of a version whose topics nobody reads yet, though a gateway is there that will.
    pub(crate) fn awaited<'a>(&self, spec: &'a Pipeline, fleets: &Fleets) -> Vec<&'a str> {
        let mut gateways = fleets.model_gateways.members.values();
        if !gateways.any(super::Member::connected) {
            return Vec::new();
        }
        let unread = |step: &&str| {
            self.get(step).is_none_or(|reader| {
                let mut tasks = reader.tasks.0.values();
                !reader.begun && !tasks.any(|task| task.is_create() && task.failed())
            })
        };
        let steps = spec.steps.iter().map(|step| step.name.as_str());
        steps.filter(unread).collect()
    }
}

/// What is wanted of a model's topics.
struct Wish {
    read: bool,
    /// They are to go as soon as nobody reads them.
    clean: bool,
    number: u32,
}

impl Wish {
    fn of(entry: Option<&model::Entry>, used: bool, cleaned: bool, world: &World) -> Wish {
        let Some(entry) = entry else {
            return Wish {
                read: used,
                clean: false,
                number: 0,
            };
        };
        let spec = &entry.latest().spec;
        let asked = spec.dataflow_spec.is_some() || spec.stream_spec.is_some();
        let loaded = !entry.deleted && (asked || !world.config.topics_on_demand);
        let cleans = spec
            .dataflow_spec
            .is_some_and(|dataflow| dataflow.clean_topics_on_delete);
        Wish {
            read: used || loaded,
            clean: entry.deleted && cleans && !cleaned,
            number: entry.latest().number,
        }
    }
}

/// Tells model gateways of a model, or of one that only pipelines know of. Serving it by HTTP and gRPC does not depend on
/// that. Says whether it still has to be remembered for a gateway's sake.
pub(crate) fn settle_reader(
    name: &Arc<str>,
    entry: Option<&model::Entry>,
    pipelines: &mut Pipelines,
    fleets: &mut Fleets,
    world: &mut World,
) -> bool {
    let used = pipelines.users.contains_key(name);
    let known = entry.is_some() || used;
    let reader = pipelines.readers.0.remove(name);
    let nobody = !known || fleets.model_gateways.members.is_empty();
    let Some(mut reader) = reader.or_else(|| (!nobody).then(|| Reader::new(fleets))) else {
        return false;
    };
    reader.cleaned &= entry.is_some_and(|entry| entry.deleted);
    let wish = Wish::of(entry, used, reader.cleaned, world);
    if fleets.open(world) {
        place(&mut reader, name, &wish, fleets, world);
    }
    send(&mut reader, name, entry, fleets, world);
    note(&mut reader, name, fleets);
    let (state, reason) = shown(&reader, entry, name, &wish, fleets, world);
    if (state, reason.as_str()) != (reader.state, reader.reason.as_str()) {
        (reader.state, reader.reason) = (state, reason);
        let changed = entry.map(|entry| Effect::ModelChanged(entry.name.clone()));
        world.effects.extend(changed);
    }
    let due = reader.tasks.next_due();
    world.set_timer(Timer::Reader, name, &mut reader.timer, due);
    if reader.tasks.is_empty() {
        pipelines.touch_ended();
    }
    let held = !reader.tasks.is_empty() && !wish.read || wish.clean && used;
    let over = reader.tasks.is_empty() && (!known || fleets.model_gateways.members.is_empty());
    if !over {
        pipelines.readers.0.insert(name.clone(), reader);
    }
    held
}

fn place(reader: &mut Reader, name: &str, wish: &Wish, fleets: &Fleets, world: &World) {
    let fleet = &fleets.model_gateways;
    let most = world.config.most_model_gateways();
    let owner = fleet.owners(name, 1, most, world).pop();
    let tasks = &mut reader.tasks.0;
    tasks.retain(|name, _| fleet.get(name).is_some_and(|member| !member.expired(world)));
    let mut blocked = false;
    let doing = Doing::Delete {
        keep_topics: wish.read || !wish.clean,
    };
    for (gateway, task) in tasks.iter_mut() {
        if wish.read && owner.as_ref() == Some(gateway) {
            continue;
        }
        task.want(doing, wish.number);
        // An answer that fails, or is late once, is not waited for; one that is away has its lease.
        let there = fleet.connected(gateway);
        blocked |= (there && task.failures == 0) || (!there && fleet.present(gateway, world));
    }
    let Some(owner) = owner else { return };
    if wish.read {
        let has = tasks.get(&owner).is_some_and(Task::is_create);
        if has || !blocked {
            let task = tasks.entry(owner);
            task.or_insert_with(|| Task::new(Doing::Create, wish.number))
                .want(Doing::Create, wish.number);
        }
    } else if wish.clean && !tasks.keys().any(|gateway| fleet.present(gateway, world)) {
        // Whoever read them is gone: another deletes them.
        tasks.insert(owner, Task::new(doing, wish.number));
    }
}

fn send(
    reader: &mut Reader,
    name: &str,
    entry: Option<&model::Entry>,
    fleets: &mut Fleets,
    world: &mut World,
) {
    let due = |task: &Task| task.phase == Phase::Waiting || task.due.is_some();
    if !reader.tasks.0.values().any(due) {
        return;
    }
    let shown = (reader.state, reader.reason.as_str());
    let status = match entry {
        Some(entry) => status::model_status(entry, false, shown, world),
        None => ModelStatusResponse {
            model_name: name.to_owned(),
            ..Default::default()
        },
    };
    reader
        .tasks
        .send(Worker::ModelGateway, fleets, world, |_, task| {
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

fn note(reader: &mut Reader, name: &Arc<str>, fleets: &mut Fleets) {
    let now: BTreeSet<Arc<str>> = reader.tasks.0.keys().cloned().collect();
    for gateway in reader.on.difference(&now) {
        fleets.note(Worker::ModelGateway, gateway, name, false);
    }
    for gateway in now.difference(&reader.on) {
        fleets.note(Worker::ModelGateway, gateway, name, true);
    }
    reader.on = now;
}

fn shown(
    reader: &Reader,
    entry: Option<&model::Entry>,
    name: &str,
    wish: &Wish,
    fleets: &Fleets,
    world: &World,
) -> (ModelState, String) {
    let tasks = &reader.tasks;
    if entry.is_some_and(|entry| entry.deleted) {
        if wish.read {
            let text = "its topics are read on, as pipelines use them";
            return (ModelState::ModelTerminated, text.to_owned());
        }
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
    if !wish.read {
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
    if fleet.owners(name, 1, 0, world).is_empty() {
        let text = "no model gateway is available".to_owned();
        return (ModelState::ModelCreate, text);
    }
    let text = "waits for its model gateway".to_owned();
    (ModelState::ModelProgressing, text)
}

impl Reader {
    /// Its timer has fired.
    pub(crate) fn fired(&mut self) {
        self.timer = None;
    }
}
