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
mod owned;
mod seats;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use seldon_flow::{Emit, Flow, Limits};
use seldon_kafka::{Position, ReadError};
use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::{Outgoing, Record};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::ledger::{Entry, News, Place, outgoing};
use crate::writer::{Broken, Writer};
use index::Index;
use owned::{Owned, Spot, Version};

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

/// The worker.
pub struct Worker {
    context: Arc<Context>,
    writer: Writer,
    writing: JoinHandle<Result<(), Broken>>,
    pipelines: HashMap<Arc<str>, Owned>,
    index: Index,
    /// The next offset of each partition that is read.
    positions: HashMap<At, i64>,
    paused: HashSet<At>,
    deadlines: BTreeSet<(i64, Arc<str>)>,
    /// Pipelines whose progress may have changed.
    dirty: HashSet<Arc<str>>,
    /// Pipelines with results since the last progress, in transactions.
    touched: HashSet<Arc<str>>,
    /// Pipelines with partitions that wait.
    waiting: HashSet<Arc<str>>,
    periods: u32,
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
            paused: HashSet::new(),
            deadlines: BTreeSet::new(),
            dirty: HashSet::new(),
            touched: HashSet::new(),
            waiting: HashSet::new(),
            periods: 0,
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
                    self.release().await;
                    return Ended::Stopped;
                }
                Some(command) = commands.recv() => self.command(command),
                _ = period.tick() => self.period(),
                () = tokio::time::sleep(until_due), if due.is_some() => self.tick(),
                record = consumer.recv(), if room => {
                    let (mut next, mut left) = (Some(record), TURN);
                    while let Some(record) = next.take() {
                        match record {
                            Ok(record) => self.take(record),
                            Err(ReadError::Fatal(reason)) => return Ended::Broken(reason),
                            Err(error) => {
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
                () = self.writer.less(), if !room => {}
            }
            self.transact();
        }
    }

    fn take(&mut self, record: Record) {
        if record.topic == self.context.progress {
            return self.progress_read(&record);
        }
        let at = (record.topic.clone(), record.partition);
        match self.positions.get_mut(&at) {
            Some(position) if record.offset >= *position => *position = record.offset + 1,
            _ => return,
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
        if !emits.is_empty() {
            for emit in &mut emits {
                let record = &mut emit.record;
                record.partition = self.context.partitions.fit(&record.topic, record.partition);
            }
            self.writer.results(emits);
            self.touched.insert(pipeline.clone());
        }
        let Some(owned) = self.pipelines.get_mut(pipeline) else {
            return;
        };
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
    }

    /// In transactions: progress of all that had results, which ends a group.
    fn transact(&mut self) {
        if !self.context.exact || self.touched.is_empty() {
            return;
        }
        let touched = std::mem::take(&mut self.touched);
        let news = self.news(&touched, false);
        // Even without news: results must end in a group.
        drop(self.writer.progress(news));
    }

    fn news(&mut self, of: &HashSet<Arc<str>>, released: bool) -> Vec<Outgoing> {
        let context = &self.context;
        let positions = &self.positions;
        let mut records = Vec::new();
        for pipeline in of {
            if let Some(owned) = self.pipelines.get_mut(pipeline) {
                let news = owned.progress(|at| positions.get(at).copied(), context.exact, released);
                let written = news
                    .iter()
                    .map(|(place, entry)| outgoing(&context.progress, place, Some(entry)));
                records.extend(written);
            }
        }
        context.metrics.progress(records.len());
        records
    }

    fn period(&mut self) {
        self.go_on();
        self.periods = (self.periods + 1) % ALL;
        let of: HashSet<Arc<str>> = if self.periods == 0 {
            self.pipelines.keys().cloned().collect()
        } else {
            std::mem::take(&mut self.dirty)
        };
        let records = self.news(&of, false);
        if !records.is_empty() {
            drop(self.writer.progress(records));
        }
        let metrics = &self.context.metrics;
        metrics.state(self.pipelines.len(), self.writer.on_way());
        for pipeline in of {
            let Some(owned) = self.pipelines.get_mut(&pipeline) else {
                continue;
            };
            let (counts, held) = (owned.flow.counts(), owned.held());
            metrics.count(&pipeline, &owned.counted, &counts);
            metrics.held(&pipeline, held);
            owned.counted = counts;
            if held > 0 {
                self.dirty.insert(pipeline);
            }
        }
        self.context.beat();
    }

    fn progress_read(&mut self, record: &Record) {
        match self.context.ledger.apply(&self.context.me, record) {
            News::None => {}
            News::Lost(place) => {
                if self.pipelines.contains_key(&place.pipeline) {
                    tracing::warn!(pipeline = %place.pipeline, "another engine has taken this pipeline over");
                    self.forget(&place.pipeline);
                }
            }
            News::Overwritten(place) => self.write_again(&place),
        }
    }

    /// A former owner wrote after us: what we had written comes again.
    fn write_again(&mut self, place: &Place) {
        let at = (place.topic.clone(), place.partition);
        let Some(owned) = self.pipelines.get_mut(&place.pipeline) else {
            return;
        };
        if let Some(spot) = owned.spots.get(&at) {
            let record = outgoing(&self.context.progress, place, Some(&spot.written));
            drop(self.writer.progress(vec![record]));
        }
    }

    /// A pipeline without its readings.
    fn forget(&mut self, pipeline: &Arc<str>) -> Option<Owned> {
        let owned = self.pipelines.remove(pipeline)?;
        if let Some(deadline) = owned.deadline {
            self.deadlines.remove(&(deadline, pipeline.clone()));
        }
        self.index
            .put(pipeline, HashSet::new(), &self.context.names);
        self.unread(owned.spots.keys());
        self.context.metrics.forget(pipeline);
        self.waiting.remove(pipeline);
        Some(owned)
    }

    /// Stops reading what nobody wants.
    fn unread<'a>(&mut self, places: impl Iterator<Item = &'a At>) {
        let gone: Vec<At> = places
            .filter(|at| self.index.readers(&at.0).next().is_none())
            .filter(|at| self.positions.contains_key(*at))
            .cloned()
            .collect();
        for at in &gone {
            self.positions.remove(at);
            self.paused.remove(at);
        }
        if let Err(error) = self.context.consumer.unassign(&gone) {
            tracing::warn!("partitions are still read: {error:#}");
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Look { update, answer } => {
                let _ = answer.send(self.look(&update));
            }
            Command::Install {
                update,
                starts,
                answer,
            } => {
                let _ = answer.send(self.install(*update, starts));
            }
            Command::Retire {
                pipeline,
                version,
                answer,
            } => {
                let _ = answer.send(self.retire(&pipeline, version));
            }
            Command::Idle {
                pipeline,
                version,
                answer,
            } => {
                let owned = self.pipelines.get_mut(&pipeline);
                let _ = answer.send(owned.is_none_or(|owned| owned.is_idle(version)));
            }
            Command::Remove {
                pipeline,
                version,
                answer,
            } => self.remove(&pipeline, version, answer),
            Command::Write { records, answer } => {
                let written = self.writer.progress(records);
                pass_on(written, answer);
            }
            Command::Grow { pipeline, starts } => {
                if self.pipelines.contains_key(&pipeline) {
                    self.start_at(&pipeline, starts);
                }
            }
            Command::Survey { answer } => {
                let _ = answer.send(self.survey());
            }
        }
    }

    fn look(&self, update: &PipelineUpdateMessage) -> Look {
        let Some(owned) = self.pipelines.get(update.pipeline.as_str()) else {
            return Look::default();
        };
        let version = owned.versions.get(&update.version);
        let runs = version.is_some_and(|v| !v.retired && v.update.same(update)) && !owned.closing;
        Look {
            runs,
            places: owned.spots.keys().cloned().collect(),
        }
    }

    fn install(
        &mut self,
        update: PipelineUpdateMessage,
        starts: Vec<(At, Entry)>,
    ) -> Result<(), String> {
        let pipeline: Arc<str> = update.pipeline.as_str().into();
        let names = &self.context.names;
        let owned = self.pipelines.entry(pipeline.clone()).or_insert_with(|| {
            let flow = Flow::new(&pipeline, names.clone(), Limits::default());
            Owned::new(pipeline.clone(), flow)
        });
        if let Err(error) = owned.flow.put(&update) {
            if owned.versions.is_empty() {
                self.pipelines.remove(&pipeline);
            }
            return Err(error.to_string());
        }
        let version = Version {
            retired: false,
            update,
        };
        owned.versions.insert(version.update.version, version);
        if std::mem::take(&mut owned.closing) {
            self.waiting.insert(pipeline.clone());
        }
        let reads = owned.survey(names);
        self.index.put(&pipeline, reads, names);
        self.start_at(&pipeline, starts);
        self.go_on();
        self.handled(&pipeline, Vec::new());
        Ok(())
    }

    fn start_at(&mut self, pipeline: &Arc<str>, starts: Vec<(At, Entry)>) {
        let mut fresh = Vec::new();
        if let Some(owned) = self.pipelines.get_mut(pipeline) {
            for (at, entry) in starts {
                let floor = entry.at.offset;
                if !owned.spots.contains_key(&at) {
                    owned.spots.insert(at.clone(), Spot::new(entry));
                    fresh.push((at, floor));
                }
            }
        }
        for (at, floor) in fresh {
            self.seat(&at, floor);
        }
    }

    fn retire(&mut self, pipeline: &Arc<str>, version: u32) -> Option<bool> {
        let owned = self.pipelines.get_mut(pipeline)?;
        owned.versions.get_mut(&version)?.retired = true;
        let last = owned.versions.values().all(|version| version.retired);
        if last {
            // What enters from now on is the next owner's, so it does not even pass.
            owned.closing = true;
            for (at, spot) in &mut owned.spots {
                if owned.entries.contains(&at.0) && !spot.cursor.is_suspended() {
                    if let Some(position) = self.positions.get(at) {
                        spot.cursor.passed(*position);
                    }
                    spot.cursor.suspend();
                }
            }
        }
        owned.flow.retire(version);
        self.dirty.insert(pipeline.clone());
        self.handled(pipeline, Vec::new());
        Some(last)
    }

    fn remove(&mut self, pipeline: &Arc<str>, version: u32, answer: oneshot::Sender<()>) {
        let Some(owned) = self.pipelines.get_mut(pipeline) else {
            let _ = answer.send(());
            return;
        };
        owned.versions.remove(&version);
        let records = if owned.versions.is_empty() {
            let of = HashSet::from([pipeline.clone()]);
            let records = self.news(&of, true);
            self.forget(pipeline);
            records
        } else {
            self.shrink(pipeline)
        };
        let written = self.writer.progress(records);
        pass_on(written, answer);
    }

    /// Releases what no version of a pipeline reads any more.
    fn shrink(&mut self, pipeline: &Arc<str>) -> Vec<Outgoing> {
        let names = &self.context.names;
        let Some(owned) = self.pipelines.get_mut(pipeline) else {
            return Vec::new();
        };
        let reads = owned.survey(names);
        let topics: HashSet<Arc<str>> = reads.iter().map(|(topic, _)| topic.clone()).collect();
        self.index.put(pipeline, reads, names);
        let gone: Vec<At> = owned
            .spots
            .keys()
            .filter(|at| !topics.contains(&at.0))
            .cloned()
            .collect();
        // Nobody will want to know how far it had come.
        let mut records = Vec::new();
        for at in &gone {
            owned.spots.remove(at);
            let place = Place {
                pipeline: pipeline.clone(),
                topic: at.0.clone(),
                partition: at.1,
            };
            records.push(outgoing(&self.context.progress, &place, None));
        }
        self.unread(gone.iter());
        records
    }

    fn survey(&self) -> Vec<Read> {
        let mut reads: HashMap<Arc<str>, HashMap<i32, i64>> = HashMap::new();
        for ((topic, partition), position) in &self.positions {
            let positions = reads.entry(topic.clone()).or_default();
            positions.insert(*partition, *position);
        }
        let mut read = |topic: &Arc<str>| Read {
            topic: topic.clone(),
            readers: self.index.readers(topic).cloned().collect(),
            positions: reads.remove(topic).unwrap_or_default(),
        };
        self.index.topics().map(&mut read).collect()
    }

    /// At the end: what is on its way is written, and all is given up for the next owner.
    async fn release(&mut self) {
        let _ = tokio::time::timeout(FLUSH, self.writer.drained()).await;
        let all: HashSet<Arc<str>> = self.pipelines.keys().cloned().collect();
        if all.is_empty() {
            return;
        }
        let records = self.news(&all, true);
        let written = self.writer.progress(records);
        match tokio::time::timeout(FLUSH, written).await {
            Ok(_) => tracing::info!(pipelines = all.len(), "pipelines released"),
            Err(_) => tracing::warn!("pipelines could not be released: what follows is repeated"),
        }
    }
}

/// Whether two orders mean the same: all but when and for which stream.
trait Same {
    fn same(&self, other: &Self) -> bool;
}

impl Same for PipelineUpdateMessage {
    fn same(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.updates == other.updates
            && self.allow_cycles == other.allow_cycles
            && self.max_step_revisits == other.max_step_revisits
    }
}

fn pass_on(written: oneshot::Receiver<()>, answer: oneshot::Sender<()>) {
    tokio::spawn(async move {
        if written.await.is_ok() {
            let _ = answer.send(());
        }
    });
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}
