//! Liveness, as gRPC and as HTTP.
use seldon_grpc::health::health_check_service_server::HealthCheckService;
use seldon_proto::health::{HealthCheckRequest, HealthCheckResponse};
use tonic::{Request, Response, Status};

use crate::writer::Handle;

/// Serves `seldon.mlops.health.HealthCheckService`.
#[derive(Clone)]
pub struct Health {
    writer: Handle,
}

impl Health {
    pub fn new(writer: Handle) -> Self {
        Self { writer }
    }
}

#[tonic::async_trait]
impl HealthCheckService for Health {
    /// Healthy is a scheduler whose writer answers.
    async fn health_check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.writer.read(|_, _| ()).await?;
        Ok(Response::new(HealthCheckResponse { ok: true }))
    }
}
