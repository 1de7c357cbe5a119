//! Probes and metrics over HTTP.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::net::TcpListener;

use crate::worker::now_ms;

/// A worker that does nothing for so long is stuck, in milliseconds.
const STUCK: i64 = 30_000;

/// What the probes look at.
#[derive(Clone, Default)]
pub struct Health {
    /// When the worker was last seen at work; 0: it has not begun.
    pub beat: Arc<AtomicI64>,
    /// The broker was reached, and the worker runs.
    pub ready: Arc<AtomicBool>,
    /// The scheduler was reached once.
    pub registered: Arc<AtomicBool>,
}

impl Health {
    fn is_live(&self) -> bool {
        let beat = self.beat.load(Ordering::Relaxed);
        beat == 0 || now_ms() - beat < STUCK
    }
}

/// Serves `/live`, `/ready`, `/startup` and `/metrics` until `stop` resolves.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    registry: Arc<Registry>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let metrics = move || {
        let text = seldon_telemetry::render(&registry);
        async move {
            (
                [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
                text,
            )
        }
    };
    let app = Router::new()
        .route("/live", get(live))
        .route("/ready", get(ready))
        .route("/startup", get(startup))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await
}

async fn live(State(health): State<Health>) -> impl IntoResponse {
    answer(health.is_live(), "the worker is stuck")
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let ready = health.ready.load(Ordering::Relaxed) && health.is_live();
    answer(ready, "the broker was not reached yet")
}

async fn startup(State(health): State<Health>) -> impl IntoResponse {
    let registered = health.registered.load(Ordering::Relaxed);
    answer(registered, "the scheduler was not reached yet")
}

fn answer(healthy: bool, reason: &str) -> impl IntoResponse + use<> {
    if healthy {
        (StatusCode::OK, Json(json!({"healthy": true})))
    } else {
        let body = json!({"healthy": false, "reason": reason});
        (StatusCode::SERVICE_UNAVAILABLE, Json(body))
    }
}
