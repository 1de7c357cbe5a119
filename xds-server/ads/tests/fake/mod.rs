//! A server on a socket and an Envoy that does as it is told.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::{
        protobuf::{Struct, Value, value::Kind},
        rpc::Status,
    },
};
use seldon_ads::{Change, Engine, Progress, Settings};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::Streaming;

pub const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const SRDS: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";
pub const ECDS: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";

const PATIENCE: Duration = Duration::from_secs(10);

pub fn settings() -> Settings {
    Settings {
        order: vec![CDS, EDS, LDS, SRDS, ECDS],
        tailor: None,
        lag: Duration::from_secs(60),
        lease: Duration::ZERO,
    }
}

/// The body names the resource, since the state of the world has no names of its own.
pub fn put(type_url: &'static str, name: &str, value: &str) -> Change {
    Change::Put {
        type_url,
        name: Arc::from(name),
        body: format!("{name}={value}").into(),
    }
}

pub fn remove(type_url: &'static str, name: &str) -> Change {
    Change::Remove {
        type_url,
        name: Arc::from(name),
    }
}

pub struct Server {
    pub engine: Engine,
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An engine that is open, on a port of its own.
pub async fn server(settings: Settings) -> Server {
    let server = closed_server(settings).await;
    server.engine.open();
    server
}

pub async fn closed_server(settings: Settings) -> Server {
    let engine = Engine::new(settings);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = engine.service();
    let task = tokio::spawn(async move {
        let server = tonic::transport::Server::builder().add_service(service);
        let incoming = TcpListenerStream::new(listener);
        server.serve_with_incoming(incoming).await.unwrap();
    });
    Server {
        engine,
        address,
        task,
    }
}

/// Waits until the progress of all Envoys is as wanted.
pub async fn progress(engine: &Engine, wanted: impl FnMut(&Progress) -> bool) {
    let mut watch = engine.progress();
    let reached = watch.wait_for(wanted);
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    reached.expect("progress in time").unwrap();
}

/// Waits for a state that shows only on looking.
pub async fn eventually(mut holds: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < until, "not in time");
        tokio::task::yield_now().await;
    }
}

/// A response, of either variant.
#[derive(Debug)]
pub struct Got {
    pub type_url: String,
    pub nonce: String,
    pub version: String,
    /// Name to value.
    pub resources: BTreeMap<String, String>,
    pub versions: HashMap<String, String>,
    pub removed: Vec<String>,
    pub size: usize,
}

impl Got {
    pub fn names(&self) -> Vec<&str> {
        self.resources.keys().map(String::as_str).collect()
    }
}

fn split(body: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(body).into_owned();
    let (name, value) = text.split_once('=').unwrap_or((&text, ""));
    (name.to_owned(), value.to_owned())
}

enum Wire {
    Delta(
        mpsc::UnboundedSender<DeltaDiscoveryRequest>,
        Box<Streaming<DeltaDiscoveryResponse>>,
    ),
    Full(
        mpsc::UnboundedSender<DiscoveryRequest>,
        Box<Streaming<DiscoveryResponse>>,
    ),
}

pub struct Envoy {
    wire: Wire,
    names: HashMap<String, BTreeSet<String>>,
    versions: HashMap<String, String>,
    barriers: usize,
    node: Option<Node>,
}

impl Envoy {
    pub async fn connect(server: &Server, delta: bool) -> Envoy {
        Self::connect_as(server, delta, 9000).await
    }

    /// The port goes into the node's metadata.
    pub async fn connect_as(server: &Server, delta: bool, port: u16) -> Envoy {
        let target = format!("http://{}", server.address);
        let client = AggregatedDiscoveryServiceClient::connect(target).await;
        let mut client = client.unwrap().max_decoding_message_size(64 << 20);
        let wire = if delta {
            let (sender, receiver) = mpsc::unbounded_channel();
            let requests = UnboundedReceiverStream::new(receiver);
            let response = client.delta_aggregated_resources(requests).await;
            Wire::Delta(sender, Box::new(response.unwrap().into_inner()))
        } else {
            let (sender, receiver) = mpsc::unbounded_channel();
            let requests = UnboundedReceiverStream::new(receiver);
            let response = client.stream_aggregated_resources(requests).await;
            Wire::Full(sender, Box::new(response.unwrap().into_inner()))
        };
        let kind = Some(Kind::NumberValue(f64::from(port)));
        let fields = HashMap::from([("port".to_owned(), Value { kind })]);
        let node = Node {
            id: "test-id".into(),
            cluster: "test-cluster".into(),
            metadata: Some(Struct { fields }),
            ..Node::default()
        };
        Envoy {
            wire,
            names: HashMap::new(),
            versions: HashMap::new(),
            barriers: 0,
            node: Some(node),
        }
    }

    fn send_delta(&mut self, mut request: DeltaDiscoveryRequest) {
        let Wire::Delta(sender, _) = &self.wire else {
            panic!("not a delta stream");
        };
        request.node = self.node.take();
        sender.send(request).unwrap();
    }

