//! An experiment's explanation, with what Envoys counted.
use seldon_core::{CandidateVerdict, ExperimentExplanation, MirrorVerdict, RolloutVerdict};
use seldon_proto::introspect::*;

use crate::measure::{Counts, Totals};

/// An explanation without what only the engine knows.
pub(super) fn explained(
    explanation: ExperimentExplanation,
    totals: Totals,
) -> ExplainExperimentResponse {
    let experiment = explanation.name.to_string();
    let counts = |name: &str| {
        let key = (experiment.clone(), name.to_owned());
        totals.table.get(&key).copied()
    };
    let sum = |weight: fn(&CandidateVerdict) -> u32| -> f64 {
        let weights = explanation.candidates.iter().map(weight);
        weights.map(f64::from).sum()
    };
    let (wanted, in_force) = (sum(|c| c.wanted), sum(|c| c.in_force));
    let candidate = |verdict: &CandidateVerdict| CandidateState {
        name: verdict.name.to_string(),
        is_default: verdict.is_default,
        wanted_percent: percent(verdict.wanted, wanted),
        in_force_percent: percent(verdict.in_force, in_force),
        reason: verdict.reason.clone(),
        measured: counts(&verdict.name).map(measured),
    };
    let mirror = |verdict: &MirrorVerdict| MirrorState {
        name: verdict.name.to_string(),
        percent: verdict.percent,
        in_force: verdict.in_force,
        reason: verdict.reason.clone(),
        sent: counts(&verdict.name).unwrap_or_default().mirrored,
    };
    ExplainExperimentResponse {
        active: explanation.active,
        candidates: explanation.candidates.iter().map(candidate).collect(),
        mirror: explanation.mirror.as_ref().map(mirror),
        experiment,
        description: explanation.description,
        endpoints: explanation.endpoints,
        cohort_header: explanation.cohort_header.unwrap_or_default(),
        rollout: explanation.rollout.map(rollout),
        generation: explanation.generation,
        unmeasured: totals.unmeasured,
        ..Default::default()
    }
}

/// Of a hundred.
pub(super) fn percent(part: u32, whole: f64) -> f64 {
    if whole > 0.0 {
        f64::from(part) * 100.0 / whole
    } else {
        0.0
    }
}

#[allow(clippy::cast_precision_loss)] // a mean needs no more digits
fn measured(counts: Counts) -> Measured {
    let mean_ms = match counts.requests {
        0 => 0.0,
        requests => counts.microseconds as f64 / 1000.0 / requests as f64,
    };
    Measured {
        requests: counts.requests,
        errors: counts.errors,
        mean_ms,
    }
}

fn rollout(verdict: RolloutVerdict) -> RolloutState {
    let event = |event: seldon_core::RolloutEvent| RolloutEvent {
        at: super::milliseconds(event.at),
        percent: event.percent,
        reason: event.reason,
    };
    RolloutState {
        state: verdict.state.to_owned(),
        step: verdict.step,
        steps: verdict.steps,
        waits_for: verdict.waits_for,
        history: verdict.history.into_iter().map(event).collect(),
    }
}
