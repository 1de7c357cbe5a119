//! Where a model goes: filters, then sorters, then a set of replicas.
mod filter;
mod place;
mod sets;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(crate) use filter::{Rule, replica_passes, server_passes};
pub(crate) use place::{choose, retain};
use seldon_proto::scheduler::Model;
pub(crate) use sets::Sets;

use crate::{
    model::{Entry, pinned},
    reconcile::is_crowded,
    replica_state::{ReplicaState, is_loading_or_loaded, is_unloading},
    server::{Server, ServerReplica, Standing},
    world::World,
};

/// What to do about the latest version of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// As many replicas as wanted are placed.
    Placed,
    /// Load these as well; with a reason when they are fewer than wanted.
    Load {
        server: Arc<str>,
        replicas: Vec<u32>,
        short: Option<String>,
    },
    /// Nothing more can be placed.
    Unplaced(String),
}

/// One server's part in a decision.
struct Candidacy {
    /// Replicas that have the model, and count on.
    kept: Vec<u32>,
    /// Replicas that could take it as well.
    eligible: Vec<u32>,
    /// Replicas that failed to load it and wait for another try.
    failed: usize,
}

/// Decides where the replicas that the latest version lacks go: not where loading it failed, if that can be.
pub(crate) fn decide(entry: &Entry, world: &World) -> Decision {
    let latest = entry.latest();
    if !latest.avoided.is_empty() {
        let elsewhere = decide_among(entry, world, &latest.avoided);
        // What is placed in part does not move for that.
        let stays = |server: &Arc<str>| latest.replicas.is_empty() || latest.is_on(server);
        if matches!(&elsewhere, Decision::Load { server, short: None, .. } if stays(server)) {
            return elsewhere;
        }
    }
    decide_among(entry, world, &BTreeSet::new())
}

type Places = BTreeSet<(Arc<str>, u32)>;

fn decide_among(entry: &Entry, world: &World, avoided: &Places) -> Decision {
    let latest = entry.latest();
    let target = entry.target();
    let home = latest.home();
    let at_home = home.and_then(|name| Some((name, world.servers.get(name)?)));
    let mut replacing = false;
    if let Some((name, server)) = at_home {
        let candidacy = candidacy(entry, name, server, world, avoided);
        if candidacy.kept.len() + candidacy.failed >= target {
            return Decision::Placed;
        }
        // Replicas that are about to go are replaced as far as possible.
        let counted = candidacy.kept.len() + candidacy.failed;
        replacing =
            latest.ready() + usize::from(draining(entry)) > counted && !candidacy.kept.is_empty();
    }
    let mut partial: Option<(Arc<str>, Vec<u32>, usize)> = None;
    let others = world.servers.iter().filter(|(name, _)| home != Some(*name));
    for (name, server) in at_home.into_iter().chain(others) {
        if server_passes(&latest.spec, name, server).is_err() {
            continue;
        }
        let candidacy = candidacy(entry, name, server, world, avoided);
        let possible = candidacy.kept.len() + candidacy.failed + candidacy.eligible.len();
        let enough = match replacing && home == Some(name) {
            true => candidacy.kept.len() + 1,
            false => entry.enough(),
        };
        if possible < enough || (possible < target && partial.is_some()) {
            continue;
        }
        let size = target.min(possible) - candidacy.failed;
        let balance = match latest.resting {
            true => ServerReplica::few_models,
            false => ServerReplica::free,
        };
        let replicas = choose(server, &candidacy.kept, size, &candidacy.eligible, balance);
        if possible >= target {
            return Decision::Load {
                server: name.clone(),
                replicas,
                short: None,
            };
        }
        partial = Some((name.clone(), replicas, possible));
    }
    let reason = explain_failure(entry, world);
    match partial {
        Some((server, replicas, _)) if !replicas.is_empty() => Decision::Load {
            server,
            replicas,
            short: Some(reason),
        },
        _ => Decision::Unplaced(reason),
    }
}

