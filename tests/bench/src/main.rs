//! Benchmarks of whole paths: CPU time per request and ratios within one run, never a bare time.
//!
//! Everything runs against a trivially fast inference server, so that what is measured is the way to it.
mod admin;
mod against;
mod agent_hop;
mod density;
mod dice;
mod experiments;
mod fleet;
mod frozen;
mod lru;
mod over_commit;
mod pipelines;
mod report;
mod ring_hash;
mod scale;
mod scripted;
mod shots;
mod world;

use anyhow::Result;
use clap::Parser;
use report::Report;
use seldon_load::driver::{Load, Shot};
use std::time::Duration;

/// Benchmarks the system that is built beside this program.
#[derive(Parser)]
struct Args {
    /// How many models the largest world has.
    #[arg(long, default_value_t = 10_000)]
    models: usize,
    /// Seconds of load for each figure.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Drive load at a running installation instead: host and port of its Envoy.
    #[arg(long, value_name = "HOST:PORT")]
    against: Option<String>,
    /// With --against: the model to ask.
    #[arg(long, default_value = "iris")]
    model: String,
    /// With --against: the REST body.
    #[arg(long, default_value = shots::BODY)]
    body: String,
    /// With --against: requests a second; as fast as answers come where absent.
    #[arg(long)]
    rate: Option<f64>,
    /// With --against: connections.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Only the section with this name: scale, agent, experiments, density, over-commit,
    /// ring-hash or pipelines.
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    pipelines: pipelines::Wanted,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = Report::default();
    if let Some(target) = &args.against {
        let load = Load {
            targets: vec![target.clone()],
            shots: vec![Shot::rest(&args.model, &args.body)],
            connections: args.connections,
            rate: args.rate,
            deadline: Duration::from_secs(30),
        };
        against::run(load, Duration::from_secs(args.seconds), &mut report).await?;
        println!("{report}\n{}", report.json());
        return Ok(());
    }
    let wanted = |name: &str| args.only.as_deref().is_none_or(|only| only == name);
    if wanted("scale") {
        scale::run(args.models, args.seconds, &mut report).await?;
    }
    if wanted("agent") {
        agent_hop::run(args.seconds, &mut report).await?;
    }
    if wanted("experiments") {
        experiments::run(args.seconds, &mut report).await?;
    }
    if wanted("density") {
        density::run(args.models, &mut report).await?;
    }
    if wanted("over-commit") {
        over_commit::run(args.seconds, &mut report).await?;
    }
    if wanted("ring-hash") {
        ring_hash::run(&mut report).await?;
    }
    if wanted("pipelines") {
        pipelines::run(&args.pipelines, args.seconds, &mut report).await?;
    }
    println!("{report}");
    println!("{}", report.json());
    Ok(())
}
