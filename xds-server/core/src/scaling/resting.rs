//! Scale to zero. A model that nobody asks for rests: it keeps its place and its route, but takes no memory. Its agent
//! holds the next request, loads the model for it and says so, which wakes it here, too.
use std::sync::Arc;

use seldon_proto::{agent::ModelScalingTriggerMessage, scheduler::Model};

use super::model::{ModelScaling, bounds, cause, change, has_bounds, rested};
use crate::{model::Entry, replica_state::ReplicaState::Available, world::World};

/// By these metrics an agent says how long a model has not been asked for, and that one at rest was.
const IDLE: &str = "inactive_seconds";
const WOKEN: &str = "woken";
const COMES_BACK: &str = "the next request loads it again";

/// Whether a model may have no replica: it is scaled, and nobody asked for at least one.
pub(crate) fn may_rest(spec: &Model) -> bool {
    let least = spec.deployment_spec.as_ref().map(|d| d.min_replicas);
    bounds(spec).is_some() && least == Some(0)
}

/// Whether an agent that has a model by the first is to be told how to keep it: it may watch its requests without need, or
/// not watch them; it may have forgotten that it rests, or not have heard that it does not any more.
pub(crate) fn may_keep_otherwise(held: &Model, spec: &Model) -> bool {
    has_bounds(held) != has_bounds(spec) || may_rest(held) || may_rest(spec)
}

impl Entry {
    pub(crate) fn is_at_rest(&self) -> bool {
        self.scaling.replicas == Some(0)
    }
}

impl ModelScaling {
    /// The last decision, in words. That a model rests is known even where a restart has forgotten why.
    pub(crate) fn decision(&self) -> Option<Arc<str>> {
        let rests = self.replicas == Some(0);
        let plain = || format!("scaled to 0 replicas; {COMES_BACK}").into();
        self.decision.clone().or_else(|| rests.then(plain))
    }
}

/// The last replica of a model was not asked for: whether for so long that none is needed.
pub(super) fn consider_rest(
    entry: &mut Entry,
    report: &ModelScalingTriggerMessage,
    world: &mut World,
) {
    let Some(after) = world.config.scale_to_zero else {
        return;
    };
    let latest = entry.latest();
    let idle = report.metrics.get(IDLE).copied().unwrap_or(0);
    // Nothing else is going on, and whoever has it can bring it back.
    let alone = entry.versions.len() == 1
        && matches!(&latest.replicas[..], [only] if only.state == Available && world.is_ours(latest, only.index));
    if !may_rest(&latest.spec)
        || u64::from(idle) < after.as_secs()
        || !alone
        || !rested(entry, after, world)
    {
        return;
    }
    let cause = cause(report, "not asked for long");
    let cause = format!("{cause}; {COMES_BACK}");
    change(entry, 1, 0, &cause, world);
}

/// Whether an agent says that it was asked for a model at rest.
pub(super) fn is_woken(report: &ModelScalingTriggerMessage) -> bool {
    report.metrics.contains_key(WOKEN)
}

/// Ends a model's rest and tells its agents, if it has one; whether it had.
pub(crate) fn wake(entry: &mut Entry, cause: &str, world: &mut World) -> bool {
    let rests = entry.is_at_rest();
    if rests {
        change(entry, 0, 1, cause, world);
        follow_rest(entry, world);
    }
    rests
}

/// Has all versions rest, or none, as was decided.
pub(crate) fn follow_rest(entry: &mut Entry, world: &mut World) {
    // What is to go goes as it is.
    if entry.deleted {
        return;
    }
    let rests = entry.is_at_rest();
    let latest = entry.latest();
    let unable = |index| !world.is_ours(latest, index);
    if rests && latest.placed().any(unable) {
        wake(entry, "its agent cannot keep it out of memory", world);
        return;
    }
    for version in entry.versions.iter_mut().filter(|version| !version.stray) {
        if version.resting != rests {
            world.set_resting(version, rests);
        }
        world.forget_crowded(version);
    }
}
