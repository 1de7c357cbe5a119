//! Which replicas go, and when: the first step of the drain law. None is unloaded here; they only leave the route.
use std::sync::Arc;

use crate::{
    model::{Entry, Version},
    reconcile::{available, cut_over_at, is_crowded, older, standing},
    replica_state::{
        ReplicaState::{Available, Draining, LoadFailed, UnloadEnvoyRequested},
        can_receive_traffic, is_loaded, is_loading,
    },
    schedule::retain,
    server::Standing,
    world::World,
};

/// Takes a replica out of the route, or off the version when there is nothing to unload. One that is loading is left
/// until its agent says how that ended.
fn retire(name: &Arc<str>, version: &mut Version, at: usize, world: &mut World) {
    match version.replicas[at].state {
        state if can_receive_traffic(state) => {
            world.set_state(version, at, UnloadEnvoyRequested, None);
            version.replicas[at].gate = None;
        }
        LoadFailed => world.remove_replica(name, version, at),
        _ => {}
    }
}

fn retire_version(name: &Arc<str>, version: &mut Version, world: &mut World) {
    for at in (0..version.replicas.len()).rev() {
        retire(name, version, at, world);
    }
}

/// A deleted model goes from everywhere.
pub(crate) fn retire_all(entry: &mut Entry, world: &mut World) {
    let Entry { name, versions, .. } = entry;
    for version in versions {
        retire_version(name, version, world);
    }
}

/// Older versions go when Envoys have taken enough replicas of the latest.
pub(crate) fn retire_old(entry: &mut Entry, world: &mut World) {
    let latest = entry.latest_position();
    let replaced = entry.target() == 0 || available(entry.latest(), world) >= cut_over_at(entry);
    let Entry { name, versions, .. } = entry;
    for (at, version) in versions.iter_mut().enumerate() {
        if version.stray || (at != latest && replaced) {
            retire_version(name, version, world);
        } else if at != latest {
            let failed = version
                .replicas
                .iter()
                .rposition(|replica| replica.state == LoadFailed);
            if let Some(failed) = failed {
                world.remove_replica(name, version, failed);
            }
        }
    }
}

/// Replicas that are lost or leaving go when others have taken over.
pub(crate) fn retire_replaced(entry: &mut Entry, world: &mut World) {
    let latest = entry.latest_position();
    let target = entry.target();
    let good = |version: &Version, index: u32, world: &World| {
        matches!(
            standing(version, index, world),
            Standing::Usable | Standing::Suspect
        )
    };
    let count = |version: &Version, world: &World, rule: fn(&crate::model::Replica) -> bool| {
        version
            .replicas
            .iter()
            .filter(|replica| rule(replica) && good(version, replica.index, world))
            .count()
    };
    let available_latest = count(entry.latest(), world, |replica| replica.state == Available);
    let loading = count(entry.latest(), world, |replica| is_loading(replica.state)) > 0;
    let available_older: usize = older(entry)
        .map(|version| count(version, world, |replica| replica.state == Available))
        .sum();
    let Entry { name, versions, .. } = entry;
    for (at, version) in versions
        .iter_mut()
        .enumerate()
        .filter(|(_, version)| !version.stray)
    {
        let others = if at == latest {
            available_latest
        } else {
            available_latest + available_older
        };
        for position in (0..version.replicas.len()).rev() {
            let replica = &version.replicas[position];
            if !can_receive_traffic(replica.state) {
                continue;
            }
            let gone = match standing(version, replica.index, world) {
                Standing::Usable | Standing::Suspect => false,
                Standing::Lost => others >= target.max(1),
                Standing::Expired => others > 0,
                Standing::Leaving => others >= target.max(1) || (others > 0 && !loading),
                Standing::Left => true,
            };
            if gone {
                retire(name, version, position, world);
            }
        }
    }
}

/// Replicas beyond those wanted go when enough are available.
pub(crate) fn retire_surplus(entry: &mut Entry, world: &mut World) {
    let (at, target) = (entry.latest_position(), entry.target());
    let Entry { name, versions, .. } = entry;
    let latest = &mut versions[at];
    if target == 0 {
        return retire_version(name, latest, world);
    }
    if latest.ready() <= target {
        return;
    }
    let of_standing = |latest: &Version, world: &World, rule: fn(Standing) -> bool| -> Vec<u32> {
        let available = latest
            .replicas
            .iter()
            .filter(|replica| replica.state == Available && !is_crowded(latest, replica, world));
        available
            .map(|replica| replica.index)
            .filter(|index| rule(standing(latest, *index, world)))
            .collect()
    };
    let mut available = of_standing(latest, world, |standing| standing == Standing::Usable);
    if available.len() < target {
        available = of_standing(latest, world, |s| {
            matches!(s, Standing::Usable | Standing::Suspect)
        });
    }
    if available.len() < target {
        return;
    }
    let Some(server) = latest
        .server
        .as_ref()
        .and_then(|name| world.servers.get(name))
    else {
        return;
    };
    let kept = retain(server, &available, target);
    for position in (0..latest.replicas.len()).rev() {
        let replica = &latest.replicas[position];
        if is_loaded(replica.state) && kept.binary_search(&replica.index).is_err() {
            retire(name, latest, position, world);
        }
    }
    debug_assert!(
        latest
            .replicas
            .iter()
            .all(|replica| replica.state != Draining || replica.deadline.is_some())
    );
}
