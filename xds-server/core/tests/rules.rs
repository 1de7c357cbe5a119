//! The documented rules, one scene each.
#![allow(clippy::unwrap_used)] // a test may
mod sim;

use std::time::Duration;

use seldon_core::{Config, Event, Now, Record, Refusal, Synchronisation};
use seldon_proto::{
    agent::{ModelEventMessage, model_event_message::Event as Report},
    scheduler::{
        DataflowSpec, ExplainerSpec, KubernetesMeta, MlServerModelSettings, ModelRuntimeInfo,
        StorageConfig, model_runtime_info::ModelRuntimeInfo as Runtime,
        model_spec::ModelSpec as Special, model_status::ModelState::*, storage_config,
    },
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
fn a_model_is_loaded_routed_acknowledged_and_forgotten() {
    let mut sim = with_server(1, 1000);
    sim.load(model("iris", 1));
    assert_eq!(sim.state_of("iris"), ModelProgressing);
    assert!(sim.route("iris").is_empty());
    assert!(sim.work(&agent("mlserver", 0), true));
    assert_eq!(sim.route("iris"), ["1@mlserver[0]*1"]);
    assert_eq!(
        sim.state_of("iris"),
        ModelProgressing,
        "loaded is not yet available"
    );
    sim.acknowledge();
    assert_eq!(sim.state_of("iris"), ModelAvailable);
    sim.unload("iris");
    assert!(sim.route("iris").is_empty());
    assert!(
        !sim.work(&agent("mlserver", 0), true),
        "unloaded before the Envoy let go"
    );
    assert_eq!(sim.state_of("iris"), ModelTerminating);
    sim.settle();
    assert_eq!(sim.state_of("iris"), ModelTerminated);
    assert!(sim.models_stored.is_empty() && sim.agents[&agent("mlserver", 0)].models.is_empty());
    let again = sim.step(Event::UnloadModel {
        name: "iris".into(),
        kubernetes_meta: None,
    });
    assert!(matches!(again, Err(Refusal::Precondition(text)) if text.contains("iris")));
    sim.load(model("iris", 1));
    sim.settle();
    assert_eq!(sim.route("iris"), ["1@mlserver[0]*1"]);
}

#[test]
fn a_status_does_not_tell_an_inline_storage_configuration() {
    let mut sim = with_server(1, 1000);
    let mut secretive = model("iris", 1);
    let inline = StorageConfig {
        config: Some(storage_config::Config::StorageRcloneConfig(
            "planted".into(),
        )),
    };
    if let Some(spec) = &mut secretive.model_spec {
        spec.storage_config = Some(inline);
    }
    sim.load(secretive);
    let status = sim.state.model_status("iris", true, Now::default());
    let status = format!("{status:?}");
    assert!(
        status.contains("(hidden)") && !status.contains("planted"),
        "{status}"
    );
}

#[test]
fn names_and_requests_are_checked() {
    let mut sim = with_server(1, 1000);
    let long = "a".repeat(254);
    for bad in ["", "Iris", "-iris", "iris-", "iris_1", "i/ris", &long] {
        let reply = sim.step(Event::LoadModel(Box::new(model(bad, 1))));
        assert!(matches!(reply, Err(Refusal::Precondition(_))), "{bad}");
    }
    assert!(matches!(
        sim.step(Event::LoadModel(Box::default())),
        Err(Refusal::Invalid(_))
    ));
    let unknown = sim.step(Event::UnloadModel {
        name: "nobody".into(),
        kubernetes_meta: None,
    });
    assert!(matches!(unknown, Err(Refusal::Precondition(text)) if text.contains("nobody")));
}

#[test]
fn schedule_failures_name_the_rule_and_end_when_the_world_changes() {
    let mut sim = local();
    let check = |sim: &Sim, name: &str, text: &str| {
        let (state, reason) = sim.status(name);
        assert_eq!((state, reason.as_str()), (ScheduleFailed, text));
    };
    sim.load(model("iris", 1));
    check(&sim, "iris", "no server is connected");
    sim.add_server("mlserver", 1, 100, &["sklearn"]);
    sim.unload("iris");
    sim.settle();
    let mut needy = model("needy", 1);
    spec(&mut needy).requirements = vec![" lightgbm ".into()];
    sim.load(needy);
    check(
        &sim,
        "needy",
        "server mlserver: requirement lightgbm not among capabilities sklearn",
    );
    let mut big = model("big", 1);
    spec(&mut big).memory_bytes = Some(500);
    sim.load(big);
    check(
        &sim,
        "big",
        "server mlserver: needs 500 B, replica 0 has 100 B free: 400 B short",
    );
    let mut pinned = model("pinned", 1);
    spec(&mut pinned).server = Some("triton".into());
    sim.load(pinned);
    check(
        &sim,
        "pinned",
        "server triton, which the model asks for, is not there",
    );
    let mut explainer = model("explainer", 1);
    spec(&mut explainer).model_spec = Some(Special::Explainer(ExplainerSpec::default()));
    sim.load(explainer);
    check(
        &sim,
        "explainer",
        "server mlserver: replica 0 lacks capability alibi-explain",
    );
    sim.load(model("two", 2));
    check(
        &sim,
        "two",
        "server mlserver: 2 replicas wanted, 1 suitable",
    );
    sim.add_agent("mlserver", 1, 1000, &["sklearn", "lightgbm"]);
    sim.connect(&agent("mlserver", 1));
    sim.settle();
    assert_eq!(sim.state_of("two"), ModelAvailable);
    assert_eq!(sim.state_of("big"), ModelAvailable);
    let explained = sim.state.explain("two").unwrap();
    assert!(
        explained.servers[0].chosen
            && explained.servers[0]
                .replicas
                .iter()
                .all(|replica| replica.chosen)
    );
}

#[test]
fn a_model_that_goes_makes_room_for_one_that_waits() {
    let mut sim = with_server(1, 100);
    sim.load(model("first", 1));
    sim.load(model("second", 1));
    sim.settle();
    assert_eq!(sim.state_of("second"), ScheduleFailed);
    sim.unload("first");
    sim.settle();
    assert_eq!(sim.state_of("second"), ModelAvailable);
}

#[test]
fn capabilities_are_those_common_to_the_replicas() {
    let mut sim = local();
    sim.add_server("mlserver", 1, 1000, &["sklearn", "xgboost"]);
    sim.add_agent("mlserver", 1, 1000, &["sklearn"]);
    sim.connect(&agent("mlserver", 1));
    let mut wanted = model("iris", 1);
    spec(&mut wanted).requirements = vec!["xgboost".into()];
    sim.load(wanted);
    assert!(
        sim.status("iris")
            .1
            .contains("requirement xgboost not among capabilities sklearn")
    );
}

#[test]
fn a_pinned_model_never_tries_another_server_but_a_requirement_does() {
    let mut sim = local();
    sim.add_server("a", 1, 100, &["sklearn"]);
    sim.add_server("b", 1, 1000, &["sklearn"]);
    let mut pinned = model("pinned", 1);
    (spec(&mut pinned).server, spec(&mut pinned).memory_bytes) = (Some("a".into()), Some(500));
    sim.load(pinned.clone());
    assert_eq!(
        sim.status("pinned"),
        (
            ScheduleFailed,
            "server a: needs 500 B, replica 0 has 100 B free: 400 B short".into()
        )
    );
    let mut free = model("free", 1);
    spec(&mut free).memory_bytes = Some(500);
    sim.load(free);
    sim.settle();
    assert_eq!(sim.route("free"), ["1@b[0]*1"]);
}

#[test]
fn partial_scheduling_needs_min_replicas() {
    let mut sim = with_server(2, 1000);
    let mut partial = model("partial", 3);
    partial.deployment_spec.as_mut().unwrap().min_replicas = 1;
    sim.load(partial);
    sim.load(model("whole", 3));
    sim.settle();
    assert_eq!(sim.state_of("partial"), ModelAvailable);
    assert_eq!(sim.route("partial"), ["1@mlserver[0,1]*2"]);
    assert_eq!(sim.state_of("whole"), ScheduleFailed);
    assert!(sim.route("whole").is_empty());
}

#[test]
fn loaded_replicas_serve_on_when_more_cannot_be_placed() {
    let mut sim = with_server(2, 1000);
    sim.load(model("iris", 1));
    sim.settle();
    sim.load(model("iris", 3));
    sim.settle();
    assert_eq!(sim.state_of("iris"), ScheduleFailed);
    assert_eq!(sim.route("iris"), ["1@mlserver[0]*1"]);
    sim.add_agent("mlserver", 2, 1000, &["sklearn"]);
    sim.connect(&agent("mlserver", 2));
    sim.settle();
    assert_eq!(sim.route("iris"), ["1@mlserver[0,1,2]*3"]);
    sim.load(model("iris", 1));
    sim.settle();
    assert_eq!(sim.route("iris").len(), 1);
    assert_eq!(
        sim.agents
            .values()
            .map(|agent| agent.models.len())
            .sum::<usize>(),
        1
    );
    sim.load(model("iris", 0));
    sim.settle();
    assert_eq!(
        (sim.state_of("iris"), sim.route("iris").len()),
        (ModelScaledDown, 0)
    );
}

#[test]
fn a_new_version_takes_over_in_proportion_and_the_old_one_goes_last() {
    let mut sim = with_server(3, 1000);
    sim.load(model("iris", 3));
    sim.settle();
    let mut second = model("iris", 3);
    spec(&mut second).uri = "gs://models/two".into();
    sim.load(second);
    sim.work(&agent("mlserver", 0), true);
    assert_eq!(
        sim.route("iris"),
        ["1@mlserver[0,1,2]*3", "2@mlserver[0]*1"]
    );
    sim.acknowledge();
    assert_eq!(
        sim.state_of("iris"),
        ModelAvailable,
        "one of the new is available, and the old ones are"
    );
    sim.work(&agent("mlserver", 1), true);
    sim.work(&agent("mlserver", 2), true);
    assert_eq!(sim.route("iris"), ["2@mlserver[0,1,2]*3"]);
    assert!(
        sim.agents
            .values()
            .all(|agent| agent.models.len() == 2 && agent.inbox.is_empty())
    );
    sim.acknowledge();
    sim.settle();
    assert!(sim.agents.values().all(|agent| agent.models.len() == 1));
    assert!(matches!(
        &sim.models_stored["iris"],
        Record::Model { version: 2, .. }
    ));
}

#[test]
fn what_is_not_the_artefact_changes_in_place() {
    let mut sim = with_server(1, 1000);
    sim.load(model("iris", 1));
    sim.settle();
    let stored = sim.models_stored.clone();
    sim.effects.clear();
    sim.load(model("iris", 1));
    assert!(
        sim.effects.is_empty() && stored == sim.models_stored,
        "equal is nothing to do"
    );
    let mut changed = model("iris", 1);
    changed.dataflow_spec = Some(DataflowSpec {
        clean_topics_on_delete: true,
    });
    changed.meta.as_mut().unwrap().kubernetes_meta = Some(KubernetesMeta {
        namespace: "seldon".into(),
        generation: 7,
    });
    changed.deployment_spec.as_mut().unwrap().log_payloads = true;
    sim.load(changed.clone());
    assert!(
        matches!(&sim.models_stored["iris"], Record::Model { version: 1, spec, .. } if **spec == changed)
    );
    assert!(sim.state.route("iris").unwrap().log_payloads);
    let status = sim
        .state
        .model_status("iris", false, Default::default())
        .unwrap();
    assert_eq!(
        status.versions[0]
            .kubernetes_meta
            .as_ref()
            .unwrap()
            .generation,
        7
    );
    let mut generation = model("other", 1);
    generation.meta.as_mut().unwrap().kubernetes_meta = Some(KubernetesMeta {
        namespace: String::new(),
        generation: 4,
    });
    sim.load(generation);
    sim.settle();
    assert_eq!(sim.route("other"), ["4@mlserver[0]*1"]);
}

#[test]
fn memory_counts_instances_once_they_are_known() {
    let mut sim = with_server(1, 1000);
    sim.load(model("iris", 1));
    let workers = MlServerModelSettings {
        parallel_workers: 4,
    };
    sim.step(Event::AgentReported(Box::new(ModelEventMessage {
        server_name: "mlserver".into(),
        model_name: "iris".into(),
        model_version: 1,
        event: Report::Loaded.into(),
        runtime_info: Some(ModelRuntimeInfo {
            model_runtime_info: Some(Runtime::Mlserver(workers)),
        }),
        ..ModelEventMessage::default()
    })))
    .unwrap();
    let status = sim.state.server_status("mlserver").unwrap();
    assert_eq!(status.resources[0].available_memory_bytes, 600);
    assert_eq!(
        (
            status.expected_replicas,
            status.available_replicas,
            status.num_loaded_model_replicas
        ),
        (-1, 1, 1)
    );
}

#[test]
fn over_commitment_counts_when_it_is_used_and_no_model_may_be_larger_than_the_memory() {
    let mut sim = local();
    for replica in 0..2 {
        sim.add_agent("mlserver", replica, 300, &["sklearn"]);
        let key = agent("mlserver", replica);
        sim.agents.get_mut(&key).unwrap().memory = 200;
        sim.connect(&key);
    }
    let pressed = |sim: &Sim| -> Vec<bool> {
        let set = seldon_core::ReplicaSet {
            server: "mlserver".into(),
            replicas: [0, 1].into(),
        };
        let endpoints = sim.state.endpoints(&set);
        endpoints.iter().map(|one| one.over_committed).collect()
    };
    sim.load(model("one", 2));
    sim.load(model("two", 2));
    sim.settle();
    assert_eq!(pressed(&sim), [false, false], "all of it is in memory");
    sim.load(model("three", 1));
    sim.settle();
    assert_eq!(pressed(&sim), [true, false]);
    sim.unload("three");
    sim.settle();
    assert_eq!(pressed(&sim), [true, false], "near the limit");
    sim.unload("two");
    sim.settle();
    assert_eq!(pressed(&sim), [false, false]);
    let mut large = model("large", 1);
    spec(&mut large).memory_bytes = Some(201);
    sim.unload("one");
    sim.settle();
    sim.load(large);
    assert!(
        sim.status("large")
            .1
            .contains("needs 201 B, replica 0 has 200 B in all"),
        "{}",
        sim.status("large").1
    );
}
