//! What is refused, and what engines are told.
use std::sync::Arc;

use seldon_core::{
    Order,
    Worker::{Engine, ModelGateway},
};
use seldon_proto::scheduler::{Batch, Pipeline, PipelineInput};

use crate::bench::{Bench, chain, pipeline, step};

#[test]
fn all_mistakes_are_told_at_once() {
    let mut bench = Bench::new();
    let mut wrong = pipeline(
        "p",
        vec![
            step("a", &["b.outputs", "x.outputs.T", "a.inputs"]),
            step("b", &["a.output", "p.outputs"]),
            step("b", &[]),
            step("p", &[".t"]),
        ],
    );
    wrong.steps[0].triggers = vec!["b".into(), "gone.outputs".into()];
    wrong.steps[0].tensor_map = [("c.outputs.T".to_owned(), "U".to_owned())].into();
    wrong.steps[1].tensor_map = [("p.inputs".to_owned(), "U".to_owned())].into();
    wrong.steps[1].batch = Some(Batch {
        size: Some(0),
        window_ms: Some(0),
    });
    wrong.steps[1].join_window_ms = Some(86_400_001);
    wrong.output.as_mut().unwrap().steps = vec!["nowhere".into(), "p".into()];
    wrong.input = Some(PipelineInput {
        external_triggers: vec!["p.outputs".into(), "q.step".into(), "q.else".into()],
        ..Default::default()
    });
    let text = bench.load(wrong).unwrap_err();
    for part in [
        "pipeline p is not valid",
        "step p has the name of the pipeline",
        "step b is there twice",
        "step a: input \"x.outputs.T\" names a step that is not there",
        "step a: input \"a.inputs\" is what the step itself is given",
        "step a has b.outputs as an input and as a trigger",
        "step a: trigger \"gone.outputs\" names a step that is not there",
        "step b: input \"a.output\" has \"output\" where inputs or outputs belongs",
        "step b: input \"p.outputs\" is the pipeline's own answer",
        "step b: the tensorMap key \"p.inputs\" names no tensor",
        "step b: batch.size must be",
        "step b: batch.windowMs must be",
        "step b: joinWindowMs must be at most 86400000",
        "step p: input \".t\" begins with a dot",
        "input has no externalInputs",
        "\"p.outputs\" in externalTriggers is of this pipeline itself",
        "\"q.step\" in externalTriggers names no step",
        "\"q.else\" in externalTriggers has \"else\" where inputs, outputs or step belongs",
        "output: \"nowhere\" names a step that is not there",
        "output: \"p\" is the pipeline itself",
    ] {
        assert!(text.contains(part), "{part}\nis missing in\n{text}");
    }
    let mut map = chain("q");
    map.steps[1].tensor_map = [("c.outputs.T".to_owned(), "U".to_owned())].into();
    assert_eq!(
        bench.load(map).unwrap_err(),
        "pipeline q is not valid: step b: the tensorMap key \"c.outputs.T\" names nothing that is read there: use a tensor of a.outputs"
    );
    assert!(
        bench
            .load(pipeline("Q_", vec![]))
            .unwrap_err()
            .contains("2 mistakes")
    );
    assert_eq!(bench.state.pipeline_names().count(), 0);
}

