//! `cargo xtask bench`: optimised programs, then the benchmarks of whole paths.

use std::process::Command;

use anyhow::Result;

use crate::wasm;
use crate::workspace::{self, cargo};

#[derive(clap::Args)]
pub struct Bench {
    /// What the benchmark program takes: --help tells
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// What takes part; all in one build, so that they share their dependencies.
const PROGRAMS: [&str; 9] = [
    "seldon-agent",
    "seldon-bench",
    "seldon-broker",
    "seldon-cli",
    "seldon-dataflow-engine",
    "seldon-load",
    "seldon-modelgateway",
    "seldon-pipelinegateway",
    "seldon-scheduler",
];

impl Bench {
    pub fn run(&self) -> Result<()> {
        let root = workspace::root()?;
        wasm::build(&root)?;
        let mut build = vec!["build", "--release", "--bins"];
        build.extend(PROGRAMS.iter().flat_map(|program| ["--package", program]));
        workspace::run(&mut cargo(&build)?)?;
        let mut bench = Command::new(root.join("target/release/seldon-bench"));
        workspace::run(bench.args(&self.arguments))
    }
}
