//! Puts the parts together: bind, build, run, drain.
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context as _, bail};
use prometheus_client::registry::Registry;
use seldon_kafka::{Admin, Consumer, Producer, Settings};
use seldon_tls::Environment;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{
    control::{Control, Identity},
    gateway::Gateway,
    grpc::Rpcs,
    health,
    metrics::Metrics,
    options::Options,
    replies::Replies,
    room::Room,
    routes::Routes,
    server,
    upstream::Models,
    waiting::Waiting,
};

/// Every port of a gateway, bound before anything starts.
pub struct Listeners {
    /// REST and gRPC.
    pub http: TcpListener,
    /// The same.
    pub grpc: TcpListener,
    /// `/metrics`.
    pub metrics: TcpListener,
    /// Probes.
    pub health: TcpListener,
}

impl Listeners {
    /// Binds all ports; an error names the port and its flag.
    pub async fn bind(options: &Options) -> anyhow::Result<Self> {
        let bind = async |port: u16, flag: &str| {
            let address = SocketAddr::new(options.host, port);
            TcpListener::bind(address).await.with_context(|| {
                format!("cannot listen on {address}: choose another port with --{flag}")
            })
        };
        Ok(Self {
            http: bind(options.http_port, "http-port").await?,
            grpc: bind(options.grpc_port, "grpc-port").await?,
            metrics: bind(options.metrics_port, "metrics-port").await?,
            health: bind(options.health_probe_port, "health-probe-port").await?,
        })
    }
}

/// Runs a gateway until `stop`; then refuses what is new, and returns when what is in flight has ended.
pub async fn run(
    options: Options,
    kafka: Settings,
    listeners: Listeners,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let end = CancellationToken::new();
    let _end = end.clone().drop_guard();
    let mut families = Registry::default();
    let metrics = Metrics::new(&mut families);
    let (gateway, replies) = gateway(&options, &kafka, metrics)?;
    let identity = Identity {
        name: options.pod_name.clone(),
        ip: options.address(),
        port: listeners.http.local_addr()?.port(),
    };
    let drain = gateway.limits.drain;
    let scheduler = scheduler(&options)?;
    let control = Control::new(scheduler, identity, gateway.routes.clone(), drain);
    let control = Arc::new(control);

    let mut services: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let probes = health::serve(
        listeners.health,
        gateway.clone(),
        control.subscribed(),
        end.clone(),
    );
    services.spawn(async move { Ok(probes.await?) });
    let ended = end.clone().cancelled_owned();
    let scrape = seldon_telemetry::serve(listeners.metrics, Arc::new(families), ended);
    services.spawn(async move { Ok(scrape.await?) });
    services.spawn(async move { replies.run().await });
    services.spawn(writes(gateway.clone()));
    let period = Duration::from_secs(options.partition_refresh_seconds.max(1));
    services.spawn(refresh(gateway.routes.clone(), period));

    let tls = Environment::of_process("ENVOY").upstream()?;
    let rpcs = Rpcs::new(gateway.clone())?;
    let closing = CancellationToken::new();
    let mut servers = JoinSet::new();
    for listener in [listeners.http, listeners.grpc] {
        let (gateway, rpcs, tls) = (gateway.clone(), rpcs.clone(), tls.clone());
        servers.spawn(server::serve(gateway, rpcs, listener, tls, closing.clone()));
    }
    let orders = tokio::spawn(control.run());
    tracing::info!(gateway = options.pod_name, "pipeline gateway started");

    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        Some(ended) = services.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a service of the gateway ended")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error.into()),
        },
    };
    // The scheduler sees the stream end and takes this gateway out of the routes.
    orders.abort();
    server::refuse(&gateway);
    closing.cancel();
    while servers.join_next().await.is_some() {}
    gateway.producer.flush(Duration::from_secs(1)).await;
    services.shutdown().await;
    ended
}

fn gateway(
    options: &Options,
    kafka: &Settings,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Arc<Gateway>, Arc<Replies>)> {
    let names = kafka.names(&options.namespace)?;
    let waiting = Waiting::new();
    let admin = Arc::new(Admin::new(kafka)?);
    let consumer = Consumer::new(kafka, &names.group("seldon-pipelinegateway"), true)?;
    let replies = Arc::new(Replies::new(consumer, admin.clone(), waiting.clone()));
    let limits = options.limits();
    let gateway = Gateway {
        routes: Arc::new(Routes::new(names, admin, replies.clone())),
        waiting,
        producer: Producer::new(kafka)?,
        models: Models::new(envoy(options)?),
        metrics,
        turns: Arc::new(Semaphore::new(limits.in_flight)),
        room: Room::new(limits.bytes),
        limits,
        stopping: AtomicBool::new(false),
    };
    Ok((Arc::new(gateway), replies))
}

/// Ends when requests cannot be written any more by this process.
async fn writes(gateway: Arc<Gateway>) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Some(reason) = gateway.producer.failed() {
            bail!("requests cannot be written any more: {reason}");
        }
    }
}

async fn refresh(routes: Arc<Routes>, period: Duration) -> anyhow::Result<()> {
    let mut failing = false;
    loop {
        tokio::time::sleep(period).await;
        let looked = routes.refresh().await;
        if let (Err(error), false) = (&looked, failing) {
            tracing::warn!("the numbers of partitions cannot be followed: {error:#}");
        }
        failing = looked.is_err();
    }
}

fn scheduler(options: &Options) -> anyhow::Result<Channel> {
    let tls = Environment::of_process("CONTROL_PLANE").client("CLIENT", "SERVER")?;
    let port = match tls {
        Some(_) => options.scheduler_tls_port,
        None => options.scheduler_plaintxt_port,
    };
    let alive = Duration::from_secs(options.scheduler_keepalive_seconds.max(1));
    let endpoint = endpoint(&options.scheduler_host, port, "scheduler-host")?
        .http2_keep_alive_interval(alive)
        .keep_alive_timeout(alive)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(seldon_tls::connector(tls)))
}

fn envoy(options: &Options) -> anyhow::Result<Channel> {
    let tls = Environment::of_process("ENVOY").client("DOWNSTREAM_CLIENT", "DOWNSTREAM_SERVER")?;
    let endpoint = endpoint(&options.envoy_host, options.envoy_port, "envoy-host")?;
    Ok(endpoint.connect_with_connector_lazy(seldon_tls::connector(tls)))
}

fn endpoint(host: &str, port: u16, flag: &str) -> anyhow::Result<Endpoint> {
    if host.is_empty() {
        bail!("--{flag} is empty");
    }
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"))?;
    Ok(endpoint.connect_timeout(Duration::from_millis(900)))
}
