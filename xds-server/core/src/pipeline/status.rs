//! The status of a pipeline as it is shown.
use std::{collections::BTreeMap, sync::Arc};

use seldon_proto::scheduler::{
    Pipeline, PipelineStatusResponse, PipelineVersionState, PipelineWithState,
    model_status::ModelState, pipeline_version_state::PipelineStatus,
};

use super::{
    Entry, Shown, Version,
    fleet::Fleets,
    readers::Readers,
    task::{Phase, Task},
};
use crate::{model, status::timestamp, world::World};

/// As many models that are not ready are named.
const MOST_NAMED: usize = 3;

/// Models, and who reads their topics.
pub(super) type Models<'a> = (&'a BTreeMap<Arc<str>, model::Entry>, &'a Readers);

/// Derives what is shown; whether it changed.
pub(super) fn refresh(
    entry: &mut Entry,
    owners: &[Arc<str>],
    fleets: &Fleets,
    models: Models<'_>,
    world: &World,
) -> bool {
    let newest = entry.versions.len() - 1;
    let shown: Vec<Shown> = entry
        .versions
        .iter()
        .enumerate()
        .map(|(at, version)| {
            let latest = at == newest;
            let lacking = lacking(&version.spec, models);
            let (status, reason) =
                engine_status(entry, version, (&lacking, models.1), fleets, world);
            let (gateway_status, gateway_reason) =
                gateway_status(entry, version, latest, owners, world);
            Shown {
                status,
                reason,
                gateway_status,
                gateway_reason,
                models_ready: lacking.is_empty(),
            }
        })
        .collect();
    let mut changed = false;
    for (version, shown) in entry.versions.iter_mut().zip(shown) {
        if version.shown != shown || version.since.is_zero() {
            (version.shown, version.since) = (shown, world.now.wall);
            changed = true;
        }
    }
    changed
}

/// Why a model cannot answer records yet.
pub(super) fn model_fault(name: &str, (models, readers): Models<'_>) -> Option<String> {
    let Some(entry) = models.get(name).filter(|entry| !entry.deleted) else {
        return Some(format!("model {name} is not loaded"));
    };
    if entry.shown.state != ModelState::ModelAvailable {
        let state = entry.shown.state.as_str_name();
        return Some(match &entry.shown.reason {
            Some(reason) => format!("model {name} is {state}: {reason}"),
            None => format!("model {name} is {state}"),
        });
    }
    let (state, reason) = readers.shown(entry);
    if state != ModelState::ModelAvailable {
        let reason = match reason {
            "" => "the model gateway has yet to take it",
            reason => reason,
        };
        return Some(format!("model {name}: {reason}"));
    }
    None
}

fn lacking(spec: &Pipeline, models: Models<'_>) -> Vec<String> {
    let steps = spec.steps.iter();
    steps
        .filter_map(|step| model_fault(&step.name, models))
        .collect()
}

fn engine_status(
    entry: &Entry,
    version: &Version,
    (lacking, readers): (&[String], &Readers),
    fleets: &Fleets,
    world: &World,
) -> (PipelineStatus, String) {
    use PipelineStatus::*;
    if entry.deleted || !version.lives() {
        let why = match entry.deleted {
            true => "pipeline removed".to_owned(),
            false => format!("replaced by version {}", entry.latest().number()),
        };
        if version.ended.is_some() {
            return (PipelineTerminated, why);
        }
        let failed = version
            .engines
            .0
            .values()
            .any(|task| task.is_delete() && task.failed());
        return match version.engines.failure().filter(|_| failed) {
            Some(failure) => (PipelineFailedTerminating, format!("{why}: {failure}")),
            None => (PipelineTerminating, why),
        };
    }
    let tasks = || version.engines.0.values().filter(|task| task.is_create());
    let again = match version.was_ready {
        true => PipelineRebalancing,
        false => PipelineCreating,
    };
    if tasks().any(Task::ready) {
        let mut reason = format!("created pipeline: {}", version.engines.counts());
        for (at, fault) in lacking.iter().take(MOST_NAMED).enumerate() {
            reason.push_str(if at == 0 { "; not ready: " } else { ", " });
            reason.push_str(fault);
        }
        return (PipelineReady, reason);
    }
    if tasks().any(Task::failed) {
        let failure = version.engines.failure().unwrap_or_default();
        return (PipelineFailed, format!("not created: {failure}"));
    }
    if tasks().next().is_some() {
        return (again, "waits for its dataflow engine".to_owned());
    }
    if !fleets.open(world) {
        return (again, "waits for workers to come back".to_owned());
    }
    let engine = fleets.engines.owners(&entry.name, 1, 0, world).pop();
    let unread = if entry.begin_by.is_some() {
        readers.awaited(&version.spec, fleets)
    } else {
        Vec::new()
    };
    match engine {
        None => (PipelineCreate, "no dataflow engine is available".to_owned()),
        Some(_) if !unread.is_empty() => {
            let named = &unread[..unread.len().min(MOST_NAMED)];
            let text = format!("waits for the topics of {} to be read", named.join(", "));
            (again, text)
        }
        Some(_) => (
            again,
            "waits for its former dataflow engine to let go".to_owned(),
        ),
    }
}

