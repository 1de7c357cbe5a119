//! A scheduler and an inference server for tests, and a whole agent between them.
#![allow(dead_code, reason = "each test uses its part")]
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use seldon_agent::{Listeners, Options};
use seldon_grpc::agent::agent_service_server::{AgentService, AgentServiceServer};
use seldon_grpc::inference::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer,
};
use seldon_proto::agent::model_operation_message::Operation;
use seldon_proto::agent::*;
use seldon_proto::inference::*;
use seldon_proto::scheduler::{MetaData, Model, ModelSpec};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// Waits for something that can be seen.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A server on a runtime of its own, so that it can die with all its connections, as a killed process does.
pub struct Process(Option<tokio::runtime::Runtime>);

impl Process {
    fn start(listener: std::net::TcpListener, router: tonic::transport::server::Router) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            router
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        });
        Self(Some(runtime))
    }

    pub fn kill(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Default)]
pub struct Seen {
    pub subscriptions: Vec<AgentSubscribeRequest>,
    pub events: Vec<ModelEventMessage>,
    /// As the agent said last.
    pub usage: Option<ReplicaUsage>,
    pub drains: Vec<AgentDrainRequest>,
    /// What crossed a threshold.
    pub triggers: Vec<ModelScalingTriggerMessage>,
    orders: Option<mpsc::UnboundedSender<Result<ModelOperationMessage, Status>>>,
}

/// A scheduler that does what a test says.
#[derive(Clone, Default)]
pub struct Scheduler {
    pub seen: Arc<Mutex<Seen>>,
}

impl Scheduler {
    pub fn order(&self, operation: Operation, version: &ModelVersion) {
        self.send(ModelOperationMessage {
            operation: operation.into(),
            model_version: Some(version.clone()),
            ..Default::default()
        });
    }

    /// Orders a load of a model that is scaled: to rest, or not.
    pub fn keep(&self, version: &ModelVersion, resting: bool) {
        self.send(ModelOperationMessage {
            operation: Operation::LoadModel.into(),
            model_version: Some(version.clone()),
            autoscaling_enabled: true,
            resting,
        });
    }

    fn send(&self, order: ModelOperationMessage) {
        self.seen
            .lock()
            .unwrap()
            .orders
            .as_ref()
            .expect("an agent")
            .send(Ok(order))
            .unwrap();
    }

    /// Ends the stream of the last agent.
    pub fn hang_up(&self) {
        self.seen.lock().unwrap().orders = None;
    }

    pub async fn subscription(&self, number: usize) -> AgentSubscribeRequest {
        until("a subscription", async || {
            self.seen.lock().unwrap().subscriptions.get(number).cloned()
        })
        .await
    }

    /// The next event of a model that no earlier call returned.
    pub async fn event(&self, model: &str) -> ModelEventMessage {
        until(&format!("an event of {model}"), async || {
            let mut seen = self.seen.lock().unwrap();
            let index = seen
                .events
                .iter()
                .position(|event| event.model_name == model)?;
            Some(seen.events.remove(index))
        })
        .await
    }

    pub fn start(&self, listener: std::net::TcpListener) -> Process {
        let service = AgentServiceServer::new(self.clone());
        Process::start(listener, Server::builder().add_service(service))
    }
}

#[tonic::async_trait]
impl AgentService for Scheduler {
    async fn agent_event(
        &self,
        request: Request<ModelEventMessage>,
    ) -> Result<Response<ModelEventResponse>, Status> {
        let event = request.into_inner();
        let mut seen = self.seen.lock().unwrap();
        match event.usage {
            Some(usage) => seen.usage = Some(usage),
            None => seen.events.push(event),
        }
        Ok(Response::new(ModelEventResponse {}))
    }

