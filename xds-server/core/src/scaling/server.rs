//! Autoscaling of servers: as many replicas as the models on one need, between its bounds. Whoever owns the server's
//! replicas (the operator) is asked for them; that there are more, or fewer, is then told by `ServerNotify`.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::to_u32;
use crate::{
    Effect,
    model::{Entry, required_memory},
    schedule::{Rule, server_passes, verdict},
    server::Server,
    size::Size,
    world::{Timer, World},
};

/// After so long a request that nobody followed is made again.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// What autoscaling has made of a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerScaling {
    /// Replicas that were asked for and are not yet what `ServerNotify` says; with the time.
    pub(crate) requested: Option<(u32, Duration)>,
    /// Models for which more were asked for: when none needs them any more, nobody does.
    needed_by: BTreeSet<Arc<str>>,
    /// Removed replicas of models, times the share of them that may lead to packing.
    credit: f64,
}

/// Replicas that a server should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    server: Arc<str>,
    replicas: u32,
}

impl ServerScaling {
    /// A replica of a model left.
    pub(crate) fn removed(&mut self, share: f64) {
        // More would only be forgotten later.
        self.credit = (self.credit + share).min(1.0);
    }

    /// Whoever owns the replicas has spoken: what was asked for is followed, or overruled.
    pub(crate) fn answered(&mut self) {
        self.requested = None;
        self.needed_by.clear();
    }
}

/// Which server needs more replicas for a model that cannot be placed as wanted, and how many.
pub(crate) fn consider_more(entry: &Entry, world: &World) -> Option<Wish> {
    if !world.config.server_autoscaling || !world.sync.done || entry.deleted {
        return None;
    }
    let latest = entry.latest();
    let home = latest.home();
    let candidates = world
        .servers
        .iter()
        .filter(|(name, _)| home.is_none_or(|home| home == *name));
    candidates
        .filter(|(name, server)| server_passes(&latest.spec, name, server).is_ok())
        .find_map(|(name, server)| wish(entry, name, server, world))
}

fn wish(entry: &Entry, name: &Arc<str>, server: &Server, world: &World) -> Option<Wish> {
    let expected = server.expected.filter(|expected| *expected > 0)?;
    let target = to_u32(entry.target());
    let replicas = if target > expected {
        target
    } else if whole(server, expected) && lacks_memory(entry, name, server, world) {
        expected + 1
    } else {
        return None;
    };
    let replicas = replicas.min(server.max_replicas);
    (replicas > expected && can_suffice(entry, name, server, world)).then(|| Wish {
        server: name.clone(),
        replicas,
    })
}

/// Whether the most replicas would do for the model. Fewer would stay empty, be taken away again, and asked for again.
fn can_suffice(entry: &Entry, name: &Arc<str>, server: &Server, world: &World) -> bool {
    let too_small = |index: &&u32| {
        let verdict = verdict(entry, name, **index, server, world);
        matches!(verdict, Err(Rule::Memory { .. } | Rule::TooLarge { .. }))
    };
    let too_small = server.replicas.keys().filter(too_small).count();
    server.max_replicas as usize >= too_small + entry.enough()
}

/// Whether all replicas are there. While some are not, what is missing may be on its way.
fn whole(server: &Server, expected: u32) -> bool {
    let expected = expected as usize;
    server.usable().count() == expected && server.replicas.len() == expected
}

/// Whether memory alone keeps the model from its replicas, has done so for a while (what is being unloaded frees some),
/// and one more replica like the others could take it.
fn lacks_memory(entry: &Entry, name: &Arc<str>, server: &Server, world: &World) -> bool {
    let pause = world.config.scale_server_up_pause;
    let lasting = entry
        .short_since
        .is_some_and(|since| since + pause <= world.now.monotonic);
    if !lasting {
        return false;
    }
    let needs = required_memory(&entry.latest().spec);
    let (mut suitable, mut short, mut fits) = (0, 0, false);
    for (index, replica) in &server.replicas {
        match verdict(entry, name, *index, server, world) {
            Ok(_) => suitable += 1,
            Err(Rule::Memory { .. }) => short += 1,
            Err(_) => {}
        }
        fits |= replica.capacity >= needs && replica.total_memory >= needs;
    }
    fits && suitable < entry.target() && suitable + short >= entry.target()
}

/// Asks for replicas, unless that was done.
pub(crate) fn request(entry: &mut Entry, wish: &Wish, world: &mut World) {
    if entry.needs.as_ref() != Some(&wish.server) {
        withdraw(entry, world);
    }
    let Some(server) = world.servers.get_mut(&wish.server) else {
        return;
    };
    server.scaling.needed_by.insert(entry.name.clone());
    entry.needs = Some(wish.server.clone());
    let asked = server.scaling.requested.map(|(replicas, _)| replicas);
    if asked.is_none_or(|asked| asked < wish.replicas) {
        ask(&wish.server, wish.replicas, world);
    }
}

