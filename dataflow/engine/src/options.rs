//! Flags and environment, named as documented. A flag beats the environment, which beats the default.
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use seldon_kafka::Settings;
use serde_json::{Map, Value, json};

/// What is promised after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guarantee {
    /// Nothing is lost; what may have been written before is marked.
    AtLeastOnce,
    /// Each result is in its topic once, for readers of committed records.
    ExactlyOnce,
}

/// Carries the records of pipelines from step to step.
#[derive(Clone, Debug, Parser)]
#[command(name = "seldon-dataflow-engine", version)]
pub struct Options {
    /// Unlike all other engines' [default: POD_NAME, or the host's name and a random number]
    #[arg(long, env = "SELDON_DATAFLOW_REPLICA_ID")]
    pub dataflow_replica_id: Option<String>,
    /// Part of the names of topics and groups.
    #[arg(long, env = "SELDON_POD_NAMESPACE", default_value = "")]
    pub pod_namespace: String,
    /// Host of the scheduler.
    #[arg(long, env = "SELDON_UPSTREAM_HOST", default_value = "0.0.0.0")]
    pub upstream_host: String,
    /// The scheduler's port for engines.
    #[arg(long, env = "SELDON_UPSTREAM_PORT", default_value_t = 9008)]
    pub upstream_port: u16,
    /// Seconds between signs of life asked from the scheduler.
    #[arg(long, default_value_t = 5)]
    pub upstream_keepalive_seconds: u64,
    /// Guarantee after a crash.
    #[arg(
        long,
        env = "SELDON_PROCESSING_GUARANTEE",
        value_enum,
        default_value = "at-least-once"
    )]
    pub processing_guarantee: Guarantee,
    /// Pipelines that are created or deleted at a time.
    #[arg(long, env = "SELDON_PIPELINE_CTLOPS_THREADS", default_value_t = 8)]
    pub pipeline_ctlops_threads: usize,

    /// A kafka.json as the gateways have it; without it the flags below count.
    #[arg(long, env = "SELDON_KAFKA_CONFIG_PATH")]
    pub kafka_config_path: Option<PathBuf>,
    /// Brokers to begin with.
    #[arg(
        long,
        env = "SELDON_KAFKA_BOOTSTRAP_SERVERS",
        default_value = "localhost:9092"
    )]
    pub kafka_bootstrap_servers: String,
    /// Prefix of the consumer group's name.
    #[arg(long, env = "SELDON_KAFKA_CONSUMER_PREFIX", default_value = "")]
    pub kafka_consumer_prefix: String,
    /// PLAINTEXT, SSL, SASL_SSL.
    #[arg(long, env = "SELDON_KAFKA_SECURITY_PROTOCOL", default_value = "")]
    pub kafka_security_protocol: String,
    /// Partitions of topics that are made.
    #[arg(long, env = "SELDON_KAFKA_PARTITIONS_DEFAULT", default_value_t = 1)]
    pub kafka_partitions_default: i32,
    /// Replicas of topics that are made.
    #[arg(long, env = "SELDON_KAFKA_REPLICATION_FACTOR", default_value_t = 1)]
    pub kafka_replication_factor: i32,
    /// For steps that name no window, in milliseconds.
    #[arg(
        long,
        env = "SELDON_KAFKA_JOIN_WINDOW_MILLIS",
        default_value_t = 60_000
    )]
    pub kafka_join_window_millis: u32,
    /// The largest record that is written.
    #[arg(
        long,
        env = "SELDON_KAFKA_MAX_MESSAGE_SIZE_BYTES",
        default_value_t = 1_000_000_000
    )]
    pub kafka_max_message_size_bytes: u64,
    /// The client's key, PEM.
    #[arg(long, env = "SELDON_KAFKA_TLS_CLIENT_KEY_PATH", default_value = "")]
    pub kafka_tls_client_key_path: String,
    /// The client's certificate, PEM.
    #[arg(long, env = "SELDON_KAFKA_TLS_CLIENT_CERT_PATH", default_value = "")]
    pub kafka_tls_client_cert_path: String,
    /// Authorities, where there are none for the broker.
    #[arg(long, env = "SELDON_KAFKA_TLS_CLIENT_CA_PATH", default_value = "")]
    pub kafka_tls_client_ca_path: String,
    /// Authorities that the broker's certificate is checked with.
    #[arg(long, env = "SELDON_KAFKA_TLS_BROKER_CA_PATH", default_value = "")]
    pub kafka_tls_broker_ca_path: String,
    /// `https`, or `none` where the broker's name is not in its certificate.
    #[arg(
        long,
        env = "SELDON_KAFKA_TLS_ENDPOINT_IDENTIFICATION_ALGORITHM",
        default_value = ""
    )]
    pub kafka_tls_endpoint_identification_algorithm: String,
    /// PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER.
    #[arg(long, env = "SELDON_KAFKA_SASL_MECHANISM", default_value = "PLAIN")]
    pub kafka_sasl_mechanism: String,
    /// User at the broker.
    #[arg(long, env = "SELDON_KAFKA_SASL_USERNAME", default_value = "seldon")]
    pub kafka_sasl_username: String,
    /// File that holds the password.
    #[arg(long, env = "SELDON_KAFKA_SASL_PASSWORD_PATH", default_value = "")]
    pub kafka_sasl_password_path: String,
    /// How often topics are looked at for more partitions, in seconds.
    #[arg(long, default_value_t = 30)]
    pub metadata_refresh_seconds: u64,

    /// Address of probes and metrics.
    #[arg(long, default_value = "0.0.0.0")]
    pub health_server_host: IpAddr,
    /// Port of probes and metrics.
    #[arg(long, env = "SELDON_HEALTH_SERVER_PORT", default_value_t = 8000)]
    pub health_server_port: u16,
    /// error, warn, info, debug or trace.
    #[arg(long, env = "SELDON_LOG_LEVEL_APP", default_value = "info")]
    pub log_level_app: String,
    /// Says where traces go.
    #[arg(long, env = "SELDON_TRACING_CONFIG_PATH", default_value = "")]
    pub tracing_config_path: String,
}

