//! Scale to zero, one scene each: a model that nobody asks for takes no memory, and keeps its place and its route.
#![allow(clippy::unwrap_used)] // a test may
mod sim;

use std::time::Duration;

use seldon_core::{AgentKey, Config, Record, Synchronisation};
use seldon_proto::{
    agent::{
        ModelEventMessage,
        model_event_message::Event::{LoadFailed, Loaded},
        model_operation_message::Operation::LoadModel,
        model_scaling_trigger_message::Trigger::{ScaleDown, ScaleUp},
    },
    scheduler::{Model, model_status::ModelState::*},
};
use sim::{Sim, agent, model, spec};

const AFTER: u32 = 300;

fn config() -> Config {
    let timeout = Duration::from_secs(30);
    Config {
        model_autoscaling: true,
        scale_to_zero: Some(Duration::from_secs(AFTER.into())),
        ..Config::new(Synchronisation::AfterTimeout(timeout))
    }
}

/// So many replicas with room for three models each.
fn world(replicas: u32) -> Sim {
    let mut sim = Sim::new(config());
    sim.add_server("mlserver", replicas, 300, &["sklearn"]);
    sim
}

/// A model that may have none to three replicas.
fn elastic(name: &str) -> Model {
    let mut model = model(name, 1);
    model.deployment_spec.as_mut().unwrap().max_replicas = 3;
    model
}

/// The same with one model, which rests.
fn at_rest(replicas: u32) -> Sim {
    let mut sim = world(replicas);
    sim.load(elastic("iris"));
    sim.settle();
    idle(&mut sim, "iris", AFTER);
    sim
}

/// The one replica that has the model, with its version.
fn keeper(sim: &Sim, name: &str) -> (AgentKey, u32) {
    let route = sim.state.route(name).unwrap();
    assert_eq!(route.splits.len(), 1, "{route:?}");
    let split = &route.splits[0];
    assert_eq!(split.replicas.replicas.len(), 1, "{route:?}");
    let key = agent(
        &split.replicas.server,
        *split.replicas.replicas.first().unwrap(),
    );
    (key, split.version)
}

/// Its agent has not seen a request for so long.
fn idle(sim: &mut Sim, name: &str, seconds: u32) {
    sim.advance(Duration::from_secs(seconds.into()));
    sim.settle();
    let (key, version) = keeper(sim, name);
    let metric = Some(("inactive_seconds", seconds));
    sim.trigger_by(&key, name, version, ScaleDown, metric);
    sim.settle();
}

fn ask(sim: &mut Sim, name: &str) {
    let (key, version) = keeper(sim, name);
    sim.trigger_by(&key, name, version, ScaleUp, Some(("woken", 1)));
    sim.settle();
}

/// Whether its agent keeps the model out of memory.
fn rests(sim: &Sim, name: &str) -> bool {
    let (key, version) = keeper(sim, name);
    sim.agents[&key].resting.contains(&(name.into(), version))
}

fn free(sim: &Sim, index: usize) -> u64 {
    let status = sim.state.server_status("mlserver").unwrap();
    status.resources[index].available_memory_bytes
}

fn available(sim: &Sim, name: &str) -> u32 {
    let status = sim
        .state
        .model_status(name, false, seldon_core::Now::default());
    status.unwrap().versions[0]
        .state
        .clone()
        .unwrap()
        .available_replicas
}

