//! How far a pipeline has come in one partition. Pure.
//!
//! What it took is alive while anybody holds its `Arc`: a join, a batch, or a result that is not delivered. Everything
//! below the lowest living offset is done; what is done above it is told by naming the living ones.
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};

use seldon_flow::Place;
use serde::{Deserialize, Serialize};

/// Living offsets that are named in a snapshot of the default guarantee; with more, a restart repeats (and marks).
const NAMED: usize = 1_000;
/// Dead entries between living ones are swept when the queue has doubled, and at no fewer entries than this.
const SWEEP: usize = 256;

/// A position that survives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// All below is done.
    pub offset: i64,
    /// All below was taken; absent: the same as `offset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
    /// What was taken and is not done, as distances from `offset`; absent: perhaps all up to `until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Vec<i64>>,
    /// Of those held the ones that are done in some places, with the places where they still wait: exactly once, a record
    /// is handled again there and nowhere else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<(i64, Vec<Place>)>,
}

impl Snapshot {
    /// Nothing above is taken.
    pub fn at(offset: i64) -> Self {
        Self {
            offset,
            ..Self::default()
        }
    }
}

/// What to do with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// It is new.
    New,
    /// It was taken by an owner before: its results may have been written.
    Again,
    /// It is done, or not wanted now.
    Skip,
}

/// One pipeline in one partition.
#[derive(Debug)]
pub struct Cursor<T> {
    /// The next offset it wants.
    floor: i64,
    alive: VecDeque<(i64, Weak<T>)>,
    sweep_at: usize,
    restored: Option<Restored>,
    suspended: bool,
}

#[derive(Debug)]
struct Restored {
    until: i64,
    held: Option<BTreeSet<i64>>,
    waits: HashMap<i64, Vec<Place>>,
}

impl<T> Cursor<T> {
    /// Goes on where an owner was.
    pub fn new(from: &Snapshot) -> Self {
        let until = from.until.filter(|until| *until > from.offset);
        let restored = until.map(|until| Restored {
            until,
            held: from
                .held
                .as_ref()
                .map(|held| held.iter().map(|distance| from.offset + distance).collect()),
            waits: from
                .waits
                .iter()
                .map(|(distance, places)| (from.offset + distance, places.clone()))
                .collect(),
        });
        Self {
            floor: from.offset,
            alive: VecDeque::new(),
            sweep_at: SWEEP,
            restored,
            suspended: false,
        }
    }

    /// Of a record that comes again: where it waited, unless that was wherever it had come.
    pub fn places(&self, offset: i64) -> Option<&[Place]> {
        let places = self.restored.as_ref()?.waits.get(&offset)?;
        Some(places)
    }

    /// The next offset it wants.
    pub fn floor(&self) -> i64 {
        self.floor
    }

    /// Up to where something was taken, by it or an owner before.
    pub fn reached(&self) -> i64 {
        let restored = self.restored.as_ref();
        restored.map_or(self.floor, |restored| restored.until.max(self.floor))
    }

    /// Whether something that an owner before held was not read again, up to a position.
    pub fn is_behind(&self, position: i64) -> bool {
        let from = position.max(self.floor);
        let of = |restored: &Restored| match &restored.held {
            Some(held) => held.range(from..).next().is_some(),
            None => from < restored.until,
        };
        self.restored.as_ref().is_some_and(of)
    }

    /// Whether it wants nothing for now.
    pub fn is_suspended(&self) -> bool {
        self.suspended
    }

    /// Wants nothing until it is resumed, and forgets nothing of what passes.
    pub fn suspend(&mut self) {
        self.suspended = true;
    }

    /// Wants everything from its floor on again: the reader must go back there.
    pub fn resume(&mut self) {
        self.suspended = false;
    }

    /// Whether it wants the record at an offset.
    pub fn wants(&self, offset: i64) -> Take {
        if self.suspended || offset < self.floor {
            return Take::Skip;
        }
        match &self.restored {
            Some(restored) if offset < restored.until => match &restored.held {
                Some(held) if !held.contains(&offset) => Take::Skip,
                _ => Take::Again,
            },
            _ => Take::New,
        }
    }

    /// Took a record, which is alive as long as `item`.
    pub fn took(&mut self, offset: i64, item: &Arc<T>) {
        self.alive.push_back((offset, Arc::downgrade(item)));
        self.passed(offset + 1);
        if self.alive.len() >= self.sweep_at {
            self.sweep();
        }
    }

