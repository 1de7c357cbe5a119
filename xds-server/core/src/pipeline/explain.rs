//! Why a pipeline is, or is not, ready: what `seldon explain pipeline` shows.
use std::sync::Arc;

use super::{
    Entry,
    fleet::Fleets,
    status::{Models, model_fault},
    task::{Doing, Phase, Task, Tasks},
};
use crate::{Generation, Route, Worker};

/// A pipeline with what it consists of and waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineExplanation {
    pub pipeline: Arc<str>,
    pub version: u32,
    /// A name of the documented enum, with the reason.
    pub state: String,
    pub reason: String,
    pub gateway_state: String,
    pub gateway_reason: String,
    pub models_ready: bool,
    /// By name.
    pub steps: Vec<StepVerdict>,
    /// Engines of all versions, then pipeline gateways.
    pub workers: Vec<WorkerVerdict>,
    pub route: Option<Route>,
    pub route_generation: Generation,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepVerdict {
    pub step: Arc<str>,
    /// As in the manifest; empty where it reads the pipeline's inputs.
    pub inputs: Vec<String>,
    pub triggers: Vec<String>,
    /// A name of the documented enum, or "absent".
    pub model_state: String,
    /// The model gateway that reads its topics.
    pub gateway: Option<Arc<str>>,
    /// What it waits for; empty where it is ready.
    pub waits_for: String,
}

/// What a worker has to do with the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerVerdict {
    pub worker: Worker,
    pub name: Arc<str>,
    pub connected: bool,
    pub version: u32,
    /// In words, such as "ready" or "waits for an answer".
    pub state: String,
}

pub(crate) fn explain(
    entry: &Entry,
    route: Option<Route>,
    models: Models<'_>,
    fleets: &Fleets,
) -> PipelineExplanation {
    let latest = entry.latest();
    let shown = &latest.shown;
    let mut steps: Vec<StepVerdict> = latest
        .spec
        .steps
        .iter()
        .map(|step| {
            let known = models.0.get(step.name.as_str());
            let gateway = models.1.get(&step.name).and_then(|reader| {
                let mut tasks = reader.tasks.0.iter();
                let owner = tasks.find(|(_, task)| task.is_create())?;
                Some(owner.0.clone())
            });
            StepVerdict {
                step: step.name.as_str().into(),
                inputs: step.inputs.clone(),
                triggers: step.triggers.clone(),
                model_state: known.map_or("absent".to_owned(), |model| {
                    model.shown.state.as_str_name().to_owned()
                }),
                gateway,
                waits_for: model_fault(&step.name, models).unwrap_or_default(),
            }
        })
        .collect();
    steps.sort_by(|one, other| one.step.cmp(&other.step));
    let mut workers = Vec::new();
    for version in entry.all_versions() {
        workers.extend(verdicts(Worker::Engine, &version.engines, fleets));
    }
    workers.extend(verdicts(Worker::PipelineGateway, &entry.gateways, fleets));
    PipelineExplanation {
        pipeline: entry.name.clone(),
        version: latest.number(),
        state: shown.status.as_str_name().to_owned(),
        reason: shown.reason.clone(),
        gateway_state: shown.gateway_status.as_str_name().to_owned(),
        gateway_reason: shown.gateway_reason.clone(),
        models_ready: shown.models_ready,
        steps,
        workers,
        route,
        route_generation: entry.route_generation,
    }
}

fn verdicts<'a>(
    worker: Worker,
    tasks: &'a Tasks,
    fleets: &'a Fleets,
) -> impl Iterator<Item = WorkerVerdict> + 'a {
    tasks.0.iter().map(move |(name, task)| WorkerVerdict {
        worker,
        name: name.clone(),
        connected: fleets.of(worker).connected(name),
        version: task.version,
        state: words(task),
    })
}

fn words(task: &Task) -> String {
    let aim = match task.doing {
        Doing::Create => "to have it",
        Doing::Delete { .. } | Doing::HandOver => "to let it go",
        Doing::Perhaps => return "may have it from before".to_owned(),
    };
    match (task.phase, &task.reason) {
        (Phase::Done, _) => "ready".to_owned(),
        (Phase::Failed, Some(reason)) => format!("failed {aim}: {reason}"),
        (Phase::Sent, Some(reason)) => format!("is asked again {aim}, after: {reason}"),
        (Phase::Sent, None) => format!("is asked {aim}"),
        _ => format!("is still {aim}"),
    }
}
