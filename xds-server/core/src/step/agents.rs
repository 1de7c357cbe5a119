//! Agents that subscribe: where they are, and what they have.
use std::{collections::BTreeMap, sync::Arc};

use seldon_proto::{
    agent::{AgentSubscribeRequest, model_operation_message::Operation},
    scheduler::{Model, ModelRuntimeInfo},
};

use super::servers::{refresh_surplus, shared_name};
use crate::{
    Effect, Refusal, State, StreamId,
    model::{Entry, Version, is_name, required_memory, same_artefact},
    reconcile::record,
    replica_state::{
        ReplicaState::{self, *},
        is_loading, is_loading_or_loaded,
    },
    scaling,
    server::{ServerReplica, endpoint},
    world::World,
};

/// What an agent says it has loaded, by name and version.
type Inventory = BTreeMap<(String, u32), Model>;

pub(crate) fn connected(
    state: &mut State,
    stream: StreamId,
    subscription: AgentSubscribeRequest,
) -> Result<(), Refusal> {
    let world = &mut state.world;
    check_subscription(world, &subscription)?;
    let name = shared_name(world, &subscription.server_name);
    let index = subscription.replica_idx;
    let server = world.servers.entry(name.clone()).or_default();
    let fresh = !server.replicas.contains_key(&index);
    let replica = server
        .replicas
        .entry(index)
        .or_insert_with(|| ServerReplica::new(index));
    let moved = replica.describe(&subscription);
    (replica.stream, replica.lost_at) = (Some(stream), None);
    if let Some(drain) = replica.drain.take() {
        world.draining -= usize::from(!drain.tokens.is_empty());
        world
            .effects
            .extend(drain.tokens.into_iter().map(|token| Effect::Drained {
                token,
                complete: false,
            }));
    }
    let inventory: Inventory = subscription
        .loaded_models
        .into_iter()
        .filter_map(|loaded| {
            let model = loaded.model?;
            Some(((model.meta.as_ref()?.name.clone(), loaded.version), model))
        })
        .collect();
    let held: u64 = inventory.values().map(required_memory).sum();
    // An agent whose models at rest would not all fit has nothing free, and no less than nothing.
    let free = subscription.available_memory_bytes;
    replica.capacity = free.saturating_add(held).min(replica.most_memory());
    server.shared |= subscription.shared;
    server.refresh_capabilities();
    if moved || fresh {
        world.generation += 1;
        replica_of(world, &name, index).endpoint_generation = world.generation;
        world.effects.push(Effect::EndpointsChanged(name.clone()));
    }
    refresh_surplus(world, &name);
    take_inventory(state, &name, index, inventory);
    let world = &mut state.world;
    let replica = replica_of(world, &name, index);
    replica.excess = replica.booked.saturating_sub(replica.capacity);
    world.note_empty(&name, index);
    let server = &world.servers[&name];
    if server.expected.is_none() && server.replicas.len() > server.recorded as usize {
        world.record_server(&name);
    }
    world.epoch += 1;
    world.changed_servers.insert(name);
    world.retry_unplaced();
    Ok(())
}

/// Two agents must not pass for one replica.
fn check_subscription(world: &World, subscription: &AgentSubscribeRequest) -> Result<(), Refusal> {
    let (server, index) = (&subscription.server_name, subscription.replica_idx);
    if !is_name(server) {
        return Err(Refusal::Invalid(format!(
            "server {server:?} has no valid name: use lower-case letters, digits and inner hyphens, 253 at most"
        )));
    }
    let known = world.servers.get(server.as_str());
    let there = known.and_then(|server| server.replicas.get(&index));
    match there {
        Some(replica)
            if replica.stream.is_some()
                && !replica.endpoint.same_place(&endpoint(subscription)) =>
        {
            Err(Refusal::Precondition(format!(
                "replica {index} of server {server} is connected already, from {}: give each agent another index",
                replica.endpoint.host
            )))
        }
        _ => Ok(()),
    }
}

fn replica_of<'a>(world: &'a mut World, server: &Arc<str>, index: u32) -> &'a mut ServerReplica {
    let server = world.servers.entry(server.clone()).or_default();
    server
        .replicas
        .entry(index)
        .or_insert_with(|| ServerReplica::new(index))
}

/// Compares what an agent has with what is known of it.
fn take_inventory(state: &mut State, server: &Arc<str>, index: u32, mut inventory: Inventory) {
    let known: Vec<Arc<str>> = replica_of(&mut state.world, server, index)
        .models
        .keys()
        .cloned()
        .collect();
    for name in known {
        let Some(entry) = state.models.get_mut(&name) else {
            continue;
        };
        for version in &mut entry.versions {
            if !version.is_on(server) {
                continue;
            }
            let Some(at) = version.position(index) else {
                continue;
            };
            let key = (name.to_string(), version.number);
            let same = inventory
                .get(&key)
                .is_some_and(|found| version.stray || same_artefact(found, &version.spec));
            let found = if same { inventory.remove(&key) } else { None };
            compare(&name, version, at, found, &mut state.world);
        }
        entry.changed = true;
        state.world.dirty.insert(name);
    }
    for ((name, number), model) in inventory {
        adopt(state, server, index, &name, number, model);
    }
}

