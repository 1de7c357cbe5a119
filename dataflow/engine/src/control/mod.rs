//! Carries out the scheduler's orders: a pipeline's version comes or goes. The later order for one wins.
mod topics;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use seldon_proto::chainer::{
    PipelineUpdateMessage, PipelineUpdateStatusMessage, pipeline_update_message::PipelineOperation,
};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use crate::context::Context;
use crate::ledger::{Place, outgoing};
use crate::takeover::{self, Versions};
use crate::worker::{Command, Look};

/// How long what is in flight in a version may take after the version was told to end: a model's time, and a bit.
const PATIENCE: Duration = Duration::from_secs(130);
/// How long a version stays at least when another goes on: for what entered it just now.
const LINGER: Duration = Duration::from_secs(1);
/// How often it is looked whether a version is idle.
const LOOK: Duration = Duration::from_millis(50);
/// Topics are not looked at more often, whatever is missed.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);
/// The longest pause before an order that failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Takes orders one after the other and carries them out beside each other.
pub struct Control {
    parts: Arc<Parts>,
    tasks: JoinSet<()>,
    running: HashMap<(Arc<str>, u32), Running>,
}

struct Running {
    task: AbortHandle,
    ended: Ended,
}

/// Versions that were told to end since an order that brings them came.
type Ended = Arc<StdMutex<HashSet<u32>>>;

/// What an order's task needs.
pub(super) struct Parts {
    pub(super) context: Arc<Context>,
    pub(super) worker: mpsc::Sender<Command>,
    acks: mpsc::UnboundedSender<PipelineUpdateStatusMessage>,
    /// Orders at work with Kafka at a time.
    permits: Semaphore,
    join_window: Option<u32>,
    /// Under which each pipeline's ownership changes.
    locks: StdMutex<HashMap<Arc<str>, Arc<Mutex<()>>>>,
}

impl Control {
    /// `permits`: how many orders are carried out at a time; `join_window`: for steps that name none, in milliseconds.
    pub fn new(
        context: Arc<Context>,
        worker: mpsc::Sender<Command>,
        acks: mpsc::UnboundedSender<PipelineUpdateStatusMessage>,
        permits: usize,
        join_window: Option<u32>,
    ) -> Self {
        Self {
            parts: Arc::new(Parts {
                context,
                worker,
                acks,
                permits: Semaphore::new(permits.max(1)),
                join_window,
                locks: StdMutex::default(),
            }),
            tasks: JoinSet::new(),
            running: HashMap::new(),
        }
    }

    /// Starts on an order.
    pub fn order(&mut self, update: PipelineUpdateMessage) {
        while self.tasks.try_join_next().is_some() {}
        self.running
            .retain(|_, running| !running.task.is_finished());
        let pipeline: Arc<str> = update.pipeline.as_str().into();
        let lock = self.parts.lock(&pipeline);
        let key = (pipeline.clone(), update.version);
        let ends = update.op() != PipelineOperation::Create;
        for (of, running) in &self.running {
            if of.0 == pipeline && of.1 != update.version {
                let mut ended = locked(&running.ended);
                if ends {
                    ended.insert(update.version);
                } else {
                    ended.remove(&update.version);
                }
            }
        }
        let ended = Ended::default();
        let op = update.op();
        let order = Order {
            parts: self.parts.clone(),
            pipeline: pipeline.clone(),
            update,
            lock,
            ended: ended.clone(),
        };
        let task = match op {
            PipelineOperation::Create => self.tasks.spawn(async move { order.create().await }),
            PipelineOperation::Delete | PipelineOperation::Rebalance => {
                self.tasks.spawn(async move { order.delete().await })
            }
            op => return tracing::warn!(%pipeline, ?op, "the scheduler sent an order that is none"),
        };
        if let Some(former) = self.running.insert(key, Running { task, ended }) {
            former.task.abort();
        }
    }

    /// Looks for partitions that topics have got, and for topics that are gone, every so often and when something is
    /// missed, until the engine ends.
    pub fn watch_partitions(&self, period: Duration) -> impl Future<Output = ()> + use<> {
        let parts = self.parts.clone();
        async move {
            let context = &parts.context;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(period) => {}
                    () = context.look.notified() => {}
                }
                if let Err(error) = parts.look_at_topics().await {
                    tracing::debug!("topics are looked at again later: {error:#}");
                }
                tokio::time::sleep(SHORTEST_PERIOD).await;
            }
        }
    }
}

struct Order {
    parts: Arc<Parts>,
    pipeline: Arc<str>,
    update: PipelineUpdateMessage,
    lock: Arc<Mutex<()>>,
    ended: Ended,
}

