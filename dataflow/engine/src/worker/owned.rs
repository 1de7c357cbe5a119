//! A pipeline that this engine owns: its flow, and how far it has come.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use seldon_flow::{BadPipeline, Counts, Emit, Flow, Input, Place};
use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::{Names, Record, Topic};
use tokio::time::Instant;

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
    /// See [`Entry::enters`].
    enters: Vec<(i64, u32)>,
}

impl Spot {
    /// Goes on at an entry of its own.
    pub fn new(entry: Entry) -> Self {
        Self {
            cursor: Cursor::new(&entry.at),
            replay: entry.replay.unwrap_or(i64::MIN),
            enters: entry.enters.clone(),
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
        let last = self.enters.last().map(|(_, version)| (i64::MIN, *version));
        self.enters = last.into_iter().collect();
    }

    /// What was not read yet enters a version from now on; what was, or may have been, the one that it had entered: if
    /// nobody wrote that down, the `oldest`.
    fn enter(&mut self, version: u32, oldest: u32) {
        if self.enters.is_empty() {
            self.enters.push((i64::MIN, oldest));
        }
        if self.enters.last().is_some_and(|(_, last)| *last == version) {
            return;
        }
        let from = self.cursor.reached().max(self.replay);
        self.enters.push((from, version));
    }

    /// The version that a record enters, where it enters.
    fn entered(&self, offset: i64) -> Option<u32> {
        let mut enters = self.enters.iter().rev();
        let (_, version) = enters.find(|(from, _)| *from <= offset)?;
        Some(*version)
    }

    /// Whether something that enters a version, or that an owner before had in hand, was not read up to a position.
    fn has_unread(&self, version: u32, position: i64) -> bool {
        let read = position.max(self.cursor.floor());
        let mut ranges = self.enters.windows(2);
        let enters = ranges.any(|two| two[0].1 == version && read < two[1].0);
        enters || read < self.replay || self.cursor.is_behind(position)
    }

    /// What to write down, if it is not written yet. `waits`: where what is held waits, by its offset; exactly once, all
    /// that is held is named with it.
    pub fn news(
        &mut self,
        waits: Option<&dyn Fn(i64) -> Option<Vec<Place>>>,
        released: bool,
        runs: Option<Vec<(u32, i64, Vec<u32>)>>,
    ) -> Option<Entry> {
        let replay = (self.replay > self.cursor.floor()).then_some(self.replay);
        let mut at = self.cursor.snapshot(waits.is_some());
        if let Some(waits) = waits {
            at.waits = self.cursor.waits(&at, waits);
        }
        // Of those that are done with, the last says what the next record enters.
        let passed = self.enters.iter().rposition(|(from, _)| *from <= at.offset);
        self.enters.drain(..passed.unwrap_or(0));
        let entry = Entry {
            at,
            replay,
            released,
            enters: self.enters.clone(),
            runs,
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
    /// What is in flight ends, since then; what enters is the next owner's.
    Draining(Instant),
    /// All is the next owner's, but for results that are being written.
    HandOver,
}

impl Ending {
    /// Whether what comes by a topic is the next owner's; `enters`: by it requests enter.
    pub fn leaves(self, enters: bool) -> bool {
        match self {
            Self::No => false,
            Self::Draining(_) => enters,
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
    /// What an owner before had read is read again by then.
    pub behind_until: i64,
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
            behind_until: i64::MIN,
            entries: HashSet::new(),
        }
    }

    /// Whether it runs this very version.
    pub fn runs(&self, update: &PipelineUpdateMessage) -> bool {
        let version = self.versions.get(&update.version);
        let runs = version.is_some_and(|v| !v.retired && same(&v.update, update));
        runs && self.ending == Ending::No
    }

    /// Adds a version, or goes on with it.
    pub fn put(&mut self, update: PipelineUpdateMessage) -> Result<(), BadPipeline> {
        self.flow.put(&update)?;
        let version = Version {
            retired: false,
            update,
        };
        self.versions.insert(version.update.version, version);
        Ok(())
    }

    /// After versions came: what enters now enters the newest.
    pub fn enter_newest(&mut self) {
        let running = self.versions.iter().filter(|(_, version)| !version.retired);
        let running: Vec<u32> = running.map(|(version, _)| *version).collect();
        let (Some(oldest), Some(newest)) = (running.first(), running.last()) else {
            return;
        };
        let entries = &self.entries;
        let spots = self.spots.iter_mut();
        let spots = spots.filter(|(at, _)| entries.contains(&at.0));
        spots.for_each(|(_, spot)| spot.enter(*newest, *oldest));
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
        let enters = spot.entered(record.offset);
        let enters = enters.filter(|version| self.versions.contains_key(version));
        let places = spot.cursor.places(record.offset);
        let places = places.filter(|_| exact && again).map(<[Place]>::to_vec);
        let offset = record.offset;
        let input = Arc::new(Input { record, replayed });
        spot.cursor.took(offset, &input);
        self.flow
            .handle_entering(input, enters, places.as_deref(), now)
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
    pub fn is_idle(
        &mut self,
        version: u32,
        position: impl Fn(&At) -> Option<i64>,
        now: i64,
    ) -> bool {
        // Who took it over has yet to read what was in hand, unless a topic has lost that.
        let unread = |(at, spot): (&At, &Spot)| {
            let position = position(at).unwrap_or(i64::MIN);
            !self.ending.leaves(self.entries.contains(&at.0)) && spot.has_unread(version, position)
        };
        let behind = now < self.behind_until && self.spots.iter().any(unread);
        match self.ending {
            Ending::No => self.flow.idle(version) && !behind,
            Ending::Draining(_) => self.flow.idle(version) && !behind && self.held() == 0,
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
        // In one place that is always the same and changes with each request, and first: what is in flight is told of before
        // what was read.
        let in_flight = self.flow.in_flight().into_iter();
        let runs = in_flight.map(|one| (one.version, one.until_ms, one.requests));
        let mut runs = Some(runs.collect());
        let mut spots: Vec<_> = self.spots.iter_mut().collect();
        spots.sort_by_key(|(at, _)| (!self.entries.contains(&at.0), *at));
        for (at, spot) in spots {
            let waits = |offset| places.get(&(at.0.clone(), at.1, offset)).cloned();
            let waits = exact.then_some(&waits as &dyn Fn(i64) -> Option<Vec<Place>>);
            if let Some(position) = positions(at) {
                spot.cursor.passed(position);
            }
            if let Some(entry) = spot.news(waits, released, runs.take()) {
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

/// Whether two orders mean the same: all but when and for which stream.
fn same(one: &PipelineUpdateMessage, other: &PipelineUpdateMessage) -> bool {
    one.uid == other.uid
        && one.updates == other.updates
        && one.allow_cycles == other.allow_cycles
        && one.max_step_revisits == other.max_step_revisits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_version_came_enters_the_one_before() {
        let entry = Entry {
            at: Snapshot {
                offset: 5,
                until: Some(8),
                ..Snapshot::default()
            },
            replay: Some(12),
            owner: "a".to_owned(),
            epoch: 1,
            released: false,
            enters: vec![(0, 1), (7, 2)],
            runs: None,
        };
        let mut spot = Spot::new(entry);
        // It may have been read up to there.
        spot.enter(3, 1);
        spot.enter(3, 1);
        let entered = |spot: &Spot, offset| spot.entered(offset);
        let versions: Vec<_> = [5, 7, 11, 12].map(|at| entered(&spot, at)).into();
        assert_eq!(versions, [Some(1), Some(2), Some(2), Some(3)]);
        // What is done with is forgotten, but for what is in force.
        let news = spot.news(None, false, None).map(|entry| entry.enters);
        assert_eq!(news, Some(vec![(0, 1), (7, 2), (12, 3)]));
        spot.cursor.passed(20);
        let news = spot.news(None, false, None).map(|entry| entry.enters);
        assert_eq!(news, Some(vec![(12, 3)]));
        // The topic was made again: what is in it came since.
        spot.begin_anew();
        assert_eq!(spot.entered(0), Some(3));
        spot.enter(4, 3);
        assert_eq!(spot.entered(0), Some(4));
    }

    #[test]
    fn what_an_older_engine_read_enters_the_version_that_ran() {
        let older = r#"{"offset":5,"until":8,"held":[0],"owner":"a","epoch":1,"released":true}"#;
        let mut spot = Spot::new(serde_json::from_str(older).expect("an entry"));
        spot.enter(2, 1);
        let entered = |offset| spot.entered(offset);
        assert_eq!([5, 7, 8].map(entered), [Some(1), Some(1), Some(2)]);
        assert!(spot.has_unread(1, 5) && !spot.has_unread(1, 8) && !spot.has_unread(2, 8));
    }
}
