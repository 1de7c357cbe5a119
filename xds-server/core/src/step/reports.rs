//! What agents report: how loads and unloads ended, and how they are used.
use std::sync::Arc;

use seldon_proto::agent::{
    ModelEventMessage, ReplicaUsage, model_event_message::Event as Reported,
    model_operation_message::Operation,
};

use super::{
    agents::{adopt, learn_runtime, loaded, recount_excess},
    servers::shared_name,
};
use crate::{
    Refusal, State,
    model::{Version, required_memory},
    reconcile::{fail_load, fail_unload},
    replica_state::{
        ReplicaState::{self, *},
        can_receive_traffic, holds_memory, is_loaded, is_loading,
    },
    scaling,
    world::World,
};

pub(crate) fn reported(state: &mut State, report: &ModelEventMessage) -> Result<(), Refusal> {
    if let Some(usage) = &report.usage {
        used(&mut state.world, report, *usage);
    }
    let event = report.event();
    let expected: fn(ReplicaState) -> bool = match event {
        Reported::Loaded => {
            // One that was given up may be loaded after all.
            |state| {
                is_loading(state)
                    || matches!(
                        state,
                        LoadFailed | Loaded | Available | LoadedUnavailable | Draining
                    )
            }
        }
        // Also of one that was loaded: the agent had to give it up, and could not bring it back.
        Reported::LoadFailed | Reported::LoadFailMemory => {
            |state| is_loading(state) || is_loaded(state) || state == LoadFailed
        }
        Reported::Unloaded => |state| matches!(state, UnloadRequested | Unloading | UnloadFailed),
        Reported::UnloadFailed => {
            |state| matches!(state, UnloadRequested | Unloading | UnloadFailed)
        }
        _ => return Ok(()),
    };
    let State { models, world, .. } = state;
    let entry = models.get_mut(report.model_name.as_str());
    let place = entry.as_ref().and_then(|entry| {
        entry.find(
            report.model_version,
            &report.server_name,
            report.replica_idx,
        )
    });
    let (Some(entry), Some((version_at, at))) = (entry, place) else {
        return unexpected(state, report);
    };
    let version = &mut entry.versions[version_at];
    let actual = version.replicas[at].state;
    if !expected(actual) {
        return Err(mismatch(report, actual.as_str_name()));
    }
    let draining = !crate::reconcile::standing(version, report.replica_idx, world)
        .eq(&crate::server::Standing::Usable);
    match event {
        Reported::Loaded if can_receive_traffic(actual) => return Ok(()),
        Reported::Loaded => {
            loaded(version, at, world);
            recount_excess(version, report.replica_idx, world);
            learn_runtime(version, report.runtime_info.clone(), world);
        }
        // An agent that is about to go refuses loads; that says nothing about the model.
        Reported::LoadFailed | Reported::LoadFailMemory if draining => {
            world.remove_replica(&entry.name, version, at);
        }
        Reported::LoadFailed | Reported::LoadFailMemory => {
            if is_loaded(actual) {
                // The agent gave it up, or this was said before it loaded: what is so the order to load it shows.
                world.set_state(version, at, Loading, None);
                version.replicas[at].gate = None;
                // A model that cannot be brought back is no model at rest; its agent is told so, which is the order.
                if !scaling::wake(entry, "it could not be loaded when it was asked for", world) {
                    let version = &entry.versions[version_at];
                    world.send(version, report.replica_idx, Operation::LoadModel);
                }
            } else if is_loading(actual) {
                fail_load(
                    version,
                    at,
                    failure_text(report, "the agent failed to load it"),
                    world,
                );
            }
        }
        Reported::Unloaded => world.remove_replica(&entry.name, version, at),
        _ => {
            if actual != UnloadFailed {
                fail_unload(
                    version,
                    at,
                    failure_text(report, "the agent failed to unload it"),
                    world,
                );
            }
        }
    }
    entry.changed = true;
    world.touch(&entry.name);
    Ok(())
}

