//! Models that share a reader and a consumer group.
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use seldon_kafka::{Consumer, Position, ReadError};
use seldon_records::{Outgoing, Record, header};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    metrics::Outcome,
    model::{Job, Key, Model, Place},
    progress::Progress,
    shared::Shared,
};

/// Offsets are stored this often.
const COMMIT: Duration = Duration::from_millis(200);
/// Records of one partition that are worked on, as multiples of a model's workers; more stay at the broker.
const AHEAD: usize = 4;
/// Bytes of one partition that are worked on.
const BYTES: usize = 64 << 20;

/// A partition of a topic, and the offset behind all that is done in it.
type Reached = (Arc<str>, i32, i64);

/// Reads the inputs of its models and keeps how far they are.
pub(crate) struct Bucket {
    pub(crate) consumer: Arc<Consumer>,
    pub(crate) shared: Arc<Shared>,
    state: Mutex<State>,
    /// Something was done: for whom writes results in transactions.
    pub(crate) done: Notify,
    /// Something was done or stored: for whom waits for the end of a model.
    moved: Notify,
    /// Topics are to be read anew.
    anew: Notify,
}

#[derive(Default)]
struct State {
    /// By inputs topic.
    models: HashMap<Arc<str>, Arc<Model>>,
    lanes: HashMap<Key, Lane>,
    /// Inputs topics that are being given up.
    leaving: HashSet<Arc<str>>,
    /// Lanes so far.
    born: u64,
    /// Models whose topics were made anew, and where their partitions are begun.
    anew: Vec<(Arc<Model>, Vec<Start>)>,
}

impl State {
    /// It is read, and goes on to be.
    fn reads(&self, model: &Arc<Model>) -> bool {
        let known = self.models.get(&model.inputs);
        known.is_some_and(|known| Arc::ptr_eq(known, model))
            && !self.leaving.contains(&model.inputs)
    }
}

/// One partition.
struct Lane {
    /// Tells it from that of a topic of the same name before.
    number: u64,
    progress: Progress<Option<Outgoing>>,
    bytes: usize,
    paused: bool,
    /// What is below may have been worked on by another.
    replay_until: i64,
    /// What the group's offset is.
    stored: i64,
    /// The first record that came of those before what was begun.
    rewound: Option<i64>,
}

/// How far a partition is.
pub(crate) struct Reach {
    pub(crate) key: Key,
    pub(crate) model: Arc<Model>,
    /// Behind all that is done.
    pub(crate) position: i64,
    /// Behind all that is begun.
    pub(crate) next: i64,
    /// The first record since the last look that came of those before.
    pub(crate) rewound: Option<i64>,
}

/// A model with the partitions of its inputs and where each is gone on with.
pub(crate) struct Owned {
    pub(crate) model: Arc<Model>,
    pub(crate) partitions: Vec<Start>,
}

/// Where a partition is gone on with.
pub(crate) struct Start {
    pub(crate) partition: i32,
    pub(crate) position: i64,
    pub(crate) end: i64,
}

impl Start {
    /// Where a partition that ends at `end` is begun: behind what is stored. What is stored of a topic that was deleted and
    /// made anew means nothing for this one.
    pub(crate) fn of(partition: i32, stored: Option<i64>, end: i64, unread: Unread) -> Self {
        let position = match (stored, unread) {
            (Some(stored), _) if stored <= end => stored,
            (Some(_), _) | (None, Unread::FromTheBeginning) => 0,
            (None, Unread::FromTheEnd) => end,
        };
        Self {
            partition,
            position,
            // What nobody has stored a position of, nobody has worked on.
            end: if stored.is_some() { end } else { position },
        }
    }
}

/// Where a partition is begun that nobody has read.
#[derive(Clone, Copy)]
pub(crate) enum Unread {
    FromTheBeginning,
    FromTheEnd,
}

impl Bucket {
    pub(crate) fn new(shared: &Arc<Shared>, number: u32) -> anyhow::Result<Arc<Self>> {
        let group = shared.names.model_gateway_group(number);
        let consumer = Consumer::new(&shared.settings, &group, shared.exactly_once())?;
        Ok(Arc::new(Self {
            consumer: Arc::new(consumer),
            shared: Arc::clone(shared),
            state: Mutex::default(),
            done: Notify::new(),
            moved: Notify::new(),
            anew: Notify::new(),
        }))
    }

