//! Any graph, any order.
#![allow(clippy::unwrap_used)]

mod world;

use proptest::prelude::*;
use seldon_proto::chainer::pipeline_step_update::PipelineJoinType::{self, Any, Inner, Outer};
use world::{
    Spec, Step, World,
    models::{IDENTITY, request},
};

#[derive(Clone, Debug)]
struct Plan {
    /// For each step which of those before it (0: the pipeline's inputs) are inputs and triggers, and how they join.
    steps: Vec<(Vec<bool>, Vec<bool>, u8, u8)>,
    outputs: Vec<bool>,
    order: Vec<usize>,
}

fn plans() -> impl Strategy<Value = Plan> {
    let step = (
        prop::collection::vec(any::<bool>(), 6),
        prop::collection::vec(any::<bool>(), 6),
        0..3_u8,
        0..3_u8,
    );
    let steps = prop::collection::vec(step, 1..6);
    let order = prop::collection::vec(any::<usize>(), 16);
    (steps, prop::collection::vec(any::<bool>(), 6), order).prop_map(|(steps, outputs, order)| {
        Plan {
            steps,
            outputs,
            order,
        }
    })
}

fn join(number: u8) -> PipelineJoinType {
    [Inner, Outer, Any][usize::from(number)]
}

fn spec(plan: &Plan, joins: bool) -> Spec {
    let name = |number: usize| {
        if number == 0 {
            "p.inputs".to_owned()
        } else {
            format!("s{number}.outputs")
        }
    };
    let mut steps = Vec::new();
    for (index, (inputs, triggers, inputs_join, triggers_join)) in plan.steps.iter().enumerate() {
        let chosen = |list: &[bool]| -> Vec<String> {
            (0..=index).filter(|at| list[*at]).map(name).collect()
        };
        let mut step = Step::new(&format!("s{}", index + 1), &[]);
        step.inputs = chosen(inputs);
        step.triggers = chosen(triggers);
        step.triggers
            .retain(|trigger| !step.inputs.contains(trigger));
        if joins {
            step = step
                .join(join(*inputs_join))
                .triggers_join(join(*triggers_join))
                .window(700);
        }
        steps.push(step);
    }
    let mut outputs: Vec<String> = (1..=plan.steps.len())
        .filter(|step| plan.outputs[*step - 1])
        .map(name)
        .collect();
    if outputs.is_empty() {
        outputs.push(name(plan.steps.len()));
    }
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    Spec::new("p", steps, &outputs)
}

fn play(spec: &Spec, order: &[usize]) -> World {
    let names: Vec<String> = spec.steps.iter().map(|step| step.name.clone()).collect();
    let models: Vec<_> = names.iter().map(|name| (name.as_str(), IDENTITY)).collect();
    let mut world = World::new(std::slice::from_ref(spec), &models);
    for key in ["a", "a", "b"] {
        world.call("p", key, &request(&[("x", "INT32", &[1])]));
    }
    let mut at = 0;
    world.run_in_order(|_| {
        at += 1;
        order[at % order.len()] >> (at / order.len() % 48)
    });
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn complete_joins_emit_once_in_any_order(plan in plans()) {
        let spec = spec(&plan, false);
        let mut world = play(&spec, &plan.order);
        prop_assert_eq!(world.answers_to("p", "a").len(), 2);
        prop_assert_eq!(world.answers_to("p", "b").len(), 1);
        let counts = world.flows[0].counts();
        prop_assert_eq!((counts.half_joins, counts.errors, counts.repeats), (0, 0, 0));
        prop_assert_eq!(world.flows[0].waiting(), 0);
        world.drained();
    }

    #[test]
    fn nothing_is_left_and_the_same_happens_again(plan in plans()) {
        let spec = spec(&plan, true);
        let mut world = play(&spec, &plan.order);
        let mut again = play(&spec, &plan.order);
        world.drained();
        again.drained();
        prop_assert_eq!(&world.log, &again.log);
        prop_assert_eq!(world.flows[0].counts().errors, 0);
    }
}
