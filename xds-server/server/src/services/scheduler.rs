//! The API for operators, command lines and gateways.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use seldon_core::{Endpoint, Event, Now, Order, State, Worker};
use seldon_grpc::scheduler::scheduler_server::Scheduler;
use seldon_proto::{
    chainer::{PipelineUpdateStatusMessage, PipelineUpdateStatusResponse},
    scheduler::{control_plane_response::Event as Marker, *},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    streams::{Answers, Gone, Outlet, answers},
    workers::Orders,
};
use crate::writer::{Handle, Kind};

/// Statuses that are read from the state at once.
const CHUNK: usize = 256;
/// Servers change with every model they load: their status is told at most this often.
const SERVERS_EVERY: Duration = Duration::from_millis(250);

/// Serves `seldon.mlops.scheduler.Scheduler`.
#[derive(Clone)]
pub struct SchedulerApi {
    writer: Handle,
    stop: CancellationToken,
    gateway_ports: GatewayPorts,
}

/// Where pipeline gateways listen that do not say so: the documented ones.
#[derive(Clone, Copy, Debug)]
pub struct GatewayPorts {
    pub http: u16,
    pub grpc: u16,
}

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = Result<Response<Answers<T>>, Status>;

impl SchedulerApi {
    pub fn new(writer: Handle, stop: CancellationToken, gateway_ports: GatewayPorts) -> Self {
        Self {
            writer,
            stop,
            gateway_ports,
        }
    }

    /// Where Envoys find a pipeline gateway. One that names no address is where it connects from.
    fn gateway_endpoint(
        &self,
        request: &PipelineSubscriptionRequest,
        peer: Option<SocketAddr>,
    ) -> Result<Endpoint, Status> {
        let name = &request.subscriber_name;
        let host = match request.subscriber_ip.as_str() {
            "" => peer.map(|peer| peer.ip().to_string()),
            host => Some(host.to_owned()),
        };
        let host = host.ok_or_else(|| {
            Status::invalid_argument(format!(
                "pipeline gateway {name} names no address: set POD_IP"
            ))
        })?;
        let port = |told: u32, default: u16| match told {
            0 => Ok(default),
            told => u16::try_from(told).map_err(|_| {
                let what = format!("pipeline gateway {name} names port {told}: use 1 to 65535");
                Status::invalid_argument(what)
            }),
        };
        Ok(Endpoint {
            replica: 0,
            host,
            http_port: port(request.subscriber_http_port, self.gateway_ports.http)?,
            grpc_port: port(request.subscriber_grpc_port, self.gateway_ports.grpc)?,
            over_committed: false,
        })
    }

    /// The status of one by its name, or of all.
    async fn statuses<T: Send + 'static>(
        &self,
        name: Option<String>,
        unknown: fn(&str) -> String,
        every: fn(&State) -> Vec<Arc<str>>,
        status: fn(&State, &str, Now) -> Option<T>,
    ) -> Stream<T> {
        let names = match name {
            None => self.writer.read(move |state, _| every(state)).await?,
            Some(name) => {
                let name: Arc<str> = name.into();
                let asked = name.clone();
                let known = self
                    .writer
                    .read(move |state, now| status(state, &asked, now).is_some());
                if !known.await? {
                    return Err(Status::failed_precondition(unknown(&name)));
                }
                vec![name]
            }
        };
        Ok(Response::new(self.all(names, status)))
    }

    /// One status of each name, in the order of the names, read in pieces so that nobody waits long.
    fn all<T: Send + 'static>(
        &self,
        names: Vec<Arc<str>>,
        status: impl Fn(&State, &str, Now) -> Option<T> + Copy + Send + 'static,
    ) -> Answers<T> {
        let writer = self.writer.clone();
        answers(&self.stop, move |outlet| async move {
            for names in names.chunks(CHUNK) {
                send_statuses(&writer, names.to_vec(), status, &outlet).await?;
            }
            Ok(())
        })
    }
}

