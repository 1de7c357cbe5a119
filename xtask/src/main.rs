//! `cargo xtask`: everything one does with this repository.

mod bench;
mod demo;
mod lint;
mod tests;
mod wasm;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use seldon_components::{Cache, EnvoyVersion};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, demo and tests of this repository"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Serve a model through Envoy: build, fetch, start, load, ask, stop
    Demo(demo::Demo),
    /// Run all tests, with real Envoys and a real MLServer
    Test(tests::Test),
    /// Measure whole paths against their targets, in optimised programs
    Bench(bench::Bench),
    /// Check formatting, lints and documentation
    Lint(lint::Lint),
    /// Build the Envoy filter
    Wasm {
        /// The one that panics at every hundredth request, for tests
        #[arg(long)]
        panicking: bool,
    },
    /// Build everything that a local system needs
    Build,
    /// Fetch the components that are not ours and print where they are
    Fetch,
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::Demo(demo) => demo.run(),
        Task::Test(test) => test.run(),
        Task::Bench(bench) => bench.run(),
        Task::Lint(lint) => lint.run(),
        Task::Wasm { panicking } => {
            let build = if panicking {
                wasm::build_panicking
            } else {
                wasm::build
            };
            build(&workspace::root()?).map(|module| println!("{}", module.display()))
        }
        Task::Build => workspace::build().map(|module| println!("{}", module.display())),
        Task::Fetch => fetch(),
    }
}

fn fetch() -> Result<()> {
    let cache = Cache::open()?;
    println!("{}", cache.envoy(EnvoyVersion::default())?.display());
    println!("{}", cache.rclone()?.display());
    println!("{}", cache.mlserver()?.display());
    println!("{}", cache.triton()?.display());
    Ok(())
}
