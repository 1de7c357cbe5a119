//! What librdkafka calls back: logs, errors, tokens and deliveries.
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rdkafka::{
    ClientContext, Message as _,
    client::OAuthToken,
    config::RDKafkaLogLevel as Level,
    consumer::ConsumerContext,
    error::KafkaError,
    producer::{DeliveryResult, ProducerContext},
    types::RDKafkaErrorCode as Code,
};
use tokio::sync::oneshot;

use crate::{SendError, access::Access, oauth::Grant};

/// One client's.
pub(crate) struct Context {
    pub(crate) grant: Option<Arc<Grant>>,
    pub(crate) access: Access,
}

/// Waits for the delivery of one record.
pub(crate) struct Waiting {
    pub(crate) answer: oneshot::Sender<Result<(i32, i64), SendError>>,
    pub(crate) size: usize,
    pub(crate) outstanding: Arc<AtomicUsize>,
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: Level, facility: &str, message: &str) {
        match level {
            Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
                tracing::warn!(target: "kafka", facility, "{message}");
            }
            Level::Warning => tracing::info!(target: "kafka", facility, "{message}"),
            Level::Notice | Level::Info | Level::Debug => {
                tracing::debug!(target: "kafka", facility, "{message}");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if let Some(refusal) = self.access.note(code, reason) {
            tracing::warn!(target: "kafka", "{refusal}");
            return;
        }
        match code {
            // One broker's connection: it is made again, and all of them being down is said once.
            Some(Code::BrokerTransportFailure | Code::OperationTimedOut | Code::PartitionEOF) => {
                tracing::debug!(target: "kafka", "{reason}")
            }
            _ => tracing::warn!(target: "kafka", "{error}: {reason}"),
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let grant = self.grant.as_ref();
        let grant = grant.ok_or("no OAuth settings: set KAFKA_CLIENT_SASL_OAUTHBEARER_LOCATION")?;
        match grant.token() {
            Ok(token) => Ok(token),
            // Told by librdkafka's error, which comes of this.
            Err(error) => Err(format!("{error:#}").replace('\0', "").into()),
        }
    }
}

impl Context {
    /// Says why brokers cannot be reached where they refuse.
    fn unsent(&self, error: SendError) -> SendError {
        match (error, self.access.refused()) {
            (SendError::Other(text), Some(refusal)) => {
                SendError::Other(format!("{text}: {refusal}"))
            }
            (error, _) => error,
        }
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Box<Waiting>) {
        waiting
            .outstanding
            .fetch_sub(waiting.size, Ordering::Relaxed);
        let answer = match result {
            Ok(message) => {
                self.access.passed();
                Ok((message.partition(), message.offset()))
            }
            Err((error, message)) => Err(self.unsent(SendError::of(error, message.topic()))),
        };
        // Nobody waits: the caller did not want to know.
        let _ = waiting.answer.send(answer);
    }
}
