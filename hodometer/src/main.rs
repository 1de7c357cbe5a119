//! `seldon-hodometer`: see `seldon-hodometer --help`.
use clap::Parser;
use seldon_hodometer::Options;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let _telemetry = seldon_telemetry::init("seldon-hodometer", &options.log_level, None)?;
    let stop = seldon_telemetry::told_to_stop()?;
    seldon_hodometer::run(options, stop).await
}
