//! Every documented pipeline, by the name of its example.
#![allow(clippy::unwrap_used)]

mod world;

use seldon_proto::chainer::pipeline_step_update::PipelineJoinType::{Any, Inner, Outer};
use seldon_records::{Headers, header};
use world::{
    Spec, Step, World,
    models::{ADD10, CHECK, CONDITIONAL, COUNTER, FAILING, IDENTITY, MUL10, SIMPLE, request},
};

const ONES: (&str, &str, &[i32]) = ("INPUT0", "INT32", &[1, 2]);
const TWOS: (&str, &str, &[i32]) = ("INPUT1", "INT32", &[1, 2]);

fn simple(name: &str, model: &str) -> Spec {
    Spec::new(name, vec![Step::new(model, &[])], &[model])
}

fn chain() -> Spec {
    let second = Step::new("tfsimple2", &["tfsimple1"])
        .map("tfsimple1.outputs.OUTPUT0", "INPUT0")
        .map("tfsimple1.outputs.OUTPUT1", "INPUT1");
    Spec::new(
        "tfsimples",
        vec![Step::new("tfsimple1", &[]), second],
        &["tfsimple2"],
    )
}

#[test]
fn p1_chain() {
    let mut world = World::new(&[chain()], &[("tfsimple1", SIMPLE), ("tfsimple2", SIMPLE)]);
    world.call("tfsimples", "a", &request(&[ONES, TWOS]));
    world.run();
    assert_eq!(
        world.answers_to("tfsimples", "a"),
        ["OUTPUT0=2,4 OUTPUT1=2,4"]
    );
    let answer = &world.answers("tfsimples")[0];
    let routes: Vec<_> = answer
        .headers
        .iter()
        .filter(|(name, _)| *name == header::ROUTE)
        .collect();
    assert_eq!(routes.len(), 2, "{routes:?}");
    assert_eq!(answer.headers.text(header::PIPELINE_VERSION), Some("1"));
    assert_eq!(answer.headers.text(header::PIPELINE), Some("tfsimples"));
    assert_eq!(answer.headers.text(header::ID), Some("id1"));
    assert!(!answer.headers.has(header::REPEAT) && !answer.headers.has(header::VISITS));
    world.drained();
}

#[test]
fn p2_tensors_of_inputs_and_outputs() {
    let second = Step::new(
        "tfsimple2",
        &["tfsimple1.inputs.INPUT0", "tfsimple1.outputs.OUTPUT1"],
    )
    .map("tfsimple1.outputs.OUTPUT1", "INPUT1");
    let spec = Spec::new(
        "tfsimples-input",
        vec![Step::new("tfsimple1", &[]), second],
        &["tfsimple2"],
    );
    let mut world = World::new(&[spec], &[("tfsimple1", SIMPLE), ("tfsimple2", SIMPLE)]);
    world.call("tfsimples-input", "a", &request(&[ONES, TWOS]));
    world.run();
    assert_eq!(
        world.answers_to("tfsimples-input", "a"),
        ["OUTPUT0=1,2 OUTPUT1=1,2"]
    );
    world.drained();
}

fn join() -> Spec {
    let third = Step::new(
        "tfsimple3",
        &["tfsimple1.outputs.OUTPUT0", "tfsimple2.outputs.OUTPUT1"],
    )
    .map("tfsimple1.outputs.OUTPUT0", "INPUT0")
    .map("tfsimple2.outputs.OUTPUT1", "INPUT1");
    let steps = vec![
        Step::new("tfsimple1", &[]),
        Step::new("tfsimple2", &[]),
        third,
    ];
    Spec::new("join", steps, &["tfsimple3"])
}

#[test]
fn p3_join() {
    let models = [
        ("tfsimple1", SIMPLE),
        ("tfsimple2", SIMPLE),
        ("tfsimple3", SIMPLE),
    ];
    let mut world = World::new(&[join()], &models);
    // Two calls with one id are two calls.
    world.call("join", "a", &request(&[ONES, TWOS]));
    world.call("join", "a", &request(&[ONES, ("INPUT1", "INT32", &[3, 4])]));
    world.run();
    let answers = world.answers_to("join", "a");
    assert_eq!(
        answers,
        ["OUTPUT0=2,4 OUTPUT1=2,4", "OUTPUT0=2,4 OUTPUT1=6,8"]
    );
    world.drained();
}

