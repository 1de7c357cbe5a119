//! Experiments inside Envoy: the documented walk-throughs on MLServer, and the promises on a fleet of two Envoys with
//! stand-in inference servers, under load.
//!
//! Cases share one system of each kind, which starts with the first case that needs it; only those that need another
//! module, or that let parts of the system fall, start their own.

mod cohorts;
mod documented;
mod explained;
mod falls;
mod forged;
mod mirrors;
mod readiness;
mod refused;
mod rollouts;
mod scene;
mod splits;
mod turbulence;

use std::process::ExitCode;
use std::time::Instant;

use libtest_mimic::{Arguments, Failed, Trial};
use scene::{Case, Stages};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One at a time on the fleet, beside one on MLServer: the latter hardly loads the machine.
    arguments.test_threads.get_or_insert(2);
    let stages: &'static Stages = Box::leak(Box::default());
    let cases: Vec<Case> = [
        documented::CASES,
        splits::CASES,
        cohorts::CASES,
        refused::CASES,
        explained::CASES,
        mirrors::CASES,
        rollouts::CASES,
        forged::CASES,
        readiness::CASES,
        turbulence::CASES,
        falls::CASES,
    ]
    .concat();
    let trials = cases.into_iter().map(|(name, case)| {
        Trial::test(name, move || {
            let begin = Instant::now();
            let result = case(stages).map_err(|error| Failed::from(chain(&error)));
            eprintln!("{name}: {:.1} s", begin.elapsed().as_secs_f32());
            result
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    stages.stop(conclusion.has_failed());
    conclusion.exit_code()
}

/// The error and its causes, without the backtrace that `{:?}` would print.
fn chain(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.join("\n  because: ")
}
