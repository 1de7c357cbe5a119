//! Models at rest: out of memory until they are asked for, with an inference server that does what a test says.
#![allow(clippy::unwrap_used)] // a test may
mod common;

use common::{Agent, World, metric, model, until};
use futures_util::future::join_all;
use seldon_proto::agent::model_event_message::Event;
use seldon_proto::agent::model_scaling_trigger_message::Trigger;

const IRIS: &str = "gs://seldon-models/iris";

/// Room for two models of a hundred bytes.
const SETTINGS: [&str; 3] = [
    "--memory-bytes=200",
    "--scaling-stats-period-seconds=1",
    "--model-inactive-seconds-threshold=3600",
];

async fn start(world: &World) -> Agent {
    let agent = world.agent(&SETTINGS).await;
    world.scheduler.subscription(0).await;
    agent
}

async fn keep(world: &World, name: &str, resting: bool) {
    world.scheduler.keep(&model(name, 1, IRIS), resting);
    let event = world.scheduler.event(name).await;
    assert_eq!(event.event(), Event::Loaded, "{name}: {}", event.message);
}

async fn out_of_memory(world: &World, internal: &str) {
    until("the model to leave memory", async || {
        (!world.inference.is_ready(internal)).then_some(())
    })
    .await;
}

/// The models of which it was said that they were woken, since this was asked last.
async fn woken(world: &World) -> String {
    until("a model that was woken", async || {
        let triggers = std::mem::take(&mut world.scheduler.seen.lock().unwrap().triggers);
        let woken = triggers.into_iter().find(|trigger| {
            trigger.trigger() == Trigger::ScaleUp && trigger.metrics.contains_key("woken")
        })?;
        Some(woken.model_name)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_at_rest_is_loaded_once_for_all_who_ask_and_that_is_said() {
    let world = World::new().await;
    let agent = start(&world).await;
    keep(&world, "iris", false).await;
    assert!(world.inference.is_ready("iris_1"));
    keep(&world, "iris", true).await;
    out_of_memory(&world, "iris_1").await;
    let answers = join_all((0..40).map(|_| agent.infer("iris_1"))).await;
    for answer in answers {
        assert_eq!(answer.as_deref(), Ok("iris_1"));
    }
    assert_eq!(world.inference.loads("iris_1"), 2);
    assert_eq!(woken(&world).await, "iris");
    // It is said until the scheduler has heard it: the model stays in memory meanwhile, whatever comes again.
    keep(&world, "iris", true).await;
    assert_eq!(woken(&world).await, "iris");
    assert!(world.inference.is_ready("iris_1"));
    keep(&world, "iris", false).await;
    keep(&world, "iris", true).await;
    out_of_memory(&world, "iris_1").await;
    assert_eq!(agent.infer("iris_1").await.as_deref(), Ok("iris_1"));
    assert_eq!(world.inference.loads("iris_1"), 3);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_comes_to_rest_is_installed_and_not_loaded() {
    let mut world = World::new().await;
    let agent = start(&world).await;
    keep(&world, "iris", true).await;
    assert_eq!(world.inference.loads("iris_1"), 0);
    assert!(world.installed("iris_1").exists());
    // An inference server that ends and comes back has nothing to do with it.
    world.kill_inference();
    agent.unready().await;
    world.revive_inference().await;
    world.scheduler.subscription(1).await;
    assert_eq!(world.inference.loads("iris_1"), 0);
    assert_eq!(agent.infer("iris_1").await.as_deref(), Ok("iris_1"));
    assert_eq!(woken(&world).await, "iris");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_rest_no_more_is_in_memory_before_it_is_asked_for() {
    let world = World::new().await;
    let agent = start(&world).await;
    keep(&world, "iris", true).await;
    // Of orders that come together the newest says so for all.
    for _ in 0..3 {
        world.scheduler.keep(&model("iris", 1, IRIS), false);
    }
    until("the model in memory", async || {
        world.inference.is_ready("iris_1").then_some(())
    })
    .await;
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_woken_has_idle_ones_leave() {
    let world = World::new().await;
    let agent = start(&world).await;
    keep(&world, "iris", true).await;
    for name in ["a", "b"] {
        keep(&world, name, false).await;
    }
    let loaded = metric(&agent, "seldon_loaded_model_memory_bytes_gauge").await;
    assert_eq!(loaded, 200.0, "all that there is");
    for name in ["iris_1", "a_1", "b_1", "iris_1"] {
        assert_eq!(agent.infer(name).await.as_deref(), Ok(name));
    }
    assert!(world.inference.memory.lock().unwrap().most <= 2);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_at_rest_that_cannot_be_loaded_is_given_up() {
    let world = World::new().await;
    let agent = start(&world).await;
    keep(&world, "iris", true).await;
    let broken = |broken: bool| {
        let mut memory = world.inference.memory.lock().unwrap();
        match broken {
            true => memory.broken.insert("iris_1".into()),
            false => memory.broken.remove("iris_1"),
        }
    };
    broken(true);
    until("the model to be given up", async || {
        let answer = agent.infer("iris_1").await;
        assert!(answer.is_err(), "{answer:?}");
        let seen = world.scheduler.seen.lock().unwrap();
        let mut events = seen.events.iter();
        events
            .any(|event| event.event() == Event::LoadFailed)
            .then_some(())
    })
    .await;
    broken(false);
    world.scheduler.seen.lock().unwrap().events.clear();
    keep(&world, "iris", false).await;
    assert_eq!(agent.infer("iris_1").await.as_deref(), Ok("iris_1"));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_and_inference_server_started_anew_leave_it_at_rest() {
    let mut world = World::new().await;
    let agent = start(&world).await;
    // The two that are awake take all the memory there is.
    for name in ["a", "b", "iris", "other"] {
        keep(&world, name, matches!(name, "iris" | "other")).await;
    }
    agent.kill().await;
    world.kill_inference();
    world.revive_inference().await;
    let agent = world.agent(&SETTINGS).await;
    let subscription = world.scheduler.subscription(1).await;
    assert_eq!(subscription.loaded_models.len(), 4);
    let ready = || world.inference.memory.lock().unwrap().ready.clone();
    assert_eq!(Vec::from_iter(ready()), ["a_1", "b_1"]);
    assert_eq!(agent.infer("iris_1").await.as_deref(), Ok("iris_1"));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_woken_by_word_alone_makes_nobody_leave() {
    let world = World::new().await;
    let agent = start(&world).await;
    keep(&world, "iris", true).await;
    for name in ["a", "b"] {
        keep(&world, name, false).await;
    }
    keep(&world, "iris", false).await;
    // What follows an order is done by then: its turn comes after.
    keep(&world, "iris", true).await;
    assert_eq!(world.inference.loads("iris_1"), 0);
    assert!(world.inference.is_ready("a_1") && world.inference.is_ready("b_1"));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_are_held_as_may_be_and_the_rest_is_told_so() {
    let mut world = World::new().await;
    let limits = [
        "--max-requests-per-model=4",
        "--max-queued-requests-per-model=6",
    ];
    let agent = world.agent(&[&SETTINGS[..], &limits].concat()).await;
    world.scheduler.subscription(0).await;
    keep(&world, "iris", true).await;
    world
        .inference
        .memory
        .lock()
        .unwrap()
        .hung
        .insert("iris_1".into());
    let agent = std::sync::Arc::new(agent);
    let ask = || {
        let agent = agent.clone();
        tokio::spawn(async move { agent.infer("iris_1").await })
    };
    let held: Vec<_> = (0..10).map(|_| ask()).collect();
    until("all to be held", async || {
        let usage = world.scheduler.seen.lock().unwrap().usage?;
        (usage.requests_in_flight == 10).then_some(())
    })
    .await;
    let refused = agent.infer("iris_1").await;
    assert_eq!(refused, Err(tonic::Code::ResourceExhausted));
    assert!(held.iter().all(|held| !held.is_finished()));
    for held in held {
        held.abort();
    }
    until("none to be held", async || {
        let usage = world.scheduler.seen.lock().unwrap().usage?;
        (usage.requests_in_flight == 0).then_some(())
    })
    .await;
    // Those of a model that has no inference server may be asked of another replica.
    world.kill_inference();
    agent.unready().await;
    let answers = join_all((0..20).map(|_| agent.infer("iris_1"))).await;
    for answer in answers {
        let refused = answer.unwrap_err();
        assert_ne!(refused, tonic::Code::ResourceExhausted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_started_anew_knows_the_bounds_of_what_rests() {
    let world = World::new().await;
    let agent = start(&world).await;
    let mut bounded = model("iris", 1, IRIS);
    for (most, resting) in [(0, false), (7, true)] {
        let model = bounded.model.as_mut().unwrap();
        model.deployment_spec.get_or_insert_default().max_replicas = most;
        world.scheduler.keep(&bounded, resting);
        let event = world.scheduler.event("iris").await;
        assert_eq!(event.event(), Event::Loaded);
    }
    out_of_memory(&world, "iris_1").await;
    agent.kill().await;
    let agent = world.agent(&SETTINGS).await;
    let subscription = world.scheduler.subscription(1).await;
    let found = subscription.loaded_models[0].model.as_ref().unwrap();
    assert_eq!(found.deployment_spec.as_ref().unwrap().max_replicas, 7);
    agent.end().await;
}
