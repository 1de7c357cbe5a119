//! A system on trivially fast inference servers, for tests of change and of faults under load.
mod admin;
mod experiments;
mod fleet;
mod network;
mod pipelines;

pub use admin::{Envoy, answer_once, ask_once};
pub use experiments::{Split, experiment, percent_of};
pub use fleet::{Fleet, Statuses, model};
pub use network::Wire;
pub use pipelines::chain;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use seldon_load::driver::Report;

/// Checks that every request of a load was answered.
pub fn none_failed(report: &Report) -> Result<()> {
    ensure!(
        report.failed() == 0,
        "requests failed: {:?}",
        report.failures
    );
    Ok(())
}

/// A case that starts what it needs.
pub type Fault = (&'static str, fn() -> Result<()>);

/// Whether more rounds are asked for: by `cargo xtask test --long`, or by `SELDON_LONG=1`.
pub fn long() -> bool {
    ["SELDON_TEST_LONG", "SELDON_LONG"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| value == "1"))
}

/// Runs cases one after the other: each loads the machine, and two would measure each other.
pub fn run_faults(cases: &[Fault]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let trials = cases.iter().map(|&(name, case)| {
        Trial::test(name, move || {
            let begin = Instant::now();
            let result = case().map_err(|error| Failed::from(format!("{error:?}")));
            eprintln!("{name}: {:.1} s", begin.elapsed().as_secs_f32());
            result
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
