//! Flags and environment, named as documented. A flag beats the environment, which beats the default.
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{ArgAction, Parser, ValueEnum};
use prost_reflect::DynamicMessage;
use seldon_proto::agent::ReplicaConfig;

use crate::control::Identity;

/// The kind of inference server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ServerType {
    Mlserver,
    Triton,
}

/// The agent beside an inference server: loads models into it and passes requests on.
#[derive(Debug, Clone, Parser)]
#[command(name = "seldon-agent", version, next_line_help = true)]
pub struct Options {
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub agent_host: IpAddr,
    /// Name of the Server [default: POD_NAME without its ordinal, or mlserver]
    #[arg(long)]
    pub server_name: Option<String>,
    /// Ordinal of this replica [default: from POD_NAME, or 0]
    #[arg(long)]
    pub server_idx: Option<u32>,
    #[arg(long, env = "SELDON_SCHEDULER_HOST", default_value = "0.0.0.0")]
    pub scheduler_host: String,
    #[arg(long, env = "SELDON_SCHEDULER_PORT", default_value_t = 9005)]
    pub scheduler_port: u16,
    /// Used instead of --scheduler-port with CONTROL_PLANE_SECURITY_PROTOCOL=SSL.
    #[arg(long, env = "SELDON_SCHEDULER_TLS_PORT", default_value_t = 9055)]
    pub scheduler_tls_port: u16,
    /// Seconds between signs of life asked from the scheduler.
    #[arg(long, default_value_t = 5)]
    pub scheduler_keepalive_seconds: u64,

