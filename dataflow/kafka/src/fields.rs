//! `kafka.json` as documented.
use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value};

use crate::Result;

/// Properties of librdkafka, all as text.
pub(crate) type Properties = BTreeMap<String, String>;

const KNOWN: &str = "bootstrap.servers, debug, consumer, producer, streams, topics, topicPrefix, consumerGroupIdPrefix";

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    /// `bootstrap.servers` and `debug`, where given: of producers and consumers that say nothing else.
    pub(crate) common: Properties,
    pub(crate) consumer: Properties,
    pub(crate) producer: Properties,
    pub(crate) partitions: Option<i32>,
    pub(crate) replication: Option<i32>,
    /// Settings of new topics, which the broker knows.
    pub(crate) topic_settings: Properties,
    pub(crate) topic_prefix: Option<String>,
    pub(crate) group_prefix: Option<String>,
}

impl Fields {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let all: Map<String, Value> = serde_json::from_str(text).context("no JSON object")?;
        let mut fields = Self::default();
        for (name, value) in &all {
            match name.as_str() {
                "bootstrap.servers" | "debug" => {
                    fields.common.insert(name.clone(), text_of(name, value)?);
                }
                "consumer" => fields.consumer = properties(name, value)?,
                "producer" => fields.producer = properties(name, value)?,
                // Of the Java library that the documented engine uses: what is common is taken from the others.
                "streams" => drop(properties(name, value)?),
                "topics" => fields.topics(value)?,
                "topicPrefix" => fields.topic_prefix = Some(text_of(name, value)?),
                "consumerGroupIdPrefix" => fields.group_prefix = Some(text_of(name, value)?),
                other => bail!("field {other:?} is not known: use {KNOWN}"),
            }
        }
        Ok(fields)
    }

    fn topics(&mut self, value: &Value) -> Result<()> {
        for (name, value) in object("topics", value)? {
            let field = match name.as_str() {
                "numPartitions" => &mut self.partitions,
                "replicationFactor" => &mut self.replication,
                // As a broker's names for these are, all but one. A topic that is compacted would lose requests.
                setting if setting.contains('.') && setting != "cleanup.policy" => {
                    let text = text_of(&format!("topics.{name}"), value)?;
                    self.topic_settings.insert(name.clone(), text);
                    continue;
                }
                other => bail!(
                    "field \"topics.{other}\" is not known: use numPartitions, replicationFactor or a topic's setting \
                     such as retention.ms"
                ),
            };
            *field = Some(positive(&format!("topics.{name}"), &text_of(name, value)?)?);
        }
        Ok(())
    }
}

/// A number of partitions or replicas.
pub(crate) fn positive(name: &str, text: &str) -> Result<i32> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.with_context(|| format!("{name} is {text:?}: use a whole number above 0"))
}

fn object<'a>(name: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    let object = value.as_object();
    object.with_context(|| format!("field {name:?} is no object of names and values"))
}

fn properties(name: &str, value: &Value) -> Result<Properties> {
    if value.is_null() {
        return Ok(Properties::new());
    }
    let pairs = object(name, value)?.iter();
    // Those of the Go client are no properties of librdkafka.
    let pairs = pairs.filter(|(key, _)| !key.starts_with("go."));
    pairs
        .map(|(key, value)| Ok((key.clone(), text_of(&format!("{name}.{key}"), value)?)))
        .collect()
}

/// Numbers without a fraction are whole, however they are written.
fn text_of(name: &str, value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Number(number) => Ok(match number.as_f64() {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "checked to be whole and small"
            )]
            Some(float) if !number.is_i64() && float.fract() == 0.0 && float.abs() < 1e15 => {
                (float as i64).to_string()
            }
            _ => number.to_string(),
        }),
        _ => bail!("field {name:?} is no text, number or boolean"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file() {
        let fields = Fields::parse(
            r#"{"bootstrap.servers": "kafka:9092", "debug": "all", "topicPrefix": "acme",
                "consumer": {"session.timeout.ms": 6e3, "auto.offset.reset": "earliest", "go.logs.channel.enable": true},
                "producer": {"linger.ms": 0, "enable.idempotence": true}, "streams": {"replication.factor": 1},
                "topics": {"numPartitions": 4, "replicationFactor": 3, "retention.ms": 36e5}, "consumerGroupIdPrefix": "g"}"#,
        )
        .unwrap();
        assert_eq!(fields.topic_settings["retention.ms"], "3600000");
        assert_eq!(fields.consumer["session.timeout.ms"], "6000");
        assert_eq!(fields.consumer.len(), 2);
        assert_eq!(fields.producer["enable.idempotence"], "true");
        assert_eq!(fields.common["bootstrap.servers"], "kafka:9092");
        assert_eq!((fields.partitions, fields.replication), (Some(4), Some(3)));
        assert_eq!(fields.topic_prefix.as_deref(), Some("acme"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            (r#"{"bootstrap.server": "x"}"#, "bootstrap.server"),
            (r#"{"topics": {"partitions": 1}}"#, "topics.partitions"),
            (
                r#"{"topics": {"cleanup.policy": "compact"}}"#,
                "topics.cleanup.policy",
            ),
            (
                r#"{"topics": {"numPartitions": 0}}"#,
                "topics.numPartitions",
            ),
            (r#"{"consumer": {"a": []}}"#, "consumer.a"),
            ("[]", "JSON object"),
        ] {
            let error = format!("{:#}", Fields::parse(text).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
