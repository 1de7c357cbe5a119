//! The states of models and servers as they are shown.
use std::{sync::Arc, time::Duration};

use prost_types::Timestamp;
use seldon_proto::scheduler::{
    Model, ModelReplicaStatus, ModelStatus, ModelStatusResponse, ModelVersionStatus,
    ServerReplicaResources, ServerStatusResponse, model_status::ModelState, server_status_response,
    storage_config::Config,
};

use crate::{
    model::{Entry, Shown, Version},
    reconcile::{self, older},
    replica_state::{
        ReplicaState::{LoadFailed, LoadedUnavailable, UnloadFailed},
        is_inactive, is_loading,
    },
    server::Server,
    world::World,
};

/// Derives what is shown of a model, and notes whether it changed.
pub(crate) fn refresh_shown(entry: &mut Entry, world: &World) {
    let (state, reason) = match entry.deleted {
        true => state_leaving(entry.versions.iter()),
        false => state_of_latest(entry, world),
    };
    let unavailable = unavailable(entry.latest());
    let available = available_count(entry.latest(), world);
    let same_reason = entry.shown.reason.as_deref() == reason.as_deref();
    let reason = if same_reason {
        entry.shown.reason.take()
    } else {
        reason
    };
    let shown = Shown {
        state,
        reason,
        available,
        unavailable,
    };
    entry.changed |= !same_reason
        || (shown.state, available, unavailable)
            != (
                entry.shown.state,
                entry.shown.available,
                entry.shown.unavailable,
            );
    entry.shown = shown;
}

/// One at rest can be asked, but has no replica in memory.
fn available_count(version: &Version, world: &World) -> u32 {
    if version.resting {
        return 0;
    }
    u32::try_from(reconcile::available(version, world)).unwrap_or(u32::MAX)
}

fn unavailable(version: &Version) -> u32 {
    let replicas = version.replicas.iter();
    let count = replicas
        .filter(|replica| is_loading(replica.state) || replica.state == LoadFailed)
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The state of a version that is deleted or was replaced.
fn state_leaving<'a>(
    versions: impl Iterator<Item = &'a Version> + Clone,
) -> (ModelState, Option<Arc<str>>) {
    let replicas = versions.flat_map(|version| &version.replicas);
    if let Some(failed) = replicas
        .clone()
        .find(|replica| replica.state == UnloadFailed)
    {
        return (ModelState::ModelTerminateFailed, failed.reason.clone());
    }
    let active = replicas.clone().any(|replica| !is_inactive(replica.state));
    (
        if active {
            ModelState::ModelTerminating
        } else {
            ModelState::ModelTerminated
        },
        None,
    )
}

fn state_of_latest(entry: &Entry, world: &World) -> (ModelState, Option<Arc<str>>) {
    let latest = entry.latest();
    let failed = latest
        .replicas
        .iter()
        .find(|replica| matches!(replica.state, LoadFailed | LoadedUnavailable));
    let goes_on = |reason: Option<Arc<str>>| {
        let mut serving = older(entry).filter(|version| reconcile::available(version, world) > 0);
        match (serving.next(), &reason) {
            (Some(version), Some(text)) => {
                let text = format!("{text}; version {} goes on answering", version.number);
                Some(text.into())
            }
            _ => reason,
        }
    };
    if let Some(failed) = failed {
        return (ModelState::ModelFailed, goes_on(failed.reason.clone()));
    }
    let (available, target, least) = (
        reconcile::available(latest, world),
        entry.target(),
        entry.minimum(),
    );
    if available == 0 && target == 0 {
        return (ModelState::ModelScaledDown, None);
    }
    let formerly = || older(entry).any(|version| reconcile::available(version, world) > 0);
    let enough =
        available >= target || (least > 0 && available >= least) || (available > 0 && formerly());
    if enough {
        let decision = || entry.scaling.decision();
        return (
            ModelState::ModelAvailable,
            entry.unplaced.clone().or_else(decision),
        );
    }
    if entry.unplaced.is_some() {
        return (ModelState::ScheduleFailed, goes_on(entry.unplaced.clone()));
    }
    let waiting = (!world.sync.done).then(|| world.sync.missing(&world.servers).into());
    let again = || {
        let reason = latest.last_failure.as_ref()?;
        Some(format!("it is loaded again; before: {reason}").into())
    };
    let reason = waiting.or_else(|| goes_on(again()));
    (ModelState::ModelProgressing, reason)
}

