//! Traces by OTLP, from the documented tracing file.
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use serde::Deserialize;

use crate::Error;

/// The documented tracing file: JSON with `disable`, `otelExporterEndpoint`, `otelExporterProtocol` and `ratio`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TracingConfig {
    #[serde(default)]
    pub disable: bool,
    /// Host and port, or a URL.
    #[serde(default)]
    pub otel_exporter_endpoint: String,
    /// Only `grpc`, which is also the default.
    #[serde(default)]
    pub otel_exporter_protocol: String,
    /// Share of new traces that are kept, 0 to 1, as text; 1 where empty. A caller's decision is followed.
    #[serde(default)]
    pub ratio: String,
}

/// Why a tracing file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TracingConfigError {
    #[error("tracing configuration {path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error("tracing configuration: ratio {0:?} is not a number from 0 to 1")]
    Ratio(String),
    #[error("tracing configuration: protocol {0:?} is not known, use grpc")]
    Protocol(String),
    #[error("tracing configuration: otelExporterEndpoint is empty; name one or set disable")]
    NoEndpoint,
}

impl TracingConfig {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, TracingConfigError> {
        let unreadable = |reason: String| TracingConfigError::Unreadable {
            path: path.display().to_string(),
            reason,
        };
        let bytes = fs::read(path).map_err(|e| unreadable(e.to_string()))?;
        let config: Self = serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), TracingConfigError> {
        if self.disable {
            return Ok(());
        }
        self.sampled()?;
        if self.otel_exporter_endpoint.is_empty() {
            return Err(TracingConfigError::NoEndpoint);
        }
        match self.otel_exporter_protocol.as_str() {
            "" | "grpc" => Ok(()),
            other => Err(TracingConfigError::Protocol(other.to_owned())),
        }
    }

    fn sampled(&self) -> Result<f64, TracingConfigError> {
        if self.ratio.is_empty() {
            return Ok(1.0);
        }
        match self.ratio.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
            _ => Err(TracingConfigError::Ratio(self.ratio.clone())),
        }
    }

    fn endpoint(&self) -> String {
        let endpoint = &self.otel_exporter_endpoint;
        if endpoint.contains("://") {
            endpoint.clone()
        } else {
            format!("http://{endpoint}")
        }
    }
}

static EXPORTED: AtomicBool = AtomicBool::new(false);

/// Says whether traces are exported in this process.
pub(crate) fn are_exported() -> bool {
    EXPORTED.load(Ordering::Relaxed)
}

pub(crate) fn provider(
    service: &'static str,
    config: &TracingConfig,
) -> Result<SdkTracerProvider, Error> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(config.endpoint())
        .build()
        .map_err(|e| Error::Exporter(e.to_string()))?;
    let resource = Resource::builder()
        .with_attribute(KeyValue::new("service.name", service))
        .build();
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sampled()?)));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler)
        .with_resource(resource)
        .build();
    opentelemetry::global::set_tracer_provider(provider.clone());
    opentelemetry::global::set_text_map_propagator(
        opentelemetry_sdk::propagation::TraceContextPropagator::new(),
    );
    EXPORTED.store(true, Ordering::Relaxed);
    Ok(provider)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TracingConfig, TracingConfigError> {
        let config: TracingConfig = serde_json::from_str(text).unwrap();
        config.validate().map(|()| config)
    }

    #[test]
    fn documented_file_is_read() {
        let config = parse(
            r#"{"disable":false,"otelExporterEndpoint":"jaeger:4317","otelExporterProtocol":"grpc","ratio":"0.5"}"#,
        )
        .unwrap();
        assert_eq!(config.sampled().unwrap(), 0.5);
        assert_eq!(config.endpoint(), "http://jaeger:4317");
    }

    #[test]
    fn what_cannot_work_is_named() {
        let ratio = parse(r#"{"otelExporterEndpoint":"a:1","ratio":"2"}"#);
        assert!(ratio.unwrap_err().to_string().contains("\"2\""));
        let protocol = parse(r#"{"otelExporterEndpoint":"a:1","otelExporterProtocol":"udp"}"#);
        assert!(protocol.unwrap_err().to_string().contains("grpc"));
        assert!(parse("{}").is_err());
        assert!(parse(r#"{"disable":true}"#).is_ok());
    }
}
