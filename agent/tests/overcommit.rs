//! More models than memory: eviction and reload, with an inference server that does what a test says.
#![allow(clippy::unwrap_used)] // a test may
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Agent, World, metric, model, until};
use futures_util::future::join_all;
use seldon_grpc::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use seldon_proto::agent::model_event_message::Event;
use seldon_proto::agent::model_operation_message::Operation::{LoadModel, UnloadModel};
use seldon_proto::inference::ModelInferRequest;
use tokio::sync::mpsc;

const IRIS: &str = "gs://seldon-models/iris";
const LOADED_BYTES: &str = "seldon_loaded_model_memory_bytes_gauge";
const EVICTED_BYTES: &str = "seldon_evicted_model_memory_bytes_gauge";

/// Room for three models of a hundred bytes, and nine more registered.
const TIGHT: [&str; 2] = ["--memory-bytes=300", "--over-commit-percentage=300"];

async fn load(world: &World, name: &str) {
    world.scheduler.order(LoadModel, &model(name, 1, IRIS));
    let event = world.scheduler.event(name).await;
    assert_eq!(event.event(), Event::Loaded, "{name}: {}", event.message);
}

/// An agent with `names` loaded, in this order.
async fn agent_with(world: &World, more: &[&str], names: &[&str]) -> Agent {
    let agent = world.agent(&[&TIGHT[..], more].concat()).await;
    world.scheduler.subscription(0).await;
    for name in names {
        load(world, name).await;
    }
    agent
}

/// A request that stays in flight until it is dropped.
struct Stream {
    _requests: mpsc::UnboundedSender<ModelInferRequest>,
    _answers: tonic::Streaming<seldon_proto::inference::ModelInferResponse>,
}

