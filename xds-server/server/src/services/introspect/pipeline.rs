//! Why a pipeline is, or is not, ready.
use seldon_core::{PipelineExplanation, Worker};
use seldon_proto::introspect::{ExplainPipelineResponse, StepVerdict, WorkerVerdict};

/// `envoys`: those that have acknowledged the route, and all that are connected.
pub(super) fn explained(told: PipelineExplanation, envoys: (u32, u32)) -> ExplainPipelineResponse {
    let step = |step: seldon_core::StepVerdict| StepVerdict {
        step: step.step.to_string(),
        inputs: step.inputs,
        triggers: step.triggers,
        model_state: step.model_state,
        gateway: step
            .gateway
            .map(|name| name.to_string())
            .unwrap_or_default(),
        waits_for: step.waits_for,
    };
    let worker = |worker: seldon_core::WorkerVerdict| WorkerVerdict {
        kind: kind(worker.worker).to_owned(),
        name: worker.name.to_string(),
        connected: worker.connected,
        version: worker.version,
        state: worker.state,
    };
    ExplainPipelineResponse {
        pipeline: told.pipeline.to_string(),
        version: told.version,
        state: told.state,
        reason: told.reason,
        gateway_state: told.gateway_state,
        gateway_reason: told.gateway_reason,
        models_ready: told.models_ready,
        steps: told.steps.into_iter().map(step).collect(),
        workers: told.workers.into_iter().map(worker).collect(),
        routed: told.route.is_some(),
        route_generation: told.route_generation,
        envoys_acknowledged: envoys.0,
        envoys_connected: envoys.1,
    }
}

fn kind(worker: Worker) -> &'static str {
    match worker {
        Worker::Engine => "engine",
        Worker::PipelineGateway => "pipeline gateway",
        Worker::ModelGateway => "model gateway",
    }
}
