//! The API for dataflow engines.
use seldon_core::{Event, Order, Worker};
use seldon_grpc::chainer::chainer_server::Chainer;
use seldon_proto::chainer::{
    PipelineSubscriptionRequest, PipelineUpdateMessage, PipelineUpdateStatusMessage,
    PipelineUpdateStatusResponse,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::workers::Orders;
use crate::writer::Handle;

/// Serves `seldon.mlops.chainer.Chainer`.
#[derive(Clone)]
pub struct Engines {
    writer: Handle,
    stop: CancellationToken,
}

impl Engines {
    pub fn new(writer: Handle, stop: CancellationToken) -> Self {
        Self { writer, stop }
    }
}

#[tonic::async_trait]
impl Chainer for Engines {
    type SubscribePipelineUpdatesStream = Orders<PipelineUpdateMessage>;

    async fn subscribe_pipeline_updates(
        &self,
        request: Request<PipelineSubscriptionRequest>,
    ) -> Result<Response<Self::SubscribePipelineUpdatesStream>, Status> {
        let name = request.into_inner().name;
        let update = |order| match order {
            Order::Update(update) => Some(*update),
            _ => None,
        };
        let engine = Worker::Engine;
        Orders::of(&self.writer, &self.stop, engine, &name, None, update)
            .await
            .map(Response::new)
    }

    async fn pipeline_update_event(
        &self,
        request: Request<PipelineUpdateStatusMessage>,
    ) -> Result<Response<PipelineUpdateStatusResponse>, Status> {
        let event = Event::PipelineReported {
            worker: Worker::Engine,
            report: Box::new(request.into_inner()),
        };
        self.writer.reported(event).await?;
        Ok(Response::new(PipelineUpdateStatusResponse {}))
    }
}
