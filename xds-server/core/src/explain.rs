//! Why a model is where it is: the rules of placement, asked again and written down.
use std::sync::Arc;

use crate::{
    Generation, Route, advice,
    model::Entry,
    replica_state::is_inactive,
    schedule::{server_passes, shortcoming, verdict},
    server::Server,
    size::Size,
    world::World,
};

/// Why a model is, or is not, served where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub model: Arc<str>,
    /// A name of the documented enum.
    pub state: String,
    pub reason: String,
    /// What has to happen next, and by whom.
    pub waits_for: Vec<String>,
    /// What its author, or whoever runs the servers, could do.
    pub help: Vec<String>,
    /// The last decision of autoscaling; empty where there was none.
    pub scaling: String,
    pub servers: Vec<ServerVerdict>,
    pub route: Option<Route>,
    /// The newest generation in which the route changed.
    pub route_generation: Generation,
}

/// Why a server was chosen or passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerVerdict {
    pub server: Arc<str>,
    pub chosen: bool,
    pub reason: String,
    pub replicas: Vec<ReplicaVerdict>,
}

/// Why a replica was chosen or passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaVerdict {
    pub replica: u32,
    pub chosen: bool,
    pub reason: String,
}

pub(crate) fn explain(entry: &Entry, route: Option<Route>, world: &World) -> Explanation {
    Explanation {
        model: entry.name.clone(),
        state: entry.shown.state.as_str_name().to_owned(),
        reason: entry.shown.reason.as_deref().unwrap_or_default().to_owned(),
        waits_for: advice::waits_for(entry, world),
        help: advice::help(entry, world),
        scaling: entry
            .scaling
            .decision()
            .as_deref()
            .unwrap_or_default()
            .to_owned(),
        servers: world
            .servers
            .iter()
            .map(|(name, server)| server_verdict(entry, name, server, world))
            .collect(),
        route,
        route_generation: entry.route_generation,
    }
}

fn server_verdict(entry: &Entry, name: &Arc<str>, server: &Server, world: &World) -> ServerVerdict {
    let latest = entry.latest();
    let chosen = latest.is_on(name) && !latest.replicas.is_empty();
    let passes = server_passes(&latest.spec, name, server);
    let reason = match &passes {
        _ if entry.deleted => "the model is deleted".to_owned(),
        _ if entry.target() == 0 => "the model wants no replicas".to_owned(),
        Ok(()) if chosen => format!("hosts version {}", latest.number),
        Ok(()) => match shortcoming(entry, &latest.spec, name, server, world) {
            crate::schedule::Rule::TooFew { suitable, .. } if suitable >= entry.target() => {
                "suitable, another server came first".to_owned()
            }
            rule => rule.to_string(),
        },
        Err(rule) => rule.to_string(),
    };
    let replicas = server
        .replicas
        .keys()
        .map(|index| replica_verdict(entry, name, *index, (server, passes.is_ok()), world))
        .collect();
    ServerVerdict {
        server: name.clone(),
        chosen,
        reason,
        replicas,
    }
}

fn replica_verdict(
    entry: &Entry,
    name: &Arc<str>,
    index: u32,
    (server, passed): (&Server, bool),
    world: &World,
) -> ReplicaVerdict {
    let latest = entry.latest();
    let there = entry
        .find(latest.number, name, index)
        .map(|(at, position)| &entry.versions[at].replicas[position]);
    if let Some(there) = there {
        let state = match latest.resting {
            true => format!("{}, at rest: it takes no memory", there.state.as_str_name()),
            false => there.state.as_str_name().to_owned(),
        };
        let reason = match &there.reason {
            Some(reason) => format!("version {} is {state}: {reason}", latest.number),
            None => format!("version {} is {state}", latest.number),
        };
        return ReplicaVerdict {
            replica: index,
            chosen: !is_inactive(there.state),
            reason,
        };
    }
    let reason = match verdict(entry, name, index, server, world) {
        Ok(_) if !passed => "its server was passed over".to_owned(),
        Ok(_) => format!(
            "could take it, {} free",
            Size(server.replicas[&index].free())
        ),
        Err(rule) => rule.to_string(),
    };
    ReplicaVerdict {
        replica: index,
        chosen: false,
        reason,
    }
}
