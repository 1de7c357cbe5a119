//! Autoscaling, one scene each: models by what agents see of their requests, servers by what their models need.
#![allow(clippy::unwrap_used)] // a test may
mod sim;

use std::time::Duration;

use seldon_core::{Config, Record, Synchronisation};
use seldon_proto::{
    agent::model_scaling_trigger_message::Trigger::{ScaleDown, ScaleUp},
    scheduler::{
        Model,
        model_status::ModelState::{self, *},
    },
};
use sim::{Sim, agent, model, spec};

fn world(replicas: u32) -> Sim {
    let mut config = Config::new(Synchronisation::AfterTimeout(Duration::from_secs(30)));
    config.model_autoscaling = true;
    let mut sim = Sim::new(config);
    sim.add_server("mlserver", replicas, 1000, &["sklearn"]);
    sim
}

/// A model that may have from `least` to `most` replicas.
fn bounded(name: &str, least: u32, most: u32) -> Model {
    let mut model = model(name, 1);
    let deployment = model.deployment_spec.as_mut().unwrap();
    (deployment.min_replicas, deployment.max_replicas) = (least, most);
    model
}

fn replicas(sim: &Sim, name: &str) -> usize {
    let route = sim.state.route(name);
    route.map_or(0, |route| {
        let splits = route.splits.iter();
        splits.map(|split| split.replicas.replicas.len()).sum()
    })
}

/// A trigger from the replica that has the model, and all that follows from it; time passes first.
fn trigger(
    sim: &mut Sim,
    name: &str,
    trigger: seldon_proto::agent::model_scaling_trigger_message::Trigger,
) {
    sim.advance(Duration::from_secs(61));
    sim.settle();
    let route = sim.state.route(name).unwrap();
    let split = &route.splits[0];
    let index = *split.replicas.replicas.first().unwrap();
    sim.trigger(
        &agent(&split.replicas.server, index),
        name,
        split.version,
        trigger,
    );
    sim.settle();
}

#[test]
fn a_model_follows_its_load_between_its_bounds() {
    let mut sim = world(4);
    sim.load(bounded("iris", 1, 3));
    sim.settle();
    for (sent, expected) in [
        (ScaleUp, 2),
        (ScaleUp, 3),
        (ScaleUp, 3),
        (ScaleDown, 2),
        (ScaleDown, 1),
        (ScaleDown, 1),
    ] {
        trigger(&mut sim, "iris", sent);
        assert_eq!(replicas(&sim, "iris"), expected, "{sent:?}");
        assert_eq!(sim.state_of("iris"), ModelAvailable);
    }
    let reason = sim.status("iris").1;
    assert!(
        reason.starts_with("scaled from 2 to 1 replicas: not asked for long on replica "),
        "{reason}"
    );
}

#[test]
fn replicas_alone_switch_it_off_and_so_does_the_flag() {
    let mut sim = world(4);
    sim.load(model("iris", 1));
    sim.settle();
    trigger(&mut sim, "iris", ScaleUp);
    assert_eq!(replicas(&sim, "iris"), 1);
    let mut off = Sim::new(Config::new(Synchronisation::AfterTimeout(
        Duration::from_secs(30),
    )));
    off.add_server("mlserver", 2, 1000, &["sklearn"]);
    off.load(bounded("iris", 1, 2));
    off.settle();
    trigger(&mut off, "iris", ScaleUp);
    assert_eq!(replicas(&off, "iris"), 1);
}

#[test]
fn a_decision_is_given_time() {
    let mut sim = world(4);
    sim.load(bounded("iris", 1, 4));
    sim.settle();
    trigger(&mut sim, "iris", ScaleUp);
    // All agents of the model say so within one period: one replica more, not one for each.
    for index in 0..4 {
        sim.trigger(&agent("mlserver", index), "iris", 1, ScaleUp);
        sim.settle();
    }
    assert_eq!(replicas(&sim, "iris"), 2);
    sim.advance(sim.config.scale_up_pause);
    sim.trigger(&agent("mlserver", 0), "iris", 1, ScaleUp);
    // The new one is on its way: no other is decided on.
    sim.advance(sim.config.scale_up_pause);
    sim.trigger(&agent("mlserver", 0), "iris", 1, ScaleUp);
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 3);
    sim.trigger(&agent("mlserver", 0), "iris", 1, ScaleDown);
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 3, "it changed just now");
}

