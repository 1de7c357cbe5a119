//! A whole agent with a real rclone, between a scheduler and an inference server of the test.
#![allow(clippy::unwrap_used)] // a test may
mod common;

use std::time::Duration;

use common::{World, get, model, until};
use seldon_proto::agent::model_event_message::Event;
use seldon_proto::agent::model_operation_message::Operation::{LoadModel, UnloadModel};
use seldon_proto::scheduler::{StorageConfig, storage_config};

const IRIS: &str = "gs://seldon-models/iris";

#[tokio::test(flavor = "multi_thread")]
async fn loads_serves_and_unloads() {
    let world = World::new().await;
    let agent = world
        .agent(&[
            "--server-idx=2",
            "--over-commit-percentage=20",
            "--unload-retention-seconds=1",
        ])
        .await;
    let subscription = world.scheduler.subscription(0).await;
    assert_eq!(
        (subscription.server_name.as_str(), subscription.replica_idx),
        ("mlserver", 2)
    );
    assert!(subscription.shared && subscription.loaded_models.is_empty());
    assert_eq!(subscription.available_memory_bytes, 1200);
    let config = subscription.replica_config.unwrap();
    assert_eq!(config.inference_http_port, i32::from(agent.proxy));
    assert_eq!(config.inference_grpc_port, config.inference_http_port);
    until("readiness", async || {
        (get(agent.readiness, "/ready").await.0 == 200).then_some(())
    })
    .await;

    world.scheduler.order(LoadModel, &model("iris", 1, IRIS));
    let event = world.scheduler.event("iris").await;
    assert_eq!(event.event(), Event::Loaded, "{}", event.message);
    assert_eq!(
        (
            event.model_version,
            event.available_memory_bytes,
            event.replica_idx
        ),
        (1, 1100, 2)
    );
    assert!(event.runtime_info.is_some());
    assert!(world.installed("iris_1").join("1/model.joblib").exists());
    assert_eq!(agent.infer("iris_1").await, Ok("iris_1".to_owned()));
    assert_eq!(agent.infer("other_1").await, Err(tonic::Code::NotFound));
    assert!(
        get(agent.metrics, "/metrics")
            .await
            .1
            .contains("seldon_loaded_model_gauge")
    );
    // The same order again changes nothing.
    world.scheduler.order(LoadModel, &model("iris", 1, IRIS));
    assert_eq!(world.scheduler.event("iris").await.event(), Event::Loaded);
    assert_eq!(world.inference.loads("iris_1"), 1);

    world.scheduler.order(UnloadModel, &model("iris", 1, IRIS));
    let event = world.scheduler.event("iris").await;
    assert_eq!(
        (event.event(), event.available_memory_bytes),
        (Event::Unloaded, 1200)
    );
    assert!(!world.inference.is_ready("iris_1"));
    // A request that comes late costs a reload, not an error; many share one.
    let late = futures_util::future::join_all((0..10).map(|_| agent.infer("iris_1"))).await;
    assert!(
        late.iter().all(|answer| answer.as_deref() == Ok("iris_1")),
        "{late:?}"
    );
    assert_eq!(world.inference.loads("iris_1"), 2);
    until("the model's end", async || {
        (!world.installed("iris_1").exists()).then_some(())
    })
    .await;
    assert_eq!(agent.infer("iris_1").await, Err(tonic::Code::NotFound));
    assert!(!world.inference.is_ready("iris_1"));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_and_hold_no_secret() {
    let world = World::new().await;
    let agent = world.agent(&[]).await;
    world.scheduler.subscription(0).await;
    let failure = async |version: &seldon_proto::agent::ModelVersion| {
        world.scheduler.order(LoadModel, version);
        let name = version
            .model
            .as_ref()
            .unwrap()
            .meta
            .as_ref()
            .unwrap()
            .name
            .clone();
        let event = world.scheduler.event(&name).await;
        assert_eq!(event.event(), Event::LoadFailed);
        event.message
    };
    assert_eq!(
        failure(&model("a", 1, "gs://seldon-models/nowhere")).await,
        "no artefact at gs://seldon-models/nowhere: nothing is there"
    );
    let empty = failure(&model("b", 1, "gs://seldon-models/empty")).await;
    assert!(
        empty.contains("no *.joblib, *.pkl or *.pickle in the artefact"),
        "{empty}"
    );
    let file = failure(&model("c", 1, "gs://seldon-models/iris/model.joblib")).await;
    assert!(file.contains("a file, not a folder"), "{file}");
    let remote = failure(&model("d", 1, "s3://models/iris")).await;
    assert!(
        remote.contains("\"s3\" is not configured in rclone (configured: gs)"),
        "{remote}"
    );
    assert!(
        failure(&model("e", 1, ":local:/etc"))
            .await
            .contains("connection string")
    );
    assert!(
        failure(&model("f", 1, "/etc"))
            .await
            .contains("--allowed-local-roots")
    );
    assert!(
        failure(&model("../x", 1, IRIS))
            .await
            .contains("cannot be used")
    );
    // A link out of the allowed folder.
    std::os::unix::fs::symlink("/etc", world.store().join("etc")).unwrap();
    assert!(
        failure(&model(
            "g",
            1,
            &world.store().join("etc").display().to_string()
        ))
        .await
        .contains("--allowed-local-roots")
    );

    world
        .inference
        .memory
        .lock()
        .unwrap()
        .broken
        .insert("h_1".into());
    let broken = failure(&model("h", 1, IRIS)).await;
    assert!(broken.contains("unpickling failed"), "{broken}");
    assert_eq!(world.inference.loads("h_1"), 6, "five retries");

    let mut secret = model("i", 1, "gs://bucket/x");
    let storage = serde_json::json!({"name": "gs", "type": "webdav", "parameters":
        {"url": "http://user:PLANTED@127.0.0.1:1", "user": "PLANTED", "pass": "PLANTED"}});
    secret
        .model
        .as_mut()
        .unwrap()
        .model_spec
        .as_mut()
        .unwrap()
        .storage_config = Some(StorageConfig {
        config: Some(storage_config::Config::StorageRcloneConfig(
            storage.to_string(),
        )),
    });
    let message = failure(&secret).await;
    assert!(
        message.starts_with("gs://bucket/x cannot be read") && !message.contains("PLANTED"),
        "{message}"
    );
    assert_eq!(agent.infer("h_1").await, Err(tonic::Code::NotFound));
    assert_eq!(
        std::fs::read_dir(world.folder.path().join("agent/models"))
            .unwrap()
            .count(),
        0
    );
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_load_disturbs_nobody_and_can_be_unloaded() {
    let world = World::new().await;
    let agent = world.agent(&["--download-retry-seconds=10"]).await;
    world.scheduler.subscription(0).await;
    world
        .inference
        .memory
        .lock()
        .unwrap()
        .hung
        .insert("hung_1".into());
    world.scheduler.order(LoadModel, &model("hung", 1, IRIS));
    until("the hung load", async || {
        (world.inference.loads("hung_1") == 1).then_some(())
    })
    .await;
    // The scheduler's reconciliation repeats the order: the load under way goes on.
    world.scheduler.hang_up();
    world.scheduler.subscription(1).await;
    world.scheduler.order(LoadModel, &model("hung", 1, IRIS));
    for number in 0..20 {
        world
            .scheduler
            .order(LoadModel, &model(&format!("m{number}"), 1, IRIS));
    }
    for number in 0..20 {
        assert_eq!(
            world.scheduler.event(&format!("m{number}")).await.event(),
            Event::Loaded
        );
    }
    assert_eq!(world.inference.loads("hung_1"), 1);
    // The agent's own rclone dies and comes back.
    let pid_file = world.folder.path().join("agent/rclone-process/rclone.pid");
    let pid = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    world.scheduler.order(LoadModel, &model("after", 1, IRIS));
    assert_eq!(world.scheduler.event("after").await.event(), Event::Loaded);
    world.scheduler.order(UnloadModel, &model("hung", 1, IRIS));
    assert_eq!(world.scheduler.event("hung").await.event(), Event::Unloaded);
    assert!(!world.installed("hung_1").exists());
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_need_no_work_do_not_wait_behind_those_that_do() {
    let world = World::new().await;
    let agent = world.agent(&[]).await;
    world.scheduler.subscription(0).await;
    world.scheduler.order(LoadModel, &model("there", 1, IRIS));
    assert_eq!(world.scheduler.event("there").await.event(), Event::Loaded);
    // More than are worked on at a time.
    let slow: Vec<_> = (0..300).map(|number| format!("slow{number}")).collect();
    for name in &slow {
        let mut memory = world.inference.memory.lock().unwrap();
        memory.hung.insert(format!("{name}_1"));
        drop(memory);
        world.scheduler.order(LoadModel, &model(name, 1, IRIS));
    }
    let installed = || {
        let there = |name: &&String| world.installed(&format!("{name}_1")).exists();
        slow.iter().filter(there).count()
    };
    until("as many under way as may be", async || {
        (installed() == 256).then_some(())
    })
    .await;
    world.scheduler.order(LoadModel, &model("there", 1, IRIS));
    assert_eq!(world.scheduler.event("there").await.event(), Event::Loaded);
    for operation in [LoadModel, UnloadModel] {
        world.scheduler.order(operation, &model("late", 1, IRIS));
    }
    assert_eq!(world.scheduler.event("late").await.event(), Event::Unloaded);
    assert_eq!(installed(), 256);
    assert_eq!(agent.infer("late_1").await, Err(tonic::Code::NotFound));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_the_scheduler_and_its_own_death() {
    let mut world = World::new().await;
    let agent = world.agent(&[]).await;
    world.scheduler.subscription(0).await;
    world
        .scheduler
        .order(LoadModel, &model("iris", 3, "/placeholder"));
    assert_eq!(
        world.scheduler.event("iris").await.event(),
        Event::LoadFailed
    );
    let local = world
        .store()
        .join("seldon-models/iris")
        .display()
        .to_string();
    world.scheduler.order(LoadModel, &model("iris", 3, &local));
    assert_eq!(world.scheduler.event("iris").await.event(), Event::Loaded);
    let expect_iris = |subscription: &seldon_proto::agent::AgentSubscribeRequest| {
        assert_eq!(subscription.loaded_models.len(), 1);
        assert_eq!(subscription.loaded_models[0].version, 3);
        assert_eq!(subscription.available_memory_bytes, 900);
    };
    world.restart_scheduler().await;
    expect_iris(&world.scheduler.subscription(1).await);
    world.scheduler.hang_up();
    expect_iris(&world.scheduler.subscription(2).await);

    // Killed: no drain, no farewell. The inference server goes on and holds a model nobody ordered.
    agent.kill().await;
    world
        .inference
        .memory
        .lock()
        .unwrap()
        .ready
        .insert("stranger_1".into());
    let agent = world.agent(&[]).await;
    assert_eq!(
        agent.infer("iris_3").await,
        Ok("iris_3".to_owned()),
        "requests wait until the model is found again"
    );
    expect_iris(&world.scheduler.subscription(3).await);
    assert_eq!(world.inference.loads("iris_3"), 1, "it was still in memory");
    assert!(!world.inference.is_ready("stranger_1"));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_after_the_inference_server_restarts() {
    let mut world = World::new().await;
    let agent = world.agent(&[]).await;
    world.scheduler.subscription(0).await;
    for name in ["iris", "bad"] {
        world.scheduler.order(LoadModel, &model(name, 1, IRIS));
        assert_eq!(world.scheduler.event(name).await.event(), Event::Loaded);
    }
    world
        .inference
        .memory
        .lock()
        .unwrap()
        .broken
        .insert("bad_1".into());
    world.kill_inference();
    agent.unready().await;
    world.revive_inference().await;
    let again = world.scheduler.subscription(1).await;
    assert_eq!(again.loaded_models.len(), 1);
    assert_eq!(agent.infer("iris_1").await, Ok("iris_1".to_owned()));
    let event = world.scheduler.event("bad").await;
    assert!(
        event.event() == Event::LoadFailed && event.message.contains("restarted"),
        "{event:?}"
    );
    until("ready again", async || {
        (get(agent.readiness, "/ready").await.0 == 200).then_some(())
    })
    .await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_while_models_are_restored_loses_none() {
    let mut world = World::new().await;
    let agent = world.agent(&[]).await;
    world.scheduler.subscription(0).await;
    for name in ["one", "two"] {
        world.scheduler.order(LoadModel, &model(name, 1, IRIS));
        assert_eq!(world.scheduler.event(name).await.event(), Event::Loaded);
    }
    world.kill_inference();
    agent.unready().await;
    world.inference.memory.lock().unwrap().restarts_after = Some("two_1".into());
    world.revive_inference().await;
    let again = world.scheduler.subscription(1).await;
    assert_eq!(again.loaded_models.len(), 2);
    for internal in ["one_1", "two_1"] {
        assert!(world.inference.is_ready(internal), "{internal}");
        assert_eq!(agent.infer(internal).await.as_deref(), Ok(internal));
    }
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_model_leaves_nothing_in_the_inference_server() {
    let world = World::new().await;
    let agent = world.agent(&["--unload-retention-seconds=1"]).await;
    world.scheduler.subscription(0).await;
    world.scheduler.order(LoadModel, &model("iris", 1, IRIS));
    assert_eq!(world.scheduler.event("iris").await.event(), Event::Loaded);
    world.scheduler.order(UnloadModel, &model("iris", 1, IRIS));
    assert_eq!(world.scheduler.event("iris").await.event(), Event::Unloaded);
    // As a load that was given up leaves it behind.
    let remember = || {
        world
            .inference
            .memory
            .lock()
            .unwrap()
            .ready
            .insert("iris_1".into())
    };
    remember();
    world.scheduler.order(UnloadModel, &model("iris", 1, IRIS));
    assert_eq!(world.scheduler.event("iris").await.event(), Event::Unloaded);
    assert!(!world.inference.is_ready("iris_1"), "at the order");
    remember();
    until("the model's end", async || {
        (!world.installed("iris_1").exists()).then_some(())
    })
    .await;
    assert!(!world.inference.is_ready("iris_1"), "at its end");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_could_not_be_asked_is_asked_again() {
    let mut world = World::new().await;
    let agent = world.agent(&["--max-drain-seconds=1"]).await;
    world.scheduler.subscription(0).await;
    until("readiness", async || {
        (get(agent.readiness, "/ready").await.0 == 200).then_some(())
    })
    .await;
    world.kill_scheduler();
    let asked_in_vain = get(agent.drainer, "/terminate").await.1;
    assert!(asked_in_vain.starts_with("not drained"), "{asked_in_vain}");
    world.restart_scheduler().await;
    world.scheduler.subscription(1).await;
    until("the drain", async || {
        (get(agent.drainer, "/terminate").await.1 == "drained\n").then_some(())
    })
    .await;
    assert_eq!(world.scheduler.seen.lock().unwrap().drains.len(), 1);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drains_at_the_first_call() {
    let world = World::new().await;
    let agent = world.agent(&[]).await;
    world.scheduler.subscription(0).await;
    let known = model("known", 1, IRIS);
    world.scheduler.order(LoadModel, &known);
    world.scheduler.event("known").await;
    until("readiness", async || {
        (get(agent.readiness, "/ready").await.0 == 200).then_some(())
    })
    .await;
    let (one, two) = tokio::join!(
        get(agent.drainer, "/terminate"),
        get(agent.drainer, "/terminate")
    );
    assert_eq!((one.1.as_str(), two.1.as_str()), ("drained\n", "drained\n"));
    assert_eq!(world.scheduler.seen.lock().unwrap().drains.len(), 1);
    assert_eq!(get(agent.readiness, "/ready").await.0, 503);
    world.scheduler.order(LoadModel, &model("late", 1, IRIS));
    assert!(
        world
            .scheduler
            .event("late")
            .await
            .message
            .contains("drained")
    );
    // How to keep what it has may be said: that it goes is no failure of the model.
    world.scheduler.keep(&known, true);
    assert_eq!(world.scheduler.event("known").await.event(), Event::Loaded);
    agent.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), agent.task).await;
    ended.expect("ends in time").unwrap().unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    use clap::Parser;
    let taken = common::bind(0).unwrap();
    let port = taken.local_addr().unwrap().port();
    let arguments = [
        "agent",
        "--agent-host=127.0.0.1",
        "--reverse-proxy-http-port=0",
        "--reverse-proxy-grpc-port=0",
        "--debug-grpc-port=0",
        &format!("--metrics-port={port}"),
    ];
    let options = seldon_agent::Options::parse_from(arguments);
    let error = seldon_agent::Listeners::bind(&options)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains(&port.to_string()) && error.contains("--metrics-port"),
        "{error}"
    );
}