fn conditional() -> Spec {
    let steps = vec![
        Step::new("conditional", &[]),
        Step::new("mul10", &["conditional.outputs.OUTPUT0"])
            .map("conditional.outputs.OUTPUT0", "INPUT"),
        Step::new("add10", &["conditional.outputs.OUTPUT1"])
            .map("conditional.outputs.OUTPUT1", "INPUT"),
    ];
    Spec::new("tfsimple-conditional", steps, &["mul10", "add10"]).output_join(Any)
}

#[test]
fn p4_conditional() {
    let models = [
        ("conditional", CONDITIONAL),
        ("mul10", MUL10),
        ("add10", ADD10),
    ];
    let mut world = World::new(&[conditional()], &models);
    for (key, choice) in [("zero", &[0]), ("one", &[1])] {
        let numbers: &[i32] = &[1, 2, 3, 4];
        world.call(
            "tfsimple-conditional",
            key,
            &request(&[
                ("CHOICE", "INT32", choice),
                ("INPUT0", "FP32", numbers),
                ("INPUT1", "FP32", numbers),
            ]),
        );
    }
    world.run();
    assert_eq!(
        world.answers_to("tfsimple-conditional", "zero"),
        ["OUTPUT=10,20,30,40"]
    );
    assert_eq!(
        world.answers_to("tfsimple-conditional", "one"),
        ["OUTPUT=11,12,13,14"]
    );
    assert_eq!(world.flows[0].waiting(), 0);
    world.drained();
}

#[test]
fn p5_pipeline_inputs() {
    let steps = vec![
        Step::new("mul10", &["pipeline-inputs.inputs.INPUT0"])
            .map("pipeline-inputs.inputs.INPUT0", "INPUT"),
        Step::new("add10", &["pipeline-inputs.inputs.INPUT1"])
            .map("pipeline-inputs.inputs.INPUT1", "INPUT"),
    ];
    let spec = Spec::new("pipeline-inputs", steps, &["mul10", "add10"]);
    let mut world = World::new(&[spec], &[("mul10", MUL10), ("add10", ADD10)]);
    let call = request(&[("INPUT0", "FP32", &[1, 2]), ("INPUT1", "FP32", &[1, 2])]);
    world.call("pipeline-inputs", "a", &call);
    world.run();
    assert_eq!(
        world.answers_to("pipeline-inputs", "a"),
        ["OUTPUT=10,20 OUTPUT=11,12"]
    );
    world.drained();
}

fn trigger_joins(join: seldon_proto::chainer::pipeline_step_update::PipelineJoinType) -> Spec {
    let steps = vec![
        Step::new("mul10", &["trigger-joins.inputs.INPUT"])
            .triggers(&["trigger-joins.inputs.ok1", "trigger-joins.inputs.ok2"])
            .triggers_join(join),
        Step::new("add10", &["trigger-joins.inputs.INPUT"]).triggers(&["trigger-joins.inputs.ok3"]),
    ];
    Spec::new("trigger-joins", steps, &["mul10", "add10"]).output_join(Any)
}

