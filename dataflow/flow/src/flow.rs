//! A pipeline: which version and steps a record is for.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::{Identity, Names, Record, Topic, header};

use crate::{
    BadPipeline, Counts, Emit, Input, Limits,
    arrival::{self, Arrival},
    graph::{Graph, Sink},
    held::Held,
    joins::JoinKey,
    live::Live,
    remembered::{self, Remembered, Seen},
    steps,
    timers::Timers,
    waits::Place,
};

/// One pipeline, all its live versions.
///
/// What it is told depends on nothing but the calls: the same calls give the same records. A record that was handled
/// is known for a while and dropped if it comes again, so whoever could not write what followed from one must write
/// that again, not hand the record in again.
#[derive(Debug)]
pub struct Flow {
    pub(crate) pipeline: Arc<str>,
    pub(crate) names: Names,
    pub(crate) limits: Limits,
    pub(crate) errors: Arc<str>,
    pub(crate) versions: BTreeMap<u32, Live>,
    pub(crate) windows: Timers<Window>,
    pub(crate) runs: Timers<(u32, Identity)>,
    pub(crate) held: Held,
    pub(crate) counts: Counts,
    pub(crate) remembered: Remembered,
}

/// What has a time to wait.
#[derive(Debug)]
pub(crate) enum Window {
    Join(u32, usize, JoinKey),
    Constants(u32, usize, Identity),
    Batch(u32, usize),
}

impl Flow {
    /// Without any version yet.
    pub fn new(pipeline: &str, names: Names, limits: Limits) -> Self {
        Self {
            pipeline: pipeline.into(),
            errors: names.errors().into(),
            names,
            versions: BTreeMap::new(),
            windows: Timers::new(),
            runs: Timers::new(),
            held: Held::default(),
            counts: Counts::default(),
            remembered: Remembered::new(limits.remembered, limits.remembered_ms),
            limits,
        }
    }

    /// Adds a version; what enters goes to the newest from then on. The same order again changes nothing, but that a
    /// retired version is not retired any more.
    pub fn put(&mut self, update: &PipelineUpdateMessage) -> Result<(), BadPipeline> {
        let bad = |reason: String| BadPipeline {
            pipeline: update.pipeline.clone(),
            version: update.version,
            reason,
        };
        if *update.pipeline != *self.pipeline {
            return Err(bad(format!("it was sent for pipeline {:?}", self.pipeline)));
        }
        let graph = Graph::compile(update, &self.names)?;
        match self.versions.get_mut(&update.version) {
            Some(live) if *live.graph == graph => {
                (live.is_retired, live.is_removed) = (false, false);
            }
            Some(live) if !live.is_empty() => {
                return Err(bad(
                    "it is live with other steps and holds records: delete it first".to_owned(),
                ));
            }
            _ => {
                self.versions.insert(update.version, Live::new(graph));
            }
        }
        Ok(())
    }

    /// Lets a version end: what is in flight in it goes on, nothing new enters it.
    pub fn retire(&mut self, version: u32) {
        if let Some(live) = self.versions.get_mut(&version) {
            live.is_retired = true;
        }
    }

    /// A version has ended: what names it to enter it hears that it is gone. Records of steps that come late still go on.
    pub fn remove(&mut self, version: u32) {
        if let Some(live) = self.versions.get_mut(&version) {
            (live.is_retired, live.is_removed) = (true, true);
        }
    }

    /// Whether a version is retired and nothing of it is in flight any more (or it was never there): nothing waits
    /// in it, and all that entered it was answered or has no caller any more.
    pub fn idle(&self, version: u32) -> bool {
        self.versions.get(&version).is_none_or(Live::is_idle)
    }

    /// All topics it reads, the errors topic too.
    pub fn topics(&self) -> BTreeSet<Arc<str>> {
        let live = self.versions.values().filter(|live| !live.is_idle());
        let topics = live.flat_map(|live| live.graph.topics().cloned());
        topics.chain([self.errors.clone()]).collect()
    }

    /// Takes a record.
    pub fn handle(&mut self, input: Arc<Input>, now_ms: i64) -> Vec<Emit> {
        self.handle_entering(input, None, None, now_ms)
    }

