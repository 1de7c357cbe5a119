//! What clients ask of experiments, what Envoys counted, and what the store remembers.
use std::sync::Arc;

use seldon_proto::scheduler::Experiment;

use crate::{
    Effect, Measurement, Refusal, RolloutRecord, State,
    experiment::{self, Entry, Rollout},
};

/// Why the experiment would take another's default.
fn conflict(state: &State, spec: &Experiment) -> Option<String> {
    let owner = state.experiments.index.owner_of_default(spec)?;
    (**owner != *spec.name).then(|| {
        format!(
            "experiment {}: {} is the default of experiment {owner}: stop that one first, or choose another default",
            spec.name,
            spec.default.as_deref().unwrap_or_default()
        )
    })
}

pub(crate) fn start(state: &mut State, spec: Experiment) -> Result<(), Refusal> {
    let refused = experiment::refusal(&spec).or_else(|| conflict(state, &spec));
    if let Some(reason) = refused {
        return Err(Refusal::Precondition(reason));
    }
    let former = state.experiments.entries.get(spec.name.as_str());
    let running = former.filter(|entry| entry.running());
    if running.is_some_and(|entry| *entry.spec == spec) {
        return Ok(());
    }
    let same = running.is_some_and(|entry| {
        let bare = |spec: &Experiment| Experiment {
            kubernetes_meta: None,
            ..spec.clone()
        };
        bare(&entry.spec) == bare(&spec)
    });
    let entry = match (former, running) {
        (_, Some(known)) if same => Entry {
            spec: Arc::new(spec),
            ..known.clone()
        },
        (known, running) => {
            let new = Entry::new(Arc::new(spec));
            let (last_good, rollout) = match (running, &new.problem) {
                (Some(running), Some(_)) => (running.in_force().cloned(), running.rollout.clone()),
                (None, Some(_)) => (None, None),
                (running, None) => (None, rollout(state, &new, running)),
            };
            match known.cloned() {
                Some(known) => Entry {
                    last_good,
                    rollout,
                    route: known.route,
                    generation: known.generation,
                    shown: known.shown,
                    timer: known.timer,
                    ..new
                },
                None => Entry {
                    last_good,
                    rollout,
                    ..new
                },
            }
        }
    };
    state.world.effects.push(Effect::Persist(entry.record()));
    experiment::put(state, entry);
    Ok(())
}

/// The roll-out of a new spec: it goes on where nothing that it is about changed.
fn rollout(state: &State, new: &Entry, running: Option<&Entry>) -> Option<Rollout> {
    let subject = |spec: &Experiment| {
        let mut names: Vec<String> = spec.candidates.iter().map(|one| one.name.clone()).collect();
        names.sort_unstable();
        let kind = spec.resource_type();
        (spec.rollout.clone(), spec.default.clone(), kind, names)
    };
    let going = running.filter(|entry| {
        let former = entry.in_force();
        former.is_some_and(|former| subject(former) == subject(&new.spec))
    });
    match going {
        Some(entry) => entry.rollout.clone(),
        None => Rollout::of(&new.spec, None, state.world.now),
    }
}

pub(crate) fn stop(state: &mut State, name: &str) -> Result<(), Refusal> {
    let Some(known) = state.experiments.entries.get(name) else {
        return Err(Refusal::Precondition(format!(
            "experiment {name} is not known: see the names by experiment list"
        )));
    };
    if !known.running() {
        return Ok(());
    }
    let end = state.world.now.monotonic + state.world.config.keep_terminated;
    let entry = Entry {
        stopped: Some(end),
        ..known.clone()
    };
    let forget = Effect::ForgetExperiment(entry.name.clone());
    state.world.effects.push(forget);
    experiment::put(state, entry);
    Ok(())
}

pub(crate) fn restored(
    state: &mut State,
    spec: Arc<Experiment>,
    last_good: Option<Arc<Experiment>>,
    record: Option<RolloutRecord>,
) {
    let mut entry = Entry::new(spec);
    // A store of ours has none of these: what does not fit is shown, and left out of force.
    let unfit = |spec: &Experiment| experiment::refusal(spec).or_else(|| conflict(state, spec));
    if let Some(reason) = unfit(&entry.spec) {
        entry.problem = Some(reason);
    }
    if entry.problem.is_some() {
        entry.last_good = last_good.filter(|good| {
            *good.name == *entry.name && experiment::problem(good).or_else(|| unfit(good)).is_none()
        });
    }
    let now = state.world.now;
    entry.rollout = entry
        .in_force()
        .and_then(|spec| Rollout::of(spec, record, now));
    experiment::put(state, entry);
}

/// Counters were read. What was read first after a step began reaches back to before it, and does not count.
pub(crate) fn measured(state: &mut State, measurements: &[Measurement]) {
    let experiments = &mut state.experiments;
    for measurement in measurements {
        let entry = experiments.entries.get_mut(&measurement.experiment);
        if let Some(rollout) = entry.and_then(|entry| entry.rollout.as_mut()) {
            rollout.measured(measurement);
        }
    }
    for entry in experiments.entries.values_mut() {
        if let Some(rollout) = entry.rollout.as_mut().filter(|rollout| rollout.running()) {
            rollout.read();
            experiments.dirty.insert(entry.name.clone());
        }
    }
}

/// What is not known decides nothing.
pub(crate) fn unmeasured(state: &mut State) {
    for entry in state.experiments.entries.values_mut() {
        if let Some(rollout) = &mut entry.rollout {
            rollout.unread();
        }
    }
}

pub(crate) fn filter_rejected(state: &mut State, reason: Option<String>) {
    if state.experiments.filter_rejected != reason {
        state.experiments.filter_rejected = reason;
        state.experiments.touch_all();
    }
}
