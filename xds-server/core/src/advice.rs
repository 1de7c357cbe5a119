//! What a model waits for, and what would help: the rules of placement turned into words for whoever can do something.
use std::{collections::BTreeSet, sync::Arc};

use crate::{
    model::{Entry, pinned, required_memory},
    replica_state::{
        ReplicaState::{Loaded, UnloadEnvoyRequested},
        is_loading, is_unloading,
    },
    scaling,
    schedule::{Rule, shortcoming},
    size::Size,
    world::World,
};

/// What has to happen next, and by whom.
pub(crate) fn waits_for(entry: &Entry, world: &World) -> Vec<String> {
    let mut waits = Vec::new();
    if !world.sync.done {
        waits.push(world.sync.missing(&world.servers));
    }
    let latest = entry.latest().number;
    for version in &entry.versions {
        let Some(server) = &version.server else {
            continue;
        };
        let number = version.number;
        let of = |rule: &dyn Fn(&crate::model::Replica) -> bool| -> Option<String> {
            let replicas = version.replicas.iter().filter(|replica| rule(replica));
            let indexes: Vec<String> = replicas.map(|replica| replica.index.to_string()).collect();
            (!indexes.is_empty()).then(|| format!("{server} {}", indexes.join(", ")))
        };
        if let Some(places) = of(&|replica| is_loading(replica.state)) {
            waits.push(format!("version {number} to be loaded by {places}"));
        }
        if number == latest
            && let Some(places) = of(&|replica| replica.state == Loaded)
        {
            waits.push(format!(
                "Envoys to take the route to version {number} on {places}"
            ));
        }
        if let Some(places) = of(&|replica| replica.state == UnloadEnvoyRequested) {
            waits.push(format!(
                "Envoys to let go of version {number} on {places}, which is then unloaded"
            ));
        }
        let going = |replica: &crate::model::Replica| {
            is_unloading(replica.state) && replica.state != UnloadEnvoyRequested
        };
        if let Some(places) = of(&going) {
            waits.push(format!("version {number} to be unloaded by {places}"));
        }
        if let Some(retry) = version.retry_at {
            let left = retry.saturating_sub(world.now.monotonic).as_secs();
            waits.push(format!(
                "another try to load version {number}, in {left} s, after {} that failed",
                version.failures
            ));
        }
    }
    if !entry.deleted && entry.is_at_rest() {
        waits.push("a request, which its agent holds while it loads the model".into());
    }
    if !entry.deleted && entry.unplaced.is_some() && world.sync.done {
        waits.extend(scaling::growing(entry, world));
        waits.push("a server that can take it: it is tried again when a replica joins or memory comes free"
                .into());
    }
    waits
}

/// What its author, or whoever runs the servers, could do.
pub(crate) fn help(entry: &Entry, world: &World) -> Vec<String> {
    let latest = entry.latest();
    if entry.deleted {
        return Vec::new();
    }
    let mut help = BTreeSet::new();
    if latest.failures >= world.config.retry_limit {
        help.insert(format!(
            "it failed to load {} times in a row and is not tried any more: mend the artefact, then load the model again",
            latest.failures
        ));
    }
    if entry.unplaced.is_none() {
        return help.into_iter().collect();
    }
    let asked = pinned(&latest.spec);
    if let Some(asked) = asked.filter(|asked| !world.servers.contains_key(*asked)) {
        help.insert(format!(
            "create server {asked}, or take `server` out of the model"
        ));
    } else if world.servers.is_empty() {
        help.insert("create a Server, or look whether its agents reach this scheduler".into());
    }
    let considered = world
        .servers
        .iter()
        .filter(|(name, _)| asked.is_none_or(|asked| asked == &***name));
    for (name, server) in considered {
        let rule = shortcoming(entry, &latest.spec, name, server, world);
        hints(entry, name, &rule, &mut help);
        if server.max_replicas > 0 && server.expected == Some(server.max_replicas) {
            help.insert(format!(
                "raise `maxReplicas` of server {name}: it has all {} that it may have",
                server.max_replicas
            ));
        }
    }
    help.into_iter().collect()
}

fn hints(entry: &Entry, server: &Arc<str>, rule: &Rule, help: &mut BTreeSet<String>) {
    let spec = &entry.latest().spec;
    match rule {
        Rule::NoReplica => {
            help.insert(format!("start a replica of server {server}"));
        }
        Rule::NotShared => {
            help.insert(format!("name it: `server: {server}`"));
        }
        Rule::NotTheOneAsked(_) => {}
        Rule::ScaledToZero => {
            help.insert(format!("scale server {server} up"));
        }
        Rule::Requirement { missing, .. } => {
            help.insert(format!(
                "add `{missing}` to `extraCapabilities` of a server that has it, or take it out of the model's `requirements`"
            ));
        }
        Rule::Memory { needs, free, .. } => {
            help.insert(format!(
                "free {} on a replica of server {server}, add a replica, let its agents over-commit more, or lower the model's `memory` of {}",
                Size(needs - free),
                Size(*needs)
            ));
        }
        Rule::TooLarge { total, .. } => {
            help.insert(format!(
                "give replicas of server {server} more than {}: the model needs {}",
                Size(*total),
                Size(required_memory(spec))
            ));
        }
        Rule::NoExplainer { .. } => {
            help.insert("run a server with the capability alibi-explain".into());
        }
        Rule::Lost { replica } => {
            help.insert(format!("bring replica {replica} of server {server} back"));
        }
        Rule::Draining { .. } | Rule::Surplus { .. } | Rule::StillUnloading { .. } => {}
        Rule::FailedThere { replica } => {
            help.insert(format!(
                "look at the log of replica {replica} of server {server}: it failed to load the model"
            ));
        }
        Rule::TooFew {
            wanted,
            suitable,
            reasons,
        } => {
            if *suitable > 0 {
                let more = wanted.saturating_sub(*suitable);
                let content = entry.minimum() > 0 && *suitable >= entry.minimum();
                if more > 0 && content {
                    help.insert(format!(
                        "give server {server} {more} more replicas that fit: it has as few as the model is content with"
                    ));
                } else if more > 0 {
                    help.insert(format!(
                        "give server {server} {more} more replicas that fit, or let the model begin with fewer: `minReplicas: {suitable}`"
                    ));
                }
            }
            for reason in reasons {
                hints(entry, server, reason, help);
            }
        }
    }
}
