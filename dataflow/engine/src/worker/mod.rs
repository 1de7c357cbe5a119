//! The loop that owns all pipelines: one reader, one writer, no locks.
//!
//! Records of a partition are read once and given to the pipelines they concern; each ignores what is below its own
//! next offset. A pipeline that needs older ones makes the reader go back, and the others ignore what they had.
//!
//! A pipeline whose joins are full lets a partition wait: its cursor there stands still, the others go on, and when it
//! has room the reader goes back to where it stood. So nobody waits for another pipeline and nothing is buffered; the
//! price is that a stretch is read twice. Where it is alone the reader pauses, and nothing is.
mod command;
mod index;
mod news;
mod orders;
mod owned;
mod seats;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use seldon_flow::Emit;
use seldon_kafka::{Position, ReadError};
use seldon_records::{Record, header};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::writer::{Broken, Writer};
use index::Index;
use owned::Owned;

pub use command::{Command, Ended, Look, Read};
pub use owned::At;

/// How often progress is written when there is some.
const PERIOD: Duration = Duration::from_millis(250);
/// Every so many periods it is written for pipelines that only let others' records pass.
const ALL: u32 = 60;
/// Records taken before other things get their turn.
const TURN: usize = 256;
/// How long results and progress may take when the engine stops.
const FLUSH: Duration = Duration::from_secs(5);
/// Who has stood still for so long may have been replaced.
const STOOD_STILL: Duration = Duration::from_secs(2);

/// The worker.
pub struct Worker {
    context: Arc<Context>,
    writer: Writer,
    writing: JoinHandle<Result<(), Broken>>,
    pipelines: HashMap<Arc<str>, Owned>,
    index: Index,
    /// The next offset of each partition that is read.
    positions: HashMap<At, i64>,
    /// When the last record read of each was written.
    stamps: HashMap<At, i64>,
    paused: HashSet<At>,
    deadlines: BTreeSet<(i64, Arc<str>)>,
    /// Pipelines whose progress may have changed.
    dirty: HashSet<Arc<str>>,
    /// Pipelines with results since the last progress, in transactions.
    touched: HashSet<Arc<str>>,
    /// Pipelines with partitions that wait.
    waiting: HashSet<Arc<str>>,
    periods: u32,
    /// When it was last seen at work.
    at_work: Instant,
    /// After it had stood still: until this is answered others may own what it thinks is its own.
    doubt: Option<oneshot::Receiver<()>>,
}

impl Worker {
    /// Reads the progress topic from its beginning, and nothing else yet.
    pub fn new(
        context: Arc<Context>,
        (writer, writing): (Writer, JoinHandle<Result<(), Broken>>),
    ) -> anyhow::Result<Self> {
        let progress = (context.progress.clone(), 0, Position::Beginning);
        context.consumer.assign(&[progress])?;
        Ok(Self {
            context,
            writer,
            writing,
            pipelines: HashMap::new(),
            index: Index::default(),
            positions: HashMap::new(),
            stamps: HashMap::new(),
            paused: HashSet::new(),
            deadlines: BTreeSet::new(),
            dirty: HashSet::new(),
            touched: HashSet::new(),
            waiting: HashSet::new(),
            periods: 0,
            at_work: Instant::now(),
            doubt: None,
        })
    }

