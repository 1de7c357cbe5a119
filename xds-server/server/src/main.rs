//! `seldon-scheduler`: parse, validate, build, spawn, drain.
use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use seldon_core::{Config, Synchronisation};
use seldon_scheduler::{
    certificates::{self, EnvoyCertificates},
    flags::Flags,
    kafka,
    resources::{AccessLog, ListenerOptions},
    services::GatewayPorts,
    sockets::Sockets,
    store::{Disk, Forgetful, Store},
    system::{self, Options},
};

#[tokio::main]
async fn main() -> ExitCode {
    match start(Flags::from_command_line()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seldon-scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(flags: Flags) -> anyhow::Result<()> {
    let tracing_config = Some(flags.tracing_config_path.as_str()).filter(|path| !path.is_empty());
    let _telemetry = seldon_telemetry::init(
        "seldon-scheduler",
        &flags.log_level,
        tracing_config.map(Path::new),
    )?;
    match flags.store_folder() {
        Some(folder) => run(&flags, Disk::open(&folder)?).await,
        None => {
            tracing::warn!("without --db-path nothing survives a restart of the scheduler");
            run(&flags, Forgetful).await
        }
    }
}

async fn run<S: Store>(flags: &Flags, store: S) -> anyhow::Result<()> {
    let control_plane_tls = certificates::control_plane()?;
    if control_plane_tls.is_none() && !flags.allow_plaintxt {
        anyhow::bail!(
            "nothing would be served: allow plain text by --allow-plaintxt=true or set CONTROL_PLANE_SECURITY_PROTOCOL=SSL"
        );
    }
    let envoy_certificates = EnvoyCertificates::from_environment()?;
    warn_of_filter(flags.filter_module.as_deref());
    let options = Options {
        rules: rules(flags)?,
        listener: ListenerOptions {
            port: flags.envoy_data_port,
            access_log: flags.enable_envoy_accesslog.then(|| AccessLog {
                path: flags.envoy_accesslog_path.clone(),
                successes: flags.include_successful_requests_envoy_accesslog,
            }),
            tls: envoy_certificates.as_ref().map(EnvoyCertificates::tls),
        },
        filter_module: flags.filter_module.clone(),
        envoy_stats_port: flags.envoy_stats_port,
        envoy_certificates,
        control_plane_tls,
        discovery_tls: certificates::discovery()?,
        routing_lease: Duration::from_secs(flags.routing_lease_seconds),
        gateway_ports: GatewayPorts {
            http: flags.pipeline_gateway_http_port,
            grpc: flags.pipeline_gateway_grpc_port,
        },
        scaling: Some(flags.scaling_config_path.as_str().into()),
        store,
    };
    let sockets = Sockets::bind(flags, options.control_plane_tls.is_some()).await?;
    let stop = seldon_telemetry::told_to_stop().context("watching SIGTERM and SIGINT")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        envoys = flags.envoy_port,
        api = flags.scheduler_port,
        agents = flags.agent_port,
        "scheduler started"
    );
    system::run(options, sockets, stop).await
}

/// In Kubernetes the operator tells which servers to wait for.
fn rules(flags: &Flags) -> anyhow::Result<Config> {
    let timeout = flags.ready_timeout();
    let namespace = flags.effective_namespace();
    let mut config = Config::new(if namespace.is_empty() {
        Synchronisation::AfterTimeout(timeout)
    } else {
        Synchronisation::FirstServers { timeout }
    });
    config.names = kafka::names(&flags.kafka_config_path, &namespace)?;
    config.topics_on_demand = flags.topics_on_demand;
    config.model_autoscaling = flags.enable_model_autoscaling;
    config.scale_up_pause = Duration::from_secs(flags.model_scale_up_pause_seconds);
    config.scale_down_pause = Duration::from_secs(flags.model_scale_down_pause_seconds);
    config.scale_to_zero = flags.scale_to_zero()?;
    config.server_autoscaling = flags.enable_server_autoscaling;
    config.scale_server_down_pause = Duration::from_secs(flags.server_scale_down_pause_seconds);
    config.server_packing = flags.packing();
    config.model_gateways_max = flags.most_model_gateways();
    config.pipeline_gateways_max = flags.most_pipeline_gateways();
    Ok(config)
}

fn warn_of_filter(module: Option<&str>) {
    match module {
        None => tracing::warn!(
            "without --filter-module, Envoys that name no module in their metadata route by the header seldon-model only"
        ),
        Some(module) if !Path::new(module).exists() => tracing::warn!(
            module,
            "the filter module is not on this machine; Envoys must have it under the same path"
        ),
        Some(_) => {}
    }
}
