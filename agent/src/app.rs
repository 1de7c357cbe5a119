//! Puts the parts together: parse, bind, build, run, drain.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use prometheus_client::registry::Registry as Families;
use seldon_agent_proxy::{Limits as ProxyLimits, Metrics, Proxy, Upstream};
use seldon_tls::{ClientTls, Environment, Protocol};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::admin;
use crate::artefact::{self, Artefacts, Bounds, Endpoint, Own, Rclone, Remotes, Secrets};
use crate::config::Config;
use crate::control::{Control, Identity};
use crate::models::{Memory, Parts, Registry, Times};
use crate::options::{Options, ServerType};
use crate::owner;
use crate::repository::{InferUri, MODELS, Mlserver, Repository, Triton};
use crate::scaling::Thresholds;
use crate::server::{self, InferenceServer};

/// How long a scheduler that is away is waited for when the agent is told to end.
const ABSENCE: Duration = Duration::from_secs(5);

/// Every port of an agent, bound before anything starts.
pub struct Listeners {
    pub rest: TcpListener,
    pub grpc: TcpListener,
    pub debug: TcpListener,
    pub metrics: TcpListener,
    pub drainer: TcpListener,
    pub readiness: TcpListener,
}

impl Listeners {
    /// Binds all ports; an error names the port and its flag.
    pub async fn bind(options: &Options) -> anyhow::Result<Self> {
        let bind = async |port: u16, flag: &str| {
            let address = SocketAddr::new(options.agent_host, port);
            TcpListener::bind(address).await.with_context(|| {
                format!("cannot listen on {address}: choose another port with --{flag}")
            })
        };
        Ok(Self {
            rest: bind(options.reverse_proxy_http_port, "reverse-proxy-http-port").await?,
            grpc: bind(options.reverse_proxy_grpc_port, "reverse-proxy-grpc-port").await?,
            debug: bind(options.debug_grpc_port, "debug-grpc-port").await?,
            metrics: bind(options.metrics_port, "metrics-port").await?,
            drainer: bind(options.drainer_port, "drainer-port").await?,
            readiness: bind(options.readiness_port, "readiness-port").await?,
        })
    }
}

/// Runs an agent until `stop`; then drains it and ends what it started. `now` breaks the drain off.
pub async fn run(
    options: Options,
    listeners: Listeners,
    stop: CancellationToken,
    now: CancellationToken,
) -> anyhow::Result<()> {
    let identity = options.identity(listeners.rest.local_addr()?.port())?;
    // Parts that must outlive the drain end with this one.
    let end = CancellationToken::new();
    let _end = end.clone().drop_guard();
    let rclone = rclone(&options, &end).await?;
    let secrets = secrets(&options);
    let remotes = Arc::new(if owns_rclone_config(&options) {
        Remotes::exclusive(rclone, secrets)
    } else {
        Remotes::new(rclone, secrets)
    });
    let mut families = Families::default();
    let metrics = Metrics::new(
        &seldon_agent_proxy::Identity {
            server: identity.server_name.clone(),
            replica: identity.replica_idx,
        },
        &mut families,
    );
    let (unasked, unasked_events) = tokio::sync::mpsc::unbounded_channel();
    let inference = InferenceServer::new(
        &options.inference_host,
        options.inference_grpc_port,
        server_limits(&options),
    )?;
    owner::claim(
        &options.agent_folder,
        &format!(
            "{} {} {:?}",
            identity.server_name, identity.replica_idx, options.server_type
        ),
    )?;
    let registry = Registry::open(Parts {
        artefacts: Artefacts::open(remotes.clone(), fetch_settings(&options))?,
        repository: repository(&options)?,
        server: inference.clone(),
        metrics: metrics.clone(),
        memory: Memory {
            // As the scheduler is told, which --replica-config may have changed.
            total: identity.config.memory_bytes,
            overcommit_percentage: identity.config.over_commit_percentage,
        },
        times: times(&options),
        held_per_model: options
            .max_requests_per_model
            .saturating_add(options.max_queued_requests_per_model),
        unasked,
    })?;
    let control = control(&options, identity.clone(), registry.clone())?;
    let proxy = proxy(&options, registry.clone(), metrics);
    let leaving = proxy.clone();
    registry.on_departure(move |internal| leaving.forget(internal));

    let mut services = JoinSet::new();
    let Listeners {
        rest,
        grpc,
        debug,
        metrics: metrics_listener,
        drainer,
        readiness,
    } = listeners;
    serve_admin(
        &mut services,
        &end,
        &control,
        &registry,
        debug,
        drainer,
        readiness,
    );
    let metrics_end = end.clone().cancelled_owned();
    services.spawn(async move {
        Ok(seldon_telemetry::serve(metrics_listener, Arc::new(families), metrics_end).await?)
    });
    let tls = Environment::of_process("ENVOY").upstream()?;
    let proxies_end = CancellationToken::new();
    let mut proxies = JoinSet::new();
    for listener in [rest, grpc] {
        let (proxy, tls, end) = (proxy.clone(), tls.clone(), proxies_end.clone());
        proxies.spawn(async move { proxy.serve(listener, tls, end).await });
    }
    tracing::info!(
        server = identity.server_name,
        replica = identity.replica_idx,
        "agent started"
    );

    let start_limit =
        Duration::from_secs(60 * options.max_elapsed_time_ready_sub_service_before_start_minutes);
    tokio::select! {
        applied = tokio::time::timeout(start_limit, configure(&options, &remotes)) => {
            applied.with_context(|| format!("rclone was not ready within {start_limit:?}"))?;
        }
        () = stop.cancelled() => return Ok(()),
    }
    let patience =
        Duration::from_secs(options.max_elapsed_time_ready_sub_service_after_start_seconds);
    let reset = proxy.clone();
    services.spawn({
        let (registry, end) = (registry.clone(), end.clone());
        async move {
            server::watch(
                inference,
                registry,
                patience,
                move || reset.reset_in_flight(),
                end,
            )
            .await;
            Ok(())
        }
    });
    services.spawn(follow_config(options.clone(), remotes, end.clone()));
    services.spawn({
        let (control, end) = (control.clone(), end.clone());
        async move {
            control.run(unasked_events, end).await;
            Ok(())
        }
    });
    services.spawn({
        let (control, end) = (control.clone(), end.clone());
        let (thresholds, period) = scaling(&options);
        async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = control.tell_usage() => {}
                () = control.watch_models(thresholds, period) => {}
            }
            Ok(())
        }
    });
    let mut up = registry.up();
    let never_started = async {
        if tokio::time::timeout(start_limit, up.wait_for(|up| *up))
            .await
            .is_ok()
        {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = never_started => Err(anyhow::anyhow!(
            "the inference server at {}:{} was not ready within {start_limit:?}",
            options.inference_host, options.inference_grpc_port
        )),
        Some(ended) = services.join_next() => match ended {
            Ok(Ok(())) => Err(anyhow::anyhow!("a service of the agent ended")),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(error.into()),
        },
    };
    if ended.is_ok() {
        tracing::info!("draining");
        tokio::select! {
            _ = control.drain(ABSENCE) => {}
            () = now.cancelled() => {}
        }
    }
    proxies_end.cancel();
    tokio::select! {
        () = async { while proxies.join_next().await.is_some() {} } => {}
        () = now.cancelled() => {}
    }
    end.cancel();
    let finish = async { while services.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(2), finish).await;
    ended
}

