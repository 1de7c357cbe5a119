//! Settings of all clients: `kafka.json` and the environment.
use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use rdkafka::{
    config::{ClientConfig, RDKafkaLogLevel},
    error::KafkaError,
};
use seldon_records::{Names, PrefixError};

use crate::{
    Result,
    access::Access,
    context::Context,
    fields::{Fields, Properties, positive},
    oauth::Grant,
    security::{self, Lookup},
};

/// Of every client. Connections come back within a second; nothing waits to be sent together.
const COMMON: &[(&str, &str)] = &[
    ("socket.nagle.disable", "true"),
    ("socket.keepalive.enable", "true"),
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "1000"),
    ("log.connection.close", "false"),
    ("client.id", "seldon"),
];

/// Messages of up to 1 GB, as documented; what waits is bounded by the producer itself. Partitions of keys as Java's
/// clients choose them.
const PRODUCER: &[(&str, &str)] = &[
    ("linger.ms", "0"),
    ("acks", "all"),
    ("enable.idempotence", "true"),
    ("message.max.bytes", "1000000000"),
    ("queue.buffering.max.kbytes", "1048576"),
    ("message.timeout.ms", "60000"),
    ("partitioner", "murmur2_random"),
    ("sticky.partitioning.linger.ms", "0"),
    ("retry.backoff.max.ms", "500"),
    ("topic.metadata.propagation.max.ms", "5000"),
];

/// A fetch waits at most 100 ms at the broker, since what else is asked of the broker waits behind it. Where a position
/// does not exist any more, nothing is skipped.
const CONSUMER: &[(&str, &str)] = &[
    ("fetch.wait.max.ms", "100"),
    ("fetch.error.backoff.ms", "50"),
    ("fetch.queue.backoff.ms", "20"),
    ("fetch.max.bytes", "16777216"),
    ("receive.message.max.bytes", "1000010000"),
    ("queued.min.messages", "10000"),
    ("queued.max.messages.kbytes", "32768"),
    ("auto.offset.reset", "earliest"),
    ("topic.metadata.propagation.max.ms", "5000"),
];

/// Not to be changed: positions are kept by us.
const OURS: &[(&str, &str)] = &[
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("enable.partition.eof", "false"),
];

/// What all clients of a process are made of.
#[derive(Clone, Debug)]
pub struct Settings {
    fields: Fields,
    security: Properties,
    partitions: i32,
    replication: i32,
}

impl Settings {
    /// Reads `kafka.json`, and the environment.
    pub fn load(path: &Path) -> Result<Self> {
        let name = || format!("{}", path.display());
        let text = fs::read_to_string(path).with_context(name)?;
        Self::from_json(&text).with_context(name)
    }