    /// Runs until `stop`, then releases all; or until it cannot go on.
    pub async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) -> Ended {
        let consumer = self.context.consumer.clone();
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let room = self.writer.has_room();
            let due = self.deadlines.first().map(|(at, _)| *at);
            let until_due = Duration::from_millis(
                u64::try_from(due.unwrap_or_default() - now_ms()).unwrap_or(0),
            );
            tokio::select! {
                biased;
                ended = &mut self.writing => {
                    let reason = match ended {
                        Ok(Err(broken)) => broken.to_string(),
                        Ok(Ok(())) => "it ended".to_owned(),
                        Err(error) => error.to_string(),
                    };
                    return Ended::Broken(format!("the writer cannot go on: {reason}"));
                }
                () = stop.cancelled() => {
                    let released = self.release().await;
                    return Ended::Stopped { released };
                }
                Some(command) = commands.recv() => {
                    self.wake();
                    self.command(command);
                }
                _ = period.tick() => {
                    self.wake();
                    self.period();
                }
                () = tokio::time::sleep(until_due), if due.is_some() => self.tick(),
                record = consumer.recv(), if room => {
                    let (mut next, mut left) = (Some(record), TURN);
                    while let Some(record) = next.take() {
                        match record {
                            Ok(record) => self.take(record),
                            Err(ReadError::Fatal(reason)) => return Ended::Broken(reason),
                            Err(error) => {
                                if matches!(error, ReadError::UnknownTopic(_)) {
                                    self.context.look.notify_one();
                                }
                                tracing::debug!(%error, "reading goes on later");
                                tokio::time::sleep(Duration::from_millis(20)).await;
                                break;
                            }
                        }
                        left -= 1;
                        // What is taken from the consumer here must be handled: it does not come again.
                        if left > 0 && self.writer.has_room() {
                            next = consumer.recv().now_or_never();
                        }
                    }
                }
                () = self.writer.less(), if !room || !self.waiting.is_empty() => self.go_on_if_room(),
            }
            self.transact();
        }
    }

    /// Looks at the clock before anything is done. A process that was stopped goes on with what it had in hand.
    fn wake(&mut self) {
        let now = Instant::now();
        let stood_still = now - std::mem::replace(&mut self.at_work, now);
        // In transactions a successor has fenced it.
        if stood_still < STOOD_STILL || self.context.exact || self.pipelines.is_empty() {
            return;
        }
        tracing::warn!(
            ?stood_still,
            "the engine stood still: what it writes is marked until it knows that it was not replaced"
        );
        let context = self.context.clone();
        let (record, seen) = context.ledger.barrier(&context.progress, &context.me);
        self.doubt = Some(seen);
        tokio::spawn(async move {
            while context.producer.send(record.clone()).await.is_err() {
                tokio::time::sleep(PERIOD).await;
            }
        });
    }

    fn is_in_doubt(&mut self) -> bool {
        let Some(seen) = &mut self.doubt else {
            return false;
        };
        let in_doubt = seen.try_recv() == Err(oneshot::error::TryRecvError::Empty);
        if !in_doubt {
            self.doubt = None;
        }
        in_doubt
    }

    fn take(&mut self, record: Record) {
        self.wake();
        if record.topic == self.context.progress {
            return self.progress_read(&record);
        }
        let at = (record.topic.clone(), record.partition);
        let Some(position) = self.positions.get_mut(&at) else {
            return;
        };
        if record.offset < *position {
            // The broker did not know the position any more. What is younger than what was there is of a topic that was
            // made again; else its end was lost, and what is left of it was seen.
            let last = self.stamps.get(&at);
            if last.is_none_or(|last| record.timestamp_ms >= *last) {
                self.begin_anew(&at.0);
            }
            return;
        }
        *position = record.offset + 1;
        match self.stamps.get_mut(&at) {
            Some(last) => *last = record.timestamp_ms.max(*last),
            None => drop(self.stamps.insert(at, record.timestamp_ms)),
        }
        let readers = self.index.of(&record).to_vec();
        let now = now_ms();
        for pipeline in readers {
            if let Some(owned) = self.pipelines.get_mut(&pipeline) {
                let emits = owned.take(record.clone(), now, self.context.exact);
                self.dirty.insert(pipeline.clone());
                self.handled(&pipeline, emits);
            }
        }
    }

    fn tick(&mut self) {
        self.wake();
        let now = now_ms();
        while let Some((at, pipeline)) = self.deadlines.first().cloned() {
            if at > now {
                return;
            }
            self.deadlines.pop_first();
            let Some(owned) = self.pipelines.get_mut(&pipeline) else {
                continue;
            };
            owned.deadline = None;
            let emits = owned.flow.tick(now);
            self.dirty.insert(pipeline.clone());
            self.handled(&pipeline, emits);
            // A deadline that is still due must not make this a loop without end.
            if self
                .pipelines
                .get(&pipeline)
                .and_then(|o| o.deadline)
                .is_some_and(|at| at <= now)
            {
                return;
            }
        }
    }

    /// After a pipeline had its turn: its results, its next deadline, and partitions that must wait.
    fn handled(&mut self, pipeline: &Arc<str>, mut emits: Vec<Emit>) {
        let in_doubt = self.is_in_doubt();
        let Some(owned) = self.pipelines.get_mut(pipeline) else {
            return;
        };
        let mut full: Vec<Arc<str>> = Vec::new();
        if !emits.is_empty() {
            let is_unsure = owned.unsure_until > now_ms();
            for emit in &mut emits {
                let record = &mut emit.record;
                record.partition = self.context.partitions.fit(&record.topic, record.partition);
                if in_doubt || is_unsure {
                    record.headers.set(header::REPEAT, "1");
                }
                if self.writer.is_full(&record.topic) && !full.contains(&record.topic) {
                    full.push(record.topic.clone());
                }
            }
            self.writer.results(emits, &owned.on_way);
            self.touched.insert(pipeline.clone());
        }
        let deadline = owned.flow.next_deadline();
        if deadline != owned.deadline {
            if let Some(former) = std::mem::replace(&mut owned.deadline, deadline) {
                self.deadlines.remove(&(former, pipeline.clone()));
            }
            if let Some(deadline) = deadline {
                self.deadlines.insert((deadline, pipeline.clone()));
            }
        }
        let paused = owned.flow.paused();
        if !paused.is_empty() {
            self.wait(pipeline, paused);
        }
        if !full.is_empty() {
            self.wait_for_room(pipeline, full);
        }
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}