#[test]
fn cycles_need_leave_and_a_limit_and_never_cross_pipelines() {
    let mut bench = Bench::new();
    let mut looped = pipeline(
        "counter",
        vec![
            step("a", &["counter.inputs", "b.outputs"]),
            step("b", &["a.outputs.out"]),
        ],
    );
    looped.steps[1].triggers = vec!["a.outputs.go".into()];
    let text = bench.load(looped.clone()).unwrap_err();
    assert!(
        text.contains("-> ") && text.contains("set allowCycles"),
        "{text}"
    );
    looped.allow_cycles = true;
    assert!(
        bench
            .load(looped.clone())
            .unwrap_err()
            .contains("maxStepRevisits is 0")
    );
    looped.max_step_revisits = 100;
    bench.load(looped).unwrap();

    let fed = |name: &str, by: &str| Pipeline {
        input: Some(PipelineInput {
            external_inputs: vec![by.to_owned()],
            tensor_map: [(format!("{by}.outputs.T"), "U".to_owned())].into(),
            ..Default::default()
        }),
        ..pipeline(name, vec![step(&format!("{name}-step"), &[])])
    };
    bench.load(fed("one", "two")).unwrap(); // which is not there yet
    bench.load(fed("two", "three")).unwrap();
    let text = bench.load(fed("three", "one")).unwrap_err();
    assert!(text.contains("feed each other in a cycle"), "{text}");
    for name in ["one", "two", "three"] {
        assert!(text.contains(name), "{text}");
    }
    bench.load(fed("three", "counter")).unwrap();
}

#[test]
fn engines_are_told_topics_tensors_and_joins() {
    let mut bench = Bench::whole();
    let mut spec = pipeline(
        "p",
        vec![step("b", &["a.outputs.X", "p.inputs.Y"]), step("a", &[])],
    );
    spec.steps[0].triggers = vec!["a.outputs.ok".into()];
    spec.steps[0].tensor_map = [("a.outputs.X".to_owned(), "IN".to_owned())].into();
    spec.steps[0].batch = Some(Batch {
        size: Some(4),
        window_ms: Some(50),
    });
    spec.steps[0].inputs_join = 2;
    spec.input = Some(PipelineInput {
        external_inputs: vec!["q.step.s.outputs.T".into(), "r".into()],
        ..Default::default()
    });
    bench.load(spec).unwrap();
    while bench.work(ModelGateway, "mg-0", true, true) {}
    let engine = bench.workers.get(&(Engine, Arc::from("engine-0"))).unwrap();
    let Some(Order::Update(order)) = engine.inbox.front() else {
        panic!("no order");
    };
    let topics = |topics: &[seldon_proto::chainer::PipelineTopic]| -> Vec<String> {
        let shown = topics.iter().map(|topic| {
            let tensor = topic.tensor.as_deref().unwrap_or("*");
            format!("{}/{}/{tensor}", topic.pipeline_name, topic.topic_name)
        });
        shown.collect()
    };
    let shown: Vec<(Vec<String>, String)> = order
        .updates
        .iter()
        .map(|update| {
            (
                topics(&update.sources),
                update.sink.clone().unwrap().topic_name,
            )
        })
        .collect();
    let t = |name: &str| format!("seldon.default.{name}");
    assert_eq!(
        shown,
        [
            (
                vec![format!("p/{}/*", t("pipeline.p.inputs"))],
                t("model.a.inputs")
            ),
            (
                vec![
                    format!("p/{}/X", t("model.a.outputs")),
                    format!("p/{}/Y", t("pipeline.p.inputs")),
                ],
                t("model.b.inputs"),
            ),
            (
                vec![
                    format!("q/{}/T", t("model.s.outputs")),
                    format!("r/{}/*", t("pipeline.r.outputs")),
                ],
                t("pipeline.p.inputs"),
            ),
            (
                vec![format!("p/{}/*", t("model.a.outputs"))],
                t("pipeline.p.outputs")
            ),
            (
                vec![format!("p/{}/*", t("errors.errors"))],
                t("pipeline.p.outputs")
            ),
        ]
    );
    let second = &order.updates[1];
    assert_eq!(
        second.tensor_map[0].topic_and_tensor,
        t("model.a.outputs.X")
    );
    assert_eq!(
        topics(&second.triggers),
        [format!("p/{}/ok", t("model.a.outputs"))]
    );
    assert_eq!((second.input_join_ty, second.triggers_join_ty), (3, 1));
    assert_eq!(second.batch.unwrap().window_ms, Some(50));
    assert_eq!((order.version, &*order.stream), (1, "engine-0"));
    assert!(!order.uid.is_empty() && order.timestamp > 0);
}