    /// Takes a record, as above. `enters`: if it enters, the version that it enters or entered before; else the newest.
    /// `places`: another process held it, so it goes where it waited and nowhere else, see [`Flow::waits`].
    pub fn handle_entering(
        &mut self,
        input: Arc<Input>,
        enters: Option<u32>,
        places: Option<&[Place]>,
        now_ms: i64,
    ) -> Vec<Emit> {
        let mut out = Vec::new();
        self.expire(now_ms, &mut out);
        self.counts.handled += 1;
        self.take(&input, enters, places, now_ms, &mut out);
        while self.held.check(&self.limits) && self.give_up_oldest(now_ms, &mut out) {}
        self.counts.emitted += out.len() as u64;
        out
    }

    /// Lets time pass.
    pub fn tick(&mut self, now_ms: i64) -> Vec<Emit> {
        let mut out = Vec::new();
        self.expire(now_ms, &mut out);
        self.held.check(&self.limits);
        self.counts.emitted += out.len() as u64;
        out
    }

    /// How many records are remembered.
    pub fn remembered(&self) -> usize {
        self.remembered.len()
    }

    /// Forgets the oldest of what is remembered beyond so many records.
    pub fn remember_at_most(&mut self, records: usize) {
        self.remembered.shrink(records);
    }

    /// Forgets what was handled: a topic was made again, and the places of its records name others.
    pub fn forget_handled(&mut self) {
        self.remembered.clear();
    }

    /// When [`Flow::tick`] is due.
    pub fn next_deadline(&self) -> Option<i64> {
        let is_ending = self.versions.values().any(|live| live.is_retired);
        let runs = if is_ending { self.runs.first() } else { None };
        self.windows.first().into_iter().chain(runs).min()
    }

