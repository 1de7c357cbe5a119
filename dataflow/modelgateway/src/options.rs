//! Flags and environment, named as documented. A flag beats the environment, which beats the default.
use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

/// What holds for results after a crash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Guarantee {
    /// None is lost; what may have been written before is marked.
    #[default]
    AtLeastOnce,
    /// Results and progress in transactions: readers of what is committed see each once.
    ExactlyOnce,
}

/// Asks models for what is written to their inputs topics.
#[derive(Clone, Debug, Parser)]
#[command(name = "seldon-modelgateway", version)]
pub struct Options {
    /// Host of the scheduler.
    #[arg(long, env = "SELDON_SCHEDULER_HOST", default_value = "0.0.0.0")]
    pub scheduler_host: String,
    /// Its port without TLS.
    #[arg(long, env = "SELDON_SCHEDULER_PLAINTXT_PORT", default_value_t = 9004)]
    pub scheduler_plaintxt_port: u16,
    /// Used instead with CONTROL_PLANE_SECURITY_PROTOCOL=SSL.
    #[arg(long, env = "SELDON_SCHEDULER_TLS_PORT", default_value_t = 9044)]
    pub scheduler_tls_port: u16,
    /// Host of Envoy, where models are asked.
    #[arg(long, env = "SELDON_ENVOY_HOST", default_value = "0.0.0.0")]
    pub envoy_host: String,
    /// Its port for REST and gRPC.
    #[arg(long, env = "SELDON_ENVOY_PORT", default_value_t = 9000)]
    pub envoy_port: u16,
    /// Part of the names of topics and groups; `default` where empty.
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    pub namespace: String,
    /// Settings for Kafka.
    #[arg(long, default_value = "/mnt/config/kafka.json")]
    pub kafka_config_path: PathBuf,
    /// trace, debug, info, warn or error.
    #[arg(long, env = "SELDON_LOG_LEVEL", default_value = "debug")]
    pub log_level: String,
    /// Settings for traces; none are exported where empty.
    #[arg(long, default_value = "")]
    pub tracing_config_path: String,
    /// HTTP: /startup, /ready, /live and /metrics.
    #[arg(long, default_value_t = 9999)]
    pub health_probe_port: u16,
    /// Requests to one model at a time.
    #[arg(long, env = "MODELGATEWAY_NUM_WORKERS", default_value_t = 64)]
    pub workers: usize,
    /// How long a model may take where the request brings no deadline.
    #[arg(
        long,
        env = "MODELGATEWAY_WORKER_TIMEOUT_MS",
        default_value_t = 120_000
    )]
    pub worker_timeout_ms: u64,
    /// Consumer groups that models are spread over; each costs a Kafka client.
    #[arg(long, env = "MODELGATEWAY_MAX_NUM_CONSUMERS", default_value_t = 1)]
    pub max_consumers: u32,
    /// How often the numbers of partitions, and topics that were made anew, are looked for.
    #[arg(long, default_value_t = 10)]
    pub partition_refresh_seconds: u64,
    /// What holds for results after a crash.
    #[arg(
        long,
        env = "SELDON_PROCESSING_GUARANTEE",
        value_enum,
        default_value = "at-least-once"
    )]
    pub processing_guarantee: Guarantee,
    /// How this gateway is called, unlike all others [default: the host's name and a random number]
    #[arg(long, env = "POD_NAME", default_value = seldon_telemetry::process_name(), hide_default_value = true)]
    pub name: String,
    /// Address to listen on for probes.
    #[arg(long, default_value = "0.0.0.0")]
    pub listen_host: std::net::IpAddr,
}

impl Options {
    /// How long a model may take where the request brings no deadline.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.worker_timeout_ms.clamp(1, 24 * 3_600_000))
    }
}
