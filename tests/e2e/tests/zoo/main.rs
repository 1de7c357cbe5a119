//! The documented model zoo, and what the inference servers make of artefacts: a real Triton, and an MLServer with the
//! runtimes of scikit-learn, XGBoost, LightGBM and MLflow. Two systems, for cases that use the same names.

mod documented;
mod mlserver;
mod triton;

use std::process::ExitCode;

use seldon_e2e::{Running, run_apart};
use seldon_local::System;

fn main() -> ExitCode {
    let start = || Running::start(System::builder().triton(1).runtimes());
    let cases = [documented::CASES, mlserver::CASES, triton::CASES];
    run_apart(start, &cases.concat())
}
