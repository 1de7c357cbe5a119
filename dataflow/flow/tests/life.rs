//! Versions, repeats and limits.
#![allow(clippy::unwrap_used)]

mod world;

use std::sync::Arc;

use prost::Message as _;
use seldon_flow::{Emit, Flow, Input, Limits};
use seldon_proto::chainer::pipeline_step_update::PipelineJoinType;
use seldon_records::{Headers, Record, header};
use world::{
    Spec, Step, World,
    models::{ADD10, IDENTITY, MUL10, request},
    names, update,
};

fn single(model: &str) -> Spec {
    Spec::new("p", vec![Step::new(model, &[])], &[model])
}

fn numbers() -> seldon_proto::inference::ModelInferRequest {
    request(&[("INPUT", "FP32", &[1])])
}

#[test]
fn what_is_in_flight_ends_in_its_version() {
    let mut world = World::new(&[single("add10")], &[("mul10", MUL10)]);
    world.call("p", "old", &numbers());
    world.run();
    world.flows[0].put(&update(&single("mul10"), 2)).unwrap();
    world.flows[0].retire(1);
    assert!(!world.flows[0].idle(1), "its request is at the model");
    world.call("p", "new", &numbers());
    world.run();
    assert_eq!(world.answers_to("p", "new"), ["OUTPUT=10"]);
    assert_eq!(
        world.answers("p")[0].headers.text(header::PIPELINE_VERSION),
        Some("2")
    );
    // Now the old version's model answers.
    let waiting = world.records(&names().model_inputs("add10")).remove(0);
    assert_eq!(waiting.headers.text(header::PIPELINE_VERSION), Some("1"));
    world.models.insert("add10".to_owned(), ADD10);
    world
        .open
        .entry(waiting.topic.clone())
        .or_default()
        .push_back(waiting);
    world.run();
    assert_eq!(world.answers_to("p", "old"), ["OUTPUT=11"]);
    assert!(world.flows[0].idle(1) && !world.flows[0].idle(2));
    world.drained();
}

#[test]
fn a_request_nobody_waits_for_does_not_keep_its_version() {
    let mut world = World::new(&[single("add10")], &[]);
    world.call("p", "old", &numbers());
    world.run();
    world.flows[0].put(&update(&single("mul10"), 2)).unwrap();
    world.flows[0].retire(1);
    let due = world.flows[0].next_deadline().unwrap();
    world.wait(due - world.now_ms);
    assert!(world.flows[0].idle(1));
}

#[test]
fn a_removed_version_is_said_to_the_caller() {
    let mut world = World::new(&[single("add10")], &[("add10", ADD10), ("mul10", MUL10)]);
    let headers = [
        (header::PIPELINE, "p"),
        (header::PIPELINE_VERSION, "7"),
        (header::ID, "x"),
    ];
    let topic = names().model_outputs("add10");
    world.write(&topic, "a", headers.into_iter().collect(), Vec::new());
    world.run();
    let answers = world.answers_to("p", "a");
    assert!(
        answers.len() == 1 && answers[0].starts_with("p 503: pipeline \"p\" version 7 was removed"),
        "{answers:?}"
    );
    assert_eq!(world.flows[0].counts().gone, 1);
    world.drained();
}

#[test]
fn a_producer_has_no_say_in_the_version() {
    let models = [("add10", ADD10), ("mul10", MUL10)];
    let mut world = World::new(&[single("add10")], &models);
    world.flows[0].put(&update(&single("mul10"), 2)).unwrap();
    world.flows[0].retire(1);
    for (key, version) in [("retired", "1"), ("unknown", "9")] {
        let headers = [
            (header::PIPELINE, "p"),
            (header::PIPELINE_VERSION, version),
            (header::ID, key),
        ];
        let (topic, value) = (names().pipeline_inputs("p"), numbers().encode_to_vec());
        world.write(&topic, key, headers.into_iter().collect(), value);
        world.run();
        assert_eq!(world.answers_to("p", key), ["OUTPUT=10"]);
        assert!(world.flows[0].idle(1), "it is kept from its end");
    }
    world.drained();
}

/// What is written comes back.
fn read(flow: &mut Flow, emit: Emit) -> Vec<Emit> {
    let record = emit.record;
    let record = Record {
        topic: record.topic,
        partition: 0,
        offset: 0,
        key: record.key,
        value: record.value,
        headers: record.headers,
        timestamp_ms: 0,
    };
    feed(flow, &[record], false)
}

