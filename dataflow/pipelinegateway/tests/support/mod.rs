//! A gateway between clients and an embedded broker, with a scheduler and an Envoy that do as told; this plays the engine.
use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use prost::Message as _;
use seldon_broker::{Broker, Config, Running};
use seldon_grpc::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use seldon_kafka::{Admin, Consumer, Position, Producer, Settings};
use seldon_pipelinegateway::{Listeners, Options, run};
use seldon_proto::{
    chainer::{PipelineUpdateStatusMessage, PipelineUpdateStatusResponse},
    inference::*,
    scheduler::{
        Pipeline, PipelineOutput, PipelineStatusResponse, PipelineStep,
        PipelineSubscriptionRequest, PipelineWithState,
    },
};
use seldon_records::{Contents, Names, Outgoing, Record, decode_request, header};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, server::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

pub const PARTITIONS: i32 = 3;
pub const PATIENCE: Duration = Duration::from_secs(20);

type Orders = UnboundedReceiver<Result<PipelineStatusResponse, Status>>;

/// What the fakes know and saw.
#[derive(Default)]
struct Fakes {
    orders: Mutex<Option<Orders>>,
    subscriptions: Mutex<Vec<PipelineSubscriptionRequest>>,
    acks: Mutex<Option<UnboundedSender<PipelineUpdateStatusMessage>>>,
    /// Models, and whether they are ready.
    models: Mutex<HashMap<String, bool>>,
    asked: Mutex<Vec<String>>,
}

pub struct Scene {
    pub broker: Option<Running>,
    pub settings: Settings,
    pub names: Names,
    pub producer: Producer,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub metrics: SocketAddr,
    pub health: SocketAddr,
    pub stop: CancellationToken,
    pub gateway: Option<JoinHandle<anyhow::Result<()>>>,
    /// Records as the engine saw them.
    pub seen: UnboundedReceiver<Record>,
    fakes: Arc<Fakes>,
    orders: UnboundedSender<Result<PipelineStatusResponse, Status>>,
    acks: UnboundedReceiver<PipelineUpdateStatusMessage>,
    engine: Arc<Engine>,
    end: CancellationToken,
    client: Client<HttpConnector, Full<Bytes>>,
}

struct Engine {
    consumer: Consumer,
    producer: Producer,
    names: Names,
    seen: UnboundedSender<Record>,
    reads: Mutex<HashSet<String>>,
}

pub struct Answer {
    pub status: u16,
    pub fields: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub fn error(&self) -> String {
        self.json()["error"].as_str().expect("an error").to_owned()
    }
}

