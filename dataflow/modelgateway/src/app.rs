//! The process: everything put together.
use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, http::StatusCode, routing::get};
use prometheus_client::registry::Registry;
use seldon_kafka::{Admin, Producer, Settings};
use seldon_tls::{ClientTls, Environment, Files, Protocol};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{
    Options, ask::Asker, control, gateway::Gateway, metrics::Metrics, model::Target, shared::Shared,
};

/// What was begun is finished for this long when the process is told to stop.
const STOP: Duration = Duration::from_secs(8);

/// Runs until `stop`; fails where it cannot go on.
pub async fn run(
    options: Options,
    settings: Settings,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let address = SocketAddr::new(options.listen_host, options.health_probe_port);
    let probes = TcpListener::bind(address)
        .await
        .with_context(|| format!("--health-probe-port: {address}"))?;
    run_on(options, settings, probes, stop).await
}

/// As [`run`], with probes on a listener.
pub async fn run_on(
    options: Options,
    settings: Settings,
    probes: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let names = settings.names(&options.namespace)?;
    let asker = Asker::new(
        &options.envoy_host,
        options.envoy_port,
        envoy_tls()?.as_ref(),
        metrics.clone(),
    )?;
    let channel = scheduler(&options)?;
    let (admin, producer) = (Admin::new(&settings)?, Producer::new(&settings)?);
    let errors = Target::new(&names.errors(), 1);
    let name: Arc<str> = options.name.as_str().into();
    let shared = Shared::new(
        options, settings, names, admin, producer, asker, metrics, errors,
    );
    let shared = Arc::new(shared);

    let (order, orders) = mpsc::unbounded_channel();
    let (ack, acks) = mpsc::unbounded_channel();
    let (connected, is_connected) = watch::channel(false);
    let gateway = Gateway::new(Arc::clone(&shared), ack, order.clone());
    let probe = health(Arc::clone(&gateway), is_connected, registry);
    let serve = axum::serve(probes, probe);
    tokio::select! {
        () = stop.cancelled() => tracing::info!("told to stop"),
        () = shared.stop.cancelled() => {}
        () = Arc::clone(&gateway).run(orders) => {}
        () = control::follow(channel.clone(), &name, order, connected) => {}
        () = control::tell(channel.clone(), Arc::clone(&name), acks) => {}
        () = gateway.watch() => {}
        served = async { serve.await } => served.context("probes cannot be served")?,
    }
    gateway.stop(STOP).await;
    if stop.is_cancelled() {
        control::leave(channel, &name).await;
    }
    shared.stop.cancel();
    shared.tasks.close();
    if timeout(Duration::from_secs(2), shared.tasks.wait())
        .await
        .is_err()
    {
        tracing::debug!("some requests are left unfinished");
    }
    match shared.failure() {
        Some(reason) => Err(anyhow::anyhow!(reason)),
        None => Ok(()),
    }
}

fn health(gateway: Arc<Gateway>, connected: watch::Receiver<bool>, registry: Registry) -> Router {
    let registry = Arc::new(registry);
    let (for_startup, for_live) = (connected.clone(), Arc::clone(&gateway));
    let was_connected = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let status = |good: bool| {
        if good {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    Router::new()
        .route(
            "/startup",
            get(move || async move {
                use std::sync::atomic::Ordering;
                if *for_startup.borrow() {
                    was_connected.store(true, Ordering::Relaxed);
                }
                status(was_connected.load(Ordering::Relaxed))
            }),
        )
        .route(
            "/ready",
            get(move || async move { status(gateway.is_active()) }),
        )
        .route(
            "/live",
            get(move || async move { status(for_live.is_active()) }),
        )
        .route(
            "/metrics",
            get(move || async move {
                let text = "text/plain; version=0.0.4; charset=utf-8";
                (
                    [("content-type", text)],
                    seldon_telemetry::render(&registry),
                )
            }),
        )
}

/// A channel that connects when it is used and notices a dead peer by keep-alive.
fn scheduler(options: &Options) -> anyhow::Result<Channel> {
    let tls = Environment::of_process("CONTROL_PLANE").client("CLIENT", "SERVER")?;
    let port = match tls {
        Some(_) => options.scheduler_tls_port,
        None => options.scheduler_plaintxt_port,
    };
    let address = format!("http://{}:{port}", options.scheduler_host);
    Ok(Endpoint::from_shared(address)
        .context("--scheduler-host")?
        .connect_timeout(Duration::from_secs(2))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(seldon_tls::connector(tls)))
}

fn envoy_tls() -> anyhow::Result<Option<ClientTls>> {
    let environment = Environment::of_process("ENVOY");
    if environment.protocol()? == Protocol::Plaintext {
        return Ok(None);
    }
    let mutual = std::env::var("ENVOY_DOWNSTREAM_CLIENT_MTLS").is_ok_and(|value| value == "true");
    let mut own = environment.files("DOWNSTREAM_CLIENT")?;
    if !mutual {
        own = Files {
            key: None,
            crt: None,
            ..own
        };
    }
    let peer = environment.files("DOWNSTREAM_SERVER")?;
    Ok(Some(ClientTls::follow(own, peer, &[b"h2"])?))
}
