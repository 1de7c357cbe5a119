//! `fake-inference`: the trivially fast inference server as a process. It takes MLServer's place: the same words
//! (`start FOLDER`) and variables start it.
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use seldon_load::fake::{Behaviour, serve_with};
use seldon_load::ledger::Ledger;
use tokio::{net::TcpListener, sync::Semaphore};

/// A trivially fast inference server for benchmarks and fault tests.
#[derive(Parser)]
struct Args {
    /// REST (and gRPC) port on loopback.
    #[arg(long, env = "MLSERVER_HTTP_PORT")]
    http_port: u16,
    /// gRPC (and REST) port on loopback.
    #[arg(long, env = "MLSERVER_GRPC_PORT")]
    grpc_port: u16,
    /// Milliseconds that a load takes.
    #[arg(long, env = "FAKE_LOAD_MS", default_value_t = 0)]
    load_ms: u64,
    /// Only loads of models whose name starts so take them.
    #[arg(long, env = "FAKE_LOAD_PREFIX")]
    load_prefix: Option<String>,
    /// Milliseconds that an inference takes.
    #[arg(long, env = "FAKE_INFER_MS", default_value_t = 0)]
    infer_ms: u64,
    /// Refuse to load models whose name starts so.
    #[arg(long, env = "FAKE_REFUSE_PREFIX")]
    refuse_prefix: Option<String>,
    /// Never answer models whose name starts so.
    #[arg(long, env = "FAKE_HANG_PREFIX")]
    hang_prefix: Option<String>,
    /// Answer models whose name starts so with a failure.
    #[arg(long, env = "FAKE_FAIL_PREFIX")]
    fail_prefix: Option<String>,
    /// Answer models whose name starts so after `slow-ms`.
    #[arg(long, env = "FAKE_SLOW_PREFIX")]
    slow_prefix: Option<String>,
    /// Milliseconds that an inference of those takes.
    #[arg(long, env = "FAKE_SLOW_MS", default_value_t = 50)]
    slow_ms: u64,
    /// So many of those at a time.
    #[arg(long, env = "FAKE_SLOW_SLOTS")]
    slow_slots: Option<usize>,
    /// Record each request for models whose name starts so.
    #[arg(long, env = "FAKE_RECORD_PREFIX")]
    record_prefix: Option<String>,
    /// Answer models whose name starts so with their inputs as outputs.
    #[arg(long, env = "FAKE_ECHO_PREFIX")]
    echo_prefix: Option<String>,
    /// `start FOLDER`, as MLServer is called; nothing is read there.
    words: Vec<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let behaviour = Behaviour {
        load: Duration::from_millis(args.load_ms),
        load_prefix: args.load_prefix,
        infer: Duration::from_millis(args.infer_ms),
        refuse_prefix: args.refuse_prefix,
        hang_prefix: args.hang_prefix,
        fail_prefix: args.fail_prefix,
        slow: args
            .slow_prefix
            .map(|prefix| (prefix, Duration::from_millis(args.slow_ms))),
        slow_slots: args.slow_slots.map(|slots| Arc::new(Semaphore::new(slots))),
        record_prefix: args.record_prefix,
        echo_prefix: args.echo_prefix,
    };
    // Both ports are one server.
    let ledger = Arc::<Ledger>::default();
    let http = TcpListener::bind(("127.0.0.1", args.http_port)).await?;
    let grpc = TcpListener::bind(("127.0.0.1", args.grpc_port)).await?;
    tokio::spawn(serve_with(http, behaviour.clone(), ledger.clone()));
    serve_with(grpc, behaviour, ledger).await;
    Ok(())
}
