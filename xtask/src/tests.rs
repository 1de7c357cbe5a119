//! `cargo xtask test`: every block of tests, and what each took of its share of the time.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use seldon_components::{Cache, EnvoyVersion};

use crate::workspace::{cargo, line};
use crate::{lint, wasm, workspace};

#[derive(clap::Args)]
pub struct Test {
    /// More rounds, and the oldest supported Envoy as well
    #[arg(long)]
    long: bool,
    /// Only these blocks (all of them): set-up, lint, unit, system, experiments, pipelines, scheduling
    #[arg(value_enum)]
    blocks: Vec<Block>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Block {
    /// Fetch components, build programs, filter and tests
    SetUp,
    /// Formatting, clippy and documentation
    Lint,
    /// Each crate's own tests
    Unit,
    /// The running system on real parts
    System,
    /// Experiments inside Envoy
    Experiments,
    /// Pipelines over Kafka
    Pipelines,
    /// Agents with real inference servers, many models, and what falls while they move
    Scheduling,
}

const ALL: [Block; 7] = [
    Block::SetUp,
    Block::Lint,
    Block::Unit,
    Block::System,
    Block::Experiments,
    Block::Pipelines,
    Block::Scheduling,
];

/// What several blocks may take together, on two cores with nothing cached.
struct Share {
    blocks: &'static [Block],
    minutes: u64,
    of: &'static str,
}

const SHARES: [Share; 4] = [
    Share {
        blocks: &[Block::SetUp, Block::Lint, Block::Unit, Block::System],
        minutes: 20,
        of: "building and the running system",
    },
    Share {
        blocks: &[Block::Experiments],
        minutes: 6,
        of: "experiments",
    },
    Share {
        blocks: &[Block::Pipelines],
        minutes: 12,
        of: "pipelines",
    },
    Share {
        blocks: &[Block::Scheduling],
        minutes: 8,
        of: "scheduling",
    },
];

struct Outcome {
    block: Block,
    took: Duration,
    failure: Option<anyhow::Error>,
    /// What the test runner said of each of its programs.
    said: Vec<String>,
}

impl Test {
    pub fn run(&self) -> Result<()> {
        let wanted: Vec<Block> = ALL
            .into_iter()
            .filter(|block| self.blocks.is_empty() || self.blocks.contains(block))
            .collect();
        let mut outcomes = Vec::new();
        for block in wanted {
            eprintln!("==> {block:?}");
            let start = Instant::now();
            let mut said = Vec::new();
            let failure = self.block(block, &mut said).err();
            if let Some(error) = &failure {
                eprintln!("{block:?} failed: {error:#}");
            }
            let broken = failure.is_some() && block == Block::SetUp;
            outcomes.push(Outcome {
                block,
                took: start.elapsed(),
                failure,
                said,
            });
            if broken {
                break;
            }
        }
        report(&outcomes)
    }

    fn block(&self, block: Block, said: &mut Vec<String>) -> Result<()> {
        match block {
            Block::SetUp => self.set_up(),
            Block::Lint => {
                let checks = [lint::format(), lint::clippy(), lint::documentation()];
                let failed: Vec<String> = checks
                    .into_iter()
                    .filter_map(|check| Some(format!("{:#}", check.err()?)))
                    .collect();
                if failed.is_empty() {
                    Ok(())
                } else {
                    bail!("{}", failed.join("; "))
                }
            }
            // Chosen by target and not by package, which would build shared dependencies anew.
            Block::Unit => {
                let others = [E2E, AGENT];
                let targets = programs(|folder| {
                    !folder.starts_with("dataflow") && !others.contains(&folder)
                })?;
                // End-to-end programs of the same names are left to their own blocks.
                let flags = ["--exclude", "seldon-e2e", "--lib", "--bins"];
                self.tests(&flags, &targets, said)?;
                self.tests(&["--doc"], &[], said)
            }
            Block::System | Block::Experiments => self.tests(&[], &end_to_end(block)?, said),
            Block::Pipelines => {
                let mut targets = programs(|folder| folder.starts_with("dataflow"))?;
                targets.extend(end_to_end(block)?);
                self.tests(&[], &targets, said)
            }
            Block::Scheduling => {
                let mut targets = programs(|folder| folder == AGENT)?;
                targets.extend(end_to_end(block)?);
                self.tests(&[], &targets, said)
            }
        }
    }

    fn set_up(&self) -> Result<()> {
        let fetching = std::thread::spawn(move || {
            let cache = Cache::open()?;
            cache.envoy(EnvoyVersion::default())?;
            cache.rclone()?;
            cache.mlserver()?;
            cache.mlserver_runtimes()?;
            cache.triton()?;
            cache.kafka_tools()?;
            cache.grpcurl()?;
            cache.clients_python()?;
            cache.s3_server()?;
            anyhow::Ok(cache)
        });
        // Programs and tests in one go: apart, they would have other features of shared dependencies.
        workspace::run(&mut cargo(&["build", "--workspace", "--bins", "--tests"])?)?;
        wasm::build(&workspace::root()?)?;
        wasm::build_panicking(&workspace::root()?)?;
        let cache = fetching.join().ok().context("fetching panicked")??;
        if self.long {
            cache.envoy(EnvoyVersion::V1_36_4)?;
        }
        seldon_local::make_artefacts(&cache, &cache.root().join("artefacts"), true)
    }

