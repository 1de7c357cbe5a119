//! Reads the outputs topics: one consumer for all, assigned by hand, from the end, committing nothing.
use std::{collections::HashMap, sync::Arc, time::Duration};

use seldon_kafka::{Admin, Consumer, Position, ReadError};
use tokio::sync::Mutex;

use crate::waiting::Waiting;

/// The reader of answers.
pub(crate) struct Replies {
    consumer: Consumer,
    admin: Arc<Admin>,
    waiting: Arc<Waiting>,
    /// Partitions that are read, and for how many routes.
    topics: Mutex<HashMap<Arc<str>, (i32, usize)>>,
}

impl Replies {
    pub(crate) fn new(consumer: Consumer, admin: Arc<Admin>, waiting: Arc<Waiting>) -> Self {
        Self {
            consumer,
            admin,
            waiting,
            topics: Mutex::default(),
        }
    }

    /// Reads a topic from now on: what is written after this returned is seen. Returns its partitions.
    pub(crate) async fn read(&self, topic: &Arc<str>) -> anyhow::Result<i32> {
        let mut topics = self.topics.lock().await;
        if let Some((partitions, users)) = topics.get_mut(topic) {
            *users += 1;
            return Ok(*partitions);
        }
        let partitions = self.admin.partitions(topic).await?;
        let partitions =
            partitions.ok_or_else(|| anyhow::anyhow!("topic {topic} does not exist"))?;
        let all: Vec<_> = (0..partitions).map(|at| (topic.clone(), at)).collect();
        // Where the end is must be known before anything is written: the client finds it out only some time later.
        let ends = self.consumer.ends(&all).await?;
        let all = all.into_iter().zip(ends);
        let positions: Vec<_> = all
            .map(|((topic, at), end)| (topic, at, Position::Offset(end)))
            .collect();
        self.consumer.assign(&positions)?;
        topics.insert(topic.clone(), (partitions, 1));
        Ok(partitions)
    }

    /// Reads a topic no more, once nobody else needs it.
    pub(crate) async fn leave(&self, topic: &Arc<str>) {
        let mut topics = self.topics.lock().await;
        let Some((partitions, users)) = topics.get_mut(topic) else {
            return;
        };
        *users -= 1;
        if *users > 0 {
            return;
        }
        let all: Vec<_> = (0..*partitions).map(|at| (topic.clone(), at)).collect();
        topics.remove(topic);
        if let Err(error) = self.consumer.unassign(&all) {
            tracing::warn!("topic {topic} is still read: {error:#}");
        }
    }

    /// Reads partitions that were added to a topic, from their beginning. Returns all that are read now.
    pub(crate) async fn grow(&self, topic: &Arc<str>, found: i32) -> anyhow::Result<i32> {
        let mut topics = self.topics.lock().await;
        let Some((partitions, _)) = topics.get_mut(topic) else {
            return Ok(0);
        };
        if found > *partitions {
            let added: Vec<_> = (*partitions..found)
                .map(|at| (topic.clone(), at, Position::Beginning))
                .collect();
            self.consumer.assign(&added)?;
            *partitions = found;
        }
        Ok(*partitions)
    }

    /// Hands answers to who waits for them; ends only when reading is impossible for good.
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        let mut told = String::new();
        loop {
            match self.consumer.recv().await {
                Ok(record) => {
                    self.waiting.deliver(record);
                }
                Err(ReadError::Fatal(text)) => anyhow::bail!("answers cannot be read: {text}"),
                Err(error) => {
                    let text = error.to_string();
                    if text != told {
                        tracing::warn!("{text}");
                        told = text;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}
