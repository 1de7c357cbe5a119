//! Batches answer every caller.
#![allow(clippy::unwrap_used)]

mod world;

use seldon_records::header;
use world::{
    Model, Spec, Step, World,
    models::{FAILING, IDENTITY, LOSING, SIMPLE, SUMMARY, request, rows_request},
};

fn batching(size: Option<u32>, window_ms: Option<u32>) -> Spec {
    Spec::new(
        "p",
        vec![Step::new("one", &[]).batch(size, window_ms)],
        &["one"],
    )
}

fn world(spec: Spec, model: Model) -> World {
    World::new(&[spec], &[("one", model)])
}

#[test]
fn a_full_batch_is_one_call_with_an_answer_for_each() {
    let mut world = world(batching(Some(3), None), SIMPLE);
    for (key, number) in [("a", 1), ("b", 2), ("c", 3)] {
        let numbers: &[i32] = &[number, number * 10];
        world.call(
            "p",
            key,
            &request(&[("INPUT0", "INT32", numbers), ("INPUT1", "INT32", numbers)]),
        );
    }
    world.run();
    assert_eq!(world.calls["one"].len(), 1);
    assert_eq!(world.calls["one"][0].inputs[0].shape, [3, 2]);
    assert_eq!(world.answers_to("p", "a"), ["OUTPUT0=2,20 OUTPUT1=0,0"]);
    assert_eq!(world.answers_to("p", "b"), ["OUTPUT0=4,40 OUTPUT1=0,0"]);
    assert_eq!(world.answers_to("p", "c"), ["OUTPUT0=6,60 OUTPUT1=0,0"]);
    let answer = &world.answers("p")[1];
    assert_eq!(answer.headers.text(header::ID), Some("id2"));
    assert_eq!(answer.headers.text(header::REQUEST_ID), Some("b"));
    assert_eq!(answer.headers.text(header::ROUTE), Some(":one_1:"));
    assert!(!answer.headers.has(header::BATCH));
    world.drained();
}

#[test]
fn a_batch_that_does_not_fill_goes_with_its_window() {
    for (window, ms) in [(Some(50), 50), (None, 1_000)] {
        let mut world = world(batching(Some(20), window), IDENTITY);
        world.call("p", "a", &rows_request(&[("x", "INT32", &[1, 2])], 2));
        world.call("p", "b", &request(&[("x", "INT32", &[3])]));
        world.run();
        assert!(world.answers("p").is_empty());
        world.wait(ms);
        assert_eq!(world.answers_to("p", "a"), ["x=1,2"]);
        assert_eq!(world.answers_to("p", "b"), ["x=3"]);
        assert_eq!(world.calls["one"].len(), 1);
        world.drained();
    }
}

#[test]
fn what_does_not_fit_goes_alone() {
    let mut world = world(batching(Some(2), None), IDENTITY);
    world.call("p", "a", &request(&[("x", "INT32", &[1])]));
    world.call("p", "b", &request(&[("y", "FP32", &[2])]));
    world.call("p", "c", &request(&[("x", "INT32", &[3])]));
    world.run();
    assert_eq!(world.calls["one"].len(), 2);
    assert_eq!(world.answers_to("p", "a"), ["x=1"]);
    assert_eq!(world.answers_to("p", "b"), ["y=2"]);
    assert_eq!(world.answers_to("p", "c"), ["x=3"]);
    world.drained();
}

#[test]
fn an_error_of_a_batch_answers_every_member() {
    let mut world = world(batching(Some(2), None), FAILING);
    for key in ["a", "b"] {
        world.call("p", key, &request(&[("x", "INT32", &[1])]));
    }
    world.run();
    for (key, id) in [("a", "id1"), ("b", "id2")] {
        assert_eq!(world.answers_to("p", key), ["one 400: this is an outlier"]);
        let answers = world.answers("p");
        let answer = answers
            .iter()
            .find(|answer| answer.headers.text(header::REQUEST_ID) == Some(key))
            .unwrap();
        assert_eq!(answer.headers.text(header::ID), Some(id));
    }
    world.drained();
}

#[test]
fn what_is_said_of_all_rows_answers_every_member() {
    let mut world = world(batching(Some(2), None), SUMMARY);
    for key in ["a", "b"] {
        world.call("p", key, &request(&[("x", "INT32", &[1])]));
    }
    world.run();
    assert_eq!(world.calls["one"].len(), 1);
    for key in ["a", "b"] {
        assert_eq!(world.answers_to("p", key), ["x=7"]);
    }
    world.drained();
}

#[test]
fn a_model_that_loses_rows_is_named_to_every_member() {
    let mut world = world(batching(Some(2), None), LOSING);
    for key in ["a", "b"] {
        world.call("p", key, &request(&[("x", "INT32", &[1])]));
    }
    world.run();
    for key in ["a", "b"] {
        let answers = world.answers_to("p", key);
        assert!(
            answers.len() == 1 && answers[0].contains("step \"one\""),
            "{answers:?}"
        );
    }
    world.drained();
}

#[test]
fn a_batching_step_beside_the_output_and_joins_behind_one() {
    // The documented production pipeline: drift is watched in batches, beside the output.
    let steps = vec![
        Step::new("income", &[]),
        Step::new("preprocess", &[]),
        Step::new("outlier", &["preprocess"]).map("preprocess.outputs.x", "is_outlier"),
        Step::new("drift", &[]).batch(Some(2), None),
        Step::new("both", &["drift", "income"]),
    ];
    let spec = Spec::new(
        "income-production",
        steps,
        &["income", "outlier.outputs.is_outlier"],
    );
    let names = ["income", "preprocess", "outlier", "drift", "both"];
    let mut world = World::new(&[spec], &names.map(|name| (name, IDENTITY)));
    for (key, number) in [("a", 1), ("b", 2)] {
        world.call(
            "income-production",
            key,
            &request(&[("x", "INT32", &[number])]),
        );
    }
    world.run();
    assert_eq!(
        world.answers_to("income-production", "a"),
        ["x=1 is_outlier=1"]
    );
    assert_eq!(
        world.answers_to("income-production", "b"),
        ["x=2 is_outlier=2"]
    );
    assert_eq!(world.calls["drift"].len(), 1);
    assert_eq!(
        world.calls["both"].len(),
        2,
        "members join with the others of their runs"
    );
    world.drained();
}
