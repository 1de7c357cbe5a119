//! The scheduler as a whole: build, spawn, drain.
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use seldon_ads::{Engine, Settings};
use seldon_core::{Config, State, Synchronisation};
use seldon_grpc::{
    agent::agent_service_server::AgentServiceServer, chainer::chainer_server::ChainerServer,
    health::health_check_service_server::HealthCheckServiceServer,
    introspect::introspect_server::IntrospectServer, scheduler::scheduler_server::SchedulerServer,
};
use seldon_tls::{Incoming, ServerTls};
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    service::interceptor::InterceptedService,
    transport::{Server, server::Router, server::TcpConnectInfo},
};

use crate::{
    certificates::EnvoyCertificates,
    clock::Clock,
    kafka::follow_scaling,
    measure::Meter,
    probes::Probes,
    resources::{ByMetadata, ListenerOptions, World, fixed, names::types},
    services::{Agents, Engines, GatewayPorts, Health, Introspection, SchedulerApi},
    sockets::Sockets,
    store::{Committer, Store},
    writer::{Handle, Writer},
};

/// An Envoy that has not answered for so long no longer holds up what is Available.
const LAG: Duration = Duration::from_secs(2);
/// A peer that is gone without a word is found within the sum of both.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_PATIENCE: Duration = Duration::from_secs(5);
/// An agent that comes back names all it holds in one message.
const LARGEST_MESSAGE: usize = 64 << 20;
const MOST_STREAMS: u32 = 1_000_000;
/// Connections that do not end by themselves after a stop are cut.
const DRAIN: Duration = Duration::from_secs(5);

/// What the scheduler is made of.
pub struct Options<S> {
    pub rules: Config,
    pub listener: ListenerOptions,
    /// For Envoys that name no module of their own.
    pub filter_module: Option<String>,
    /// Where counters are read of Envoys that name no port of their own.
    pub envoy_stats_port: u16,
    pub envoy_certificates: Option<EnvoyCertificates>,
    pub control_plane_tls: Option<ServerTls>,
    pub discovery_tls: Option<ServerTls>,
    /// How long an Envoy that left, or that may be left from before a start, can go on with its last world. Nothing is
    /// unloaded before.
    pub routing_lease: Duration,
    /// Where pipeline gateways listen that do not say so.
    pub gateway_ports: GatewayPorts,
    /// The file of `--scaling-config-path`.
    pub scaling: Option<PathBuf>,
    pub store: S,
}

/// Runs until `stop`; returns when every stream is closed and all that was acknowledged is durable.
pub async fn run<S: Store>(
    options: Options<S>,
    sockets: Sockets,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let restored = options.store.restore().context("reading the store")?;
    let records = restored.as_ref().map_or(0, Vec::len);
    tracing::info!(records, "desired state restored");
    let engine = Engine::new(Settings {
        order: types::ORDER.to_vec(),
        tailor: Some(Arc::new(ByMetadata {
            default_module: options.filter_module.is_some(),
        })),
        lag: LAG,
        lease: options.routing_lease,
    });
    // On Kubernetes the store may be new while Envoys and agents are not.
    let alone = match options.rules.synchronisation {
        Synchronisation::AfterTimeout(timeout) => Some(timeout),
        Synchronisation::FirstServers { .. } => None,
    };
    if alone.is_some() && restored.as_ref().is_some_and(Vec::is_empty) {
        engine.first_world();
    }
    let patience = alone.filter(|_| restored.as_ref().is_none_or(Vec::is_empty));
    let resources = fixed(
        &options.listener,
        options.filter_module.as_deref(),
        &seldon_routing::Config::default(),
    );
    let clock = Clock::start();
    let state = State::new(options.rules, clock.now());
    engine.apply(state.generation(), resources);
    let committer = Committer::new(options.store).context("starting the store's thread")?;
    let world = World::new(
        options.listener.tls.clone(),
        options.filter_module.as_deref(),
    );
    let (writer, handle) = Writer::new(state, clock, world, engine.clone(), committer);
    let mut writer = tokio::spawn(writer.run(restored, patience, stop.clone()));

    let mut tasks = JoinSet::new();
    if let Some(certificates) = options.envoy_certificates {
        let (handle, stop) = (handle.clone(), stop.clone());
        let listener = options.listener.clone();
        tasks.spawn(async move {
            let _ = stop
                .run_until_cancelled(certificates.follow(handle, listener))
                .await;
            Ok(())
        });
    }
    let meter = Meter::new(engine.clone(), options.envoy_stats_port);
    {
        let (meter, handle, stop) = (meter.clone(), handle.clone(), stop.clone());
        tasks.spawn(async move {
            let _ = stop.run_until_cancelled(meter.follow(handle)).await;
            Ok(())
        });
    }
    if let Some(path) = options.scaling {
        let (handle, stop) = (handle.clone(), stop.clone());
        tasks.spawn(async move {
            let _ = stop.run_until_cancelled(follow_scaling(path, handle)).await;
            Ok(())
        });
    }
    let apis = Apis {
        gateway_ports: options.gateway_ports,
        meter,
        handle: handle.clone(),
        engine: engine.clone(),
        stop: stop.clone(),
    };
    spawn_services(
        &mut tasks,
        &apis,
        sockets,
        options.control_plane_tls,
        options.discovery_tls,
    )?;
    let mut written = None;
    let served = wait(tasks, &mut writer, &mut written, &engine, &stop).await;
    let written = match written {
        Some(ended) => ended,
        None => writer.await,
    };
    written.context("the writer failed")?;
    served
}