/// What models' requests are compared with, and how often.
fn scaling(options: &Options) -> (Thresholds, Duration) {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let thresholds = Thresholds {
        lag: options.model_inference_lag_threshold,
        inactive: seconds(options.model_inactive_seconds_threshold),
    };
    (thresholds, seconds(options.scaling_stats_period_seconds))
}

fn serve_admin(
    services: &mut JoinSet<anyhow::Result<()>>,
    end: &CancellationToken,
    control: &Control,
    registry: &Registry,
    debug: TcpListener,
    drainer: TcpListener,
    readiness: TcpListener,
) {
    services.spawn(admin::debug(debug, registry.clone(), end.clone()));
    let drain = admin::drainer(drainer, control.clone(), end.clone());
    services.spawn(async move { Ok(drain.await?) });
    let ready = admin::readiness(readiness, control.clone(), registry.clone(), end.clone());
    services.spawn(async move { Ok(ready.await?) });
}

/// Says whether the agent writes rclone's configuration file alone.
fn owns_rclone_config(options: &Options) -> bool {
    starts_rclone(options) && options.rclone_config.is_none()
}

fn starts_rclone(options: &Options) -> bool {
    options.rclone_binary.is_some() || options.rclone_host.is_empty()
}

/// The given rclone, or one of our own where none is given.
async fn rclone(options: &Options, end: &CancellationToken) -> anyhow::Result<Rclone> {
    if !starts_rclone(options) {
        let (host, port) = (
            options.rclone_host.clone(),
            Arc::new(options.rclone_port.into()),
        );
        return Ok(Rclone::new(Endpoint {
            host,
            port,
            credentials: None,
        }));
    }
    let folder = options.agent_folder.join("rclone-process");
    let own = Own {
        binary: options
            .rclone_binary
            .clone()
            .unwrap_or_else(|| "rclone".into()),
        config: options
            .rclone_config
            .clone()
            .unwrap_or_else(|| folder.join("rclone.conf")),
        folder,
    };
    artefact::start(own, end.clone()).await
}

