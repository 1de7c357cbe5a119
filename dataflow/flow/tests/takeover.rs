//! One process goes on where another ended.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use prost::Message;
use seldon_flow::{Emit, Flow, InFlight, Input, Limits};
use seldon_proto::chainer::pipeline_step_update::PipelineJoinType;
use seldon_records::{Headers, Record, header};
use world::{
    Spec, Step, World,
    models::{IDENTITY, request, rows_request},
    names, update,
};

fn numbers() -> seldon_proto::inference::ModelInferRequest {
    request(&[("x", "INT32", &[1])])
}

fn flow(spec: &Spec) -> Flow {
    let mut flow = Flow::new(&spec.name, names(), Limits::default());
    flow.put(&update(spec, 1)).unwrap();
    flow
}

/// Every record is needed twice: at once, and later.
fn all_waits() -> Spec {
    let steps = vec![
        Step::new("one", &[]),
        Step::new("two", &["p.inputs", "one"]),
        Step::new("three", &["one"]).batch(Some(3), None),
        Step::new("four", &["three", "p.inputs"]).batch(Some(2), None),
        // Its first side goes on alone, and is held for the trigger's sake until the second has come.
        Step::new("five", &["one", "two"])
            .join(PipelineJoinType::Any)
            .triggers(&["p.inputs"]),
    ];
    Spec::new("p", steps, &["two", "four"])
}

/// All that a pipeline reads, in the order it was written.
fn history(spec: &Spec, calls: usize) -> Vec<Record> {
    let models: Vec<_> = spec
        .steps
        .iter()
        .map(|s| (s.name.as_str(), IDENTITY))
        .collect();
    let mut world = World::new(std::slice::from_ref(spec), &models);
    for call in 0..calls {
        world.call("p", &format!("k{call}"), &numbers());
    }
    world.run();
    let topics = world.flows[0].topics();
    let is_read = |record: &Record| topics.contains(&record.topic);
    world.log.into_iter().filter(is_read).collect()
}

/// What was written, and how often.
fn written(emits: &[Emit]) -> BTreeMap<(String, String), usize> {
    let mut all = BTreeMap::new();
    for emit in emits {
        let id = emit.record.headers.text(header::ID).unwrap().to_owned();
        *all.entry((emit.record.topic.to_string(), id)).or_default() += 1;
    }
    all
}

#[test]
fn what_is_held_goes_on_once_wherever_the_process_changes() {
    let spec = all_waits();
    // Of the batches of three and of two none is left open at the end.
    let history = history(&spec, 6);
    let input = |record: &Record| {
        Arc::new(Input {
            record: record.clone(),
            replayed: false,
        })
    };
    let mut whole = flow(&spec);
    let at_once: Vec<Emit> = history
        .iter()
        .flat_map(|r| whole.handle(input(r), 0))
        .collect();
    assert!(
        at_once
            .iter()
            .any(|emit| emit.record.headers.has(header::BATCH))
    );
    let expected = written(&at_once);
    let mut partly = 0;
    for split in 0..=history.len() {
        let mut first = flow(&spec);
        let mut emits = Vec::new();
        let mut taken: Vec<(Record, Weak<Input>)> = Vec::new();
        for record in &history[..split] {
            let input = input(record);
            taken.push((record.clone(), Arc::downgrade(&input)));
            // Causes end with the transaction.
            let results = first.handle(input, 0).into_iter();
            emits.extend(results.map(|emit| Emit {
                causes: Vec::new(),
                ..emit
            }));
        }
        let waits = first.waits();
        partly += waits.len();
        let mut second = flow(&spec);
        for (record, held) in &taken {
            if held.strong_count() == 0 {
                continue;
            }
            let at = (record.topic.clone(), record.partition, record.offset);
            emits.extend(match waits.get(&at) {
                Some(places) => second.handle_entering(input(record), None, Some(places), 0),
                None => second.handle(input(record), 0),
            });
        }
        emits.extend(
            history[split..]
                .iter()
                .flat_map(|r| second.handle(input(r), 0)),
        );
        assert_eq!(written(&emits), expected, "split at {split}");
    }
    assert!(
        partly > 0,
        "no record was done in one place and held in another"
    );
}

#[test]
fn what_its_producer_sends_again_is_another_request() {
    let steps = vec![
        Step::new("one", &[]),
        Step::new("two", &[]),
        Step::new("last", &["one", "two"]),
    ];
    let spec = Spec::new("p", steps, &["last"]);
    let mut world = World::new(
        &[spec],
        &["one", "two", "last"].map(|name| (name, IDENTITY)),
    );
    let write = |world: &mut World, number: i32, repeat: bool| {
        let mut headers: Headers = [(header::ID, "same")].into_iter().collect();
        if repeat {
            headers.set(header::REPEAT, "1");
        }
        let value = rows_request(&[("x", "INT32", &[number])], 1).encode_to_vec();
        world.write(&names().pipeline_inputs("p"), "k", headers, value);
    };
    write(&mut world, 1, false);
    // In flight together: sides of different requests never meet.
    write(&mut world, 2, false);
    let mut at = 0;
    world.run_in_order(|open| {
        at += 1;
        at * 7 % open
    });
    write(&mut world, 3, false);
    // What an engine wrote again is no request.
    write(&mut world, 1, true);
    world.run();
    let mut answers = world.answers_to("p", "k");
    answers.sort_unstable();
    assert_eq!(answers, ["x=1 x=1", "x=2 x=2", "x=3 x=3"]);
    let ids = world.answers("p");
    assert!(
        ids.iter()
            .all(|answer| answer.headers.text(header::ID) == Some("same"))
    );
    assert_eq!(world.flows[0].counts().repeats, 1);
    world.drained();
}

