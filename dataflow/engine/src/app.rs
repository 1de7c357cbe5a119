//! Puts the parts together: parse, bind, build, run, release.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use seldon_kafka::{Admin, Consumer, Producer, Settings, Transactions};
use seldon_tls::Environment;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::chainer;
use crate::context::Context;
use crate::control::Control;
use crate::health::{self, Health};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::options::{Guarantee, Options};
use crate::topics::Partitions;
use crate::worker::{Ended, Worker};
use crate::writer::{Mode, Tools, Writer};

/// The pause before a new incarnation.
const PAUSE: Duration = Duration::from_millis(500);

/// Binds the port of probes and metrics; an error names its flag.
pub async fn bind(options: &Options) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(options.health_server_host, options.health_server_port);
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another port with --health-server-port")
    })
}

/// Runs an engine until `stop`; then writes what is on its way and releases its pipelines.
pub async fn run(
    options: Options,
    listener: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let kafka = options.kafka()?;
    let channel = scheduler(&options)?;
    let health = Health::default();
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let end = CancellationToken::new();
    let _end = end.clone().drop_guard();
    tokio::spawn(health::serve(
        listener,
        health.clone(),
        Arc::new(registry),
        end.cancelled_owned(),
    ));
    loop {
        metrics.began();
        let incarnation = incarnation(&options, &kafka, &channel, &health, &metrics, &stop);
        match incarnation.await {
            Ok(Ended::Stopped { released }) => {
                if released {
                    chainer::leave(channel, options.replica()).await;
                }
                return Ok(());
            }
            Ok(Ended::Broken(reason)) => tracing::error!(reason, "the engine begins anew"),
            Err(error) => tracing::warn!("the engine cannot begin yet: {error:#}"),
        }
        health.ready.store(false, Ordering::Relaxed);
        health.beat.store(0, Ordering::Relaxed);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// One incarnation: everything it owns is under its name, and goes with it.
async fn incarnation(
    options: &Options,
    kafka: &Settings,
    channel: &Channel,
    health: &Health,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<Ended> {
    let build = build(options, kafka, health, metrics);
    let (context, writer) = tokio::select! {
        built = build => built?,
        () = stop.cancelled() => return Ok(Ended::Stopped { released: true }),
    };
    health.ready.store(true, Ordering::Relaxed);
    tracing::info!(
        name = context.me,
        exactly_once = context.exact,
        "engine started"
    );
    let (commands, receiver) = mpsc::channel(64);
    let (acks, to_send) = mpsc::unbounded_channel();
    let worker = Worker::new(context.clone(), writer)?;
    let mut control = Control::new(
        context,
        commands,
        acks,
        options.pipeline_ctlops_threads,
        options.join_window(),
    );
    let refresh = Duration::from_secs(options.metadata_refresh_seconds.max(1));
    let grow = control.watch_partitions(refresh);
    let (connected, mut connections) = watch::channel(false);
    let (registered, name) = (health.registered.clone(), options.replica());
    let note = async move {
        if connections.wait_for(|connected| *connected).await.is_ok() {
            registered.store(true, Ordering::Relaxed);
        }
        std::future::pending::<()>().await;
    };
    let follow = chainer::follow(
        channel.clone(),
        name,
        move |order| control.order(order),
        connected,
    );
    let ended = tokio::select! {
        ended = worker.run(receiver, stop.clone()) => ended,
        () = follow => Ended::Broken("the subscription ended".to_owned()),
        () = chainer::acknowledge(channel.clone(), to_send) => {
            Ended::Broken("acknowledging ended".to_owned())
        }
        () = grow => Ended::Broken("watching partitions ended".to_owned()),
        () = note => Ended::Broken("watching the subscription ended".to_owned()),
    };
    Ok(ended)
}

type Parts = (
    Arc<Context>,
    (
        Writer,
        tokio::task::JoinHandle<Result<(), crate::writer::Broken>>,
    ),
);

async fn build(
    options: &Options,
    kafka: &Settings,
    health: &Health,
    metrics: &Metrics,
) -> anyhow::Result<Parts> {
    let names = kafka.names(&options.pod_namespace)?;
    let exact = options.processing_guarantee == Guarantee::ExactlyOnce;
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let me = format!(
        "{}-{:x}-{:x}",
        names.group(&format!("seldon-dataflow-{}", options.replica())),
        since.as_nanos(),
        std::process::id()
    );
    let admin = Arc::new(Admin::new(kafka)?);
    let progress = names.progress();
    // Waits for the broker.
    admin.create(std::slice::from_ref(&progress), true).await?;
    let consumer = Consumer::new(kafka, &names.group("seldon-dataflow"), exact)?;
    let producer = Producer::new(kafka)?;
    let partitions = Partitions::default();
    let mode = if exact {
        Mode::Exact(Arc::new(Transactions::new(kafka, &me).await?))
    } else {
        Mode::Plain(producer.clone())
    };
    let tools = Tools {
        admin: admin.clone(),
        partitions: partitions.clone(),
        names: names.clone(),
        metrics: metrics.clone(),
        mode,
        healing: Arc::default(),
    };
    let context = Context {
        me,
        names,
        progress: progress.into(),
        exact,
        consumer: Arc::new(consumer),
        admin,
        producer,
        kafka: kafka.clone(),
        ledger: Ledger::default(),
        partitions,
        metrics: metrics.clone(),
        beat: health.beat.clone(),
        look: tokio::sync::Notify::new(),
        fenced: tokio::sync::Mutex::default(),
    };
    Ok((Arc::new(context), Writer::start(tools)))
}

fn scheduler(options: &Options) -> anyhow::Result<Channel> {
    let tls = Environment::of_process("CONTROL_PLANE").client("CLIENT", "SERVER")?;
    let keep_alive = Duration::from_secs(options.upstream_keepalive_seconds.max(1));
    let (host, port) = (&options.upstream_host, options.upstream_port);
    Ok(seldon_tls::channel(host, port, tls, keep_alive)?)
}