/// An answer of another pipeline.
fn output_of_q(id: &'static str) -> Record {
    let headers = [(header::PIPELINE, "q"), (header::ID, id)];
    Record {
        topic: names().pipeline_outputs("q").into(),
        partition: 0,
        offset: 0,
        key: None,
        value: Some(numbers().encode_to_vec().into()),
        headers: headers.into_iter().collect(),
        timestamp_ms: 0,
    }
}

#[test]
fn what_a_step_led_in_ends_in_its_version_or_hears_that_it_is_gone() {
    let leading = |model: &str| single(model).external(Step::new("", &["q.outputs"]));
    let mut flow = Flow::new("p", names(), Limits::default());
    flow.put(&update(&leading("add10"), 1)).unwrap();
    let led_in =
        |flow: &mut Flow, id: &'static str| feed(flow, &[output_of_q(id)], false).remove(0);
    let (first, second) = (led_in(&mut flow, "1"), led_in(&mut flow, "2"));
    assert_eq!(*first.record.topic, *names().pipeline_inputs("p"));
    flow.put(&update(&leading("mul10"), 2)).unwrap();
    flow.retire(1);
    let asked = read(&mut flow, first);
    assert_eq!(*asked[0].record.topic, *names().model_inputs("add10"));
    let third = led_in(&mut flow, "3");
    let asked = read(&mut flow, third);
    assert_eq!(*asked[0].record.topic, *names().model_inputs("mul10"));
    // The first version is forgotten.
    let mut flow = Flow::new("p", names(), Limits::default());
    flow.put(&update(&leading("mul10"), 2)).unwrap();
    let told = read(&mut flow, second);
    assert_eq!(*told[0].record.topic, *names().errors());
    let text = String::from_utf8_lossy(told[0].record.value.as_deref().unwrap());
    assert!(
        text.starts_with("pipeline \"p\" version 1 was removed"),
        "{text}"
    );
    assert_eq!(told[0].record.headers.text(header::STATUS), Some("503"));
}

#[test]
fn what_enters_again_enters_the_version_that_is_said() {
    let mut flow = Flow::new("p", names(), Limits::default());
    flow.put(&update(&single("add10"), 1)).unwrap();
    flow.put(&update(&single("mul10"), 2)).unwrap();
    flow.inherit(None, 15_000);
    flow.retire(1);
    let mut entered = |offset, version| {
        let record = Record {
            topic: names().pipeline_inputs("p").into(),
            partition: 0,
            offset,
            key: None,
            value: Some(numbers().encode_to_vec().into()),
            headers: Headers::new(),
            timestamp_ms: 0,
        };
        let replayed = true;
        let input = Arc::new(Input { record, replayed });
        let emits = flow.handle_entering(input, version, None, 0);
        emits[0].record.topic.to_string()
    };
    let [add10, mul10] = ["add10", "mul10"].map(|model| names().model_inputs(model));
    assert_eq!(entered(0, Some(1)), add10);
    assert_eq!(entered(1, Some(2)), mul10);
    assert_eq!(entered(2, None), mul10);
    // One that is gone.
    assert_eq!(entered(3, Some(9)), mul10);
}

#[test]
fn what_waits_in_a_removed_pipeline_is_given_up_and_said() {
    let mut world = World::new(&[joining()], &[("one", IDENTITY)]);
    world.call("p", "a", &numbers());
    world.run();
    let flow = &mut world.flows[0];
    flow.retire(1);
    assert_eq!((flow.waiting(), flow.idle(1)), (1, false));
    assert!(flow.hasten(1, 0).is_empty());
    let mut told = flow.end_waiting(1, 0);
    assert_eq!((told.len(), flow.waiting()), (1, 0));
    assert!(flow.end_waiting(1, 0).is_empty());
    let mut answers = read(flow, told.remove(0));
    let answer = answers.remove(0).record;
    assert_eq!(*answer.topic, *names().pipeline_outputs("p"));
    let text = String::from_utf8_lossy(answer.value.as_deref().unwrap());
    assert!(
        text.contains("step \"last\"") && text.ends_with("is being removed"),
        "{text}"
    );
    assert!(flow.idle(1) && flow.next_deadline().is_none());
}

