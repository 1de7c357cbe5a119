//! The running system from a user's side: two Envoys, two replicas of MLServer, one start for all cases.

mod bad_input;
mod examples;
mod forged;
mod metrics;
mod openai;
mod protocol;
mod status;
mod tensors;

use std::process::ExitCode;

use seldon_e2e::{Running, run};
use seldon_local::System;

fn main() -> ExitCode {
    let start = || {
        let builder = System::builder().servers(2).envoys(2);
        Running::start(builder.arg("agent", "--download-retry-seconds=1"))
    };
    let cases = [
        examples::CASES,
        protocol::CASES,
        forged::CASES,
        tensors::CASES,
        bad_input::CASES,
        metrics::CASES,
        openai::CASES,
        status::CASES,
    ];
    run(start, &cases.concat())
}
