//! Autoscaling of models. Agents say that one has many requests in flight, or none for long; what follows is decided
//! here, one replica at a time.
use std::{sync::Arc, time::Duration};

use seldon_proto::{
    agent::{ModelScalingTriggerMessage, model_scaling_trigger_message::Trigger},
    scheduler::Model,
};

use super::{
    consider_more, request,
    resting::{consider_rest, is_woken, may_rest, wake},
    to_u32,
};
use crate::{
    Effect, State,
    model::{Entry, minimum, same_artefact, wanted},
    reconcile::{available, record},
    schedule::{Decision, decide},
    world::World,
};

const TOO_MANY: &str = "too many requests in flight";

/// What autoscaling has made of a model.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelScaling {
    /// Replicas wanted in place of those of the specification; none: the model rests.
    pub(crate) replicas: Option<u32>,
    /// When that changed last; monotonic.
    changed: Option<Duration>,
    /// The last decision, in words.
    pub(super) decision: Option<Arc<str>>,
}

/// Between which numbers of replicas a model may be scaled; both at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    least: u32,
    most: u32,
}

/// `replicas` alone switches autoscaling off, and so does asking for none.
pub(super) fn bounds(spec: &Model) -> Option<Bounds> {
    let deployment = spec.deployment_spec.as_ref()?;
    let automatic = deployment.min_replicas > 0 || deployment.max_replicas > 0;
    if !automatic || wanted(spec) == 0 {
        return None;
    }
    let least = deployment.min_replicas.max(1);
    let most = match deployment.max_replicas {
        0 => u32::MAX,
        most => most.max(least),
    };
    Some(Bounds { least, most })
}

/// Whether a model is scaled by its requests, if this scheduler does that.
pub(crate) fn has_bounds(spec: &Model) -> bool {
    bounds(spec).is_some()
}

/// Without a store, what agents hold of a model is what was made of it before.
pub(crate) fn take_over(entry: &mut Entry, world: &World) {
    let Some(bounds) = bounds(&entry.latest().spec) else {
        return;
    };
    let held = to_u32(entry.latest().ready());
    if world.config.model_autoscaling && held > to_u32(entry.target()) {
        entry.scaling.replicas = Some(held.clamp(bounds.least, bounds.most));
    }
}

/// The specification changed: a number of replicas that its author changed is in force at once, and so are bounds.
pub(crate) fn follow_spec(entry: &mut Entry, former: &Model) {
    let latest = entry.latest();
    let replicas = |spec: &Model| spec.deployment_spec.as_ref().map_or(1, |d| d.replicas);
    let kept = bounds(&latest.spec).filter(|_| replicas(former) == replicas(&latest.spec));
    entry.scaling = match (kept, entry.scaling.replicas) {
        (Some(_), Some(0)) if same_artefact(former, &latest.spec) && may_rest(&latest.spec) => {
            return;
        }
        // What ends a model's rest says its new specification.
        (Some(bounds), Some(0)) => ModelScaling {
            replicas: Some(bounds.least),
            ..ModelScaling::default()
        },
        (Some(bounds), Some(replicas)) => ModelScaling {
            replicas: Some(replicas.clamp(bounds.least, bounds.most)),
            ..std::mem::take(&mut entry.scaling)
        },
        _ => ModelScaling::default(),
    };
}

/// An agent saw a threshold crossed. What does not fit what is known now is no error: it may have been sent before.
pub(crate) fn triggered(state: &mut State, report: &ModelScalingTriggerMessage) {
    let State { models, world, .. } = state;
    let Some(entry) = models.get_mut(report.model_name.as_str()) else {
        return;
    };
    let latest = entry.latest();
    let known = entry.find(
        report.model_version,
        &report.server_name,
        report.replica_idx,
    );
    if entry.deleted || known.is_none() || latest.number != report.model_version {
        return;
    }
    if is_woken(report) && !entry.is_at_rest() {
        // Its agent has not heard that it does not rest any more.
        return world.tell_keeping(latest, report.replica_idx);
    }
    if !world.sync.done || !world.config.model_autoscaling {
        return;
    }
    let Some(bounds) = bounds(&latest.spec) else {
        return;
    };
    match report.trigger() {
        // An agent that knows that it rests says nothing of the kind.
        Trigger::ScaleDown if entry.is_at_rest() => {
            world.tell_keeping(entry.latest(), report.replica_idx);
        }
        Trigger::ScaleUp if entry.is_at_rest() => {
            let cause = format!("asked for on {}", place(report));
            wake(entry, &cause, world);
        }
        Trigger::ScaleUp => scale_up(entry, bounds, report, world),
        Trigger::ScaleDown => scale_down(entry, bounds, report, world),
    }
}