#[test]
fn a_batch_of_a_removed_pipeline_is_sent_as_it_is() {
    let step = Step::new("one", &[]).batch(Some(5), Some(60_000));
    let spec = Spec::new("p", vec![step], &["one"]);
    let mut world = World::new(&[spec], &[("one", IDENTITY)]);
    world.call("p", "a", &numbers());
    world.run();
    let flow = &mut world.flows[0];
    flow.retire(1);
    let sent = flow.hasten(1, 0);
    assert_eq!(*sent[0].record.topic, *names().model_inputs("one"));
    assert_eq!((sent.len(), flow.waiting(), flow.idle(1)), (1, 0, false));
}

#[test]
fn a_removed_version_is_not_entered() {
    let mut flow = Flow::new("p", names(), Limits::default());
    let leading = |model: &str| single(model).external(Step::new("", &["q.outputs"]));
    for (version, model) in [(1, "add10"), (2, "mul10")] {
        flow.put(&update(&leading(model), version)).unwrap();
    }
    let entered = |flow: &mut Flow, offset, named: &'static str, bound| {
        let headers = [
            (header::PIPELINE, "p"),
            (header::PIPELINE_VERSION, named),
            (header::ID, named),
        ];
        let record = Record {
            topic: names().pipeline_inputs("p").into(),
            partition: 0,
            offset,
            key: None,
            value: Some(numbers().encode_to_vec().into()),
            headers: headers.into_iter().collect(),
            timestamp_ms: 0,
        };
        let replayed = false;
        let input = Arc::new(Input { record, replayed });
        let emits = flow.handle_entering(input, bound, None, 0);
        emits[0].record.topic.to_string()
    };
    let [add10, mul10] = ["add10", "mul10"].map(|model| names().model_inputs(model));
    assert_eq!(entered(&mut flow, 0, "1", None), add10);
    flow.retire(1);
    // Nobody led it in: who wrote it has no say.
    assert_eq!(entered(&mut flow, 1, "01", None), mul10);
    assert_eq!(entered(&mut flow, 2, "", Some(1)), add10);
    flow.remove(1);
    assert_eq!(entered(&mut flow, 3, "3", Some(1)), *names().errors());
    assert_eq!(entered(&mut flow, 4, "001", Some(1)), *names().errors());
    assert_eq!(entered(&mut flow, 5, "none", Some(1)), mul10);
    flow.put(&update(&leading("add10"), 1)).unwrap();
    assert_eq!(entered(&mut flow, 6, "0001", None), add10);
}

/// A request of `p` whose model `one` has answered and `two` has not, as the pipeline is removed.
fn half_of(spec: Spec) -> World {
    let mut world = World::new(&[spec], &[("one", IDENTITY)]);
    world.call("p", "a", &numbers());
    world.run();
    world.flows[0].retire(1);
    world
}

#[test]
fn an_outer_join_of_a_removed_pipeline_goes_on_with_what_it_has() {
    let mut spec = joining();
    spec.steps[2].join = PipelineJoinType::Outer;
    let mut world = half_of(spec);
    let (flow, now) = (&mut world.flows[0], world.now_ms);
    let sent = flow.hasten(1, now);
    assert_eq!(*sent[0].record.topic, *names().model_inputs("last"));
    assert_eq!((sent.len(), flow.waiting(), flow.idle(1)), (1, 0, false));
    assert!(flow.hasten(1, now).is_empty() && flow.end_waiting(1, now).is_empty());
}

#[test]
fn what_waits_beside_the_output_of_a_removed_pipeline_ends_silently() {
    let mut spec = joining();
    spec.output.as_mut().unwrap().inputs = vec!["one".to_owned()];
    let mut world = half_of(spec);
    assert_eq!(world.answers_to("p", "a").len(), 1);
    let (flow, now) = (&mut world.flows[0], world.now_ms);
    assert_eq!(flow.waiting(), 1);
    assert!(flow.hasten(1, now).is_empty() && flow.end_waiting(1, now).is_empty());
    assert_eq!((flow.waiting(), flow.counts().half_joins), (0, 1));
    world.drained();
    assert_eq!(world.answers_to("p", "a").len(), 1);
}

#[test]
fn a_version_is_not_idle_before_its_last_failure_was_told() {
    let spec = single("one").external(Step::new("", &["q.outputs", "r.outputs"]));
    let mut flow = Flow::new("p", names(), Limits::default());
    flow.put(&update(&spec, 1)).unwrap();
    assert!(feed(&mut flow, &[output_of_q("x")], false).is_empty());
    flow.retire(1);
    assert!(flow.hasten(1, 0).is_empty());
    let mut told = flow.end_waiting(1, 0);
    assert_eq!((told.len(), flow.waiting(), flow.idle(1)), (1, 0, false));
    let answers = read(&mut flow, told.remove(0));
    assert_eq!(*answers[0].record.topic, *names().pipeline_outputs("p"));
    assert!(flow.idle(1));
}