#[test]
fn p6_trigger_joins() {
    let models = [("mul10", MUL10), ("add10", ADD10)];
    let mut world = World::new(&[trigger_joins(Any)], &models);
    let input: (&str, &str, &[i32]) = ("INPUT", "FP32", &[1, 2]);
    world.call(
        "trigger-joins",
        "ok1",
        &request(&[("ok1", "FP32", &[1]), input]),
    );
    world.call(
        "trigger-joins",
        "ok3",
        &request(&[("ok3", "FP32", &[1]), input]),
    );
    world.run();
    assert_eq!(world.answers_to("trigger-joins", "ok1"), ["OUTPUT=10,20"]);
    assert_eq!(world.answers_to("trigger-joins", "ok3"), ["OUTPUT=11,12"]);
    assert_eq!(
        world.flows[0].waiting(),
        0,
        "what cannot come is not waited for"
    );
    world.drained();

    let mut world = World::new(&[trigger_joins(Inner)], &models);
    world.call(
        "trigger-joins",
        "one",
        &request(&[("ok1", "FP32", &[1]), input]),
    );
    world.call(
        "trigger-joins",
        "both",
        &request(&[("ok1", "FP32", &[1]), ("ok2", "FP32", &[1]), input]),
    );
    world.run();
    assert!(world.answers_to("trigger-joins", "one").is_empty());
    assert_eq!(world.answers_to("trigger-joins", "both"), ["OUTPUT=10,20"]);
    world.drained();
}

#[test]
fn p7_trigger_of_another_step() {
    let mut spec = join();
    spec.name = "joincheck".to_owned();
    let check = Step::new("check", &["tfsimple1.outputs.OUTPUT0"])
        .map("tfsimple1.outputs.OUTPUT0", "INPUT");
    spec.steps.push(check);
    spec.steps[2].triggers = vec!["check.outputs.OUTPUT".to_owned()];
    let models = [
        ("tfsimple1", SIMPLE),
        ("tfsimple2", SIMPLE),
        ("tfsimple3", SIMPLE),
        ("check", CHECK),
    ];
    let mut world = World::new(&[spec], &models);
    world.call("joincheck", "a", &request(&[ONES, TWOS]));
    world.call(
        "joincheck",
        "no",
        &request(&[("INPUT0", "INT32", &[-5, 1]), TWOS]),
    );
    world.run();
    assert_eq!(
        world.answers_to("joincheck", "a"),
        ["OUTPUT0=2,4 OUTPUT1=2,4"]
    );
    assert!(world.answers_to("joincheck", "no").is_empty());
    assert_eq!(
        world.calls["tfsimple3"][0].inputs.len(),
        2,
        "a trigger is no data"
    );
    assert_eq!(world.flows[0].waiting(), 0);
    world.drained();
}

#[test]
fn p8_error_from_a_step() {
    let mut world = World::new(
        &[simple("error", "outlier-error")],
        &[("outlier-error", FAILING)],
    );
    world.call("error", "a", &request(&[ONES]));
    world.run();
    assert_eq!(
        world.answers_to("error", "a"),
        ["outlier-error 400: this is an outlier"]
    );
    assert_eq!(
        world.answers("error")[0].headers.text(header::REQUEST_ID),
        Some("a")
    );
    world.drained();
}

#[test]
fn l17_triggers_of_two_choices() {
    let steps = vec![
        Step::new("is-one", &[]),
        Step::new("mul10", &["choice.inputs.INPUT"]).triggers(&["is-one.outputs.OUTPUT"]),
        Step::new("is-two", &[]),
        Step::new("add10", &["choice.inputs.INPUT"]).triggers(&["is-two.outputs.OUTPUT"]),
    ];
    let spec = Spec::new("choice", steps, &["mul10", "add10"]).output_join(Any);
    let none: world::Model = |_| Ok(Default::default());
    let models = [
        ("is-one", CHECK),
        ("is-two", none),
        ("mul10", MUL10),
        ("add10", ADD10),
    ];
    let mut world = World::new(&[spec], &models);
    world.call("choice", "a", &request(&[("INPUT", "FP32", &[5])]));
    world.run();
    assert_eq!(world.answers_to("choice", "a"), ["OUTPUT=50"]);
    assert_eq!(world.flows[0].waiting(), 0);
    world.drained();
}

fn extended(name: &str) -> Spec {
    let external = Step::new("", &["tfsimple.outputs"])
        .map("tfsimple.outputs.OUTPUT0", "INPUT0")
        .map("tfsimple.outputs.OUTPUT1", "INPUT1");
    simple(name, "tfsimple2").external(external)
}

const TWO: [(&str, world::Model); 2] = [("tfsimple1", SIMPLE), ("tfsimple2", SIMPLE)];

