//! Topics: making them, deleting them, looking at them.
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    error::KafkaError,
    types::RDKafkaErrorCode as Code,
};
use tokio::task::spawn_blocking;

use crate::{Result, Settings, context::Context};

const PATIENCE: Duration = Duration::from_secs(60);
const REQUEST: Duration = Duration::from_secs(20);
/// Topics in one request.
const BATCH: usize = 500;

/// Makes and deletes topics.
pub struct Admin {
    client: Arc<AdminClient<Context>>,
    partitions: i32,
    replication: i32,
}

impl Admin {
    /// Connects in the background.
    pub fn new(settings: &Settings) -> Result<Self> {
        let (config, context) = settings.admin()?;
        let client = config
            .create_with_context(context)
            .map_err(|error| anyhow!("no Kafka client for topics: {error}"))?;
        Ok(Self {
            client: Arc::new(client),
            partitions: settings.partitions(),
            replication: settings.replication(),
        })
    }

    /// Makes topics as the settings say, and returns when each can be written and read. Those that exist stay as they
    /// are. A broker that is away is asked again for a minute.
    pub async fn create(&self, topics: &[String], compacted: bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut missing: Vec<String> = self.invisible(topics, deadline).await?;
        loop {
            if missing.is_empty() {
                return Ok(());
            }
            let problem = self.request(&missing, compacted).await?;
            missing = self
                .wait_visible(&missing, deadline, problem.is_some())
                .await?;
            if Instant::now() > deadline && !missing.is_empty() {
                let why = problem.map_or_else(String::new, |problem| format!(": {problem}"));
                bail!(
                    "{} of the topics cannot be used after {} s, such as {}{why}",
                    missing.len(),
                    PATIENCE.as_secs(),
                    missing[0]
                );
            }
        }
    }

    /// Asks for topics; returns a problem that may pass, fails on one that will not.
    async fn request(&self, topics: &[String], compacted: bool) -> Result<Option<String>> {
        let mut problem = None;
        for batch in topics.chunks(BATCH) {
            let new: Vec<NewTopic<'_>> =
                batch.iter().map(|t| self.new_topic(t, compacted)).collect();
            let options = AdminOptions::new()
                .request_timeout(Some(REQUEST))
                .operation_timeout(Some(REQUEST));
            let results = match self.client.create_topics(&new, &options).await {
                Ok(results) => results,
                Err(error) => {
                    problem = Some(error.to_string());
                    continue;
                }
            };
            for result in results {
                match result {
                    Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
                    Err((topic, code)) if will_not_pass(code) => {
                        bail!("topic {topic} cannot be made: {code}")
                    }
                    Err((topic, code)) => problem = Some(format!("{topic}: {code}")),
                }
            }
        }
        Ok(problem)
    }

