//! Models that share a reader and a consumer group.
mod lane;
mod owning;
mod positions;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use seldon_kafka::{Consumer, ReadError};
use seldon_records::{Outgoing, Record, header};
use tokio::{sync::Notify, time::sleep};

use crate::{
    metrics::Outcome,
    model::{Job, Key, Model, Place},
    shared::Shared,
};
use lane::Lane;
pub(crate) use lane::{Owned, Reach, Start, Unread};

/// Offsets are stored this often.
const COMMIT: Duration = Duration::from_millis(200);
/// Records of one partition that are worked on, as multiples of a model's workers; more stay at the broker.
const AHEAD: usize = 4;
/// Bytes of one partition that are worked on.
const BYTES: usize = 64 << 20;

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
}