    /// Everything below was read, and what it wanted of it was taken.
    pub fn passed(&mut self, position: i64) {
        if self.suspended || position <= self.floor {
            return;
        }
        self.floor = position;
        let behind = |restored: &Restored| restored.until <= position;
        if self.restored.as_ref().is_some_and(behind) {
            self.restored = None;
        }
    }

    /// How much of what it took is alive.
    pub fn alive(&mut self) -> usize {
        self.sweep();
        self.alive.len()
    }

    /// What to write down now; `all`: name every living offset, however many.
    pub fn snapshot(&mut self, all: bool) -> Snapshot {
        self.pop_dead();
        let taken = self.alive.front().map(|(offset, _)| *offset);
        let pending = self.restored.as_ref().map(|restored| match &restored.held {
            Some(held) => held.range(self.floor..).next().copied(),
            None => Some(self.floor),
        });
        if taken.is_none() && !matches!(pending, Some(Some(_))) {
            let until = self.restored.as_ref().map(|restored| restored.until);
            return Snapshot::at(until.unwrap_or(self.floor).max(self.floor));
        }
        let offset = taken
            .into_iter()
            .chain(pending.flatten())
            .min()
            .unwrap_or(self.floor);
        let until = self
            .restored
            .as_ref()
            .map_or(self.floor, |restored| restored.until.max(self.floor));
        if until == offset {
            return Snapshot::at(offset);
        }
        Snapshot {
            offset,
            until: Some(until),
            held: self.held(offset, all),
            waits: Vec::new(),
        }
    }

    /// The places to write down with a snapshot: of what it took as `known` says, of what it has yet to take as it was.
    pub fn waits(
        &self,
        snapshot: &Snapshot,
        known: impl Fn(i64) -> Option<Vec<Place>>,
    ) -> Vec<(i64, Vec<Place>)> {
        let held = snapshot.held.iter().flatten();
        let places = held.filter_map(|distance| {
            let offset = snapshot.offset + distance;
            let places = if offset < self.floor {
                known(offset)
            } else {
                self.places(offset).map(<[Place]>::to_vec)
            };
            Some((*distance, places?))
        });
        places.collect()
    }

    fn held(&mut self, base: i64, all: bool) -> Option<Vec<i64>> {
        self.sweep();
        let unnamed = match &self.restored {
            Some(Restored {
                held: None, until, ..
            }) => usize::try_from(until - self.floor).unwrap_or(0),
            _ => 0,
        };
        if !all && self.alive.len() + unnamed > NAMED {
            return None;
        }
        let mut held: Vec<i64> = self.alive.iter().map(|(offset, _)| offset - base).collect();
        match &self.restored {
            Some(Restored {
                held: None, until, ..
            }) => {
                held.extend((self.floor..*until).map(|offset| offset - base));
            }
            Some(Restored {
                held: Some(restored),
                ..
            }) => held.extend(restored.range(self.floor..).map(|offset| offset - base)),
            None => {}
        }
        (all || held.len() <= NAMED).then_some(held)
    }

    fn pop_dead(&mut self) {
        while self
            .alive
            .front()
            .is_some_and(|(_, item)| item.strong_count() == 0)
        {
            self.alive.pop_front();
        }
    }

