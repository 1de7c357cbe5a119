//! Topics: making them, deleting them, looking at them.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use rdkafka::{
    error::KafkaError,
    producer::{Producer as _, ThreadedProducer},
    types::RDKafkaErrorCode as Code,
};
use tokio::task::spawn_blocking;

use crate::{
    Result, Settings,
    context::Context,
    gather::Gather,
    maker::{Maker, Outcome, Problem, Wanted},
};

const PATIENCE: Duration = Duration::from_secs(60);
/// A broker that answers later than this is away.
const LOOK: Duration = Duration::from_secs(10);
/// Topics in one request.
const BATCH: usize = 500;

/// Topics that cannot be used, and why.
type Unusable = BTreeMap<String, String>;

/// Makes and deletes topics, and looks at them.
pub struct Admin {
    /// A producer by kind, which writes nothing: its thread sees tokens and errors.
    looking: Arc<ThreadedProducer<Context>>,
    settings: Settings,
    looks: Gather<Result<HashMap<String, i32>, String>>,
    requests: Gather<Requested>,
}

/// What came of asking for topics.
#[derive(Debug, Default)]
struct Requested {
    /// Why a topic is not made, and will not be.
    lasting: HashMap<String, String>,
    /// Why it is not made yet.
    passing: HashMap<String, String>,
    /// Why nobody was asked.
    unasked: Option<String>,
}

impl Admin {
    /// Connects in the background.
    pub fn new(settings: &Settings) -> Result<Self> {
        let (config, context) = settings.admin()?;
        let looking = config
            .create_with_context(context)
            .map_err(|error| anyhow!("no Kafka client for topics: {error}"))?;
        Ok(Self {
            looking: Arc::new(looking),
            settings: settings.clone(),
            looks: Gather::default(),
            requests: Gather::default(),
        })
    }

    /// Makes topics as the settings say, and returns when each can be written and read. Those that exist stay as they
    /// are. A broker that is away is asked again for a minute; one that refuses this process is not. `compacted`: with one
    /// partition and the newest record of each key.
    pub async fn create(&self, topics: &[String], compacted: bool) -> Result<()> {
        let unusable = self.made(topics, compacted).await?;
        let Some(reason) = unusable.values().next() else {
            return Ok(());
        };
        match unusable.len() {
            1 => bail!("{reason}"),
            more => bail!("{reason}; and {} topics more", more - 1),
        }
    }

    /// As [`Admin::create`], of as many as can be made: returns those that cannot, each with a text that names it and says
    /// why.
    pub async fn make(&self, topics: &[String]) -> Result<HashMap<String, String>> {
        let unusable = self.made(topics, false).await?;
        Ok(unusable.into_iter().collect())
    }

    async fn made(&self, topics: &[String], compacted: bool) -> Result<Unusable> {
        let deadline = Instant::now() + PATIENCE;
        let mut unusable = Unusable::new();
        let mut missing = self.invisible(topics, deadline).await?;
        while !missing.is_empty() {
            let asked = if compacted {
                Arc::new(self.request(&missing, true).await)
            } else {
                let request =
                    |topics: Vec<String>| async move { self.request(&topics, false).await };
                self.requests.ask(&missing, request).await
            };
            let lasting = |topic: &String| Some((topic.clone(), asked.lasting.get(topic)?.clone()));
            unusable.extend(missing.iter().filter_map(lasting));
            missing.retain(|topic| !unusable.contains_key(topic));
            let problem = missing.iter().find_map(|topic| asked.passing.get(topic));
            let problem = problem.or(asked.unasked.as_ref());
            missing = self
                .wait_visible(&missing, deadline, problem.is_some())
                .await?;
            if Instant::now() > deadline {
                let why = problem.map_or_else(String::new, |problem| format!(": {problem}"));
                let late = |topic: String| {
                    let seconds = PATIENCE.as_secs();
                    let text = format!("topic {topic} cannot be used after {seconds} s{why}");
                    (topic, text)
                };
                unusable.extend(missing.drain(..).map(late));
            }
        }
        Ok(unusable)
    }

