//! What clients ask of models, and what the store remembers of it.
use std::sync::Arc;

use seldon_proto::scheduler::{KubernetesMeta, Model};

use crate::{
    Effect, Record, Refusal, State,
    model::{Entry, Version, is_name, logs_payloads, retries, same_artefact},
    reconcile::record,
    replica_state::{is_inactive, is_loaded},
    scaling::{follow_spec, has_bounds},
    server::Server,
    world::World,
};

pub(crate) fn restored(state: &mut State, records: Vec<Record>) {
    let mut servers = Vec::new();
    let any = records
        .iter()
        .any(|known| matches!(known, Record::Pipeline { .. } | Record::Model { .. }));
    if any {
        super::workers::wait_for_them(state);
    }
    for known in records {
        match known {
            Record::Experiment {
                spec,
                last_good,
                rollout,
                ..
            } => super::experiments::restored(state, spec, last_good, rollout),
            Record::Model {
                name,
                version,
                spec,
                deleted,
                born,
                scaled,
            } => {
                let mut entry = Entry::new(name.clone(), Version::new(version, spec), true);
                // An agent that does not come back for now may have it.
                (entry.deleted, entry.unconfirmed, entry.born) = (deleted, true, born);
                let scales = state.world.config.model_autoscaling;
                let least = u32::from(state.world.config.scale_to_zero.is_none());
                let scaled = scaled.filter(|_| scales);
                entry.scaling.replicas = scaled.map(|replicas| replicas.max(least));
                state.models.insert(name.clone(), entry);
                state.world.dirty.insert(name);
            }
            Record::Pipeline {
                name,
                versions,
                deleted,
                former,
            } => super::pipelines::restored(state, name, versions, (deleted, former)),
            Record::Server {
                name,
                expected_replicas,
                min_replicas,
                max_replicas,
            } => {
                servers.push((name.clone(), expected_replicas));
                // How many are wanted now is for a client to say; that none is, holds until it does.
                let expected = (expected_replicas == 0).then_some(0);
                let recorded = expected_replicas;
                let server = Server {
                    expected,
                    min_replicas,
                    max_replicas,
                    recorded,
                    ..Server::default()
                };
                state.world.servers.insert(name, server);
            }
        }
    }
    state.world.sync.restored(servers);
}

pub(crate) fn load_model(state: &mut State, mut model: Model) -> Result<(), Refusal> {
    let meta = model.meta.as_mut();
    let Some(meta) = meta else {
        return Err(Refusal::Invalid(
            "the model has no meta: give it a name".into(),
        ));
    };
    if !is_name(&meta.name) {
        return Err(Refusal::Precondition(format!(
            "model {:?} has no valid name: use lower-case letters, digits and inner hyphens, 253 at most",
            meta.name
        )));
    }
    if model.model_spec.is_none() {
        return Err(Refusal::Invalid(format!(
            "model {} has no modelSpec: give it at least a uri",
            meta.name
        )));
    }
    let name = meta.name.clone();
    match state.models.get_mut(name.as_str()) {
        None => {
            let name: Arc<str> = name.into();
            let version = Version::new(first_number(&model), Arc::new(model));
            let entry = Entry::new(name.clone(), version, true);
            state.world.effects.push(Effect::Persist(record(&entry)));
            state.world.dirty.insert(name.clone());
            state.models.insert(name, entry);
        }
        Some(entry) if entry.deleted => {
            let replicas = || entry.versions.iter().flat_map(|version| &version.replicas);
            if !state.world.sync.done || !replicas().all(|replica| is_inactive(replica.state)) {
                return Err(Refusal::Precondition(format!(
                    "model {name} is still being unloaded: load it again when it is terminated (seldon model status {name} -w ModelTerminated)"
                )));
            }
            revive(entry, model);
            state.world.effects.push(Effect::Persist(record(entry)));
            state.world.touch(&entry.name);
        }
        Some(entry) => {
            entry.authoritative = true;
            if update(entry, model, &mut state.world) {
                state.world.effects.push(Effect::Persist(record(entry)));
                state.world.touch(&entry.name);
            }
            try_again(entry, &mut state.world);
        }
    }
    Ok(())
}