#[test]
fn pp1_fed_by_a_pipeline() {
    let mut world = World::new(
        &[
            simple("tfsimple", "tfsimple1"),
            extended("tfsimple-extended"),
        ],
        &TWO,
    );
    world.call("tfsimple", "test-id", &request(&[ONES, TWOS]));
    world.run();
    assert_eq!(
        world.answers_to("tfsimple", "test-id"),
        ["OUTPUT0=2,4 OUTPUT1=0,0"]
    );
    assert_eq!(
        world.answers_to("tfsimple-extended", "test-id"),
        ["OUTPUT0=2,4 OUTPUT1=2,4"]
    );
    let (first, second) = (
        &world.answers("tfsimple")[0],
        &world.answers("tfsimple-extended")[0],
    );
    assert_ne!(
        first.headers.text(header::ID),
        second.headers.text(header::ID)
    );
    world.drained();
}

#[test]
fn pp2_two_pipelines_joined() {
    let external = Step::new(
        "",
        &[
            "tfsimple-extended.outputs.OUTPUT0",
            "tfsimple-extended2.outputs.OUTPUT1",
        ],
    )
    .map("tfsimple-extended.outputs.OUTPUT0", "INPUT0")
    .map("tfsimple-extended2.outputs.OUTPUT1", "INPUT1");
    let combined = simple("tfsimple-combined", "tfsimple2").external(external);
    let specs = [
        simple("tfsimple", "tfsimple1"),
        extended("tfsimple-extended"),
        extended("tfsimple-extended2"),
        combined,
    ];
    let mut world = World::new(&specs, &TWO);
    for _ in 0..2 {
        world.call("tfsimple", "test-id2", &request(&[ONES, TWOS]));
        world.run();
    }
    assert_eq!(
        world.answers_to("tfsimple-combined", "test-id2"),
        ["OUTPUT0=4,8 OUTPUT1=0,0"; 2]
    );
    world.drained();
}

#[test]
fn pp3_external_trigger() {
    let external = Step::new("", &["tfsimple-extended.outputs"])
        .triggers(&["tfsimple-extended2.outputs"])
        .map("tfsimple-extended.outputs.OUTPUT0", "INPUT0")
        .map("tfsimple-extended.outputs.OUTPUT1", "INPUT1");
    let combined = simple("tfsimple-combined-trigger", "tfsimple2").external(external);
    let specs = [
        simple("tfsimple", "tfsimple1"),
        extended("tfsimple-extended"),
        extended("tfsimple-extended2"),
        combined,
    ];
    let mut world = World::new(&specs, &TWO);
    world.call("tfsimple", "test-id3", &request(&[ONES, TWOS]));
    world.run();
    assert_eq!(
        world.answers_to("tfsimple-combined-trigger", "test-id3"),
        ["OUTPUT0=4,8 OUTPUT1=0,0"]
    );
    world.drained();
}

#[test]
fn pp4_fed_by_a_step() {
    let external = Step::new("", &["tfsimple.step.tfsimple1.outputs"])
        .map("tfsimple.step.tfsimple1.outputs.OUTPUT0", "INPUT0")
        .map("tfsimple.step.tfsimple1.outputs.OUTPUT1", "INPUT1");
    let spec = simple("tfsimple-extended-step", "tfsimple2").external(external);
    let mut world = World::new(&[simple("tfsimple", "tfsimple1"), spec], &TWO);
    world.call("tfsimple", "a", &request(&[ONES, TWOS]));
    world.run();
    assert_eq!(
        world.answers_to("tfsimple-extended-step", "a"),
        ["OUTPUT0=2,4 OUTPUT1=2,4"]
    );
    world.drained();
}