    fn tests(&self, flags: &[&str], programs: &[String], said: &mut Vec<String>) -> Result<()> {
        let names = programs.iter().flat_map(|name| ["--test", name]);
        let arguments: Vec<&str> = ["test", "--workspace", "--no-fail-fast"]
            .into_iter()
            .chain(flags.iter().copied())
            .chain(names)
            .collect();
        let mut command = cargo(&arguments)?;
        // The agent's tests start its rclone; a machine need not have one.
        command.env("SELDON_RCLONE", Cache::open()?.rclone()?);
        if self.long {
            command
                .env("SELDON_TEST_LONG", "1")
                .env("PROPTEST_CASES", "4096");
        }
        collect(&mut command, said)
    }
}

const E2E: &str = "tests/e2e";
const AGENT: &str = "agent";

/// Lists the end-to-end test programs of a block: one that has no block of its own belongs to the system.
fn end_to_end(block: Block) -> Result<Vec<String>> {
    let mut names = programs(|folder| folder == E2E)?;
    names.retain(|name| block_of(name) == block);
    Ok(names)
}

/// Lists the test programs of the crates in folders of which a condition holds.
fn programs(wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version=1"])?.output()?;
    let metadata: Metadata =
        serde_json::from_slice(&metadata.stdout).context("reading cargo's metadata")?;
    let root = workspace::root()?;
    let mut names = Vec::new();
    for package in metadata.packages {
        let folder = package.manifest_path.parent().unwrap_or(&root);
        let folder = folder.strip_prefix(&root).unwrap_or(folder);
        if !wanted(&folder.to_string_lossy()) {
            continue;
        }
        let tests = package.targets.into_iter();
        let tests = tests.filter(|target| target.kind.iter().any(|kind| kind == "test"));
        names.extend(tests.map(|target| target.name));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

#[derive(serde::Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(serde::Deserialize)]
struct Package {
    manifest_path: std::path::PathBuf,
    targets: Vec<Target>,
}

#[derive(serde::Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn block_of(program: &str) -> Block {
    match program {
        "experiments" | "plain_envoy" => Block::Experiments,
        "changes" | "scheduling" | "zoo" => Block::Scheduling,
        name if name.starts_with("pipeline") => Block::Pipelines,
        _ => Block::System,
    }
}

/// Runs tests, passing on what they print and keeping the runner's own closing lines.
fn collect(command: &mut Command, said: &mut Vec<String>) -> Result<()> {
    let name = line(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let output = child.stdout.take().context("the output is piped")?;
    let mut program = 0;
    for printed in BufReader::new(output).split(b'\n') {
        let printed = printed?;
        let text = String::from_utf8_lossy(&printed);
        println!("{text}");
        if text.starts_with("running ") && !text.starts_with("running 0 ") {
            program += 1;
        }
        let empty = text.contains(" 0 passed; 0 failed; 0 ignored");
        if text.starts_with("test result:") && !empty || text.ends_with(" ... FAILED") {
            said.push(text.into_owned());
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    if program == 0 {
        bail!("`{name}` ran no test");
    }
    Ok(())
}

impl Share {
    /// Tells how much of it was taken, if any.
    fn line(&self, outcomes: &[Outcome]) -> Option<String> {
        let own = outcomes
            .iter()
            .filter(|outcome| self.blocks.contains(&outcome.block));
        let took: Duration = own.map(|outcome| outcome.took).sum();
        if took.is_zero() {
            return None;
        }
        let (minutes, of) = (self.minutes, self.of);
        let percent = took.as_secs_f64() / (minutes * 60) as f64 * 100.0;
        Some(format!(
            "{:<13} {:>7.1} s {percent:.0} % of the {minutes} minutes for {of}",
            "together",
            took.as_secs_f64()
        ))
    }
}

fn report(outcomes: &[Outcome]) -> Result<()> {
    println!("\nblock         time      result");
    for outcome in outcomes {
        let result = if outcome.failure.is_some() {
            "FAILED"
        } else {
            "ok"
        };
        println!(
            "{:<13} {:>7.1} s {result}",
            format!("{:?}", outcome.block),
            outcome.took.as_secs_f32()
        );
    }
    for line in SHARES.iter().filter_map(|share| share.line(outcomes)) {
        println!("{line}");
    }
    println!();
    for said in outcomes.iter().flat_map(|outcome| &outcome.said) {
        println!("{said}");
    }
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| {
            Some(format!(
                "{:?}: {:#}",
                outcome.block,
                outcome.failure.as_ref()?
            ))
        })
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("{}", failed.join("\n"))
}
