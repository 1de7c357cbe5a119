//! `seldon-agent`: see `seldon-agent --help`.
use clap::Parser;
use seldon_agent::{Listeners, Options};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    options.validate()?;
    let tracing_config = Some(options.tracing_config_path.as_str()).filter(|path| !path.is_empty());
    let _telemetry = seldon_telemetry::init(
        "seldon-agent",
        &options.log_level,
        tracing_config.map(std::path::Path::new),
    )?;
    let listeners = Listeners::bind(&options).await?;
    let (stop, now) = (CancellationToken::new(), CancellationToken::new());
    on_signals(stop.clone(), now.clone())?;
    seldon_agent::run(options, listeners, stop, now).await
}

/// The first SIGTERM or SIGINT drains the agent, the second ends it at once.
fn on_signals(stop: CancellationToken, now: CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if stop.is_cancelled() {
                now.cancel();
            }
            stop.cancel();
        }
    });
    Ok(())
}
