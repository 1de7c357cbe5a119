//! `seldon-pipelinegateway`: see `seldon-pipelinegateway --help`.
use std::{path::Path, time::Duration};

use clap::Parser;
use seldon_kafka::Settings;
use seldon_pipelinegateway::{Listeners, Options};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(serve());
    // A question to a broker that is away ends only with its own time limit: the end does not wait for it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn serve() -> anyhow::Result<()> {
    let options = Options::parse();
    let tracing_config = Some(options.tracing_config_path.as_str()).filter(|path| !path.is_empty());
    let _telemetry = seldon_telemetry::init(
        "seldon-pipelinegateway",
        &options.log_level,
        tracing_config.map(Path::new),
    )?;
    let kafka = Settings::load(&options.kafka_config_path)?;
    let listeners = Listeners::bind(&options).await?;
    let stop = seldon_telemetry::told_to_stop()?;
    seldon_pipelinegateway::run(options, kafka, listeners, stop).await
}