pub(crate) fn timestamp(wall: Duration) -> Option<Timestamp> {
    let seconds = i64::try_from(wall.as_secs()).ok()?;
    let nanos = i32::try_from(wall.subsec_nanos()).ok()?;
    Some(Timestamp { seconds, nanos })
}

/// The documented status of a model: its latest version, or (`all_versions`) each that is still somewhere. `gateway`: the
/// state of its topics' reader, with the reason.
pub(crate) fn model_status(
    entry: &Entry,
    all_versions: bool,
    gateway: (ModelState, &str),
    world: &World,
) -> ModelStatusResponse {
    let latest = entry.latest_position();
    let versions = entry.versions.iter().enumerate();
    let chosen = versions.filter(|(at, version)| *at == latest || (all_versions && !version.stray));
    ModelStatusResponse {
        model_name: entry.name.to_string(),
        versions: chosen
            .map(|(at, version)| version_status(entry, version, at == latest, gateway, world))
            .collect(),
        deleted: entry.deleted,
        ..ModelStatusResponse::default()
    }
}

fn version_status(
    entry: &Entry,
    version: &Version,
    latest: bool,
    gateway: (ModelState, &str),
    world: &World,
) -> ModelVersionStatus {
    let available_replicas = available_count(version, world);
    let unavailable_replicas = unavailable(version);
    let (state, reason) = match latest {
        true => (entry.shown.state, entry.shown.reason.clone()),
        false => state_leaving(std::iter::once(version)),
    };
    let replicas = version.replicas.iter().map(|replica| {
        let status = ModelReplicaStatus {
            state: replica.state.into(),
            reason: replica.reason.as_deref().unwrap_or_default().to_owned(),
            last_change_timestamp: timestamp(replica.since),
        };
        (i32::try_from(replica.index).unwrap_or(i32::MAX), status)
    });
    let meta = version.spec.meta.as_ref();
    ModelVersionStatus {
        version: version.number,
        server_name: version.server.as_deref().unwrap_or_default().to_owned(),
        kubernetes_meta: meta.and_then(|meta| meta.kubernetes_meta.clone()),
        model_replica_state: replicas.collect(),
        state: Some(ModelStatus {
            state: state.into(),
            reason: reason.as_deref().unwrap_or_default().to_owned(),
            available_replicas,
            unavailable_replicas,
            last_change_timestamp: timestamp(entry.since),
            model_gw_state: gateway.0.into(),
            model_gw_reason: gateway.1.to_owned(),
        }),
        model_defn: Some(definition(&version.spec)),
    }
}

/// What a status shows of a definition: a storage configuration that was given inline holds credentials.
fn definition(spec: &Model) -> Model {
    let mut shown = spec.clone();
    let storage = shown
        .model_spec
        .as_mut()
        .and_then(|spec| spec.storage_config.as_mut());
    if let Some(Config::StorageRcloneConfig(inline)) =
        storage.and_then(|storage| storage.config.as_mut())
    {
        "(hidden)".clone_into(inline);
    }
    shown
}

/// The documented status of a server; replicas that are lost or about to go do not count.
pub(crate) fn server_status(name: &str, server: &Server) -> ServerStatusResponse {
    let int = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let resources: Vec<ServerReplicaResources> = server
        .usable()
        .map(|(index, replica)| ServerReplicaResources {
            replica_idx: index,
            total_memory_bytes: replica.total_memory,
            available_memory_bytes: replica.free(),
            num_loaded_models: int(replica.loaded as usize),
            over_commit_percentage: replica.over_commit,
            evicted_models: replica.usage.evicted_models,
            requests_in_flight: replica.usage.requests_in_flight,
        })
        .collect();
    ServerStatusResponse {
        r#type: server_status_response::Type::StatusUpdate.into(),
        server_name: name.to_owned(),
        expected_replicas: server
            .expected
            .map_or(-1, |expected| int(expected as usize)),
        available_replicas: int(resources.len()),
        num_loaded_model_replicas: resources
            .iter()
            .map(|replica| replica.num_loaded_models)
            .sum(),
        resources,
        kubernetes_meta: server.kubernetes_meta.clone(),
    }
}

/// What whoever owns a server's replicas is asked for.
pub(crate) fn scaling_request(name: &str, replicas: u32, server: &Server) -> ServerStatusResponse {
    ServerStatusResponse {
        r#type: server_status_response::Type::ScalingRequest.into(),
        server_name: name.to_owned(),
        expected_replicas: i32::try_from(replicas).unwrap_or(i32::MAX),
        kubernetes_meta: server.kubernetes_meta.clone(),
        ..ServerStatusResponse::default()
    }
}
