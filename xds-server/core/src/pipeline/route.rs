//! The route of a pipeline: the gateways that answer for it.
use std::{collections::BTreeSet, sync::Arc};

use super::{Entry, Pipelines, fleet::Fleets, task::Task};
use crate::{Effect, PIPELINE_GATEWAYS, ReplicaSet, Split, world::World};

/// The gateways that requests should go to. Those wanted (`owners`) as soon as they have it, others until all of those
/// do; where none is both there and ready, those that were, as a gateway goes on when only its scheduler is lost.
fn derive(entry: &Entry, owners: &[Arc<str>], fleets: &Fleets) -> BTreeSet<u32> {
    let begun = entry.versions.iter().any(|version| version.was_ready);
    if entry.deleted || !begun {
        return BTreeSet::new();
    }
    let fleet = &fleets.pipeline_gateways;
    let serving = |name: &Arc<str>| {
        let task = entry.gateways.0.get(name);
        task.is_some_and(|task| task.serving && !task.is_delete()) && fleet.connected(name)
    };
    let wanted: Vec<&Arc<str>> = owners.iter().filter(|name| serving(name)).collect();
    let settled = owners.iter().all(|name| {
        let task = entry.gateways.0.get(name);
        serving(name) || task.is_some_and(Task::failed)
    });
    let mut chosen: BTreeSet<&Arc<str>> = wanted.iter().copied().collect();
    if !settled || wanted.is_empty() {
        chosen.extend(entry.gateways.0.keys().filter(|name| serving(name)));
    }
    let index = |name: &Arc<str>| fleet.get(name).map(|member| member.index);
    if chosen.is_empty() {
        let former = entry.splits.first().map(|split| &split.replicas.replicas);
        let known = entry.gateways.0.keys().filter_map(index);
        return known
            .filter(|index| former.is_some_and(|former| former.contains(index)))
            .collect();
    }
    chosen.into_iter().filter_map(index).collect()
}

/// Puts the route in force, and notes what gateways that are not in it any more have to wait for.
pub(super) fn publish(
    entry: &mut Entry,
    owners: &[Arc<str>],
    fleets: &mut Fleets,
    world: &mut World,
) {
    let replicas = derive(entry, owners, fleets);
    let splits: Vec<Split> = match u32::try_from(replicas.len()).unwrap_or(u32::MAX) {
        0 => Vec::new(),
        weight => vec![Split {
            version: 0,
            replicas: ReplicaSet {
                server: PIPELINE_GATEWAYS.into(),
                replicas,
            },
            weight,
        }],
    };
    if splits != entry.splits {
        entry.splits = splits;
        entry.route_generation = world.grow();
        world
            .effects
            .push(Effect::RouteChanged(entry.endpoint.clone()));
    }
    if entry.splits.is_empty() {
        entry.taken = false;
    } else {
        fleets.unrouted.remove(&entry.name);
        entry.taken |= entry.route_generation <= world.serving && world.sync.done;
    }
    let routed = |index: u32| {
        let mut splits = entry.splits.iter();
        splits.any(|split| split.replicas.replicas.contains(&index))
    };
    for (name, task) in &mut entry.gateways.0 {
        let index = fleets
            .pipeline_gateways
            .get(name)
            .map(|member| member.index);
        if index.is_some_and(routed) {
            task.routed = true;
            task.gate = None;
        } else if task.gate.is_none() {
            // An Envoy of before a restart may route to it as well.
            let restored = u64::from(task.routed);
            let generation = if task.routed {
                entry.route_generation
            } else {
                0
            };
            task.gate = Some(generation.max(restored));
        }
    }
}

/// Has the pipeline looked at again when Envoys have caught up.
pub(super) fn await_envoys(entry: &Entry, pipelines: &mut Pipelines, world: &World) {
    if !entry.splits.is_empty() && !entry.taken {
        let awaited = (entry.route_generation, entry.name.clone());
        pipelines.awaiting.insert(awaited);
    }
    let gates = entry.gateways.0.values().filter_map(|task| task.gate);
    for gate in gates.filter(|gate| *gate > world.released) {
        pipelines.awaiting.insert((gate, entry.name.clone()));
    }
}
