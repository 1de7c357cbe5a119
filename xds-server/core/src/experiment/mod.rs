//! Experiments: which candidates share the requests of a name, and with what weights.
mod check;
mod derive;
mod index;
mod judge;
mod rollout;
mod settle;
mod status;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seldon_proto::scheduler::{Experiment, ExperimentStatusResponse};
pub use verdict::{CandidateVerdict, ExperimentExplanation, MirrorVerdict, RolloutVerdict};

pub(crate) use check::{problem, refusal};
pub(crate) use derive::{Surroundings, derive};
pub(crate) use index::{Index, Membership};
pub(crate) use rollout::Rollout;
pub(crate) use settle::{put, settle};
pub(crate) use status::{explain, status};

use crate::{ExperimentRoute, Generation, Record};

/// An experiment by name, running or stopped lately.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    /// What a client asked for last.
    pub(crate) spec: Arc<Experiment>,
    /// Why that cannot be in force.
    pub(crate) problem: Option<String>,
    /// What is in force instead.
    pub(crate) last_good: Option<Arc<Experiment>>,
    /// Of the spec in force.
    pub(crate) rollout: Option<Rollout>,
    /// The split in force.
    pub(crate) route: Option<ExperimentRoute>,
    /// The newest generation in which the split, or the names under it, changed.
    pub(crate) generation: Generation,
    pub(crate) shown: ExperimentStatusResponse,
    /// Until when one that was stopped is still shown.
    pub(crate) stopped: Option<Duration>,
    /// The deadline that is set for it.
    pub(crate) timer: Option<Duration>,
}

/// All experiments.
#[derive(Debug, Default)]
pub(crate) struct Experiments {
    pub(crate) entries: BTreeMap<Arc<str>, Entry>,
    pub(crate) index: Index,
    /// To be looked at in the step at hand.
    pub(crate) dirty: BTreeSet<Arc<str>>,
    /// Those whose split Envoys have yet to take.
    pub(crate) awaiting: BTreeSet<(Generation, Arc<str>)>,
    /// Why an Envoy refuses the filter's configuration.
    pub(crate) filter_rejected: Option<String>,
}

impl Entry {
    pub(crate) fn new(spec: Arc<Experiment>) -> Entry {
        Entry {
            name: spec.name.as_str().into(),
            problem: problem(&spec),
            spec,
            last_good: None,
            rollout: None,
            route: None,
            generation: 0,
            shown: ExperimentStatusResponse::default(),
            stopped: None,
            timer: None,
        }
    }

    pub(crate) fn running(&self) -> bool {
        self.stopped.is_none()
    }

    /// What requests are shared out by.
    pub(crate) fn in_force(&self) -> Option<&Arc<Experiment>> {
        match self.problem {
            _ if !self.running() => None,
            None => Some(&self.spec),
            Some(_) => self.last_good.as_ref(),
        }
    }

    /// What the store keeps of it.
    pub(crate) fn record(&self) -> Record {
        Record::Experiment {
            name: self.name.clone(),
            spec: self.spec.clone(),
            last_good: self.last_good.clone(),
            rollout: self.rollout.as_ref().map(|rollout| rollout.record.clone()),
        }
    }
}

impl Experiments {
    /// Something about a model, or a pipeline (with its suffix), changed.
    pub(crate) fn touch(&mut self, name: &str) {
        self.dirty.extend(self.index.concerned(name).cloned());
    }

    pub(crate) fn touch_all(&mut self) {
        self.dirty.extend(self.entries.keys().cloned());
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.running())
    }

    /// Envoys that keep up have taken everything up to `serving`.
    pub(crate) fn acknowledged(&mut self, serving: Generation) {
        while let Some((generation, _)) = self.awaiting.first()
            && *generation <= serving
            && let Some((_, name)) = self.awaiting.pop_first()
        {
            self.dirty.insert(name);
        }
    }
}
