//! Logs, traces and metrics: one way for every process.
mod counter;
mod logs;
mod metrics;
mod process;
mod propagation;
mod spans;
mod traces;
mod xid;

pub use counter::{Count, Plain, Seconds};
pub use logs::{Level, UnknownLevel};
pub use metrics::{render, serve};
pub use process::{process_name, told_to_stop};
pub use propagation::{extract, inject};
pub use spans::RequestSpan;
pub use traces::{TracingConfig, TracingConfigError};
pub use xid::request_id;

/// Keeps exporters alive; spans that wait are sent when it is dropped.
#[must_use = "spans are exported only while this lives"]
pub struct Telemetry {
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            let _ = provider.shutdown();
        }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Level(#[from] UnknownLevel),
    #[error(transparent)]
    Config(#[from] TracingConfigError),
    #[error("the OTLP exporter could not be built: {0}")]
    Exporter(String),
    #[error("logging was already set up in this process")]
    Twice,
}

/// Sets up logging to standard error at `level`, and tracing by OTLP where `tracing_config` names a file.
///
/// `RUST_LOG` beats `level`. Must be called inside a tokio runtime where traces are exported.
pub fn init(
    service: &'static str,
    level: &str,
    tracing_config: Option<&std::path::Path>,
) -> Result<Telemetry, Error> {
    let level: Level = level.parse()?;
    let config = tracing_config.map(TracingConfig::read).transpose()?;
    let provider = match config {
        Some(config) if !config.disable => Some(traces::provider(service, &config)?),
        _ => None,
    };
    logs::install(service, level, provider.as_ref())?;
    Ok(Telemetry { provider })
}
