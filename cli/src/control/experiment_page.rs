//! The status of an experiment as a page.
use seldon_proto::introspect::{
    CandidateState, ExplainExperimentResponse, Measured, MirrorState, RolloutState,
};

use super::bars::{columns, share};
use crate::output::row;

/// The page.
pub(crate) fn text(answer: &ExplainExperimentResponse) -> String {
    let mut parts = vec![head(answer), candidates(&answer.candidates)];
    parts.extend(answer.mirror.as_ref().map(mirror));
    parts.extend(answer.rollout.as_ref().map(rollout));
    if !answer.unmeasured.is_empty() {
        let mut text = "not measured, and missing in the figures above\n".to_owned();
        for envoy in &answer.unmeasured {
            text.push_str(&format!("  {envoy}\n"));
        }
        parts.push(text);
    }
    let parts: Vec<_> = parts.iter().map(|part| part.trim_end()).collect();
    parts.join("\n\n")
}

fn head(answer: &ExplainExperimentResponse) -> String {
    let state = if answer.active {
        "active"
    } else {
        "not active"
    };
    let mut rows = vec![
        row([&"experiment", &answer.experiment]),
        row([&"state", &state]),
        row([&"status", &answer.description]),
        row([&"endpoints", &answer.endpoints.join(", ")]),
    ];
    if !answer.cohort_header.is_empty() {
        let cohorts = format!("by the header {}", answer.cohort_header);
        rows.push(row([&"cohorts", &cohorts]));
    }
    let envoys = format!(
        "{} of {} have acknowledged the split (generation {})",
        answer.envoys_acknowledged, answer.envoys_connected, answer.generation
    );
    rows.push(row([&"Envoys", &envoys]));
    columns("", &rows)
}

fn candidates(candidates: &[CandidateState]) -> String {
    if candidates.is_empty() {
        return "no candidates".to_owned();
    }
    let mut rows = vec![row([
        &"candidate",
        &"wanted",
        &"in force",
        &"requests",
        &"errors",
        &"mean",
    ])];
    for candidate in candidates {
        let name = match candidate.is_default {
            true => format!("{} (default)", candidate.name),
            false => candidate.name.clone(),
        };
        let [requests, errors, mean] = measured(candidate.measured.as_ref());
        rows.push(row([
            &name,
            &share(candidate.wanted_percent),
            &share(candidate.in_force_percent),
            &requests,
            &errors,
            &mean,
        ]));
    }
    let mut text = columns("", &rows);
    for candidate in candidates.iter().filter(|c| !c.reason.is_empty()) {
        text.push_str(&format!("  {}: {}\n", candidate.name, candidate.reason));
    }
    text
}

fn measured(measured: Option<&Measured>) -> [String; 3] {
    match measured {
        None => ["-", "-", "-"].map(str::to_owned),
        Some(Measured { requests: 0, .. }) => ["0", "-", "-"].map(str::to_owned),
        Some(found) => [
            found.requests.to_string(),
            format!(
                "{:.1} %",
                found.errors as f64 / found.requests as f64 * 100.0
            ),
            format!("{:.1} ms", found.mean_ms),
        ],
    }
}

fn mirror(mirror: &MirrorState) -> String {
    let force = if mirror.in_force {
        "in force"
    } else {
        "not in force"
    };
    let mut text = format!(
        "mirror {}: a copy of {} % of the requests, {force}; {} sent",
        mirror.name, mirror.percent, mirror.sent
    );
    if !mirror.reason.is_empty() {
        text.push_str(&format!("\n  {}: {}", mirror.name, mirror.reason));
    }
    text
}

fn rollout(rollout: &RolloutState) -> String {
    let steps: Vec<_> = rollout.steps.iter().map(ToString::to_string).collect();
    let at = format!(
        "step {} of {} ({} %), {}",
        rollout.step,
        rollout.steps.len(),
        steps.join(", "),
        rollout.state
    );
    let mut rows = vec![row([&"roll-out", &at])];
    if !rollout.waits_for.is_empty() {
        rows.push(row([&"waits for", &rollout.waits_for]));
    }
    let mut text = columns("", &rows);
    if !rollout.history.is_empty() {
        let rows: Vec<_> = rollout
            .history
            .iter()
            .map(|event| {
                let percent = format!("{:>3} %", event.percent);
                row([&time(event.at), &percent, &event.reason])
            })
            .collect();
        text.push_str(&columns("  ", &rows));
    }
    text
}

/// Milliseconds since 1970 as `2026-11-24T17:20:11Z`.
fn time(at: u64) -> String {
    let seconds = i64::try_from(at / 1000).unwrap_or(i64::MAX);
    prost_types::Timestamp { seconds, nanos: 0 }.to_string()
}

#[cfg(test)]
mod tests {
    use seldon_proto::introspect::RolloutEvent;

    use super::*;

    fn candidate(name: &str, is_default: bool, wanted: f64, in_force: f64) -> CandidateState {
        CandidateState {
            name: name.to_owned(),
            is_default,
            wanted_percent: wanted,
            in_force_percent: in_force,
            ..Default::default()
        }
    }

    #[test]
    fn the_page_tells_all_that_is_known() {
        let page = text(&ExplainExperimentResponse {
            experiment: "experiment-sample".to_owned(),
            active: true,
            description: "experiment active; roll-out at 25 %".to_owned(),
            endpoints: vec!["experiment-sample.experiment".to_owned(), "iris".to_owned()],
            candidates: vec![
                CandidateState {
                    measured: Some(Measured {
                        requests: 1200,
                        errors: 6,
                        mean_ms: 3.25,
                    }),
                    ..candidate("iris", true, 75.0, 100.0)
                },
                CandidateState {
                    reason: "no replica that can answer".to_owned(),
                    measured: Some(Measured::default()),
                    ..candidate("iris2", false, 25.0, 0.0)
                },
            ],
            mirror: Some(MirrorState {
                name: "iris3".to_owned(),
                percent: 10,
                in_force: true,
                reason: String::new(),
                sent: 120,
            }),
            cohort_header: "x-user".to_owned(),
            rollout: Some(RolloutState {
                state: "running".to_owned(),
                step: 2,
                steps: vec![10, 25, 100],
                waits_for: "a replica of iris2".to_owned(),
                history: vec![RolloutEvent {
                    at: 1_700_000_000_000,
                    percent: 10,
                    reason: "started".to_owned(),
                }],
            }),
            generation: 12,
            envoys_acknowledged: 1,
            envoys_connected: 2,
            unmeasured: vec!["127.0.0.1:5: connection refused".to_owned()],
        });
        insta::assert_snapshot!(page);
    }

    #[test]
    fn a_page_of_nothing_is_a_page() {
        let page = text(&ExplainExperimentResponse::default());
        assert!(
            page.contains("not active") && page.contains("no candidates"),
            "{page}"
        );
    }
}
