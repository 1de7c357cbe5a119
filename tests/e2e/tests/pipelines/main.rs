//! Pipelines from a user's side: MLServer, Triton, the embedded broker, gateways and engine, two of each for all cases.

mod documented;
mod limits;

use std::process::ExitCode;

use seldon_e2e::{Running, run_apart};
use seldon_local::System;

fn main() -> ExitCode {
    let start = || Running::start(System::builder().triton(1).pipelines());
    run_apart(start, &[documented::CASES, limits::CASES].concat())
}
