//! Runs the broker as a process.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use seldon_broker::{Broker, Config};

/// A Kafka broker for one machine
#[derive(Parser)]
#[command(version)]
struct Flags {
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    listen_host: IpAddr,
    /// The port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 9092)]
    port: u16,
    /// The host that clients are told to connect to [default: the one it listens on]
    #[arg(long)]
    advertised_host: Option<String>,
    /// The port that clients are told to connect to [default: the one it listens on]
    #[arg(long)]
    advertised_port: Option<u16>,
    /// A folder where topics, records and offsets are kept [default: in memory only]
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Acknowledge what is on the disk only: survives a power cut, and is slower
    #[arg(long, requires = "data_dir")]
    fsync: bool,
    /// The memory that records may take; beyond it the oldest leave it, for good without --data-dir
    #[arg(long, default_value_t = 256 << 20)]
    memory_bytes: usize,
    /// The age at which records may go, for topics without retention.ms; negative: none
    #[arg(long, default_value_t = 7 * 24 * 60 * 60 * 1000, allow_negative_numbers = true)]
    retention_ms: i64,
    /// The size of a partition beyond which its oldest records may go, for topics without retention.bytes [default: none]
    #[arg(long)]
    retention_bytes: Option<u64>,
    /// Partitions of topics that are created by use [default: topics are not]
    #[arg(long)]
    num_partitions: Option<i32>,
    /// The port of /ready and /live [default: none]
    #[arg(long)]
    health_port: Option<u16>,
    /// How much is logged: error, warn, info, debug or trace
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Threads that serve clients
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let mut runtime = match flags.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime
        .worker_threads(flags.threads.max(1))
        .enable_all()
        .build()?
        .block_on(run(flags))
}

async fn run(flags: Flags) -> Result<()> {
    let _telemetry = seldon_telemetry::init("seldon-broker", &flags.log_level, None)?;
    let config = Config {
        listen: SocketAddr::new(flags.listen_host, flags.port),
        advertised_host: flags.advertised_host,
        advertised_port: flags.advertised_port,
        data_dir: flags.data_dir,
        fsync: flags.fsync,
        memory_bytes: flags.memory_bytes,
        retention_ms: (flags.retention_ms >= 0).then_some(flags.retention_ms),
        retention_bytes: flags.retention_bytes,
        auto_create: flags.num_partitions,
        health: flags
            .health_port
            .map(|port| SocketAddr::new(flags.listen_host, port)),
    };
    let stop = seldon_telemetry::told_to_stop()?;
    let broker = Broker::start(config)
        .await
        .context("the broker cannot start")?;
    tracing::info!(bootstrap = broker.bootstrap(), "the broker is ready");
    stop.cancelled().await;
    broker.stop().await;
    Ok(())
}