#[test]
fn what_cannot_be_placed_is_said_and_not_wanted() {
    let mut sim = world(1);
    sim.load(bounded("iris", 1, 3));
    sim.settle();
    trigger(&mut sim, "iris", ScaleUp);
    assert_eq!(replicas(&sim, "iris"), 1);
    let (state, reason) = sim.status("iris");
    assert_eq!(state, ModelAvailable);
    assert!(
        reason.contains(
            "2 replicas cannot be placed: server mlserver: 2 replicas wanted, 1 suitable"
        ),
        "{reason}"
    );
}

#[test]
fn an_older_version_or_a_stranger_scales_nothing() {
    let mut sim = world(3);
    sim.load(bounded("iris", 1, 3));
    sim.settle();
    sim.advance(Duration::from_secs(61));
    sim.trigger(&agent("mlserver", 0), "iris", 7, ScaleUp);
    sim.trigger(&agent("other", 0), "iris", 1, ScaleUp);
    sim.trigger(&agent("mlserver", 0), "unknown", 1, ScaleUp);
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 1);
}

#[test]
fn scaling_outlives_versions_and_the_scheduler() {
    let mut sim = world(4);
    let wanted = bounded("iris", 1, 3);
    sim.load(wanted.clone());
    sim.settle();
    trigger(&mut sim, "iris", ScaleUp);
    let mut next = wanted.clone();
    spec(&mut next).uri = "gs://models/two".into();
    sim.load(next.clone());
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 2, "the new version begins as large");
    assert!(matches!(
        &sim.models_stored["iris"],
        Record::Model {
            scaled: Some(2),
            version: 2,
            ..
        }
    ));
    sim.restart();
    for index in 0..4 {
        sim.connect(&agent("mlserver", index));
    }
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 2);
    // The same again changes nothing; another number does at once, and other bounds hold at once.
    sim.load(next.clone());
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 2);
    next.deployment_spec.as_mut().unwrap().max_replicas = 1;
    sim.load(next.clone());
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 1);
    next.deployment_spec.as_mut().unwrap().replicas = 3;
    sim.load(next);
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 3);
}

/// What the server's owner is asked for.
fn asked(sim: &Sim) -> Option<i32> {
    let request = sim.state.scaling_request("mlserver")?;
    assert_eq!(request.server_name, "mlserver");
    Some(request.expected_replicas)
}

/// The owner does what it is asked: it says so at once, and replicas come one after the other.
fn follow(sim: &mut Sim, bounds: (u32, u32)) {
    let replicas = u32::try_from(asked(sim).unwrap()).unwrap();
    sim.notify_bounds("mlserver", replicas, bounds.0, bounds.1);
    sim.settle();
    for index in 0..replicas {
        if !sim.agents.contains_key(&agent("mlserver", index)) {
            sim.advance(Duration::from_secs(10));
            assert_eq!(asked(sim), None, "what was asked for is on its way");
            sim.add_agent("mlserver", index, 1000, &["sklearn"]);
            sim.connect(&agent("mlserver", index));
            sim.settle();
        }
    }
    let surplus: Vec<_> = sim
        .agents
        .keys()
        .filter(|key| key.replica >= replicas)
        .cloned()
        .collect();
    for key in surplus {
        sim.disconnect(&key);
        sim.agents.remove(&key);
    }
    sim.settle();
}

/// Longer than a server waits before it asks for what memory lacks.
fn lasts(sim: &mut Sim) {
    sim.advance(sim.config.scale_server_up_pause);
    sim.settle();
}

#[test]
fn a_server_grows_with_its_models_and_shrinks_when_replicas_are_empty() {
    let mut sim = world(1);
    sim.notify_bounds("mlserver", 1, 1, 4);
    sim.load(bounded("iris", 1, 4));
    sim.settle();
    assert_eq!(asked(&sim), None);
    for replica in [2, 3] {
        trigger(&mut sim, "iris", ScaleUp);
        assert_eq!(asked(&sim), Some(replica));
        assert_eq!(sim.state_of("iris"), ModelAvailable, "the others answer on");
        follow(&mut sim, (1, 4));
        assert_eq!(replicas(&sim, "iris"), usize::try_from(replica).unwrap());
        assert_eq!(asked(&sim), None);
    }
    trigger(&mut sim, "iris", ScaleDown);
    assert_eq!(replicas(&sim, "iris"), 2);
    assert_eq!(asked(&sim), None, "not at once");
    sim.advance(sim.config.scale_server_down_pause);
    sim.settle();
    assert_eq!(asked(&sim), Some(2));
    follow(&mut sim, (1, 4));
    assert_eq!(replicas(&sim, "iris"), 2, "moved to what is left");
    assert_eq!(sim.state_of("iris"), ModelAvailable);
    assert_eq!(asked(&sim), None);
}

