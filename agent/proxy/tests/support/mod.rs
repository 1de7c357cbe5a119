//! A proxy between real clients and a real inference server in this process.
#![allow(dead_code)]
use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use prometheus_client::{encoding::text, registry::Registry as MetricsRegistry};
use seldon_agent_proxy::{Identity, Lease, Limits, Metrics, Models, NotServed, Proxy, Upstream};
use seldon_grpc::inference::{
    grpc_inference_service_client::GrpcInferenceServiceClient,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
};
use seldon_proto::inference::*;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

pub type Body = BoxBody<Bytes, Infallible>;

/// The agent's registry: a fixed list of models, and what is in flight.
#[derive(Default)]
pub struct Registry {
    pub in_flight: Arc<AtomicUsize>,
    pub forgotten: Mutex<Vec<String>>,
}

struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Models for Registry {
    async fn acquire(&self, internal: &str) -> Result<Lease, NotServed> {
        match internal {
            "echo_1" | "iris_1" | "hang_1" | "stream_1" => {
                self.in_flight.fetch_add(1, Ordering::SeqCst);
                Ok(Lease::new(InFlight(self.in_flight.clone())))
            }
            "full_1" => Err(NotServed::Overloaded {
                retry_after: Duration::from_secs(7),
            }),
            "broken_1" => Err(NotServed::Failed("no artefact".into())),
            _ => Err(NotServed::Unknown),
        }
    }
}

/// What the inference server saw.
#[derive(Default)]
pub struct Seen {
    pub hanging: AtomicUsize,
    pub abandoned: AtomicUsize,
    pub changed: Notify,
    pub next_event: Notify,
    pub infer: Mutex<VecDeque<ModelInferRequest>>,
    pub metadata: Mutex<Option<tonic::metadata::MetadataMap>>,
}

impl Seen {
    /// A request that never ends; counts how many wait and how many were given up.
    async fn hang(self: Arc<Self>) {
        struct Hanging(Arc<Seen>);
        impl Drop for Hanging {
            fn drop(&mut self) {
                self.0.abandoned.fetch_add(1, Ordering::SeqCst);
            }
        }
        let _hanging = Hanging(self.clone());
        self.hanging.fetch_add(1, Ordering::SeqCst);
        std::future::pending::<()>().await;
    }
}

/// Waits until a condition holds, ten seconds at most.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let (mut tick, deadline) = (
        tokio::time::interval(Duration::from_millis(2)),
        Duration::from_secs(10),
    );
    let waited = tokio::time::timeout(deadline, async {
        while !holds() {
            tick.tick().await;
        }
    });
    assert!(waited.await.is_ok(), "not within ten seconds: {what}");
}

pub struct World {
    pub proxy: Proxy<Registry>,
    pub registry: Arc<Registry>,
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    pub shutdown: CancellationToken,
    pub serving: tokio::task::JoinHandle<()>,
    metrics: MetricsRegistry,
    client: Client<HttpConnector, Body>,
}

impl World {
    pub async fn start(limits: Limits) -> Self {
        let seen = Arc::new(Seen::default());
        let upstream = Upstream {
            http: rest_server(seen.clone()).await,
            grpc: grpc_server(seen.clone()).await,
        };
        Self::before(upstream, limits, seen).await
    }

