//! Which models this gateway reads: orders of the scheduler, carried out.
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use seldon_kafka::Transactions;
use seldon_records::bucket as bucket_of;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use crate::{
    bucket::{Bucket, Owned, Start, Unread},
    control::{Ack, Order},
    exactly_once,
    halves::by_halves,
    metrics::OfModel,
    model::{Key, Model, Target},
    shared::Shared,
};

/// What was begun of a model is finished for this long when it is given up.
const DRAIN: Duration = Duration::from_secs(60);
/// Orders carried out together.
const TOGETHER: usize = 1000;
/// Models that cannot be begun together are halved no more after this: then it is not for one of them.
const HALVING: Duration = Duration::from_secs(60);

/// A model and the partitions of its inputs.
type Partitions = (Arc<Model>, Range<i32>);
/// Why it failed, by model.
type Failures = HashMap<String, String>;

/// Carries orders out.
pub(crate) struct Gateway {
    pub(crate) shared: Arc<Shared>,
    buckets: Mutex<HashMap<u32, Arc<Bucket>>>,
    /// Models that are being given up.
    leaving: Mutex<HashSet<String>>,
    acks: mpsc::UnboundedSender<Ack>,
    again: mpsc::UnboundedSender<Order>,
    active: AtomicBool,
}

impl Gateway {
    pub(crate) fn new(
        shared: Arc<Shared>,
        acks: mpsc::UnboundedSender<Ack>,
        again: mpsc::UnboundedSender<Order>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            buckets: Mutex::default(),
            leaving: Mutex::default(),
            acks,
            again,
            active: AtomicBool::new(true),
        })
    }

    /// Whether it works.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed) && !self.shared.stop.is_cancelled()
    }

    /// Carries orders out as they come, those that wait together.
    pub(crate) async fn run(self: Arc<Self>, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut waiting = Vec::new();
        while orders.recv_many(&mut waiting, TOGETHER).await > 0 {
            // Of one model the latest counts.
            let mut latest: HashMap<String, Order> = HashMap::new();
            for order in waiting.drain(..) {
                latest.insert(order.model.clone(), order);
            }
            let (deletions, creations): (Vec<_>, Vec<_>) =
                latest.into_values().partition(|order| order.delete);
            for order in deletions {
                self.give_up(order);
            }
            self.create(creations).await;
        }
    }

    async fn create(self: &Arc<Self>, orders: Vec<Order>) {
        let (later, now): (Vec<_>, Vec<_>) = {
            let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
            orders
                .into_iter()
                .partition(|order| leaving.contains(&order.model))
        };
        for order in later {
            let again = self.again.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(20)).await;
                let _ = again.send(order);
            });
        }
        if now.is_empty() {
            return;
        }
        let mut failures = self.read(&now).await;
        for order in now {
            let failure = failures.remove(&order.model);
            self.acknowledge(order, failure);
        }
    }

    fn acknowledge(&self, order: Order, failure: Option<String>) {
        match &failure {
            None => tracing::info!(model = order.model, delete = order.delete, "order done"),
            Some(failure) => tracing::warn!(model = order.model, "order failed: {failure}"),
        }
        let _ = self.acks.send(Ack { order, failure });
    }

    /// Begins to read; what is read already goes on. Says of which models that failed. Where the broker does not answer,
    /// that of all: the scheduler gives these orders again.
    async fn read(&self, orders: &[Order]) -> Failures {
        let names = &self.shared.names;
        let is_new = |order: &&Order| {
            let number = bucket_of(&order.model, self.shared.options.max_consumers);
            let known = self.known(number);
            known.is_none_or(|bucket| bucket.model(&names.model_inputs(&order.model)).is_none())
        };
        let new = orders.iter().filter(is_new);
        let new: Vec<&str> = new.map(|order| order.model.as_str()).collect();
        let mut failures = Failures::new();
        if new.is_empty() {
            return failures;
        }
        if let Err(error) = self.read_new(&new, &mut failures).await {
            let text = format!("{error:#}");
            failures.extend(new.iter().map(|name| ((*name).to_owned(), text.clone())));
        }
        failures
    }

    /// Makes topics and begins to read. Fails before anything is read.
    async fn read_new(&self, models: &[&str], failures: &mut Failures) -> anyhow::Result<()> {
        let names = &self.shared.names;
        let pair = |model: &&str| [names.model_inputs(model), names.model_outputs(model)];
        let topics = models.iter().flat_map(pair).chain([names.errors()]);
        let topics: Vec<String> = topics.collect();
        let unusable = self.shared.admin.make(&topics).await?;
        if let Some(reason) = unusable.get(&names.errors()) {
            anyhow::bail!("{reason}");
        }
        let partitions = self.shared.admin.all_partitions(&topics).await?;
        let count = |topic: &str| partitions.get(topic).copied().unwrap_or(1);
        self.shared.errors.set_partitions(count(&names.errors()));
        let mut of_bucket: HashMap<u32, Vec<Partitions>> = HashMap::new();
        for name in models {
            let [inputs, outputs] = pair(name);
            if let Some(reason) = unusable.get(&inputs).or(unusable.get(&outputs)) {
                failures.insert((*name).to_owned(), reason.clone());
                continue;
            }
            let target = Target::new(&outputs, count(&outputs));
            let model = Model::new(name, &inputs, target, self.shared.options.workers);
            let number = bucket_of(name, self.shared.options.max_consumers);
            let of = of_bucket.entry(number).or_default();
            of.push((Arc::new(model), 0..count(&inputs)));
        }
        for (number, models) in of_bucket {
            self.begin(number, models, failures).await;
        }
        Ok(())
    }

    /// Begins to read models of a bucket, together as far as none of them spoils it for the others.
    async fn begin(&self, number: u32, models: Vec<Partitions>, failures: &mut Failures) {
        let mut fail = |models: &[Partitions], error: &anyhow::Error| {
            let text = format!("{error:#}");
            let names = models.iter().map(|(model, _)| model.name.to_string());
            failures.extend(names.map(|name| (name, text.clone())));
        };
        let bucket = match self.bucket(number).await {
            Ok(bucket) => bucket,
            Err(error) => return fail(&models, &error),
        };
        let bucket = &bucket;
        let own = |models: Vec<Partitions>| async move {
            let together = models.len();
            let owned = self.own(bucket, number, models, Unread::FromTheEnd).await;
            match &owned {
                Ok(()) => drop(
                    self.shared
                        .metrics
                        .models
                        .inc_by(i64::try_from(together).unwrap_or(0)),
                ),
                Err(error) if together > 1 => {
                    tracing::warn!(together, "models cannot be begun together: {error:#}");
                }
                Err(_) => {}
            }
            owned
        };
        for (models, error) in by_halves(models, Instant::now() + HALVING, own).await {
            fail(&models, &error);
        }
    }

    /// Finds out where to go on with partitions, stores what is new, and begins to read.
    pub(crate) async fn own(
        &self,
        bucket: &Bucket,
        number: u32,
        models: Vec<Partitions>,
        unread: Unread,
    ) -> anyhow::Result<()> {
        let keys: Vec<Key> = models
            .iter()
            .flat_map(|(model, all)| all.clone().map(|one| (Arc::clone(&model.inputs), one)))
            .collect();
        if self.shared.exactly_once() {
            let owner = exactly_once::transactional_id(&self.shared, number);
            exactly_once::take_over(bucket, &keys, &owner).await?;
        }
        let stored = bucket.consumer.committed(&keys).await?;
        // After what is stored was read: a former owner that lives on stores more meanwhile, and an end below that would
        // be taken for another topic's.
        let ends = bucket.consumer.ends(&keys).await?;
        let all = keys.iter().zip(stored.into_iter().zip(ends));
        let starts: Vec<Start> = all
            .map(|((_, partition), (stored, end))| Start::of(*partition, stored, end, unread))
            .collect();
        let positions: Vec<(Arc<str>, i32, i64)> = keys
            .iter()
            .zip(&starts)
            .map(|((topic, partition), start)| (Arc::clone(topic), *partition, start.position))
            .collect();
        self.store(bucket, number, &positions).await?;
        let mut starts = starts.into_iter();
        let owned = models.into_iter().map(|(model, partitions)| Owned {
            model,
            partitions: starts.by_ref().take(partitions.len()).collect(),
        });
        match unread {
            Unread::FromTheEnd => bucket.own(owned.collect()),
            Unread::FromTheBeginning => bucket.extend(owned.collect()),
        }
    }

    /// From now on nothing that is written behind these is missed, whatever happens to this process.
    pub(crate) async fn store(
        &self,
        bucket: &Bucket,
        number: u32,
        positions: &[(Arc<str>, i32, i64)],
    ) -> anyhow::Result<()> {
        if self.shared.exactly_once() {
            let owner = exactly_once::transactional_id(&self.shared, number);
            bucket.consumer.commit_by(positions, &owner).await
        } else {
            bucket.consumer.commit(positions).await
        }
    }

    fn known(&self, number: u32) -> Option<Arc<Bucket>> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.get(&number).cloned()
    }

    pub(crate) fn all(&self) -> Vec<(u32, Arc<Bucket>)> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let all = buckets.iter();
        all.map(|(number, bucket)| (*number, Arc::clone(bucket)))
            .collect()
    }

    async fn bucket(&self, number: u32) -> anyhow::Result<Arc<Bucket>> {
        if let Some(bucket) = self.known(number) {
            return Ok(bucket);
        }
        let bucket = Bucket::new(&self.shared, number)?;
        if self.shared.exactly_once() {
            let owner = exactly_once::transactional_id(&self.shared, number);
            let transactions = Transactions::new(&self.shared.settings, &owner).await?;
            tokio::spawn(exactly_once::run(Arc::clone(&bucket), transactions, owner));
        }
        bucket.start();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.insert(number, Arc::clone(&bucket));
        Ok(bucket)
    }

    /// Stops to read a model; the rest beside other orders.
    fn give_up(self: &Arc<Self>, order: Order) {
        {
            let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
            if !leaving.insert(order.model.clone()) {
                return;
            }
        }
        let gateway = Arc::clone(self);
        tokio::spawn(async move {
            let done = gateway.leave(&order).await;
            {
                let leaving = gateway.leaving.lock();
                leaving
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&order.model);
            }
            gateway.acknowledge(order, done.err().map(|error| format!("{error:#}")));
        });
    }

    async fn leave(&self, order: &Order) -> anyhow::Result<()> {
        let names = &self.shared.names;
        let inputs = names.model_inputs(&order.model);
        let number = bucket_of(&order.model, self.shared.options.max_consumers);
        // As the newest manifest has it: what it said before does not count.
        let clean = order.clean;
        if let Some(bucket) = self.known(number)
            && bucket.model(&inputs).is_some()
        {
            let keys = bucket.lanes(&inputs);
            bucket.release(&inputs, Instant::now() + DRAIN).await;
            if self.shared.exactly_once() {
                self.disown(&bucket, &keys).await?;
            }
            self.shared.metrics.models.dec();
            let of = OfModel {
                model: order.model.clone(),
            };
            self.shared.metrics.lag.remove(&of);
        }
        if clean && !order.keep_topics {
            let topics = [inputs, names.model_outputs(&order.model)];
            self.shared.admin.delete(&topics).await?;
        }
        Ok(())
    }

    /// Nobody needs to fence this gateway for these any more.
    async fn disown(&self, bucket: &Bucket, keys: &[Key]) -> anyhow::Result<()> {
        let committed = bucket.consumer.committed(keys).await?;
        let positions: Vec<_> = keys
            .iter()
            .zip(committed)
            .filter_map(|((topic, partition), at)| Some((Arc::clone(topic), *partition, at?)))
            .collect();
        bucket.consumer.commit_by(&positions, "").await
    }

    /// Gives all models up; what was begun is finished for `limit`.
    pub(crate) async fn stop(&self, limit: Duration) {
        self.active.store(false, Ordering::Relaxed);
        let deadline = Instant::now() + limit;
        for (_, bucket) in self.all() {
            bucket.release_all(deadline).await;
        }
        self.shared.producer.flush(Duration::from_secs(2)).await;
    }
}