#[test]
fn a_model_that_no_server_could_take_yet_makes_one_grow() {
    let mut sim = world(1);
    sim.notify_bounds("mlserver", 1, 1, 3);
    sim.load(model("wide", 3));
    sim.settle();
    assert_eq!(sim.state_of("wide"), ScheduleFailed);
    assert_eq!(asked(&sim), Some(3));
    follow(&mut sim, (1, 3));
    assert_eq!(
        (sim.state_of("wide"), replicas(&sim, "wide")),
        (ModelAvailable, 3)
    );
    // Memory: each replica has room for one more such model.
    for name in ["large-a", "large-b", "large-c", "large-d"] {
        let mut large = model(name, 1);
        spec(&mut large).memory_bytes = Some(900);
        sim.load(large);
    }
    sim.settle();
    assert_eq!(sim.state_of("large-d"), ScheduleFailed);
    lasts(&mut sim);
    assert_eq!(asked(&sim), None, "it has its most replicas");
    sim.notify_bounds("mlserver", 3, 1, 5);
    lasts(&mut sim);
    assert_eq!(asked(&sim), Some(4));
    follow(&mut sim, (1, 5));
    assert_eq!(sim.state_of("large-d"), ModelAvailable);
    // No replica of this size could take it.
    let mut huge = model("huge", 1);
    spec(&mut huge).memory_bytes = Some(5_000);
    sim.load(huge);
    lasts(&mut sim);
    assert_eq!(asked(&sim), None);
}

#[test]
fn without_bounds_nobody_is_asked() {
    let mut sim = world(1);
    sim.load(model("wide", 3));
    sim.settle();
    assert_eq!(asked(&sim), None);
    sim.notify_bounds("mlserver", 1, 0, 0);
    sim.settle();
    assert_eq!(asked(&sim), None);
}

#[test]
fn packing_is_by_removals_and_only_where_it_fits() {
    let place = |packing: f64| {
        let mut sim = world(3);
        sim.config.server_packing = packing;
        sim.state = seldon_core::State::new(sim.config.clone(), seldon_core::Now::default());
        for index in 0..3 {
            sim.connect(&agent("mlserver", index));
        }
        sim.notify_bounds("mlserver", 3, 1, 3);
        for (name, count) in [("a", 2), ("b", 2), ("c", 2)] {
            sim.load(model(name, count));
        }
        sim.settle();
        sim.advance(Duration::from_secs(120));
        sim.settle();
        sim
    };
    let mut never = place(0.0);
    never.unload("c");
    never.settle();
    assert_eq!(asked(&never), None);
    let mut always = place(1.0);
    assert_eq!(asked(&always), None, "nothing was removed");
    always.unload("c");
    always.settle();
    assert_eq!(asked(&always), Some(2));
    follow(&mut always, (1, 3));
    for name in ["a", "b"] {
        assert_eq!(always.state_of(name), ModelState::ModelAvailable);
        assert_eq!(replicas(&always, name), 2);
    }
    let mut half = place(0.25);
    half.unload("c");
    half.settle();
    assert_eq!(asked(&half), None, "two removals are not yet four");
    half.load(model("c", 2));
    half.settle();
    half.unload("c");
    half.settle();
    assert_eq!(asked(&half), Some(2));
}

#[test]
fn agents_learn_when_they_are_to_watch_a_model() {
    let mut sim = world(2);
    sim.load(model("iris", 1));
    sim.settle();
    let host = |sim: &Sim| {
        let route = sim.state.route("iris").unwrap();
        agent(
            "mlserver",
            *route.splits[0].replicas.replicas.first().unwrap(),
        )
    };
    let key = host(&sim);
    sim.load(bounded("iris", 1, 2));
    let order = sim.agents[&key].inbox.front().unwrap().clone();
    assert!(order.autoscaling_enabled);
    let before = sim.state.generation();
    sim.settle();
    assert_eq!(
        (sim.state_of("iris"), sim.state.generation()),
        (ModelAvailable, before),
        "what is loaded stays as it is"
    );
    // The agent was away when that changed.
    sim.disconnect(&key);
    sim.load(model("iris", 1));
    sim.connect(&key);
    let order = sim.agents[&key].inbox.front().unwrap().clone();
    assert!(!order.autoscaling_enabled);
    sim.settle();
    assert!(sim.agents[&key].inbox.is_empty());
    sim.disconnect(&key);
    sim.connect(&key);
    assert!(sim.agents[&key].inbox.is_empty(), "it knows");
}

