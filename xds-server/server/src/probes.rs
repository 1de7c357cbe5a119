//! `/ready`, `/live` and `/metrics` over HTTP.
use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use seldon_ads::Engine;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::writer::Handle;

/// A writer that does not answer within this is not alive.
const PATIENCE: Duration = Duration::from_secs(2);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told of.
pub struct Probes {
    writer: Handle,
    engine: Engine,
}

impl Probes {
    pub fn new(writer: Handle, engine: Engine) -> Self {
        Self { writer, engine }
    }

    /// Serves until `stop`.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> io::Result<()> {
        let app = Router::new()
            .route("/ready", get(alive))
            .route("/live", get(alive))
            .route("/metrics", get(metrics))
            .with_state(Arc::new(self));
        axum::serve(listener, app)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
    }

    async fn counts(&self) -> Option<[(&'static str, &'static str, u64); 6]> {
        let read = self.writer.read(|state, _| {
            let models = state.model_names().count();
            let servers = state.server_names().count();
            (models, servers, state.generation(), state.synchronised())
        });
        let (models, servers, generation, synchronised) =
            timeout(PATIENCE, read).await.ok()?.ok()?;
        let envoys = self.engine.envoys();
        let connected = envoys.iter().filter(|e| e.connected).count();
        let rejections: usize = envoys.iter().map(|e| e.rejections.len()).sum();
        Some([
            (
                "models",
                "Models known, terminated ones included",
                models as u64,
            ),
            ("servers", "Servers known", servers as u64),
            ("generation", "Changes of the routed world", generation),
            (
                "synchronised",
                "Whether Envoys are served",
                synchronised.into(),
            ),
            ("envoys", "Envoys connected", connected as u64),
            (
                "rejections",
                "Resources that Envoys refuse",
                rejections as u64,
            ),
        ])
    }
}

/// Ready as soon as requests are taken: operators and agents must reach a scheduler that is not synchronised yet.
async fn alive(State(probes): State<Arc<Probes>>) -> StatusCode {
    match timeout(PATIENCE, probes.writer.read(|_, _| ())).await {
        Ok(Ok(())) => StatusCode::OK,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn metrics(State(probes): State<Arc<Probes>>) -> impl IntoResponse {
    let Some(counts) = probes.counts().await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let mut registry = Registry::with_prefix("seldon_scheduler");
    for (name, help, value) in counts {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
    let text = seldon_telemetry::render(&registry);
    ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}
