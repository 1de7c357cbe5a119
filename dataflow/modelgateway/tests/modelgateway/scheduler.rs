//! A scheduler that gives the orders of a test.
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use seldon_grpc::scheduler::scheduler_server::{Scheduler as Service, SchedulerServer};
use seldon_proto::{
    chainer::{PipelineUpdateStatusMessage, PipelineUpdateStatusResponse},
    scheduler::*,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status};

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type Orders = mpsc::UnboundedSender<Result<ModelStatusResponse, Status>>;

/// Gives orders to whoever is subscribed.
#[derive(Clone)]
pub struct Scheduler {
    subscribed: Arc<Mutex<Option<Orders>>>,
    acks: mpsc::UnboundedSender<ModelUpdateStatusMessage>,
    timestamp: Arc<AtomicU64>,
}

impl Scheduler {
    /// Sends an order once there is a subscriber; returns its timestamp.
    pub async fn order(&self, mut order: ModelStatusResponse) -> u64 {
        order.timestamp = self.timestamp.fetch_add(1, Ordering::Relaxed) + 1;
        let timestamp = order.timestamp;
        loop {
            let subscribed = self.subscribed.lock().unwrap().clone();
            if subscribed.is_some_and(|to| to.send(Ok(order.clone())).is_ok()) {
                return timestamp;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

/// Starts one; returns its port and what is acknowledged.
pub async fn start() -> (
    Scheduler,
    u16,
    mpsc::UnboundedReceiver<ModelUpdateStatusMessage>,
) {
    let (acks, acknowledged) = mpsc::unbounded_channel();
    let scheduler = Scheduler {
        subscribed: Arc::default(),
        acks,
        timestamp: Arc::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = tonic::service::Routes::new(SchedulerServer::new(scheduler.clone()));
    tokio::spawn(async move { axum::serve(listener, router.into_axum_router()).await });
    (scheduler, port, acknowledged)
}

macro_rules! scheduler {
    ($($name:ident($request:ty) -> $answer:ty;)*) => {
        #[tonic::async_trait]
        impl Service for Scheduler {
            type ServerStatusStream = Messages<ServerStatusResponse>;
            type ModelStatusStream = Messages<ModelStatusResponse>;
            type PipelineStatusStream = Messages<PipelineStatusResponse>;
            type ExperimentStatusStream = Messages<ExperimentStatusResponse>;
            type SubscribeServerStatusStream = Messages<ServerStatusResponse>;
            type SubscribeModelStatusStream = Messages<ModelStatusResponse>;
            type SubscribeExperimentStatusStream = Messages<ExperimentStatusResponse>;
            type SubscribePipelineStatusStream = Messages<PipelineStatusResponse>;
            type SubscribeControlPlaneStream = Messages<ControlPlaneResponse>;

            async fn subscribe_model_status(
                &self,
                request: Request<ModelSubscriptionRequest>,
            ) -> Result<Response<Self::SubscribeModelStatusStream>, Status> {
                assert!(request.into_inner().is_model_gateway);
                let (sender, receiver) = mpsc::unbounded_channel();
                *self.subscribed.lock().unwrap() = Some(sender);
                Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
            }

            async fn model_status_event(
                &self,
                request: Request<ModelUpdateStatusMessage>,
            ) -> Result<Response<ModelUpdateStatusResponse>, Status> {
                let _ = self.acks.send(request.into_inner());
                Ok(Response::new(ModelUpdateStatusResponse {}))
            }

            $(async fn $name(&self, _: Request<$request>) -> Result<Response<$answer>, Status> {
                Err(Status::unimplemented(""))
            })*
        }
    };
}

scheduler! {
    server_notify(ServerNotifyRequest) -> ServerNotifyResponse;
    load_model(LoadModelRequest) -> LoadModelResponse;
    unload_model(UnloadModelRequest) -> UnloadModelResponse;
    load_pipeline(LoadPipelineRequest) -> LoadPipelineResponse;
    unload_pipeline(UnloadPipelineRequest) -> UnloadPipelineResponse;
    start_experiment(StartExperimentRequest) -> StartExperimentResponse;
    stop_experiment(StopExperimentRequest) -> StopExperimentResponse;
    server_status(ServerStatusRequest) -> Self::ServerStatusStream;
    model_status(ModelStatusRequest) -> Self::ModelStatusStream;
    pipeline_status(PipelineStatusRequest) -> Self::PipelineStatusStream;
    experiment_status(ExperimentStatusRequest) -> Self::ExperimentStatusStream;
    scheduler_status(SchedulerStatusRequest) -> SchedulerStatusResponse;
    subscribe_server_status(ServerSubscriptionRequest) -> Self::SubscribeServerStatusStream;
    subscribe_experiment_status(ExperimentSubscriptionRequest) -> Self::SubscribeExperimentStatusStream;
    subscribe_pipeline_status(PipelineSubscriptionRequest) -> Self::SubscribePipelineStatusStream;
    pipeline_status_event(PipelineUpdateStatusMessage) -> PipelineUpdateStatusResponse;
    subscribe_control_plane(ControlPlaneSubscriptionRequest) -> Self::SubscribeControlPlaneStream;
}