impl Stream {
    /// Resolves when the model has answered once.
    async fn open(agent: &Agent, internal: &str) -> Self {
        let address = format!("http://127.0.0.1:{}", agent.proxy);
        let mut client = GrpcInferenceServiceClient::connect(address).await.unwrap();
        let (requests, receiver) = mpsc::unbounded_channel();
        requests.send(ModelInferRequest::default()).unwrap();
        let receiver = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        let mut request = tonic::Request::new(receiver);
        let headers = request.metadata_mut();
        headers.insert("seldon-internal-model", internal.parse().unwrap());
        headers.insert("seldon-model", "any".parse().unwrap());
        let mut answers = client
            .model_stream_infer(request)
            .await
            .unwrap()
            .into_inner();
        let first = answers.message().await.unwrap().unwrap();
        assert_eq!(first.model_name, internal);
        Self {
            _requests: requests,
            _answers: answers,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_models_answer_where_three_have_room() {
    let world = World::new().await;
    let agent = world.agent(&TIGHT).await;
    let subscription = world.scheduler.subscription(0).await;
    assert_eq!(subscription.available_memory_bytes, 1200);
    let config = subscription.replica_config.unwrap();
    assert_eq!(
        (config.memory_bytes, config.over_commit_percentage),
        (300, 300)
    );
    let names: Vec<String> = (0..12).map(|number| format!("m{number}")).collect();
    for name in &names {
        world.scheduler.order(LoadModel, &model(name, 1, IRIS));
    }
    for name in &names {
        let event = world.scheduler.event(name).await;
        assert_eq!(event.event(), Event::Loaded, "{}", event.message);
    }
    assert_eq!(metric(&agent, LOADED_BYTES).await, 300.0);
    assert_eq!(metric(&agent, EVICTED_BYTES).await, 900.0);
    assert_eq!(metric(&agent, "seldon_cache_evict_count").await, 9.0);
    assert_eq!(metric(&agent, "seldon_load_model_counter").await, 12.0);

    let asked = join_all((0..240).map(|number| {
        let internal = format!("m{}_1", number % 12);
        let agent = &agent;
        async move { (agent.infer(&internal).await, internal) }
    }));
    let watched = async {
        let mut highest = 0.0_f64;
        loop {
            highest = highest.max(metric(&agent, LOADED_BYTES).await);
            assert!(highest <= 300.0, "{highest}");
        }
    };
    tokio::select! {
        answers = asked => for (answer, internal) in answers {
            assert_eq!(answer.as_ref(), Ok(&internal));
        },
        () = watched => {}
    }
    assert!(world.inference.memory.lock().unwrap().most <= 3);
    assert_eq!(
        metric(&agent, "seldon_load_model_counter").await,
        12.0,
        "ordered loads only"
    );

    until("how the replica is used", async || {
        let usage = world.scheduler.seen.lock().unwrap().usage?;
        ((usage.evicted_models, usage.requests_in_flight) == (9, 0)).then_some(())
    })
    .await;

    // The scheduler that comes back finds all of them.
    world.scheduler.hang_up();
    let again = world.scheduler.subscription(1).await;
    assert_eq!(again.loaded_models.len(), 12);
    assert_eq!(again.available_memory_bytes, 0);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_leaves_and_callers_share_its_return() {
    let world = World::new().await;
    let agent = agent_with(&world, &[], &["a", "b", "c"]).await;
    assert_eq!(agent.infer("a_1").await.as_deref(), Ok("a_1"));
    load(&world, "d").await;
    assert!(world.inference.is_ready("a_1") && !world.inference.is_ready("b_1"));
    let callers = join_all((0..50).map(|_| agent.infer("b_1"))).await;
    assert!(
        callers.iter().all(|answer| answer.as_deref() == Ok("b_1")),
        "{callers:?}"
    );
    assert_eq!(world.inference.loads("b_1"), 2, "one more for all");
    assert_eq!(world.inference.unloads("c_1"), 1);
    assert!(world.inference.is_ready("a_1"));

    // An order for an evicted model changes nothing.
    load(&world, "c").await;
    assert_eq!(world.inference.loads("c_1"), 1);
    // One that is unloaded leaves the inference server alone; its memory can be booked again.
    world.scheduler.order(UnloadModel, &model("c", 1, IRIS));
    let event = world.scheduler.event("c").await;
    assert_eq!(
        (event.event(), event.available_memory_bytes),
        (Event::Unloaded, 900)
    );
    assert_eq!(world.inference.unloads("c_1"), 1);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_model_that_is_unloaded_loses_its_files() {
    let world = World::new().await;
    let names = ["a", "b", "c", "d"];
    let agent = agent_with(&world, &["--unload-retention-seconds=0"], &names).await;
    assert!(world.installed("a_1").exists() && !world.inference.is_ready("a_1"));
    world.scheduler.order(UnloadModel, &model("a", 1, IRIS));
    assert_eq!(world.scheduler.event("a").await.event(), Event::Unloaded);
    until("the files' end", async || {
        (!world.installed("a_1").exists()).then_some(())
    })
    .await;
    assert_eq!(world.inference.unloads("a_1"), 1, "its eviction");
    assert_eq!(agent.infer("a_1").await, Err(tonic::Code::NotFound));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_evicted_goes_on() {
    let world = World::new().await;
    let few_tries = ["--max-unload-retry-count=0"];
    let agent = agent_with(&world, &few_tries, &["a", "b", "c"]).await;
    world
        .inference
        .memory
        .lock()
        .unwrap()
        .kept
        .insert("a_1".into());
    load(&world, "d").await;
    assert!(world.inference.is_ready("a_1") && !world.inference.is_ready("b_1"));
    assert_eq!(agent.infer("a_1").await.as_deref(), Ok("a_1"));
    assert_eq!(world.inference.loads("a_1"), 1);
    assert_eq!(metric(&agent, "seldon_cache_evict_count").await, 1.0);
    assert_eq!(metric(&agent, LOADED_BYTES).await, 300.0);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_in_use_stay_and_others_wait() {
    let world = World::new().await;
    let agent = agent_with(&world, &[], &["a", "b", "c", "d"]).await;
    let mut streams = Vec::new();
    for internal in ["b_1", "c_1", "d_1"] {
        streams.push(Stream::open(&agent, internal).await);
    }
    world.scheduler.order(LoadModel, &model("e", 1, IRIS));
    let begun = Instant::now();
    assert_eq!(
        agent.infer("a_1").await,
        Err(tonic::Code::ResourceExhausted)
    );
    assert!(
        begun.elapsed() > Duration::from_secs(5),
        "memory is waited for: {:?}",
        begun.elapsed()
    );
    for internal in ["b_1", "c_1", "d_1"] {
        assert_eq!(world.inference.unloads(internal), 0);
    }
    // The first that is not in use any more makes room for the order that came first.
    streams.remove(1);
    assert_eq!(world.scheduler.event("e").await.event(), Event::Loaded);
    assert_eq!(world.inference.unloads("c_1"), 1);
    streams.clear();
    assert_eq!(agent.infer("a_1").await.as_deref(), Ok("a_1"));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn models_that_are_always_in_use_take_turns() {
    let world = World::new().await;
    let names = ["a", "b", "c", "d", "e"];
    let agent = Arc::new(agent_with(&world, &[], &names).await);
    world.inference.memory.lock().unwrap().thinks = Duration::from_millis(20);
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..40 {
        let internal = format!("{}_1", names[number % names.len()]);
        let (agent, stop) = (agent.clone(), stop.clone());
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(agent.infer(&internal).await.as_ref(), Ok(&internal));
            }
        });
    }
    // Each has come back. Three of them had to leave for that while they were asked all the time.
    let again = until("all to have had their turn", async || {
        let loads = |name: &&str| world.inference.loads(&format!("{name}_1")) >= 2;
        names.iter().all(loads).then_some(())
    });
    tokio::select! {
        () = again => {}
        failed = callers.join_next() => panic!("{failed:?}"),
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    assert!(world.inference.memory.lock().unwrap().most <= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_return_is_told_and_tried_again_after_a_while() {
    let world = World::new().await;
    let few_tries = ["--max-load-retry-count=0"];
    let agent = agent_with(&world, &few_tries, &["a", "b", "c", "d"]).await;
    let broken = |is: bool| {
        let mut memory = world.inference.memory.lock().unwrap();
        if is {
            memory.broken.insert("a_1".into());
        } else {
            memory.broken.clear();
        }
    };
    broken(true);
    let callers = join_all((0..20).map(|_| agent.infer("a_1"))).await;
    assert!(
        callers
            .iter()
            .all(|answer| *answer == Err(tonic::Code::Unavailable)),
        "{callers:?}"
    );
    assert_eq!(world.inference.loads("a_1"), 2, "one more for all");
    assert!(world.installed("a_1").exists());
    broken(false);
    until("the return", async || agent.infer("a_1").await.ok()).await;
    assert_eq!(world.inference.loads("a_1"), 3, "not before its time");

    // Again and again: the scheduler has to know.
    for name in ["b", "c", "d"] {
        until("others", async || {
            agent.infer(&format!("{name}_1")).await.ok()
        })
        .await;
    }
    assert!(!world.inference.is_ready("a_1"));
    broken(true);
    let event = until("the end", async || {
        let _ = agent.infer("a_1").await;
        let seen = world.scheduler.seen.lock().unwrap();
        seen.events.first().cloned()
    })
    .await;
    assert_eq!(
        (event.model_name.as_str(), event.event()),
        ("a", Event::LoadFailed)
    );
    assert!(
        event.message.contains("3 times") && event.message.contains("unpickling failed"),
        "{}",
        event.message
    );
    assert_eq!(world.inference.loads("a_1"), 6);
    assert_eq!(agent.infer("a_1").await, Err(tonic::Code::NotFound));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_too_large_is_refused() {
    let world = World::new().await;
    let agent = agent_with(&world, &[], &["a"]).await;
    let mut huge = model("huge", 1, IRIS);
    let spec = huge.model.as_mut().unwrap().model_spec.as_mut().unwrap();
    spec.memory_bytes = Some(301);
    world.scheduler.order(LoadModel, &huge);
    let event = world.scheduler.event("huge").await;
    assert_eq!(event.event(), Event::LoadFailed);
    assert_eq!(
        event.message,
        "it needs 301 bytes of memory, and this server replica has 300 for all its models"
    );
    assert_eq!(event.available_memory_bytes, 1100);
    assert!(world.inference.is_ready("a_1"), "evicted in vain");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_takes_over_what_is_in_memory_and_evicts_the_rest() {
    let world = World::new().await;
    let agent = agent_with(&world, &[], &["a", "b", "c", "d", "e"]).await;
    agent.kill().await;
    let agent = world.agent(&TIGHT).await;
    let subscription = world.scheduler.subscription(1).await;
    assert_eq!(subscription.loaded_models.len(), 5);
    assert_eq!(subscription.available_memory_bytes, 700);
    assert_eq!(metric(&agent, LOADED_BYTES).await, 300.0);
    assert_eq!(metric(&agent, EVICTED_BYTES).await, 200.0);
    let debug = debug_states(&agent).await;
    assert_eq!(
        debug,
        [
            ("a_1", false),
            ("b_1", false),
            ("c_1", true),
            ("d_1", true),
            ("e_1", true)
        ]
        .map(|(name, in_memory)| (name.to_owned(), in_memory))
    );
    assert_eq!(agent.infer("e_1").await.as_deref(), Ok("e_1"));
    assert_eq!(world.inference.loads("e_1"), 1, "it was still in memory");
    assert_eq!(agent.infer("a_1").await.as_deref(), Ok("a_1"));
    assert!(world.inference.memory.lock().unwrap().most <= 3);
    agent.end().await;
}

/// Models and whether they are in memory, as the debug service says.
async fn debug_states(agent: &Agent) -> Vec<(String, bool)> {
    use seldon_grpc::agent_debug::agent_debug_service_client::AgentDebugServiceClient;
    use seldon_proto::agent_debug::{ReplicaStatusRequest, model_replica_state::ModelState};
    let address = format!("http://127.0.0.1:{}", agent.debug);
    let mut client = AgentDebugServiceClient::connect(address).await.unwrap();
    let status = client
        .replica_status(ReplicaStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    let states = status.models.into_iter();
    states
        .map(|model| {
            let in_memory = model.state() == ModelState::InMemory;
            (model.name, in_memory)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_less_memory_what_is_too_much_is_evicted() {
    let world = World::new().await;
    let agent = agent_with(&world, &[], &["a", "b", "c"]).await;
    agent.kill().await;
    let agent = world.agent(&["--memory-bytes=200"]).await;
    let subscription = world.scheduler.subscription(1).await;
    assert_eq!(subscription.loaded_models.len(), 3);
    until("its eviction", async || {
        (world.inference.memory.lock().unwrap().ready.len() == 2).then_some(())
    })
    .await;
    for internal in ["a_1", "b_1", "c_1"] {
        assert_eq!(agent.infer(internal).await.as_deref(), Ok(internal));
    }
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_inference_server_gets_back_what_it_held() {
    let mut world = World::new().await;
    let agent = agent_with(&world, &[], &["a", "b", "c", "d", "e"]).await;
    assert_eq!(agent.infer("c_1").await.as_deref(), Ok("c_1"));
    world.kill_inference();
    agent.unready().await;
    world.revive_inference().await;
    let again = world.scheduler.subscription(1).await;
    assert_eq!(again.loaded_models.len(), 5);
    for internal in ["c_1", "d_1", "e_1"] {
        assert!(world.inference.is_ready(internal), "{internal}");
    }
    for internal in ["a_1", "b_1"] {
        assert_eq!(world.inference.loads(internal), 1, "{internal}");
        assert_eq!(agent.infer(internal).await.as_deref(), Ok(internal));
    }
    assert!(world.inference.memory.lock().unwrap().most <= 3);
    agent.end().await;
}
