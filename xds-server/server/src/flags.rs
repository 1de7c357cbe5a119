//! The command line. Names and defaults are the documented ones, in either spelling of Go's flags: `-name` and
//! `--name`, `--bool` and `--bool=false`.
use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgAction, Parser};

/// Places models on servers and drives the Envoys.
#[derive(Clone, Debug, Parser)]
#[command(name = "seldon-scheduler", version)]
pub struct Flags {
    /// Port of the discovery service for Envoys.
    #[arg(long, value_name = "PORT", default_value_t = 9002)]
    pub envoy_port: u16,
    /// Port of the scheduler API.
    #[arg(long, value_name = "PORT", default_value_t = 9004)]
    pub scheduler_port: u16,
    /// Port of the scheduler API with mutual TLS, where CONTROL_PLANE_SECURITY_PROTOCOL=SSL.
    #[arg(long, value_name = "PORT", default_value_t = 9044)]
    pub scheduler_mtls_port: u16,
    /// Port for agents.
    #[arg(long, value_name = "PORT", default_value_t = 9005)]
    pub agent_port: u16,
    /// Port for agents with mutual TLS, where CONTROL_PLANE_SECURITY_PROTOCOL=SSL.
    #[arg(long, value_name = "PORT", default_value_t = 9055)]
    pub agent_mtls_port: u16,
    /// Port for dataflow engines.
    #[arg(long, value_name = "PORT", default_value_t = 9008)]
    pub dataflow_port: u16,
    /// Port of /ready, /live and /metrics.
    #[arg(long, value_name = "PORT", default_value_t = 9999)]
    pub health_probe_port: u16,
    /// Serve the API and agents without TLS.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub allow_plaintxt: bool,

