//! Failures, losses, drains and restarts, one scene each.
#![allow(clippy::unwrap_used)] // a test may
mod sim;

use std::time::Duration;

use seldon_core::{Config, Effect, Event, Record, Refusal, Synchronisation};
use seldon_proto::{
    agent::{
        AgentSubscribeRequest, ModelEventMessage, ReplicaConfig,
        model_event_message::Event as Report,
    },
    scheduler::model_status::ModelState::{self, *},
};
use sim::{Sim, agent, model, spec};

fn local() -> Sim {
    Sim::new(Config::new(Synchronisation::AfterTimeout(
        Duration::from_secs(30),
    )))
}

fn with_server(count: u32, capacity: u64) -> Sim {
    let mut sim = local();
    sim.add_server("mlserver", count, capacity, &["sklearn", "xgboost"]);
    sim
}

#[test]
fn failures_are_shown_retried_after_a_while_and_not_for_ever() {
    let mut sim = with_server(1, 1000);
    sim.load(model("iris", 1));
    let mut attempts = 0;
    for _ in 0..50 {
        while sim.work(&agent("mlserver", 0), false) {
            attempts += 1;
            assert_eq!(
                sim.status("iris"),
                (ModelFailed, "the artefact is broken".into())
            );
        }
        sim.advance(Duration::from_secs(60));
    }
    assert_eq!(attempts, sim.config.retry_limit);
    sim.add_agent("mlserver", 1, 1000, &["sklearn"]);
    sim.connect(&agent("mlserver", 1));
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
    let odd = sim.step(Event::AgentReported(Box::new(ModelEventMessage {
        server_name: "mlserver".into(),
        replica_idx: 9,
        model_name: "iris".into(),
        model_version: 1,
        event: Report::LoadFailed.into(),
        ..ModelEventMessage::default()
    })));
    assert!(matches!(odd, Err(Refusal::Mismatch(text)) if text.contains("iris:1")));
}

#[test]
fn a_lost_stream_is_not_a_lost_replica() {
    let mut sim = with_server(2, 1000);
    sim.load(model("iris", 1));
    sim.settle();
    sim.disconnect(&agent("mlserver", 0));
    assert_eq!(sim.route("iris"), ["1@mlserver[0]*1"]);
    // Back in time: nothing moved.
    sim.advance(Duration::from_secs(2));
    sim.connect(&agent("mlserver", 0));
    sim.settle();
    assert_eq!(sim.route("iris"), ["1@mlserver[0]*1"]);
    assert!(sim.agents[&agent("mlserver", 1)].models.is_empty());
    // Not back: the replacement comes first.
    sim.disconnect(&agent("mlserver", 0));
    sim.advance(Duration::from_secs(10));
    assert_eq!(sim.route("iris"), ["1@mlserver[0]*1"]);
    sim.settle();
    assert_eq!(sim.route("iris"), ["1@mlserver[1]*1"]);
    // The last one stays for ever.
    sim.disconnect(&agent("mlserver", 1));
    sim.advance(Duration::from_secs(3600));
    sim.settle();
    assert_eq!(sim.route("iris"), ["1@mlserver[1]*1"]);
    // What came back is one too many.
    sim.connect(&agent("mlserver", 0));
    sim.connect(&agent("mlserver", 1));
    sim.settle();
    assert_eq!(
        sim.agents
            .values()
            .map(|agent| agent.models.len())
            .sum::<usize>(),
        1
    );
}

#[test]
fn a_drain_is_answered_when_models_have_moved() {
    let mut sim = with_server(2, 1000);
    sim.load(model("iris", 1));
    sim.settle();
    sim.step(Event::DrainRequested {
        agent: agent("mlserver", 0),
        token: 5,
    })
    .unwrap();
    assert_eq!(
        sim.route("iris"),
        ["1@mlserver[0]*1"],
        "it drains, but nothing else answers"
    );
    sim.work(&agent("mlserver", 1), true);
    assert_eq!(sim.route("iris"), ["1@mlserver[1]*1"]);
    assert!(sim.drained.is_empty());
    sim.settle();
    assert!(sim.drained == [5] && sim.complete);
    // Nowhere to go: answered at once, and still routed.
    sim.step(Event::DrainRequested {
        agent: agent("mlserver", 1),
        token: 6,
    })
    .unwrap();
    assert!(sim.drained == [5, 6] && !sim.complete);
    assert_eq!(sim.route("iris"), ["1@mlserver[1]*1"]);
    assert!(
        sim.step(Event::DrainRequested {
            agent: agent("other", 0),
            token: 7
        })
        .is_err()
    );
}