    fn sweep(&mut self) {
        self.alive.retain(|(_, item)| item.strong_count() > 0);
        self.sweep_at = (self.alive.len() * 2).max(SWEEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// Read on; `true`: it is of this pipeline.
        Read(bool),
        /// One of what is held ends.
        End(usize),
        /// The process dies after a snapshot.
        Restart(bool),
        /// A snapshot.
        Write,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<bool>().prop_map(Step::Read),
            4 => any::<usize>().prop_map(Step::End),
            1 => any::<bool>().prop_map(Step::Restart),
            1 => Just(Step::Write),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        /// Whatever happens: each record of the pipeline is done in the end, one that was done when a snapshot was
        /// written is not taken again after it, and what was taken by a former owner is known as such.
        #[test]
        fn nothing_is_lost_and_little_repeated(steps in prop::collection::vec(step(), 1..120)) {
            let mut log: Vec<bool> = Vec::new();
            let mut done: BTreeSet<i64> = BTreeSet::new();
            let mut taken: BTreeSet<i64> = BTreeSet::new();
            let mut written = (Snapshot::at(0), BTreeSet::new(), BTreeSet::new());
            let mut cursor = Cursor::<i64>::new(&written.0);
            let mut held: Vec<Arc<i64>> = Vec::new();
            let mut position = 0_i64;
            let read = |log: &[bool], position: &mut i64, cursor: &mut Cursor<i64>, held: &mut Vec<Arc<i64>>,
                            taken: &mut BTreeSet<i64>, written: &(Snapshot, BTreeSet<i64>, BTreeSet<i64>)| {
                let offset = *position;
                *position += 1;
                if log[usize::try_from(offset).unwrap()] {
                    let take = cursor.wants(offset);
                    if take != Take::Skip {
                        prop_assert!(!written.1.contains(&offset), "{offset} was done");
                        prop_assert_eq!(take == Take::Again, written.2.contains(&offset));
                        let item = Arc::new(offset);
                        cursor.took(offset, &item);
                        held.push(item);
                        taken.insert(offset);
                    }
                }
                cursor.passed(*position);
                Ok(())
            };
            for step in steps {
                match step {
                    Step::Read(own) => {
                        if position == i64::try_from(log.len()).unwrap() {
                            log.push(own);
                        }
                        read(&log, &mut position, &mut cursor, &mut held, &mut taken, &written)?;
                    }
                    Step::End(index) if !held.is_empty() => {
                        let item = held.swap_remove(index % held.len());
                        done.insert(*item);
                    }
                    Step::End(_) => {}
                    Step::Write => written = (cursor.snapshot(true), done.clone(), taken.clone()),
                    Step::Restart(all) => {
                        if all {
                            written = (cursor.snapshot(true), done.clone(), taken.clone());
                        }
                        held.clear();
                        done = written.1.clone();
                        taken = written.2.clone();
                        cursor = Cursor::new(&written.0);
                        position = written.0.offset;
                    }
                }
            }
            while position < i64::try_from(log.len()).unwrap() {
                read(&log, &mut position, &mut cursor, &mut held, &mut taken, &written)?;
            }
            done.extend(held.drain(..).map(|item| *item));
            let own: BTreeSet<i64> = (0..).zip(&log).filter(|(_, own)| **own).map(|(offset, _)| offset).collect();
            prop_assert_eq!(done, own);
            prop_assert_eq!(cursor.snapshot(false), Snapshot::at(position));
        }
    }

    #[test]
    fn what_is_suspended_forgets_nothing() {
        let mut cursor = Cursor::<()>::new(&Snapshot::at(3));
        cursor.suspend();
        assert_eq!(cursor.wants(3), Take::Skip);
        cursor.passed(9);
        assert_eq!(cursor.snapshot(false), Snapshot::at(3));
        cursor.resume();
        assert_eq!(cursor.wants(3), Take::New);
    }

    #[test]
    fn places_outlast_owners() {
        let mut cursor = Cursor::<i64>::new(&Snapshot::at(5));
        let held: Vec<Arc<i64>> = (5..8).map(Arc::new).collect();
        held.iter().for_each(|item| cursor.took(**item, item));
        let write = |cursor: &mut Cursor<i64>| {
            let mut snapshot = cursor.snapshot(true);
            let known = |offset| (offset == 6).then(|| vec![1, 2]);
            snapshot.waits = cursor.waits(&snapshot, known);
            let json = serde_json::to_string(&snapshot).expect("plain data");
            serde_json::from_str::<Snapshot>(&json).expect("plain data")
        };
        let first = write(&mut cursor);
        assert_eq!(first.waits, [(1, vec![1, 2])]);
        let mut heir = Cursor::<i64>::new(&first);
        assert_eq!((heir.places(5), heir.places(6)), (None, Some(&[1, 2][..])));
        // It dies before it has read all of them again.
        assert_eq!(write(&mut heir), first);
        heir.took(5, &held[0]);
        assert_eq!(write(&mut heir).waits, first.waits);
    }

    #[test]
    fn many_holes_need_little_memory() {
        let mut cursor = Cursor::<i64>::new(&Snapshot::at(0));
        let first = Arc::new(0);
        cursor.took(0, &first);
        for offset in 1..100_000 {
            cursor.took(offset, &Arc::new(offset));
        }
        assert!(cursor.alive.len() < 2 * SWEEP);
        let snapshot = cursor.snapshot(false);
        assert_eq!(
            (snapshot.offset, snapshot.until, snapshot.held),
            (0, Some(100_000), Some(vec![0]))
        );
    }
}