    type SubscribeStream =
        Pin<Box<dyn Stream<Item = Result<ModelOperationMessage, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<AgentSubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (orders, receiver) = mpsc::unbounded_channel();
        let mut seen = self.seen.lock().unwrap();
        seen.orders = Some(orders);
        seen.subscriptions.push(request.into_inner());
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            receiver,
        ))))
    }

    async fn model_scaling_trigger(
        &self,
        request: Request<Streaming<ModelScalingTriggerMessage>>,
    ) -> Result<Response<ModelScalingTriggerResponse>, Status> {
        let mut triggers = request.into_inner();
        while let Some(trigger) = triggers.message().await? {
            self.seen.lock().unwrap().triggers.push(trigger);
        }
        Ok(Response::new(ModelScalingTriggerResponse {}))
    }

    async fn agent_drain(
        &self,
        request: Request<AgentDrainRequest>,
    ) -> Result<Response<AgentDrainResponse>, Status> {
        self.seen.lock().unwrap().drains.push(request.into_inner());
        Ok(Response::new(AgentDrainResponse { success: true }))
    }
}

#[derive(Default)]
pub struct Memory {
    pub ready: BTreeSet<String>,
    pub loads: HashMap<String, usize>,
    pub unloads: HashMap<String, usize>,
    /// Models whose load never ends.
    pub hung: BTreeSet<String>,
    /// Set: the next load of this model succeeds, and the server is found restarted right after it, empty.
    pub restarts_after: Option<String>,
    /// Models whose load fails.
    pub broken: BTreeSet<String>,
    /// Models that it does not let go.
    pub kept: BTreeSet<String>,
    /// How long it takes to answer a request.
    pub thinks: Duration,
    /// The most models that were in memory at a time.
    pub most: usize,
}

/// An inference server that keeps names. It reads its repository as MLServer does: by the settings' name.
#[derive(Clone)]
pub struct Inference {
    pub memory: Arc<Mutex<Memory>>,
    pub models: PathBuf,
}

impl Inference {
    pub fn loads(&self, internal: &str) -> usize {
        self.memory
            .lock()
            .unwrap()
            .loads
            .get(internal)
            .copied()
            .unwrap_or(0)
    }

    pub fn unloads(&self, internal: &str) -> usize {
        self.memory
            .lock()
            .unwrap()
            .unloads
            .get(internal)
            .copied()
            .unwrap_or(0)
    }

    pub fn is_ready(&self, internal: &str) -> bool {
        self.memory.lock().unwrap().ready.contains(internal)
    }