fn used(world: &mut World, report: &ModelEventMessage, usage: ReplicaUsage) {
    let name = shared_name(world, &report.server_name);
    let server = world.servers.get_mut(&name);
    let replica = server.and_then(|server| server.replicas.get_mut(&report.replica_idx));
    if let Some(replica) = replica {
        // No news for subscribers: under load it changes all the time.
        replica.usage = usage;
    }
}

fn failure_text<'a>(report: &'a ModelEventMessage, fallback: &'a str) -> &'a str {
    if report.message.is_empty() {
        fallback
    } else {
        &report.message
    }
}

/// A report on something that is not known to be there: what was loaded after all has to go again.
fn unexpected(state: &mut State, report: &ModelEventMessage) -> Result<(), Refusal> {
    let server = shared_name(&state.world, &report.server_name);
    let known = state
        .world
        .servers
        .get(&server)
        .and_then(|server| server.replicas.get(&report.replica_idx));
    let connected = known.is_some_and(|replica| replica.stream.is_some());
    let spec = state
        .models
        .get(report.model_name.as_str())
        .map(|entry| entry.latest().spec.clone());
    match (report.event(), spec) {
        (Reported::Loaded, Some(spec)) if connected => {
            let model = (*spec).clone();
            let place = (&*report.model_name, report.model_version);
            adopt(state, &server, report.replica_idx, place.0, place.1, model);
            confirm(state, place, &server, report.replica_idx);
            Ok(())
        }
        (Reported::Unloaded, _) => {
            freed(state, &server, report);
            Ok(())
        }
        _ => Err(mismatch(report, "absent")),
    }
}

/// A report may come so late that its agent has unloaded the model since: nothing is routed there before it has said, by the
/// order that it is given now, that the model is there.
fn confirm(state: &mut State, (name, number): (&str, u32), server: &Arc<str>, index: u32) {
    let State { models, world, .. } = state;
    let Some(entry) = models.get_mut(name) else {
        return;
    };
    let latest = entry.latest_position();
    let Some((position, at)) = entry.find(number, server, index) else {
        return;
    };
    let version = &mut entry.versions[position];
    if version.replicas[at].state != Loaded {
        return;
    }
    if position == latest {
        world.set_state(version, at, Loading, None);
        world.send(version, index, Operation::LoadModel);
    } else {
        world.set_state(version, at, UnloadEnvoyRequested, None);
    }
}

/// What was on its way out when its agent subscribed was neither free nor named as loaded: now it is free.
fn freed(state: &mut State, server: &Arc<str>, report: &ModelEventMessage) {
    let State { models, world, .. } = state;
    let index = report.replica_idx;
    let host = world.servers.get_mut(server);
    let Some(host) = host.and_then(|server| server.replicas.get_mut(&index)) else {
        return;
    };
    let entries = host.models.keys().filter_map(|name| models.get(name));
    let there = |version: &&Version| {
        let at = version.position(index).filter(|_| version.is_on(server));
        at.is_some_and(|at| {
            let state = version.replicas[at].state;
            holds_memory(state) && !is_loading(state)
        })
    };
    let versions = entries.flat_map(|entry| &entry.versions).filter(there);
    // Its agent counts those at rest as well.
    let held: u64 = versions.map(|version| required_memory(&version.spec)).sum();
    let capacity = report.available_memory_bytes.saturating_add(held);
    let capacity = capacity.min(host.most_memory());
    if capacity > host.capacity {
        host.capacity = capacity;
        host.excess = host.excess.min(host.booked.saturating_sub(capacity));
        world.touch_server(server);
        world.retry_unplaced();
    }
}

fn mismatch(report: &ModelEventMessage, actual: &str) -> Refusal {
    Refusal::Mismatch(format!(
        "model {}:{} on replica {} of server {}: {} was reported, but it is {actual}",
        report.model_name,
        report.model_version,
        report.replica_idx,
        report.server_name,
        report.event().as_str_name(),
    ))
}