#[test]
fn scaling_a_server_down_moves_models_first() {
    let mut sim = with_server(2, 1000);
    sim.add_server("other", 1, 1000, &["sklearn"]);
    sim.load(model("one", 1));
    sim.load(model("two", 2));
    sim.settle();
    sim.notify("mlserver", 1, false);
    sim.settle();
    assert_eq!(sim.route("two"), ["1@mlserver[0]*1"]);
    assert_eq!(sim.state_of("two"), ScheduleFailed);
    sim.notify("mlserver", 0, false);
    sim.settle();
    assert_eq!(
        sim.route("one"),
        ["2@other[0]*1"],
        "another server, another version"
    );
    assert!(matches!(
        &sim.models_stored["one"],
        Record::Model { version: 2, .. }
    ));
    assert_eq!(
        sim.state
            .server_status("mlserver")
            .unwrap()
            .available_replicas,
        0
    );
    sim.disconnect(&agent("mlserver", 0));
    sim.disconnect(&agent("mlserver", 1));
    sim.settle();
    assert!(
        sim.state.server_status("mlserver").is_none()
            && !sim.servers_stored.contains_key("mlserver")
    );
}

#[test]
fn nothing_shrinks_before_the_servers_are_back() {
    let mut sim = with_server(2, 1000);
    sim.load(model("iris", 2));
    sim.load(model("gone", 1));
    sim.settle();
    sim.step(Event::UnloadModel {
        name: "gone".into(),
        kubernetes_meta: None,
    })
    .unwrap();
    sim.restart();
    assert!(!sim.state.synchronised());
    let (state, reason) = sim.status("iris");
    assert_eq!(
        (state, reason.as_str()),
        (
            ModelProgressing,
            "waiting for servers to come back: 0 of 2 replicas of server mlserver"
        )
    );
    sim.connect(&agent("mlserver", 0));
    assert!(!sim.state.synchronised() && sim.route("iris") == ["1@mlserver[0]*1"]);
    assert!(sim.agents.values().all(|agent| agent.inbox.is_empty()));
    sim.connect(&agent("mlserver", 1));
    assert!(sim.state.synchronised() && sim.route("iris") == ["1@mlserver[0,1]*2"]);
    assert!(
        sim.agents.values().all(|agent| agent.inbox.is_empty()),
        "unloaded before the Envoy let go"
    );
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
    assert_eq!(
        sim.state_of("gone"),
        ModelTerminated,
        "a deleted model is not revived by an agent"
    );
    sim.advance(Duration::from_secs(7200));
    assert!(
        !sim.models_stored.contains_key("gone")
            && sim
                .state
                .model_status("gone", true, Default::default())
                .is_none()
    );
    assert!(sim.agents.values().all(|agent| agent.models.len() == 1));
}

#[test]
fn synchronisation_ends_as_documented() {
    assert!({
        let mut sim = local();
        sim.step(Event::Restored(Vec::new())).unwrap();
        sim.state.synchronised()
    });
    let first = Config::new(Synchronisation::FirstServers {
        timeout: Duration::from_secs(600),
    });
    let mut sim = Sim::new(first.clone());
    sim.step(Event::Restored(Vec::new())).unwrap();
    sim.add_server("mlserver", 1, 1000, &["sklearn"]);
    sim.load(model("iris", 1));
    assert!(!sim.state.synchronised() && sim.agents[&agent("mlserver", 0)].inbox.is_empty());
    sim.notify("mlserver", 2, true);
    assert!(!sim.state.synchronised());
    sim.add_agent("mlserver", 1, 1000, &["sklearn"]);
    sim.connect(&agent("mlserver", 1));
    assert!(sim.state.synchronised());
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
    let mut sim = Sim::new(first);
    sim.step(Event::Restored(Vec::new())).unwrap();
    sim.advance(Duration::from_secs(600));
    assert!(sim.state.synchronised());
}

