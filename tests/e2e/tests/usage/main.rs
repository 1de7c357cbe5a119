//! Usage metrics: the documented fields at a receiver of ours, by level, and what happens without one.

mod away;
mod levels;
mod process;

use std::process::ExitCode;

use seldon_e2e::faults::run_faults;

fn main() -> ExitCode {
    run_faults(&[levels::CASES, away::CASES].concat())
}
