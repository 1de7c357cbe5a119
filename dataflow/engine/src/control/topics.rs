//! Looking at topics: partitions that they have got, topics that are gone, and how far reading is behind.
use std::sync::Arc;

use super::Parts;
use crate::takeover;
use crate::worker::{At, Command, Read};

impl Parts {
    /// Looks once.
    pub async fn look_at_topics(&self) -> anyhow::Result<()> {
        let context = &self.context;
        let reads = self.ask(|answer| Command::Survey { answer }).await?;
        let topics = context.partitions.topics();
        let counts = context.admin.all_partitions(&topics).await?;
        for (topic, count) in &counts {
            context.partitions.set(topic, *count);
        }
        let missing = reads.iter().map(|read| &read.topic);
        let missing = missing.filter(|topic| !counts.contains_key(&***topic));
        let missing = missing.cloned().collect();
        let gone = context.admin.gone(missing, &context.progress).await?;
        for read in reads {
            let Some(count) = counts.get(&*read.topic).copied() else {
                if gone.contains(&read.topic) {
                    let topic = read.topic;
                    self.worker.send(Command::Gone { topic }).await?;
                }
                continue;
            };
            self.measure(&read).await;
            self.grow(&read, count).await;
        }
        Ok(())
    }

    /// How far reading is behind.
    async fn measure(&self, read: &Read) {
        let topic = &read.topic;
        let places: Vec<At> = read.positions.keys().map(|p| (topic.clone(), *p)).collect();
        if let Ok(ends) = self.context.consumer.ends(&places).await {
            let behind = places.iter().zip(ends).map(|((_, partition), end)| {
                (end - read.positions.get(partition).unwrap_or(&end)).max(0)
            });
            self.context.metrics.lag(topic, behind.sum());
        }
    }

    /// Has each pipeline read all partitions of a topic, new ones from their beginning.
    async fn grow(&self, read: &Read, count: i32) {
        let topic = &read.topic;
        for (pipeline, places) in &read.readers {
            if (0..count).all(|partition| places.contains(&(topic.clone(), partition))) {
                continue;
            }
            tracing::info!(%topic, count, %pipeline, "the topic has more partitions");
            if let Err(error) = self.grow_one(pipeline, topic).await {
                tracing::warn!(%topic, %pipeline, "partitions are not read yet: {error:#}");
            }
        }
    }

    async fn grow_one(&self, pipeline: &Arc<str>, topic: &Arc<str>) -> anyhow::Result<()> {
        let lock = self.lock(pipeline);
        let _lock = lock.lock().await;
        // Asked again under the lock: orders may have been carried out meanwhile.
        let reads = self.ask(|answer| Command::Survey { answer }).await?;
        let read = reads.into_iter().find(|read| read.topic == *topic);
        let mut readers = read.into_iter().flat_map(|read| read.readers);
        let Some((_, mine)) = readers.find(|(reader, _)| reader == pipeline) else {
            return Ok(());
        };
        let topics = [topic.clone()].into();
        let claimed = takeover::claim(&self.context, pipeline, &topics, &mine).await?;
        let pipeline = pipeline.clone();
        let grow = Command::Grow { pipeline, claimed };
        Ok(self.worker.send(grow).await?)
    }
}
