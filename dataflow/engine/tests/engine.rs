//! The engine as a process, on the embedded broker, with the test as its scheduler and its models.
#![allow(clippy::unwrap_used)]
mod world;

use std::time::{Duration, Instant};

use seldon_broker::{Broker, Config};
use seldon_records::header;
use world::{QUIET, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_loses_nothing_and_marks_repeats() {
    let world = World::new().await;
    world.models(&["one", "two"]).await;
    let create = world.chain("p", 1, &["one", "two"]);
    let mut engine = world.engine("e", &[]);
    world.scheduler.carry_out("e", create.clone()).await;
    let mut answers = world.reader(&world.names.pipeline_outputs("p"));
    for round in 0..3 {
        let load = world.send("p", round * 1_000..(round + 1) * 1_000);
        let crash = async {
            answers.until(round * 1_000 + 200).await;
            engine.kill();
            let engine = world.engine("e", &[]);
            world.scheduler.carry_out("e", create.clone()).await;
            answers.until((round + 1) * 1_000).await;
            engine
        };
        ((), engine) = tokio::join!(load, crash);
    }
    answers.some(QUIET).await;
    let (repeats, marked) = answers.repeats();
    assert_eq!(repeats, marked, "a repeat is not marked");
    let of_version = answers
        .seen
        .iter()
        .all(|r| r.headers.text(header::PIPELINE_VERSION) == Some("1"));
    assert!(of_version && answers.seen.iter().all(|r| !r.headers.has(header::ERROR)));
    println!("{repeats} repeats of 3000 after three kills");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_repeats_nothing() {
    let world = World::new().await;
    world.models(&["one", "two"]).await;
    let create = world.chain("p", 1, &["one", "two"]);
    let mut answers = world.reader(&world.names.pipeline_outputs("p"));
    for round in 0..3 {
        let name = format!("e{round}");
        let engine = world.engine(&name, &[]);
        world.scheduler.carry_out(&name, create.clone()).await;
        let load = world.send("p", round * 100..round * 100 + 100);
        let stop = async {
            answers.until(round * 100 + 30).await;
            engine.stop().await;
            assert!(world.scheduler.has_left(&name));
        };
        tokio::join!(load, stop);
    }
    let _engine = world.engine("last", &[]);
    // Sent again, as after a reconnection: what runs goes on.
    for _ in 0..2 {
        world.scheduler.carry_out("last", create.clone()).await;
    }
    answers.until(300).await;
    answers.some(QUIET).await;
    assert_eq!(answers.seen.len(), 300);
    assert_eq!(answers.marked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_replaced_under_load_and_its_pipeline_deleted() {
    let world = World::new().await;
    world.models(&["one", "two"]).await;
    let _engine = world.engine("e", &[]);
    world
        .scheduler
        .carry_out("e", world.chain("p", 1, &["one"]))
        .await;
    let mut answers = world.reader(&world.names.pipeline_outputs("p"));
    let load = world.send("p", 0..1_000);
    let update = async {
        let scheduler = &world.scheduler;
        scheduler
            .carry_out("e", world.chain("p", 2, &["one", "two"]))
            .await;
        scheduler.carry_out("e", world.delete("p", 1, false)).await;
    };
    tokio::join!(load, update);
    world.send("p", 1_000..1_010).await;
    answers.until(1_010).await;
    answers.some(QUIET).await;
    assert_eq!(answers.seen.len(), 1_010);
    assert!(answers.seen.iter().all(|r| !r.headers.has(header::ERROR)));
    let last = answers.seen.last().unwrap();
    assert_eq!(last.headers.text(header::PIPELINE_VERSION), Some("2"));

    world
        .scheduler
        .carry_out("e", world.delete("p", 2, true))
        .await;
    let topics = world.admin.topics().await.unwrap();
    let left = topics.iter().filter(|topic| topic.contains("pipeline.p."));
    // The order names the topics of the first step of a chain without models: inputs and outputs.
    assert_eq!(left.collect::<Vec<_>>(), Vec::<&String>::new());

    // A pipeline of the same name begins at the beginning of its topics.
    world
        .scheduler
        .carry_out("e", world.chain("p", 1, &["one"]))
        .await;
    world.send("p", 0..5).await;
    let mut again = world.reader(&world.names.pipeline_outputs("p"));
    again.until(5).await;
    again.some(QUIET).await;
    assert_eq!(again.seen.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_once_through_crashes() {
    let world = World::new().await;
    world.models(&["one", "two"]).await;
    let create = world.chain("p", 1, &["one", "two"]);
    let exact = ["--processing-guarantee", "exactly-once"];
    let mut answers = world.reader(&world.names.pipeline_outputs("p"));
    let mut inputs = world.reader(&world.names.model_inputs("two"));
    for round in 0..3 {
        let name = format!("e{round}");
        let engine = world.engine(&name, &exact);
        world.scheduler.carry_out(&name, create.clone()).await;
        let load = world.send("p", round * 100..round * 100 + 100);
        let crash = async {
            answers.until(round * 100 + 20).await;
            engine.kill();
        };
        tokio::join!(load, crash);
    }
    let _engine = world.engine("last", &exact);
    world.scheduler.carry_out("last", create.clone()).await;
    answers.until(300).await;
    answers.some(QUIET).await;
    inputs.some(QUIET).await;
    assert_eq!(answers.seen.len(), 300, "a result came twice");
    assert_eq!(inputs.seen.len(), 300, "a request to a model came twice");
    assert_eq!(answers.marked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_share_models_and_move_between_engines() {
    let world = World::new().await;
    world.models(&["one", "two"]).await;
    let (p, q) = (
        world.chain("p", 1, &["one"]),
        world.chain("q", 1, &["two", "one"]),
    );
    let _first = world.engine("first", &[]);
    let _second = world.engine("second", &[]);
    world.scheduler.carry_out("first", p.clone()).await;
    world.scheduler.carry_out("first", q.clone()).await;
    let mut of_p = world.reader(&world.names.pipeline_outputs("p"));
    let mut of_q = world.reader(&world.names.pipeline_outputs("q"));
    tokio::join!(world.send("p", 0..50), world.send("q", 0..50));
    of_p.until(50).await;
    of_q.until(50).await;
    // Another engine is told to run it while the first still does.
    world.scheduler.carry_out("second", q.clone()).await;
    world
        .scheduler
        .carry_out("first", world.delete("q", 1, false))
        .await;
    tokio::join!(world.send("p", 50..100), world.send("q", 50..100));
    of_p.until(100).await;
    of_q.until(100).await;
    of_p.some(QUIET).await;
    of_q.some(QUIET).await;
    assert_eq!(of_p.seen.len(), 100);
    let (repeats, marked) = of_q.repeats();
    assert_eq!(repeats, marked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_for_a_while() {
    away(&[]).await;
    away(&["--processing-guarantee", "exactly-once"]).await;
}

async fn away(more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::with(Config {
        data_dir: Some(folder.path().to_owned()),
        ..Config::default()
    })
    .await;
    world.models(&["one"]).await;
    let _engine = world.engine("e", more);
    world
        .scheduler
        .carry_out("e", world.chain("p", 1, &["one"]))
        .await;
    let mut answers = world.reader(&world.names.pipeline_outputs("p"));
    world.send("p", 0..50).await;
    world.broker.take().unwrap().stop().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.broker = Some(Broker::start(world.config.clone()).await.unwrap());
    world.send("p", 50..100).await;
    answers.until(100).await;
    answers.some(QUIET).await;
    let (repeats, marked) = answers.repeats();
    assert_eq!(repeats, marked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_pipelines_cost_little() {
    let world = World::new().await;
    world.models(&["one", "two", "three"]).await;
    let engine = world.engine("e", &[]);
    let chain = |number: usize| world.chain(&format!("p{number}"), 1, &["one", "two", "three"]);
    world.scheduler.carry_out("e", chain(0)).await;
    world.send("p0", 0..10).await;
    let mut answers = world.reader(&world.names.pipeline_outputs("p0"));
    answers.until(10).await;
    let before = usage(engine.pid());
    let start = Instant::now();
    let mut orders = Vec::new();
    for number in 1..200 {
        orders.push(world.scheduler.tell("e", chain(number)).await);
    }
    for order in orders {
        assert!(world.scheduler.acked(order).await.success);
    }
    let all = start.elapsed();
    let start = Instant::now();
    world.scheduler.carry_out("e", chain(200)).await;
    let one = start.elapsed();
    world.send("p0", 10..20).await;
    world.send("p200", 0..10).await;
    answers.until(20).await;
    let mut other = world.reader(&world.names.pipeline_outputs("p200"));
    other.until(10).await;
    let after = usage(engine.pid());
    let each = after.0.saturating_sub(before.0) / 200;
    println!(
        "199 pipelines in {all:?}, one more in {one:?}; {each} KB each; threads {} -> {}, sockets {} -> {}",
        before.1, after.1, before.2, after.2
    );
    assert!(one < Duration::from_secs(1), "adding one took {one:?}");
    assert!(each <= 200, "{each} KB a pipeline");
    assert!(after.2 <= before.2 + 1, "sockets grow");
}

/// Kilobytes, threads, sockets.
fn usage(pid: u32) -> (usize, usize, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| -> usize {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let sockets = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let is_socket = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket"))
    };
    let sockets = sockets.flatten().filter(is_socket).count();
    (field("VmRSS"), field("Threads"), sockets)
}