#[test]
fn pp5_fed_by_steps_of_two() {
    let external = Step::new(
        "",
        &[
            "tfsimple-extended.step.tfsimple2.outputs.OUTPUT0",
            "tfsimple-extended2.step.tfsimple2.outputs.OUTPUT0",
        ],
    )
    .map("tfsimple-extended.step.tfsimple2.outputs.OUTPUT0", "INPUT0")
    .map(
        "tfsimple-extended2.step.tfsimple2.outputs.OUTPUT0",
        "INPUT1",
    );
    let combined = simple("tfsimple-combined-step", "tfsimple2").external(external);
    let specs = [
        simple("tfsimple", "tfsimple1"),
        extended("tfsimple-extended"),
        extended("tfsimple-extended2"),
        combined,
    ];
    let mut world = World::new(&specs, &TWO);
    world.call("tfsimple", "a", &request(&[ONES, TWOS]));
    world.run();
    // All read one topic; records are told apart by their pipeline.
    assert_eq!(
        world.answers_to("tfsimple-combined-step", "a"),
        ["OUTPUT0=4,8 OUTPUT1=0,0"]
    );
    world.drained();
}

fn counter(max: u32) -> Spec {
    let steps = vec![
        Step::new(
            "counter",
            &["counter-pipeline.inputs", "identity-loop.outputs"],
        )
        .join(Any),
        Step::new("identity-output", &["counter.outputs"])
            .triggers(&["counter.outputs.stop"])
            .window(1),
        Step::new("identity-loop", &["counter.outputs.output"])
            .triggers(&["counter.outputs.continue"])
            .window(1),
    ];
    Spec::new("counter-pipeline", steps, &["identity-output.outputs"]).cycles(max)
}

const COUNTING: [(&str, world::Model); 3] = [
    ("counter", COUNTER),
    ("identity-loop", IDENTITY),
    ("identity-output", IDENTITY),
];

#[test]
fn l18_cyclic_counter() {
    let mut world = World::new(&[counter(100)], &COUNTING);
    world.call(
        "counter-pipeline",
        "a",
        &request(&[("counter-pipeline.inputs", "INT32", &[0])]),
    );
    world.call(
        "counter-pipeline",
        "b",
        &request(&[("counter-pipeline.inputs", "INT32", &[5])]),
    );
    world.run();
    assert_eq!(
        world.answers_to("counter-pipeline", "a"),
        ["output=10 stop="]
    );
    assert_eq!(
        world.answers_to("counter-pipeline", "b"),
        ["output=10 stop="]
    );
    assert_eq!(world.calls["counter"].len(), 15);
    assert_eq!(world.flows[0].waiting(), 0);
    world.drained();
}

#[test]
fn a_cycle_ends_at_its_limit() {
    let mut world = World::new(&[counter(3)], &COUNTING);
    world.call(
        "counter-pipeline",
        "a",
        &request(&[("counter-pipeline.inputs", "INT32", &[0])]),
    );
    world.run();
    let answers = world.answers_to("counter-pipeline", "a");
    assert_eq!(answers.len(), 1);
    assert!(
        answers[0].contains("maxStepRevisits") && answers[0].contains("(3)"),
        "{answers:?}"
    );
    assert_eq!(
        world.calls["counter"].len(),
        4,
        "the first visit and three again"
    );
    world.drained();
}

#[test]
fn rounds_of_a_cycle_are_not_mixed() {
    // In each round two branches of the counter and the pipeline's input meet.
    let steps = vec![
        Step::new("counter", &["loop.inputs.start", "join.outputs.output"]).join(Any),
        Step::new("left", &["counter.outputs.output"]).map("counter.outputs.output", "output"),
        Step::new("right", &["counter.outputs.output"]).map("counter.outputs.output", "right"),
        Step::new("join", &["left", "right", "loop.inputs.context"])
            .triggers(&["counter.outputs.continue"]),
    ];
    let spec = Spec::new(
        "loop",
        steps,
        &["counter.outputs.stop", "counter.outputs.output"],
    )
    .cycles(20);
    let models = [
        ("counter", COUNTER),
        ("left", IDENTITY),
        ("right", IDENTITY),
        ("join", IDENTITY),
    ];
    for seed in 0..20_usize {
        let mut world = World::new(std::slice::from_ref(&spec), &models);
        for key in ["a", "b"] {
            world.call(
                "loop",
                key,
                &request(&[("start", "INT32", &[0]), ("context", "INT32", &[42])]),
            );
        }
        let mut state = seed;
        world.run_in_order(|_| {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12345 + seed) & 0x7fff_ffff;
            state >> 8
        });
        let joins = &world.calls["join"];
        assert_eq!(joins.len(), 18, "nine rounds of both");
        for join in joins {
            assert_eq!(
                world::models::values(join, "output"),
                world::models::values(join, "right")
            );
            assert_eq!(world::models::values(join, "context"), [42]);
        }
        world.drained();
    }
}

