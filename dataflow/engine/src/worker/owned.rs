//! A pipeline that this engine owns: its flow, and how far it has come.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use seldon_flow::{Counts, Emit, Flow, Input};
use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::{Names, Record, Topic};

use crate::ledger::{Entry, Place};
use crate::progress::{Cursor, Take};

/// A topic's partition.
pub type At = (Arc<str>, i32);

/// A pipeline's place in one partition.
pub struct Spot {
    pub cursor: Cursor<Input>,
    /// What is handled below this may have been handled before.
    pub replay: i64,
    /// What the progress topic says.
    pub written: Entry,
}

impl Spot {
    /// Goes on at an entry of its own.
    pub fn new(entry: Entry) -> Self {
        Self {
            cursor: Cursor::new(&entry.at),
            replay: entry.replay.unwrap_or(i64::MIN),
            written: entry,
        }
    }

    /// What to write down, if it is not written yet.
    pub fn news(&mut self, all: bool, released: bool) -> Option<Entry> {
        let replay = (self.replay > self.cursor.floor()).then_some(self.replay);
        let entry = Entry {
            at: self.cursor.snapshot(all),
            replay,
            released,
            ..self.written.clone()
        };
        (entry != self.written).then_some(entry)
    }
}

/// A version of it.
pub struct Version {
    pub update: PipelineUpdateMessage,
    pub retired: bool,
}

/// A pipeline.
pub struct Owned {
    pub name: Arc<str>,
    pub flow: Flow,
    pub versions: BTreeMap<u32, Version>,
    pub spots: HashMap<At, Spot>,
    pub deadline: Option<i64>,
    pub counted: Counts,
    /// What enters must wait: it is the next owner's.
    pub closing: bool,
    /// Topics by which records enter, rather than come from its steps.
    pub entries: HashSet<Arc<str>>,
}

impl Owned {
    /// Without versions yet.
    pub fn new(name: Arc<str>, flow: Flow) -> Self {
        Self {
            name,
            flow,
            versions: BTreeMap::new(),
            spots: HashMap::new(),
            deadline: None,
            counted: Counts::default(),
            closing: false,
            entries: HashSet::new(),
        }
    }

    /// Looks again at the topics, after versions came or went. Returns (topic, pipeline of the records in it) of all
    /// it reads.
    pub fn survey(&mut self, names: &Names) -> HashSet<(Arc<str>, Arc<str>)> {
        let mut reads: HashSet<(Arc<str>, Arc<str>)> = HashSet::new();
        let topics = self.flow.topics();
        let updates = self.versions.values().flat_map(|v| &v.update.updates);
        for source in updates.flat_map(|update| update.sources.iter().chain(&update.triggers)) {
            if let Some(topic) = topics.get(source.topic_name.as_str()) {
                let of = match source.pipeline_name.as_str() {
                    "" => self.name.clone(),
                    name => name.into(),
                };
                reads.insert((topic.clone(), of));
            }
        }
        for topic in &topics {
            if !reads.iter().any(|(read, _)| read == topic) {
                reads.insert((topic.clone(), self.name.clone()));
            }
        }
        self.entries.clear();
        for (topic, of) in &reads {
            match names.parse(topic) {
                Some(Topic::Errors) => {}
                Some(Topic::PipelineInputs(_)) => drop(self.entries.insert(topic.clone())),
                _ if *of != self.name => drop(self.entries.insert(topic.clone())),
                _ => {}
            }
        }
        reads
    }

    /// Takes a record that concerns it, if it is not done already.
    pub fn take(&mut self, record: Record, now: i64, exact: bool) -> Vec<Emit> {
        let at = (record.topic.clone(), record.partition);
        let Some(spot) = self.spots.get_mut(&at) else {
            return Vec::new();
        };
        let take = spot.cursor.wants(record.offset);
        if take == Take::Skip {
            return Vec::new();
        }
        // In transactions what an owner has taken has written its results: only what is held is handled again.
        let replayed = !exact && (take == Take::Again || record.offset < spot.replay);
        let offset = record.offset;
        let input = Arc::new(Input { record, replayed });
        if let Some(spot) = self.spots.get_mut(&at) {
            spot.cursor.took(offset, &input);
        }
        let mut emits = self.flow.handle(input, now);
        if exact && take == Take::Again {
            emits.retain(|emit| !self.was_written(emit));
        }
        emits
    }

    /// Whether all that a result follows from was handled by an owner before, in the same transaction as the result.
    fn was_written(&self, emit: &Emit) -> bool {
        let before = |input: &Arc<Input>| {
            let Record {
                topic,
                partition,
                offset,
                ..
            } = &input.record;
            let spot = self.spots.get(&(topic.clone(), *partition));
            spot.is_some_and(|spot| *offset < spot.cursor.taken_before())
        };
        emit.causes.iter().all(before)
    }

    /// Whether nothing of a version is in flight; of the last one: nor on its way to a topic.
    pub fn is_idle(&mut self, version: u32) -> bool {
        self.flow.idle(version) && (!self.closing || self.held() == 0)
    }

    /// Records it holds.
    pub fn held(&mut self) -> usize {
        let spots = self.spots.values_mut();
        spots.map(|spot| spot.cursor.alive()).sum()
    }

    /// Progress that is not written yet, noted as written.
    pub fn progress(
        &mut self,
        positions: impl Fn(&At) -> Option<i64>,
        all: bool,
        released: bool,
    ) -> Vec<(Place, Entry)> {
        let mut news = Vec::new();
        for (at, spot) in &mut self.spots {
            if let Some(position) = positions(at) {
                spot.cursor.passed(position);
            }
            if let Some(entry) = spot.news(all, released) {
                spot.written = entry.clone();
                let place = Place {
                    pipeline: self.name.clone(),
                    topic: at.0.clone(),
                    partition: at.1,
                };
                news.push((place, entry));
            }
        }
        news
    }
}