    fn send_full(&mut self, type_url: &str, nonce: &str, error: Option<&str>) {
        let names = self.names.get(type_url).into_iter().flatten().cloned();
        let request = DiscoveryRequest {
            node: self.node.take(),
            type_url: type_url.to_owned(),
            resource_names: names.collect(),
            response_nonce: nonce.to_owned(),
            version_info: self.versions.get(type_url).cloned().unwrap_or_default(),
            error_detail: error.map(status),
            ..Default::default()
        };
        let Wire::Full(sender, _) = &self.wire else {
            panic!("not a state-of-the-world stream");
        };
        sender.send(request).unwrap();
    }

    fn is_delta(&self) -> bool {
        matches!(self.wire, Wire::Delta(..))
    }

    /// Subscribes to names, to everything with none; `nonce` as the client likes.
    pub fn subscribe_with(&mut self, type_url: &str, names: &[&str], nonce: &str) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        if self.is_delta() {
            self.send_delta(DeltaDiscoveryRequest {
                type_url: type_url.to_owned(),
                resource_names_subscribe: names,
                response_nonce: nonce.to_owned(),
                ..Default::default()
            });
        } else {
            let all = self.names.entry(type_url.to_owned()).or_default();
            all.extend(names);
            self.send_full(type_url, nonce, None);
        }
    }

    pub fn subscribe(&mut self, type_url: &str, names: &[&str]) {
        self.subscribe_with(type_url, names, "");
    }

    pub fn unsubscribe(&mut self, type_url: &str, name: &str) {
        if self.is_delta() {
            self.send_delta(DeltaDiscoveryRequest {
                type_url: type_url.to_owned(),
                resource_names_unsubscribe: vec![name.to_owned()],
                ..Default::default()
            });
        } else {
            self.names
                .entry(type_url.to_owned())
                .or_default()
                .remove(name);
            self.send_full(type_url, "", None);
        }
    }

    /// Comes back with what a former stream left.
    pub fn resume(&mut self, type_url: &str, versions: &HashMap<String, String>) {
        self.send_delta(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            initial_resource_versions: versions.clone().into_iter().collect(),
            ..Default::default()
        });
    }

    /// State of the world: comes back with the version of the last accepted response.
    pub fn resume_full(&mut self, type_url: &str, version: &str) {
        self.versions
            .insert(type_url.to_owned(), version.to_owned());
        self.send_full(type_url, "", None);
    }

    pub fn ack(&mut self, got: &Got) {
        self.reply(got, None);
    }

    pub fn nack(&mut self, got: &Got, reason: &str) {
        self.reply(got, Some(reason));
    }

    fn reply(&mut self, got: &Got, error: Option<&str>) {
        if self.is_delta() {
            self.send_delta(DeltaDiscoveryRequest {
                type_url: got.type_url.clone(),
                response_nonce: got.nonce.clone(),
                error_detail: error.map(status),
                ..Default::default()
            });
        } else {
            if error.is_none() {
                self.versions
                    .insert(got.type_url.clone(), got.version.clone());
            }
            self.send_full(&got.type_url, &got.nonce, error);
        }
    }

    /// The next response; an error or the end of the stream as `Err`.
    pub async fn try_next(&mut self) -> Result<Got, String> {
        let next = async {
            match &mut self.wire {
                Wire::Delta(_, responses) => responses.message().await.map(|m| m.map(delta)),
                Wire::Full(_, responses) => responses.message().await.map(|m| m.map(full)),
            }
        };
        let next = tokio::time::timeout(PATIENCE, next).await;
        let next = next.expect("a response in time");
        next.map_err(|e| e.to_string())?.ok_or("the end".to_owned())
    }

    pub async fn next(&mut self) -> Got {
        self.try_next().await.unwrap()
    }

    /// The next response is of this type, and is acknowledged.
    pub async fn take(&mut self, type_url: &str) -> Got {
        let got = self.next().await;
        assert_eq!(got.type_url, type_url, "{got:?}");
        self.ack(&got);
        got
    }

    /// Nothing is on its way: the answer to a request made now is the next that arrives.
    pub async fn quiet(&mut self) {
        self.barriers += 1;
        let barrier = format!("barrier-{}", self.barriers);
        self.subscribe(&barrier, &["none"]);
        let got = self.next().await;
        assert_eq!(got.type_url, barrier, "{got:?}");
    }
}

fn status(message: &str) -> Status {
    Status {
        code: 13,
        message: message.to_owned(),
        ..Default::default()
    }
}

fn delta(response: DeltaDiscoveryResponse) -> Got {
    let body = |r: &envoy_types::pb::envoy::service::discovery::v3::Resource| {
        let any = r.resource.as_ref().unwrap();
        assert_eq!(any.type_url, response.type_url);
        (r.name.clone(), split(&any.value).1)
    };
    Got {
        size: prost::Message::encoded_len(&response),
        resources: response.resources.iter().map(body).collect(),
        versions: response
            .resources
            .iter()
            .map(|r| (r.name.clone(), r.version.clone()))
            .collect(),
        type_url: response.type_url,
        nonce: response.nonce,
        version: String::new(),
        removed: response.removed_resources,
    }
}

fn full(response: DiscoveryResponse) -> Got {
    Got {
        size: prost::Message::encoded_len(&response),
        resources: response.resources.iter().map(|a| split(&a.value)).collect(),
        versions: HashMap::new(),
        type_url: response.type_url,
        nonce: response.nonce,
        version: response.version_info,
        removed: Vec::new(),
    }
}