/// The first task that fails stops all, and so does the end of the writer; a stop gives connections a moment to end.
async fn wait(
    mut tasks: JoinSet<anyhow::Result<()>>,
    writer: &mut JoinHandle<()>,
    written: &mut Option<Result<(), JoinError>>,
    engine: &Engine,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut first_failure = Ok(());
    tokio::select! {
        () = stop.cancelled() => {}
        ended = writer => *written = Some(ended),
        Some(ended) = tasks.join_next() => {
            first_failure = ended.map_err(anyhow::Error::from).and_then(|result| result);
        }
    }
    tracing::info!("stopping");
    stop.cancel();
    engine.close();
    let drained = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!("connections that did not end in time are cut");
        tasks.shutdown().await;
    }
    first_failure
}

struct Apis {
    gateway_ports: GatewayPorts,
    meter: Meter,
    handle: Handle,
    engine: Engine,
    stop: CancellationToken,
}

fn spawn_services(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    apis: &Apis,
    sockets: Sockets,
    control_plane: Option<ServerTls>,
    discovery: Option<ServerTls>,
) -> anyhow::Result<()> {
    let mut serve = |router: Router, socket: Option<TcpListener>, tls: Option<ServerTls>| {
        let Some(socket) = socket else { return };
        let stop = apis.stop.clone().cancelled_owned();
        tasks.spawn(async move {
            let incoming = Incoming::new(socket, tls);
            Ok(router.serve_with_incoming_shutdown(incoming, stop).await?)
        });
    };
    serve(apis.scheduler()?, sockets.scheduler, None);
    serve(apis.agents(), sockets.agents, None);
    if control_plane.is_some() {
        serve(
            apis.scheduler()?,
            sockets.scheduler_mtls,
            control_plane.clone(),
        );
        serve(apis.agents(), sockets.agents_mtls, control_plane);
    }
    serve(apis.engines(), sockets.dataflow, None);
    serve(apis.discovery(), Some(sockets.xds), discovery);
    let probes = Probes::new(apis.handle.clone(), apis.engine.clone());
    let stop = apis.stop.clone();
    tasks.spawn(async move { Ok(probes.serve(sockets.health, stop).await?) });
    Ok(())
}

impl Apis {
    fn scheduler(&self) -> anyhow::Result<Router> {
        let api = SchedulerApi::new(self.handle.clone(), self.stop.clone(), self.gateway_ports);
        let introspection =
            Introspection::new(self.handle.clone(), self.engine.clone(), self.meter.clone());
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(seldon_proto::DESCRIPTORS)
        };
        Ok(server()
            .add_service(SchedulerServer::new(api).max_decoding_message_size(LARGEST_MESSAGE))
            .add_service(HealthCheckServiceServer::new(Health::new(
                self.handle.clone(),
            )))
            .add_service(IntrospectServer::new(introspection))
            .add_service(reflection().build_v1().context("reflection")?)
            .add_service(reflection().build_v1alpha().context("reflection")?))
    }

    fn agents(&self) -> Router {
        let agents = Agents::new(self.handle.clone(), self.stop.clone());
        server()
            .add_service(AgentServiceServer::new(agents).max_decoding_message_size(LARGEST_MESSAGE))
            .add_service(HealthCheckServiceServer::new(Health::new(
                self.handle.clone(),
            )))
    }

    fn engines(&self) -> Router {
        let engines = Engines::new(self.handle.clone(), self.stop.clone());
        server()
            .add_service(ChainerServer::new(engines))
            .add_service(HealthCheckServiceServer::new(Health::new(
                self.handle.clone(),
            )))
    }

    fn discovery(&self) -> Router {
        server().add_service(InterceptedService::new(
            self.engine.service(),
            with_peer_address,
        ))
    }
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_PATIENCE))
        .max_concurrent_streams(MOST_STREAMS)
}

/// The engine asks tonic for the peer's address, which looks for it where its own acceptor would have put it.
fn with_peer_address(mut request: Request<()>) -> Result<Request<()>, Status> {
    let peer = request.extensions().get::<Option<SocketAddr>>().copied();
    request.extensions_mut().insert(TcpConnectInfo {
        local_addr: None,
        remote_addr: peer.flatten(),
    });
    Ok(request)
}
