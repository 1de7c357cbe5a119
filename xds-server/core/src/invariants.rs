//! What must hold after every step, defined once: checked in part by debug builds, in full by the property tests.
use crate::{
    State,
    replica_state::{ReplicaState::*, can_receive_traffic, holds_memory, is_transient},
};

/// Checks a part that costs little, however many models there are.
pub(crate) fn check_touched(state: &State) {
    for (name, server) in &state.world.servers {
        for (index, replica) in &server.replicas {
            debug_assert!(
                replica.booked <= replica.capacity.saturating_add(replica.excess),
                "replica {index} of server {name} has {} bytes booked of {}",
                replica.booked,
                replica.capacity
            );
        }
    }
}

/// Checks everything; the first thing that does not hold, in words.
pub fn check(state: &State) -> Result<(), String> {
    check_touched(state);
    check_books(state)?;
    for (name, entry) in &state.models {
        for split in &entry.splits {
            if split.weight == 0 || split.replicas.replicas.is_empty() {
                return Err(format!("the route of {name} has an empty split"));
            }
            for index in &split.replicas.replicas {
                let found = entry.find(split.version, &split.replicas.server, *index);
                let replica = found.map(|(version, at)| &entry.versions[version].replicas[at]);
                if !replica.is_some_and(|replica| can_receive_traffic(replica.state)) {
                    return Err(format!(
                        "the route of {name} names replica {index}, which is {replica:?}"
                    ));
                }
                if state.endpoints(&split.replicas).len() != split.replicas.replicas.len() {
                    return Err(format!(
                        "the route of {name} names a replica without an endpoint"
                    ));
                }
            }
        }
        for version in &entry.versions {
            if !version.replicas.is_sorted_by_key(|replica| replica.index) {
                return Err(format!("replicas of {name} are not sorted"));
            }
            for replica in &version.replicas {
                if is_transient(replica.state) && replica.deadline.is_none() {
                    return Err(format!("{name} is {:?} without a deadline", replica.state));
                }
                let unreleased = replica.gate.is_none_or(|gate| gate > state.world.released);
                if matches!(replica.state, UnloadRequested | Unloading) && unreleased {
                    return Err(format!(
                        "{name} is unloaded while Envoys may ask for it: {replica:?}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Books of servers and of models agree.
fn check_books(state: &State) -> Result<(), String> {
    for (server_name, server) in &state.world.servers {
        for (index, host) in &server.replicas {
            let (mut booked, mut loaded, mut entries) = (0u64, 0, 0);
            for entry in state.models.values() {
                for version in entry
                    .versions
                    .iter()
                    .filter(|version| version.is_on(server_name))
                {
                    let Some(at) = version.position(*index) else {
                        continue;
                    };
                    let replica = &version.replicas[at];
                    booked += if holds_memory(replica.state) {
                        version.required()
                    } else {
                        0
                    };
                    loaded += u32::from(can_receive_traffic(replica.state));
                    entries += 1;
                    if !host.models.contains_key(&entry.name) {
                        return Err(format!(
                            "{server_name}-{index} does not know of {}",
                            entry.name
                        ));
                    }
                }
            }
            let known: u32 = host.models.values().sum();
            if (booked, loaded, entries) != (host.booked, host.loaded, known) {
                return Err(format!(
                    "books of {server_name}-{index}: {:?}, should be {:?}",
                    (host.booked, host.loaded, known),
                    (booked, loaded, entries)
                ));
            }
        }
    }
    Ok(())
}