    /// Topics and partitions that must wait because joins hold all they may: the side that is ahead, never the
    /// missing one.
    pub fn paused(&self) -> BTreeSet<(Arc<str>, i32)> {
        self.held.ahead()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Records that wait in joins and batches.
    pub fn waiting(&self) -> usize {
        self.versions.values().map(|live| live.waiting).sum()
    }

    /// Whether nothing is kept but the marks of what was handled.
    pub fn is_empty(&self) -> bool {
        self.versions.values().all(Live::is_empty)
            && self.held.records() == 0
            && self.windows.first().is_none()
            && self.runs.first().is_none()
    }

    fn take(
        &mut self,
        input: &Arc<Input>,
        enters: Option<u32>,
        places: Option<&[Place]>,
        now_ms: i64,
        out: &mut Vec<Emit>,
    ) {
        let record = &input.record;
        let topic = self.names.parse(&record.topic);
        let header = record.headers.text(header::PIPELINE);
        let pipeline = match (header, &topic) {
            (Some(pipeline), _) => pipeline,
            // A foreign producer writes to a pipeline's topic without saying so again.
            (None, Some(Topic::PipelineInputs(name) | Topic::PipelineOutputs(name))) => name,
            _ => "",
        };
        let is_own = *pipeline == *self.pipeline;
        if topic == Some(Topic::Errors) {
            if is_own {
                self.forward(input, now_ms, out);
            } else {
                self.counts.foreign += 1;
            }
            return;
        }
        let is_entry = !is_own
            || topic
                .as_ref()
                .is_some_and(|topic| *topic == Topic::PipelineInputs(pipeline.to_owned()));
        let version = match self.version_for(record, (is_own, is_entry), enters, now_ms) {
            Ok(version) => version,
            Err(said) => return self.refuse(input, said, topic.as_ref(), is_own, out),
        };
        let Some(live) = self.versions.get_mut(&version) else {
            return;
        };
        live.last_ms = live.last_ms.max(now_ms);
        let is_under_way = is_own && now_ms < live.inherited_until;
        let graph = live.graph.clone();
        let readers = graph
            .readers
            .get(&record.topic)
            .map_or(&[][..], Vec::as_slice);
        let reads =
            |(step, port): &&(usize, usize)| graph.steps[*step].ports[*port].pipeline == pipeline;
        if !readers.iter().any(|reader| reads(&reader)) {
            self.counts.foreign += 1;
            return;
        }
        if record.headers.has(header::ERROR) {
            self.counts.foreign_errors += 1;
            return;
        }
        let arrivals = match arrival::open(input, topic.as_ref()) {
            Ok(arrivals) => arrivals,
            Err(failures) => {
                for failure in failures {
                    self.fail(Some(version), failure, vec![input.clone()], !is_own, out);
                }
                return;
            }
        };
        for mut arrival in arrivals {
            // What engines write names its version.
            let ours = [header::REPEAT, header::PIPELINE_VERSION];
            let may_be_sent_again =
                is_own && is_entry && !ours.iter().any(|name| record.headers.has(name));
            if !self.is_news(&mut arrival, may_be_sent_again, now_ms) {
                self.counts.repeats += 1;
                continue;
            }
            let arrival = Arc::new(arrival);
            if is_own && is_entry || is_under_way {
                self.begin(version, &arrival, now_ms);
            }
            for (step, port) in readers.iter().filter(reads) {
                let at = &graph.steps[*step];
                // That a side will not come is told again: joins that wait would wait for it.
                let waited = |places: &[Place]| {
                    places.contains(&at.place(&arrival)) || !steps::finds(at, *port, &arrival)
                };
                if places.is_none_or(waited) {
                    self.arrive((version, *step), *port, &arrival, now_ms, out);
                }
            }
        }
    }

    /// Whether it was not handled before. `may_be_sent_again`: if another record of the same identity was, its producer
    /// has asked again, which is a request of its own; all that follows from it is told from what follows from the first.
    fn is_news(&mut self, arrival: &mut Arrival, may_be_sent_again: bool, now_ms: i64) -> bool {
        let cause = arrival.cause.clone();
        let mark = remembered::mark(&cause.record, arrival);
        match self.remembered.add(mark, &cause.record, now_ms) {
            Seen::Never => true,
            Seen::Elsewhere if may_be_sent_again => {
                arrival
                    .visits
                    .again(cause.record.partition, cause.record.offset);
                arrival.visits.write(&mut arrival.headers);
                let mark = remembered::mark(&cause.record, arrival);
                self.remembered.add(mark, &cause.record, now_ms) == Seen::Never
            }
            Seen::Here | Seen::Elsewhere => false,
        }
    }

    /// The version that a record is for; else the number that it names, if it names one.
    ///
    /// What comes by the pipeline's inputs names one where a step of that version wrote it, to lead others' records in.
    /// Else its producer named it, who has no say in it.
    fn version_for(
        &self,
        record: &Record,
        (is_own, is_entry): (bool, bool),
        enters: Option<u32>,
        now_ms: i64,
    ) -> Result<u32, Option<u32>> {
        let named = record
            .headers
            .text(header::PIPELINE_VERSION)
            .filter(|_| is_own);
        let named: Option<u32> = named.and_then(|version| version.parse().ok());
        let mut versions = self.versions.iter().rev();
        let newest = versions
            .find(|(_, live)| !live.is_retired)
            .map(|(version, _)| *version);
        let leads_in = |live: &Live| live.graph.steps.iter().any(|step| step.kind == Sink::Entry);
        // One that ends takes only what its own step led in.
        let takes = |version: u32, live: &Live| {
            !live.is_retired || self.runs_in(version, &Identity::of(record), now_ms)
        };
        let gone = |live: &&Live| !(is_entry && live.is_removed);
        let live = |version: &u32| self.versions.get(version).filter(gone);
        match named.map(|version| (version, live(&version))) {
            Some((version, Some(_))) if !is_entry => Ok(version),
            Some((version, Some(live))) if leads_in(live) && takes(version, live) => Ok(version),
            Some((version, None)) if !is_entry || self.versions.values().any(leads_in) => {
                Err(Some(version))
            }
            _ => {
                let enters = enters.filter(|version| live(version).is_some());
                enters.or(newest).ok_or(None)
            }
        }
    }

    fn expire(&mut self, now_ms: i64, out: &mut Vec<Emit>) {
        while let Some(window) = self.windows.pop(now_ms) {
            match window {
                Window::Join(version, step, key) => self.close((version, step), &key, now_ms, out),
                Window::Constants(version, step, id) => self.drop_constants((version, step), &id),
                Window::Batch(version, step) => self.flush((version, step), out),
            }
        }
        self.expire_runs(now_ms);
        if self.versions.values().any(|live| live.is_retired) {
            self.versions
                .retain(|_, live| !(live.is_gone(now_ms) && live.is_empty()));
        }
    }
}