    pub fn start(&self, listener: std::net::TcpListener) -> Process {
        let service = GrpcInferenceServiceServer::new(self.clone());
        Process::start(listener, Server::builder().add_service(service))
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_ready(
        &self,
        _: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        Ok(Response::new(ModelReadyResponse { ready: true }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse::default()))
    }

    async fn model_metadata(
        &self,
        _: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        Ok(Response::new(ModelMetadataResponse::default()))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let name = request.into_inner().model_name;
        let thinks = self.memory.lock().unwrap().thinks;
        for pause in [Duration::ZERO, thinks] {
            tokio::time::sleep(pause).await;
            if !self.is_ready(&name) {
                return Err(Status::not_found(format!("Model {name} not found")));
            }
        }
        Ok(Response::new(ModelInferResponse {
            model_name: name,
            ..Default::default()
        }))
    }

    type ModelStreamInferStream =
        Pin<Box<dyn Stream<Item = Result<ModelInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let answers = request.into_inner().map(|message| {
            message.map(|message| ModelInferResponse {
                model_name: message.model_name,
                ..Default::default()
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn repository_index(
        &self,
        _: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let index = |name: &String| repository_index_response::ModelIndex {
            name: name.clone(),
            // As MLServer writes it under Python 3.11.
            state: "State.READY".into(),
            ..Default::default()
        };
        let models = self
            .memory
            .lock()
            .unwrap()
            .ready
            .iter()
            .map(index)
            .collect();
        Ok(Response::new(RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        let name = request.into_inner().model_name;
        let hung = {
            let mut memory = self.memory.lock().unwrap();
            *memory.loads.entry(name.clone()).or_default() += 1;
            if memory.broken.contains(&name) {
                return Err(Status::internal("unpickling failed"));
            }
            memory.hung.contains(&name)
        };
        if hung {
            std::future::pending::<()>().await;
        }
        let settings =
            std::fs::read_to_string(self.models.join(&name).join("1/model-settings.json"))
                .map_err(|_| Status::not_found(format!("Model {name} not found")))?;
        let settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
        assert_eq!(settings["name"], name.as_str());
        let mut memory = self.memory.lock().unwrap();
        if memory.restarts_after.as_ref() == Some(&name) {
            memory.restarts_after = None;
            memory.ready.clear();
        } else {
            memory.ready.insert(name);
            memory.most = memory.most.max(memory.ready.len());
        }
        Ok(Response::new(RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        let name = request.into_inner().model_name;
        let mut memory = self.memory.lock().unwrap();
        *memory.unloads.entry(name.clone()).or_default() += 1;
        if memory.kept.contains(&name) {
            return Err(Status::internal("it is held"));
        }
        if memory.ready.remove(&name) {
            Ok(Response::new(RepositoryModelUnloadResponse {}))
        } else {
            Err(Status::not_found("Model not found"))
        }
    }
}

/// rclone from SELDON_RCLONE or the search path: the project's set-up installs it.
pub fn rclone() -> PathBuf {
    std::env::var_os("SELDON_RCLONE").map_or_else(|| "rclone".into(), PathBuf::from)
}

pub fn bind(port: u16) -> std::io::Result<std::net::TcpListener> {
    // Tokio's listener may take a port whose old connections linger.
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    socket.listen(1024)?.into_std()
}

/// Both servers, an artefact store and an agent between them.
pub struct World {
    pub folder: tempfile::TempDir,
    pub scheduler: Scheduler,
    pub scheduler_port: u16,
    scheduler_process: Process,
    pub inference: Inference,
    pub inference_port: u16,
    inference_process: Process,
}

impl World {
    /// The remote `gs` is a local folder with the sklearn artefact `seldon-models/iris`.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let iris = root.join("store/seldon-models/iris");
        std::fs::create_dir_all(&iris).unwrap();
        std::fs::write(iris.join("model.joblib"), "weights").unwrap();
        std::fs::create_dir_all(root.join("store/seldon-models/empty/inner")).unwrap();
        std::fs::create_dir_all(root.join("config")).unwrap();
        let remote = serde_json::json!({"name": "gs", "type": "alias", "parameters": {"remote": root.join("store")}});
        let config = serde_json::json!({"rclone": {"config": [remote.to_string()]}});
        std::fs::write(root.join("config/agent.json"), config.to_string()).unwrap();
        let (scheduler, inference) = (
            Scheduler::default(),
            Inference {
                memory: Arc::default(),
                models: root.join("agent/models"),
            },
        );
        let (scheduler_listener, inference_listener) = (bind(0).unwrap(), bind(0).unwrap());
        let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
        Self {
            scheduler_port: port(&scheduler_listener),
            scheduler_process: scheduler.start(scheduler_listener),
            scheduler,
            inference_port: port(&inference_listener),
            inference_process: inference.start(inference_listener),
            inference,
            folder,
        }
    }

    pub fn kill_scheduler(&mut self) {
        self.scheduler_process.kill();
        self.scheduler.hang_up();
    }

    /// Kills the scheduler and starts a new one on the same port.
    pub async fn restart_scheduler(&mut self) {
        self.kill_scheduler();
        let listener = until("the scheduler's port", async || {
            bind(self.scheduler_port).ok()
        })
        .await;
        self.scheduler_process = self.scheduler.start(listener);
    }

    /// Kills the inference server and with it what it held.
    pub fn kill_inference(&mut self) {
        self.inference_process.kill();
        self.inference.memory.lock().unwrap().ready.clear();
    }

    pub async fn revive_inference(&mut self) {
        let listener = until("the inference port", async || {
            bind(self.inference_port).ok()
        })
        .await;
        self.inference_process = self.inference.start(listener);
    }

    pub async fn agent(&self, more: &[&str]) -> Agent {
        let root = self.folder.path();
        let path = |name: &str| root.join(name).display().to_string();
        let mut arguments: Vec<String> =
            vec!["seldon-agent".into(), "--agent-host=127.0.0.1".into()];
        arguments.push(format!("--agent-folder={}", path("agent")));
        arguments.push(format!("--config-path={}", path("config")));
        arguments.push(format!("--allowed-local-roots={}", path("store")));
        arguments.push(format!("--rclone-binary={}", rclone().display()));
        arguments.push("--scheduler-host=127.0.0.1".into());
        arguments.push(format!("--scheduler-port={}", self.scheduler_port));
        arguments.push("--inference-host=127.0.0.1".into());
        arguments.push(format!("--inference-grpc-port={}", self.inference_port));
        for flag in [
            "reverse-proxy-http",
            "reverse-proxy-grpc",
            "debug-grpc",
            "metrics",
            "drainer",
            "readiness",
        ] {
            arguments.push(format!("--{flag}-port=0"));
        }
        for default in [
            "--memory-bytes=1000",
            "--unload-grace-period-seconds=0",
            "--download-retry-seconds=1",
        ] {
            let (flag, _) = default.split_at(default.find('=').unwrap() + 1);
            if !more.iter().any(|argument| argument.starts_with(flag)) {
                arguments.push(default.into());
            }
        }
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let options = Options::parse_from(arguments);
        let listeners = Listeners::bind(&options).await.unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let (proxy, readiness, drainer) = (
            port(&listeners.rest),
            port(&listeners.readiness),
            port(&listeners.drainer),
        );
        let (debug, metrics) = (port(&listeners.debug), port(&listeners.metrics));
        let (stop, now) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(seldon_agent::run(
            options,
            listeners,
            stop.clone(),
            now.clone(),
        ));
        Agent {
            proxy,
            readiness,
            drainer,
            debug,
            metrics,
            stop,
            now,
            task,
        }
    }

    /// The installed folder of a model.
    pub fn installed(&self, internal: &str) -> PathBuf {
        self.folder.path().join("agent/models").join(internal)
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }
}

pub struct Agent {
    pub proxy: u16,
    pub readiness: u16,
    pub drainer: u16,
    pub debug: u16,
    pub metrics: u16,
    pub stop: CancellationToken,
    pub now: CancellationToken,
    pub task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    /// Waits until it says that it is not ready.
    pub async fn unready(&self) {
        until("not ready", async || {
            (get(self.readiness, "/ready").await.0 == 503).then_some(())
        })
        .await;
    }

    /// Ends it as a crash would.
    pub async fn kill(self) {
        self.task.abort();
        let ended = self.task.await;
        assert!(ended.is_err_and(|error| error.is_cancelled()));
    }

    pub async fn end(self) {
        self.stop.cancel();
        self.now.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Asks the model over gRPC as Envoy does; the name that answered, or the code.
    pub async fn infer(&self, internal: &str) -> Result<String, tonic::Code> {
        use seldon_grpc::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
        let mut client =
            GrpcInferenceServiceClient::connect(format!("http://127.0.0.1:{}", self.proxy))
                .await
                .unwrap();
        let mut request = Request::new(ModelInferRequest {
            model_name: "any".into(),
            ..Default::default()
        });
        request
            .metadata_mut()
            .insert("seldon-internal-model", internal.parse().unwrap());
        request
            .metadata_mut()
            .insert("seldon-model", "any".parse().unwrap());
        client
            .model_infer(request)
            .await
            .map(|answer| answer.into_inner().model_name)
            .map_err(|status| status.code())
    }
}

/// `GET` on loopback: status and body.
pub async fn get(port: u16, path: &str) -> (u16, String) {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::TokioIo;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", "agent")
        .body(Empty::<hyper::body::Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// The sum of a metric over its series, as the agent shows it.
pub async fn metric(agent: &Agent, name: &str) -> f64 {
    let text = get(agent.metrics, "/metrics").await.1;
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        // Not a name that begins like it; a counter has a suffix of its own.
        let rest = rest.strip_prefix("_total").unwrap_or(rest);
        rest.starts_with('{')
            .then(|| rest.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
    });
    values.sum()
}

pub fn model(name: &str, version: u32, uri: &str) -> ModelVersion {
    ModelVersion {
        model: Some(Model {
            meta: Some(MetaData {
                name: name.into(),
                ..Default::default()
            }),
            model_spec: Some(ModelSpec {
                uri: uri.into(),
                requirements: vec!["sklearn".into()],
                memory_bytes: Some(100),
                ..Default::default()
            }),
            ..Default::default()
        }),
        version,
    }
}

pub fn contents(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            text.push_str(&contents(&path));
        } else {
            text.push_str(&String::from_utf8_lossy(
                &std::fs::read(&path).unwrap_or_default(),
            ));
        }
    }
    text
}
