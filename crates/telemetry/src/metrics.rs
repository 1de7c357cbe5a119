//! Metrics in the text form that Prometheus scrapes.
use std::{future::Future, io, sync::Arc};

use axum::{
    Router, extract::State, http::header::CONTENT_TYPE, response::IntoResponse, routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;

/// Not OpenMetrics, which would ask for the suffix `_total` that some documented counters lack.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of a registry as text.
pub fn render(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, registry);
    text
}

/// Serves `GET /metrics` until `stop` resolves.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let scrape = |State(registry): State<Arc<Registry>>| async move {
        ([(CONTENT_TYPE, TEXT)], render(&registry)).into_response()
    };
    let app = Router::new()
        .route("/metrics", get(scrape))
        .with_state(registry);
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await
}
