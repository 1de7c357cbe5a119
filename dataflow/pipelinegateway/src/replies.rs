//! Reads the outputs topics: one consumer for all, assigned by hand, from the end, committing nothing.
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use seldon_kafka::{Admin, Consumer, Position, ReadError};
use tokio::sync::{
    Mutex,
    oneshot::{self, error::TryRecvError},
};

use crate::waiting::Waiting;

/// Topics with their partitions and how many routes need them.
type Topics = HashMap<Arc<str>, (i32, usize)>;
/// A topic that is to be read, and who wants to know.
type Wanted = (Arc<str>, oneshot::Sender<anyhow::Result<i32>>);

/// The reader of answers.
pub(crate) struct Replies {
    consumer: Consumer,
    admin: Arc<Admin>,
    waiting: Arc<Waiting>,
    topics: Mutex<Topics>,
    wanted: std::sync::Mutex<Vec<Wanted>>,
}

impl Replies {
    pub(crate) fn new(consumer: Consumer, admin: Arc<Admin>, waiting: Arc<Waiting>) -> Self {
        Self {
            consumer,
            admin,
            waiting,
            topics: Mutex::default(),
            wanted: std::sync::Mutex::default(),
        }
    }

    /// Reads a topic from now on: what is written after this returned is seen. Returns its partitions.
    ///
    /// Whoever comes first asks for all that wait behind: each question to the broker waits for a fetch on the same
    /// connection, so that hundreds of them, one after the other, would take long.
    pub(crate) async fn read(&self, topic: &Arc<str>) -> anyhow::Result<i32> {
        loop {
            let (sender, mut told) = oneshot::channel();
            self.wanted().push((topic.clone(), sender));
            let mut topics = self.topics.lock().await;
            match told.try_recv() {
                Ok(done) => return done,
                // Who asked for it gave up.
                Err(TryRecvError::Closed) => continue,
                Err(TryRecvError::Empty) => {}
            }
            let wanted = std::mem::take(&mut *self.wanted());
            self.read_all(&mut topics, wanted).await;
            if let Ok(done) = told.await {
                return done;
            }
        }
    }

    fn wanted(&self) -> MutexGuard<'_, Vec<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_all(&self, topics: &mut Topics, wanted: Vec<Wanted>) {
        let fresh: BTreeSet<Arc<str>> = wanted
            .iter()
            .filter(|(topic, _)| !topics.contains_key(topic))
            .map(|(topic, _)| topic.clone())
            .collect();
        let fresh: Vec<Arc<str>> = fresh.into_iter().collect();
        let mut failed = HashMap::new();
        let begun = self.begin(topics, &fresh, &mut failed).await;
        if let (Err(error), [topic]) = (&begun, &*fresh) {
            failed.insert(topic.clone(), format!("{error:#}"));
        } else if begun.is_err() {
            // One of them may spoil it for all.
            for topic in &fresh {
                let one = std::slice::from_ref(topic);
                if let Err(error) = self.begin(topics, one, &mut failed).await {
                    failed.insert(topic.clone(), format!("{error:#}"));
                }
            }
        }
        for (topic, told) in wanted {
            let done = match topics.get_mut(&topic) {
                Some((partitions, users)) => {
                    *users += 1;
                    Ok(*partitions)
                }
                None => {
                    let text = failed.get(&topic).map_or("it was given up", String::as_str);
                    Err(anyhow::anyhow!("topic {topic} is not read: {text}"))
                }
            };
            if let Err(Ok(_)) = told.send(done) {
                self.without(topics, &topic);
            }
        }
    }

    /// Begins to read topics, for nobody yet.
    async fn begin(
        &self,
        topics: &mut Topics,
        fresh: &[Arc<str>],
        failed: &mut HashMap<Arc<str>, String>,
    ) -> anyhow::Result<()> {
        if fresh.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = fresh.iter().map(ToString::to_string).collect();
        let known = self.admin.all_partitions(&names).await?;
        let mut all = Vec::new();
        for topic in fresh {
            match known.get(&**topic) {
                Some(partitions) => all.extend((0..*partitions).map(|at| (topic.clone(), at))),
                None => {
                    failed.insert(topic.clone(), format!("topic {topic} does not exist"));
                }
            }
        }
        // Where the end is must be known before anything is written: the client finds it out only some time later.
        let ends = self.consumer.ends(&all).await?;
        let positions: Vec<_> = all
            .into_iter()
            .zip(ends)
            .map(|((topic, at), end)| (topic, at, Position::Offset(end)))
            .collect();
        self.consumer.assign(&positions)?;
        for topic in fresh {
            if let Some(partitions) = known.get(&**topic) {
                topics.insert(topic.clone(), (*partitions, 0));
            }
        }
        Ok(())
    }

    /// Reads a topic no more, once nobody else needs it.
    pub(crate) async fn leave(&self, topic: &Arc<str>) {
        let mut topics = self.topics.lock().await;
        self.without(&mut topics, topic);
    }

    /// One less needs a topic.
    fn without(&self, topics: &mut Topics, topic: &Arc<str>) {
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