    /// Host of a running rclone; empty: the agent starts one of its own.
    #[arg(long, default_value = "0.0.0.0")]
    pub rclone_host: String,
    #[arg(long, default_value_t = 5572)]
    pub rclone_port: u16,
    /// An rclone to start, on loopback and with credentials of its own.
    #[arg(long)]
    pub rclone_binary: Option<PathBuf>,
    /// Configuration file of the agent's own rclone [default: in the agent's folder]
    #[arg(long)]
    pub rclone_config: Option<PathBuf>,
    /// Folders that a storageUri may name by an absolute path.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "/var/models,/mnt/models,/models"
    )]
    pub allowed_local_roots: Vec<PathBuf>,
    /// Hosts (host or host:port) that a storageUri may name by http or https.
    #[arg(long, env = "SELDON_ALLOWED_HTTP_HOSTS", value_delimiter = ',')]
    pub allowed_http_hosts: Vec<String>,
    /// Folder of storage secrets: a folder of files for each, as Kubernetes mounts them, or a YAML file.
    #[arg(long, env = "SELDON_SECRETS_PATH")]
    pub secrets_path: Option<PathBuf>,
    /// Downloads at a time; those longer than half a minute count in a bound of four times as many.
    #[arg(long, default_value_t = 8)]
    pub max_downloads: usize,
    /// How long a single download may take [default: nine tenths of --max-load-elapsed-time-minutes]
    #[arg(long)]
    pub max_download_minutes: Option<u64>,
    /// Disk that downloads may take after their use, so that the next model of the same artefact needs no new one; 0: none.
    #[arg(long, default_value_t = 1024)]
    pub artefact_cache_megabytes: u64,
    /// How long an unused download is kept.
    #[arg(long, default_value_t = 60)]
    pub artefact_cache_minutes: u64,
    /// How long a download is tried again when the storage cannot be reached.
    #[arg(long, default_value_t = 30)]
    pub download_retry_seconds: u64,

    /// Host of the inference server.
    #[arg(long, default_value = "0.0.0.0")]
    pub inference_host: String,
    #[arg(long, env = "SELDON_SERVER_HTTP_PORT", default_value_t = 8080)]
    pub inference_http_port: u16,
    #[arg(long, env = "SELDON_SERVER_GRPC_PORT", default_value_t = 9500)]
    pub inference_grpc_port: u16,
    /// REST and gRPC; this port is the one the scheduler is told.
    #[arg(long, env = "SELDON_REVERSE_PROXY_HTTP_PORT", default_value_t = 9999)]
    pub reverse_proxy_http_port: u16,
    /// The same on a second port.
    #[arg(long, env = "SELDON_REVERSE_PROXY_GRPC_PORT", default_value_t = 9998)]
    pub reverse_proxy_grpc_port: u16,
    #[arg(long, env = "SELDON_DEBUG_GRPC_PORT", default_value_t = 7777)]
    pub debug_grpc_port: u16,
    #[arg(long, env = "SELDON_METRICS_PORT", default_value_t = 9006)]
    pub metrics_port: u16,
    #[arg(long, env = "SELDON_DRAINER_PORT", default_value_t = 9007)]
    pub drainer_port: u16,
    #[arg(long, env = "SELDON_READINESS_PORT", default_value_t = 9008)]
    pub readiness_port: u16,
    /// Requests of one model at the inference server at a time.
    #[arg(long, default_value_t = 256)]
    pub max_requests_per_model: usize,
    /// Requests of one model that wait for their turn; more are refused with 429.
    #[arg(long, default_value_t = 2048)]
    pub max_queued_requests_per_model: usize,
    /// Host under which Envoy reaches this agent [default: POD_NAME or POD_IP, or the address listened on]
    #[arg(long)]
    pub inference_svc: Option<String>,

    /// Holds `models` (shared with the inference server) and `rclone` (shared with rclone).
    #[arg(long, default_value = "/mnt/agent")]
    pub agent_folder: PathBuf,
    /// What the scheduler is told, as JSON; fields that are given replace the agent's own.
    #[arg(long, env = "SELDON_REPLICA_CONFIG", default_value = "")]
    pub replica_config: String,
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    pub namespace: String,
    /// Folder of agent.yaml or agent.json.
    #[arg(long, default_value = "/mnt/config")]
    pub config_path: PathBuf,
    #[arg(
        long,
        env = "SELDON_SERVER_TYPE",
        value_enum,
        default_value = "mlserver"
    )]
    pub server_type: ServerType,
    /// Memory for models.
    #[arg(long, env = "MEMORY_REQUEST", default_value_t = 1_000_000)]
    pub memory_bytes: u64,
    /// Requirements of models that are met here [default: sklearn,xgboost; for triton what its images offer]
    #[arg(long, env = "SELDON_SERVER_CAPABILITIES", value_delimiter = ',')]
    pub capabilities: Vec<String>,
    /// How much more memory than --memory-bytes models may need together: those used least recently are evicted to disk and
    /// come back with their next request. 0: no more than there is.
    #[arg(long, env = "SELDON_OVERCOMMIT_PERCENTAGE", default_value_t = 0)]
    pub over_commit_percentage: u32,
    #[arg(long, env = "SELDON_LOG_LEVEL", default_value = "debug")]
    pub log_level: String,
    #[arg(long, default_value = "")]
    pub tracing_config_path: String,
    /// Where explainers reach the models they explain.
    #[arg(long, env = "SELDON_ENVOY_HOST", default_value = "0.0.0.0")]
    pub envoy_host: String,
    #[arg(long, env = "SELDON_ENVOY_PORT", default_value_t = 9000)]
    pub envoy_port: u16,

    /// A model with so many requests in flight has too many; that is told to a scheduler that scales models.
    #[arg(
        long,
        env = "SELDON_MODEL_INFERENCE_LAG_THRESHOLD",
        default_value_t = 30
    )]
    pub model_inference_lag_threshold: u32,
    /// A model that was not asked for so many seconds is not needed here; that is told as well.
    #[arg(
        long,
        env = "SELDON_MODEL_INACTIVE_SECONDS_THRESHOLD",
        default_value_t = 30
    )]
    pub model_inactive_seconds_threshold: u32,
    /// How often that is looked at.
    #[arg(long, env = "SELDON_SCALING_STATS_PERIOD_SECONDS", default_value_t = 5)]
    pub scaling_stats_period_seconds: u32,
    /// How long rclone and the inference server may take to start.
    #[arg(
        long,
        env = "SELDON_MAX_ELAPSED_TIME_READY_SUB_SERVICE_BEFORE_START_MINUTES",
        default_value_t = 15
    )]
    pub max_elapsed_time_ready_sub_service_before_start_minutes: u64,
    /// How long the inference server may be silent.
    #[arg(
        long,
        env = "SELDON_MAX_TIME_READY_SUB_SERVICE_AFTER_START_SECONDS",
        default_value_t = 30
    )]
    pub max_elapsed_time_ready_sub_service_after_start_seconds: u64,
    /// Accepted; the inference server is watched all the time.
    #[arg(
        long,
        env = "SELDON_PERIOD_READY_SUB_SERVICE_SECONDS",
        default_value_t = 60
    )]
    pub period_ready_sub_service_seconds: u64,
    #[arg(
        long,
        env = "SELDON_MAX_LOAD_ELAPSED_TIME_MINUTES",
        default_value_t = 120
    )]
    pub max_load_elapsed_time_minutes: u64,
    #[arg(
        long,
        env = "SELDON_MAX_UNLOAD_ELAPSED_TIME_MINUTES",
        default_value_t = 15
    )]
    pub max_unload_elapsed_time_minutes: u64,
    #[arg(long, env = "SELDON_MAX_LOAD_RETRY_COUNT", default_value_t = 5)]
    pub max_load_retry_count: usize,
    #[arg(long, env = "SELDON_MAX_UNLOAD_RETRY_COUNT", default_value_t = 5)]
    pub max_unload_retry_count: usize,
    #[arg(long, env = "SELDON_UNLOAD_GRACE_PERIOD_SECONDS", default_value_t = 2)]
    pub unload_grace_period_seconds: u64,
    /// How long an unloaded model can be brought back by a late request.
    #[arg(long, default_value_t = 60)]
    pub unload_retention_seconds: u64,
    /// How long a drain may take before a stop goes on without it.
    #[arg(long, default_value_t = 110)]
    pub max_drain_seconds: u64,
    #[arg(long, env = "SELDON_USE_DEPLOYMENTS_FOR_SERVERS", action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub use_deployments_for_servers: bool,
    /// Counted in a model's memory; what MLServer itself was given.
    #[arg(long, env = "MLSERVER_PARALLEL_WORKERS", default_value_t = 1)]
    pub mlserver_parallel_workers: u32,

    #[arg(long, env = "POD_NAME", default_value = "", hide = true)]
    pub pod_name: String,
    #[arg(long, env = "POD_IP", default_value = "", hide = true)]
    pub pod_ip: String,
}

