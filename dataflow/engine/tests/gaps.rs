//! Where records could be lost, or come twice without a mark: owners that change, topics that change.
#![allow(clippy::unwrap_used)]
mod world;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use seldon_proto::chainer::{
    Batch, PipelineStepUpdate, PipelineTopic, PipelineUpdateMessage,
    pipeline_step_update::PipelineJoinType,
};
use seldon_records::{Outgoing, header};
use world::{LIMIT, QUIET, World};

const LOOK_OFTEN: [&str; 2] = ["--metadata-refresh-seconds", "1"];
const EXACT: [&str; 2] = ["--processing-guarantee", "exactly-once"];

/// Waits until something holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_a_shared_topic_gets_reach_all_its_readers() {
    let world = World::new().await;
    world.models(&["one"]).await;
    let _engine = world.engine("e", &LOOK_OFTEN);
    let pipelines = ["p", "q", "r"];
    for pipeline in pipelines {
        let create = world.chain(pipeline, 1, &["one"]);
        world.scheduler.carry_out("e", create).await;
    }
    let shared = world.names.model_outputs("one");
    world.grow(&shared, 3).await;
    // What the model answers in the new partitions, for each of them.
    for pipeline in pipelines {
        let mut answers = world.reader(&world.names.pipeline_outputs(pipeline));
        for partition in 0..3 {
            let number = usize::try_from(partition).unwrap();
            let mut record = world.request(pipeline, number);
            record.headers.set(header::PIPELINE_VERSION, "1");
            let record = Outgoing {
                topic: shared.as_str().into(),
                partition: Some(partition),
                // Requests and responses without tensors are alike.
                value: Some(Vec::new().into()),
                ..record
            };
            world.producer.send(record).await.unwrap();
        }
        answers.until(3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_again_is_read_from_its_beginning() {
    let world = World::new().await;
    world.models(&["one"]).await;
    let _engine = world.engine("e", &LOOK_OFTEN);
    world
        .scheduler
        .carry_out("e", world.chain("p", 1, &["one"]))
        .await;
    let mut answers = world.reader(&world.names.pipeline_outputs("p"));
    world.send("p", 0..40).await;
    answers.until(40).await;
    let inputs = [world.names.pipeline_inputs("p")];
    world.admin.delete(&inputs).await.unwrap();
    let gone = async || world.admin.partitions(&inputs[0]).await.unwrap().is_none();
    eventually("the topic is not deleted", gone).await;
    world.admin.create(&inputs, false).await.unwrap();
    // Fewer than before: the engine's position is beyond the end.
    world.send("p", 40..50).await;
    answers.until(50).await;
    world.send("p", 50..60).await;
    answers.until(60).await;
    answers.some(QUIET).await;
    assert_eq!(answers.seen.len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_takes_nothing_stops_only_those_that_write_to_it() {
    let world = World::new().await;
    let outputs = world.names.pipeline_outputs("stuck");
    // A compacted topic takes no records without keys.
    let refusing = std::slice::from_ref(&outputs);
    world.admin.create(refusing, true).await.unwrap();
    let _engine = world.engine("e", &[]);
    for pipeline in ["stuck", "free"] {
        let create = world.chain(pipeline, 1, &[]);
        world.scheduler.carry_out("e", create).await;
    }
    // More than the engine may have on their way in all.
    let count = 12_000;
    let mut deliveries = Vec::new();
    for number in 0..count {
        let record = Outgoing {
            key: None,
            ..world.request("stuck", number)
        };
        deliveries.push(world.producer.enqueue(record).unwrap());
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    let mut answers = world.reader(&world.names.pipeline_outputs("free"));
    world.send("free", 0..100).await;
    answers.until(100).await;
    // When it takes them again nothing is lost, and what had been tried is marked.
    world.admin.delete(refusing).await.unwrap();
    let again = async || world.admin.partitions(&outputs).await.unwrap().is_some();
    eventually("the topic is not made again", again).await;
    let mut late = world.reader(&outputs);
    let ids = |reader: &world::Reader| -> HashSet<String> {
        let ids = reader
            .seen
            .iter()
            .map(|r| r.headers.text(header::ID).unwrap().to_owned());
        ids.collect()
    };
    eventually("results are lost", async || {
        late.some(Duration::from_millis(100)).await;
        ids(&late).len() == count
    })
    .await;
    assert!(late.marked() > 0);
    assert_eq!(late.seen.len(), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_stood_still_and_was_replaced_marks_what_it_writes() {
    // Where it happens to read of the other one first it has nothing to mark: the scene is set up again.
    for _ in 0..10 {
        if stands_still_and_writes().await {
            return;
        }
    }
    panic!("each time the former engine knew at once that it had been replaced");
}

/// Whether the former engine wrote something before it could know of the other.
async fn stands_still_and_writes() -> bool {
    let world = World::new().await;
    // What it holds when it is stopped it writes when it goes on.
    let create = batching(&world, 1_000, 4_000);
    let first = world.engine("former", &[]);
    world.scheduler.carry_out("former", create.clone()).await;
    let mut one = world.reader(&world.names.model_inputs("one"));
    let mut three = world.reader(&world.names.model_inputs("three"));
    world.send("p", 0..3).await;
    three.until(3).await;
    // Nothing is in the hands of its client.
    three.some(QUIET).await;
    first.signal("-STOP");
    one.some(QUIET).await;
    assert!(one.seen.is_empty(), "it was stopped too late");
    let _second = world.engine("heir", &[]);
    world.scheduler.carry_out("heir", create).await;
    // The heir's own window is over, so the former stood still for longer than that.
    one.all(1).await;
    // What comes while it stands still it finds when it goes on.
    world.send("p", 3..103).await;
    first.signal("-CONT");
    // The heir's second window, and what the former one wrote before it.
    one.until(2).await;
    world.send("p", 103..203).await;
    three.until(203).await;
    three.some(QUIET).await;
    let of_three = three.repeats();
    println!("{} repeats of what went on at once", of_three.0);
    assert_eq!(of_three.0, of_three.1, "a repeat is not marked");
    // Which the heir sends, and nobody else: the former one knows by now.
    one.until(3).await;
    one.some(QUIET).await;
    let (repeats, marked) = one.repeats();
    assert_eq!(repeats, marked, "what the former one writes it marks");
    assert_eq!(one.seen.len(), 3 + repeats);
    repeats > 0
}

/// `one` gets batches of so many, after so long; `two` joins with what nobody answers but the test.
fn batching(world: &World, size: u32, window_ms: u32) -> PipelineUpdateMessage {
    let topic = |topic_name: String| PipelineTopic {
        pipeline_name: "p".to_owned(),
        topic_name,
        tensor: None,
    };
    let names = &world.names;
    let step = |sources: Vec<String>, sink: String| PipelineStepUpdate {
        sources: sources.into_iter().map(topic).collect(),
        sink: Some(topic(sink)),
        input_join_ty: PipelineJoinType::Inner.into(),
        triggers_join_ty: PipelineJoinType::Inner.into(),
        ..Default::default()
    };
    let mut update = world.chain("p", 1, &[]);
    let inputs = || names.pipeline_inputs("p");
    let batch = Batch {
        size: Some(size),
        window_ms: Some(window_ms),
        rolling: false,
    };
    let one = PipelineStepUpdate {
        batch: Some(batch),
        ..step(vec![inputs()], names.model_inputs("one"))
    };
    let both = vec![inputs(), names.model_outputs("three")];
    update.updates = vec![
        one,
        step(both, names.model_inputs("two")),
        step(vec![inputs()], names.model_inputs("three")),
        step(
            vec![names.model_outputs("two")],
            names.pipeline_outputs("p"),
        ),
    ];
    update
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_once_an_open_batch_outlasts_its_engine() {
    let world = World::new().await;
    let create = batching(&world, 2, 60_000);
    let first = world.engine("first", &EXACT);
    world.scheduler.carry_out("first", create.clone()).await;
    world.send("p", 0..3).await;
    let mut three = world.reader(&world.names.model_inputs("three"));
    three.until(3).await;
    // The first request is done; of the second the batch is, and not the join; the third waits in both.
    let record = three.seen.remove(0);
    let answer = Outgoing {
        topic: world.names.model_outputs("three").into(),
        partition: Some(0),
        key: record.key,
        value: Some(Vec::new().into()),
        headers: record.headers,
    };
    world.producer.send(answer).await.unwrap();
    let mut two = world.reader(&world.names.model_inputs("two"));
    two.until(1).await;
    first.kill();
    let _second = world.engine("second", &EXACT);
    world.scheduler.carry_out("second", create).await;
    world.send("p", 3..4).await;
    let mut one = world.reader(&world.names.model_inputs("one"));
    one.all(2).await;
    one.some(QUIET).await;
    let members: Vec<String> = one
        .seen
        .iter()
        .map(|record| record.headers.text(header::BATCH).unwrap().to_owned())
        .collect();
    let has = |batch: &str, key: &str| batch.contains(&format!("\"key\":\"{key}\""));
    let of = |batch: &str| -> Vec<bool> { ["0", "1", "2", "3"].map(|key| has(batch, key)).into() };
    assert_eq!(
        members.iter().map(|batch| of(batch)).collect::<Vec<_>>(),
        [[true, true, false, false], [false, false, true, true]]
    );
}
