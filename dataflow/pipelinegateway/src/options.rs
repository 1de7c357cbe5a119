//! Flags and environment, named as documented. A flag beats the environment, which beats the default.
use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Parser;

use crate::gateway::Limits;

/// The pipeline gateway: answers inference requests to pipelines over REST and gRPC.
#[derive(Clone, Debug, Parser)]
#[command(name = "seldon-pipelinegateway", version)]
pub struct Options {
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub host: IpAddr,
    /// REST and gRPC; told to the scheduler as the port for both.
    #[arg(long, default_value_t = 9010)]
    pub http_port: u16,
    /// The same on a second port.
    #[arg(long, default_value_t = 9011)]
    pub grpc_port: u16,
    /// `/metrics`.
    #[arg(long, default_value_t = 9006)]
    pub metrics_port: u16,
    /// `/startup`, `/ready` and `/live`.
    #[arg(long, default_value_t = 9999)]
    pub health_probe_port: u16,
    /// Where pipelines are ordered from.
    #[arg(long, env = "SELDON_SCHEDULER_HOST", default_value = "0.0.0.0")]
    pub scheduler_host: String,
    /// The scheduler's port.
    #[arg(long, default_value_t = 9004)]
    pub scheduler_plaintxt_port: u16,
    /// Used instead with CONTROL_PLANE_SECURITY_PROTOCOL=SSL.
    #[arg(long, default_value_t = 9044)]
    pub scheduler_tls_port: u16,
    /// Seconds between signs of life asked from the scheduler.
    #[arg(long, default_value_t = 5)]
    pub scheduler_keepalive_seconds: u64,
    /// Where models are asked whether they are ready.
    #[arg(long, default_value = "0.0.0.0")]
    pub envoy_host: String,
    /// Envoy's port.
    #[arg(long, default_value_t = 9000)]
    pub envoy_port: u16,
    /// Part of the topics' names.
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    pub namespace: String,
    /// Kafka's settings.
    #[arg(long, default_value = "/mnt/config/kafka.json")]
    pub kafka_config_path: PathBuf,
    /// What is logged.
    #[arg(long, env = "SELDON_LOG_LEVEL", default_value = "debug")]
    pub log_level: String,
    /// Settings of traces; none are exported without.
    #[arg(long, default_value = "")]
    pub tracing_config_path: String,
    /// How long a request waits for its answer that brings neither grpc-timeout nor x-envoy-expected-rq-timeout-ms.
    #[arg(long, default_value_t = 120_000)]
    pub request_timeout_ms: u64,
    /// No request waits longer, whatever its caller says.
    #[arg(long, default_value_t = 3_600_000)]
    pub max_request_timeout_ms: u64,
    /// How long Kafka may take to accept a request before it is refused with 503.
    #[arg(long, default_value_t = 5_000)]
    pub produce_timeout_ms: u64,
    /// Requests that wait for their answers at once; more are refused with 429.
    #[arg(long, default_value_t = 4_096)]
    pub max_in_flight: usize,
    /// Bytes of all requests that wait, and of answers that are being sent; more are refused with 429. One request alone
    /// may be larger.
    #[arg(long, default_value_t = 256 << 20)]
    pub max_in_flight_bytes: usize,
    /// Bytes of a request's body; larger ones are refused with 413.
    #[arg(long, default_value_t = 1_000 << 20)]
    pub max_body_bytes: usize,
    /// How long requests in flight may go on after a stop, and after their pipeline left.
    #[arg(long, default_value_t = 30)]
    pub drain_seconds: u64,
    /// How often the numbers of partitions are looked at.
    #[arg(long, default_value_t = 10)]
    pub partition_refresh_seconds: u64,
    /// Accepted; one consumer reads for all pipelines.
    #[arg(long, env = "PIPELINEGATEWAY_MAX_NUM_CONSUMERS", default_value_t = 100)]
    pub max_num_consumers: u32,
    /// How this gateway is called, unlike all others [default: the host's name and a random number]
    #[arg(long, env = "POD_NAME", default_value = seldon_telemetry::process_name(), hide_default_value = true)]
    pub pod_name: String,
    /// The address under which Envoy reaches this gateway [default: the address listened on]
    #[arg(long, env = "POD_IP", default_value = "")]
    pub pod_ip: String,
}

impl Options {
    /// The bounds of the gateway.
    pub fn limits(&self) -> Limits {
        Limits {
            request: Duration::from_millis(self.request_timeout_ms),
            longest: Duration::from_millis(self.max_request_timeout_ms),
            produce: Duration::from_millis(self.produce_timeout_ms),
            in_flight: self.max_in_flight,
            bytes: self.max_in_flight_bytes,
            body: self.max_body_bytes,
            drain: Duration::from_secs(self.drain_seconds),
        }
    }

    /// The address that Envoy is told.
    pub fn address(&self) -> String {
        match () {
            () if !self.pod_ip.is_empty() => self.pod_ip.clone(),
            () if self.host.is_unspecified() => "127.0.0.1".to_owned(),
            () => self.host.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_defaults() {
        let options = Options::parse_from(["seldon-pipelinegateway"]);
        assert_eq!((options.http_port, options.grpc_port), (9010, 9011));
        assert_eq!(
            (options.metrics_port, options.health_probe_port),
            (9006, 9999)
        );
        let scheduler = (options.scheduler_plaintxt_port, options.scheduler_tls_port);
        assert_eq!(scheduler, (9004, 9044));
        assert_eq!(
            options.kafka_config_path.to_str(),
            Some("/mnt/config/kafka.json")
        );
    }
}