impl Options {
    /// Checks what a single value cannot show.
    pub fn validate(&self) -> anyhow::Result<()> {
        for root in &self.allowed_local_roots {
            if !root.is_absolute() {
                bail!(
                    "--allowed-local-roots: {} is not an absolute path",
                    root.display()
                );
            }
        }
        Ok(())
    }

    fn capabilities(&self) -> Vec<String> {
        let given: Vec<String> = self
            .capabilities
            .iter()
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        if given.is_empty() {
            let own = self.server_type.capabilities();
            return own.iter().copied().map(str::to_owned).collect();
        }
        given
    }

    /// Who this replica is and what the scheduler is told. `proxy_port` is the port that was bound.
    pub fn identity(&self, proxy_port: u16) -> anyhow::Result<Identity> {
        let pod = Pod::parse(&self.pod_name, self.use_deployments_for_servers);
        let server_name = self
            .server_name
            .clone()
            .or_else(|| Some(pod.as_ref()?.server.clone()));
        let replica_idx = self.server_idx.or_else(|| Some(pod.as_ref()?.ordinal));
        let service = match (&self.inference_svc, &pod) {
            (Some(service), _) => service.clone(),
            (None, Some(_)) if self.use_deployments_for_servers && !self.pod_ip.is_empty() => {
                self.pod_ip.clone()
            }
            (None, Some(_)) => self.pod_name.clone(),
            (None, None) if self.agent_host.is_unspecified() => "127.0.0.1".to_owned(),
            (None, None) => self.agent_host.to_string(),
        };
        let own = ReplicaConfig {
            inference_svc: service,
            // One port for both protocols marks an agent that serves both on each of its ports.
            inference_http_port: i32::from(proxy_port),
            inference_grpc_port: i32::from(proxy_port),
            memory_bytes: self.memory_bytes,
            capabilities: self.capabilities(),
            over_commit_percentage: self.over_commit_percentage,
        };
        Ok(Identity {
            server_name: server_name.unwrap_or_else(|| "mlserver".to_owned()),
            replica_idx: replica_idx.unwrap_or(0),
            config: overridden(own, &self.replica_config)
                .context("--replica-config cannot be used")?,
        })
    }
}

impl ServerType {
    /// The documented capabilities.
    fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Mlserver => &["sklearn", "xgboost"],
            Self::Triton => &[
                "triton",
                "dali",
                "fil",
                "onnx",
                "openvino",
                "python",
                "pytorch",
                "tensorflow",
                "tensorrt",
            ],
        }
    }
}

/// What a pod's name says.
#[derive(Debug, PartialEq, Eq)]
struct Pod {
    server: String,
    ordinal: u32,
}

impl Pod {
    fn parse(name: &str, deployment: bool) -> Option<Self> {
        let (stem, last) = name.rsplit_once('-')?;
        if !deployment {
            return Some(Self {
                server: stem.to_owned(),
                ordinal: last.parse().ok()?,
            });
        }
        let (server, hash) = stem.rsplit_once('-')?;
        let text = format!("{hash}-{last}");
        let ordinal = crate::hash::fnv32a(&text);
        Some(Self {
            server: server.to_owned(),
            ordinal,
        })
    }
}

