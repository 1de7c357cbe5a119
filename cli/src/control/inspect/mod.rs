//! `seldon pipeline inspect`: the last records of a pipeline, as they are in Kafka.
mod expression;
mod message;

use std::{
    env,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use seldon_kafka::{Admin, Consumer, Position, Settings};
use seldon_proto::scheduler::PipelineStatusRequest;
use seldon_records::{Names, Record, Topic, header};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use self::{expression::Expression, message::Message};
use super::session::{SUBSCRIBER, Session};
use crate::{
    args::{Inspect, InspectFormat},
    config, output,
};

/// So many records of a partition are looked at for each that is wanted: others' records share the topics.
const LOOK_BACK: i64 = 20;
const MOST: i64 = 2_000;

/// Runs it.
pub(crate) async fn run(args: Inspect) -> Result<()> {
    let expression = Expression::parse(&args.expression)?;
    let session = Session::open(&args.control).await?;
    let steps = steps(&session, &expression.pipeline).await?;
    let wanted = expression.topics(&steps)?;
    let reader = Reader::new(&args)?;
    let deadline = Instant::now() + Duration::from_secs(args.timeout_secs.min(u64::from(u32::MAX)));
    let mut found = Vec::new();
    for topic in wanted {
        let records = timeout_at(deadline, reader.last(&topic, &expression.pipeline, &args));
        let records = records.await.with_context(|| {
            format!(
                "Kafka at {} did not answer within {} s (--timeout-secs): --kafka-broker or SELDON_KAFKA_BROKER says where it is",
                reader.at, args.timeout_secs
            )
        })??;
        let tensor = expression.tensor.as_deref();
        let messages: Vec<Message> = records
            .iter()
            .filter_map(|record| Message::of(record, &topic, tensor))
            .collect();
        found.push((reader.names.topic(&topic), messages));
    }
    if found.iter().all(|(_, messages)| messages.is_empty()) {
        // Beside the output, which scripts read.
        let topics: Vec<&str> = found.iter().map(|(topic, _)| topic.as_str()).collect();
        eprintln!(
            "no such records among the last of {} (--offset looks further back)",
            topics.join(", ")
        );
    }
    print(&found, &args)
}

fn print(found: &[(String, Vec<Message>)], args: &Inspect) -> Result<()> {
    if args.format == InspectFormat::Json {
        let topics: Vec<Value> = found
            .iter()
            .map(|(name, messages)| as_json(name, messages))
            .collect();
        return output::line(json!({"topics": topics}));
    }
    for (topic, messages) in found {
        for message in messages {
            output::line(message.line(topic, args.control.verbose, args.truncate))?;
        }
    }
    Ok(())
}

/// Without any message `msgs` is `null`: the documented loop waits for that to change.
fn as_json(name: &str, messages: &[Message]) -> Value {
    let messages: Vec<Value> = messages.iter().map(Message::json).collect();
    let messages = if messages.is_empty() {
        Value::Null
    } else {
        messages.into()
    };
    json!({"name": name, "msgs": messages})
}

/// The names of a pipeline's steps, sorted.
async fn steps(session: &Session, pipeline: &str) -> Result<Vec<String>> {
    let request = PipelineStatusRequest {
        subscriber_name: SUBSCRIBER.to_owned(),
        name: Some(pipeline.to_owned()),
        all_versions: false,
    };
    let answer = session.client.clone().pipeline_status(request).await;
    let status = session.first(answer, pipeline).await?;
    let latest = status.versions.into_iter().next_back();
    let pipeline = latest
        .and_then(|version| version.pipeline)
        .unwrap_or_default();
    let mut steps: Vec<String> = pipeline.steps.into_iter().map(|step| step.name).collect();
    steps.sort();
    Ok(steps)
}

struct Reader {
    /// Where its settings say that Kafka is.
    at: String,
    names: Names,
    admin: Admin,
    consumer: Consumer,
}

impl Reader {
    fn new(args: &Inspect) -> Result<Self> {
        let configured = config::active()?.kafka;
        let file = args
            .kafka_config_path
            .clone()
            .or_else(|| variable("SELDON_KAFKA_CONFIG_PATH").map(PathBuf::from));
        let (settings, at) = match file {
            Some(path) => (Settings::load(&path)?, path.display().to_string()),
            None => {
                let broker = args
                    .kafka_broker
                    .clone()
                    .or_else(|| variable("SELDON_KAFKA_BROKER"));
                let broker = broker.or(configured.bootstrap);
                let broker = broker.unwrap_or_else(|| "0.0.0.0:9092".to_owned());
                (Settings::local(&broker), broker)
            }
        };
        let namespace = args.namespace.clone().or_else(|| variable("POD_NAMESPACE"));
        let namespace = namespace.or(configured.namespace).unwrap_or_default();
        let names = match configured.topic_prefix {
            Some(prefix) => Names::new(Some(&prefix), &namespace, None)?,
            None => settings.names(&namespace)?,
        };
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let group = format!("seldon-cli-{}-{}", std::process::id(), since.as_millis());
        Ok(Self {
            at,
            names,
            admin: Admin::new(&settings)?,
            consumer: Consumer::new(&settings, &group, false)?,
        })
    }

    /// The last records of a topic that belong to the pipeline, oldest first.
    async fn last(&self, topic: &Topic, pipeline: &str, args: &Inspect) -> Result<Vec<Record>> {
        let name: Arc<str> = self.names.topic(topic).into();
        let Some(partitions) = self.admin.partitions(&name).await? else {
            return Ok(Vec::new());
        };
        // Whoever writes to a pipeline's own topic by hand need not say whose the record is.
        let shared = !matches!(topic, Topic::PipelineInputs(_));
        let mut found = Vec::new();
        for partition in 0..partitions {
            let own = |record: &Record| {
                let key = record.key.as_deref().unwrap_or_default();
                let of = record.headers.text(header::PIPELINE);
                (of == Some(pipeline) || !shared && of.is_none())
                    && (args.request_id.is_empty() || key == args.request_id.as_bytes())
            };
            let mut records = self.tail(&name, partition, window(args)).await?;
            records.retain(own);
            let most = usize::try_from(args.offset.max(1)).unwrap_or(usize::MAX);
            found.extend(records.split_off(records.len().saturating_sub(most)));
        }
        found.sort_by_key(|record| (record.timestamp_ms, record.partition, record.offset));
        Ok(found)
    }

    /// The last `window` records of a partition.
    async fn tail(&self, topic: &Arc<str>, partition: i32, window: i64) -> Result<Vec<Record>> {
        let (low, high) = self.consumer.watermarks(topic, partition).await?;
        let from = low.max(high - window);
        let mut records = Vec::new();
        if from >= high {
            return Ok(records);
        }
        let place = (topic.clone(), partition);
        self.consumer
            .assign(&[(topic.clone(), partition, Position::Offset(from))])?;
        let mut patience = Instant::now() + Duration::from_secs(2);
        // Records of transactions leave gaps at the end: what does not come soon is not there.
        while let Ok(record) = timeout_at(patience, self.consumer.recv()).await {
            let record = record?;
            if *record.topic != **topic || record.partition != partition {
                continue;
            }
            patience = Instant::now() + Duration::from_secs(1);
            let last = record.offset + 1 >= high;
            records.push(record);
            if last {
                break;
            }
        }
        self.consumer.unassign(&[place])?;
        Ok(records)
    }
}

/// Without a request's id others' records are looked through, with one as many as the user says.
fn window(args: &Inspect) -> i64 {
    let offset = args.offset.clamp(1, MOST);
    if args.request_id.is_empty() {
        (offset * LOOK_BACK).min(MOST)
    } else {
        offset.max(LOOK_BACK)
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