fn gateway_status(
    entry: &Entry,
    version: &Version,
    latest: bool,
    owners: &[Arc<str>],
    world: &World,
) -> (PipelineStatus, String) {
    use PipelineStatus::*;
    if entry.deleted {
        let gone = entry.gone_at.is_some() || entry.gateways.is_empty();
        let failed = entry
            .gateways
            .0
            .values()
            .any(|task| task.is_delete() && task.failed());
        let why = "pipeline removed".to_owned();
        return match (gone, entry.gateways.failure().filter(|_| failed)) {
            (true, _) => (PipelineTerminated, why),
            (_, Some(failure)) => (PipelineFailedTerminating, format!("{why}: {failure}")),
            _ => (PipelineTerminating, why),
        };
    }
    if !version.lives() {
        return (PipelineTerminated, String::new());
    }
    if let Some(rejected) = &entry.rejected {
        return (
            PipelineFailed,
            format!("an Envoy refuses the route: {rejected}"),
        );
    }
    let number = version.number();
    let tasks = || {
        let tasks = owners.iter().filter_map(|name| entry.gateways.0.get(name));
        // Gateways have all versions at once, and are told of the newest.
        tasks.filter(|task| !latest || task.version == number)
    };
    let have = |task: &Task| if latest { task.ready() } else { task.serving };
    if owners.is_empty() {
        return (
            PipelineCreate,
            "no pipeline gateway is available".to_owned(),
        );
    }
    let begun = entry.versions.iter().any(|version| version.was_ready);
    if tasks().any(have) {
        if begun && !entry.taken && world.sync.done {
            let text = "waits for Envoys to take the route".to_owned();
            return (PipelineCreating, text);
        }
        return (PipelineReady, entry.gateways.counts());
    }
    let all = tasks().count();
    if all > 0 && tasks().all(|task| task.phase == Phase::Failed || task.failed()) {
        let failure = entry.gateways.failure().unwrap_or_default();
        return (PipelineFailed, failure);
    }
    (PipelineCreating, entry.gateways.counts())
}

/// One version with its state.
pub(super) fn version_status(version: &Version) -> PipelineWithState {
    let shown = &version.shown;
    PipelineWithState {
        pipeline: Some(Pipeline::clone(&version.spec)),
        state: Some(PipelineVersionState {
            pipeline_version: version.number(),
            status: shown.status.into(),
            reason: shown.reason.clone(),
            last_change_timestamp: timestamp(version.since),
            models_ready: shown.models_ready,
            pipeline_gw_status: shown.gateway_status.into(),
            pipeline_gw_reason: shown.gateway_reason.clone(),
        }),
    }
}

/// The documented status: the newest version, or all that are still shown; steps by name.
pub(crate) fn pipeline_status(entry: &Entry, all_versions: bool) -> PipelineStatusResponse {
    let next = entry.next.as_ref().map(|spec| {
        let mut begun = Version::new(spec.clone());
        begun.shown.reason = "waits for the former pipeline of this name to be removed".to_owned();
        begun.since = entry.latest().since;
        begun
    });
    let newest = entry.versions.len() - 1;
    let versions = entry.versions.iter().enumerate();
    let known = versions
        .filter(|(at, _)| all_versions || (*at == newest && next.is_none()))
        .map(|(_, version)| version);
    let versions = known.chain(&next).map(|version| {
        let mut shown = version_status(version);
        if let Some(pipeline) = &mut shown.pipeline {
            pipeline
                .steps
                .sort_by(|one, other| one.name.cmp(&other.name));
        }
        shown
    });
    PipelineStatusResponse {
        pipeline_name: entry.name.to_string(),
        versions: versions.collect(),
        ..Default::default()
    }
}