    /// Asks for topics.
    async fn request(&self, topics: &[String], compacted: bool) -> Requested {
        let mut asked = Requested::default();
        let mut maker = match self.maker().await {
            Ok(maker) => maker,
            Err(error) => {
                asked.unasked = Some(format!("{error:#}"));
                return asked;
            }
        };
        for batch in topics.chunks(BATCH) {
            let wanted: Vec<Wanted<'_>> = batch.iter().map(|t| self.wanted(t, compacted)).collect();
            let outcomes = match maker.create(&wanted).await {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    asked.unasked = Some(format!("{error:#}"));
                    continue;
                }
            };
            for (topic, outcome) in outcomes {
                match outcome {
                    Ok(()) | Err(Problem::Exists) => {}
                    Err(Problem::Lasting(reason)) => {
                        let text = format!(
                            "topic {topic} cannot be made: {reason}; make it yourself, or see `topics` in kafka.json"
                        );
                        asked.lasting.insert(topic, text);
                    }
                    Err(Problem::Passing(reason)) => {
                        let text = format!("{topic}: {reason}");
                        asked.passing.insert(topic, text);
                    }
                    Err(Problem::Missing) => {
                        let text = format!("{topic}: unknown");
                        asked.passing.insert(topic, text);
                    }
                }
            }
        }
        asked
    }

    async fn maker(&self) -> Result<Maker> {
        Maker::connect(&self.settings, self.looking.context()).await
    }

    fn wanted<'a>(&'a self, name: &'a str, compacted: bool) -> Wanted<'a> {
        let replication = self.settings.replication();
        if compacted {
            // A compacted topic of ours is a table with a single writer per key: one partition keeps it in order.
            return Wanted {
                name,
                partitions: 1,
                replication,
                settings: vec![("cleanup.policy", "compact")],
            };
        }
        Wanted {
            name,
            partitions: self.settings.partitions(),
            replication,
            settings: self.settings.of_topics().collect(),
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
                Err(error) if Instant::now() > deadline || self.refused().is_some() => {
                    return Err(error).context("the broker does not tell its topics");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        };
        let missing = topics.iter().filter(|topic| !known.contains_key(*topic));
        Ok(missing.cloned().collect())
    }

    /// Partitions of each topic that can be used; those who ask at once share a look.
    async fn known(&self, topics: &[String]) -> Result<HashMap<String, i32>> {
        let look = |topics: Vec<String>| async move {
            let seen = self.seen(&topics).await;
            seen.map_err(|error| format!("{error:#}"))
        };
        match &*self.looks.ask(topics, look).await {
            Ok(known) => {
                let asked = topics.iter();
                let found = asked.filter_map(|topic| Some((topic.clone(), *known.get(topic)?)));
                Ok(found.collect())
            }
            Err(error) => Err(anyhow!("{error}")),
        }
    }

    /// Asks one by one while they are few, or librdkafka cannot do otherwise (its guess at the memory that an answer of
    /// many short names needs is too small).
    async fn seen(&self, topics: &[String]) -> Result<HashMap<String, i32>> {
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
        let looked = self.look(move |client| {
            let mut known = HashMap::new();
            for asked in &topics {
                let metadata = match client.client().fetch_metadata(asked.as_deref(), LOOK) {
                    Ok(metadata) => metadata,
                    Err(error) if is_unknown(&error) => continue,
                    Err(error) => return Err(error),
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
        });
        looked.await
    }

    /// Asks brokers; what they refuse is told as they say it.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&ThreadedProducer<Context>) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T> {
        let client = Arc::clone(&self.looking);
        let error = match spawn_blocking(move || look(&client)).await? {
            Ok(seen) => {
                self.looking.context().access.passed();
                return Ok(seen);
            }
            Err(error) => error,
        };
        let away = matches!(
            error.rdkafka_error_code(),
            Some(Code::BrokerTransportFailure | Code::OperationTimedOut | Code::AllBrokersDown)
        );
        let error = anyhow::Error::from(error);
        Err(match self.refused() {
            Some(refusal) => error.context(refusal),
            None if away => error.context(self.looking.context().access.unanswered()),
            None => error,
        })
    }

    /// Why brokers do not let this process in, if they do not.
    fn refused(&self) -> Option<String> {
        self.looking.context().access.refused()
    }

    /// Deletes topics; those that do not exist are fine.
    pub async fn delete(&self, topics: &[String]) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let mut maker = self.maker().await?;
        for batch in topics.chunks(BATCH) {
            let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
            let outcomes: Vec<Outcome> = maker
                .delete(&batch)
                .await
                .context("topics cannot be deleted")?;
            for (topic, outcome) in outcomes {
                match outcome {
                    Ok(()) | Err(Problem::Missing) => {}
                    Err(Problem::Lasting(reason) | Problem::Passing(reason)) => {
                        bail!("topic {topic} cannot be deleted: {reason}")
                    }
                    Err(Problem::Exists) => bail!("topic {topic} cannot be deleted"),
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
        let known = self.known(topics).await;
        known.context("topics cannot be looked at")
    }

    /// All topics.
    pub async fn topics(&self) -> Result<Vec<String>> {
        let names = self.look(|client| {
            let metadata = match client.client().fetch_metadata(None, LOOK) {
                Err(error) if is_unreadable(&error) => return Ok(Vec::new()),
                metadata => metadata?,
            };
            let topics = metadata.topics().iter();
            Ok(topics.map(|topic| topic.name().to_owned()).collect())
        });
        names.await.context("the broker does not tell its topics")
    }

    /// Those of some topics that do not exist; others have no leader for a while. Of a broker that does not know `known`
    /// nothing is believed.
    pub async fn gone(
        &self,
        mut topics: HashSet<Arc<str>>,
        known: &str,
    ) -> Result<HashSet<Arc<str>>> {
        if topics.is_empty() {
            return Ok(topics);
        }
        let there: HashSet<String> = self.topics().await?.into_iter().collect();
        if !there.contains(known) {
            topics.clear();
        }
        topics.retain(|topic| !there.contains(&**topic));
        Ok(topics)
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
