//! A pipeline: which version and steps a record is for.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::{Headers, Identity, Names, Outgoing, Topic, Visits, header};

use crate::{
    BadPipeline, Counts, Emit, Input, Limits,
    arrival::{self, Arrival, Failure},
    graph::{Graph, Sink},
    held::Held,
    joins::JoinKey,
    live::Live,
    remembered::{self, Remembered},
    timers::Timers,
    write,
};

/// How long a request without a time limit may take: as long as the model gateway gives a model.
const RUN_MS: i64 = 120_000;
/// Records beside the output are this much later than the answer at most, as far as an update waits for them.
const BESIDE_MS: i64 = 10_000;

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
    remembered: Remembered,
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
            Some(live) if *live.graph == graph => live.is_retired = false,
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
        let mut out = Vec::new();
        self.expire(now_ms, &mut out);
        self.counts.handled += 1;
        self.take(&input, now_ms, &mut out);
        while self.held.check(&self.limits) && self.give_up_oldest(&mut out) {}
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

    fn take(&mut self, input: &Arc<Input>, now_ms: i64, out: &mut Vec<Emit>) {
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
        let version = match self.version_for(&record.headers, is_own, is_entry) {
            Ok(version) => version,
            Err(said) => return self.refuse(input, said, topic.as_ref(), is_own, out),
        };
        let Some(live) = self.versions.get_mut(&version) else {
            return;
        };
        live.last_ms = live.last_ms.max(now_ms);
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
        for arrival in arrivals {
            if !self
                .remembered
                .add(remembered::mark(record, &arrival), now_ms)
            {
                self.counts.repeats += 1;
                continue;
            }
            let arrival = Arc::new(arrival);
            if is_own && is_entry {
                self.begin(version, &arrival, now_ms);
            }
            for (step, port) in readers.iter().filter(reads) {
                self.arrive((version, *step), *port, &arrival, now_ms, out);
            }
        }
    }

    /// The version that a record is for; else the number that it names, if it names one.
    fn version_for(
        &self,
        headers: &Headers,
        is_own: bool,
        is_entry: bool,
    ) -> Result<u32, Option<u32>> {
        let named = headers.text(header::PIPELINE_VERSION).filter(|_| is_own);
        let named: Option<u32> = named.and_then(|version| version.parse().ok());
        let mut versions = self.versions.iter().rev();
        let newest = versions
            .find(|(_, live)| !live.is_retired)
            .map(|(version, _)| *version);
        match named {
            Some(version) if self.versions.contains_key(&version) => Ok(version),
            // A caller may send any version along; what this pipeline wrote names its own.
            Some(version) if !is_entry => Err(Some(version)),
            _ => newest.ok_or(None),
        }
    }

    fn refuse(
        &mut self,
        input: &Arc<Input>,
        version: Option<u32>,
        topic: Option<&Topic>,
        is_own: bool,
        out: &mut Vec<Emit>,
    ) {
        let record = &input.record;
        let is_read = self
            .versions
            .values()
            .any(|live| live.graph.readers.contains_key(&record.topic));
        let is_ours = matches!(
            topic,
            Some(Topic::PipelineInputs(_) | Topic::ModelOutputs(_))
        );
        if !is_own || !is_ours || record.headers.has(header::ERROR) || !is_read && version.is_none()
        {
            self.counts.foreign += 1;
            return;
        }
        let text = match version {
            Some(version) => format!(
                "pipeline {:?} version {version} was removed while the request was in it: send it again",
                self.pipeline
            ),
            None => format!("pipeline {:?} is being removed", self.pipeline),
        };
        self.counts.gone += 1;
        let members = arrival::members(record).ok().flatten();
        for failure in arrival::failures(record, members, 503, &text) {
            self.fail(version, failure, vec![input.clone()], false, out);
        }
    }

    /// Errors of all steps are answers.
    fn forward(&mut self, input: &Arc<Input>, now_ms: i64, out: &mut Vec<Emit>) {
        let record = &input.record;
        let named = record.headers.text(header::PIPELINE_VERSION);
        let named: Option<u32> = named.and_then(|version| version.parse().ok());
        let of = named.and_then(|version| self.versions.get(&version));
        let newest = self.versions.values().next_back();
        let Some(topic) = of.or(newest).and_then(|live| live.graph.answers.clone()) else {
            return;
        };
        let members = arrival::members(record).ok().flatten();
        for failure in arrival::failures(record, members, 500, "") {
            let mark = remembered::error_mark(record, failure.identity.as_str());
            if !self.remembered.add(mark, now_ms) {
                self.counts.repeats += 1;
                continue;
            }
            let mut headers = failure.headers;
            headers.remove(header::BATCH);
            for name in [header::ERROR, header::STATUS, header::GRPC_STATUS] {
                if let Some(value) = record.headers.get(name) {
                    headers.set(name, value.clone());
                }
            }
            if !headers.has(header::ERROR) {
                write::mark_error(&mut headers, &self.pipeline, 500);
            }
            let pipeline = self.pipeline.as_bytes();
            headers.set(header::PIPELINE, bytes::Bytes::copy_from_slice(pipeline));
            if input.replayed || record.headers.has(header::REPEAT) {
                headers.set(header::REPEAT, "1");
            }
            if let Some(version) = named {
                self.end(version, &failure.identity, now_ms);
            }
            let causes = vec![input.clone()];
            let record = Outgoing {
                topic: topic.clone(),
                partition: write::partition(&causes),
                key: failure.key,
                value: record.value.clone(),
                headers,
            };
            out.push(Emit { record, causes });
        }
    }

    /// Writes an error record; it comes back to [`Flow::forward`]. `foreign`: what failed is another pipeline's.
    pub(crate) fn fail(
        &mut self,
        version: Option<u32>,
        failure: Failure,
        causes: Vec<Arc<Input>>,
        foreign: bool,
        out: &mut Vec<Emit>,
    ) {
        self.counts.errors += 1;
        let mut headers = failure.headers;
        let mut visits = Visits::of(&headers);
        let mut identity = failure.identity;
        if foreign {
            identity = Identity::derived(&[identity.as_str().as_bytes(), self.pipeline.as_bytes()]);
            visits = Visits::default();
            headers.remove(header::DEADLINE);
        }
        let repeat = headers.has(header::REPEAT) || causes.iter().any(|cause| cause.replayed);
        write::sign(
            &mut headers,
            &self.pipeline,
            version,
            &identity,
            &visits,
            repeat,
        );
        write::mark_error(&mut headers, &self.pipeline, failure.status);
        let record = Outgoing {
            topic: self.errors.clone(),
            partition: write::partition(&causes),
            key: failure.key,
            value: Some(failure.text.into()),
            headers,
        };
        out.push(Emit { record, causes });
    }

    /// A request enters a version.
    fn begin(&mut self, version: u32, arrival: &Arrival, now_ms: i64) {
        let Some(live) = self.versions.get_mut(&version) else {
            return;
        };
        if live.runs.contains_key(&arrival.identity) {
            return;
        }
        let limit = arrival
            .headers
            .text(header::DEADLINE)
            .and_then(|text| text.parse().ok());
        let until = limit.unwrap_or(now_ms.saturating_add(RUN_MS));
        let due = self.runs.add(until, (version, arrival.identity.clone()));
        live.runs.insert(arrival.identity.clone(), due);
        let most = self.limits.remembered;
        if live.runs.len() > most
            && let Some((version, oldest)) = self.runs.pop_where(|(of, _)| *of == version)
            && let Some(live) = self.versions.get_mut(&version)
        {
            live.runs.remove(&oldest);
        }
    }

    /// A request was answered.
    pub(crate) fn end(&mut self, version: u32, identity: &Identity, now_ms: i64) {
        let Some(live) = self.versions.get_mut(&version) else {
            return;
        };
        let Some(due) = live.runs.remove(identity) else {
            return;
        };
        self.runs.remove(due);
        let more_outputs = |graph: &Graph| {
            graph
                .steps
                .iter()
                .any(|step| step.kind == Sink::Output && step.is_any())
        };
        if live.graph.side_steps || more_outputs(&live.graph) {
            let until = due.0.min(now_ms.saturating_add(BESIDE_MS));
            let due = self.runs.add(until, (version, identity.clone()));
            live.runs.insert(identity.clone(), due);
        }
    }

    fn expire(&mut self, now_ms: i64, out: &mut Vec<Emit>) {
        while let Some(window) = self.windows.pop(now_ms) {
            match window {
                Window::Join(version, step, key) => self.close((version, step), &key, now_ms, out),
                Window::Constants(version, step, id) => self.drop_constants((version, step), &id),
                Window::Batch(version, step) => self.flush((version, step), now_ms, out),
            }
        }
        while let Some((version, identity)) = self.runs.pop(now_ms) {
            if let Some(live) = self.versions.get_mut(&version) {
                live.runs.remove(&identity);
            }
        }
        if self.versions.values().any(|live| live.is_retired) {
            self.versions
                .retain(|_, live| !(live.is_gone(now_ms) && live.is_empty()));
        }
    }
}
