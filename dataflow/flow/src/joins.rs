//! What waits in a step's joins.
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use seldon_records::Identity;

use crate::{
    arrival::Arrival,
    graph::{Join, Sink, Step},
    timers::Due,
};

/// Which join: whose, in which round; the first, second … where sides come several times.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JoinKey {
    pub id: Identity,
    pub round: Vec<u32>,
    pub nth: u32,
}

/// What is known of a side.
#[derive(Clone, Debug)]
pub enum Slot {
    Waiting,
    /// It will not come.
    Absent,
    Here(Arc<Arrival>),
    /// It came to a join that was over.
    Used,
}

impl Slot {
    pub fn arrival(&self) -> Option<&Arc<Arrival>> {
        match self {
            Self::Here(arrival) => Some(arrival),
            _ => None,
        }
    }

    fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting)
    }
}

/// One join.
#[derive(Debug)]
pub struct Entry {
    pub slots: Vec<Slot>,
    /// Sides that went on alone, where any does.
    pub fired: Vec<bool>,
    /// It has its result or cannot have one; it only waits for its late sides, so that they do not wait themselves.
    pub is_over: bool,
    pub due: Due,
}

/// Sides that come once, for all rounds.
#[derive(Debug)]
pub struct Constants {
    pub slots: Vec<(usize, Slot)>,
}

/// All joins of a step.
#[derive(Debug, Default)]
pub struct Joins {
    pub entries: BTreeMap<JoinKey, Entry>,
    pub constants: HashMap<Identity, Constants>,
}

/// What goes on together.
#[derive(Debug)]
pub struct Fired {
    /// Ports and their records, in the order of the sources.
    pub data: Vec<(usize, Arc<Arrival>)>,
    /// Records that only triggered.
    pub gates: Vec<Arc<Arrival>>,
}

impl Fired {
    /// Each side alone.
    pub fn apart(self) -> impl Iterator<Item = Self> {
        let gates = self.gates;
        self.data.into_iter().map(move |side| Self {
            data: vec![side],
            gates: gates.clone(),
        })
    }
}

impl Joins {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.constants.is_empty()
    }

    /// The first join of these that still waits for a port, else the number of the next one.
    pub fn find(&self, id: &Identity, round: &[u32], port: usize) -> (JoinKey, bool) {
        let mut key = JoinKey {
            id: id.clone(),
            round: round.to_vec(),
            nth: 0,
        };
        let from = key.clone();
        for (found, entry) in self.entries.range(from..) {
            if found.id != *id || found.round != round {
                break;
            }
            if entry.slots[port].is_waiting() {
                return (found.clone(), true);
            }
            key.nth = found.nth + 1;
        }
        (key, false)
    }

    /// What waits in them. A side that went on alone is done, although its join waits for the others.
    pub fn waiting(&self) -> impl Iterator<Item = &Arc<Arrival>> {
        let constants = self.constants.values().flat_map(|found| &found.slots);
        let constants = constants.filter_map(|(_, slot)| slot.arrival());
        self.sides(false).chain(constants)
    }

    /// What went on alone and is held for the sides that are missing.
    pub fn gone_on(&self) -> impl Iterator<Item = &Arc<Arrival>> {
        self.sides(true)
    }

    /// Sides of open joins that went on alone, or that did not.
    fn sides(&self, alone: bool) -> impl Iterator<Item = &Arc<Arrival>> {
        let open = self.entries.values().filter(|entry| !entry.is_over);
        let sides = open.flat_map(|entry| entry.slots.iter().zip(&entry.fired));
        sides
            .filter(move |(_, fired)| **fired == alone)
            .filter_map(|(slot, _)| slot.arrival())
    }

    /// All joins of one run.
    pub fn of(&self, id: &Identity) -> Vec<JoinKey> {
        let from = JoinKey {
            id: id.clone(),
            round: Vec::new(),
            nth: 0,
        };
        let entries = self.entries.range(from..).map(|(key, _)| key);
        entries.take_while(|key| key.id == *id).cloned().collect()
    }
}

