//! `seldon-dataflow-engine`: see `seldon-dataflow-engine --help`.
use clap::Parser;
use seldon_dataflow_engine::Options;

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
    let stop = seldon_telemetry::told_to_stop()?;
    seldon_dataflow_engine::run(options, listener, stop).await
}
