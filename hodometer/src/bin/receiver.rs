//! `seldon-hodometer-receiver`: see `seldon-hodometer-receiver --help`.
use clap::Parser;
use seldon_hodometer::receiver::{Options, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let _telemetry = seldon_telemetry::init("seldon-hodometer-receiver", &options.log_level, None)?;
    run(options, seldon_telemetry::told_to_stop()?).await
}
