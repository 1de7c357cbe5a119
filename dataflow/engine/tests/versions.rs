//! Versions that end while their engine changes, and pipelines that are handed over or removed.
#![allow(clippy::unwrap_used)]
mod world;

use std::time::{Duration, Instant};

use seldon_proto::chainer::PipelineUpdateMessage;
use seldon_records::header;
use world::{QUIET, Reader, World};

const EXACT: [&str; 2] = ["--processing-guarantee", "exactly-once"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_that_moves_is_handed_over_with_what_is_in_flight() {
    for more in [&[][..], &EXACT] {
        let world = World::new().await;
        let create = world.chain("p", 1, &["slow"]);
        let (_first, _second) = (world.engine("first", more), world.engine("second", more));
        world.scheduler.carry_out("first", create.clone()).await;
        world.send("p", 0..20).await;
        let mut asked = world.reader(&world.names.model_inputs("slow"));
        asked.until(20).await;
        let start = Instant::now();
        world
            .scheduler
            .carry_out("first", world.hand_over("p", 1))
            .await;
        world.scheduler.carry_out("second", create).await;
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        world.send("p", 20..30).await;
        // The model answers only now.
        world.models(&["slow"]).await;
        let mut answers = world.reader(&world.names.pipeline_outputs("p"));
        answers.until(30).await;
        answers.some(QUIET).await;
        assert_eq!((answers.seen.len(), answers.marked()), (30, 0));
        println!("handed over in {took:?}");
    }
}

/// The order for a version that comes with another.
fn with(one: &PipelineUpdateMessage, other: &PipelineUpdateMessage) -> PipelineUpdateMessage {
    PipelineUpdateMessage {
        others: vec![other.clone()],
        ..one.clone()
    }
}

/// Has an engine take up both versions, the newer first, and let the older end; returns the number of that order.
async fn take_up(
    world: &World,
    engine: &str,
    old: &PipelineUpdateMessage,
    new: &PipelineUpdateMessage,
) -> u64 {
    let orders = [
        world.scheduler.tell(engine, with(new, old)).await,
        world.scheduler.tell(engine, with(old, new)).await,
    ];
    for order in orders {
        let ack = world.scheduler.acked(order).await;
        assert!(ack.success, "{}", ack.reason);
        assert!(ack.update.unwrap().others.is_empty());
    }
    let end = world.delete("p", old.version, false);
    world.scheduler.tell(engine, end).await
}

/// How many different requests were answered by each of the two versions, none of them with an error.
fn by_version(answers: &Reader) -> [usize; 2] {
    let mut known = std::collections::HashSet::new();
    let mut counts = [0, 0];
    for answer in &answers.seen {
        let text = String::from_utf8_lossy(answer.value.as_deref().unwrap_or_default());
        assert!(!answer.headers.has(header::ERROR), "{text}");
        if known.insert(answer.key.clone()) {
            let version = answer.headers.text(header::PIPELINE_VERSION).unwrap();
            counts[version.parse::<usize>().unwrap() - 1] += 1;
        }
    }
    counts
}

/// `first` runs both versions, ten requests are at a model in each, and the older one is to end.
async fn ending(
    world: &World,
    old: &PipelineUpdateMessage,
    new: &PipelineUpdateMessage,
    at: [&str; 2],
) {
    let asked = at.map(|model| world.reader(&world.names.model_inputs(model)));
    let [mut of_old, mut of_new] = asked;
    world.scheduler.carry_out("first", old.clone()).await;
    world.send("p", 0..10).await;
    of_old.until(10).await;
    world.scheduler.carry_out("first", with(new, old)).await;
    let end = world.delete("p", old.version, false);
    world.scheduler.tell("first", end).await;
    world.send("p", 10..20).await;
    of_new.until(if at[0] == at[1] { 20 } else { 10 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_killed_while_a_version_ends_is_replaced_in_both() {
    for more in [&[][..], &EXACT] {
        let world = World::new().await;
        let (old, new) = (
            world.chain("p", 1, &["one"]),
            world.chain("p", 2, &["one", "two"]),
        );
        let first = world.engine("first", more);
        ending(&world, &old, &new, ["one"; 2]).await;
        first.kill();
        // All the model's answers are there when the next engine begins to read them.
        world.models(&["one", "two"]).await;
        world
            .reader(&world.names.model_outputs("one"))
            .until(20)
            .await;
        let _second = world.engine("second", more);
        let end = take_up(&world, "second", &old, &new).await;
        let mut answers = world.reader(&world.names.pipeline_outputs("p"));
        answers.until(20).await;
        answers.some(QUIET).await;
        assert_eq!(by_version(&answers), [10, 10]);
        let (repeats, marked) = answers.repeats();
        assert_eq!(repeats, marked);
        // It ends all the same.
        assert!(world.scheduler.acked(end).await.success);
        world.send("p", 20..30).await;
        answers.until(30).await;
        assert_eq!(by_version(&answers), [10, 20]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_read_again_enters_the_version_that_it_had_entered() {
    // The request itself is held until its model has answered.
    let joining = |world: &World, version, model: &str| {
        let mut update = world.chain("p", version, &[model]);
        let inputs = update.updates[0].sources[0].clone();
        update.updates[1].sources.push(inputs);
        update
    };
    for more in [&[][..], &EXACT] {
        let world = World::new().await;
        let (old, new) = (joining(&world, 1, "old"), joining(&world, 2, "new"));
        let first = world.engine("first", more);
        ending(&world, &old, &new, ["old", "new"]).await;
        first.kill();
        world.models(&["old", "new"]).await;
        let _second = world.engine("second", more);
        take_up(&world, "second", &old, &new).await;
        let mut answers = world.reader(&world.names.pipeline_outputs("p"));
        answers.until(20).await;
        answers.some(QUIET).await;
        assert_eq!(by_version(&answers), [10, 10]);
        let (repeats, marked) = answers.repeats();
        assert_eq!(repeats, marked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_are_handed_over_at_once() {
    for more in [&[][..], &EXACT] {
        let world = World::new().await;
        let (old, new) = (world.chain("p", 1, &["old"]), world.chain("p", 2, &["new"]));
        let (_first, _second) = (world.engine("first", more), world.engine("second", more));
        ending(&world, &old, &new, ["old", "new"]).await;
        let start = Instant::now();
        let hand_over = |version| world.scheduler.tell("first", world.hand_over("p", version));
        for order in [hand_over(1).await, hand_over(2).await] {
            assert!(world.scheduler.acked(order).await.success);
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        // Answers come while nobody reads them: how far each topic was read was handed over too.
        world.models(&["old", "new"]).await;
        for model in ["old", "new"] {
            world
                .reader(&world.names.model_outputs(model))
                .until(10)
                .await;
        }
        world.send("p", 20..30).await;
        take_up(&world, "second", &old, &new).await;
        let mut answers = world.reader(&world.names.pipeline_outputs("p"));
        answers.until(30).await;
        answers.some(QUIET).await;
        assert_eq!(by_version(&answers), [10, 20]);
        assert_eq!((answers.seen.len(), answers.marked()), (30, 0));
        println!("two versions handed over in {took:?}");
    }
}

/// A pipeline of which one side of a join never comes is told to end; its callers are told within seconds.
async fn removed(
    world: &World,
    create: PipelineUpdateMessage,
    to: &str,
    read: &str,
    more: &[&str],
) {
    let _engine = world.engine("e", more);
    world.scheduler.carry_out("e", create).await;
    world.send(to, 0..5).await;
    world.reader(read).until(5).await;
    let start = Instant::now();
    let end = world.delete("p", 1, false);
    world.scheduler.carry_out("e", end).await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let mut answers = world.reader(&world.names.pipeline_outputs("p"));
    answers.until(5).await;
    answers.some(QUIET).await;
    assert_eq!(answers.seen.len(), 5);
    for answer in &answers.seen {
        let text = String::from_utf8_lossy(answer.value.as_deref().unwrap());
        assert_eq!(answer.headers.text(header::STATUS), Some("503"), "{text}");
        assert!(text.contains("is being removed"), "{text}");
    }
    println!("removed in {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_that_is_removed_does_not_wait_for_sides_that_may_never_come() {
    for more in [&[][..], &EXACT] {
        let world = World::new().await;
        world.models(&["one"]).await;
        // `three` is never answered, and a join waits for a minute.
        let mut create = world.chain("p", 1, &["one"]);
        let three = &world.chain("p", 1, &["three"]).updates[..2];
        create.updates[1].sources.extend(three[1].sources.clone());
        create.updates.push(three[0].clone());
        let read = world.names.model_outputs("one");
        removed(&world, create, "p", &read, more).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_pipelines_feed_tells_of_the_sides_that_have_come() {
    for more in [&[][..], &EXACT] {
        let world = World::new().await;
        // Of `q` and `r` only one has inputs.
        let mut create = world.chain("p", 1, &["one"]);
        let mut leads = world.chain("q", 1, &[]).updates.remove(0);
        let other = world.chain("r", 1, &[]).updates.remove(0);
        leads.sources.extend(other.sources);
        leads
            .sink
            .clone_from(&Some(create.updates[0].sources[0].clone()));
        create.updates.push(leads);
        let read = world.names.pipeline_inputs("q");
        removed(&world, create, "q", &read, more).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_in_flight_is_not_waited_for_after_a_take_over() {
    for more in [&[][..], &EXACT] {
        let world = World::new().await;
        world.models(&["one"]).await;
        let (old, new) = (world.chain("p", 1, &["one"]), world.chain("p", 2, &["one"]));
        let first = world.engine("first", more);
        world.scheduler.carry_out("first", old.clone()).await;
        let mut answers = world.reader(&world.names.pipeline_outputs("p"));
        world.send("p", 0..20).await;
        answers.until(20).await;
        first.kill();
        let _second = world.engine("second", more);
        let start = Instant::now();
        let end = take_up(&world, "second", &old, &new).await;
        assert!(world.scheduler.acked(end).await.success);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        println!("taken up and ended in {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_at_a_take_over_is_waited_for_and_no_longer() {
    for more in [&[][..], &EXACT] {
        let world = World::new().await;
        let (old, new) = (world.chain("p", 1, &["old"]), world.chain("p", 2, &["new"]));
        let first = world.engine("first", more);
        ending(&world, &old, &new, ["old", "new"]).await;
        first.kill();
        let _second = world.engine("second", more);
        let end = take_up(&world, "second", &old, &new).await;
        let mut answers = world.reader(&world.names.pipeline_outputs("p"));
        answers.some(2 * QUIET).await;
        assert!(answers.seen.is_empty() && !world.scheduler.has_succeeded(end));
        let start = Instant::now();
        world.models(&["old", "new"]).await;
        answers.until(20).await;
        assert_eq!(by_version(&answers), [10, 10]);
        assert!(world.scheduler.acked(end).await.success);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_ended_does_not_come_back_with_an_older_order() {
    let world = World::new().await;
    // No topic can have such a name: the order is tried again and again.
    let long = "x".repeat(250);
    let (old, new) = (
        world.chain("p", 1, &["old"]),
        world.chain("p", 2, &["new", &long]),
    );
    let _engine = world.engine("e", &[]);
    let create = world.scheduler.tell("e", with(&new, &old)).await;
    assert!(!world.scheduler.acked(create).await.success);
    let end = world.delete("p", 1, false);
    world.scheduler.carry_out("e", end).await;
    let topics = ["old", "new"].map(|model| world.names.model_inputs(model));
    let there = async |topic: &str| world.admin.partitions(topic).await.unwrap().is_some();
    world.admin.delete(&topics).await.unwrap();
    let deadline = Instant::now() + world::LIMIT;
    while there(&topics[0]).await {
        assert!(Instant::now() < deadline, "the topic is not deleted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The next try makes what it needs.
    while !there(&topics[1]).await {
        assert!(Instant::now() < deadline, "it is not tried again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!there(&topics[0]).await);
}