impl Order {
    async fn create(self) {
        let mut update = self.update.clone();
        if let Some(window) = self.parts.join_window {
            let others = update
                .others
                .iter_mut()
                .flat_map(|other| &mut other.updates);
            for step in update.updates.iter_mut().chain(others) {
                step.join_window_ms.get_or_insert(window);
            }
        }
        if let Err(error) = Versions::of(&self.parts.context, update.clone()) {
            return self.answer(false, format!("{error:#}"));
        }
        let mut pause = Duration::from_millis(200);
        let mut told = false;
        loop {
            match self.try_create(update.clone()).await {
                Ok(()) => return self.answer(true, String::new()),
                Err(error) => {
                    // Tried again: when it succeeds the scheduler hears of it.
                    tracing::warn!(pipeline = %self.pipeline, "the pipeline cannot run yet: {error:#}");
                    if !std::mem::replace(&mut told, true) {
                        self.answer(false, format!("{error:#}"));
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_create(&self, mut update: PipelineUpdateMessage) -> anyhow::Result<()> {
        let parts = &self.parts;
        let _lock = self.lock.lock().await;
        {
            // It may have failed for long: what has ended meanwhile does not come back with it.
            let ended = locked(&self.ended);
            update
                .others
                .retain(|other| !ended.contains(&other.version));
        }
        let versions = Versions::of(&parts.context, update)?;
        let update = Box::new(versions.updates[0].clone());
        let look: Look = parts.ask(|answer| Command::Look { update, answer }).await?;
        if look.runs {
            return Ok(());
        }
        let _permit = parts.permits.acquire().await?;
        takeover::prepare(&parts.context, &versions.topics).await?;
        let (pipeline, reads) = (&self.pipeline, &versions.reads);
        let claimed = takeover::claim(&parts.context, pipeline, reads, &look.places).await?;
        let updates = versions.updates.clone();
        let installed = parts
            .ask(|answer| Command::Install {
                updates,
                claimed,
                answer,
            })
            .await?;
        installed.map_err(anyhow::Error::msg)?;
        tracing::info!(pipeline = %self.pipeline, version = self.update.version, "pipeline runs");
        Ok(())
    }

    async fn delete(self) {
        match self.try_delete().await {
            Ok(()) => self.answer(true, String::new()),
            Err(error) => self.answer(false, format!("{error:#}")),
        }
    }

    async fn try_delete(&self) -> anyhow::Result<()> {
        let (parts, version) = (&self.parts, self.update.version);
        let pipeline = || self.pipeline.clone();
        // Another engine goes on with what is in flight.
        let at_once = self.update.op() == PipelineOperation::Rebalance;
        let retired = {
            let _lock = self.lock.lock().await;
            let pipeline = pipeline();
            parts
                .ask(|answer| Command::Retire {
                    pipeline,
                    version,
                    at_once,
                    answer,
                })
                .await?
        };
        if let Some(last) = retired {
            let idle = async {
                if !last {
                    tokio::time::sleep(LINGER).await;
                }
                loop {
                    let pipeline = pipeline();
                    let ask = parts.ask(|answer| Command::Idle {
                        pipeline,
                        version,
                        answer,
                    });
                    if ask.await.unwrap_or(true) {
                        return;
                    }
                    tokio::time::sleep(LOOK).await;
                }
            };
            if tokio::time::timeout(PATIENCE, idle).await.is_err() {
                tracing::warn!(
                    pipeline = %self.pipeline, version,
                    "requests are still in flight in a version after {PATIENCE:?}: it ends without them"
                );
            }
            let _lock = self.lock.lock().await;
            let pipeline = pipeline();
            parts
                .ask(|answer| Command::Remove {
                    pipeline,
                    version,
                    answer,
                })
                .await?;
            tracing::info!(pipeline = %self.pipeline, version, "version ended");
        }
        self.clean().await
    }

    /// Deletes the topics that the order names, and what is known of the progress in them.
    async fn clean(&self) -> anyhow::Result<()> {
        let context = &self.parts.context;
        let mut topics: Vec<String> = Vec::new();
        for update in &self.update.updates {
            let all = update
                .sources
                .iter()
                .chain(&update.triggers)
                .chain(&update.sink);
            topics.extend(all.map(|topic| topic.topic_name.clone()));
        }
        topics.sort_unstable();
        topics.dedup();
        topics.retain(|topic| !topic.is_empty());
        if topics.is_empty() {
            return Ok(());
        }
        takeover::barrier(context).await?;
        let known = context.ledger.of(&self.pipeline);
        let places = known.into_keys().map(|(topic, partition)| Place {
            pipeline: self.pipeline.clone(),
            topic,
            partition,
        });
        let records: Vec<_> = places
            .map(|place| outgoing(&context.progress, &place, None))
            .collect();
        self.parts
            .ask(|answer| Command::Write { records, answer })
            .await?;
        for topic in &topics {
            context.partitions.forget(topic);
        }
        context.admin.delete(&topics).await
    }

    fn answer(&self, success: bool, reason: String) {
        let update = PipelineUpdateMessage {
            // The scheduler knows what it had sent.
            updates: Vec::new(),
            others: Vec::new(),
            ..self.update.clone()
        };
        let _ = self.parts.acks.send(PipelineUpdateStatusMessage {
            update: Some(update),
            success,
            reason,
        });
    }
}

impl Parts {
    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> anyhow::Result<T> {
        let (answer, answered) = oneshot::channel();
        let ended = || anyhow::anyhow!("the engine ends");
        self.worker
            .send(command(answer))
            .await
            .map_err(|_| ended())?;
        answered.await.map_err(|_| ended())
    }

    /// The lock under which a pipeline's ownership changes.
    pub(super) fn lock(&self, pipeline: &Arc<str>) -> Arc<Mutex<()>> {
        let mut locks = locked(&self.locks);
        if locks.len() > 1_000 {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        locks.entry(pipeline.clone()).or_default().clone()
    }
}

fn locked<T>(of: &StdMutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
