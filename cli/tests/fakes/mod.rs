//! A scheduler and a data plane that answer what a test puts into them, and the command run against them.
#![allow(clippy::unwrap_used, dead_code)]
use std::{
    collections::VecDeque,
    convert::Infallible,
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use seldon_grpc::{
    introspect::introspect_server::{Introspect, IntrospectServer},
    scheduler::scheduler_server::{Scheduler, SchedulerServer},
};
use seldon_proto::{chainer, introspect as intro, scheduler::*};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::{Iter, iter, wrappers::TcpListenerStream};
use tonic::{Status, async_trait, body::Body};

type Answer<T> = Result<tonic::Response<T>, Status>;
type Stream<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;

/// What the fake scheduler answers, and what it was asked.
#[derive(Default)]
pub struct World {
    /// Answers to ModelStatus, one a call; the last stays.
    pub models: VecDeque<Vec<ModelStatusResponse>>,
    pub servers: Vec<ServerStatusResponse>,
    pub refusal: Option<Status>,
    pub loaded: Vec<Model>,
    pub unloaded: Vec<String>,
    pub asked: Vec<ModelStatusRequest>,
    /// Answers to ExperimentStatus, one a call; the last stays.
    pub experiments: VecDeque<ExperimentStatusResponse>,
    /// The answer to ExplainExperiment; without one it is not there.
    pub explained: Option<intro::ExplainExperimentResponse>,
    pub started: Vec<Experiment>,
    pub stopped: Vec<String>,
    pub routes_asked: Vec<intro::ExplainRouteRequest>,
}

#[derive(Clone, Default)]
pub struct Fake(pub Arc<Mutex<World>>);

impl Fake {
    pub fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    /// Serves on a free port and gives its address.
    pub async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tonic::transport::Server::builder()
            .add_service(SchedulerServer::new(self.clone()))
            .add_service(IntrospectServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }
}

impl Fake {
    /// Serves over TLS with client certificates; both sides' files are written to `folder`.
    pub async fn serve_tls(&self, folder: &Path) -> String {
        let (server, client) = (identity(folder, "server"), identity(folder, "client"));
        let tls = seldon_tls::ServerTls::follow(server, client, &[b"h2"]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router =
            tonic::transport::Server::builder().add_service(SchedulerServer::new(self.clone()));
        tokio::spawn(router.serve_with_incoming(seldon_tls::Incoming::new(listener, Some(tls))));
        address
    }
}

/// Writes `<name>.ca`, `<name>.crt` and `<name>.key` for 127.0.0.1.
fn identity(folder: &Path, name: &str) -> seldon_tls::Files {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let write = |kind: &str, text: String| {
        let path = folder.join(format!("{name}.{kind}"));
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    seldon_tls::Files {
        prefix: name.to_owned(),
        ca: write("ca", ca_pem),
        crt: write("crt", leaf.pem()),
        key: write("key", key.serialize_pem()),
    }
}

fn stream<T>(messages: Vec<T>) -> Answer<Stream<T>> {
    let messages: Vec<_> = messages.into_iter().map(Ok).collect();
    Ok(tonic::Response::new(iter(messages)))
}

fn done<T: Default>() -> Answer<T> {
    Ok(tonic::Response::new(T::default()))
}

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("not part of this fake"))
}

#[async_trait]
impl Scheduler for Fake {
    type ServerStatusStream = Stream<ServerStatusResponse>;
    type ModelStatusStream = Stream<ModelStatusResponse>;
    type PipelineStatusStream = Stream<PipelineStatusResponse>;
    type ExperimentStatusStream = Stream<ExperimentStatusResponse>;
    type SubscribeServerStatusStream = Stream<ServerStatusResponse>;
    type SubscribeModelStatusStream = Stream<ModelStatusResponse>;
    type SubscribeExperimentStatusStream = Stream<ExperimentStatusResponse>;
    type SubscribePipelineStatusStream = Stream<PipelineStatusResponse>;
    type SubscribeControlPlaneStream = Stream<ControlPlaneResponse>;

    async fn load_model(
        &self,
        request: tonic::Request<LoadModelRequest>,
    ) -> Answer<LoadModelResponse> {
        let mut world = self.0.lock().unwrap();
        if let Some(status) = &world.refusal {
            return Err(status.clone());
        }
        world.loaded.extend(request.into_inner().model);
        done()
    }
    async fn unload_model(
        &self,
        request: tonic::Request<UnloadModelRequest>,
    ) -> Answer<UnloadModelResponse> {
        let name = request.into_inner().model.unwrap().name;
        self.0.lock().unwrap().unloaded.push(name);
        done()
    }
    async fn model_status(
        &self,
        request: tonic::Request<ModelStatusRequest>,
    ) -> Answer<Self::ModelStatusStream> {
        let mut world = self.0.lock().unwrap();
        world.asked.push(request.into_inner());
        let answer = if world.models.len() > 1 {
            world.models.pop_front()
        } else {
            world.models.front().cloned()
        };
        match answer {
            Some(models) => stream(models),
            None => Err(Status::failed_precondition("Failed to find model iris")),
        }
    }
    async fn server_status(
        &self,
        _: tonic::Request<ServerStatusRequest>,
    ) -> Answer<Self::ServerStatusStream> {
        stream(self.0.lock().unwrap().servers.clone())
    }
    async fn start_experiment(
        &self,
        request: tonic::Request<StartExperimentRequest>,
    ) -> Answer<StartExperimentResponse> {
        let mut world = self.0.lock().unwrap();
        if let Some(status) = &world.refusal {
            return Err(status.clone());
        }
        world.started.extend(request.into_inner().experiment);
        done()
    }
    async fn load_pipeline(
        &self,
        _: tonic::Request<LoadPipelineRequest>,
    ) -> Answer<LoadPipelineResponse> {
        absent()
    }
    async fn unload_pipeline(
        &self,
        _: tonic::Request<UnloadPipelineRequest>,
    ) -> Answer<UnloadPipelineResponse> {
        absent()
    }
    async fn stop_experiment(
        &self,
        request: tonic::Request<StopExperimentRequest>,
    ) -> Answer<StopExperimentResponse> {
        let name = request.into_inner().name;
        self.0.lock().unwrap().stopped.push(name);
        done()
    }
    async fn server_notify(
        &self,
        _: tonic::Request<ServerNotifyRequest>,
    ) -> Answer<ServerNotifyResponse> {
        absent()
    }
    async fn pipeline_status(
        &self,
        _: tonic::Request<PipelineStatusRequest>,
    ) -> Answer<Self::PipelineStatusStream> {
        absent()
    }
    async fn experiment_status(
        &self,
        _: tonic::Request<ExperimentStatusRequest>,
    ) -> Answer<Self::ExperimentStatusStream> {
        let mut world = self.0.lock().unwrap();
        let answer = if world.experiments.len() > 1 {
            world.experiments.pop_front()
        } else {
            world.experiments.front().cloned()
        };
        match answer {
            Some(experiment) => stream(vec![experiment]),
            None => Err(Status::failed_precondition("experiment is not known")),
        }
    }
    async fn scheduler_status(
        &self,
        _: tonic::Request<SchedulerStatusRequest>,
    ) -> Answer<SchedulerStatusResponse> {
        absent()
    }
    async fn subscribe_server_status(
        &self,
        _: tonic::Request<ServerSubscriptionRequest>,
    ) -> Answer<Self::SubscribeServerStatusStream> {
        absent()
    }
    async fn subscribe_model_status(
        &self,
        _: tonic::Request<ModelSubscriptionRequest>,
    ) -> Answer<Self::SubscribeModelStatusStream> {
        absent()
    }
    async fn subscribe_experiment_status(
        &self,
        _: tonic::Request<ExperimentSubscriptionRequest>,
    ) -> Answer<Self::SubscribeExperimentStatusStream> {
        absent()
    }
    async fn subscribe_pipeline_status(
        &self,
        _: tonic::Request<PipelineSubscriptionRequest>,
    ) -> Answer<Self::SubscribePipelineStatusStream> {
        absent()
    }
    async fn pipeline_status_event(
        &self,
        _: tonic::Request<chainer::PipelineUpdateStatusMessage>,
    ) -> Answer<chainer::PipelineUpdateStatusResponse> {
        absent()
    }
    async fn model_status_event(
        &self,
        _: tonic::Request<ModelUpdateStatusMessage>,
    ) -> Answer<ModelUpdateStatusResponse> {
        absent()
    }
    async fn subscribe_control_plane(
        &self,
        _: tonic::Request<ControlPlaneSubscriptionRequest>,
    ) -> Answer<Self::SubscribeControlPlaneStream> {
        absent()
    }
}

#[async_trait]
impl Introspect for Fake {
    async fn xds_status(
        &self,
        _: tonic::Request<intro::XdsStatusRequest>,
    ) -> Answer<intro::XdsStatusResponse> {
        let envoy = intro::Envoy {
            stream: 1,
            node_id: "test-id".to_owned(),
            address: "127.0.0.1:5".to_owned(),
            version: "1.36.0".to_owned(),
            connected: true,
            protocol: "delta".to_owned(),
            since_ms: 3500,
            acknowledged_generation: 7,
            types: vec![intro::ResourceTypeStatus {
                pending: 2,
                ..Default::default()
            }],
            rejections: vec![intro::Rejection {
                type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
                resource: "c1".to_owned(),
                reason: "bad".to_owned(),
                since_ms: 1,
            }],
            ..Default::default()
        };
        Ok(tonic::Response::new(intro::XdsStatusResponse {
            envoys: vec![envoy],
            generation: 8,
        }))
    }

    async fn explain_model(
        &self,
        request: tonic::Request<intro::ExplainModelRequest>,
    ) -> Answer<intro::ExplainModelResponse> {
        let server = intro::ServerVerdict {
            server: "mlserver".to_owned(),
            chosen: false,
            reason: "lacks capability triton".to_owned(),
            replicas: Vec::new(),
        };
        Ok(tonic::Response::new(intro::ExplainModelResponse {
            model: request.into_inner().model,
            state: "ScheduleFailed".to_owned(),
            reason: "no server fits".to_owned(),
            servers: vec![server],
            ..Default::default()
        }))
    }

    async fn explain_experiment(
        &self,
        _: tonic::Request<intro::ExplainExperimentRequest>,
    ) -> Answer<intro::ExplainExperimentResponse> {
        match self.0.lock().unwrap().explained.clone() {
            Some(explained) => Ok(tonic::Response::new(explained)),
            None => absent(),
        }
    }

    async fn explain_pipeline(
        &self,
        request: tonic::Request<intro::ExplainPipelineRequest>,
    ) -> Answer<intro::ExplainPipelineResponse> {
        let step = intro::StepVerdict {
            step: "tfsimple1".to_owned(),
            model_state: "ModelAvailable".to_owned(),
            gateway: "modelgateway-0".to_owned(),
            ..Default::default()
        };
        let worker = intro::WorkerVerdict {
            kind: "engine".to_owned(),
            name: "dataflow-engine-0".to_owned(),
            connected: true,
            version: 1,
            state: "ready".to_owned(),
        };
        Ok(tonic::Response::new(intro::ExplainPipelineResponse {
            pipeline: request.into_inner().pipeline,
            version: 1,
            state: "PipelineReady".to_owned(),
            reason: "created pipeline: 1/1 ready".to_owned(),
            gateway_state: "PipelineCreating".to_owned(),
            steps: vec![step],
            workers: vec![worker],
            ..Default::default()
        }))
    }

    async fn explain_route(
        &self,
        request: tonic::Request<intro::ExplainRouteRequest>,
    ) -> Answer<intro::ExplainRouteResponse> {
        let request = request.into_inner();
        let chance = |name: &str, percent| intro::RouteChance {
            name: name.to_owned(),
            version: format!("{name}_1"),
            percent,
        };
        let envoy = |stream, acknowledged, detail: &str| intro::RouteEnvoy {
            stream,
            address: format!("127.0.0.1:{stream}"),
            connected: true,
            acknowledged,
            detail: detail.to_owned(),
        };
        let answer = intro::ExplainRouteResponse {
            name: request.name.clone(),
            rule: "split".to_owned(),
            reason: "no header names a candidate".to_owned(),
            experiment: "experiment-sample".to_owned(),
            chances: vec![chance("iris", 75.0), chance("iris2", 25.0)],
            copies: vec![chance("iris3", 10.0)],
            envoys: vec![
                envoy(1, true, ""),
                envoy(2, false, "goes on with generation 6"),
            ],
        };
        self.0.lock().unwrap().routes_asked.push(request);
        Ok(tonic::Response::new(answer))
    }
}

/// One request that the fake data plane saw: first line and headers, body.
pub type Seen = (http::request::Parts, Vec<u8>);

/// What the data plane answers to each request.
pub type Reply = dyn Fn(&Seen) -> Response<Body> + Send + Sync;

/// Serves HTTP/1.1 and HTTP/2 on a free port; gives its address and the requests it saw.
pub async fn data_plane(reply: Box<Reply>) -> (String, Arc<Mutex<Vec<Seen>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (reply, log): (Arc<Reply>, _) = (reply.into(), seen.clone());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (reply, log) = (reply.clone(), log.clone());
            tokio::spawn(async move {
                let service = service_fn(|request: Request<Incoming>| {
                    let (reply, log) = (reply.clone(), log.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes().to_vec();
                        let seen = (head, body);
                        let response = reply(&seen);
                        log.lock().unwrap().push(seen);
                        Ok::<_, Infallible>(response)
                    }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder
                    .serve_connection(TokioIo::new(connection), service)
                    .await;
            });
        }
    });
    (address, seen)
}

pub fn body(text: impl Into<Vec<u8>>) -> Body {
    Body::new(Full::new(hyper::body::Bytes::from(text.into())))
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs the command; its home is `home` and its environment `vars` only.
pub async fn seldon(home: &Path, vars: &[(&str, &str)], words: &[&str]) -> Ran {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_seldon"));
    command
        .args(words)
        .env_clear()
        .env("HOME", home)
        .kill_on_drop(true);
    for (name, value) in vars {
        command.env(name, value);
    }
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran {
        code: status.code().unwrap_or(-1),
        out: text(stdout),
        err: text(stderr),
    }
}

/// The command in a home of its own, with a fake scheduler to talk to.
pub struct Bench {
    pub home: TempDir,
    pub host: String,
    pub fake: Fake,
}

impl Bench {
    pub async fn new(world: World) -> Self {
        let fake = Fake::new(world);
        let host = fake.serve().await;
        Self {
            home: TempDir::new().unwrap(),
            host,
            fake,
        }
    }

    pub async fn run(&self, words: &[&str]) -> Ran {
        let host = [("SELDON_SCHEDULE_HOST", self.host.as_str())];
        seldon(self.home.path(), &host, words).await
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}
