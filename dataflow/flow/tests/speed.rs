//! What a small record costs; run by name: `cargo test --release -p seldon-flow --test speed -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

mod world;

use std::{sync::Arc, time::Instant};

use seldon_flow::{Flow, Input, Limits};
use seldon_records::{Record, header};
use world::{
    Spec, Step, World,
    models::{IDENTITY, request},
    names, update,
};

#[test]
#[ignore = "a measurement"]
fn a_record() {
    let steps = vec![
        Step::new("one", &[]),
        Step::new("two", &[]),
        Step::new("last", &["one", "two"]),
    ];
    let spec = Spec::new("p", steps, &["last"]);
    let mut world = World::new(
        std::slice::from_ref(&spec),
        &["one", "two", "last"].map(|name| (name, IDENTITY)),
    );
    let numbers: Vec<i32> = (0..16).collect();
    world.call(
        "p",
        "a",
        &request(&[("INPUT0", "INT32", &numbers), ("INPUT1", "INT32", &numbers)]),
    );
    world.run();
    let topics = world.flows[0].topics();
    let history: Vec<Record> = world
        .log
        .iter()
        .filter(|record| topics.contains(&record.topic))
        .cloned()
        .collect();
    let mut flow = Flow::new("p", names(), Limits::default());
    flow.put(&update(&spec, 1)).unwrap();
    let runs = 50_000;
    let inputs: Vec<Arc<Input>> = (0..runs)
        .flat_map(|run| {
            history.iter().map(move |record| {
                let mut record = record.clone();
                record.headers.set(header::ID, format!("run{run}"));
                Arc::new(Input {
                    record,
                    replayed: false,
                })
            })
        })
        .collect();
    let count = inputs.len();
    let start = Instant::now();
    let emits: usize = inputs
        .into_iter()
        .map(|input| flow.handle(input, 0).len())
        .sum();
    let spent = start.elapsed();
    println!(
        "{count} records, {emits} emits: {:.2} µs a record",
        spent.as_secs_f64() * 1e6 / count as f64
    );
}
