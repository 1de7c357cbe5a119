//! The status of an experiment, and why it splits as it does.
use seldon_proto::scheduler::{Experiment, ExperimentStatusResponse};

use super::{
    CandidateVerdict, Entry, ExperimentExplanation, MirrorVerdict, RolloutVerdict,
    check::{members, of_pipelines},
    derive::Surroundings,
};
use crate::RolloutOutcome;

/// The documented status.
pub(crate) fn status(
    entry: &Entry,
    around: Surroundings<'_>,
    filter_rejected: Option<&str>,
) -> ExperimentStatusResponse {
    let spec = &entry.spec;
    let ready = |name: &str| entry.running() && around.ready(spec, name);
    let mut candidates = spec.candidates.iter();
    let (active, status_description) = match shortcoming(entry, around, filter_rejected) {
        Some(reason) => (false, reason),
        None => (true, format!("experiment active{}", rollout_note(entry))),
    };
    ExperimentStatusResponse {
        experiment_name: entry.name.to_string(),
        active,
        candidates_ready: candidates.all(|one| ready(&one.name)),
        mirror_ready: spec
            .mirror
            .as_ref()
            .is_none_or(|mirror| ready(&mirror.name)),
        status_description,
        kubernetes_meta: spec.kubernetes_meta.clone(),
    }
}

/// The first reason why it is not active.
fn shortcoming(
    entry: &Entry,
    around: Surroundings<'_>,
    filter_rejected: Option<&str>,
) -> Option<String> {
    let spec = &entry.spec;
    if entry.stopped.is_some() {
        return Some("experiment stopped".into());
    }
    if let Some(problem) = &entry.problem {
        let kept = match entry.in_force() {
            Some(_) => "the last good split stays in force",
            None => "nothing is in force",
        };
        return Some(format!("{problem}; {kept}"));
    }
    let lacking = members(spec).find(|name| !around.ready(spec, name) || !is_live(entry, name));
    if let Some(name) = lacking {
        return Some(around.why_not(spec, name));
    }
    if spec.candidates.is_empty() {
        return Some(format!(
            "experiment {} has no candidates, so nothing answers: give it one",
            entry.name
        ));
    }
    if let Some(reason) = filter_rejected {
        return Some(format!(
            "an Envoy refuses the filter's configuration: {reason}"
        ));
    }
    let taken = around.world.serving >= entry.generation && around.world.sync.done;
    (!taken).then(|| "waiting for Envoys to take the split".into())
}

/// Whether the split in force has it. A mirror that is to get no copies needs not be there.
fn is_live(entry: &Entry, name: &str) -> bool {
    let silent = entry.spec.mirror.as_ref();
    let silent = silent.is_some_and(|mirror| mirror.name == name && mirror.percent == 0);
    let Some(route) = &entry.route else {
        return false;
    };
    silent
        || entry.rolled_back(name)
        || route.candidates.iter().any(|one| *one.name == *name)
        || route.mirror.iter().any(|mirror| *mirror.name == *name)
}

fn rollout_note(entry: &Entry) -> String {
    let Some(rollout) = &entry.rollout else {
        return String::new();
    };
    let candidate = &rollout.candidate;
    match rollout.record.outcome {
        RolloutOutcome::Running => format!(
            "; roll-out of {candidate} at step {} of {}, {} %",
            rollout.step() + 1,
            rollout.steps.len(),
            rollout.percent()
        ),
        RolloutOutcome::Complete => format!("; roll-out of {candidate} complete"),
        RolloutOutcome::RolledBack => {
            format!(
                "; roll-out of {candidate} rolled back: {}",
                rollout.reason()
            )
        }
    }
}

/// What is wanted, what is in force, and why they differ.
pub(crate) fn explain(entry: &Entry, around: Surroundings<'_>) -> ExperimentExplanation {
    let spec = &entry.spec;
    let mut candidates: Vec<CandidateVerdict> = spec
        .candidates
        .iter()
        .map(|one| candidate(entry, spec, &one.name, around))
        .collect();
    // Those of the last good split that are not wanted any more.
    for former in entry.in_force().iter().flat_map(|spec| &spec.candidates) {
        if !candidates.iter().any(|known| *known.name == *former.name) {
            candidates.push(candidate(entry, spec, &former.name, around));
        }
    }
    let default = spec.default.as_deref();
    let suffix = if of_pipelines(spec) { ".pipeline" } else { "" };
    let endpoints = std::iter::once(format!("{}.experiment", entry.name))
        .chain(default.map(|default| format!("{default}{suffix}")));
    let route = entry.route.as_ref();
    ExperimentExplanation {
        name: entry.name.clone(),
        active: entry.shown.active,
        description: entry.shown.status_description.clone(),
        endpoints: endpoints.collect(),
        candidates,
        mirror: spec.mirror.as_ref().map(|wanted| MirrorVerdict {
            name: wanted.name.as_str().into(),
            percent: wanted.percent,
            in_force: mirror_in_force(entry, &wanted.name) == Some(wanted.percent),
            reason: mirror_reason(entry, around),
        }),
        cohort_header: route
            .and_then(|route| route.cohort_header.clone())
            .or_else(|| Some(spec.cohort.as_ref()?.header.to_ascii_lowercase())),
        rollout: entry.rollout.as_ref().map(|rollout| RolloutVerdict {
            state: rollout.state(),
            step: u32::try_from(rollout.step() + 1).unwrap_or(u32::MAX),
            steps: rollout.steps.clone(),
            waits_for: match entry.stopped {
                Some(_) => String::new(),
                None => rollout.waits_for(route, around.world.now),
            },
            history: rollout.record.history.clone(),
        }),
        generation: entry.generation,
    }
}

fn candidate(
    entry: &Entry,
    spec: &Experiment,
    name: &str,
    around: Surroundings<'_>,
) -> CandidateVerdict {
    let route = entry.route.as_ref();
    let found = route.and_then(|route| route.candidates.iter().find(|one| *one.name == *name));
    let wanted = entry.weight(spec, name);
    let in_force = found.map_or(0, |one| one.weight);
    let reason = match (&entry.problem, found) {
        _ if entry.stopped.is_some() => "experiment stopped".to_owned(),
        (_, Some(_)) if wanted == in_force => String::new(),
        (None, Some(_)) => "no candidate with a weight can answer, so the default does".to_owned(),
        (None, None) if entry.rolled_back(name) => "the roll-out went back".to_owned(),
        (Some(problem), _) => problem.clone(),
        _ => around.why_not(spec, name),
    };
    CandidateVerdict {
        name: name.into(),
        is_default: spec.default.as_deref() == Some(name),
        wanted,
        in_force,
        live: found.is_some(),
        reason,
    }
}

fn mirror_in_force(entry: &Entry, name: &str) -> Option<u32> {
    let mirror = entry.route.as_ref()?.mirror.as_ref()?;
    (*mirror.name == *name).then_some(mirror.percent)
}

fn mirror_reason(entry: &Entry, around: Surroundings<'_>) -> String {
    let Some(wanted) = &entry.spec.mirror else {
        return String::new();
    };
    match &entry.problem {
        _ if entry.stopped.is_some() => "experiment stopped".into(),
        _ if mirror_in_force(entry, &wanted.name) == Some(wanted.percent) => String::new(),
        Some(problem) => problem.clone(),
        None if wanted.percent == 0 => "its percent is 0".into(),
        None => around.why_not(&entry.spec, &wanted.name),
    }
}
