//! How requests are shared out now, derived from the models.
use std::{collections::BTreeMap, sync::Arc};

use seldon_proto::scheduler::{
    Experiment, model_status::ModelState, pipeline_version_state::PipelineStatus,
};

use super::{Entry, check::of_pipelines};
use crate::{
    ExperimentRoute, LiveCandidate, LiveMirror, RolloutOutcome, Split, model,
    pipeline::{Fleets, Pipelines},
    reconcile::standing,
    server::Standing,
    world::World,
};

/// What an experiment depends on.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) models: &'a BTreeMap<Arc<str>, model::Entry>,
    pub(crate) pipelines: &'a Pipelines,
    pub(crate) fleets: &'a Fleets,
    pub(crate) world: &'a World,
}

impl<'a> Surroundings<'a> {
    /// The versions of a candidate or mirror that answer, and whether an agent that is there and means to stay has one.
    pub(crate) fn splits(&self, spec: &Experiment, name: &str) -> Option<(&'a [Split], bool)> {
        if of_pipelines(spec) {
            let entry = self.pipelines.entries.get(name)?;
            let gateways = &self.fleets.pipeline_gateways;
            let mut tasks = entry.gateways.0.iter();
            let there = tasks.any(|(name, task)| task.serving && gateways.connected(name));
            let usable = there && entry.rejected.is_none();
            return (!entry.splits.is_empty()).then_some((&entry.splits, usable));
        }
        let entry = self.models.get(name)?;
        let mut replicas = entry.splits.iter().flat_map(|split| {
            let set = &split.replicas;
            set.replicas.iter().map(move |index| (split, *index))
        });
        let usable = replicas.any(|(split, index)| {
            let found = entry.find(split.version, &split.replicas.server, index);
            found.is_some_and(|(at, _)| {
                standing(&entry.versions[at], index, self.world) == Standing::Usable
            })
        });
        // What one Envoy refuses is not to be chosen while there is another.
        let usable = usable && entry.rejected.is_none();
        (!entry.splits.is_empty()).then_some((&entry.splits, usable))
    }

    /// Whether the newest of a candidate or mirror is available.
    pub(crate) fn ready(&self, spec: &Experiment, name: &str) -> bool {
        if of_pipelines(spec) {
            let entry = self.pipelines.entries.get(name);
            return entry.is_some_and(|entry| !entry.deleted && entry.ready());
        }
        let entry = self.models.get(name);
        entry.is_some_and(|entry| entry.shown.state == ModelState::ModelAvailable)
    }

    /// Why it is not ready, or has no share although others have.
    pub(crate) fn why_not(&self, spec: &Experiment, name: &str) -> String {
        if of_pipelines(spec) {
            return self.why_no_pipeline(name);
        }
        let Some(entry) = self.models.get(name) else {
            return format!("model {name} is not loaded");
        };
        let because = |text: &str| match &entry.shown.reason {
            Some(reason) => format!("model {name} {text}: {reason}"),
            None => format!("model {name} {text}"),
        };
        match entry.shown.state {
            ModelState::ModelTerminated => format!("model {name} is not loaded"),
            ModelState::ModelTerminating => format!("model {name} is being unloaded"),
            ModelState::ModelTerminateFailed => because("could not be unloaded"),
            ModelState::ScheduleFailed => because("cannot be placed"),
            ModelState::ModelFailed => because("failed"),
            ModelState::ModelScaledDown => format!("model {name} is scaled to no replica"),
            ModelState::ModelAvailable => {
                format!("no replica of model {name} has an agent that is connected and stays")
            }
            _ => because("is not ready yet"),
        }
    }

    fn why_no_pipeline(&self, name: &str) -> String {
        let entry = self.pipelines.entries.get(name);
        let Some(entry) = entry.filter(|entry| entry.gone_at.is_none()) else {
            return format!("pipeline {name} is not loaded");
        };
        if entry.deleted {
            return format!("pipeline {name} is being removed");
        }
        let shown = &entry.latest().shown;
        if shown.status != PipelineStatus::PipelineReady {
            return format!("pipeline {name} is not ready yet: {}", shown.reason);
        }
        if shown.gateway_status != PipelineStatus::PipelineReady {
            let reason = &shown.gateway_reason;
            return format!("pipeline {name} is not ready at its gateways: {reason}");
        }
        format!("no gateway of pipeline {name} is connected")
    }
}

impl Entry {
    /// Whether this candidate was tried and went back: not even clients that name its route get it then.
    pub(crate) fn rolled_back(&self, name: &str) -> bool {
        self.rollout.as_ref().is_some_and(|rollout| {
            rollout.record.outcome == RolloutOutcome::RolledBack && *rollout.candidate == *name
        })
    }

    /// What a candidate of the split should get, relative to the others.
    pub(crate) fn weight(&self, spec: &Experiment, name: &str) -> u32 {
        match self.rollout.as_ref().filter(|_| spec.rollout.is_some()) {
            Some(rollout) if *rollout.candidate == *name => rollout.percent(),
            Some(rollout) if *rollout.default == *name => 100 - rollout.percent(),
            _ => {
                let found = spec.candidates.iter().find(|one| one.name == name);
                found.map_or(0, |one| one.weight)
            }
        }
    }
}

/// The split that should be in force. Weight goes to candidates that can answer; where no agent of any is there, as
/// when only the control network is cut, to all that Envoys know.
pub(crate) fn derive(entry: &Entry, around: Surroundings<'_>) -> Option<ExperimentRoute> {
    let spec = entry.in_force()?;
    let routed: Vec<_> = spec
        .candidates
        .iter()
        .filter_map(|one| Some((one.name.as_str(), around.splits(spec, &one.name)?)))
        .collect();
    let any = routed.iter().any(|(_, (_, usable))| *usable);
    let mut candidates: Vec<LiveCandidate> = routed
        .into_iter()
        .filter(|(name, (_, usable))| (*usable || !any) && !entry.rolled_back(name))
        .map(|(name, (splits, _))| LiveCandidate {
            name: name.into(),
            weight: entry.weight(spec, name),
            splits: splits.to_vec(),
        })
        .collect();
    // Rather the default than nobody.
    if candidates.iter().all(|one| one.weight == 0) {
        let mut left = candidates.iter_mut();
        if let Some(default) = left.find(|one| spec.default.as_deref() == Some(&*one.name)) {
            default.weight = 1;
        }
    }
    let mirror = spec.mirror.as_ref().filter(|mirror| mirror.percent > 0);
    let mirror = mirror.and_then(|mirror| {
        let (splits, usable) = around.splits(spec, &mirror.name)?;
        usable.then(|| LiveMirror {
            name: mirror.name.as_str().into(),
            percent: mirror.percent,
            splits: splits.to_vec(),
        })
    });
    let endpoint = spec.default.as_ref().map(|default| {
        let suffix = if of_pipelines(spec) { ".pipeline" } else { "" };
        format!("{default}{suffix}")
    });
    let cohort = spec.cohort.as_ref();
    Some(ExperimentRoute {
        name: entry.name.clone(),
        pipelines: of_pipelines(spec),
        endpoint,
        candidates,
        mirror,
        cohort_header: cohort.map(|cohort| cohort.header.to_ascii_lowercase()),
    })
}
