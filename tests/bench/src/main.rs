//! Benchmarks of whole paths: CPU time per request and ratios within one run, never a bare time.
//!
//! Everything runs against a trivially fast inference server, so that what is measured is the way to it.
mod agent_hop;
mod report;
mod scale;
mod scripted;
mod shots;

use anyhow::Result;
use clap::Parser;
use report::Report;

/// Benchmarks the system that is built beside this program.
#[derive(Parser)]
struct Args {
    /// How many models the largest world has.
    #[arg(long, default_value_t = 10_000)]
    models: usize,
    /// Seconds of load for each figure.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only the section with this name: scale or agent.
    #[arg(long)]
    only: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = Report::default();
    let wanted = |name: &str| args.only.as_deref().is_none_or(|only| only == name);
    if wanted("scale") {
        scale::run(args.models, args.seconds, &mut report).await?;
    }
    if wanted("agent") {
        agent_hop::run(args.seconds, &mut report).await?;
    }
    println!("{report}");
    println!("{}", report.json());
    Ok(())
}
