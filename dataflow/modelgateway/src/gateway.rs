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
    metrics::OfModel,
    model::{Key, Model, Target},
    shared::Shared,
};

/// What was begun of a model is finished for this long when it is given up.
const DRAIN: Duration = Duration::from_secs(60);
/// Orders carried out together.
const TOGETHER: usize = 1000;

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
        if let Err(error) = self.read(&now).await {
            if now.len() > 1 {
                tracing::warn!("orders are carried out one by one: {error:#}");
                // One of them may spoil it for all.
                for order in now {
                    let one = self.read(std::slice::from_ref(&order)).await;
                    self.acknowledge(order, one);
                }
                return;
            }
            for order in now {
                self.acknowledge(order, Err(anyhow::anyhow!("{error:#}")));
            }
            return;
        }
        for order in now {
            self.acknowledge(order, Ok(()));
        }
    }

    fn acknowledge(&self, order: Order, done: anyhow::Result<()>) {
        match &done {
            Ok(()) => tracing::info!(model = order.model, delete = order.delete, "order done"),
            Err(error) => tracing::warn!(model = order.model, "order failed: {error:#}"),
        }
        let failure = done.err().map(|error| format!("{error:#}"));
        let _ = self.acks.send(Ack { order, failure });
    }

    /// Makes topics and begins to read; what is read already goes on.
    async fn read(&self, orders: &[Order]) -> anyhow::Result<()> {
        let names = &self.shared.names;
        let mut of_bucket: HashMap<u32, Vec<&Order>> = HashMap::new();
        let mut topics = vec![names.errors()];
        for order in orders {
            let number = bucket_of(&order.model, self.shared.options.max_consumers);
            let inputs = names.model_inputs(&order.model);
            let known = self.known(number).and_then(|bucket| bucket.model(&inputs));
            if known.is_some() {
                continue;
            }
            topics.push(inputs);
            topics.push(names.model_outputs(&order.model));
            of_bucket.entry(number).or_default().push(order);
        }
        if of_bucket.is_empty() {
            return Ok(());
        }
        self.shared.admin.create(&topics, false).await?;
        let partitions = self.shared.admin.all_partitions(&topics).await?;
        let count = |topic: &str| partitions.get(topic).copied().unwrap_or(1);
        self.shared.errors.set_partitions(count(&names.errors()));
        for (number, orders) in of_bucket {
            let bucket = self.bucket(number).await?;
            let mut models = Vec::new();
            for order in orders {
                let (inputs, outputs) = (
                    names.model_inputs(&order.model),
                    names.model_outputs(&order.model),
                );
                let target = Target::new(&outputs, count(&outputs));
                let workers = self.shared.options.workers;
                let model = Model::new(&order.model, &inputs, target, workers);
                models.push((Arc::new(model), 0..count(&inputs)));
            }
            let more = i64::try_from(models.len()).unwrap_or(0);
            self.own(&bucket, number, models, Unread::FromTheEnd)
                .await?;
            self.shared.metrics.models.inc_by(more);
        }
        Ok(())
    }

    /// Finds out where to go on with partitions, stores what is new, and begins to read.
    pub(crate) async fn own(
        &self,
        bucket: &Bucket,
        number: u32,
        models: Vec<(Arc<Model>, Range<i32>)>,
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
            gateway.acknowledge(order, done);
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
