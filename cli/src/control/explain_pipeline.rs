//! `seldon explain pipeline`.
use seldon_proto::introspect::{ExplainPipelineResponse, StepVerdict};

use crate::output::{self, row};

/// The page.
pub(super) fn text(answer: &ExplainPipelineResponse) -> String {
    let mut parts = vec![head(answer), steps(answer)];
    if answer.workers.is_empty() {
        parts.push(
            "nobody works for it: no dataflow engine and no pipeline gateway is connected"
                .to_owned(),
        );
    } else {
        parts.push(workers(answer));
    }
    parts.push(if answer.routed {
        format!(
            "route of generation {}, acknowledged by {} of {} Envoys",
            answer.route_generation, answer.envoys_acknowledged, answer.envoys_connected
        )
    } else {
        "no route leads to it".to_owned()
    });
    let parts: Vec<_> = parts.iter().map(|part| part.trim_end()).collect();
    parts.join("\n\n")
}

fn head(answer: &ExplainPipelineResponse) -> String {
    let state = |state: &str, reason: &str| match reason.trim() {
        "" => state.to_owned(),
        reason => format!("{state}: {reason}"),
    };
    format!(
        "{} version {}\nengines   {}\ngateways  {}\nmodels    {}",
        answer.pipeline,
        answer.version,
        state(&answer.state, &answer.reason),
        state(&answer.gateway_state, &answer.gateway_reason),
        if answer.models_ready {
            "all ready"
        } else {
            "not all ready"
        }
    )
}

fn steps(answer: &ExplainPipelineResponse) -> String {
    let mut rows = vec![
        row([&"step", &"reads", &"model", &"model gateway", &"waits for"]),
        row([&"----", &"-----", &"-----", &"-------------", &"---------"]),
    ];
    for step in &answer.steps {
        rows.push(row([
            &step.step,
            &reads(answer, step),
            &step.model_state,
            &step.gateway,
            &step.waits_for,
        ]));
    }
    output::table(&rows)
}

fn reads(answer: &ExplainPipelineResponse, step: &StepVerdict) -> String {
    let mut reads = match step.inputs.is_empty() {
        true => format!("{}.inputs", answer.pipeline),
        false => step.inputs.join(", "),
    };
    if !step.triggers.is_empty() {
        reads.push_str(" after ");
        reads.push_str(&step.triggers.join(", "));
    }
    reads
}

fn workers(answer: &ExplainPipelineResponse) -> String {
    let mut rows = vec![
        row([&"worker", &"name", &"version", &"state"]),
        row([&"------", &"----", &"-------", &"-----"]),
    ];
    for worker in &answer.workers {
        let state = match worker.connected {
            true => worker.state.clone(),
            false => format!("{}, away", worker.state),
        };
        rows.push(row([&worker.kind, &worker.name, &worker.version, &state]));
    }
    output::table(&rows)
}