/// What joins an arrival to others: its run, or the record's key where records of other pipelines meet.
pub fn join_id(step: &Step, arrival: &Arrival) -> Identity {
    match (step.kind, &arrival.key) {
        (Sink::Entry, Some(key)) => Identity::derived(&[key]),
        _ => arrival.identity.clone(),
    }
}

/// In which round it arrives.
pub fn round(step: &Step, arrival: &Arrival) -> Vec<u32> {
    let mut round: Vec<u32> = match &step.round {
        Some(steps) => steps
            .iter()
            .map(|step| arrival.visits.count(step))
            .collect(),
        None => vec![arrival.visits.greatest()],
    };
    // A request that its producer sent again never meets the first.
    round.extend(Some(arrival.visits.which()).filter(|which| *which > 0));
    round
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Yes,
    No,
    NotYet,
}

/// What can be said of a join.
#[derive(Debug)]
pub enum Verdict {
    Wait,
    /// It cannot have a result any more.
    Dead,
    Fire(Fired),
}

/// Judges a join; `closed`: its window is over.
pub fn judge(step: &Step, slots: &[Slot], fired: &[bool], closed: bool) -> Verdict {
    let missing = |slot: &Slot| match slot {
        Slot::Waiting if !closed => Answer::NotYet,
        _ => Answer::No,
    };
    let trigger_answers = step
        .triggers
        .iter()
        .map(|trigger| match &slots[trigger.port] {
            Slot::Here(arrival) if trigger.tensor.finds(&arrival.message) => Answer::Yes,
            Slot::Here(_) => Answer::No,
            slot => missing(slot),
        });
    let gate = if step.triggers.is_empty() {
        Answer::Yes
    } else {
        together(step.triggers_join, trigger_answers)
    };
    let side = |port: usize| match (&slots[port], &step.ports[port].data) {
        (Slot::Here(arrival), Some(data)) if data.finds(&arrival.message) => Answer::Yes,
        (Slot::Here(_), _) => Answer::No,
        (slot, _) => missing(slot),
    };
    let data = if step.is_any() {
        let fresh = step.data_ports().filter(|port| !fired[*port]);
        together(Join::Any, fresh.map(side))
    } else {
        together(step.join, step.data_ports().map(side))
    };
    match (gate, data) {
        (Answer::No, _) | (_, Answer::No) => Verdict::Dead,
        (Answer::Yes, Answer::Yes) => Verdict::Fire(fire(step, slots, fired, side)),
        _ => Verdict::Wait,
    }
}

fn together(join: Join, answers: impl Iterator<Item = Answer>) -> Answer {
    let (mut yes, mut no, mut not_yet) = (false, false, false);
    for answer in answers {
        match answer {
            Answer::Yes => yes = true,
            Answer::No => no = true,
            Answer::NotYet => not_yet = true,
        }
    }
    match join {
        Join::Inner if no => Answer::No,
        Join::Any if yes => Answer::Yes,
        _ if not_yet => Answer::NotYet,
        _ if yes => Answer::Yes,
        _ => Answer::No,
    }
}

fn fire(step: &Step, slots: &[Slot], fired: &[bool], side: impl Fn(usize) -> Answer) -> Fired {
    let any = step.is_any();
    let goes_on = |port: &usize| side(*port) == Answer::Yes && !(any && fired[*port]);
    let data = step.data_ports().filter(goes_on);
    let data: Vec<_> = data
        .filter_map(|port| Some((port, slots[port].arrival()?.clone())))
        .collect();
    let is_data = |port: usize| data.iter().any(|(data, _)| *data == port);
    let gates = (0..slots.len()).filter(|port| {
        !is_data(*port) && step.triggers.iter().any(|trigger| trigger.port == *port)
    });
    let gates = gates
        .filter_map(|port| slots[port].arrival().cloned())
        .collect();
    Fired { data, gates }
}