#[test]
fn bad_orders_say_why() {
    let mut flow = Flow::new("p", names(), Limits::default());
    let cycle = Spec::new(
        "p",
        vec![Step::new("a", &["b"]), Step::new("b", &["a"])],
        &["b"],
    );
    let error = flow.put(&update(&cycle, 3)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pipeline \"p\" version 3: its steps form a cycle: set allowCycles or remove one of the inputs"
    );
    assert!(
        flow.put(&update(&Spec::new("q", Vec::new(), &[]), 1))
            .is_err()
    );
    assert!(flow.idle(3));
}

fn joining() -> Spec {
    Spec::new(
        "p",
        vec![
            Step::new("one", &[]),
            Step::new("two", &[]),
            Step::new("last", &["one", "two"]),
        ],
        &["last"],
    )
}

/// All records that the pipeline read, in the order they were written.
fn history() -> Vec<Record> {
    let models = ["one", "two", "last"].map(|name| (name, IDENTITY));
    let mut world = World::new(&[joining()], &models);
    for key in ["a", "b", "c"] {
        world.call("p", key, &numbers());
    }
    world.run();
    let topics = world.flows[0].topics();
    world
        .log
        .into_iter()
        .filter(|record| topics.contains(&record.topic))
        .collect()
}

fn feed(flow: &mut Flow, records: &[Record], replayed: bool) -> Vec<Emit> {
    let inputs = records
        .iter()
        .cloned()
        .map(|record| Arc::new(Input { record, replayed }));
    inputs.flat_map(|input| flow.handle(input, 0)).collect()
}

#[test]
fn what_is_read_again_is_dropped_or_marked() {
    let history = history();
    for replayed in 0..=history.len() {
        let mut flow = Flow::new("p", names(), Limits::default());
        flow.put(&update(&joining(), 1)).unwrap();
        let (again, fresh) = history.split_at(replayed);
        let marked = feed(&mut flow, again, true);
        assert!(
            marked
                .iter()
                .all(|emit| emit.record.headers.has(header::REPEAT))
        );
        let rest = feed(&mut flow, fresh, false);
        for emit in &rest {
            let is_marked = emit.record.headers.has(header::REPEAT);
            assert_eq!(is_marked, emit.causes.iter().any(|cause| cause.replayed));
        }
        assert_eq!(
            marked.len() + rest.len(),
            12,
            "three steps and the output, three times"
        );
        assert!(feed(&mut flow, &history, true).is_empty());
        assert_eq!(flow.counts().repeats, history.len() as u64);
    }
}

#[test]
fn only_the_side_that_is_ahead_waits() {
    let limits = Limits {
        records: 4,
        ..Limits::default()
    };
    let mut flow = Flow::new("p", names(), limits);
    flow.put(&update(&joining(), 1)).unwrap();
    let one: Vec<Record> = history()
        .into_iter()
        .filter(|record| record.topic.ends_with("one.outputs"))
        .collect();
    let mut many = Vec::new();
    for run in 0..12 {
        for record in &one {
            let mut record = record.clone();
            let id = format!("{run}-{}", record.offset);
            record.headers.set(header::ID, id);
            many.push(record);
        }
    }
    feed(&mut flow, &many[..3], false);
    assert!(flow.paused().is_empty());
    feed(&mut flow, &many[3..4], false);
    let paused: Vec<_> = flow.paused().into_iter().collect();
    assert_eq!(paused, [(Arc::from(names().model_outputs("one")), 0)]);
    // The other side comes: there is room again.
    let mut other = many[..3].to_vec();
    other
        .iter_mut()
        .for_each(|record| record.topic = names().model_outputs("two").into());
    assert_eq!(feed(&mut flow, &other, false).len(), 3);
    assert!(flow.paused().is_empty());
    // Whoever goes on all the same is told.
    let emits = feed(&mut flow, &many[4..], false);
    assert!(!emits.is_empty());
    assert!(
        emits
            .iter()
            .all(|emit| *emit.record.topic == *names().errors())
    );
    assert!(flow.waiting() <= 8);
    flow.tick(1_000_000);
    assert!(flow.paused().is_empty() && flow.is_empty());
}