impl Options {
    /// The name under which the scheduler knows this engine.
    pub fn replica(&self) -> String {
        let given = self.dataflow_replica_id.clone();
        given
            .filter(|id| !id.is_empty())
            .or_else(|| std::env::var("POD_NAME").ok())
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| seldon_telemetry::process_name().to_owned())
    }

    /// Refuses what cannot work.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.upstream_host.is_empty() {
            bail!("--upstream-host is empty");
        }
        if self.replica().contains('|') {
            bail!("--dataflow-replica-id must not hold a bar (|)");
        }
        Ok(())
    }

    /// The window for steps that name none, where it is not the documented one.
    pub fn join_window(&self) -> Option<u32> {
        Some(self.kafka_join_window_millis).filter(|window| *window != 60_000)
    }

    /// Of Kafka: the file's, else the flags'.
    pub fn kafka(&self) -> anyhow::Result<Settings> {
        match &self.kafka_config_path {
            Some(path) => Settings::load(path),
            None => Settings::from_json(&self.kafka_json()?.to_string()),
        }
    }

    fn kafka_json(&self) -> anyhow::Result<Value> {
        let mut client = Map::new();
        let mut set = |key: &str, value: &str| {
            if !value.is_empty() {
                client.insert(key.to_owned(), json!(value));
            }
        };
        let protocol = &self.kafka_security_protocol;
        set("security.protocol", protocol);
        if protocol.contains("SSL") {
            let ca = match self.kafka_tls_broker_ca_path.as_str() {
                "" => &self.kafka_tls_client_ca_path,
                path => path,
            };
            set("ssl.ca.location", ca);
            set("ssl.key.location", &self.kafka_tls_client_key_path);
            set("ssl.certificate.location", &self.kafka_tls_client_cert_path);
            let algorithm = &self.kafka_tls_endpoint_identification_algorithm;
            set("ssl.endpoint.identification.algorithm", algorithm);
        }
        if protocol.starts_with("SASL") {
            let path = &self.kafka_sasl_password_path;
            let password = std::fs::read_to_string(path)
                .with_context(|| format!("--kafka-sasl-password-path {path:?}"))?;
            set("sasl.mechanism", &self.kafka_sasl_mechanism);
            set("sasl.username", &self.kafka_sasl_username);
            set("sasl.password", password.trim_end());
        }
        let size = self.kafka_max_message_size_bytes;
        let mut producer = client.clone();
        producer.insert("message.max.bytes".to_owned(), json!(size));
        Ok(json!({
            "bootstrap.servers": self.kafka_bootstrap_servers,
            "consumerGroupIdPrefix": self.kafka_consumer_prefix,
            "consumer": client,
            "producer": producer,
            "topics": {
                "numPartitions": self.kafka_partitions_default,
                "replicationFactor": self.kafka_replication_factor,
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_make_settings_of_kafka() {
        let options = Options::parse_from([
            "seldon-dataflow-engine",
            "--dataflow-replica-id=engine-1",
            "--kafka-bootstrap-servers=kafka:9093",
            "--kafka-partitions-default=3",
        ]);
        options.validate().expect("valid");
        assert_eq!(options.replica(), "engine-1");
        let settings = options.kafka().expect("settings");
        assert_eq!(settings.partitions(), 3);
    }
}
