//! Logging to standard error.
use std::str::FromStr;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::Error;

/// A log level by the names that the documented flags take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// A level that no flag takes.
#[derive(Debug, thiserror::Error)]
#[error("unknown log level {0:?}: use trace, debug, info, warn or error")]
pub struct UnknownLevel(String);

impl FromStr for Level {
    type Err = UnknownLevel;
    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" | "fatal" | "panic" => Self::Error,
            _ => return Err(UnknownLevel(text.to_owned())),
        })
    }
}

impl Level {
    /// Our crates at this level, libraries never below `info`: their debug logs hold bodies and headers.
    fn directives(self) -> String {
        let (ours, theirs) = match self {
            Self::Trace => ("trace", "info"),
            Self::Debug => ("debug", "info"),
            Self::Info => ("info", "warn"),
            Self::Warn => ("warn", "warn"),
            Self::Error => ("error", "error"),
        };
        // By prefix: all of ours, and no library, are called so.
        format!("{theirs},seldon={ours}")
    }
}

pub(crate) fn install(
    service: &'static str,
    level: Level,
    provider: Option<&SdkTracerProvider>,
) -> Result<(), Error> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level.directives()));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let spans = provider.map(|p| tracing_opentelemetry::layer().with_tracer(p.tracer(service)));
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .with(spans)
        .try_init()
        .map_err(|_| Error::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_names_are_taken() {
        assert_eq!("warning".parse::<Level>().unwrap(), Level::Warn);
        assert_eq!("DEBUG".parse::<Level>().unwrap(), Level::Debug);
        let error = "loud".parse::<Level>().unwrap_err().to_string();
        assert!(error.contains("loud") && error.contains("info"), "{error}");
    }

    #[test]
    fn directives_parse() {
        for level in [
            Level::Trace,
            Level::Debug,
            Level::Info,
            Level::Warn,
            Level::Error,
        ] {
            level.directives().parse::<EnvFilter>().unwrap();
        }
    }
}