/// One replica of a version, known here and found (or not) on the agent.
fn compare(
    name: &Arc<str>,
    version: &mut Version,
    at: usize,
    found: Option<Model>,
    world: &mut World,
) {
    let state = version.replicas[at].state;
    if let Some(model) = found {
        let stays = is_loading_or_loaded(state) || matches!(state, Draining | LoadFailed);
        if stays && scaling::may_keep_otherwise(&model, &version.spec) {
            world.tell_keeping(version, version.replicas[at].index);
        }
        learn_runtime(
            version,
            model.model_spec.and_then(|spec| spec.model_runtime_info),
            world,
        );
        match state {
            state if is_loading(state) || state == LoadFailed => loaded(version, at, world),
            // Still to be unloaded; its gate tells when.
            UnloadRequested | Unloading | UnloadFailed => {
                version.replicas[at].failures = 0;
                world.set_state(version, at, UnloadEnvoyRequested, None);
            }
            _ => {}
        }
    } else if is_loading(state) && world.sync.done {
        let index = version.replicas[at].index;
        world.set_state(version, at, Loading, None);
        world.send(version, index, Operation::LoadModel);
    } else {
        let index = version.replicas[at].index;
        world.remove_replica(name, version, at);
        if state == LoadFailed {
            version.forgive(index);
        }
    }
}

pub(super) fn loaded(version: &mut Version, at: usize, world: &mut World) {
    world.set_state(version, at, Loaded, None);
    version.replicas[at].gate = None;
    version.forgive(version.replicas[at].index);
}

/// The first report of how a runtime runs the model says what each replica really takes.
pub(super) fn learn_runtime(
    version: &mut Version,
    runtime: Option<ModelRuntimeInfo>,
    world: &mut World,
) {
    let known = version
        .spec
        .model_spec
        .as_ref()
        .is_none_or(|spec| spec.model_runtime_info.is_some());
    if runtime.is_none() || known {
        return;
    }
    let former = version.required();
    let mut spec = (*version.spec).clone();
    if let Some(model) = &mut spec.model_spec {
        model.model_runtime_info = runtime;
    }
    version.spec = Arc::new(spec);
    world.rebook(version, former);
}

/// Takes in a model that an agent has and that was not known to be there.
pub(super) fn adopt(
    state: &mut State,
    server: &Arc<str>,
    index: u32,
    name: &str,
    number: u32,
    model: Model,
) {
    let world = &mut state.world;
    let spec = Arc::new(model);
    let on_server = |spec: &Arc<Model>| Version {
        server: Some(server.clone()),
        ..Version::new(number, spec.clone())
    };
    let Some(entry) = state.models.get_mut(name) else {
        let name: Arc<str> = name.into();
        let mut entry = Entry::new(name.clone(), on_server(&spec), false);
        put(&name, &mut entry.versions[0], index, &spec, world);
        world.effects.push(Effect::Persist(record(&entry)));
        state.models.insert(name.clone(), entry);
        world.dirty.insert(name);
        return;
    };
    let (latest, at) = (entry.latest(), entry.latest_position());
    let newest = latest.number;
    let unbound = latest.replicas.is_empty();
    let fits =
        number == newest && same_artefact(&latest.spec, &spec) && (latest.is_on(server) || unbound);
    let name = entry.name.clone();
    let older = entry
        .versions
        .iter()
        .position(|v| !v.stray && v.number == number && v.is_on(server));
    let taken = entry.find(number, server, index).is_some();
    if entry.deleted
        || taken
        || number < entry.born
        || (number == newest && !fits)
        || (number > newest && entry.authoritative)
    {
        let mut stray = Version {
            stray: true,
            ..on_server(&spec)
        };
        add(&name, &mut stray, index, UnloadEnvoyRequested, world);
        let position = entry
            .versions
            .partition_point(|version| version.number < number);
        entry.versions.insert(position, stray);
    } else if fits {
        let latest = &mut entry.versions[at];
        latest.server = Some(server.clone());
        put(&name, latest, index, &spec, world);
        let runtime = spec
            .model_spec
            .as_ref()
            .and_then(|spec| spec.model_runtime_info.clone());
        learn_runtime(&mut entry.versions[at], runtime, world);
        if !entry.unconfirmed {
            scaling::take_over(entry, world);
        }
    } else if let Some(older) = older {
        put(&name, &mut entry.versions[older], index, &spec, world);
    } else {
        let mut version = on_server(&spec);
        put(&name, &mut version, index, &spec, world);
        let position = entry
            .versions
            .partition_point(|version| version.number < number);
        entry.versions.insert(position, version);
        if number > newest {
            world.effects.push(Effect::Persist(record(entry)));
        }
    }
    entry.changed = true;
    world.dirty.insert(name);
}

/// Adds a replica that is loaded: its agent has it by `held`.
fn put(name: &Arc<str>, version: &mut Version, index: u32, held: &Model, world: &mut World) {
    add(name, version, index, Loaded, world);
    if scaling::may_keep_otherwise(held, &version.spec) {
        world.tell_keeping(version, index);
    }
}

/// Adds a replica that may have been routed in an earlier life.
fn add(name: &Arc<str>, version: &mut Version, index: u32, state: ReplicaState, world: &mut World) {
    let at = world.add_replica(name, version, index);
    world.set_state(version, at, state, None);
    version.replicas[at].routed = true;
    recount_excess(version, index, world);
    // What rested before comes back, perhaps to more than there is room for.
    if scaling::may_rest(&version.spec) {
        world.note_crowded(version, at);
    }
}

/// What is there is there, whether there was room for it or not.
pub(super) fn recount_excess(version: &Version, index: u32, world: &mut World) {
    if let Some(server) = &version.server {
        let host = replica_of(world, server, index);
        host.excess = host.booked.saturating_sub(host.capacity);
    }
}
