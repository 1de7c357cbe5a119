//! The route of a model, derived from its replicas.
use std::collections::BTreeSet;

use crate::{
    Effect, ReplicaSet, Split,
    model::{Entry, Version},
    reconcile::cut_over_at,
    replica_state::{
        ReplicaState::{Available, Draining, Loaded, LoadedUnavailable, UnloadEnvoyRequested},
        is_loaded,
    },
    world::World,
};

/// Replicas that answer for a version: those loaded, or when there are none those that drain.
fn serving(version: &Version) -> BTreeSet<u32> {
    let of = |rule: fn(&crate::model::Replica) -> bool| -> BTreeSet<u32> {
        version
            .replicas
            .iter()
            .filter(|replica| rule(replica))
            .map(|replica| replica.index)
            .collect()
    };
    let loaded = of(|replica| is_loaded(replica.state));
    if loaded.is_empty() {
        of(|replica| replica.state == Draining)
    } else {
        loaded
    }
}

/// The route that the model should have.
pub(crate) fn derive(entry: &Entry, world: &World) -> Vec<Split> {
    let latest = entry.latest_position();
    let scaled_down = entry.target() == 0 && world.sync.done;
    if entry.deleted || scaled_down {
        return Vec::new();
    }
    let cut_over = entry.latest().ready() >= cut_over_at(entry);
    let versions = entry.versions.iter().enumerate();
    let chosen = versions.filter(|(at, version)| *at == latest || (!cut_over && !version.stray));
    let splits = chosen.filter_map(|(_, version)| {
        let replicas = serving(version);
        let weight = u32::try_from(replicas.len())
            .ok()
            .filter(|weight| *weight > 0)?;
        let server = version.server.clone()?;
        Some(Split {
            version: version.number,
            replicas: ReplicaSet { server, replicas },
            weight,
        })
    });
    splits.collect()
}

fn routed(splits: &[Split], version: &Version, index: u32) -> bool {
    splits.iter().any(|split| {
        split.version == version.number
            && version.is_on(&split.replicas.server)
            && split.replicas.replicas.contains(&index)
    })
}

/// Puts the derived route in force, and notes which generation its replicas have to wait for.
pub(crate) fn publish(entry: &mut Entry, world: &mut World) {
    let splits = derive(entry, world);
    if splits != entry.splits {
        entry.route_generation = world.grow();
        entry.splits = splits;
        world.effects.push(Effect::RouteChanged(entry.name.clone()));
        world.moved = true;
    }
    let (name, generation, unconfirmed) = (&entry.name, entry.route_generation, entry.unconfirmed);
    for version in &mut entry.versions {
        for at in 0..version.replicas.len() {
            let index = version.replicas[at].index;
            let routed = !version.stray && routed(&entry.splits, version, index);
            let endpoint = version
                .server
                .as_ref()
                .and_then(|name| world.servers.get(name));
            let endpoint = endpoint.and_then(|server| server.replicas.get(&index));
            let replica = &mut version.replicas[at];
            replica.routed |= routed;
            match replica.state {
                Loaded if routed && replica.gate.is_none() => {
                    let gate =
                        generation.max(endpoint.map_or(0, |endpoint| endpoint.endpoint_generation));
                    replica.gate = Some(gate);
                    if gate > world.serving {
                        world.awaiting_serving.insert((gate, name.clone()));
                    }
                }
                UnloadEnvoyRequested if replica.gate.is_none() => {
                    // An earlier replica in this place may still be in an Envoy's route, of this life or the last.
                    let gate = generation.max(u64::from(replica.routed || unconfirmed));
                    replica.gate = Some(gate);
                    if gate > world.released {
                        world.awaiting_release.insert((gate, name.clone()));
                    }
                }
                _ => {}
            }
        }
    }
}

/// Replicas whose route Envoys have taken become available; those whose route was refused do not.
pub(crate) fn promote(entry: &mut Entry, world: &mut World) {
    for version in entry.versions.iter_mut().filter(|version| !version.stray) {
        for at in 0..version.replicas.len() {
            let replica = &version.replicas[at];
            let taken = replica.gate.is_some_and(|gate| gate <= world.serving);
            let next = match (replica.state, &entry.rejected) {
                (Loaded | Available, Some(_)) if routed(&entry.splits, version, replica.index) => {
                    LoadedUnavailable
                }
                (Loaded | LoadedUnavailable, None) if taken => Available,
                (LoadedUnavailable, None) => Loaded,
                _ => continue,
            };
            let reason = entry.rejected.clone().filter(|_| next == LoadedUnavailable);
            world.set_state(version, at, next, reason.as_deref());
        }
    }
    debug_assert!(entry.splits.iter().all(|split| split.weight > 0));
}
