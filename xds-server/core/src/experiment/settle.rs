//! Puts changes of experiments in force, and draws the consequences of what changed around them.
use std::{collections::BTreeMap, sync::Arc};

use super::{Entry, Experiments, Membership, Surroundings, derive, status};
use crate::{
    Effect, State, model,
    pipeline::{Fleets, Pipelines},
    world::{Timer, World},
};

/// Puts an entry in place of the one of its name. Models that are something else to it from now on get other scopes.
pub(crate) fn put(state: &mut State, mut entry: Entry) {
    let experiments = &mut state.experiments;
    let former = experiments.entries.remove(&entry.name);
    if let Some(former) = &former {
        experiments.index.remove(former);
    }
    experiments.index.add(&entry);
    let before = Membership::of(former.as_ref());
    for model in before.changed(&Membership::of(Some(&entry))) {
        entry.generation = state.world.grow();
        if let Some(known) = state.pipelines.by_endpoint_mut(&model) {
            known.route_generation = entry.generation;
        } else if let Some(known) = state.models.get_mut(&model) {
            known.route_generation = entry.generation;
        }
        state.world.effects.push(Effect::RouteChanged(model));
    }
    experiments.dirty.insert(entry.name.clone());
    experiments.entries.insert(entry.name.clone(), entry);
}

/// Derives anew what changed. Models come first in a step: so a replica leaves an experiment's split in the same step
/// as its model's. Envoys get both in one generation, at least the newer of the two, which no Envoy acknowledges by
/// half: the gate of the replica, which is the older of the two, is good for both.
pub(crate) fn settle(state: &mut State) {
    let State {
        models,
        world,
        experiments,
        pipelines,
        fleets,
    } = state;
    while let Some(name) = experiments.dirty.pop_first() {
        let Some(mut entry) = experiments.entries.remove(&name) else {
            continue;
        };
        let over = entry.stopped.is_some_and(|end| end <= world.now.monotonic);
        if over && entry.route.is_none() {
            world.set_timer(Timer::Experiment, &entry.name, &mut entry.timer, None);
            continue;
        }
        refresh(&mut entry, experiments, (models, pipelines, fleets), world);
        experiments.entries.insert(name, entry);
    }
}

fn refresh(
    entry: &mut Entry,
    experiments: &mut Experiments,
    (models, pipelines, fleets): (&BTreeMap<Arc<str>, model::Entry>, &Pipelines, &Fleets),
    world: &mut World,
) {
    fn around<'a>(
        (models, pipelines, fleets): (
            &'a BTreeMap<Arc<str>, model::Entry>,
            &'a Pipelines,
            &'a Fleets,
        ),
        world: &'a World,
    ) -> Surroundings<'a> {
        Surroundings {
            models,
            pipelines,
            fleets,
            world,
        }
    }
    let all = (models, pipelines, fleets);
    loop {
        let route = derive(entry, around(all, world));
        if route != entry.route {
            entry.route = route;
            entry.generation = world.grow();
            let routed = Effect::ExperimentRouted(entry.name.clone());
            world.effects.push(routed);
        }
        // What an Envoy refuses it does not share out by, though it has answered.
        let refused = experiments.filter_rejected.is_some();
        let taken = world.serving >= entry.generation && world.sync.done && !refused;
        let (running, route) = (entry.running(), entry.route.as_ref());
        let Some(rollout) = entry.rollout.as_mut().filter(|_| running) else {
            break;
        };
        rollout.attend(route, taken, refused, world.now);
        if !rollout.decide(world.now) {
            break;
        }
        world.effects.push(Effect::Persist(entry.record()));
    }
    if entry.generation > world.serving {
        let awaited = (entry.generation, entry.name.clone());
        experiments.awaiting.insert(awaited);
    }
    let shown = status(
        entry,
        around(all, world),
        experiments.filter_rejected.as_deref(),
    );
    if shown != entry.shown {
        entry.shown = shown;
        let changed = Effect::ExperimentChanged(entry.name.clone());
        world.effects.push(changed);
    }
    let now = world.now.monotonic;
    let rollout = entry.rollout.as_ref().filter(|_| entry.running());
    let due = rollout.and_then(|rollout| rollout.due());
    let due = due.filter(|due| *due > now).or(entry.stopped);
    world.set_timer(Timer::Experiment, &entry.name, &mut entry.timer, due);
}