fn draining(entry: &Entry) -> bool {
    entry
        .latest()
        .replicas
        .iter()
        .any(|replica| replica.state == ReplicaState::Draining)
}

/// What a server that passes its filters has to offer.
fn candidacy(
    entry: &Entry,
    name: &Arc<str>,
    server: &Server,
    world: &World,
    avoided: &Places,
) -> Candidacy {
    let mut found = Candidacy {
        kept: Vec::new(),
        eligible: Vec::new(),
        failed: 0,
    };
    for (index, replica) in &server.replicas {
        match verdict(entry, name, *index, server, world) {
            Ok(true) => found.kept.push(*index),
            Ok(false) if avoided.contains(&(name.clone(), *index)) => {}
            Ok(false) => found.eligible.push(*index),
            Err(Rule::FailedThere { .. }) if replica.usable() => found.failed += 1,
            Err(_) => {}
        }
    }
    found
}

/// Whether a replica has the latest version (true), could take it (false), or neither.
pub(crate) fn verdict(
    entry: &Entry,
    name: &str,
    index: u32,
    server: &Server,
    world: &World,
) -> Result<bool, Rule> {
    let latest = entry.latest();
    let replica = &server.replicas[&index];
    let there = entry
        .find(latest.number, name, index)
        .map(|(at, position)| &entry.versions[at].replicas[position]);
    let Some(there) = there else {
        return replica_passes(latest, index, replica).map(|()| false);
    };
    let standing = replica.standing(world.now.monotonic, &world.config);
    match there.state {
        state if is_loading_or_loaded(state) && is_crowded(latest, there, world) => {
            let needs = latest.required();
            let free = needs.saturating_sub(replica.excess);
            Err(Rule::Memory {
                replica: index,
                needs,
                free,
            })
        }
        state
            if is_loading_or_loaded(state)
                && matches!(standing, Standing::Usable | Standing::Suspect) =>
        {
            Ok(true)
        }
        ReplicaState::LoadFailed => Err(Rule::FailedThere { replica: index }),
        state if is_unloading(state) || state == ReplicaState::UnloadFailed => {
            Err(Rule::StillUnloading { replica: index })
        }
        _ if replica.drain.is_some() => Err(Rule::Draining { replica: index }),
        _ if replica.surplus => Err(Rule::Surplus { replica: index }),
        _ => Err(Rule::Lost { replica: index }),
    }
}

/// The reason for which each server was passed over, in words.
fn explain_failure(entry: &Entry, world: &World) -> String {
    let latest = entry.latest();
    let asked = pinned(&latest.spec);
    let considered: BTreeMap<&Arc<str>, &Server> = world
        .servers
        .iter()
        .filter(|(name, _)| asked.is_none_or(|asked| asked == &***name))
        .collect();
    if considered.is_empty() {
        return match asked {
            Some(server) => format!("server {server}, which the model asks for, is not there"),
            None => "no server is connected".to_owned(),
        };
    }
    let reasons: Vec<String> = considered
        .iter()
        .map(|(name, server)| {
            format!(
                "server {name}: {}",
                shortcoming(entry, &latest.spec, name, server, world)
            )
        })
        .collect();
    reasons.join("; ")
}

/// Why a server cannot take all replicas.
pub(crate) fn shortcoming(
    entry: &Entry,
    spec: &Model,
    name: &str,
    server: &Server,
    world: &World,
) -> Rule {
    if let Err(rule) = server_passes(spec, name, server) {
        return rule;
    }
    let verdicts: Vec<_> = server
        .replicas
        .keys()
        .map(|index| verdict(entry, name, *index, server, world))
        .collect();
    let suitable = verdicts.iter().filter(|verdict| verdict.is_ok()).count();
    let mut reasons: Vec<Rule> = verdicts.into_iter().filter_map(Result::err).collect();
    let target = entry.target();
    if target == 1 && reasons.len() == 1 && suitable == 0 {
        return reasons.remove(0);
    }
    Rule::TooFew {
        wanted: target,
        suitable,
        reasons,
    }
}