#[test]
fn agents_bring_back_what_no_store_knows() {
    let mut sim = with_server(2, 1000);
    sim.load(model("iris", 2));
    sim.settle();
    (sim.models_stored, sim.servers_stored) = Default::default();
    sim.restart();
    sim.connect(&agent("mlserver", 0));
    sim.connect(&agent("mlserver", 1));
    sim.settle();
    assert_eq!(sim.route("iris"), ["1@mlserver[0,1]*2"]);
    assert!(sim.models_stored.contains_key("iris"));
}

#[test]
fn a_refused_route_makes_the_model_fail_until_it_is_taken() {
    let mut sim = with_server(1, 1000);
    sim.load(model("iris", 1));
    sim.work(&agent("mlserver", 0), true);
    let refuse = |reason: Option<&str>| Event::RouteRejected {
        model: "iris".into(),
        reason: reason.map(Into::into),
    };
    sim.step(refuse(Some("bad cluster"))).unwrap();
    assert_eq!(sim.status("iris"), (ModelFailed, "bad cluster".into()));
    sim.step(refuse(None)).unwrap();
    sim.acknowledge();
    assert_eq!(sim.state_of("iris"), ModelState::ModelAvailable);
    assert!(
        sim.effects
            .iter()
            .any(|effect| matches!(effect, Effect::ModelChanged(name) if &**name == "iris"))
    );
}

#[test]
fn a_failure_beside_a_success_is_tried_again() {
    let mut sim = with_server(2, 1000);
    sim.load(model("iris", 2));
    sim.work(&agent("mlserver", 0), false);
    sim.work(&agent("mlserver", 1), true);
    assert_eq!(sim.state_of("iris"), ModelFailed);
    sim.advance(Duration::from_secs(60));
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
    assert_eq!(sim.route("iris"), ["1@mlserver[0,1]*2"]);
}

#[test]
fn a_round_of_failures_counts_once_and_another_try_goes_elsewhere() {
    let mut sim = with_server(2, 1000);
    sim.load(model("wide", 2));
    let mut rounds = 0;
    for _ in 0..50 {
        let failed = [0, 1].map(|index| sim.work(&agent("mlserver", index), false));
        assert_eq!(failed[0], failed[1]);
        rounds += u32::from(failed[0]);
        sim.advance(Duration::from_secs(400));
    }
    assert_eq!(rounds, sim.config.retry_limit);
    sim.unload("wide");
    sim.settle();
    sim.load(model("iris", 1));
    assert!(sim.work(&agent("mlserver", 0), false));
    sim.advance(Duration::from_secs(60));
    assert!(sim.work(&agent("mlserver", 1), false), "not the same again");
    sim.advance(Duration::from_secs(60));
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
}

#[test]
fn a_load_that_was_given_up_begins_anew_when_it_is_asked_for_again() {
    let mut sim = with_server(1, 1000);
    sim.load(model("iris", 1));
    for _ in 0..50 {
        sim.work(&agent("mlserver", 0), false);
        sim.advance(Duration::from_secs(400));
    }
    assert_eq!(sim.state_of("iris"), ModelFailed);
    sim.load(model("iris", 1));
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
}

#[test]
fn a_model_whose_only_replica_is_gone_for_good_is_not_available() {
    let mut sim = with_server(1, 1000);
    sim.load(model("iris", 1));
    sim.settle();
    sim.disconnect(&agent("mlserver", 0));
    sim.advance(Duration::from_secs(30));
    assert_eq!(sim.state_of("iris"), ModelAvailable);
    sim.advance(Duration::from_secs(60));
    assert_eq!(sim.route("iris"), ["1@mlserver[0]*1"]);
    assert_eq!(sim.state_of("iris"), ScheduleFailed);
    sim.connect(&agent("mlserver", 0));
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
}

#[test]
fn a_load_that_was_given_up_may_succeed_after_all() {
    let mut sim = with_server(2, 1000);
    sim.load(model("iris", 1));
    sim.advance(sim.config.load_timeout);
    assert_eq!(sim.state_of("iris"), ModelFailed);
    sim.work(&agent("mlserver", 0), true);
    assert_eq!(sim.route("iris"), ["1@mlserver[0]*1"]);
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
}

