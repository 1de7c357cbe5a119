//! What the rest of the engine orders.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use seldon_flow::{Flow, Limits};
use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::Outgoing;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::command::{Command, Look, Read};
use super::owned::{At, Ending, Owned, Spot};
use super::{Worker, now_ms};
use crate::ledger::{Place, outgoing};
use crate::takeover::Claimed;

/// How long a former owner that has not let go may take to notice that there is another.
const UNSURE_MS: i64 = 2_000;
/// How long a version that an owner of an older kind ran is kept at least, for requests that are in flight in it: as long
/// as a model may take. Others say what is in flight.
const INHERITED_MS: i64 = 120_000;
/// How long it may take to read again what an owner before had read.
const BEHIND_MS: i64 = 15_000;
/// How long a pipeline that is removed waits for sides of joins, and for batches to become full: their callers are gone by
/// then, or wrote to topics.
const SIDES: Duration = Duration::from_secs(2);

impl Worker {
    /// Carries out what the rest of the engine asks.
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Look { update, answer } => {
                let _ = answer.send(self.look(&update));
            }
            Command::Install {
                updates,
                claimed,
                answer,
            } => {
                let _ = answer.send(self.install(updates, claimed));
            }
            Command::Retire {
                pipeline,
                version,
                at_once,
                answer,
            } => {
                let _ = answer.send(self.retire(&pipeline, version, at_once));
            }
            Command::Idle {
                pipeline,
                version,
                answer,
            } => {
                self.end_waiting(&pipeline, version);
                let position = |at: &At| self.positions.get(at).copied();
                let owned = self.pipelines.get_mut(&pipeline);
                let idle = owned.is_none_or(|owned| owned.is_idle(version, position, now_ms()));
                let _ = answer.send(idle);
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
            Command::Grow { pipeline, claimed } => {
                if self.pipelines.contains_key(&pipeline) {
                    self.start_at(&pipeline, claimed);
                }
            }
            Command::Gone { topic } => self.begin_anew(&topic),
            Command::Survey { answer } => {
                let _ = answer.send(self.survey());
            }
        }
    }

    fn look(&self, update: &PipelineUpdateMessage) -> Look {
        let Some(owned) = self.pipelines.get(update.pipeline.as_str()) else {
            return Look::default();
        };
        Look {
            runs: owned.runs(update),
            places: owned.spots.keys().cloned().collect(),
        }
    }

    fn install(
        &mut self,
        updates: Vec<PipelineUpdateMessage>,
        claimed: Claimed,
    ) -> Result<(), String> {
        let mut updates = updates.into_iter();
        let Some(update) = updates.next() else {
            return Ok(());
        };
        let pipeline: Arc<str> = update.pipeline.as_str().into();
        let names = &self.context.names;
        let owned = self.pipelines.entry(pipeline.clone()).or_insert_with(|| {
            let flow = Flow::new(&pipeline, names.clone(), Limits::default());
            Owned::new(pipeline.clone(), flow)
        });
        if let Err(error) = owned.put(update) {
            if owned.versions.is_empty() {
                self.pipelines.remove(&pipeline);
            }
            return Err(error.to_string());
        }
        for other in updates {
            if !owned.runs(&other)
                && let Err(error) = owned.put(other)
            {
                tracing::warn!("a version is not taken up with the others: {error}");
            }
        }
        if std::mem::take(&mut owned.ending) != Ending::No {
            self.waiting.insert(pipeline.clone());
        }
        if claimed.inherited {
            let now = now_ms();
            let known = claimed.in_flight.as_deref();
            owned.flow.inherit(known, now + INHERITED_MS);
            owned.behind_until = now + BEHIND_MS;
        }
        let reads = owned.survey(names);
        self.index.put(&pipeline, reads, names);
        self.start_at(&pipeline, claimed);
        // As soon as may be: the next owner is to know.
        let news = self.news(&HashSet::from([pipeline.clone()]), false);
        drop(self.writer.progress(news));
        self.go_on();
        self.handled(&pipeline, Vec::new());
        Ok(())
    }

    fn start_at(&mut self, pipeline: &Arc<str>, claimed: Claimed) {
        let mut fresh = Vec::new();
        if let Some(owned) = self.pipelines.get_mut(pipeline) {
            if claimed.unsure {
                owned.unsure_until = now_ms() + UNSURE_MS;
            }
            for (at, entry) in claimed.starts {
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
        if let Some(owned) = self.pipelines.get_mut(pipeline) {
            owned.enter_newest();
            self.dirty.insert(pipeline.clone());
        }
    }

    fn retire(&mut self, pipeline: &Arc<str>, version: u32, at_once: bool) -> Option<bool> {
        let owned = self.pipelines.get_mut(pipeline)?;
        owned.versions.get(&version)?;
        // Progress is the pipeline's, so who goes on with one version goes on with all.
        for (number, one) in &mut owned.versions {
            if at_once || *number == version {
                one.retired = true;
                owned.flow.retire(*number);
            }
        }
        let last = owned.versions.values().all(|version| version.retired);
        if last {
            let goes_on = owned.ending == Ending::HandOver && !at_once;
            // What enters from now on is the next owner's, so it does not even pass.
            owned.ending = match owned.ending {
                _ if at_once => Ending::HandOver,
                Ending::Draining(since) => Ending::Draining(since),
                // Handed over: removed before anybody took it.
                Ending::No | Ending::HandOver => Ending::Draining(Instant::now()),
            };
            let positions = &self.positions;
            owned.suspend(|at| positions.get(at).copied());
            if goes_on {
                self.waiting.insert(pipeline.clone());
                self.go_on();
            }
        }
        self.dirty.insert(pipeline.clone());
        self.handled(pipeline, Vec::new());
        Some(last)
    }

    fn end_waiting(&mut self, pipeline: &Arc<str>, version: u32) {
        let owned = self.pipelines.get_mut(pipeline);
        let Some(owned) = owned.filter(|owned| match owned.ending {
            Ending::Draining(since) => since.elapsed() >= SIDES,
            Ending::No | Ending::HandOver => false,
        }) else {
            return;
        };
        let now = now_ms();
        let mut emits = owned.flow.hasten(version, now);
        if emits.is_empty() {
            emits = owned.flow.end_waiting(version, now);
        } else {
            // What goes on may bring the sides of others.
            owned.ending = Ending::Draining(Instant::now());
        }
        if !emits.is_empty() {
            self.dirty.insert(pipeline.clone());
            self.handled(pipeline, emits);
        }
    }

    fn remove(&mut self, pipeline: &Arc<str>, version: u32, answer: oneshot::Sender<()>) {
        let Some(owned) = self.pipelines.get_mut(pipeline) else {
            let _ = answer.send(());
            return;
        };
        owned.versions.remove(&version);
        owned.flow.remove(version);
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
        let mut read = |topic: &Arc<str>| {
            let readers = self.index.readers(topic).filter_map(|pipeline| {
                let spots = &self.pipelines.get(pipeline)?.spots;
                let places = spots.keys().filter(|at| at.0 == *topic);
                Some((pipeline.clone(), places.cloned().collect()))
            });
            Read {
                topic: topic.clone(),
                readers: readers.collect(),
                positions: reads.remove(topic).unwrap_or_default(),
            }
        };
        self.index.topics().map(&mut read).collect()
    }

    /// A topic was deleted and was made again, or will be: nothing in it was seen.
    pub(super) fn begin_anew(&mut self, topic: &Arc<str>) {
        let of_topic = |at: &At| at.0 == *topic;
        let places: Vec<At> = self
            .positions
            .keys()
            .filter(|at| of_topic(at))
            .cloned()
            .collect();
        if places.iter().all(|at| self.positions.get(at) == Some(&0)) {
            return;
        }
        tracing::warn!(%topic, "the topic was deleted: it is read from its beginning when it is there again");
        let pipelines: Vec<Arc<str>> = self.index.readers(topic).cloned().collect();
        for pipeline in pipelines {
            if let Some(owned) = self.pipelines.get_mut(&pipeline) {
                owned.flow.forget_handled();
                let spots = owned.spots.iter_mut().filter(|(at, _)| of_topic(at));
                spots.for_each(|(_, spot)| spot.begin_anew());
                self.dirty.insert(pipeline);
            }
        }
        for at in places {
            self.stamps.remove(&at);
            self.seat(&at, 0);
        }
    }
}

fn pass_on(written: oneshot::Receiver<()>, answer: oneshot::Sender<()>) {
    tokio::spawn(async move {
        if written.await.is_ok() {
            let _ = answer.send(());
        }
    });
}
