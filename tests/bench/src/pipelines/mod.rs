//! Pipelines over Kafka: each figure beside the same number of bare hops through the same broker.

mod latency;
mod many;
mod process;
mod relay;
mod scene;
mod throughput;
mod topics;

use anyhow::{Result, ensure};

use crate::report::Report;
use scene::Kind;

/// What of it is wanted.
#[derive(clap::Args)]
pub struct Wanted {
    /// Of pipelines only these parts: latency, throughput, topics, many.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "latency,throughput,topics,many"
    )]
    parts: Vec<String>,
    /// Of pipelines only on these brokers: embedded, kafka (a real one).
    #[arg(long, value_delimiter = ',', default_value = "embedded,kafka")]
    brokers: Vec<String>,
}

/// Runs the section.
pub async fn run(wanted: &Wanted, seconds: u64, report: &mut Report) -> Result<()> {
    for part in &wanted.parts {
        let known = ["latency", "throughput", "topics", "many"].contains(&part.as_str());
        ensure!(
            known,
            "no part {part}: name latency, throughput, topics or many"
        );
    }
    for broker in &wanted.brokers {
        let kind: Kind = broker.parse()?;
        for part in &wanted.parts {
            match part.as_str() {
                "latency" => latency::run(kind, seconds, report).await?,
                "throughput" => throughput::run(kind, seconds, report).await?,
                "topics" => topics::run(kind, report).await?,
                _ => many::run(kind, report).await?,
            }
        }
    }
    Ok(())
}