#[test]
fn an_agent_that_was_away_does_not_bring_a_former_life_back() {
    let mut sim = with_server(2, 1000);
    let mut first = model("iris", 1);
    sim::spec(&mut first).uri = "gs://models/former".into();
    sim.load(first);
    sim.settle();
    sim.disconnect(&agent("mlserver", 0));
    sim.unload("iris");
    sim.advance(Duration::from_secs(100));
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelTerminated);
    sim.load(model("iris", 1));
    sim.restart();
    sim.connect(&agent("mlserver", 0));
    sim.connect(&agent("mlserver", 1));
    assert!(sim.route("iris").is_empty(), "{:?}", sim.route("iris"));
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
    let held: Vec<_> = sim
        .agents
        .values()
        .flat_map(|a| a.models.values())
        .collect();
    assert_eq!(held, [&model("iris", 1)]);
}

#[test]
fn two_agents_do_not_pass_for_one_replica() {
    let mut sim = with_server(1, 1000);
    let mut other = seldon_proto::agent::AgentSubscribeRequest {
        server_name: "mlserver".into(),
        replica_config: Some(seldon_proto::agent::ReplicaConfig {
            inference_svc: "elsewhere".into(),
            inference_http_port: 1,
            inference_grpc_port: 1,
            ..Default::default()
        }),
        ..Default::default()
    };
    let connect = |other: &seldon_proto::agent::AgentSubscribeRequest| Event::AgentConnected {
        stream: 77,
        subscription: Box::new(other.clone()),
    };
    let refused = sim.step(connect(&other));
    assert!(matches!(refused, Err(Refusal::Precondition(text)) if text.contains("mlserver-0")));
    sim.disconnect(&agent("mlserver", 0));
    sim.step(connect(&other)).unwrap();
    other.server_name = "No_Name".into();
    assert!(matches!(
        sim.step(connect(&other)),
        Err(Refusal::Invalid(_))
    ));
}

#[test]
fn what_an_envoy_still_uses_after_it_refused_a_route_is_not_unloaded() {
    let mut sim = with_server(1, 1000);
    sim.load(model("iris", 1));
    sim.settle();
    let mut second = model("iris", 1);
    sim::spec(&mut second).uri = "gs://models/two".into();
    sim.load(second);
    sim.work(&agent("mlserver", 0), true);
    let refuse = |reason: Option<&str>| Event::RouteRejected {
        model: "iris".into(),
        reason: reason.map(Into::into),
    };
    sim.step(refuse(Some("bad cluster"))).unwrap();
    sim.settle();
    assert_eq!(sim.agents[&agent("mlserver", 0)].models.len(), 2);
    sim.step(refuse(None)).unwrap();
    sim.settle();
    assert_eq!(sim.agents[&agent("mlserver", 0)].models.len(), 1);
    assert_eq!(sim.state_of("iris"), ModelAvailable);
}

#[test]
fn a_deleted_model_whose_route_was_refused_is_kept_until_envoys_have_none_of_it() {
    let mut sim = with_server(2, 1000);
    sim.load(model("iris", 1));
    sim.settle();
    let before = sim.state.generation();
    let mut next = model("iris", 1);
    spec(&mut next).uri = "gs://models/two".into();
    sim.load(next);
    for replica in 0..2 {
        while sim.work(&agent("mlserver", replica), true) {}
    }
    let changed = sim.state.generation();
    let acknowledged = |serving, released| Event::RoutesAcknowledged { serving, released };
    sim.step(acknowledged(changed, before)).unwrap();
    // Another Envoy refuses the new route, and goes on with the old one.
    sim.step(Event::RouteRejected {
        model: "iris".into(),
        reason: Some("refused".into()),
    })
    .unwrap();
    sim.step(acknowledged(changed, changed)).unwrap();
    sim.unload("iris");
    assert!(sim.agents.values().all(|agent| agent.inbox.is_empty()));
    sim.settle();
    assert!(sim.agents.values().all(|agent| agent.models.is_empty()));
}

#[test]
fn a_server_does_not_grow_for_a_model_that_its_most_replicas_cannot_take() {
    let mut sim = with_server(1, 1000);
    sim.notify_bounds("mlserver", 1, 1, 2);
    sim.load(model("iris", 3));
    sim.settle();
    sim.advance(Duration::from_secs(60));
    assert!(sim.state.scaling_request("mlserver").is_none());
    // One that is content with fewer gets what there may be.
    let mut modest = model("iris", 3);
    modest.deployment_spec.as_mut().unwrap().min_replicas = 1;
    sim.load(modest);
    sim.settle();
    let asked = sim.state.scaling_request("mlserver").unwrap();
    assert_eq!(asked.expected_replicas, 2);
}

