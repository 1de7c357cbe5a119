//! `seldon-dataflow-engine`: see `seldon-dataflow-engine --help`.
use clap::Parser;
use seldon_dataflow_engine::Options;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    options.validate()?;
    let tracing_config = Some(options.tracing_config_path.as_str()).filter(|path| !path.is_empty());
    let _telemetry = seldon_telemetry::init(
        "seldon-dataflow-engine",
        &options.log_level_app.to_ascii_lowercase(),
        tracing_config.map(std::path::Path::new),
    )?;
    let listener = seldon_dataflow_engine::bind(&options).await?;
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        asked.cancel();
    });
    seldon_dataflow_engine::run(options, listener, stop).await
}