pub fn pipeline(name: &str, version: u32) -> Pipeline {
    Pipeline {
        name: name.into(),
        uid: format!("{name}-{version}"),
        version,
        steps: vec![PipelineStep {
            name: "step".into(),
            ..Default::default()
        }],
        output: Some(PipelineOutput {
            steps: vec!["step".into()],
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Scene {
    pub async fn new(flags: &[&str]) -> Self {
        let broker = Broker::start(Config::default()).await.expect("a broker");
        let kafka = format!(
            r#"{{"bootstrap.servers":"127.0.0.1:{}","topics":{{"numPartitions":{PARTITIONS},"replicationFactor":1}}}}"#,
            broker.port()
        );
        let settings = Settings::from_json(&kafka).expect("settings");
        let names = settings.names("").expect("names");
        let end = CancellationToken::new();
        let fakes = Arc::new(Fakes::default());
        let (orders, receiver) = unbounded_channel();
        *fakes.orders.lock().unwrap() = Some(receiver);
        let (sender, acks) = unbounded_channel();
        *fakes.acks.lock().unwrap() = Some(sender);
        let fake = serve(fakes.clone(), end.clone()).await.to_string();
        let port = fake.rsplit(':').next().unwrap().to_owned();
        let arguments = [
            "gateway",
            "--host",
            "127.0.0.1",
            "--http-port",
            "0",
            "--grpc-port",
            "0",
            "--metrics-port",
            "0",
            "--health-probe-port",
            "0",
            "--scheduler-host",
            "127.0.0.1",
            "--scheduler-plaintxt-port",
            &port,
            "--envoy-host",
            "127.0.0.1",
            "--envoy-port",
            &port,
            "--pod-name",
            "gateway-0",
            "--partition-refresh-seconds",
            "1",
            "--drain-seconds",
            "3",
        ];
        let options = Options::parse_from(arguments.iter().chain(flags));
        let listeners = Listeners::bind(&options).await.expect("ports");
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let (http, grpc) = (address(&listeners.http), address(&listeners.grpc));
        let (metrics, health) = (address(&listeners.metrics), address(&listeners.health));
        let stop = CancellationToken::new();
        let gateway = tokio::spawn(run(options, settings.clone(), listeners, stop.clone()));
        let (seen_sender, seen) = unbounded_channel();
        let producer = Producer::new(&settings).expect("a producer");
        let engine = Arc::new(Engine {
            consumer: Consumer::new(&settings, "engine", false).expect("a consumer"),
            producer: producer.clone(),
            names: names.clone(),
            seen: seen_sender,
            reads: Mutex::default(),
        });
        let running = engine.clone();
        let ended = end.clone();
        tokio::spawn(async move { ended.run_until_cancelled(running.run()).await });
        Self {
            broker: Some(broker),
            settings,
            names,
            producer,
            http,
            grpc,
            metrics,
            health,
            stop,
            gateway: Some(gateway),
            seen,
            fakes,
            orders,
            acks,
            engine,
            end,
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    fn order(&self, pipeline: &Pipeline, operation: i32) {
        let order = PipelineStatusResponse {
            pipeline_name: pipeline.name.clone(),
            versions: vec![PipelineWithState {
                pipeline: Some(pipeline.clone()),
                state: None,
            }],
            timestamp: 7,
            operation,
        };
        self.orders.send(Ok(order)).expect("a subscriber");
    }

    /// Has the gateway serve a pipeline, which the engine runs as its name says.
    pub async fn create(&mut self, pipeline: &Pipeline) {
        let topics = [
            self.names.pipeline_inputs(&pipeline.name),
            self.names.pipeline_outputs(&pipeline.name),
        ];
        self.topics(&topics, &topics[0]).await;
        self.order(pipeline, 1);
        let ack = self.ack().await;
        let update = ack.update.expect("an update");
        assert!(ack.success, "{}", ack.reason);
        assert_eq!(
            (update.op, update.version, update.timestamp),
            (1, pipeline.version, 7)
        );
        assert_eq!(
            (update.pipeline, update.uid),
            (pipeline.name.clone(), pipeline.uid.clone())
        );
    }

    /// Makes topics and has the engine read one of them.
    pub async fn topics(&self, topics: &[String], inputs: &str) {
        let admin = Admin::new(&self.settings).expect("admin");
        admin.create(topics, false).await.expect("topics");
        let count = admin
            .partitions(inputs)
            .await
            .expect("asked")
            .expect("exists");
        if !self.engine.reads.lock().unwrap().insert(inputs.to_owned()) {
            return;
        }
        let all = (0..count).map(|at| (Arc::from(inputs), at, Position::Beginning));
        self.engine
            .consumer
            .assign(&all.collect::<Vec<_>>())
            .expect("assigned");
    }

    pub fn delete(&self, pipeline: &Pipeline) {
        self.order(pipeline, 2);
    }

    pub async fn ack(&mut self) -> PipelineUpdateStatusMessage {
        let ack = tokio::time::timeout(PATIENCE, self.acks.recv()).await;
        ack.expect("an ack in time").expect("an ack")
    }

    pub fn try_ack(&mut self) -> Option<PipelineUpdateStatusMessage> {
        self.acks.try_recv().ok()
    }

    pub fn subscription(&self) -> PipelineSubscriptionRequest {
        self.fakes.subscriptions.lock().unwrap()[0].clone()
    }

    pub fn model(&self, name: &str, ready: bool) {
        self.fakes.models.lock().unwrap().insert(name.into(), ready);
    }

    pub async fn saw(&mut self) -> Record {
        let record = tokio::time::timeout(PATIENCE, self.seen.recv()).await;
        record.expect("a record in time").expect("a record")
    }

    pub async fn call(&self, request: http::request::Builder, body: impl Into<Bytes>) -> Answer {
        let request = request.body(Full::new(body.into())).expect("a request");
        let sent = tokio::time::timeout(PATIENCE, self.client.request(request)).await;
        let (parts, body) = sent
            .expect("an answer in time")
            .expect("an answer")
            .into_parts();
        Answer {
            status: parts.status.as_u16(),
            fields: parts.headers,
            body: body.collect().await.expect("a body").to_bytes(),
        }
    }

    /// A request to a pipeline over REST.
    pub async fn infer(
        &self,
        name: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let uri = format!("http://{}/v2/pipelines/{name}/infer", self.http);
        let mut request = Request::post(uri).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.call(request, body).await
    }

    pub async fn get(&self, address: SocketAddr, path: &str) -> Answer {
        self.call(Request::get(format!("http://{address}{path}")), "")
            .await
    }

    pub async fn rpc(&self, address: SocketAddr) -> GrpcInferenceServiceClient<Channel> {
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        GrpcInferenceServiceClient::new(endpoint.connect().await.expect("connected"))
    }

    /// Waits for a condition.
    pub async fn until<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let asked = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(found) = ask().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        asked
            .await
            .unwrap_or_else(|_| panic!("{what} did not come"))
    }

    pub async fn end(mut self) {
        self.stop.cancel();
        if let Some(gateway) = self.gateway.take() {
            gateway.await.expect("no panic").expect("ended well");
        }
        self.end.cancel();
        if let Some(broker) = self.broker.take() {
            broker.stop().await;
        }
    }
}

impl Engine {
    async fn run(&self) {
        loop {
            let Ok(record) = self.consumer.recv().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let _ = self.seen.send(record.clone());
            self.answer(record).await;
        }
    }

    async fn answer(&self, record: Record) {
        let topic = self.names.parse(&record.topic).expect("a topic of ours");
        let (name, outputs) = match topic {
            seldon_records::Topic::PipelineInputs(name) => {
                let outputs = self.names.pipeline_outputs(&name);
                (name, outputs)
            }
            seldon_records::Topic::ModelInputs(name) => {
                let outputs = self.names.model_outputs(&name);
                (name, outputs)
            }
            other => panic!("{other:?} is not read here"),
        };
        let mut headers = record.headers.clone();
        headers.set(header::PIPELINE_VERSION, "1");
        headers.push(header::ROUTE, ":step_1:");
        headers.push(header::ROUTE, ":other_1:");
        let mut answer = Outgoing {
            topic: outputs.into(),
            partition: Some(record.partition),
            key: record.key.clone(),
            value: None,
            headers,
        };
        match name.as_str() {
            "hang" => return,
            "fail" => {
                answer.headers.set(header::ERROR, "step");
                let body = String::from_utf8_lossy(&record.value.clone().unwrap()).into_owned();
                if body.contains("typed") {
                    answer.headers.set(header::STATUS, "503");
                    answer.headers.set(header::GRPC_STATUS, "14");
                }
                answer.value = Some("it broke".into());
            }
            "broken" => {
                answer.topic = self.names.errors().into();
                answer.partition = None;
                answer.headers.set(header::ERROR, "broken");
                answer.headers.set(header::STATUS, "404");
                answer.value = Some("no such model".into());
            }
            "garbage" => answer.value = Some(Bytes::from_static(b"\xff\xff\xff")),
            _ => {
                let value = record.value.clone().unwrap_or_default();
                let mut request = decode_request(&record.headers, &value).expect("a request");
                request.id.clear();
                let response = Contents::Request(request).into_response();
                answer.value = Some(response.encode_to_vec().into());
            }
        }
        self.producer.send(answer.clone()).await.expect("written");
        if name == "echo" {
            answer.headers.set(header::REPEAT, "1");
            self.producer.send(answer).await.expect("written");
        }
    }
}

/// The scheduler and Envoy, on one port.
async fn serve(fakes: Arc<Fakes>, end: CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Some(Ok((stream, _))) = end.run_until_cancelled(listener.accept()).await {
            let fakes = fakes.clone();
            let service = service_fn(move |request| {
                let fakes = fakes.clone();
                async move { Ok::<_, Infallible>(answer(fakes, request).await) }
            });
            let end = end.clone();
            tokio::spawn(async move {
                let http = auto::Builder::new(TokioExecutor::new());
                let connection = http.serve_connection(TokioIo::new(stream), service);
                let _ = end.run_until_cancelled(connection).await;
            });
        }
    });
    address
}

async fn answer(fakes: Arc<Fakes>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match path.rsplit('/').next().unwrap() {
        "SubscribePipelineStatus" => {
            let service = tower::service_fn(move |request: tonic::Request<_>| {
                fakes
                    .subscriptions
                    .lock()
                    .unwrap()
                    .push(request.into_inner());
                let orders = fakes.orders.lock().unwrap().take();
                std::future::ready(match orders {
                    Some(orders) => Ok(tonic::Response::new(UnboundedReceiverStream::new(orders))),
                    None => Err(Status::unavailable("once only")),
                })
            });
            let codec =
                ProstCodec::<PipelineStatusResponse, PipelineSubscriptionRequest>::default();
            Grpc::new(codec).server_streaming(service, request).await
        }
        "PipelineStatusEvent" => {
            let service = tower::service_fn(move |request: tonic::Request<_>| {
                if let Some(acks) = &*fakes.acks.lock().unwrap() {
                    let _ = acks.send(request.into_inner());
                }
                std::future::ready(Ok(tonic::Response::new(PipelineUpdateStatusResponse {})))
            });
            let codec =
                ProstCodec::<PipelineUpdateStatusResponse, PipelineUpdateStatusMessage>::default();
            Grpc::new(codec).unary(service, request).await
        }
        "ModelReady" => {
            let service = tower::service_fn(move |request: tonic::Request<ModelReadyRequest>| {
                let asked = request
                    .metadata()
                    .get("seldon-model")
                    .unwrap()
                    .to_str()
                    .unwrap();
                fakes.asked.lock().unwrap().push(asked.to_owned());
                let ready = fakes.models.lock().unwrap().get(asked).copied();
                std::future::ready(match ready {
                    Some(ready) => Ok(tonic::Response::new(ModelReadyResponse { ready })),
                    None => Err(Status::not_found("no such model")),
                })
            });
            let codec = ProstCodec::<ModelReadyResponse, ModelReadyRequest>::default();
            Grpc::new(codec).unary(service, request).await
        }
        "ModelMetadata" => {
            let service = tower::service_fn(move |_: tonic::Request<ModelMetadataRequest>| {
                let tensor = model_metadata_response::TensorMetadata {
                    name: "x".into(),
                    datatype: "FP32".into(),
                    shape: vec![-1, 4],
                    ..Default::default()
                };
                let metadata = ModelMetadataResponse {
                    inputs: vec![tensor.clone()],
                    outputs: vec![tensor],
                    ..Default::default()
                };
                std::future::ready(Ok(tonic::Response::new(metadata)))
            });
            let codec = ProstCodec::<ModelMetadataResponse, ModelMetadataRequest>::default();
            Grpc::new(codec).unary(service, request).await
        }
        _ => Status::unimplemented(path).into_http(),
    }
}