    /// Node id of Envoys. Any is served; kept for compatibility.
    #[arg(long = "nodeID", value_name = "ID", default_value = "test-id")]
    pub node_id: String,
    /// Port on which Envoys serve inference, for those that name none in their metadata.
    #[arg(
        long,
        value_name = "PORT",
        env = "ENVOY_DATA_PORT",
        default_value_t = 9000
    )]
    pub envoy_data_port: u16,
    /// Port of Envoys' counters (`/stats/prometheus`), for those that name none in their metadata.
    #[arg(long, value_name = "PORT", default_value_t = 9003)]
    pub envoy_stats_port: u16,
    /// Path of the wasm filter on the Envoys' machines, for those that name none in their metadata.
    #[arg(long, value_name = "PATH")]
    pub filter_module: Option<String>,
    /// Write Envoy's access log.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub enable_envoy_accesslog: bool,
    /// Path of Envoy's access log on its machine.
    #[arg(long, value_name = "PATH", default_value = "/tmp/envoy-accesslog.txt")]
    pub envoy_accesslog_path: String,
    /// Successful requests in the access log as well.
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub include_successful_requests_envoy_accesslog: bool,

    /// Folder of the store. Without it nothing survives a restart.
    #[arg(long, value_name = "FOLDER", default_value = "")]
    pub db_path: String,
    /// Namespace, where no service account names it.
    #[arg(long, default_value = "")]
    pub namespace: String,
    /// How long to wait at start for agents before moving or removing anything.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub scheduler_ready_timeout_seconds: u64,
    /// How long an Envoy that is away may go on with its last routes; nothing that it may use is unloaded before, also
    /// after a start of the scheduler.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub routing_lease_seconds: u64,
    /// How long removed pipelines and experiments are still shown. Without effect yet: it is an hour.
    #[arg(long, value_name = "SECONDS", default_value_t = 86400)]
    pub deleted_resource_ttl_seconds: u64,
    /// Port on which pipeline gateways take HTTP, for those that name none.
    #[arg(long, value_name = "PORT", default_value_t = 9010)]
    pub pipeline_gateway_http_port: u16,
    /// Port on which pipeline gateways take gRPC, for those that name none.
    #[arg(long, value_name = "PORT", default_value_t = 9011)]
    pub pipeline_gateway_grpc_port: u16,
    /// File with the scaling configuration, of which `pipelines.maxShardCountMultiplier` counts; looked at again when
    /// it changes.
    #[arg(long, value_name = "PATH", default_value = "/mnt/config/scaling.json")]
    pub scaling_config_path: String,
    /// File with the settings of Kafka, of which `topicPrefix` and `consumerGroupIdPrefix` count.
    #[arg(long, value_name = "PATH", default_value = "/mnt/config/kafka.json")]
    pub kafka_config_path: String,
    /// Most model gateways that read models, times `maxShardCountMultiplier`; 0 or less: 100.
    #[arg(
        long,
        value_name = "COUNT",
        env = "MODELGATEWAY_MAX_NUM_CONSUMERS",
        default_value_t = MOST_GATEWAYS,
        allow_negative_numbers = true
    )]
    pub modelgateway_max_num_consumers: i64,
    /// Most pipeline gateways that serve pipelines, times `maxShardCountMultiplier`; 0 or less: 100.
    #[arg(
        long,
        value_name = "COUNT",
        env = "PIPELINEGATEWAY_MAX_NUM_CONSUMERS",
        default_value_t = MOST_GATEWAYS,
        allow_negative_numbers = true
    )]
    pub pipelinegateway_max_num_consumers: i64,
    /// Make topics only for models that a pipeline uses or that have dataflow settings, not for every model.
    #[arg(long, value_name = "BOOL", env = "SELDON_TOPICS_ON_DEMAND", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub topics_on_demand: bool,
    /// Scale models that have `minReplicas` or `maxReplicas` by what agents see of their requests.
    #[arg(long, value_name = "BOOL", env = "ENABLE_MODEL_AUTOSCALING", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub enable_model_autoscaling: bool,
    /// The least time after a change of a model's replicas before one is added.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MODEL_SCALE_UP_PAUSE_SECONDS",
        default_value_t = 10
    )]
    pub model_scale_up_pause_seconds: u64,
    /// The least time for which nothing about a model changed before a replica is taken from it.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MODEL_SCALE_DOWN_PAUSE_SECONDS",
        default_value_t = 60
    )]
    pub model_scale_down_pause_seconds: u64,
    /// Take the last replica of a model that has `maxReplicas` and no `minReplicas` when it was not asked for so long; its
    /// requests are held while it comes back. 0: never. Needs --enable-model-autoscaling.
    #[arg(
        long,
        value_name = "SECONDS",
        env = "MODEL_SCALE_TO_ZERO_SECONDS",
        default_value_t = 0
    )]
    pub model_scale_to_zero_seconds: u64,
    /// Ask for as many replicas of a server that has `maxReplicas` as its models need.
    #[arg(long, value_name = "BOOL", env = "ENABLE_SERVER_AUTOSCALING", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub enable_server_autoscaling: bool,
    /// How long a replica of a server must have held no model before the server is asked to do without it.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub server_scale_down_pause_seconds: u64,
    /// Pack models onto fewer replicas where they fit (experimental).
    #[arg(long, value_name = "BOOL", env = "SERVER_PACKING_ENABLED", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub server_packing_enabled: bool,
    /// How often a model that leaves a replica may lead to packing: a share from 0 to 1, or above that a percentage.
    #[arg(
        long,
        value_name = "SHARE",
        env = "SERVER_PACKING_PERCENTAGE",
        default_value_t = 0.25
    )]
    pub server_packing_percentage: f64,
    /// Log level: trace, debug, info, warn, error.
    #[arg(long, value_name = "LEVEL", default_value = "debug")]
    pub log_level: String,
    /// File with the tracing configuration.
    #[arg(long, value_name = "PATH", default_value = "")]
    pub tracing_config_path: String,

    #[command(flatten)]
    pub unused: Unused,
}

/// Documented flags of what is not built yet, taken so that documented command lines start.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Accepted, without effect yet")]
pub struct Unused {
    #[arg(long, value_name = "HOST", default_value = "0.0.0.0")]
    pub pipeline_gateway_host: String,
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub enable_pprof: bool,
    #[arg(long, value_name = "PORT", default_value_t = 6060)]
    pub pprof_port: u16,
    #[arg(long, value_name = "RATE", default_value_t = 0)]
    pub pprof_block_rate: u32,
    #[arg(long, value_name = "RATE", default_value_t = 0)]
    pub pprof_mutex_rate: u32,
    #[arg(long, value_name = "SPAN", default_value = "1m")]
    pub retry_creating_failed_pipelines_tick: String,
    #[arg(long, value_name = "SPAN", default_value = "1m")]
    pub retry_deleting_failed_pipelines_tick: String,
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    pub max_retry_failed_pipelines: u32,
}

const MOST_GATEWAYS: i64 = 100;