#[test]
fn a_server_does_not_shrink_where_what_leaves_has_no_room() {
    let mut sim = local();
    for (replica, capacity) in [(0, 1000), (1, 50), (2, 1000)] {
        sim.add_agent("mlserver", replica, capacity, &["sklearn"]);
        sim.connect(&agent("mlserver", replica));
    }
    sim.notify_bounds("mlserver", 3, 1, 3);
    sim.load(model("iris", 2));
    sim.settle();
    assert_eq!(sim.route("iris"), ["1@mlserver[0,2]*2"]);
    // The one that holds nothing is not the one that would go.
    sim.advance(Duration::from_secs(600));
    assert!(sim.state.scaling_request("mlserver").is_none());
    sim.unload("iris");
    sim.settle();
    sim.advance(Duration::from_secs(600));
    let asked = sim.state.scaling_request("mlserver").unwrap();
    assert_eq!(asked.expected_replicas, 2);
}

#[test]
fn memory_of_what_was_leaving_when_its_agent_came_back_is_free_once_it_left() {
    let mut sim = with_server(1, 250);
    // 200 of the 250 bytes are on their way out: neither free nor loaded.
    let subscription = |available| AgentSubscribeRequest {
        server_name: "mlserver".into(),
        shared: true,
        replica_config: Some(ReplicaConfig {
            inference_svc: "mlserver-0".into(),
            inference_http_port: 9999,
            inference_grpc_port: 9999,
            memory_bytes: 250,
            capabilities: vec!["sklearn".into()],
            ..ReplicaConfig::default()
        }),
        available_memory_bytes: available,
        ..AgentSubscribeRequest::default()
    };
    sim.streams += 1;
    sim.step(Event::AgentConnected {
        stream: sim.streams,
        subscription: Box::new(subscription(50)),
    })
    .unwrap();
    sim.agents.get_mut(&agent("mlserver", 0)).unwrap().stream = Some(sim.streams);
    sim.load(model("iris", 1));
    assert_eq!(sim.state_of("iris"), ScheduleFailed);
    let left = |available| ModelEventMessage {
        server_name: "mlserver".into(),
        model_name: "gone".into(),
        model_version: 1,
        event: Report::Unloaded.into(),
        available_memory_bytes: available,
        ..ModelEventMessage::default()
    };
    // Never more than the agent has in all.
    sim.step(Event::AgentReported(Box::new(left(9_999))))
        .unwrap();
    let status = sim.state.server_status("mlserver").unwrap();
    assert_eq!(status.resources[0].available_memory_bytes, 150);
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
}

/// An agent that over-commits may fail to bring a model back; it is not there any more, whatever was said before.
#[test]
fn a_loaded_model_that_its_agent_gave_up_goes_elsewhere() {
    let mut sim = with_server(2, 1000);
    sim.load(model("iris", 1));
    sim.settle();
    assert_eq!(sim.route("iris"), ["1@mlserver[0]*1"]);
    sim.agents
        .get_mut(&agent("mlserver", 0))
        .unwrap()
        .models
        .clear();
    sim.report(&agent("mlserver", 0), "iris", 1, Report::LoadFailed);
    // It is asked to load it again, and cannot.
    assert!(sim.work(&agent("mlserver", 0), false));
    assert_eq!(
        sim.status("iris"),
        (ModelFailed, "the artefact is broken".into())
    );
    sim.advance(sim.config.retry_first);
    sim.settle();
    assert_eq!(
        (sim.route("iris"), sim.state_of("iris")),
        (vec!["1@mlserver[1]*1".to_owned()], ModelAvailable)
    );
    // Where there is no other replica it is tried again there.
    sim.disconnect(&agent("mlserver", 0));
    sim.agents
        .get_mut(&agent("mlserver", 1))
        .unwrap()
        .models
        .clear();
    sim.report(&agent("mlserver", 1), "iris", 1, Report::LoadFailed);
    sim.advance(sim.config.retry_first);
    sim.settle();
    assert_eq!(
        (sim.route("iris"), sim.state_of("iris")),
        (vec!["1@mlserver[1]*1".to_owned()], ModelAvailable)
    );
}