fn overridden(mut own: ReplicaConfig, json: &str) -> anyhow::Result<ReplicaConfig> {
    if json.trim().is_empty() {
        return Ok(own);
    }
    let descriptor = seldon_proto::POOL
        .get_message_by_name("seldon.mlops.agent.ReplicaConfig")
        .context("the message is not known")?;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let given: ReplicaConfig =
        DynamicMessage::deserialize(descriptor, &mut deserializer)?.transcode_to()?;
    if !given.inference_svc.is_empty() {
        own.inference_svc = given.inference_svc;
    }
    if given.inference_http_port != 0 {
        own.inference_http_port = given.inference_http_port;
    }
    if given.inference_grpc_port != 0 {
        own.inference_grpc_port = given.inference_grpc_port;
    }
    if given.memory_bytes != 0 {
        own.memory_bytes = given.memory_bytes;
    }
    if !given.capabilities.is_empty() {
        own.capabilities = given.capabilities;
    }
    if given.over_commit_percentage != 0 {
        own.over_commit_percentage = given.over_commit_percentage;
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        Options::parse_from(std::iter::once("seldon-agent").chain(arguments.iter().copied()))
    }

    #[test]
    fn documented_defaults() {
        let options = options(&[]);
        assert_eq!(
            (options.scheduler_port, options.scheduler_tls_port),
            (9005, 9055)
        );
        assert_eq!(
            (
                options.reverse_proxy_http_port,
                options.reverse_proxy_grpc_port
            ),
            (9999, 9998)
        );
        assert_eq!(
            (options.inference_http_port, options.inference_grpc_port),
            (8080, 9500)
        );
        assert_eq!(
            (
                options.metrics_port,
                options.drainer_port,
                options.debug_grpc_port
            ),
            (9006, 9007, 7777)
        );
        let identity = options.identity(9999).unwrap();
        assert_eq!(identity.config.capabilities, ["sklearn", "xgboost"]);
        assert_eq!(
            (identity.server_name.as_str(), identity.replica_idx),
            ("mlserver", 0)
        );
        assert_eq!(identity.config.inference_svc, "127.0.0.1");
        assert_eq!(
            identity.config.inference_http_port,
            identity.config.inference_grpc_port
        );
        options.validate().unwrap();
    }

    #[test]
    fn pods_name_server_and_replica() {
        let named = |arguments: &[&str]| options(arguments).identity(9001).unwrap();
        let identity = named(&["--pod-name", "my-server-12"]);
        assert_eq!(
            (identity.server_name.as_str(), identity.replica_idx),
            ("my-server", 12)
        );
        assert_eq!(identity.config.inference_svc, "my-server-12");
        let identity = named(&[
            "--pod-name",
            "my-server-12",
            "--server-name",
            "x",
            "--server-idx",
            "3",
        ]);
        assert_eq!(
            (identity.server_name.as_str(), identity.replica_idx),
            ("x", 3)
        );
        let identity = named(&[
            "--pod-name",
            "srv-5d9c-x2x",
            "--pod-ip",
            "10.0.0.7",
            "--use-deployments-for-servers=true",
        ]);
        assert_eq!(identity.server_name, "srv");
        assert_eq!(identity.config.inference_svc, "10.0.0.7");
    }

    #[test]
    fn replica_config_overrides_single_fields() {
        let json = r#"{"inferenceSvc":"mlserver","memoryBytes":"5","capabilities":["a","b"]}"#;
        let config = options(&["--replica-config", json])
            .identity(9001)
            .unwrap()
            .config;
        assert_eq!(
            (
                config.inference_svc.as_str(),
                config.memory_bytes,
                config.inference_http_port
            ),
            ("mlserver", 5, 9001)
        );
        assert_eq!(config.capabilities, ["a", "b"]);
        assert!(
            options(&["--replica-config", "{\"nope\":1}"])
                .identity(1)
                .is_err()
        );
    }

    #[test]
    fn triton_offers_what_is_documented() {
        let config = |arguments: &[&str]| {
            let own = ["--server-type", "triton"];
            let options = options(&[&own[..], arguments].concat());
            options.identity(1).unwrap().config
        };
        let offered = config(&[]).capabilities;
        assert_eq!(
            offered.join(","),
            "triton,dali,fil,onnx,openvino,python,pytorch,tensorflow,tensorrt"
        );
        assert_eq!(config(&["--capabilities", "a, b"]).capabilities, ["a", "b"]);
    }
}