/// Whether the last decision is so long ago.
pub(super) fn rested(entry: &Entry, pause: Duration, world: &World) -> bool {
    let changed = entry.scaling.changed;
    changed.is_none_or(|changed| changed + pause <= world.now.monotonic)
}

fn scale_up(
    entry: &mut Entry,
    bounds: Bounds,
    report: &ModelScalingTriggerMessage,
    world: &mut World,
) {
    let latest = entry.latest();
    let whole = available(latest, world) == entry.target() && !latest.is_loading();
    if !whole || !rested(entry, world.config.scale_up_pause, world) {
        return;
    }
    let from = to_u32(entry.target());
    if from >= bounds.most {
        // Without figures, which would be news each time.
        let text = format!("{TOO_MANY}; it has its most replicas, {from}");
        return decide_on(entry, text, world);
    }
    let cause = cause(report, TOO_MANY);
    let former = entry.scaling.replicas.replace(from + 1);
    let placed = match decide(entry, world) {
        Decision::Placed | Decision::Load { short: None, .. } => Ok(()),
        Decision::Load {
            short: Some(reason),
            ..
        }
        | Decision::Unplaced(reason) => Err(reason),
    };
    let server = consider_more(entry, world);
    match (placed, server) {
        (Ok(()), _) => change(entry, from, from + 1, &cause, world),
        // Wanted from now on, so that it is placed as soon as the server has grown.
        (Err(_), Some(wish)) => {
            request(entry, &wish, world);
            change(entry, from, from + 1, &cause, world);
        }
        (Err(reason), None) => {
            entry.scaling.replicas = former;
            let more = from + 1;
            let text = format!("{TOO_MANY}; {more} replicas cannot be placed: {reason}");
            decide_on(entry, text, world);
        }
    }
}

fn scale_down(
    entry: &mut Entry,
    bounds: Bounds,
    report: &ModelScalingTriggerMessage,
    world: &mut World,
) {
    let pause = world.config.scale_down_pause;
    let latest = entry.latest();
    // What was wanted and never came is given up first.
    let there = available(latest, world).max(bounds.least as usize);
    let from = to_u32(entry.target().min(there + 1));
    let fresh = entry.settled_at + pause > world.now.monotonic || !rested(entry, pause, world);
    if latest.is_loading() || fresh {
        return;
    }
    if from <= bounds.least {
        return consider_rest(entry, report, world);
    }
    let cause = cause(report, "not asked for long");
    change(entry, from, from - 1, &cause, world);
}

pub(super) fn change(entry: &mut Entry, from: u32, to: u32, cause: &str, world: &mut World) {
    entry.scaling.replicas = Some(to);
    entry.scaling.changed = Some(world.now.monotonic);
    decide_on(
        entry,
        format!("scaled from {from} to {to} replicas: {cause}"),
        world,
    );
    world.effects.push(Effect::Persist(record(entry)));
    world.touch(&entry.name);
}

/// Notes a decision; the same one again is no news.
fn decide_on(entry: &mut Entry, text: String, world: &mut World) {
    if entry.scaling.decision.as_deref() != Some(text.as_str()) {
        entry.scaling.decision = Some(text.into());
        entry.changed = true;
        world.touch(&entry.name);
    }
}

pub(super) fn cause(report: &ModelScalingTriggerMessage, what: &str) -> String {
    let mut figures: Vec<_> = report.metrics.iter().collect();
    figures.sort_unstable();
    let figures: Vec<String> = figures
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    match figures.is_empty() {
        true => format!("{what} on {}", place(report)),
        false => format!("{what} on {} ({})", place(report), figures.join(", ")),
    }
}

fn place(report: &ModelScalingTriggerMessage) -> String {
    format!("replica {} of {}", report.replica_idx, report.server_name)
}

impl Entry {
    /// Replicas that the model is to have now; one at rest has the place of one.
    pub(crate) fn target(&self) -> usize {
        match self.scaling.replicas {
            Some(replicas) => replicas.max(1) as usize,
            None => wanted(&self.latest().spec),
        }
    }

    /// Replicas with which the model is content where there is no room for more.
    pub(crate) fn enough(&self) -> usize {
        match self.minimum() {
            0 => self.target(),
            least => least.min(self.target()),
        }
    }

    /// Replicas that are enough for a start; 0 when only all are.
    pub(crate) fn minimum(&self) -> usize {
        let least = minimum(&self.latest().spec);
        match self.scaling.replicas {
            // What autoscaling added is no condition of being available.
            Some(_) => least.max(1),
            None => least,
        }
    }
}