    /// The contents of `kafka.json`, and the environment.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::from_json_with(text, &|name| std::env::var(name).ok())
    }

    /// The contents of `kafka.json`, and an environment of the caller's.
    pub fn from_json_with(text: &str, environment: Lookup<'_>) -> Result<Self> {
        Self::with(Fields::parse(text)?, environment)
    }

    /// All defaults, without security, whatever the environment says.
    pub fn local(bootstrap: &str) -> Self {
        let common = [("bootstrap.servers".to_owned(), bootstrap.to_owned())];
        let fields = Fields {
            common: common.into(),
            ..Fields::default()
        };
        Self {
            fields,
            security: Properties::new(),
            partitions: 1,
            replication: 1,
        }
    }

    fn with(fields: Fields, lookup: Lookup<'_>) -> Result<Self> {
        let count = |variable: &str, of_file: Option<i32>| match lookup(variable) {
            Some(text) if !text.is_empty() => positive(variable, &text),
            _ => Ok(of_file.unwrap_or(1)),
        };
        check("consumer", &fields.consumer)?;
        check("producer", &fields.producer)?;
        Ok(Self {
            partitions: count("KAFKA_DEFAULT_NUM_PARTITIONS", fields.partitions)?,
            replication: count("KAFKA_DEFAULT_REPLICATION_FACTOR", fields.replication)?,
            security: security::properties(lookup)?,
            fields,
        })
    }

    /// Names of topics and groups.
    pub fn names(&self, namespace: &str) -> Result<Names, PrefixError> {
        let fields = &self.fields;
        Names::new(
            fields.topic_prefix.as_deref(),
            namespace,
            fields.group_prefix.as_deref(),
        )
    }

    /// Of new topics: `KAFKA_DEFAULT_NUM_PARTITIONS`, else `topics.numPartitions`, else 1.
    pub fn partitions(&self) -> i32 {
        self.partitions
    }

    /// Of new topics: `KAFKA_DEFAULT_REPLICATION_FACTOR`, else `topics.replicationFactor`, else 1.
    pub fn replication(&self) -> i32 {
        self.replication
    }

    /// Further settings of new topics: `topics`.
    pub(crate) fn of_topics(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.fields.topic_settings.iter();
        all.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(crate) fn producer(&self, more: &[(&str, &str)]) -> Result<(ClientConfig, Context)> {
        let own = &self.fields.producer;
        let mut all = self.gathered(PRODUCER, own);
        // A broker setting that excludes idempotence turns it off, unless it is asked for.
        let weaker = own.get("acks").or(own.get("request.required.acks"));
        let weaker = weaker.is_some_and(|acks| acks != "all" && acks != "-1");
        if weaker && !own.contains_key("enable.idempotence") {
            all.insert("enable.idempotence".to_owned(), "false".to_owned());
        }
        if !more.is_empty() {
            all.insert("enable.idempotence".to_owned(), "true".to_owned());
            all.insert("acks".to_owned(), "all".to_owned());
            all.remove("request.required.acks");
        }
        all.extend(more.iter().map(owned));
        client(all)
    }

    pub(crate) fn consumer(
        &self,
        group: &str,
        committed_only: bool,
    ) -> Result<(ClientConfig, Context)> {
        let own = &self.fields.consumer;
        let mut all = self.gathered(CONSUMER, own);
        // A consumer only compares it with this one, and the documented file has it beside our smaller default.
        if !own.contains_key("fetch.max.bytes") {
            all.remove("message.max.bytes");
        }
        all.extend(OURS.iter().map(owned));
        let isolation = if committed_only {
            "read_committed"
        } else {
            "read_uncommitted"
        };
        all.insert("isolation.level".to_owned(), isolation.to_owned());
        all.insert("group.id".to_owned(), group.to_owned());
        client(all)
    }

    /// Topics are made by a client with the producer's connection settings.
    pub(crate) fn admin(&self) -> Result<(ClientConfig, Context)> {
        const CONNECTION: [&str; 9] = [
            "bootstrap.",
            "metadata.broker",
            "debug",
            "security.",
            "ssl.",
            "sasl.",
            "https.",
            "socket.",
            "broker.address",
        ];
        let mut all = self.gathered(&[], &self.fields.producer);
        let ours = |key: &str| COMMON.iter().any(|(name, _)| *name == key);
        all.retain(|key, _| ours(key) || CONNECTION.iter().any(|start| key.starts_with(start)));
        client(all)
    }

    fn gathered(&self, defaults: &[(&str, &str)], own: &Properties) -> Properties {
        let mut all: Properties = COMMON.iter().chain(defaults).map(owned).collect();
        for more in [&self.security, &self.fields.common, own] {
            all.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        all
    }
}

fn owned((key, value): &(&str, &str)) -> (String, String) {
    ((*key).to_owned(), (*value).to_owned())
}

/// Each must be a property of librdkafka, with a value that it takes. Values are not repeated: some are secrets.
fn check(section: &str, own: &Properties) -> Result<()> {
    for (key, value) in own.iter().filter(|(key, _)| !Grant::takes(key)) {
        let mut one = ClientConfig::new();
        one.set(key, value);
        match one.create_native_config() {
            Ok(_) => {}
            Err(KafkaError::ClientConfig(_, reason, ..)) if reason.starts_with("No such") => bail!(
                "field \"{section}.{key}\" is no property of librdkafka: see its CONFIGURATION.md for their names"
            ),
            Err(KafkaError::ClientConfig(_, reason, ..)) => {
                bail!("field \"{section}.{key}\" does not take its value: {reason}")
            }
            Err(error) => bail!("field \"{section}.{key}\" cannot be used: {error}"),
        }
    }
    Ok(())
}

fn client(mut all: Properties) -> Result<(ClientConfig, Context)> {
    let access = Access::of(&all);
    let grant = Grant::taken_from(&mut all)?.map(Arc::new);
    let mut config = ClientConfig::new();
    let level = match all.remove("log_level").as_deref() {
        Some("6" | "7") => RDKafkaLogLevel::Debug,
        _ if all.contains_key("debug") => RDKafkaLogLevel::Debug,
        _ => RDKafkaLogLevel::Info,
    };
    config.set_log_level(level);
    for (key, value) in all {
        config.set(key, value);
    }
    Ok((config, Context { grant, access }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str, environment: &[(&str, &str)]) -> Result<Settings> {
        Settings::with(Fields::parse(json)?, &|name| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn every_property_of_librdkafka_and_no_other() {
        let known = r#"{"consumer": {"socket.max.fails": 3, "session.timeout.ms": 6000, "auto.offset.reset": "latest"},
            "producer": {"compression.type": "zstd", "request.required.acks": -1, "go.delivery.reports": true}}"#;
        let known = settings(known, &[]).unwrap();
        let (consumer, _) = known.consumer("g", false).unwrap();
        assert_eq!(consumer.get("socket.max.fails"), Some("3"));
        let (producer, _) = known.producer(&[]).unwrap();
        assert_eq!(producer.get("compression.type"), Some("zstd"));
        for (json, named) in [
            (
                r#"{"consumer": {"fetch.wait": 1}}"#,
                "\"consumer.fetch.wait\" is no property",
            ),
            (
                r#"{"producer": {"compression.type": "best"}}"#,
                "\"producer.compression.type\" does not take",
            ),
            (
                r#"{"producer": {"linger.ms": -7}}"#,
                "\"producer.linger.ms\" does not take",
            ),
        ] {
            let error = format!("{:#}", settings(json, &[]).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kafka.json");
        std::fs::write(&path, r#"{"consumer": {"fetch.wait": 1}}"#).unwrap();
        let error = format!("{:#}", Settings::load(&path).unwrap_err());
        assert!(
            error.contains("kafka.json: field") && error.contains("consumer.fetch.wait"),
            "{error}"
        );
    }

    #[test]
    fn the_file_over_our_defaults_and_ours_over_the_file() {
        let json = r#"{"bootstrap.servers": "a:1", "topics": {"numPartitions": 4, "replicationFactor": 2},
            "consumer": {"enable.auto.commit": true, "fetch.wait.max.ms": 7}, "producer": {"acks": 1}}"#;
        let settings = settings(json, &[("KAFKA_DEFAULT_NUM_PARTITIONS", "8")]).unwrap();
        assert_eq!((settings.partitions(), settings.replication()), (8, 2));
        let (consumer, _) = settings.consumer("g", true).unwrap();
        assert_eq!(consumer.get("enable.auto.commit"), Some("false"));
        assert_eq!(consumer.get("fetch.wait.max.ms"), Some("7"));
        assert_eq!(consumer.get("isolation.level"), Some("read_committed"));
        let (producer, _) = settings.producer(&[]).unwrap();
        assert_eq!(producer.get("enable.idempotence"), Some("false"));
        let (producer, _) = settings.producer(&[("transactional.id", "t")]).unwrap();
        assert_eq!(producer.get("acks"), Some("all"));
        let (admin, _) = settings.admin().unwrap();
        assert_eq!(admin.get("bootstrap.servers"), Some("a:1"));
        assert_eq!(admin.get("acks"), None);
    }
}