async fn send_statuses<T: Send + 'static>(
    writer: &Handle,
    names: Vec<Arc<str>>,
    status: impl Fn(&State, &str, Now) -> Option<T> + Send + 'static,
    outlet: &Outlet<T>,
) -> Result<(), Gone> {
    let read = writer.read(move |state, now| {
        let known = names.iter().filter_map(|name| status(state, name, now));
        known.collect::<Vec<T>>()
    });
    match read.await {
        Ok(statuses) => {
            for status in statuses {
                outlet.send(status).await?;
            }
            Ok(())
        }
        Err(failure) => {
            outlet.fail(failure.into()).await;
            Err(Gone)
        }
    }
}

/// Every status once, then each that changes.
async fn follow<T: Send + 'static>(
    writer: Handle,
    kind: Kind,
    pause: Duration,
    status: impl Fn(&State, &str, Now) -> Option<T> + Copy + Send + 'static,
    outlet: Outlet<T>,
) -> Result<(), Gone> {
    let subscription = match writer.subscribe(kind).await {
        Ok(subscription) => subscription,
        Err(failure) => {
            outlet.fail(failure.into()).await;
            return Err(Gone);
        }
    };
    loop {
        let names = subscription.next(CHUNK).await;
        send_statuses(&writer, names, status, &outlet).await?;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
}

fn latest_model(state: &State, name: &str, now: Now) -> Option<ModelStatusResponse> {
    state.model_status(name, false, now)
}

fn every_version(state: &State, name: &str, now: Now) -> Option<ModelStatusResponse> {
    state.model_status(name, true, now)
}

fn latest_pipeline(state: &State, name: &str, _: Now) -> Option<PipelineStatusResponse> {
    state.pipeline_status(name, false)
}

fn every_pipeline_version(state: &State, name: &str, _: Now) -> Option<PipelineStatusResponse> {
    state.pipeline_status(name, true)
}

fn experiment(state: &State, name: &str, _: Now) -> Option<ExperimentStatusResponse> {
    state.experiment_status(name)
}

fn server(state: &State, name: &str, _: Now) -> Option<ServerStatusResponse> {
    state.server_status(name)
}

fn scaling(state: &State, name: &str, _: Now) -> Option<ServerStatusResponse> {
    state.scaling_request(name)
}

#[tonic::async_trait]
impl Scheduler for SchedulerApi {
    async fn load_model(&self, request: Request<LoadModelRequest>) -> Answer<LoadModelResponse> {
        let model = request.into_inner().model;
        let model = model.ok_or_else(|| Status::invalid_argument("the request has no model"))?;
        self.writer
            .durable(Event::LoadModel(Box::new(model)))
            .await?;
        Ok(Response::new(LoadModelResponse {}))
    }

    async fn unload_model(
        &self,
        request: Request<UnloadModelRequest>,
    ) -> Answer<UnloadModelResponse> {
        let request = request.into_inner();
        let model = request
            .model
            .ok_or_else(|| Status::invalid_argument("the request names no model"))?;
        let event = Event::UnloadModel {
            name: model.name,
            kubernetes_meta: request.kubernetes_meta,
        };
        self.writer.durable(event).await?;
        Ok(Response::new(UnloadModelResponse {}))
    }

    async fn server_notify(
        &self,
        request: Request<ServerNotifyRequest>,
    ) -> Answer<ServerNotifyResponse> {
        let request = request.into_inner();
        let event = Event::ServerNotify {
            servers: request.servers,
            first_sync: request.is_first_sync,
        };
        self.writer.durable(event).await?;
        Ok(Response::new(ServerNotifyResponse {}))
    }

    type ModelStatusStream = Answers<ModelStatusResponse>;
    async fn model_status(
        &self,
        request: Request<ModelStatusRequest>,
    ) -> Stream<ModelStatusResponse> {
        let request = request.into_inner();
        let status = match request.all_versions {
            true => every_version,
            false => latest_model,
        };
        let unknown = |name: &str| format!("model {name} is not known");
        let name = request.model.map(|model| model.name);
        self.statuses(name, unknown, |state| names(state.model_names()), status)
            .await
    }

    type ServerStatusStream = Answers<ServerStatusResponse>;
    async fn server_status(
        &self,
        request: Request<ServerStatusRequest>,
    ) -> Stream<ServerStatusResponse> {
        let unknown = |name: &str| format!("server [{name}] is not known");
        let name = request.into_inner().name;
        self.statuses(name, unknown, |state| names(state.server_names()), server)
            .await
    }

    async fn scheduler_status(
        &self,
        _: Request<SchedulerStatusRequest>,
    ) -> Answer<SchedulerStatusResponse> {
        Ok(Response::new(SchedulerStatusResponse {
            application_version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    type SubscribeServerStatusStream = Answers<ServerStatusResponse>;
    async fn subscribe_server_status(
        &self,
        request: Request<ServerSubscriptionRequest>,
    ) -> Stream<ServerStatusResponse> {
        tracing::info!(
            subscriber = request.get_ref().subscriber_name,
            "server status"
        );
        let writer = self.writer.clone();
        let stream = answers(&self.stop, |outlet| async move {
            let (statuses, requests) = (outlet.clone(), writer.clone());
            tokio::try_join!(
                follow(writer, Kind::Servers, SERVERS_EVERY, server, statuses),
                // Whoever owns the replicas is asked at once, and again when it has connected anew.
                follow(requests, Kind::Scaling, Duration::ZERO, scaling, outlet),
            )
            .map(|_| ())
        });
        Ok(Response::new(stream))
    }

    type SubscribeModelStatusStream = Answers<ModelStatusResponse>;
    async fn subscribe_model_status(
        &self,
        request: Request<ModelSubscriptionRequest>,
    ) -> Stream<ModelStatusResponse> {
        let request = request.into_inner();
        if request.is_model_gateway {
            let order = |order| match order {
                Order::Model(model) => Some(*model),
                _ => None,
            };
            let name = &request.subscriber_name;
            let gateway = Worker::ModelGateway;
            let orders = Orders::of(&self.writer, &self.stop, gateway, name, None, order).await?;
            return Ok(Response::new(Box::pin(orders)));
        }
        tracing::info!(subscriber = request.subscriber_name, "model status");
        let writer = self.writer.clone();
        let stream = answers(&self.stop, |outlet| async move {
            // Before that, statuses would tell of a world that is not whole.
            writer.synchronised().await.map_err(|_| Gone)?;
            follow(writer, Kind::Models, Duration::ZERO, latest_model, outlet).await
        });
        Ok(Response::new(stream))
    }

    type SubscribeControlPlaneStream = Answers<ControlPlaneResponse>;
    async fn subscribe_control_plane(
        &self,
        request: Request<ControlPlaneSubscriptionRequest>,
    ) -> Stream<ControlPlaneResponse> {
        tracing::info!(
            subscriber = request.get_ref().subscriber_name,
            "control plane"
        );
        let writer = self.writer.clone();
        let stream = answers(&self.stop, |outlet| async move {
            let mark = |event: Marker| ControlPlaneResponse {
                event: event.into(),
            };
            outlet.send(mark(Marker::SendServers)).await?;
            writer.synchronised().await.map_err(|_| Gone)?;
            for event in [
                Marker::SendExperiments,
                Marker::SendModels,
                Marker::SendPipelines,
            ] {
                outlet.send(mark(event)).await?;
            }
            outlet.closed().await;
            Err(Gone)
        });
        Ok(Response::new(stream))
    }

    async fn load_pipeline(
        &self,
        request: Request<LoadPipelineRequest>,
    ) -> Answer<LoadPipelineResponse> {
        let pipeline = request.into_inner().pipeline;
        let pipeline =
            pipeline.ok_or_else(|| Status::invalid_argument("the request has no pipeline"))?;
        let event = Event::LoadPipeline(Box::new(pipeline));
        self.writer.durable(event).await?;
        Ok(Response::new(LoadPipelineResponse {}))
    }

    async fn unload_pipeline(
        &self,
        request: Request<UnloadPipelineRequest>,
    ) -> Answer<UnloadPipelineResponse> {
        let name = request.into_inner().name;
        self.writer.durable(Event::UnloadPipeline { name }).await?;
        Ok(Response::new(UnloadPipelineResponse {}))
    }

    type PipelineStatusStream = Answers<PipelineStatusResponse>;
    async fn pipeline_status(
        &self,
        request: Request<PipelineStatusRequest>,
    ) -> Stream<PipelineStatusResponse> {
        let request = request.into_inner();
        let status = match request.all_versions {
            true => every_pipeline_version,
            false => latest_pipeline,
        };
        let unknown = |name: &str| format!("pipeline {name} is not known");
        let every = |state: &State| names(state.pipeline_names());
        self.statuses(request.name, unknown, every, status).await
    }

    type SubscribePipelineStatusStream = Answers<PipelineStatusResponse>;
    async fn subscribe_pipeline_status(
        &self,
        request: Request<PipelineSubscriptionRequest>,
    ) -> Stream<PipelineStatusResponse> {
        let peer = request.extensions().get::<Option<SocketAddr>>().copied();
        let request = request.into_inner();
        let name = &request.subscriber_name;
        if request.is_pipeline_gateway {
            let endpoint = Some(self.gateway_endpoint(&request, peer.flatten())?);
            let order = |order| match order {
                Order::Pipeline(pipeline) => Some(*pipeline),
                _ => None,
            };
            let gateway = Worker::PipelineGateway;
            let orders =
                Orders::of(&self.writer, &self.stop, gateway, name, endpoint, order).await?;
            return Ok(Response::new(Box::pin(orders)));
        }
        tracing::info!(subscriber = name, "pipeline status");
        let writer = self.writer.clone();
        let stream = answers(&self.stop, |outlet| async move {
            writer.synchronised().await.map_err(|_| Gone)?;
            let pause = Duration::ZERO;
            follow(writer, Kind::Pipelines, pause, latest_pipeline, outlet).await
        });
        Ok(Response::new(stream))
    }

    async fn pipeline_status_event(
        &self,
        request: Request<PipelineUpdateStatusMessage>,
    ) -> Answer<PipelineUpdateStatusResponse> {
        let event = Event::PipelineReported {
            worker: Worker::PipelineGateway,
            report: Box::new(request.into_inner()),
        };
        self.writer.reported(event).await?;
        Ok(Response::new(PipelineUpdateStatusResponse {}))
    }

    async fn start_experiment(
        &self,
        request: Request<StartExperimentRequest>,
    ) -> Answer<StartExperimentResponse> {
        let experiment = request.into_inner().experiment;
        let experiment =
            experiment.ok_or_else(|| Status::invalid_argument("the request has no experiment"))?;
        let event = Event::StartExperiment(Box::new(experiment));
        self.writer.durable(event).await?;
        Ok(Response::new(StartExperimentResponse {}))
    }

    async fn stop_experiment(
        &self,
        request: Request<StopExperimentRequest>,
    ) -> Answer<StopExperimentResponse> {
        let name = request.into_inner().name;
        self.writer.durable(Event::StopExperiment { name }).await?;
        Ok(Response::new(StopExperimentResponse {}))
    }

    type ExperimentStatusStream = Answers<ExperimentStatusResponse>;
    async fn experiment_status(
        &self,
        request: Request<ExperimentStatusRequest>,
    ) -> Stream<ExperimentStatusResponse> {
        let unknown = |name: &str| format!("experiment {name} is not known");
        let every = |state: &State| names(state.experiment_names());
        let name = request.into_inner().name;
        self.statuses(name, unknown, every, experiment).await
    }

    type SubscribeExperimentStatusStream = Answers<ExperimentStatusResponse>;
    async fn subscribe_experiment_status(
        &self,
        request: Request<ExperimentSubscriptionRequest>,
    ) -> Stream<ExperimentStatusResponse> {
        let request = request.into_inner();
        tracing::info!(subscriber = request.subscriber_name, "experiment status");
        let writer = self.writer.clone();
        let stream = answers(&self.stop, |outlet| async move {
            writer.synchronised().await.map_err(|_| Gone)?;
            follow(
                writer,
                Kind::Experiments,
                Duration::ZERO,
                experiment,
                outlet,
            )
            .await
        });
        Ok(Response::new(stream))
    }

    async fn model_status_event(
        &self,
        request: Request<ModelUpdateStatusMessage>,
    ) -> Answer<ModelUpdateStatusResponse> {
        let event = Event::ModelReported(Box::new(request.into_inner()));
        self.writer.reported(event).await?;
        Ok(Response::new(ModelUpdateStatusResponse {}))
    }
}

fn names<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> Vec<Arc<str>> {
    names.cloned().collect()
}
