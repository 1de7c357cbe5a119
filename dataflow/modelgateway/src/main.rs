//! `seldon-modelgateway`: see `seldon-modelgateway --help`.
use std::path::Path;

use clap::Parser;
use seldon_kafka::Settings;
use seldon_modelgateway::Options;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let tracing_config = Some(options.tracing_config_path.as_str()).filter(|path| !path.is_empty());
    let _telemetry = seldon_telemetry::init(
        "seldon-modelgateway",
        &options.log_level,
        tracing_config.map(Path::new),
    )?;
    let settings = Settings::load(&options.kafka_config_path)?;
    let stop = seldon_telemetry::told_to_stop()?;
    seldon_modelgateway::run(options, settings, stop).await
}