/// The model needs no more replicas of its server, for now.
pub(crate) fn withdraw(entry: &mut Entry, world: &mut World) {
    let Some(name) = entry.needs.take() else {
        return;
    };
    let Some(server) = world.servers.get_mut(&name) else {
        return;
    };
    let scaling = &mut server.scaling;
    scaling.needed_by.remove(&entry.name);
    let more = scaling
        .requested
        .is_some_and(|(replicas, _)| Some(replicas) > server.expected);
    if more && scaling.needed_by.is_empty() {
        scaling.requested = None;
    }
}

fn ask(name: &Arc<str>, replicas: u32, world: &mut World) {
    let now = world.now.monotonic;
    let Some(server) = world.servers.get_mut(name) else {
        return;
    };
    server.scaling.requested = Some((replicas, now));
    world.effects.push(Effect::ServerScaled(name.clone()));
    let again = (now + ASK_AGAIN, Timer::Server(name.clone()));
    world.timers.insert(again);
}

/// Looks at what is asked for: what nobody needs any more is withdrawn, what nobody follows is asked for again, and fewer
/// are asked for where some hold nothing, or where what they hold fits on the others. For that all must be there: one that
/// is on its way is wanted by somebody.
pub(crate) fn consider_fewer(
    world: &mut World,
    name: &Arc<str>,
    models: &BTreeMap<Arc<str>, Entry>,
) {
    let (pause, now) = (world.config.scale_server_down_pause, world.now.monotonic);
    let packing = world.config.server_packing > 0.0;
    let allowed = world.config.server_autoscaling && world.sync.done;
    let Some(server) = world.servers.get_mut(name) else {
        return;
    };
    let Some(expected) = server.expected.filter(|expected| *expected > 0) else {
        return;
    };
    if !allowed || server.max_replicas == 0 {
        return;
    }
    let in_use = server.replicas.values().filter(|replica| replica.awake > 0);
    let in_use = to_u32(in_use.count());
    let largest = to_u32(server.sets.largest());
    let least = server.min_replicas.max(1).max(largest);
    if let Some((replicas, at)) = server.scaling.requested {
        let packs = replicas + 1 == in_use;
        if replicas < expected && (replicas < least || (replicas < in_use && !packs)) {
            server.scaling.requested = None;
        } else if at + ASK_AGAIN <= now {
            ask(name, replicas, world);
        }
        return;
    }
    if expected < 2 || !whole(server, expected) {
        return;
    }
    let rests = |replica: &crate::server::ServerReplica| {
        replica.awake == 0
            && replica
                .empty_since
                .is_some_and(|since| since + pause <= now)
    };
    let empty = server
        .replicas
        .values()
        .filter(|replica| rests(replica))
        .count();
    let fewer = expected.saturating_sub(to_u32(empty)).max(least);
    if fewer < expected && fits_without(expected - fewer, name, server, models) {
        return ask(name, fewer, world);
    }
    if !packing || in_use < expected || server.scaling.credit < 1.0 {
        return;
    }
    server.scaling.credit = 0.0;
    if expected > least && fits_without(1, name, server, models) {
        ask(name, expected - 1, world);
    }
}

/// Whether each model of the last replicas has room on another that does not have it yet. Free memory in small pieces
/// would not do: what found no place would ask for a replica again.
fn fits_without(
    leaving: u32,
    name: &Arc<str>,
    server: &Server,
    models: &BTreeMap<Arc<str>, Entry>,
) -> bool {
    let mut free: BTreeMap<u32, u64> = BTreeMap::new();
    let mut going = BTreeSet::new();
    let mut left = BTreeSet::new();
    for (index, replica) in server.replicas.iter().rev() {
        if going.len() < leaving as usize {
            going.insert(*index);
            left.extend(replica.models.keys());
        } else {
            free.insert(*index, replica.free());
        }
    }
    let entries = left.into_iter().filter_map(|model| models.get(model));
    let mut versions = entries
        .flat_map(|entry| &entry.versions)
        .filter(|version| version.is_on(name));
    versions.all(|version| {
        let moving = version.replicas.iter();
        let moving = moving.filter(|replica| going.contains(&replica.index));
        let without = free
            .iter_mut()
            .filter(|(index, _)| version.position(**index).is_none());
        let mut without: Vec<&mut u64> = without.map(|(_, free)| free).collect();
        without.sort_unstable_by(|one, next| next.cmp(one));
        let (count, needs) = (moving.count(), version.required());
        without.len() >= count
            && without.into_iter().take(count).all(|free| {
                let room = *free >= needs;
                *free = free.saturating_sub(needs);
                room
            })
    })
}

/// What a model waits for of a server's owner, in words.
pub(crate) fn growing(entry: &Entry, world: &World) -> Option<String> {
    let name = entry.needs.as_ref()?;
    let server = world.servers.get(name)?;
    let (replicas, _) = server.scaling.requested?;
    let (needs, expected) = (required_memory(&entry.latest().spec), server.expected?);
    let why = match entry.target() > expected as usize {
        true => format!("{} are wanted of the model", entry.target()),
        false => format!("none has {} free", Size(needs)),
    };
    (replicas > expected)
        .then(|| format!("server {name} to get {replicas} replicas in place of {expected}: {why}"))
}
