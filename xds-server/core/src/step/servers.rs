//! Servers and their replicas: how many there should be, and what becomes of one that goes.
use std::sync::Arc;

use seldon_proto::scheduler::ServerNotify;

use crate::{
    AgentKey, Effect, Refusal, State, StreamId,
    model::Entry,
    reconcile::holds_up_drain,
    server::{Drain, Standing},
    world::{Timer, World},
};

pub(crate) fn notified(
    state: &mut State,
    servers: &[ServerNotify],
    first_sync: bool,
) -> Result<(), Refusal> {
    if servers.iter().any(|server| server.name.is_empty()) {
        return Err(Refusal::Invalid(
            "a server in the notification has no name: name each".into(),
        ));
    }
    for notice in servers {
        let name = shared_name(&state.world, &notice.name);
        let server = state.world.servers.entry(name.clone()).or_default();
        server.expected = Some(notice.expected_replicas);
        (server.min_replicas, server.max_replicas) = (notice.min_replicas, notice.max_replicas);
        server.shared |= notice.shared;
        server.kubernetes_meta.clone_from(&notice.kubernetes_meta);
        server.scaling.answered();
        let empty: Vec<u32> = server
            .replicas
            .iter()
            .filter(|(_, replica)| replica.awake == 0)
            .map(|(index, _)| *index)
            .collect();
        for index in empty {
            state.world.note_empty(&name, index);
        }
        refresh_surplus(&mut state.world, &name);
        state.world.record_server(&name);
        state.world.sync.expect(&name, notice.expected_replicas);
        state.world.changed_servers.insert(name);
    }
    if first_sync {
        let expected = servers
            .iter()
            .map(|server| (server.name.as_str().into(), server.expected_replicas));
        state.world.sync.announce(expected);
    }
    state.world.retry_unplaced();
    Ok(())
}

/// The name as it is shared already.
pub(crate) fn shared_name(world: &World, name: &str) -> Arc<str> {
    world
        .servers
        .get_key_value(name)
        .map_or_else(|| name.into(), |(known, _)| known.clone())
}

/// Finds which replicas are too many, and has their models looked at.
pub(crate) fn refresh_surplus(world: &mut World, name: &Arc<str>) {
    let Some(server) = world.servers.get_mut(name) else {
        return;
    };
    let changed = server.refresh_surplus();
    for index in changed {
        world
            .dirty
            .extend(server.replicas[&index].models.keys().cloned());
    }
}

pub(crate) fn disconnected(state: &mut State, agent: &AgentKey, stream: StreamId) {
    let world = &mut state.world;
    let now = world.now.monotonic;
    let Some(server) = world.servers.get_mut(&agent.server) else {
        return;
    };
    let Some(replica) = server.replicas.get_mut(&agent.replica) else {
        return;
    };
    if replica.stream != Some(stream) {
        return;
    }
    (replica.stream, replica.lost_at) = (None, Some(now));
    if let Some(drain) = &mut replica.drain {
        let tokens = std::mem::take(&mut drain.tokens);
        drain.pending.clear();
        world.draining -= usize::from(!tokens.is_empty());
        world.effects.extend(ended(tokens, false));
    }
    world.dirty.extend(replica.models.keys().cloned());
    server.refresh_capabilities();
    for span in [world.config.replace_after, world.config.suspect] {
        world
            .timers
            .insert((now + span, Timer::Replica(agent.clone())));
    }
    world.changed_servers.insert(agent.server.clone());
    world.retry_unplaced();
}

/// A deadline of a replica has come: it is lost, or its drain took too long.
pub(crate) fn replica_due(state: &mut State, agent: &AgentKey) {
    let world = &mut state.world;
    let now = world.now.monotonic;
    let Some(server) = world.servers.get_mut(&agent.server) else {
        return;
    };
    let Some(replica) = server.replicas.get_mut(&agent.replica) else {
        return;
    };
    world.dirty.extend(replica.models.keys().cloned());
    if let Some(drain) = &mut replica.drain
        && drain.deadline <= now
    {
        let tokens = std::mem::take(&mut drain.tokens);
        world.draining -= usize::from(!tokens.is_empty());
        world.effects.extend(ended(tokens, false));
    }
    world.changed_servers.insert(agent.server.clone());
}

