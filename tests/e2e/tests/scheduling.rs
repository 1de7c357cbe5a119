//! Scheduling under load: the scheduler is killed again and again, replicas in turn, one model is asked for more than it
//! can answer, replicas drain, models are scaled.
#[path = "scheduling/at_once.rs"]
mod at_once;
#[path = "scheduling/autoscaling.rs"]
mod autoscaling;
#[path = "scheduling/overload.rs"]
mod overload;
#[path = "scheduling/resting.rs"]
mod resting;
#[path = "faults/scene.rs"]
#[allow(dead_code)] // the other program with this file uses all of it
mod scene;
#[path = "scheduling/turns.rs"]
mod turns;

use std::process::ExitCode;

use seldon_e2e::faults::{Fault, run_faults};

const CASES: &[Fault] = &[
    ("scheduler_killed_every_few_seconds", turns::scheduler),
    ("agents_and_servers_killed_in_turn", turns::replicas),
    ("all_agents_and_everything_killed", at_once::killed),
    ("a_model_follows_its_load", autoscaling::followed),
    ("models_rest_until_they_are_asked_for", resting::rested),
    (
        "an_overloaded_model_is_its_own_problem",
        overload::overloaded,
    ),
];

fn main() -> ExitCode {
    run_faults(CASES)
}
