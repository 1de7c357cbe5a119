//! Which engine runs a pipeline, and what it and former ones are to do about each version.
use std::sync::Arc;

use seldon_proto::scheduler::Pipeline;

use super::{
    Entry, Pipelines, Version,
    fleet::Fleets,
    reconcile::gateways_done,
    task::{Doing, Task},
};
use crate::world::World;

/// A former engine is waited for as long as this many times the time after which a lost one is replaced.
const HANDOVER: u32 = 3;
/// A model gateway has that long, in the same measure, to read the topics of a pipeline's models: a record that is written
/// before is not seen. A real Kafka needs a minute for the topics of hundreds of models.
const READING: u32 = 24;

/// Chooses the engine, and has former ones let go before it begins.
///
/// It takes up all versions together, also one that was replaced and has not ended, which it lets end then: else records
/// that are in flight in that one would be read by an engine that does not know it.
pub(super) fn place_engine(
    entry: &mut Entry,
    pipelines: &Pipelines,
    fleets: &Fleets,
    world: &World,
) {
    let owner = fleets.engines.owners(&entry.name, 1, 0, world).pop();
    for stray in &mut entry.strays {
        let number = stray.number();
        for task in stray.engines.0.values_mut() {
            task.want(Doing::Delete { keep_topics: true }, number);
        }
    }
    let outstanding = let_go(entry, owner.as_ref(), fleets, world);
    if outstanding && entry.heir != owner {
        // Another owner waits anew: whom the former wait was for may have begun meanwhile.
        (entry.handover, entry.heir) = (None, owner.clone());
    }
    let blocked = outstanding && {
        let wait = world.config.replace_after * HANDOVER;
        let now = world.now.monotonic;
        now < *entry.handover.get_or_insert(now + wait)
    };
    if !outstanding {
        entry.handover = None;
        entry.heir = None;
    }
    let Some(owner) = owner.filter(|_| !blocked && !entry.deleted) else {
        entry.begin_by = None;
        return;
    };
    let readers = &pipelines.readers;
    let awaited = |version: &Version| {
        // One that ran had its topics read; and nobody is waited for for ever.
        let begun = version.engines.0.get(&owner).is_some_and(Task::is_create);
        !version.was_ready && !begun && !readers.awaited(&version.spec, fleets).is_empty()
    };
    let now = world.now.monotonic;
    let waits = entry.versions.iter().any(|one| one.lives() && awaited(one));
    let wait = world.config.replace_after * READING;
    entry.begin_by = waits.then(|| entry.begin_by.unwrap_or(now + wait));
    let waiting = entry.begin_by.is_some_and(|until| now < until);
    for version in &mut entry.versions {
        let ends_there = |task: &Task| matches!(task.doing, Doing::Delete { .. });
        let known = version.engines.0.get(&owner);
        let wanted = version.lives() || version.drains() && !known.is_some_and(ends_there);
        if !wanted || waiting && awaited(version) {
            continue;
        }
        let number = version.number();
        let task = version.engines.0.entry(owner.clone());
        task.or_insert_with(|| Task::new(Doing::Create, number))
            .want(Doing::Create, number);
    }
}

/// Has versions end, or be handed over, that are not to run where they are; whether any has yet to be handed over.
fn let_go(entry: &mut Entry, owner: Option<&Arc<str>>, fleets: &Fleets, world: &World) -> bool {
    let done = entry.deleted && gateways_done(entry, fleets, world);
    let tasks: usize = entry.all_versions().map(|one| one.engines.0.len()).sum();
    // Topics go last: with the order to the last, or by one of their own.
    let last = entry.cleans() && tasks == 1;
    let limit = world.config.retry_limit;
    let mut outstanding = false;
    for version in &mut entry.versions {
        let (lives, drains, number) = (version.lives(), version.drains(), version.number());
        for (name, task) in &mut version.engines.0 {
            if entry.deleted {
                // What was to be handed over has no heir any more: it ends where it is.
                let ends = matches!(task.doing, Doing::Delete { .. });
                if (done || !lives) && !ends {
                    task.want(Doing::Delete { keep_topics: !last }, number);
                }
            } else if owner != Some(name) {
                task.want(Doing::HandOver, number);
                let given_up = task.failures >= limit;
                outstanding |= (lives || drains) && !given_up && fleets.engines.connected(name);
            } else if !lives {
                end_at_owner(task, drains, number);
            }
        }
    }
    outstanding
}

/// Lets a version end that was replaced: where it `drains`, once its engine has it. Of one that cannot take it up nobody
/// knows that nothing is in flight.
fn end_at_owner(task: &mut Task, drains: bool, number: u32) {
    match task.doing {
        // The stream is another, and with it perhaps the process.
        Doing::Delete { .. } if drains && task.is_untold() => task.want(Doing::Perhaps, number),
        Doing::Delete { .. } => {}
        Doing::Create if drains && !task.ready() => {}
        Doing::Perhaps | Doing::HandOver if drains => {}
        _ => task.want(Doing::Delete { keep_topics: true }, number),
    }
}

/// What each engine is to run, where that may be more than one version.
pub(super) fn beside(entry: &Entry) -> Vec<(Arc<str>, Arc<Pipeline>)> {
    if entry.versions.len() < 2 {
        return Vec::new();
    }
    let running = entry.versions.iter().flat_map(|version| {
        let engines = version.engines.0.iter();
        let engines = engines.filter(|(_, task)| task.is_create());
        engines.map(|(name, _)| (name.clone(), version.spec.clone()))
    });
    running.collect()
}