pub(crate) fn drain(state: &mut State, agent: &AgentKey, token: u64) -> Result<(), Refusal> {
    let world = &mut state.world;
    let replica = world
        .servers
        .get_mut(&agent.server)
        .and_then(|server| server.replicas.get_mut(&agent.replica));
    let Some(replica) = replica.filter(|replica| replica.stream.is_some()) else {
        return Err(Refusal::Precondition(format!(
            "replica {} of server {} is not connected: there is nothing to drain",
            agent.replica, agent.server
        )));
    };
    let deadline = world.now.monotonic + world.config.drain_timeout;
    let drain = replica.drain.get_or_insert_with(Drain::default);
    if replica.models.is_empty() {
        world.effects.extend(ended(vec![token], true));
    } else {
        world.draining += usize::from(drain.tokens.is_empty());
        drain.tokens.push(token);
        drain.stuck.clear();
        drain.pending = replica.models.keys().cloned().collect();
        drain.deadline = deadline;
        world
            .timers
            .insert((deadline, Timer::Replica(agent.clone())));
    }
    world.dirty.extend(replica.models.keys().cloned());
    world.changed_servers.insert(agent.server.clone());
    Ok(())
}

fn ended(tokens: Vec<u64>, complete: bool) -> impl Iterator<Item = Effect> {
    tokens
        .into_iter()
        .map(move |token| Effect::Drained { token, complete })
}

/// Answers drains that no longer wait for this model, nor for any other.
pub(crate) fn advance_drains(entry: &Entry, world: &mut World) {
    if world.draining == 0 || !world.sync.done {
        return;
    }
    let waiting: Vec<AgentKey> = world
        .servers
        .iter()
        .flat_map(|(name, server)| {
            server
                .replicas
                .iter()
                .map(move |(index, replica)| (name, *index, replica))
        })
        .filter(|(_, _, replica)| {
            replica
                .drain
                .as_ref()
                .is_some_and(|drain| drain.pending.contains(&entry.name))
        })
        .map(|(name, replica, _)| AgentKey {
            server: name.clone(),
            replica,
        })
        .collect();
    for agent in waiting {
        if holds_up_drain(entry, &agent.server, agent.replica, world) {
            continue;
        }
        let replica = world
            .servers
            .get_mut(&agent.server)
            .and_then(|server| server.replicas.get_mut(&agent.replica));
        let Some(drain) = replica.and_then(|replica| replica.drain.as_mut()) else {
            continue;
        };
        drain.pending.remove(&entry.name);
        let routed = entry.splits.iter().any(|split| {
            let set = &split.replicas;
            set.server == agent.server && set.replicas.contains(&agent.replica)
        });
        if routed {
            drain.stuck.insert(entry.name.clone());
        }
        if drain.pending.is_empty() && !drain.tokens.is_empty() {
            let tokens = std::mem::take(&mut drain.tokens);
            let complete = drain.stuck.is_empty();
            world.draining -= 1;
            world.effects.extend(ended(tokens, complete));
        }
    }
}

/// Forgets replicas that are gone and hold nothing, and servers that are gone and not wanted.
pub(crate) fn prune(world: &mut World, name: &Arc<str>) {
    let now = world.now.monotonic;
    let Some(server) = world.servers.get_mut(name) else {
        return;
    };
    let before = server.replicas.len();
    let config = &world.config;
    server.replicas.retain(|_, replica| {
        let gone = matches!(
            replica.standing(now, config),
            Standing::Expired | Standing::Left
        );
        !(gone && replica.models.is_empty() && replica.stream.is_none())
    });
    if server.replicas.is_empty() && server.expected.is_none_or(|expected| expected == 0) {
        world.servers.remove(name);
        world.sync.forget(name);
        world.effects.push(Effect::ForgetServer(name.clone()));
    } else if before != server.replicas.len() {
        let notified = server.expected.is_some();
        refresh_surplus(world, name);
        if !notified {
            world.record_server(name);
        }
    } else {
        return;
    }
    if before > 0 {
        world.grow();
        world.effects.push(Effect::EndpointsChanged(name.clone()));
    }
}