    fn new_topic<'a>(&self, name: &'a str, compacted: bool) -> NewTopic<'a> {
        let replication = TopicReplication::Fixed(self.replication);
        if compacted {
            // A compacted topic of ours is a table with a single writer per key: one partition keeps it in order.
            NewTopic::new(name, 1, replication).set("cleanup.policy", "compact")
        } else {
            NewTopic::new(name, self.partitions, replication)
        }
    }

    /// Waits for what was just asked for; returns what is still missing when it should be asked for again.
    async fn wait_visible(
        &self,
        topics: &[String],
        deadline: Instant,
        again: bool,
    ) -> Result<Vec<String>> {
        let round = Instant::now() + Duration::from_secs(if again { 1 } else { 10 });
        let mut pause = Duration::from_millis(5);
        loop {
            let missing = self.invisible(topics, deadline).await?;
            if missing.is_empty() || Instant::now() > round.min(deadline) {
                return Ok(missing);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Those without a leader for each partition.
    async fn invisible(&self, topics: &[String], deadline: Instant) -> Result<Vec<String>> {
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        let known = loop {
            match self.known(topics).await {
                Ok(known) => break known,
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("the broker does not tell its topics");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        };
        let missing = topics.iter().filter(|topic| !known.contains_key(*topic));
        Ok(missing.cloned().collect())
    }

    /// Partitions of each topic that can be used: asked one by one while they are few, or librdkafka cannot do otherwise
    /// (its guess at the memory that an answer of many short names needs is too small).
    async fn known(&self, topics: &[String]) -> Result<HashMap<String, i32>> {
        const FEW: usize = 4;
        let single = |topics: &[String]| topics.iter().cloned().map(Some).collect();
        if topics.len() <= FEW {
            return self.looked_at(single(topics)).await;
        }
        match self.looked_at(vec![None]).await {
            Ok(known) => Ok(known),
            Err(error) if error.downcast_ref().is_some_and(is_unreadable) => {
                self.looked_at(single(topics)).await
            }
            Err(error) => Err(error),
        }
    }

    async fn looked_at(&self, topics: Vec<Option<String>>) -> Result<HashMap<String, i32>> {
        let client = Arc::clone(&self.client);
        spawn_blocking(move || {
            let mut known = HashMap::new();
            for asked in &topics {
                let metadata = match client.inner().fetch_metadata(asked.as_deref(), REQUEST) {
                    Ok(metadata) => metadata,
                    Err(error) if is_unknown(&error) => continue,
                    Err(error) => return Err(error.into()),
                };
                let usable = metadata.topics().iter().filter(|topic| {
                    topic.error().is_none()
                        && !topic.partitions().is_empty()
                        && topic.partitions().iter().all(|one| one.leader() >= 0)
                });
                for topic in usable {
                    let count = i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
                    known.insert(topic.name().to_owned(), count);
                }
            }
            Ok(known)
        })
        .await?
    }

    /// Deletes topics; those that do not exist are fine.
    pub async fn delete(&self, topics: &[String]) -> Result<()> {
        for batch in topics.chunks(BATCH) {
            let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
            let options = AdminOptions::new()
                .request_timeout(Some(REQUEST))
                .operation_timeout(Some(REQUEST));
            let results = self.client.delete_topics(&batch, &options).await;
            for result in results.context("topics cannot be deleted")? {
                match result {
                    Ok(_) | Err((_, Code::UnknownTopicOrPartition | Code::UnknownTopic)) => {}
                    Err((topic, code)) => bail!("topic {topic} cannot be deleted: {code}"),
                }
            }
        }
        Ok(())
    }

    /// How many partitions a topic has; `None`: there is no such topic (or none that can be used).
    pub async fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        let known = self.known(&[topic.to_owned()]).await;
        Ok(known
            .with_context(|| format!("topic {topic} cannot be looked at"))?
            .remove(topic))
    }

    /// How many partitions each of these topics has, as far as they can be used.
    pub async fn all_partitions(&self, topics: &[String]) -> Result<HashMap<String, i32>> {
        let mut known = self
            .known(topics)
            .await
            .context("topics cannot be looked at")?;
        known.retain(|topic, _| topics.contains(topic));
        Ok(known)
    }

    /// All topics.
    pub async fn topics(&self) -> Result<Vec<String>> {
        let client = Arc::clone(&self.client);
        let metadata = spawn_blocking(move || client.inner().fetch_metadata(None, REQUEST)).await?;
        if metadata.as_ref().err().is_some_and(is_unreadable) {
            return Ok(Vec::new());
        }
        let metadata = metadata.context("the broker does not tell its topics")?;
        let topics = metadata.topics().iter();
        Ok(topics.map(|topic| topic.name().to_owned()).collect())
    }
}

fn is_unknown(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition)
    )
}

/// Also of the answer of a small broker without topics.
fn is_unreadable(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(Code::BadMessage)
}

/// Asking again would not help.
fn will_not_pass(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidTopic
            | Code::InvalidPartitions
            | Code::InvalidConfig
            | Code::PolicyViolation
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
    )
}
