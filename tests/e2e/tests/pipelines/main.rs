//! Pipelines from a user's side: MLServer, Triton, the embedded broker, gateways and engine, one start for all cases.

mod documented;
mod limits;

use std::process::ExitCode;

use seldon_e2e::{Running, run};
use seldon_local::System;

fn main() -> ExitCode {
    let start = || Running::start(System::builder().triton(1).pipelines());
    run(start, &[documented::CASES, limits::CASES].concat())
}