/// A load that was given up because it failed too often begins anew when a client asks for it again.
fn try_again(entry: &mut Entry, world: &mut World) {
    let at = entry.latest_position();
    let latest = &mut entry.versions[at];
    if latest.failures < world.config.retry_limit {
        return;
    }
    latest.failures = 0;
    latest.avoided.clear();
    latest.retry_at = Some(world.now.monotonic);
    world.touch(&entry.name);
}

fn first_number(model: &Model) -> u32 {
    let meta = model
        .meta
        .as_ref()
        .and_then(|meta| meta.kubernetes_meta.as_ref());
    u32::try_from(meta.map_or(1, |meta| meta.generation))
        .unwrap_or(1)
        .max(1)
}

/// A model that was deleted begins anew; what an agent may still have of it must not be taken for the new one.
fn revive(entry: &mut Entry, model: Model) {
    let used = entry.unconfirmed
        || entry
            .versions
            .iter()
            .any(|version| !version.replicas.is_empty());
    let number = first_number(&model).max(if used { entry.next_number() } else { 1 });
    entry
        .versions
        .retain(|version| !version.replicas.is_empty());
    for version in &mut entry.versions {
        version.stray = true;
    }
    entry.versions.push(Version::new(number, Arc::new(model)));
    // What an Envoy refuses it refuses until it says otherwise: `rejected` stays.
    (entry.deleted, entry.gone_at, entry.unplaced) = (false, None, None);
    entry.scaling = Default::default();
    entry.short_since = None;
    (entry.authoritative, entry.changed, entry.born) = (true, true, number);
}

/// Takes over what differs: a new artefact is a new version, all else changes in place. Whether anything did.
fn update(entry: &mut Entry, mut model: Model, world: &mut World) -> bool {
    let at = entry.latest_position();
    let latest = &mut entry.versions[at];
    let former = latest.spec.clone();
    if !same_artefact(&latest.spec, &model) {
        let number = entry.next_number();
        entry.versions.push(Version::new(number, Arc::new(model)));
        follow_spec(entry, &former);
        entry.unplaced = None;
        entry.changed = true;
        return true;
    }
    if let (Some(spec), Some(known)) = (&mut model.model_spec, &latest.spec.model_spec) {
        spec.model_runtime_info = known.model_runtime_info.clone();
    }
    if *latest.spec == model {
        return false;
    }
    let on_route = |spec: &Model| (retries(spec), logs_payloads(spec));
    if on_route(&latest.spec) != on_route(&model) && !entry.splits.is_empty() {
        entry.route_generation = world.grow();
        world.effects.push(Effect::RouteChanged(entry.name.clone()));
    }
    latest.spec = Arc::new(model);
    if has_bounds(&former) != has_bounds(&latest.spec) {
        for replica in &latest.replicas {
            if is_loaded(replica.state) {
                world.tell_keeping(latest, replica.index);
            }
        }
    }
    follow_spec(entry, &former);
    entry.changed = true;
    true
}

pub(crate) fn unload_model(
    state: &mut State,
    name: &str,
    meta: Option<KubernetesMeta>,
) -> Result<(), Refusal> {
    let entry = state
        .models
        .get_mut(name)
        .filter(|entry| entry.gone_at.is_none());
    let Some(entry) = entry else {
        return Err(Refusal::Precondition(format!(
            "model {name} is not known: see the names by model list"
        )));
    };
    if let Some(meta) = meta {
        let at = entry.latest_position();
        let mut spec = (*entry.versions[at].spec).clone();
        spec.meta.get_or_insert_default().kubernetes_meta = Some(meta);
        entry.versions[at].spec = Arc::new(spec);
        entry.changed = true;
    }
    if !entry.deleted {
        (entry.deleted, entry.changed) = (true, true);
        state.world.effects.push(Effect::Persist(record(entry)));
    }
    state.world.touch(&entry.name);
    Ok(())
}