/// Applies the configuration file once, trying until rclone is there.
async fn configure(options: &Options, remotes: &Remotes) {
    // An rclone that starts beside the agent is away for a moment: no reason to say so.
    let mut quiet_tries = 20;
    loop {
        match apply(options, remotes).await {
            Ok(()) => return,
            Err(error) if quiet_tries == 0 => {
                tracing::warn!("remotes are not configured yet: {error:#}");
                quiet_tries = 50;
            }
            Err(_) => quiet_tries -= 1,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn apply(options: &Options, remotes: &Remotes) -> anyhow::Result<()> {
    let config = Config::read(&options.config_path)?;
    Ok(remotes.apply(&config.rclone).await?)
}

/// Follows the configuration file, which a mounted ConfigMap replaces by a link. The content is compared: every way
/// of replacing a file is seen. An rclone of others that restarted is configured again, too.
async fn follow_config(
    options: Options,
    remotes: Arc<Remotes>,
    end: CancellationToken,
) -> anyhow::Result<()> {
    let mut failing = false;
    loop {
        tokio::select! {
            () = end.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
        }
        let applied = apply(&options, &remotes).await;
        if let (Err(error), false) = (&applied, failing) {
            tracing::warn!("the remotes stay as they are: {error:#}");
        }
        failing = applied.is_err();
    }
}

fn repository(options: &Options) -> anyhow::Result<Arc<dyn Repository>> {
    let models = options.agent_folder.join(MODELS);
    if options.server_type == ServerType::Triton {
        return Ok(Arc::new(Triton::open(models)?));
    }
    let tls = Environment::of_process("ENVOY").protocol()? == Protocol::Ssl;
    let envoy = InferUri {
        host: options.envoy_host.clone(),
        port: options.envoy_port,
        tls,
    };
    let workers = options.mlserver_parallel_workers.max(1);
    Ok(Arc::new(Mlserver::open(models, envoy, workers)?))
}

fn fetch_settings(options: &Options) -> artefact::Settings {
    let given = options.max_download_minutes.map(|minutes| 60 * minutes);
    // Before the whole load fails, so that it is said what took so long.
    let limit = given.unwrap_or(54 * options.max_load_elapsed_time_minutes);
    artefact::Settings {
        folder: options.agent_folder.join("rclone"),
        local_roots: options.allowed_local_roots.clone(),
        http_hosts: options.allowed_http_hosts.iter().cloned().collect(),
        concurrent: options.max_downloads,
        limit: Duration::from_secs(limit),
        retry_for: Duration::from_secs(options.download_retry_seconds),
        keep: Bounds {
            bytes: options.artefact_cache_megabytes.saturating_mul(1 << 20),
            age: Duration::from_secs(60 * options.artefact_cache_minutes),
        },
    }
}

fn secrets(options: &Options) -> Secrets {
    let folder = options.secrets_path.clone();
    // An empty variable means none.
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Secrets::None, Secrets::Folder)
}

fn server_limits(options: &Options) -> server::Limits {
    server::Limits {
        load_retries: options.max_load_retry_count,
        unload_retries: options.max_unload_retry_count,
        unloads_later: options.server_type == ServerType::Triton,
        ..Default::default()
    }
}

fn times(options: &Options) -> Times {
    Times {
        grace: Duration::from_secs(options.unload_grace_period_seconds),
        retention: Duration::from_secs(options.unload_retention_seconds),
        load: Duration::from_secs(60 * options.max_load_elapsed_time_minutes),
        unload: Duration::from_secs(60 * options.max_unload_elapsed_time_minutes),
        restore: Duration::from_secs(60),
    }
}

fn proxy(options: &Options, registry: Registry, metrics: Arc<Metrics>) -> Proxy<Registry> {
    let upstream = Upstream {
        http: format!("{}:{}", options.inference_host, options.inference_http_port),
        grpc: format!("{}:{}", options.inference_host, options.inference_grpc_port),
    };
    let limits = ProxyLimits {
        concurrent_per_model: options.max_requests_per_model,
        queue_per_model: options.max_queued_requests_per_model,
        ..ProxyLimits::default()
    };
    Proxy::new(Arc::new(registry), upstream, limits, metrics)
}

fn control(options: &Options, identity: Identity, registry: Registry) -> anyhow::Result<Control> {
    let tls = Environment::of_process("CONTROL_PLANE").client("CLIENT", "SERVER")?;
    let port = if tls.is_some() {
        options.scheduler_tls_port
    } else {
        options.scheduler_port
    };
    let channel = scheduler(
        &options.scheduler_host,
        port,
        tls,
        options.scheduler_keepalive_seconds,
    )?;
    Ok(Control::new(
        channel,
        identity,
        registry,
        Duration::from_secs(options.max_drain_seconds),
    ))
}

/// A channel that connects when it is used and notices a dead peer by keep-alive.
pub fn scheduler(
    host: &str,
    port: u16,
    tls: Option<ClientTls>,
    keep_alive_seconds: u64,
) -> anyhow::Result<Channel> {
    if host.is_empty() {
        bail!("--scheduler-host is empty");
    }
    let keep_alive = Duration::from_secs(keep_alive_seconds.max(1));
    Ok(seldon_tls::channel(host, port, tls, keep_alive)?)
}
