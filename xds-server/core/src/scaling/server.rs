//! Autoscaling of servers: as many replicas as the models on one need, between its bounds. Whoever owns the server's
//! replicas (the operator) is asked for them; that there are more, or fewer, is then told by `ServerNotify`.
use std::{sync::Arc, time::Duration};

use crate::{
    Effect,
    model::{Entry, required_memory},
    schedule::server_passes,
    server::Server,
    size::Size,
    world::World,
};

/// How long a request for replicas is not repeated while nobody follows it.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// What autoscaling has made of a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerScaling {
    /// Replicas that were asked for and are not yet what `ServerNotify` says; with the time.
    pub(crate) requested: Option<(u32, Duration)>,
    /// The last decision, in words.
    pub(crate) decision: Option<Arc<str>>,
    /// Removed replicas of models, times the share of them that may lead to packing.
    credit: f64,
}

/// Replicas that a server should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    server: Arc<str>,
    replicas: u32,
    reason: String,
}

impl ServerScaling {
    /// A replica of a model left.
    pub(crate) fn removed(&mut self, share: f64) {
        // More would only be forgotten later.
        self.credit = (self.credit + share).min(1.0);
    }
}

/// Which server needs more replicas for a model that cannot be placed as wanted, and how many.
pub(crate) fn consider_more(entry: &Entry, world: &World) -> Option<Wish> {
    if !world.config.server_autoscaling || !world.sync.done {
        return None;
    }
    let latest = entry.latest();
    let home = latest
        .server
        .as_ref()
        .filter(|_| !latest.replicas.is_empty());
    let candidates = world
        .servers
        .iter()
        .filter(|(name, _)| home.is_none_or(|home| home == *name));
    candidates
        .filter(|(name, server)| server_passes(&latest.spec, name, server).is_ok())
        .find_map(|(name, server)| wish(entry, name, server))
}

fn wish(entry: &Entry, name: &Arc<str>, server: &Server) -> Option<Wish> {
    let expected = server.expected.filter(|expected| *expected > 0)?;
    let target = u32::try_from(entry.target()).unwrap_or(u32::MAX);
    let needs = required_memory(&entry.latest().spec);
    let model = &entry.name;
    let (replicas, reason) = if target > expected {
        (
            target,
            format!("model {model} is to have {target} replicas, the server has {expected}"),
        )
    } else if server
        .replicas
        .values()
        .any(|replica| replica.capacity >= needs && replica.total_memory >= needs)
    {
        let reason = format!("no replica has {} free for model {model}", Size(needs));
        (expected + 1, reason)
    } else {
        // A new replica would be as small as those that are there.
        return None;
    };
    let replicas = replicas.min(server.max_replicas);
    (replicas > expected).then(|| Wish {
        server: name.clone(),
        replicas,
        reason,
    })
}

/// Asks for replicas, unless that was done lately.
pub(crate) fn request(wish: &Wish, world: &mut World) {
    let now = world.now.monotonic;
    let Some(server) = world.servers.get_mut(&wish.server) else {
        return;
    };
    if let Some((replicas, at)) = server.scaling.requested
        && (replicas > wish.replicas || (replicas == wish.replicas && at + ASK_AGAIN > now))
    {
        return;
    }
    ask(&wish.server, wish.replicas, &wish.reason, world);
}

fn ask(name: &Arc<str>, replicas: u32, reason: &str, world: &mut World) {
    let now = world.now.monotonic;
    let Some(server) = world.servers.get_mut(name) else {
        return;
    };
    let from = server.expected.unwrap_or_default();
    server.scaling.requested = Some((replicas, now));
    server.scaling.decision =
        Some(format!("asked for {replicas} replicas in place of {from}: {reason}").into());
    world.effects.push(Effect::ServerScaled(name.clone()));
    world.touch_server(name);
}

/// Asks for fewer replicas where some hold nothing, or where what they hold fits on the others. All must be there: one
/// that is on its way is wanted by somebody.
pub(crate) fn consider_fewer(world: &mut World, name: &Arc<str>) {
    let (pause, now) = (world.config.scale_server_down_pause, world.now.monotonic);
    let packing = world.config.server_packing > 0.0;
    let allowed = world.config.server_autoscaling && world.sync.done;
    let Some(server) = world.servers.get_mut(name) else {
        return;
    };
    let Some(expected) = server.expected.filter(|expected| *expected > 1) else {
        return;
    };
    if !allowed || server.max_replicas == 0 || server.scaling.requested.is_some() {
        return;
    }
    let whole =
        server.usable().count() == expected as usize && server.replicas.len() == expected as usize;
    if !whole {
        return;
    }
    let rests = |replica: &crate::server::ServerReplica| {
        replica.models.is_empty()
            && replica
                .empty_since
                .is_some_and(|since| since + pause <= now)
    };
    let empty = server
        .replicas
        .values()
        .filter(|replica| rests(replica))
        .count();
    let largest = server.sets.largest();
    let least = server
        .min_replicas
        .max(1)
        .max(u32::try_from(largest).unwrap_or(u32::MAX));
    let fewer = expected
        .saturating_sub(u32::try_from(empty).unwrap_or(0))
        .max(least);
    if fewer < expected {
        let reason = format!("{empty} of them hold no model");
        return ask(name, fewer, &reason, world);
    }
    if !packing || empty > 0 || server.scaling.credit < 1.0 {
        return;
    }
    server.scaling.credit = 0.0;
    if expected > least && fits_without_last(server) {
        let reason = format!("no model has more than {largest} replicas: they fit on fewer");
        ask(name, expected - 1, &reason, world);
    }
}

/// Whether the others have room for what the last replica holds.
fn fits_without_last(server: &Server) -> bool {
    let mut replicas = server.replicas.values();
    let Some(last) = replicas.next_back() else {
        return false;
    };
    let free: u64 = replicas.map(|replica| replica.free()).sum();
    last.booked <= free
}