    /// Reads, and stores offsets, until the process stops.
    pub(crate) fn start(self: &Arc<Self>) {
        let (reader, storer) = (Arc::clone(self), Arc::clone(self));
        let tasks = &self.shared.tasks;
        tasks.spawn(async move {
            let stop = reader.shared.stop.clone();
            stop.run_until_cancelled(reader.read()).await;
        });
        if self.shared.exactly_once() {
            return;
        }
        tasks.spawn(async move {
            let stop = storer.shared.stop.clone();
            stop.run_until_cancelled(async {
                loop {
                    sleep(COMMIT).await;
                    storer.store().await;
                }
            })
            .await;
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read models.
    pub(crate) fn own(&self, models: Vec<Owned>) -> anyhow::Result<()> {
        let mut state = self.state();
        for Owned { model, .. } in &models {
            let inputs = Arc::clone(&model.inputs);
            state.models.insert(inputs, Arc::clone(model));
        }
        drop(state);
        let inputs: Vec<_> = models
            .iter()
            .map(|owned| Arc::clone(&owned.model.inputs))
            .collect();
        let done = self.extend(models);
        if done.is_err() {
            // The order fails, and is given again: it must not find that they are read.
            let State { models, lanes, .. } = &mut *self.state();
            models.retain(|topic, _| {
                !inputs.contains(topic) || lanes.keys().any(|(read, _)| read == topic)
            });
        }
        done
    }

    /// Begins to read more partitions of models, unless they have been given up meanwhile.
    pub(crate) fn extend(&self, models: Vec<Owned>) -> anyhow::Result<()> {
        let mut assigned = Vec::new();
        // Held until they are assigned: whoever gives a model up finds all that is.
        let mut state = self.state();
        for Owned { model, partitions } in models {
            if state.reads(&model) {
                for start in partitions {
                    assigned.extend(self.begin(&mut state, &model.inputs, &start));
                }
            }
        }
        let done = self.consumer.assign(&assigned);
        if done.is_err() {
            for (topic, partition, _) in assigned {
                state.lanes.remove(&(topic, partition));
            }
        }
        done
    }

    /// Begins a partition, unless it is read already.
    fn begin(
        &self,
        state: &mut State,
        inputs: &Arc<str>,
        start: &Start,
    ) -> Option<(Arc<str>, i32, Position)> {
        let key = (Arc::clone(inputs), start.partition);
        if state.lanes.contains_key(&key) {
            return None;
        }
        state.born += 1;
        let exactly_once = self.shared.exactly_once();
        let lane = Lane {
            number: state.born,
            progress: Progress::new(start.position),
            bytes: 0,
            paused: false,
            replay_until: if exactly_once { 0 } else { start.end },
            stored: start.position,
            rewound: None,
        };
        state.lanes.insert(key.clone(), lane);
        Some((key.0, key.1, Position::Offset(start.position)))
    }

    /// Has a topic that was made anew read from there.
    pub(crate) fn read_anew(&self, model: &Arc<Model>, partitions: Vec<Start>) {
        self.state().anew.push((Arc::clone(model), partitions));
        self.anew.notify_one();
    }

    /// Only between two records: one of the former topic must not be taken for one of the new.
    fn begin_anew(&self) {
        let mut state = self.state();
        for (model, partitions) in std::mem::take(&mut state.anew) {
            if !state.reads(&model) {
                continue;
            }
            let inputs = &model.inputs;
            let former = state.lanes.keys().filter(|(topic, _)| topic == inputs);
            if let Err(error) = self.consumer.unassign(&former.cloned().collect::<Vec<_>>()) {
                tracing::warn!(topic = &**inputs, "the former one is still read: {error:#}");
            }
            state.lanes.retain(|(topic, _), _| topic != inputs);
            let mut assigned = Vec::new();
            for start in &partitions {
                assigned.extend(self.begin(&mut state, inputs, start));
            }
            if let Err(error) = self.consumer.assign(&assigned) {
                self.shared.fail(format!(
                    "topic {inputs} was made anew and cannot be read: {error:#}"
                ));
            }
        }
        drop(state);
        self.moved.notify_waiters();
    }

    /// Whether a model is read, and goes on to be.
    pub(crate) fn reads(&self, model: &Arc<Model>) -> bool {
        self.state().reads(model)
    }

    /// All models that are read.
    pub(crate) fn models(&self) -> Vec<Arc<Model>> {
        self.state().models.values().cloned().collect()
    }

    /// The model, if it is read.
    pub(crate) fn model(&self, inputs: &str) -> Option<Arc<Model>> {
        self.state().models.get(inputs).cloned()
    }

    /// The name of the model whose outputs or error a record is.
    pub(crate) fn model_of(&self, record: &Outgoing) -> Arc<str> {
        if let Some(model) = record.headers.text(header::ERROR) {
            return model.into();
        }
        let state = self.state();
        let mut models = state.models.values();
        let found = models.find(|model| model.outputs.topic == record.topic);
        found.map_or_else(
            || Arc::clone(&record.topic),
            |model| Arc::clone(&model.name),
        )
    }

    /// Its partitions.
    pub(crate) fn lanes(&self, inputs: &str) -> Vec<Key> {
        let state = self.state();
        let lanes = state.lanes.keys().filter(|(topic, _)| &**topic == inputs);
        lanes.cloned().collect()
    }

    /// Reads a model no more, finishes what was begun of it until `deadline`, and stores how far it is.
    pub(crate) async fn release(&self, inputs: &str, deadline: Instant) {
        self.state().leaving.insert(inputs.into());
        let keys = self.lanes(inputs);
        if let Err(error) = self.consumer.unassign(&keys) {
            tracing::warn!(topic = inputs, "still read: {error:#}");
        }
        loop {
            let moved = self.moved.notified();
            if self.is_done(&keys) {
                break;
            }
            if timeout_at(deadline, moved).await.is_err() {
                tracing::warn!(
                    topic = inputs,
                    "not all that was begun is finished: it will be repeated"
                );
                break;
            }
        }
        if !self.shared.exactly_once() {
            self.store().await;
        }
        let mut state = self.state();
        state.models.remove(inputs);
        state.leaving.remove(inputs);
        state.lanes.retain(|(topic, _), _| &**topic != inputs);
    }

    fn is_done(&self, keys: &[Key]) -> bool {
        let exactly_once = self.shared.exactly_once();
        let state = self.state();
        keys.iter()
            .filter_map(|key| state.lanes.get(key))
            .all(|lane| {
                let stored = !exactly_once || lane.stored == lane.progress.position();
                lane.progress.outstanding() == 0 && stored
            })
    }

    /// Reads nothing any more, of any model.
    pub(crate) async fn release_all(&self, deadline: Instant) {
        let all: Vec<Arc<str>> = self.state().models.keys().cloned().collect();
        let releases = all.iter().map(|inputs| self.release(inputs, deadline));
        futures_util::future::join_all(releases).await;
    }

    async fn read(self: &Arc<Self>) {
        let mut told = String::new();
        loop {
            let read = tokio::select! {
                biased;
                () = self.anew.notified() => {
                    self.begin_anew();
                    continue;
                }
                read = self.consumer.recv() => read,
            };
            match read {
                Ok(record) => self.take(record),
                Err(ReadError::Fatal(reason)) => {
                    return self
                        .shared
                        .fail(format!("records cannot be read any more: {reason}"));
                }
                Err(error) => {
                    if matches!(error, ReadError::UnknownTopic(_)) {
                        self.shared.look.notify_one();
                    }
                    let text = error.to_string();
                    if text != told {
                        tracing::warn!("{text}");
                        told = text;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Begins to work on a record, unless it is a repeat or its model is gone.
    fn take(self: &Arc<Self>, record: Record) {
        let key = (Arc::clone(&record.topic), record.partition);
        let mut state = self.state();
        let State { models, lanes, .. } = &mut *state;
        let (Some(model), Some(lane)) = (models.get(&key.0), lanes.get_mut(&key)) else {
            return;
        };
        let offset = record.offset;
        if !lane.progress.begin(offset) {
            // Where Kafka went back to the beginning by itself, what was read before is not there any more.
            lane.rewound.get_or_insert(offset);
            return self.shared.look.notify_one();
        }
        self.shared.metrics.outstanding.inc();
        let marked = record.headers.has(header::REPEAT);
        let mut recent = self
            .shared
            .recent
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_new = recent.is_new(&model.name, &record);
        drop(recent);
        let job = Job {
            replayed: offset < lane.replay_until,
            lane: lane.number,
            record,
        };
        let place = job.place();
        lane.bytes += place.size;
        let limit = self.shared.options.workers.max(1) * AHEAD;
        if !lane.paused && (lane.progress.outstanding() >= limit || lane.bytes >= BYTES) {
            lane.paused = true;
            self.consumer.pause(std::slice::from_ref(&key));
        }
        let model = Arc::clone(model);
        drop(state);
        if marked && !is_new {
            self.count(&model, "repeat");
            return self.finish(&place, None);
        }
        if let Some(job) = model.start(job) {
            let bucket = Arc::clone(self);
            self.shared
                .tasks
                .spawn(async move { bucket.work(&model, job).await });
        }
    }

    pub(crate) fn count(&self, model: &Model, result: &str) {
        let outcome = Outcome {
            model: model.name.to_string(),
            result: result.to_owned(),
        };
        self.shared.metrics.records.get_or_create(&outcome).inc();
    }

    /// A record is done; what is to be written for it, where that was not done yet.
    pub(crate) fn finish(&self, place: &Place, outgoing: Option<Outgoing>) {
        self.shared.metrics.outstanding.dec();
        let mut state = self.state();
        let lane = state.lanes.get_mut(&place.key);
        let Some(lane) = lane.filter(|lane| lane.number == place.lane) else {
            return;
        };
        lane.progress.finish(place.offset, outgoing);
        lane.bytes = lane.bytes.saturating_sub(place.size);
        if !self.shared.exactly_once() {
            lane.progress.take();
        }
        self.resume(&place.key, lane);
        drop(state);
        self.moved.notify_waiters();
        self.done.notify_one();
    }

    fn resume(&self, key: &Key, lane: &mut Lane) {
        let limit = self.shared.options.workers.max(1) * AHEAD;
        if lane.paused && lane.progress.outstanding() <= limit / 2 && lane.bytes <= BYTES / 2 {
            lane.paused = false;
            self.consumer.resume(std::slice::from_ref(key));
        }
    }

    /// Takes all that is to be written next, in order, and the positions behind it.
    pub(crate) fn ready(&self) -> (Vec<Outgoing>, Vec<Reached>) {
        let (mut outgoing, mut positions) = (Vec::new(), Vec::new());
        let mut state = self.state();
        for (key, lane) in &mut state.lanes {
            outgoing.extend(lane.progress.take().into_iter().flatten());
            if lane.progress.position() > lane.stored {
                positions.push((Arc::clone(&key.0), key.1, lane.progress.position()));
            }
            self.resume(key, lane);
        }
        (outgoing, positions)
    }

    /// Positions are stored.
    pub(crate) fn stored(&self, positions: &[(Arc<str>, i32, i64)]) {
        let mut state = self.state();
        for (topic, partition, position) in positions {
            let lane = state.lanes.get_mut(&(Arc::clone(topic), *partition));
            // It may be one of a topic that was made anew meanwhile.
            if let Some(lane) = lane.filter(|lane| *position <= lane.progress.position()) {
                lane.stored = lane.stored.max(*position);
            }
        }
        drop(state);
        self.moved.notify_waiters();
    }

    /// Stores positions that have moved; what fails is tried again with the next.
    async fn store(&self) {
        let (_, positions) = self.ready();
        match self.consumer.commit(&positions).await {
            Ok(()) => self.stored(&positions),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }

    /// How far all partitions are.
    pub(crate) fn reached(&self) -> Vec<Reach> {
        let state = self.state();
        let State { models, lanes, .. } = &*state;
        let of = |(key, lane): (&Key, &Lane)| {
            Some(Reach {
                key: key.clone(),
                model: Arc::clone(models.get(&key.0)?),
                position: lane.progress.position(),
                next: lane.progress.next(),
                rewound: lane.rewound,
            })
        };
        lanes.iter().filter_map(of).collect()
    }

    /// It is known what these going back meant: until then it is evidence.
    pub(crate) fn judged<'a>(&self, reached: impl Iterator<Item = &'a Reach>) {
        let mut state = self.state();
        for reach in reached {
            if let Some(lane) = state.lanes.get_mut(&reach.key)
                && lane.rewound == reach.rewound
            {
                lane.rewound = None;
            }
        }
    }
}
