//! Small services for the machinery around an agent: readiness, drain, debug.
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use seldon_grpc::agent_debug::agent_debug_service_server::{
    AgentDebugService, AgentDebugServiceServer,
};
use seldon_proto::agent_debug::{ReplicaStatusRequest, ReplicaStatusResponse};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::control::Control;
use crate::models::Registry;

#[derive(Clone)]
struct Shared {
    control: Control,
    registry: Registry,
}

/// Serves `GET /ready`: 200, or 503 with the reason.
pub async fn readiness(
    listener: TcpListener,
    control: Control,
    registry: Registry,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        .route("/ready", get(ready))
        .with_state(Shared { control, registry });
    axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    let phase = *shared.control.phase().borrow();
    let up = *shared.registry.up().borrow();
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match (phase.registered, phase.draining, up) {
        (_, true, _) => (unavailable, "draining\n"),
        (_, _, false) => (unavailable, "the inference server is not ready\n"),
        (false, _, _) => (unavailable, "not registered with the scheduler yet\n"),
        (true, false, true) => (StatusCode::OK, "ready\n"),
    }
}

/// Serves `GET /terminate`: the first call drains this replica, every call waits until it is drained.
pub async fn drainer(
    listener: TcpListener,
    control: Control,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let terminate = |State(control): State<Control>| async move {
        // A caller that gives up must not end the drain.
        let drained = tokio::spawn(async move { control.drain(Duration::MAX).await }).await;
        if drained.unwrap_or(false) {
            "drained\n"
        } else {
            "not drained: the scheduler could not be asked\n"
        }
    };
    let app = Router::new()
        .route("/terminate", get(terminate))
        .with_state(control);
    axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

struct Debug(Registry);

#[tonic::async_trait]
impl AgentDebugService for Debug {
    async fn replica_status(
        &self,
        _: Request<ReplicaStatusRequest>,
    ) -> Result<Response<ReplicaStatusResponse>, Status> {
        Ok(Response::new(ReplicaStatusResponse {
            available_memory_bytes: self.0.available(),
            models: self.0.debug(),
        }))
    }
}

/// Serves the debug service, with reflection.
pub async fn debug(
    listener: TcpListener,
    registry: Registry,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(seldon_proto::DESCRIPTORS)
        .with_service_name("seldon.mlops.agent_debug.AgentDebugService")
        .build_v1()?;
    tonic::transport::Server::builder()
        .add_service(AgentDebugServiceServer::new(Debug(registry)))
        .add_service(reflection)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned())
        .await?;
    Ok(())
}
