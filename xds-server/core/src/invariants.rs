//! What must hold after every step, defined once: checked in part by debug builds, in full by the property tests.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    RolloutOutcome, State,
    experiment::{Entry, Index, derive, status},
    pipeline::Version,
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
    check_experiments(state)?;
    check_pipelines(state)?;
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
        for version in entry.versions.iter().filter(|_| !entry.deleted) {
            if !version.stray && version.resting != entry.is_at_rest() {
                let number = version.number;
                return Err(format!("{name}:{number} is at rest: {}", version.resting));
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
            let (mut booked, mut loaded, mut entries, mut awake) = (0u64, 0, 0, 0);
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
                    awake += u32::from(!version.resting);
                    if !host.models.contains_key(&entry.name) {
                        return Err(format!(
                            "{server_name}-{index} does not know of {}",
                            entry.name
                        ));
                    }
                }
            }
            let known: u32 = host.models.values().sum();
            if (booked, loaded, entries, awake) != (host.booked, host.loaded, known, host.awake) {
                return Err(format!(
                    "books of {server_name}-{index}: {:?}, should be {:?}",
                    (host.booked, host.loaded, known, host.awake),
                    (booked, loaded, entries, awake)
                ));
            }
        }
    }
    Ok(())
}

/// Splits in force are what the models make of them now, and nobody gets another's requests.
fn check_experiments(state: &State) -> Result<(), String> {
    let mut index = Index::default();
    let mut defaults = BTreeSet::new();
    for (name, entry) in &state.experiments.entries {
        index.add(entry);
        let around = state.surroundings();
        if derive(entry, around) != entry.route {
            return Err(format!("the split of experiment {name} is of yesterday"));
        }
        let rejected = state.experiments.filter_rejected.as_deref();
        if status(entry, around, rejected) != entry.shown {
            return Err(format!("the status of experiment {name} is of yesterday"));
        }
        if entry.generation > state.world.generation {
            return Err(format!("experiment {name} is of a generation to come"));
        }
        let running = entry.running() && entry.in_force().is_some();
        if running != entry.route.is_some() {
            return Err(format!("experiment {name} is in force: {running}"));
        }
        let endpoint = entry
            .route
            .as_ref()
            .and_then(|route| route.endpoint.as_ref());
        if endpoint.is_some_and(|endpoint| !defaults.insert(endpoint)) {
            return Err(format!("experiment {name} has another's default"));
        }
        check_split(state, entry)?;
    }
    (index == state.experiments.index)
        .then_some(())
        .ok_or_else(|| "the index of experiments is not that of its entries".to_owned())
}

/// A split leads nowhere but to replicas that the models' own routes lead to, and weight goes by what is wanted.
fn check_split(state: &State, entry: &Entry) -> Result<(), String> {
    let (name, Some(route)) = (&entry.name, &entry.route) else {
        return Ok(());
    };
    let candidates = route.candidates.iter().map(|one| (&one.name, &one.splits));
    let mirror = route.mirror.iter().map(|one| (&one.name, &one.splits));
    for (model, splits) in candidates.chain(mirror) {
        let known = match route.pipelines {
            true => state
                .pipelines
                .entries
                .get(model)
                .map(|known| &known.splits),
            false => state.models.get(model).map(|known| &known.splits),
        };
        if splits.is_empty() || known != Some(splits) {
            return Err(format!(
                "experiment {name} leads where the route of {model} does not"
            ));
        }
    }
    if route
        .mirror
        .as_ref()
        .is_some_and(|one| !(1..=100).contains(&one.percent))
    {
        return Err(format!("experiment {name} mirrors an impossible share"));
    }
    let Some(rollout) = &entry.rollout else {
        return Ok(());
    };
    for candidate in &route.candidates {
        let percent = match candidate.name == rollout.candidate {
            true => rollout.percent(),
            false => 100 - rollout.percent(),
        };
        let back = rollout.record.outcome == RolloutOutcome::RolledBack;
        let wrong = back && candidate.name == rollout.candidate && candidate.weight != 0;
        // The default stands in where it alone is left.
        let alone = percent == 0 && candidate.weight == 1 && candidate.name == rollout.default;
        if wrong || (candidate.weight != percent && !alone) {
            return Err(format!(
                "the roll-out of {name} gives {} {} percent",
                candidate.name, candidate.weight
            ));
        }
    }
    Ok(())
}

/// Routes of pipelines lead to gateways that are known, nobody lets go too early, and one engine at most is to run one.
fn check_pipelines(state: &State) -> Result<(), String> {
    let mut users: BTreeMap<&Arc<str>, BTreeSet<&Arc<str>>> = BTreeMap::new();
    for (name, entry) in &state.pipelines.entries {
        for model in &entry.uses {
            users.entry(model).or_default().insert(name);
        }
        for split in &entry.splits {
            let replicas = &split.replicas.replicas;
            if replicas.is_empty() || split.weight == 0 {
                return Err(format!("the route of pipeline {name} has an empty split"));
            }
            if state.endpoints(&split.replicas).len() != replicas.len() {
                return Err(format!(
                    "the route of pipeline {name} names a gateway without an endpoint"
                ));
            }
            if entry.deleted {
                return Err(format!("pipeline {name} is removed and has a route"));
            }
        }
        for (gateway, task) in &entry.gateways.0 {
            let early = task.gate.is_none_or(|gate| gate > state.world.released);
            if task.is_delete() && early {
                return Err(format!(
                    "gateway {gateway} lets pipeline {name} go while Envoys may ask it"
                ));
            }
        }
        let engines = &state.fleets.engines;
        let living = entry.versions.iter().filter(|version| version.lives());
        let owners: BTreeSet<&Arc<str>> = living
            .flat_map(|version| &version.engines.0)
            .filter(|(engine, task)| task.is_create() && engines.connected(engine))
            .map(|(engine, _)| engine)
            .collect();
        if owners.len() > 1 {
            return Err(format!("pipeline {name} is to run on {owners:?}"));
        }
        let numbers = entry.versions.iter().map(Version::number);
        if !numbers.is_sorted_by(|one, next| one < next) {
            return Err(format!("versions of pipeline {name} are not in order"));
        }
        for (worker, member) in &entry.on {
            let noted = state.fleets.of(*worker).get(member);
            if noted.is_none_or(|noted| !noted.objects.contains(name)) {
                return Err(format!("{member} does not know of pipeline {name}"));
            }
        }
    }
    let indexed = state.pipelines.users.iter();
    let indexed: BTreeMap<_, BTreeSet<_>> = indexed
        .map(|(model, pipelines)| (model, pipelines.iter().collect()))
        .collect();
    (indexed == users)
        .then_some(())
        .ok_or_else(|| "the index of pipelines by model is not that of its entries".to_owned())
}