    pub async fn before(upstream: Upstream, limits: Limits, seen: Arc<Seen>) -> Self {
        let mut metrics = MetricsRegistry::default();
        let identity = Identity {
            server: "mlserver".into(),
            replica: 0,
        };
        let registry = Arc::new(Registry::default());
        let proxy = Proxy::new(
            registry.clone(),
            upstream,
            limits,
            Metrics::new(&identity, &mut metrics),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (served, until) = (proxy.clone(), shutdown.clone());
        let serving = tokio::spawn(async move { served.serve(listener, None, until).await });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self {
            proxy,
            registry,
            address,
            seen,
            shutdown,
            serving,
            metrics,
            client,
        }
    }

    pub async fn send(
        &self,
        verb: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Body,
    ) -> Response<Incoming> {
        self.try_send(verb, path, fields, body).await.unwrap()
    }

    pub async fn try_send(
        &self,
        verb: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Body,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        let mut request = Request::builder()
            .method(verb)
            .uri(format!("http://{}{path}", self.address));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        self.client.request(request.body(body).unwrap()).await
    }

    /// Status, `x-seen` (method and path at the inference server) and body.
    pub async fn ask(
        &self,
        verb: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> (u16, String, String) {
        let response = self.send(verb, path, fields, text("{}")).await;
        let status = response.status().as_u16();
        let seen = response
            .headers()
            .get("x-seen")
            .map_or("", |seen| seen.to_str().unwrap())
            .to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, seen, String::from_utf8(body.to_vec()).unwrap())
    }

    pub async fn grpc(&self) -> GrpcInferenceServiceClient<Channel> {
        GrpcInferenceServiceClient::connect(format!("http://{}", self.address))
            .await
            .unwrap()
    }

    pub fn metrics(&self) -> String {
        let mut page = String::new();
        text::encode(&mut page, &self.metrics).unwrap();
        page
    }
}

pub fn text(text: &str) -> Body {
    Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed()
}

/// A gRPC request as Envoy sends it to the agent.
pub fn named<T>(internal: &'static str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request
        .metadata_mut()
        .insert("seldon-internal-model", internal.parse().unwrap());
    request
}

async fn rest_server(seen: Arc<Seen>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            let service = service_fn(move |request| answer(seen.clone(), request));
            tokio::spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

async fn answer(
    seen: Arc<Seen>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let (parts, body) = request.into_parts();
    let body: BoxBody<Bytes, hyper::Error> = match parts.uri.path() {
        "/v2/models/hang_1/infer" => {
            seen.hang().await;
            body.boxed()
        }
        "/v2/models/stream_1/infer_stream" => {
            let events = stream::unfold((seen.clone(), 0u32), |(seen, count)| async move {
                if count > 0 {
                    seen.next_event.notified().await;
                }
                Some((
                    Ok(Frame::data(Bytes::from(format!("data: {count}\n\n")))),
                    (seen, count + 1),
                ))
            });
            BodyExt::boxed(StreamBody::new(events.take(3)))
        }
        "/v2/models/echo_1/infer" => body.boxed(),
        "/v2/models/echo_1/generate" => {
            // Reads what it is sent only once it has answered with all of it.
            let whole = body.collect().await.unwrap().to_bytes();
            Full::new(whole).map_err(|never| match never {}).boxed()
        }
        _ => Full::new(Bytes::from_static(b"{\"ok\": true}"))
            .map_err(|never| match never {})
            .boxed(),
    };
    let mut response = Response::new(body);
    let fields = response.headers_mut();
    fields.insert("x-seen", HeaderValue::from_str(&line).unwrap());
    let names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
    fields.insert(
        "x-seen-headers",
        HeaderValue::from_str(&names.join(" ")).unwrap(),
    );
    if let Some(id) = parts.headers.get("x-own-request-id") {
        fields.insert("x-request-id", id.clone());
    }
    if let Some(id) = parts.headers.get("x-request-id") {
        fields.insert("x-seen-request-id", id.clone());
    }
    Ok(response)
}

async fn grpc_server(seen: Arc<Seen>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = GrpcInferenceServiceServer::new(Grpc(seen)).max_decoding_message_size(usize::MAX);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(async move {
        server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
    });
    address
}

struct Grpc(Arc<Seen>);

fn response(request: &ModelInferRequest) -> ModelInferResponse {
    let (model_name, model_version, id) = (
        request.model_name.clone(),
        request.model_version.clone(),
        request.id.clone(),
    );
    let raw_output_contents = request.raw_input_contents.clone();
    ModelInferResponse {
        model_name,
        model_version,
        id,
        raw_output_contents,
        ..Default::default()
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<ModelInferResponse, Status>> + Send>>;
type Answer<T> = Result<tonic::Response<T>, Status>;

#[tonic::async_trait]
impl GrpcInferenceService for Grpc {
    type ModelStreamInferStream = Answers;

    async fn server_live(
        &self,
        _: tonic::Request<ServerLiveRequest>,
    ) -> Answer<ServerLiveResponse> {
        Ok(tonic::Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: tonic::Request<ServerReadyRequest>,
    ) -> Answer<ServerReadyResponse> {
        Ok(tonic::Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_ready(
        &self,
        request: tonic::Request<ModelReadyRequest>,
    ) -> Answer<ModelReadyResponse> {
        let ModelReadyRequest { name, version } = request.into_inner();
        Ok(tonic::Response::new(ModelReadyResponse {
            ready: name == "iris_1" && version.is_empty(),
        }))
    }

    async fn server_metadata(
        &self,
        _: tonic::Request<ServerMetadataRequest>,
    ) -> Answer<ServerMetadataResponse> {
        Ok(tonic::Response::new(ServerMetadataResponse {
            name: "inner".into(),
            ..Default::default()
        }))
    }

    async fn model_metadata(
        &self,
        request: tonic::Request<ModelMetadataRequest>,
    ) -> Answer<ModelMetadataResponse> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        Ok(tonic::Response::new(ModelMetadataResponse {
            name,
            versions: vec![version],
            ..Default::default()
        }))
    }

    async fn model_infer(
        &self,
        request: tonic::Request<ModelInferRequest>,
    ) -> Answer<ModelInferResponse> {
        *self.0.metadata.lock().unwrap() = Some(request.metadata().clone());
        let request = request.into_inner();
        if request.model_name == "hang_1" {
            self.0.clone().hang().await;
        }
        if request.id == "fail" {
            return Err(Status::failed_precondition("asked to fail"));
        }
        let answer = response(&request);
        self.0.infer.lock().unwrap().push_back(request);
        Ok(tonic::Response::new(answer))
    }

    async fn model_stream_infer(
        &self,
        request: tonic::Request<tonic::Streaming<ModelInferRequest>>,
    ) -> Answer<Answers> {
        let answers = request
            .into_inner()
            .map(|request| request.map(|request| response(&request)));
        Ok(tonic::Response::new(Box::pin(answers)))
    }

    async fn repository_index(
        &self,
        _: tonic::Request<RepositoryIndexRequest>,
    ) -> Answer<RepositoryIndexResponse> {
        Ok(tonic::Response::new(Default::default()))
    }

    async fn repository_model_load(
        &self,
        _: tonic::Request<RepositoryModelLoadRequest>,
    ) -> Answer<RepositoryModelLoadResponse> {
        Ok(tonic::Response::new(Default::default()))
    }

    async fn repository_model_unload(
        &self,
        _: tonic::Request<RepositoryModelUnloadRequest>,
    ) -> Answer<RepositoryModelUnloadResponse> {
        Ok(tonic::Response::new(Default::default()))
    }
}

/// A server that counts the bytes it is sent over either protocol and then answers.
pub async fn sink() -> (String, watch::Receiver<u64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = count.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let count = count.clone();
                async move {
                    let mut body = request.into_body();
                    while let Some(Ok(frame)) = body.frame().await {
                        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                        count.send_modify(|count| *count += bytes);
                    }
                    let answer = Response::builder()
                        .header("grpc-status", "0")
                        .body(String::new());
                    Ok::<_, Infallible>(answer.unwrap())
                }
            });
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (address, counted)
}