#[test]
fn a_version_is_not_idle_while_what_a_former_owner_began_may_come() {
    let spec = Spec::new(
        "p",
        vec![Step::new("one", &[]), Step::new("two", &["one"])],
        &["two"],
    );
    let history = history(&spec, 1);
    let of_model = history
        .iter()
        .filter(|record| record.topic.ends_with(".outputs"));
    let [one, two] = of_model.collect::<Vec<_>>()[..] else {
        panic!("two models answer");
    };
    let handle = |flow: &mut Flow, record: &Record, now_ms| {
        let input = Input {
            record: record.clone(),
            replayed: false,
        };
        flow.handle(Arc::new(input), now_ms)
    };
    let heir = || {
        let mut heir = flow(&spec);
        heir.inherit(None, 15_000);
        heir.put(&update(&spec, 2)).unwrap();
        heir.retire(1);
        heir
    };
    let mut quiet = heir();
    assert!(!quiet.idle(1));
    assert_eq!(quiet.next_deadline(), Some(15_000));
    quiet.tick(15_000);
    assert!(quiet.idle(1));

    let mut busy = heir();
    assert_eq!(handle(&mut busy, one, 14_000).len(), 1);
    busy.tick(60_000);
    assert!(!busy.idle(1), "its request is at the second model");
    assert_eq!(handle(&mut busy, two, 61_000).len(), 1);
    assert!(busy.idle(1));
}

#[test]
fn an_heir_that_was_told_knows_when_all_has_ended() {
    let steps = vec![Step::new("one", &[]), Step::new("two", &["one"])];
    let spec = Spec::new("p", steps, &["two"]);
    let history = history(&spec, 1);
    let of = |end: &str| history.iter().find(|record| record.topic.ends_with(end));
    let [begun, one, two] = ["p.inputs", "one.outputs", "two.outputs"].map(|end| of(end).unwrap());
    let handle = |flow: &mut Flow, record: &Record, now_ms| {
        let input = Input {
            record: record.clone(),
            replayed: false,
        };
        flow.handle(Arc::new(input), now_ms)
    };
    let mut owner = flow(&spec);
    assert_eq!(owner.in_flight(), []);
    handle(&mut owner, begun, 0);
    let told = owner.in_flight();
    assert_eq!((told.len(), told[0].requests.len()), (1, 1));
    let heir = |told: &[InFlight]| {
        let mut heir = flow(&spec);
        heir.inherit(Some(told), 15_000);
        heir.put(&update(&spec, 2)).unwrap();
        heir.retire(1);
        heir
    };
    // Its model takes its time.
    let mut second = heir(&told);
    second.tick(119_999);
    assert!(!second.idle(1));
    // The next heir hears the same.
    assert_eq!(second.in_flight(), told);
    let mut third = heir(&second.in_flight());
    assert_eq!(handle(&mut third, one, 60_000).len(), 1);
    assert!(!third.idle(1), "its request is at the second model");
    handle(&mut third, two, 61_000);
    assert!(third.idle(1) && third.next_deadline().is_none());
    assert_eq!(third.in_flight(), []);
    // Nobody waits any more.
    second.tick(120_000);
    assert!(second.idle(1));
    // Nothing was in flight.
    assert!(heir(&[]).idle(1));
    // Too many to be named: it waits for all of them.
    for number in 0..300 {
        let mut more = begun.clone();
        more.offset += number + 1;
        more.headers.set(header::ID, format!("more{number}"));
        handle(&mut owner, &more, 1_000);
    }
    let told = owner.in_flight();
    assert_eq!((told[0].requests.len(), told[0].until_ms), (0, 121_000));
    let mut last = heir(&told);
    last.tick(120_999);
    assert!(!last.idle(1));
    last.tick(121_000);
    assert!(last.idle(1));
}

#[test]
fn what_is_remembered_is_bounded_and_can_be_forgotten() {
    let spec = Spec::new("p", vec![Step::new("one", &[])], &["one"]);
    let history = history(&spec, 20);
    let mut flow = flow(&spec);
    let feed = |flow: &mut Flow| -> usize {
        let inputs = history.iter().cloned().map(|record| {
            let replayed = true;
            Arc::new(Input { record, replayed })
        });
        inputs.map(|input| flow.handle(input, 0).len()).sum()
    };
    assert_eq!(feed(&mut flow), 40);
    assert_eq!((flow.remembered(), feed(&mut flow)), (40, 0));
    flow.remember_at_most(10);
    assert_eq!(flow.remembered(), 10);
    flow.forget_handled();
    assert_eq!((flow.remembered(), feed(&mut flow)), (0, 40));
}
