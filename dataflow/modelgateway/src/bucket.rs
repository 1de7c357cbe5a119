//! Models that share a reader and a consumer group.
use std::{
    collections::HashMap,
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
    model::{Job, Model},
    progress::Progress,
    shared::Shared,
};

pub(crate) type Key = (Arc<str>, i32);

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
}

#[derive(Default)]
struct State {
    /// By inputs topic.
    models: HashMap<Arc<str>, Arc<Model>>,
    lanes: HashMap<Key, Lane>,
}

/// One partition.
struct Lane {
    progress: Progress<Option<Outgoing>>,
    bytes: usize,
    paused: bool,
    /// What is below may have been worked on by another.
    replay_until: i64,
    /// What the group's offset is.
    stored: i64,
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
        let mut assigned = Vec::new();
        let exactly_once = self.shared.exactly_once();
        {
            let mut state = self.state();
            for Owned { model, partitions } in models {
                for start in partitions {
                    let key = (Arc::clone(&model.inputs), start.partition);
                    let lane = Lane {
                        progress: Progress::new(start.position),
                        bytes: 0,
                        paused: false,
                        replay_until: if exactly_once { 0 } else { start.end },
                        stored: start.position,
                    };
                    if state.lanes.insert(key.clone(), lane).is_none() {
                        assigned.push((key.0, key.1, Position::Offset(start.position)));
                    }
                }
                state.models.insert(Arc::clone(&model.inputs), model);
            }
        }
        self.consumer.assign(&assigned)
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
            match self.consumer.recv().await {
                Ok(record) => self.take(record),
                Err(ReadError::Fatal(reason)) => {
                    return self
                        .shared
                        .fail(format!("records cannot be read any more: {reason}"));
                }
                Err(error) => {
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
        let State { models, lanes } = &mut *state;
        let (Some(model), Some(lane)) = (models.get(&key.0), lanes.get_mut(&key)) else {
            return;
        };
        let (offset, size) = (
            record.offset,
            record.value.as_ref().map_or(0, |value| value.len()),
        );
        if !lane.progress.begin(offset) {
            return;
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
        lane.bytes += size;
        let limit = self.shared.options.workers.max(1) * AHEAD;
        if !lane.paused && (lane.progress.outstanding() >= limit || lane.bytes >= BYTES) {
            lane.paused = true;
            self.consumer.pause(std::slice::from_ref(&key));
        }
        let replayed = offset < lane.replay_until;
        let model = Arc::clone(model);
        drop(state);
        if marked && !is_new {
            self.count(&model, "repeat");
            return self.finish(&key, offset, size, None);
        }
        if let Some(job) = model.start(Job { record, replayed }) {
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
    pub(crate) fn finish(&self, key: &Key, offset: i64, size: usize, outgoing: Option<Outgoing>) {
        self.shared.metrics.outstanding.dec();
        let mut state = self.state();
        let Some(lane) = state.lanes.get_mut(key) else {
            return;
        };
        lane.progress.finish(offset, outgoing);
        lane.bytes = lane.bytes.saturating_sub(size);
        if !self.shared.exactly_once() {
            lane.progress.take();
        }
        self.resume(key, lane);
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
            if let Some(lane) = state.lanes.get_mut(&(Arc::clone(topic), *partition)) {
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

    /// Records that are not done, by model.
    pub(crate) async fn lag(&self) -> anyhow::Result<HashMap<Arc<str>, i64>> {
        let positions: Vec<(Key, i64, Arc<str>)> = {
            let state = self.state();
            let of = |(key, lane): (&Key, &Lane)| {
                let model = state.models.get(&key.0)?;
                Some((
                    key.clone(),
                    lane.progress.position(),
                    Arc::clone(&model.name),
                ))
            };
            state.lanes.iter().filter_map(of).collect()
        };
        let keys: Vec<Key> = positions.iter().map(|(key, ..)| key.clone()).collect();
        let ends = self.consumer.ends(&keys).await?;
        let mut lag = HashMap::new();
        for ((_, position, model), end) in positions.into_iter().zip(ends) {
            *lag.entry(model).or_default() += (end - position).max(0);
        }
        Ok(lag)
    }
}