fn scaled(sim: &Sim, name: &str) -> Option<u32> {
    match &sim.models_stored[name] {
        Record::Model { scaled, .. } => *scaled,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_rests_and_is_woken_where_it_is() {
    let mut sim = world(2);
    sim.load(elastic("iris"));
    sim.settle();
    let place = keeper(&sim, "iris");
    let index = usize::try_from(place.0.replica).unwrap();
    assert_eq!(free(&sim, index), 200);
    let before = sim.state.generation();
    idle(&mut sim, "iris", AFTER);
    assert!(rests(&sim, "iris"));
    assert_eq!((free(&sim, index), scaled(&sim, "iris")), (300, Some(0)));
    let (state, reason) = sim.status("iris");
    assert_eq!((state, available(&sim, "iris")), (ModelAvailable, 0));
    let expected = format!(
        "scaled from 1 to 0 replicas: not asked for long on replica {index} of mlserver (inactive_seconds 300); \
         the next request loads it again"
    );
    assert_eq!(reason, expected);
    let explained = sim.state.explain("iris").unwrap();
    assert!(
        explained.waits_for[0].starts_with("a request"),
        "{explained:?}"
    );
    ask(&mut sim, "iris");
    assert!(!rests(&sim, "iris"));
    assert_eq!((free(&sim, index), scaled(&sim, "iris")), (200, Some(1)));
    assert_eq!(available(&sim, "iris"), 1);
    let woken = "scaled from 0 to 1 replicas: asked for on replica";
    assert!(sim.status("iris").1.starts_with(woken));
    assert_eq!(keeper(&sim, "iris"), place);
    assert_eq!(sim.state.generation(), before, "nothing is news to Envoys");
}

#[test]
fn only_what_may_rest_and_for_as_long_as_was_said() {
    let mut sim = world(2);
    let mut one = elastic("one");
    one.deployment_spec.as_mut().unwrap().min_replicas = 1;
    let plain = model("plain", 1);
    for model in [one, plain, elastic("iris")] {
        sim.load(model);
    }
    sim.settle();
    for (name, seconds) in [("one", AFTER), ("plain", AFTER), ("iris", AFTER - 1)] {
        idle(&mut sim, name, seconds);
        assert!(!rests(&sim, name), "{name}");
    }
    // One of two replicas goes first, and what is left is given the whole time.
    let (key, version) = keeper(&sim, "iris");
    sim.trigger(&key, "iris", version, ScaleUp);
    sim.settle();
    let metric = Some(("inactive_seconds", AFTER));
    for expected in [1, 1] {
        sim.advance(Duration::from_secs(61));
        sim.trigger_by(&key, "iris", version, ScaleDown, metric);
        sim.settle();
        assert_eq!(available(&sim, "iris"), expected);
    }
    idle(&mut sim, "iris", AFTER);
    assert!(rests(&sim, "iris"));
    let mut off = Sim::new(Config {
        scale_to_zero: None,
        ..config()
    });
    off.add_server("mlserver", 1, 300, &["sklearn"]);
    off.load(elastic("iris"));
    off.settle();
    idle(&mut off, "iris", AFTER);
    assert!(!rests(&off, "iris"));
}

#[test]
fn an_agent_that_knows_no_rest_is_not_asked_for_it() {
    let mut sim = world(2);
    for agent in sim.agents.values_mut() {
        agent.foreign = true;
    }
    for index in 0..2 {
        let key = agent("mlserver", index);
        sim.disconnect(&key);
        sim.connect(&key);
    }
    sim.load(elastic("iris"));
    sim.settle();
    idle(&mut sim, "iris", AFTER);
    assert_eq!((rests(&sim, "iris"), available(&sim, "iris")), (false, 1));
    // Nor where a model at rest comes to one.
    let mut sim = at_rest(1);
    sim.add_agent("mlserver", 1, 300, &["sklearn"]);
    sim.agents.get_mut(&agent("mlserver", 1)).unwrap().foreign = true;
    sim.connect(&agent("mlserver", 1));
    sim.settle();
    assert!(rests(&sim, "iris"));
    sim.disconnect(&agent("mlserver", 0));
    sim.advance(Duration::from_secs(120));
    sim.settle();
    assert_eq!(keeper(&sim, "iris").0, agent("mlserver", 1));
    assert_eq!((rests(&sim, "iris"), available(&sim, "iris")), (false, 1));
}

#[test]
fn models_at_rest_move_at_rest_and_spread() {
    let mut sim = world(3);
    let names: Vec<String> = (0..9).map(|number| format!("m{number}")).collect();
    for name in &names {
        sim.load(elastic(name));
    }
    sim.settle();
    for name in &names {
        idle(&mut sim, name, AFTER);
    }
    let lost = agent("mlserver", 0);
    sim.disconnect(&lost);
    sim.advance(Duration::from_secs(120));
    sim.settle();
    let mut counts = [0u32; 3];
    for name in &names {
        assert!(rests(&sim, name), "{name}");
        assert_eq!(sim.state_of(name), ModelAvailable);
        counts[usize::try_from(keeper(&sim, name).0.replica).unwrap()] += 1;
    }
    assert!(
        counts[0] == 0 && counts[1].abs_diff(counts[2]) <= 1,
        "{counts:?}"
    );
}

#[test]
fn a_restarted_scheduler_lets_them_rest_and_an_agent_that_forgot_is_told() {
    let mut sim = at_rest(1);
    sim.restart();
    sim.agents
        .get_mut(&agent("mlserver", 0))
        .unwrap()
        .resting
        .clear();
    sim.connect(&agent("mlserver", 0));
    sim.settle();
    assert!(rests(&sim, "iris"));
    assert_eq!(
        (sim.state_of("iris"), available(&sim, "iris")),
        (ModelAvailable, 0)
    );
    assert_eq!(
        sim.status("iris").1,
        "scaled to 0 replicas; the next request loads it again"
    );
    // The agent alone.
    sim.disconnect(&agent("mlserver", 0));
    sim.agents
        .get_mut(&agent("mlserver", 0))
        .unwrap()
        .resting
        .clear();
    sim.connect(&agent("mlserver", 0));
    sim.settle();
    assert!(rests(&sim, "iris"));
    // Without the setting nothing rests.
    sim.config.scale_to_zero = None;
    sim.restart();
    sim.connect(&agent("mlserver", 0));
    sim.settle();
    assert_eq!((free(&sim, 0), available(&sim, "iris")), (200, 1));
    assert!(!rests(&sim, "iris"));
    // One that has not heard it says that it was asked for, and is told.
    let key = agent("mlserver", 0);
    let held = sim.agents.get_mut(&key).unwrap();
    held.resting.insert(("iris".into(), 1));
    ask(&mut sim, "iris");
    assert!(!rests(&sim, "iris"));
}

#[test]
fn who_is_woken_where_there_is_no_room_goes_where_there_is() {
    let mut sim = world(1);
    sim.notify_bounds("mlserver", 1, 1, 2);
    sim.load(elastic("iris"));
    sim.settle();
    idle(&mut sim, "iris", AFTER);
    let mut large = model("large", 1);
    spec(&mut large).memory_bytes = Some(250);
    sim.load(large);
    sim.settle();
    assert_eq!(sim.state_of("large"), ModelAvailable);
    ask(&mut sim, "iris");
    let (state, reason) = sim.status("iris");
    assert_eq!((state, available(&sim, "iris")), (ModelAvailable, 1));
    assert!(
        reason.contains("needs 100 B, replica 0 has 50 B free"),
        "{reason}"
    );
    // The server grows for it, and it moves.
    sim.advance(sim.config.scale_server_up_pause);
    sim.settle();
    assert_eq!(
        sim.state
            .scaling_request("mlserver")
            .unwrap()
            .expected_replicas,
        2
    );
    sim.notify_bounds("mlserver", 2, 1, 2);
    sim.add_agent("mlserver", 1, 300, &["sklearn"]);
    sim.connect(&agent("mlserver", 1));
    sim.settle();
    assert_eq!(keeper(&sim, "iris").0, agent("mlserver", 1));
    assert_eq!((free(&sim, 0), free(&sim, 1)), (50, 200));
    assert_eq!(sim.state_of("iris"), ModelAvailable);
}

#[test]
fn who_is_woken_where_there_is_no_room_stays_when_some_comes_free() {
    let mut sim = at_rest(1);
    let mut large = model("large", 1);
    spec(&mut large).memory_bytes = Some(250);
    sim.load(large);
    sim.settle();
    ask(&mut sim, "iris");
    assert!(sim.status("iris").1.contains("free"));
    sim.unload("large");
    sim.settle();
    let reason = sim.status("iris").1;
    assert!(reason.starts_with("scaled from 0 to 1"), "{reason}");
    assert_eq!(free(&sim, 0), 200);
}

#[test]
fn a_new_version_is_awake_and_the_same_again_changes_nothing() {
    let mut sim = world(2);
    let wanted = elastic("iris");
    sim.load(wanted.clone());
    sim.settle();
    idle(&mut sim, "iris", AFTER);
    sim.load(wanted.clone());
    sim.settle();
    assert!(rests(&sim, "iris"));
    let mut more = wanted.clone();
    more.deployment_spec.as_mut().unwrap().max_replicas = 2;
    sim.load(more.clone());
    sim.settle();
    assert!(rests(&sim, "iris"), "between other bounds");
    spec(&mut more).uri = "gs://models/two".into();
    sim.load(more.clone());
    sim.settle();
    assert_eq!((keeper(&sim, "iris").1, rests(&sim, "iris")), (2, false));
    assert_eq!(available(&sim, "iris"), 1);
    idle(&mut sim, "iris", AFTER);
    assert!(rests(&sim, "iris"));
    more.deployment_spec.as_mut().unwrap().min_replicas = 1;
    sim.load(more);
    sim.settle();
    assert_eq!((rests(&sim, "iris"), available(&sim, "iris")), (false, 1));
}

#[test]
fn a_replica_with_only_models_at_rest_is_given_up() {
    let mut sim = world(2);
    sim.notify_bounds("mlserver", 2, 1, 2);
    for name in ["a", "b"] {
        sim.load(elastic(name));
    }
    sim.settle();
    for name in ["a", "b"] {
        idle(&mut sim, name, AFTER);
    }
    sim.advance(sim.config.scale_server_down_pause);
    sim.settle();
    assert_eq!(
        sim.state
            .scaling_request("mlserver")
            .unwrap()
            .expected_replicas,
        1
    );
    sim.notify_bounds("mlserver", 1, 1, 2);
    sim.settle();
    sim.disconnect(&agent("mlserver", 1));
    sim.agents.remove(&agent("mlserver", 1));
    sim.settle();
    for name in ["a", "b"] {
        assert_eq!(keeper(&sim, name).0, agent("mlserver", 0));
        assert!(rests(&sim, name));
        ask(&mut sim, name);
    }
    assert_eq!(free(&sim, 0), 100);
}

#[test]
fn who_cannot_be_brought_back_is_awake_and_has_failed() {
    let mut sim = at_rest(1);
    let (key, version) = keeper(&sim, "iris");
    let held = sim.agents.get_mut(&key).unwrap();
    held.models.clear();
    held.resting.clear();
    sim.report(&key, "iris", version, LoadFailed);
    assert_eq!(
        sim.agents[&key]
            .inbox
            .iter()
            .filter(|order| order.resting)
            .count(),
        0
    );
    while sim.work(&key, false) {}
    assert_eq!(sim.state_of("iris"), ModelFailed);
    assert_eq!(scaled(&sim, "iris"), Some(1));
}

#[test]
fn an_agent_that_was_away_hears_of_it() {
    let mut sim = world(1);
    let mut wanted = elastic("iris");
    sim.load(wanted.clone());
    sim.settle();
    idle(&mut sim, "iris", AFTER);
    let key = agent("mlserver", 0);
    sim.disconnect(&key);
    wanted.deployment_spec.as_mut().unwrap().min_replicas = 1;
    sim.load(wanted);
    sim.settle();
    assert!(rests(&sim, "iris"), "it has not heard");
    sim.connect(&key);
    sim.settle();
    assert!(!rests(&sim, "iris"));
}

#[test]
fn the_only_replica_that_is_started_anew_goes_on_keeping_them() {
    let mut sim = at_rest(1);
    let key = agent("mlserver", 0);
    let token = 1;
    let drain = seldon_core::Event::DrainRequested {
        agent: key.clone(),
        token,
    };
    sim.step(drain).unwrap();
    sim.settle();
    sim.disconnect(&key);
    sim.agents.get_mut(&key).unwrap().resting.clear();
    sim.connect(&key);
    sim.settle();
    assert!(rests(&sim, "iris"));
    assert_eq!((free(&sim, 0), available(&sim, "iris")), (300, 0));
}

#[test]
fn a_model_at_rest_is_deleted_at_rest() {
    let mut sim = at_rest(1);
    let key = agent("mlserver", 0);
    sim.unload("iris");
    let loads = |sim: &Sim| {
        let orders = sim.agents[&key].inbox.iter();
        orders
            .filter(|order| order.operation() == LoadModel)
            .count()
    };
    assert_eq!((loads(&sim), free(&sim, 0)), (0, 300));
    sim.settle();
    assert!(sim.agents[&key].models.is_empty());
}

#[test]
fn a_keeper_that_cannot_fetch_the_files_wakes_nobody() {
    let mut sim = at_rest(2);
    let (key, _) = keeper(&sim, "iris");
    sim.disconnect(&key);
    sim.advance(Duration::from_secs(30));
    let other = agent("mlserver", 1 - key.replica);
    assert!(sim.work(&other, false), "it is to be the keeper");
    assert_eq!(scaled(&sim, "iris"), Some(0));
    sim.advance(Duration::from_secs(60));
    sim.settle();
    assert_eq!(keeper(&sim, "iris").0, other);
    assert!(rests(&sim, "iris"));
}

#[test]
fn a_version_that_goes_on_answering_is_booked() {
    let mut sim = world(1);
    let mut wanted = elastic("iris");
    sim.load(wanted.clone());
    sim.settle();
    idle(&mut sim, "iris", AFTER);
    spec(&mut wanted).uri = "gs://models/broken".into();
    sim.load(wanted);
    let key = agent("mlserver", 0);
    // The one is told that it rests no more, the other cannot be loaded.
    while let Some(order) = sim.agents[&key].inbox.front() {
        let version = order.model_version.as_ref().unwrap().version;
        sim.work(&key, version == 1);
    }
    assert_eq!((keeper(&sim, "iris").1, rests(&sim, "iris")), (1, false));
    assert_eq!(
        free(&sim, 0),
        200,
        "the former one's memory is nobody else's"
    );
}

#[test]
fn a_scheduler_that_knows_nothing_wakes_what_it_finds() {
    let mut sim = at_rest(1);
    sim.models_stored.clear();
    sim.restart();
    sim.connect(&agent("mlserver", 0));
    sim.settle();
    assert_eq!((rests(&sim, "iris"), available(&sim, "iris")), (false, 1));
    assert_eq!(free(&sim, 0), 200);
}

#[test]
fn an_agent_that_drains_says_that_it_has_done_what_it_was_told() {
    let mut sim = at_rest(2);
    let (key, version) = keeper(&sim, "iris");
    let drain = seldon_core::Event::DrainRequested {
        agent: key.clone(),
        token: 1,
    };
    sim.step(drain).unwrap();
    // Nobody else has it yet.
    assert_eq!(keeper(&sim, "iris").0, key);
    let loaded = ModelEventMessage {
        server_name: key.server.to_string(),
        replica_idx: key.replica,
        model_name: "iris".into(),
        model_version: version,
        event: Loaded.into(),
        ..Default::default()
    };
    let said = seldon_core::Event::AgentReported(Box::new(loaded));
    assert_eq!(sim.step(said), Ok(()));
    sim.settle();
    assert_ne!(keeper(&sim, "iris").0, key);
    assert!(rests(&sim, "iris"));
}
