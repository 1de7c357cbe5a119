//! What can go wrong with a record.
use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

/// Why a record was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too much waits to be written already.
    #[error("too many records wait to be written: the broker is away or slow")]
    Full,
    /// The broker or the client does not take records of this size.
    #[error(
        "the record is too large: raise message.max.bytes of the producer and the broker's limit"
    )]
    TooLarge,
    /// There is no such topic (or partition).
    #[error("there is no topic or partition {0}")]
    UnknownTopic(String),
    /// Another process has taken over this transactional id.
    #[error("another process has taken over: this one may not write any more")]
    Fenced,
    /// This client will not write any more: make another.
    #[error("the producer has failed for good: {0}")]
    Failed(String),
    /// Anything else, for example that the broker did not answer in time.
    #[error("the record was not written: {0}")]
    Other(String),
}

impl SendError {
    /// Whether the same record may be written later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::Other(_) | Self::UnknownTopic(_))
    }

    pub(crate) fn of(error: &KafkaError, topic: &str) -> Self {
        match error.rdkafka_error_code() {
            Some(Code::QueueFull) => Self::Full,
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => Self::TooLarge,
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
                Self::UnknownTopic(topic.to_owned())
            }
            Some(Code::Fenced | Code::InvalidProducerEpoch | Code::ProducerFenced) => Self::Fenced,
            Some(Code::Fatal) => Self::Failed(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }
}

/// Why there is no next record. Reading goes on by itself: wait a little and ask again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A topic that is assigned does not exist (any more); it is read when it comes.
    #[error("a topic that is to be read does not exist: {0}")]
    UnknownTopic(String),
    /// The broker does not let this process read.
    #[error("reading is not permitted: {0}")]
    Unauthorized(String),
    /// The broker cannot be reached, or the like.
    #[error("records cannot be read: {0}")]
    Retryable(String),
    /// This client will not read any more: make another.
    #[error("the consumer has failed for good: {0}")]
    Fatal(String),
}

impl From<&KafkaError> for ReadError {
    fn from(error: &KafkaError) -> Self {
        let text = error.to_string();
        match error {
            KafkaError::MessageConsumptionFatal(_) => return Self::Fatal(text),
            KafkaError::PartitionEOF(_) => return Self::Retryable(text),
            _ => {}
        }
        match error.rdkafka_error_code() {
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
                Self::UnknownTopic(text)
            }
            Some(
                Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::SaslAuthenticationFailed
                | Code::Authentication,
            ) => Self::Unauthorized(text),
            _ => Self::Retryable(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_failed_for_good_is_not_asked_again() {
        let failed = SendError::of(&KafkaError::MessageProduction(Code::Fatal), "t");
        assert!(matches!(failed, SendError::Failed(_)) && !failed.is_retryable());
        let late = SendError::of(&KafkaError::MessageProduction(Code::MessageTimedOut), "t");
        assert!(late.is_retryable());
    }
}
