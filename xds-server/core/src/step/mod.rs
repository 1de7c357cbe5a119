//! What each event does to the state; the rules of `reconcile` draw the consequences.
mod agents;
mod envoys;
mod experiments;
mod pipelines;
mod reports;
mod requests;
mod servers;
mod workers;

pub(crate) use pipelines::forget_pipeline;
pub(crate) use servers::{advance_drains, prune, replica_due};
pub(crate) use workers::{worker_due, workers_due};

use crate::{Event, Refusal, State};

pub(crate) fn apply(state: &mut State, event: Event) -> Result<(), Refusal> {
    match event {
        Event::Restored(records) => requests::restored(state, records),
        Event::LoadModel(model) => return requests::load_model(state, *model),
        Event::UnloadModel {
            name,
            kubernetes_meta,
        } => return requests::unload_model(state, &name, kubernetes_meta),
        Event::ServerNotify {
            servers,
            first_sync,
        } => return servers::notified(state, &servers, first_sync),
        Event::AgentConnected {
            stream,
            subscription,
        } => return agents::connected(state, stream, *subscription),
        Event::AgentDisconnected { agent, stream } | Event::SendFailed { agent, stream, .. } => {
            servers::disconnected(state, &agent, stream);
        }
        Event::AgentReported(report) => return reports::reported(state, &report),
        Event::ScalingTriggered(report) => crate::scaling::triggered(state, &report),
        Event::DrainRequested { agent, token } => return servers::drain(state, &agent, token),
        Event::RoutesAcknowledged { serving, released } => {
            envoys::acknowledged(state, serving, released)
        }
        Event::RouteRejected { model, reason } => envoys::rejected(state, &model, reason),
        Event::StartExperiment(spec) => return experiments::start(state, *spec),
        Event::StopExperiment { name } => return experiments::stop(state, &name),
        Event::Measured(measurements) => experiments::measured(state, &measurements),
        Event::Unmeasured => experiments::unmeasured(state),
        Event::FilterRejected { reason } => experiments::filter_rejected(state, reason),
        Event::LoadPipeline(spec) => return pipelines::load(state, *spec),
        Event::UnloadPipeline { name } => return pipelines::unload(state, &name),
        Event::WorkerConnected {
            worker,
            stream,
            name,
            endpoint,
        } => return workers::connected(state, worker, stream, name, endpoint),
        Event::WorkerDisconnected {
            worker,
            stream,
            name,
        } => workers::disconnected(state, worker, stream, &name),
        Event::PipelineReported { worker, report } => workers::reported(state, worker, &report),
        Event::ModelReported(report) => workers::model_reported(state, &report),
        Event::Shards(shards) => workers::shards(state, shards),
        Event::Tick => {}
    }
    Ok(())
}
