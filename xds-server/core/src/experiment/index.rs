//! Which experiments a model or pipeline is part of, so that a change of it touches only those. Pipelines stand here with
//! their suffix.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use seldon_proto::scheduler::Experiment;

use super::{
    Entry,
    check::{members, of_pipelines},
};
use crate::pipeline::endpoint;

/// Which experiments a model is part of. Of running experiments only.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    /// Experiments whose split, or wanted split, names the model.
    concerned: Names,
    /// Experiments in whose split in force it is a candidate.
    candidates: Names,
    /// The experiment that has this default, wanted or in force; and whether it is a pipeline.
    defaults: BTreeMap<(bool, Arc<str>), Arc<str>>,
    /// The experiment in force that splits the model's requests.
    splits: BTreeMap<Arc<str>, Arc<str>>,
}

type Names = BTreeMap<Arc<str>, BTreeSet<Arc<str>>>;

/// What models are to one experiment in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) split: Option<Arc<str>>,
    pub(crate) candidates: BTreeSet<Arc<str>>,
}

impl Membership {
    pub(crate) fn of(entry: Option<&Entry>) -> Membership {
        let Some(spec) = entry.and_then(Entry::in_force) else {
            return Membership::default();
        };
        let candidates = spec.candidates.iter();
        Membership {
            split: spec.default.as_deref().map(|name| routed(spec, name)),
            candidates: candidates.map(|one| routed(spec, &one.name)).collect(),
        }
    }

    /// Models that are something else to `other`.
    pub(crate) fn changed(&self, other: &Membership) -> BTreeSet<Arc<str>> {
        let mut changed: BTreeSet<Arc<str>> = self
            .candidates
            .symmetric_difference(&other.candidates)
            .cloned()
            .collect();
        if self.split != other.split {
            changed.extend(self.split.iter().chain(&other.split).cloned());
        }
        changed
    }
}

/// The specs that an experiment goes by: the wanted one, and the one in force where that is another.
fn specs(entry: &Entry) -> impl Iterator<Item = &Arc<Experiment>> {
    let wanted = entry.stopped.is_none().then_some(&entry.spec);
    let other = entry
        .in_force()
        .filter(|spec| !Arc::ptr_eq(spec, &entry.spec));
    wanted.into_iter().chain(other)
}

/// The name by which requests are routed to a candidate or mirror; no model is called as a pipeline is.
fn routed(spec: &Experiment, name: &str) -> Arc<str> {
    match of_pipelines(spec) {
        true => endpoint(name),
        false => name.into(),
    }
}

impl Index {
    pub(crate) fn add(&mut self, entry: &Entry) {
        for spec in specs(entry) {
            let pipelines = of_pipelines(spec);
            if let Some(default) = &spec.default {
                let key = (pipelines, default.as_str().into());
                let owner = self.defaults.entry(key);
                owner.or_insert_with(|| entry.name.clone());
            }
            for member in members(spec) {
                let concerned = self.concerned.entry(routed(spec, member)).or_default();
                concerned.insert(entry.name.clone());
            }
        }
        let membership = Membership::of(Some(entry));
        if let Some(default) = membership.split {
            let owner = self.splits.entry(default);
            owner.or_insert_with(|| entry.name.clone());
        }
        for candidate in membership.candidates {
            let of = self.candidates.entry(candidate).or_default();
            of.insert(entry.name.clone());
        }
    }

    /// Takes out what [`Index::add`] put in; the entry must not have changed since.
    pub(crate) fn remove(&mut self, entry: &Entry) {
        for spec in specs(entry) {
            if let Some(default) = &spec.default {
                let key = (of_pipelines(spec), default.as_str().into());
                if self.defaults.get(&key) == Some(&entry.name) {
                    self.defaults.remove(&key);
                }
            }
            for member in members(spec) {
                drop_from(&mut self.concerned, &routed(spec, member), &entry.name);
            }
        }
        let membership = Membership::of(Some(entry));
        if let Some(default) = membership.split
            && self.splits.get(&default) == Some(&entry.name)
        {
            self.splits.remove(&default);
        }
        for candidate in &membership.candidates {
            drop_from(&mut self.candidates, candidate, &entry.name);
        }
    }

    pub(crate) fn concerned(&self, model: &str) -> impl Iterator<Item = &Arc<str>> {
        self.concerned.get(model).into_iter().flatten()
    }

    pub(crate) fn is_candidate(&self, model: &str) -> bool {
        self.candidates.contains_key(model)
    }

    pub(crate) fn split_by(&self, model: &str) -> Option<&Arc<str>> {
        self.splits.get(model)
    }

    /// The experiment that has the default of this one.
    pub(crate) fn owner_of_default(&self, spec: &Experiment) -> Option<&Arc<str>> {
        let default = spec.default.as_deref()?;
        self.defaults.get(&(of_pipelines(spec), default.into()))
    }
}

fn drop_from(names: &mut Names, model: &str, experiment: &Arc<str>) {
    if let Some(of) = names.get_mut(model) {
        of.remove(experiment);
        if of.is_empty() {
            names.remove(model);
        }
    }
}