#[test]
fn outer_joins_close_with_their_window() {
    let steps = vec![
        Step::new("one", &[]),
        Step::new("silent", &[]),
        Step::new("last", &["one", "silent"])
            .join(Outer)
            .window(500),
    ];
    let spec = Spec::new("outer", steps, &["last"]);
    // `silent` has no model here: it never answers.
    let mut world = World::new(&[spec], &[("one", IDENTITY), ("last", IDENTITY)]);
    world.call("outer", "a", &request(&[ONES]));
    world.run();
    assert!(world.answers("outer").is_empty());
    assert_eq!(world.flows[0].next_deadline(), Some(world.now_ms + 500));
    world.wait(500);
    assert_eq!(world.answers_to("outer", "a"), ["INPUT0=1,2"]);
    // What comes too late is not an answer of its own.
    let late = world.records(&world.names.model_inputs("silent")).remove(0);
    world.models.insert("silent".to_owned(), IDENTITY);
    world
        .open
        .entry(late.topic.clone())
        .or_default()
        .push_back(late);
    world.run();
    world.wait(500);
    assert_eq!(world.answers("outer").len(), 1);
    world.drained();
}

#[test]
fn any_join_takes_each_side_alone() {
    let steps = vec![
        Step::new("one", &[]),
        Step::new("two", &[]),
        Step::new("last", &["one", "two"]).join(Any),
    ];
    let spec = Spec::new("any", steps, &["last"]);
    let mut world = World::new(
        &[spec],
        &[("one", IDENTITY), ("two", IDENTITY), ("last", IDENTITY)],
    );
    world.call("any", "a", &request(&[ONES]));
    world.run();
    assert_eq!(world.answers_to("any", "a"), ["INPUT0=1,2", "INPUT0=1,2"]);
    let answers = world.answers("any");
    assert_ne!(
        answers[0].headers.text(header::VISITS),
        answers[1].headers.text(header::VISITS)
    );
    world.drained();
}

#[test]
fn what_cannot_be_read_is_answered() {
    let mut world = World::new(&[simple("p", "one")], &[("one", IDENTITY)]);
    let topic = world.names.pipeline_inputs("p");
    world.write(&topic, "a", Headers::new(), b"\xff\xffnonsense".to_vec());
    world.run();
    let answers = world.answers_to("p", "a");
    assert_eq!(answers.len(), 1);
    assert!(
        answers[0].starts_with("p 400: a record of topic"),
        "{answers:?}"
    );
    assert_eq!(world.flows[0].counts().errors, 1);
    world.drained();
}

#[test]
fn foreign_producers_need_no_headers() {
    let mut world = World::new(&[simple("p", "one")], &[("one", IDENTITY)]);
    let topic = world.names.pipeline_inputs("p");
    let json = br#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT32","data":[7]}]}"#;
    let headers = [
        (header::INFER_TYPE, "json/inferModelRequest"),
        ("x-seldon-alibi-type", "t"),
        ("x-mine", "1"),
    ];
    world.write(&topic, "a", headers.into_iter().collect(), json.to_vec());
    world.run();
    assert_eq!(world.answers_to("p", "a"), ["x=7"]);
    let answer = &world.answers("p")[0];
    assert_eq!(answer.headers.text("x-mine"), Some("1"));
    assert!(!answer.headers.has("x-seldon-alibi-type") && !answer.headers.has(header::INFER_TYPE));
    world.drained();
}
