//! Probes: `/startup`, `/ready`, `/live`.
use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::gateway::Gateway;

#[derive(Clone)]
struct Shared {
    gateway: Arc<Gateway>,
    subscribed: watch::Receiver<bool>,
}

/// Answers until `end`. A gateway whose reader of answers fails for good ends as a process: to answer is to live.
pub(crate) async fn serve(
    listener: TcpListener,
    gateway: Arc<Gateway>,
    subscribed: watch::Receiver<bool>,
    end: CancellationToken,
) -> io::Result<()> {
    let app = Router::new()
        .route("/startup", get(startup))
        .route("/ready", get(ready))
        .route("/live", get(live))
        .with_state(Shared {
            gateway,
            subscribed,
        });
    axum::serve(listener, app)
        .with_graceful_shutdown(end.cancelled_owned())
        .await
}

async fn live(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    match shared.gateway.producer.failed() {
        None => (StatusCode::OK, "live\n"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "the producer failed\n"),
    }
}

async fn startup(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if *shared.subscribed.borrow() {
        (StatusCode::OK, "started\n")
    } else {
        let reason = "not subscribed to the scheduler yet\n";
        (StatusCode::SERVICE_UNAVAILABLE, reason)
    }
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.gateway.stopping.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
    }
    match startup(State(shared)).await {
        (StatusCode::OK, _) => (StatusCode::OK, "ready\n"),
        other => other,
    }
}
