//! Making and deleting topics: a client for one piece of work, since it is seldom needed.
//!
//! librdkafka's client for this is never polled by its wrapper: it gets no tokens and tells no errors. So it logs in only
//! where [`crate::Admin`]'s own client already has, and where that takes a token the requests go over [`Wire`].
use std::{thread, time::Duration};

use anyhow::anyhow;
use kafka_protocol::ResponseError;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    types::RDKafkaErrorCode as Code,
};

use crate::{Result, Settings, context::Context, wire::Wire};

pub(crate) const REQUEST: Duration = Duration::from_secs(20);

/// A topic to be made.
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    pub(crate) partitions: i32,
    pub(crate) replication: i32,
    pub(crate) settings: Vec<(&'a str, &'a str)>,
}

/// Why a topic was not made or deleted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Exists,
    Missing,
    /// Asking again would not help.
    Lasting(String),
    Passing(String),
}

pub(crate) type Outcome = (String, Result<(), Problem>);

/// Whom to ask.
pub(crate) enum Maker {
    Library(Client),
    Wire(Wire),
}

/// Ending it waits for its threads.
pub(crate) struct Client(Option<AdminClient<Context>>);

impl Drop for Client {
    fn drop(&mut self) {
        let client = self.0.take();
        thread::spawn(move || drop(client));
    }
}

impl Maker {
    /// `own` is [`crate::Admin`]'s: its token serves for both.
    pub(crate) async fn connect(settings: &Settings, own: &Context) -> Result<Self> {
        let (config, context) = settings.admin()?;
        if own.grant.is_some() {
            return Ok(Self::Wire(Wire::open(&config, own).await?));
        }
        let client = config
            .create_with_context(context)
            .map_err(|error| anyhow!("no Kafka client for topics: {error}"))?;
        Ok(Self::Library(Client(Some(client))))
    }

    pub(crate) async fn create(&mut self, topics: &[Wanted<'_>]) -> Result<Vec<Outcome>> {
        match self {
            Self::Wire(wire) => wire.create(topics).await,
            Self::Library(Client(client)) => {
                let new: Vec<NewTopic<'_>> = topics.iter().map(new_topic).collect();
                let client = client.as_ref().ok_or_else(|| anyhow!("it has ended"))?;
                let results = client.create_topics(&new, &options()).await?;
                Ok(results.into_iter().map(outcome).collect())
            }
        }
    }

    pub(crate) async fn delete(&mut self, topics: &[&str]) -> Result<Vec<Outcome>> {
        match self {
            Self::Wire(wire) => wire.delete(topics).await,
            Self::Library(Client(client)) => {
                let client = client.as_ref().ok_or_else(|| anyhow!("it has ended"))?;
                let results = client.delete_topics(topics, &options()).await?;
                Ok(results.into_iter().map(outcome).collect())
            }
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST))
        .operation_timeout(Some(REQUEST))
}

fn new_topic<'a>(wanted: &Wanted<'a>) -> NewTopic<'a> {
    let replication = TopicReplication::Fixed(wanted.replication);
    let new = NewTopic::new(wanted.name, wanted.partitions, replication);
    let settings = wanted.settings.iter();
    settings.fold(new, |new, (name, value)| new.set(name, value))
}

fn outcome(result: Result<String, (String, Code)>) -> Outcome {
    let (topic, code) = match result {
        Ok(topic) => return (topic, Ok(())),
        Err(failed) => failed,
    };
    let problem = match code {
        Code::TopicAlreadyExists => Problem::Exists,
        Code::UnknownTopic | Code::UnknownTopicOrPartition => Problem::Missing,
        Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidConfig
        | Code::PolicyViolation
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed => Problem::Lasting(code.to_string()),
        _ => Problem::Passing(code.to_string()),
    };
    (topic, Err(problem))
}

/// As [`outcome`], of the protocol's own code and text.
pub(crate) fn answered(topic: String, code: i16, text: Option<String>) -> Outcome {
    let Some(error) = ResponseError::try_from_code(code) else {
        return (topic, Ok(()));
    };
    let text = match text {
        Some(text) => format!("{error}: {text}"),
        None => error.to_string(),
    };
    let problem = match error {
        ResponseError::TopicAlreadyExists => Problem::Exists,
        ResponseError::UnknownTopicOrPartition => Problem::Missing,
        ResponseError::InvalidTopicException
        | ResponseError::InvalidPartitions
        | ResponseError::InvalidConfig
        | ResponseError::PolicyViolation
        | ResponseError::TopicAuthorizationFailed
        | ResponseError::ClusterAuthorizationFailed => Problem::Lasting(text),
        _ => Problem::Passing(text),
    };
    (topic, Err(problem))
}
