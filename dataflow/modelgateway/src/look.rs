//! Looks at topics: partitions that were added, topics that were deleted and made anew, and how far models are behind.
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context as _;
use tokio::time::{sleep, timeout};

use crate::{
    bucket::{Bucket, Reach, Start, Unread},
    gateway::Gateway,
    metrics::OfModel,
    model::Model,
};

/// However often reading gives a reason.
const PAUSE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);

impl Gateway {
    /// Looks again and again, and sooner where reading gives a reason.
    pub(crate) async fn watch(&self) {
        let period = Duration::from_secs(self.shared.options.partition_refresh_seconds.max(1));
        let mut failing = false;
        loop {
            let _ = timeout(period, self.shared.look.notified()).await;
            let mut looked = Ok(());
            for (number, bucket) in self.all() {
                let look = timeout(PATIENCE, self.look(number, &bucket)).await;
                looked = looked.and(look.context("no answer").and_then(|looked| looked));
            }
            if let (Err(error), false) = (&looked, failing) {
                tracing::warn!("topics cannot be looked at: {error:#}");
            }
            failing = looked.is_err();
            sleep(PAUSE).await;
        }
    }

    async fn look(&self, number: u32, bucket: &Bucket) -> anyhow::Result<()> {
        let models = bucket.models();
        let errors = self.shared.names.errors();
        let topics = models
            .iter()
            .flat_map(|model| [model.inputs.to_string(), model.outputs.topic.to_string()]);
        let topics: Vec<String> = topics.chain([errors.clone()]).collect();
        let mut found = self.shared.admin.all_partitions(&topics).await?;
        if let Some(count) = found.get(&errors) {
            self.shared.errors.set_partitions(*count);
        }
        let missing = models.iter().map(|model| &model.inputs);
        let missing = missing.filter(|one| !found.contains_key(&***one));
        let missing = missing.cloned().collect();
        let deleted = self.shared.admin.gone(missing, &errors).await?;
        let mut grown = Vec::new();
        for model in models {
            if let Some(count) = found.get(&*model.outputs.topic) {
                model.outputs.set_partitions(*count);
            }
            let Some(&count) = found.get(&*model.inputs) else {
                if deleted.contains(&model.inputs) && !model.gone.swap(true, Relaxed) {
                    tracing::warn!(topic = &*model.inputs, "the topic was deleted");
                }
                continue;
            };
            let known = i32::try_from(bucket.lanes(&model.inputs).len()).unwrap_or(i32::MAX);
            if model.gone.load(Relaxed) || count < known {
                let beginnings =
                    (0..count).map(|one| Start::of(one, None, 0, Unread::FromTheBeginning));
                self.read_anew(number, bucket, &model, beginnings.collect())
                    .await?;
                model.gone.store(false, Relaxed);
                // What is read of it does not belong to it yet.
                found.remove(&*model.inputs);
            } else if count > known {
                tracing::info!(
                    topic = &*model.inputs,
                    from = known,
                    to = count,
                    "partitions were added"
                );
                grown.push((model, known..count));
            }
        }
        if !grown.is_empty() {
            self.own(bucket, number, grown, Unread::FromTheBeginning)
                .await?;
        }
        self.compare(number, bucket, &found).await
    }

    /// A topic that ends before what was read of it is another one. Where that is not seen to be gone, what is below may
    /// have been worked on: a broker that lost its newest records looks alike.
    async fn compare(
        &self,
        number: u32,
        bucket: &Bucket,
        found: &HashMap<String, i32>,
    ) -> anyhow::Result<()> {
        // Before the ends are asked for: nothing can have been read behind them.
        let mut reached = bucket.reached();
        reached.retain(|reach| found.contains_key(&*reach.key.0));
        let keys: Vec<_> = reached.iter().map(|reach| reach.key.clone()).collect();
        let ends = bucket.consumer.ends(&keys).await?;
        let mut lag: HashMap<Arc<str>, i64> = HashMap::new();
        let (mut other, mut rewound) = (HashMap::new(), Vec::new());
        for (reach, end) in reached.iter().zip(ends) {
            let behind = lag.entry(Arc::clone(&reach.model.name)).or_default();
            *behind += (end - reach.position).max(0);
            if end < reach.next {
                other.insert(Arc::clone(&reach.key.0), Arc::clone(&reach.model));
            } else if reach.rewound.is_some() {
                rewound.push(reach);
            }
        }
        // It may have grown again meanwhile, but then reading went back to its very beginning.
        let keys: Vec<_> = rewound.iter().map(|reach| reach.key.clone()).collect();
        let beginnings = bucket.consumer.beginnings(&keys).await?;
        for (reach, beginning) in rewound.into_iter().zip(beginnings) {
            if reach.rewound == Some(beginning) {
                other.insert(Arc::clone(&reach.key.0), Arc::clone(&reach.model));
            }
        }
        bucket.judged(reached.iter());
        for (topic, model) in other {
            let of_topic = reached.iter().filter(|reach| reach.key.0 == topic);
            let start = |reach: &Reach| {
                Start::of(reach.key.1, Some(0), reach.next, Unread::FromTheBeginning)
            };
            self.read_anew(number, bucket, &model, of_topic.map(start).collect())
                .await?;
        }
        for (model, lag) in lag {
            let model = model.to_string();
            let gauge = self.shared.metrics.lag.get_or_create(&OfModel { model });
            gauge.set(lag);
        }
        Ok(())
    }

    async fn read_anew(
        &self,
        number: u32,
        bucket: &Bucket,
        model: &Arc<Model>,
        starts: Vec<Start>,
    ) -> anyhow::Result<()> {
        if !bucket.reads(model) {
            return Ok(());
        }
        let inputs = &model.inputs;
        tracing::warn!(
            topic = &**inputs,
            "the topic was made anew: it is read from its beginning"
        );
        let positions: Vec<_> = starts
            .iter()
            .map(|start| (Arc::clone(inputs), start.partition, start.position))
            .collect();
        self.store(bucket, number, &positions).await?;
        bucket.read_anew(model, starts);
        Ok(())
    }
}