/// As documented: what is no number of gateways means the default.
fn most(wanted: i64) -> u32 {
    let wanted = if wanted <= 0 { MOST_GATEWAYS } else { wanted };
    u32::try_from(wanted).unwrap_or(u32::MAX)
}

/// Documented as a share on one page and as a percentage on another.
fn share(told: f64) -> f64 {
    let share = if told > 1.0 { told / 100.0 } else { told };
    if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    }
}

const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

impl Flags {
    /// Reads the process's command line; ends the process where it is wrong or asks for help.
    pub fn from_command_line() -> Self {
        Self::parse_from(std::env::args_os().map(with_two_dashes))
    }

    /// The share of removals that may lead to packing; none where it is off.
    pub fn packing(&self) -> f64 {
        match self.server_packing_enabled {
            true => share(self.server_packing_percentage),
            false => 0.0,
        }
    }

    /// The namespace of the service account, else of the flag; empty outside Kubernetes.
    pub fn effective_namespace(&self) -> String {
        std::fs::read_to_string(NAMESPACE_FILE)
            .map(|text| text.trim().to_owned())
            .ok()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or_else(|| self.namespace.clone())
    }

    pub fn ready_timeout(&self) -> Duration {
        Duration::from_secs(self.scheduler_ready_timeout_seconds)
    }

    /// How long a model must not have been asked for before it has no replica; `None` is never.
    pub fn scale_to_zero(&self) -> anyhow::Result<Option<Duration>> {
        let after = self.model_scale_to_zero_seconds;
        anyhow::ensure!(
            after == 0 || self.enable_model_autoscaling,
            "--model-scale-to-zero-seconds {after} has no effect without --enable-model-autoscaling: give both or none"
        );
        Ok((after > 0).then(|| Duration::from_secs(after)))
    }

    pub fn most_model_gateways(&self) -> u32 {
        most(self.modelgateway_max_num_consumers)
    }

    pub fn most_pipeline_gateways(&self) -> u32 {
        most(self.pipelinegateway_max_num_consumers)
    }

    /// `None` where nothing is to be kept.
    pub fn store_folder(&self) -> Option<PathBuf> {
        (!self.db_path.is_empty()).then(|| PathBuf::from(&self.db_path))
    }
}

/// `-envoy-port` is `--envoy-port`, as Go's flags have it; `-h` and `-V` stay.
fn with_two_dashes(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => {
            format!("-{text}").into()
        }
        _ => argument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Flags {
        let all = ["seldon-scheduler"].iter().chain(arguments);
        Flags::try_parse_from(all.map(|a| with_two_dashes(a.into()))).unwrap()
    }

    #[test]
    fn documented_command_lines_start() {
        let documented = parse(&[
            "--pipeline-gateway-host=seldon-pipelinegateway",
            "--tracing-config-path=/mnt/tracing/tracing.json",
            "--db-path=/mnt/scheduler/db",
            "--allow-plaintxt=true",
            "--kafka-config-path=/mnt/kafka/kafka.json",
            "-scheduler-ready-timeout-seconds=30",
            "--server-packing-enabled=false",
            "--nodeID=n",
            "--include-successful-requests-envoy-accesslog",
        ]);
        assert_eq!(documented.scheduler_ready_timeout_seconds, 30);
        assert!(documented.include_successful_requests_envoy_accesslog);
        assert_eq!(documented.node_id, "n");
        assert!(documented.store_folder().is_some());
        let plain = parse(&[]);
        assert!(plain.allow_plaintxt && plain.enable_envoy_accesslog);
        assert_eq!((plain.envoy_port, plain.agent_port), (9002, 9005));
        assert!(!parse(&["--allow-plaintxt=false"]).allow_plaintxt);
    }

    #[test]
    fn no_number_of_gateways_is_the_documented_default() {
        let of = |text: &str| {
            let flag = format!("--modelgateway-max-num-consumers={text}");
            parse(&[&flag, "--pipelinegateway-max-num-consumers=7"])
        };
        assert_eq!(of("3").most_model_gateways(), 3);
        assert_eq!(of("0").most_model_gateways(), 100);
        assert_eq!(of("-2").most_model_gateways(), 100);
        assert_eq!(of("3").most_pipeline_gateways(), 7);
        let wrong = ["seldon-scheduler", "--modelgateway-max-num-consumers=many"];
        assert!(Flags::try_parse_from(wrong).is_err());
    }
}