#[test]
fn a_replica_that_is_away_or_memory_that_comes_free_is_no_reason_to_grow() {
    let mut sim = world(2);
    sim.notify_bounds("mlserver", 2, 1, 5);
    sim.load(model("both", 2));
    sim.settle();
    sim.disconnect(&agent("mlserver", 1));
    sim.advance(Duration::from_secs(30));
    sim.settle();
    assert_eq!(asked(&sim), None, "it comes back");
    sim.connect(&agent("mlserver", 1));
    sim.settle();
    // Both are full; one model leaves, another comes before it is gone.
    for name in ["large-a", "large-b"] {
        let mut large = model(name, 1);
        spec(&mut large).memory_bytes = Some(900);
        sim.load(large);
    }
    sim.settle();
    sim.unload("large-a");
    let mut next = model("large-c", 1);
    spec(&mut next).memory_bytes = Some(900);
    sim.load(next);
    assert_eq!(asked(&sim), None);
    sim.settle();
    lasts(&mut sim);
    assert_eq!(
        (sim.state_of("large-c"), asked(&sim)),
        (ModelAvailable, None)
    );
}

#[test]
fn what_nobody_needs_any_more_is_withdrawn_and_what_nobody_follows_asked_for_again() {
    let mut sim = world(2);
    sim.notify_bounds("mlserver", 2, 1, 5);
    sim.load(model("wide", 4));
    sim.settle();
    assert_eq!(asked(&sim), Some(4));
    let scaled = |sim: &Sim| {
        let effects = sim.effects.iter();
        effects
            .filter(|effect| matches!(effect, seldon_core::Effect::ServerScaled(_)))
            .count()
    };
    let before = scaled(&sim);
    sim.advance(Duration::from_secs(31));
    assert_eq!(scaled(&sim), before + 1, "the owner may not have heard it");
    sim.unload("wide");
    sim.settle();
    assert_eq!(asked(&sim), None);

    // One replica is empty; before its owner takes it away it is needed again.
    sim.load(model("one", 1));
    sim.settle();
    sim.advance(sim.config.scale_server_down_pause);
    sim.settle();
    assert_eq!(asked(&sim), Some(1));
    sim.load(model("pair", 2));
    sim.settle();
    assert_eq!(asked(&sim), None, "a live replica is not taken away");
}

#[test]
fn what_was_wanted_and_never_came_does_not_keep_a_model_large() {
    let mut sim = world(2);
    sim.notify_bounds("mlserver", 2, 1, 3);
    sim.load(bounded("iris", 1, 3));
    sim.settle();
    trigger(&mut sim, "iris", ScaleUp);
    trigger(&mut sim, "iris", ScaleUp);
    assert_eq!(asked(&sim), Some(3), "and nobody brings it");
    trigger(&mut sim, "iris", ScaleDown);
    trigger(&mut sim, "iris", ScaleDown);
    assert_eq!((replicas(&sim, "iris"), asked(&sim)), (1, None));
}

#[test]
fn the_flag_holds_over_a_restart() {
    let mut sim = world(3);
    sim.load(bounded("iris", 1, 3));
    sim.settle();
    trigger(&mut sim, "iris", ScaleUp);
    assert_eq!(replicas(&sim, "iris"), 2);
    sim.config.model_autoscaling = false;
    sim.restart();
    for index in 0..3 {
        sim.connect(&agent("mlserver", index));
    }
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 1, "as its author wants it");
}

#[test]
fn without_a_store_agents_tell_how_far_a_model_was_scaled() {
    let mut sim = world(3);
    sim.load(bounded("iris", 1, 3));
    sim.settle();
    trigger(&mut sim, "iris", ScaleUp);
    trigger(&mut sim, "iris", ScaleUp);
    sim.models_stored.clear();
    sim.servers_stored.clear();
    sim.restart();
    sim.load(bounded("iris", 1, 3));
    for index in 0..3 {
        sim.connect(&agent("mlserver", index));
    }
    sim.settle();
    assert_eq!(replicas(&sim, "iris"), 3);
}
