//! A pipeline that this engine owns: its flow, and how far it has come.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use seldon_flow::{Counts, Emit, Flow, Input, Place};
use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::{Names, Record, Topic};

use crate::ledger::{Entry, Place as Of};
use crate::progress::{Cursor, Snapshot, Take};
use crate::writer::OnWay;

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

    /// Its topic is another one: nothing in it was seen.
    pub fn begin_anew(&mut self) {
        let suspended = self.cursor.is_suspended();
        self.cursor = Cursor::new(&Snapshot::at(0));
        if suspended {
            self.cursor.suspend();
        }
        self.replay = i64::MIN;
    }

    /// What to write down, if it is not written yet. `waits`: where what is held waits, by its offset; exactly once, all
    /// that is held is named with it.
    pub fn news(
        &mut self,
        waits: Option<&dyn Fn(i64) -> Option<Vec<Place>>>,
        released: bool,
    ) -> Option<Entry> {
        let replay = (self.replay > self.cursor.floor()).then_some(self.replay);
        let mut at = self.cursor.snapshot(waits.is_some());
        if let Some(waits) = waits {
            at.waits = self.cursor.waits(&at, waits);
        }
        let entry = Entry {
            at,
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

/// Whether a pipeline is to end here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// It goes on.
    #[default]
    No,
    /// What is in flight ends; what enters is the next owner's.
    Draining,
    /// All is the next owner's, but for results that are being written.
    HandOver,
}

impl Ending {
    /// Whether what comes by a topic is the next owner's; `enters`: by it requests enter.
    pub fn leaves(self, enters: bool) -> bool {
        match self {
            Self::No => false,
            Self::Draining => enters,
            Self::HandOver => true,
        }
    }
}

/// A pipeline.
pub struct Owned {
    pub name: Arc<str>,
    pub flow: Flow,
    pub versions: BTreeMap<u32, Version>,
    pub spots: HashMap<At, Spot>,
    pub deadline: Option<i64>,
    pub counted: Counts,
    pub ending: Ending,
    /// Results that are being written.
    pub on_way: OnWay,
    /// Topics that take no more results for now.
    pub full: HashSet<Arc<str>>,
    /// Until then a former owner may not know that it is none any more.
    pub unsure_until: i64,
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
            ending: Ending::No,
            on_way: OnWay::default(),
            full: HashSet::new(),
            unsure_until: i64::MIN,
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
        // In transactions what an owner has taken has written its results: what is held comes only where it waited.
        let again = take == Take::Again;
        let replayed = !exact && (again || record.offset < spot.replay || now < self.unsure_until);
        let places = spot.cursor.places(record.offset);
        let places = places.filter(|_| exact && again).map(<[Place]>::to_vec);
        let offset = record.offset;
        let input = Arc::new(Input { record, replayed });
        spot.cursor.took(offset, &input);
        match places {
            Some(places) => self.flow.handle_again(input, &places, now),
            None => self.flow.handle(input, now),
        }
    }

    /// Lets everything wait that is the next owner's.
    pub fn suspend(&mut self, position: impl Fn(&At) -> Option<i64>) {
        for (at, spot) in &mut self.spots {
            let leaves = self.ending.leaves(self.entries.contains(&at.0));
            if leaves && !spot.cursor.is_suspended() {
                if let Some(position) = position(at) {
                    spot.cursor.passed(position);
                }
                spot.cursor.suspend();
            }
        }
    }

    /// Whether nothing of a version is in flight; of the last one: nor on its way to a topic. One that is handed over:
    /// whether its results are written.
    pub fn is_idle(&mut self, version: u32) -> bool {
        match self.ending {
            Ending::No => self.flow.idle(version),
            Ending::Draining => self.flow.idle(version) && self.held() == 0,
            Ending::HandOver => self.on_way.load(Ordering::Relaxed) == 0,
        }
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
        exact: bool,
        released: bool,
    ) -> Vec<(Of, Entry)> {
        let mut news = Vec::new();
        let places = if exact {
            self.flow.waits()
        } else {
            HashMap::new()
        };
        for (at, spot) in &mut self.spots {
            let waits = |offset| places.get(&(at.0.clone(), at.1, offset)).cloned();
            let waits = exact.then_some(&waits as &dyn Fn(i64) -> Option<Vec<Place>>);
            if let Some(position) = positions(at) {
                spot.cursor.passed(position);
            }
            if let Some(entry) = spot.news(waits, released) {
                spot.written = entry.clone();
                let place = Of {
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
