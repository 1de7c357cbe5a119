//! What makes an experiment unacceptable, and what is accepted but cannot be put in force.
use std::collections::BTreeSet;

use seldon_proto::scheduler::{Experiment, ExperimentRollout, ResourceType};

use super::rollout::DEFAULT_STEPS;
use crate::model::is_name;

/// Requests use the name with this behind it; both together must fit where a name fits.
const SUFFIX: &str = ".experiment";
const MOST_NAME: usize = 253;
/// Names of headers that mean something to Envoy or to us.
const TAKEN_HEADERS: [&str; 5] = [
    "seldon-model",
    "seldon-internal-model",
    "host",
    "content-length",
    "content-type",
];

/// The first reason why an experiment must be refused, other experiments aside.
pub(crate) fn refusal(spec: &Experiment) -> Option<String> {
    let name = &spec.name;
    if !is_subdomain(name) {
        return Some(format!(
            "experiment {name:?} has no valid name: use lower-case letters, digits, inner hyphens and dots, {} at most",
            MOST_NAME - SUFFIX.len()
        ));
    }
    if spec.candidates.is_empty() && spec.mirror.is_none() {
        return Some(format!(
            "experiment {name} has neither candidates nor a mirror: give it at least one"
        ));
    }
    let mut seen = BTreeSet::new();
    for member in members(spec) {
        if !is_name(member) {
            return Some(format!(
                "experiment {name} names {member:?}, which no {} can have as a name: use lower-case letters, digits and inner hyphens",
                kind(spec)
            ));
        }
        if !seen.insert(member) {
            return Some(format!(
                "experiment {name} names {member} twice: each candidate and the mirror must be another {}",
                kind(spec)
            ));
        }
    }
    if let Some(default) = &spec.default
        && !spec.candidates.iter().any(|one| one.name == *default)
    {
        return Some(format!(
            "experiment {name}: the default {default:?} is not among the candidates: add it, or choose one of them"
        ));
    }
    cohort_refusal(spec).or_else(|| rollout_refusal(spec))
}

/// Names of candidates, then of the mirror.
pub(crate) fn members(spec: &Experiment) -> impl Iterator<Item = &str> {
    let candidates = spec.candidates.iter().map(|one| one.name.as_str());
    candidates.chain(spec.mirror.iter().map(|mirror| mirror.name.as_str()))
}

/// What candidates are, in a word.
pub(crate) fn kind(spec: &Experiment) -> &'static str {
    match of_pipelines(spec) {
        true => "pipeline",
        false => "model",
    }
}

pub(crate) fn of_pipelines(spec: &Experiment) -> bool {
    spec.resource_type() == ResourceType::Pipeline
}

/// Why an accepted experiment cannot be put in force.
pub(crate) fn problem(spec: &Experiment) -> Option<String> {
    let name = &spec.name;
    let weight: u64 = spec
        .candidates
        .iter()
        .map(|one| u64::from(one.weight))
        .sum();
    if !spec.candidates.is_empty() && weight == 0 && spec.rollout.is_none() {
        return Some(format!(
            "all weights of experiment {name} are 0: give at least one candidate a weight"
        ));
    }
    let percent = spec.mirror.as_ref().map_or(0, |mirror| mirror.percent);
    (percent > 100).then(|| {
        format!("experiment {name}: the mirror's percent is {percent}: give one of 0 to 100")
    })
}

fn is_subdomain(name: &str) -> bool {
    name.len() + SUFFIX.len() <= MOST_NAME && name.split('.').all(is_name)
}

fn cohort_refusal(spec: &Experiment) -> Option<String> {
    let header = &spec.cohort.as_ref()?.header;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let lower = header.to_ascii_lowercase();
    let fit = !header.is_empty()
        && header.len() <= MOST_NAME
        && header.bytes().all(token)
        && !lower.starts_with("x-seldon-")
        && !TAKEN_HEADERS.contains(&lower.as_str());
    (!fit).then(|| {
        format!(
            "experiment {}: {header:?} cannot be the cohort's header: use a header of your own, such as x-user",
            spec.name
        )
    })
}

fn rollout_refusal(spec: &Experiment) -> Option<String> {
    let rollout = spec.rollout.as_ref()?;
    let name = &spec.name;
    if spec.default.is_none() || spec.candidates.len() != 2 {
        return Some(format!(
            "experiment {name}: a roll-out needs a default and exactly two candidates, one of them the default"
        ));
    }
    let steps = steps(rollout);
    let rising = steps.is_sorted_by(|one, next| one < next);
    if !rising || steps.iter().any(|percent| !(1..=100).contains(percent)) {
        return Some(format!(
            "experiment {name}: the roll-out's steps {steps:?} must rise from 1 to 100 percent at most"
        ));
    }
    let bad = |value: Option<f64>, fits: fn(f64) -> bool| {
        value.is_some_and(|value| !value.is_finite() || !fits(value))
    };
    if bad(rollout.max_error_rate_increase, |points| {
        (0.0..=100.0).contains(&points)
    }) {
        return Some(format!(
            "experiment {name}: maxErrorRateIncrease is in percentage points, 0 to 100"
        ));
    }
    bad(rollout.max_latency_ratio, |ratio| ratio > 0.0)
        .then(|| format!("experiment {name}: maxLatencyRatio must be above 0"))
}

/// The steps wanted, or the usual ones.
pub(crate) fn steps(rollout: &ExperimentRollout) -> &[u32] {
    match rollout.steps.is_empty() {
        true => &DEFAULT_STEPS,
        false => &rollout.steps,
    }
}
