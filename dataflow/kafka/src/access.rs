//! How a client shows itself to brokers, and what they say where they do not let it in.
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::types::RDKafkaErrorCode as Code;

use crate::fields::Properties;

/// A refusal that stays the same is told again every 30 s by librdkafka: one that is not has passed.
const LASTS: Duration = Duration::from_secs(40);

/// What one client shows, and the last refusal.
#[derive(Debug, Default)]
pub(crate) struct Access {
    bootstrap: String,
    protocol: String,
    mechanism: String,
    user: String,
    refused: AtomicBool,
    last: Mutex<Option<(Instant, String)>>,
}

impl Access {
    pub(crate) fn of(all: &Properties) -> Self {
        let get = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| all.get(*name));
            found.cloned().unwrap_or_default()
        };
        let protocol = get(["security.protocol", ""]).to_ascii_lowercase();
        Self {
            bootstrap: get(["bootstrap.servers", "metadata.broker.list"]),
            mechanism: get(["sasl.mechanism", "sasl.mechanisms"]),
            user: get(["sasl.username", ""]),
            protocol,
            ..Self::default()
        }
    }

    /// Notes what librdkafka reports, if it is a refusal: returns its text, with the way out.
    pub(crate) fn note(&self, code: Option<Code>, reason: &str) -> Option<String> {
        let by_code = matches!(
            code,
            Some(
                Code::Authentication
                    | Code::SaslAuthenticationFailed
                    | Code::UnsupportedSASLMechanism
                    | Code::IllegalSASLState
                    | Code::SSL
            )
        );
        // What TLS says after the handshake comes as a broken connection; one that ends early is guessed to be of another
        // kind than the listener's.
        let of_tls = code == Some(Code::SSL) || reason.contains("SSL routines");
        if !by_code && !of_tls && !reason.contains("security.protocol") {
            return None;
        }
        let text = self.text(reason, of_tls);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((Instant::now(), text.clone()));
        self.refused.store(true, Ordering::Relaxed);
        Some(text)
    }

    /// Brokers do let this client in.
    pub(crate) fn passed(&self) {
        // Asked of each record, and seldom set: reading it leaves it to all threads.
        if self.refused.load(Ordering::Relaxed) && self.refused.swap(false, Ordering::Relaxed) {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// The refusal that lasts.
    pub(crate) fn refused(&self) -> Option<String> {
        if !self.refused.load(Ordering::Relaxed) {
            return None;
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let lasting = last.as_ref().filter(|(at, _)| at.elapsed() < LASTS);
        lasting.map(|(_, text)| text.clone())
    }

    /// `reason` as librdkafka has it: `protocol://host:port/id: what happened (after …)`.
    fn text(&self, reason: &str, of_tls: bool) -> String {
        let (broker, reason) = match reason.split_once(": ") {
            Some((broker, rest)) if broker.contains('/') && !broker.contains(' ') => (broker, rest),
            _ => (self.bootstrap.as_str(), reason),
        };
        let broker = broker
            .split_once("://")
            .map_or(broker, |(_, broker)| broker);
        let broker = broker.split_once('/').map_or(broker, |(broker, _)| broker);
        let reason = reason
            .split_once(" (after ")
            .map_or(reason, |(reason, _)| reason);
        self.refusal(broker, reason, of_tls)
    }

    /// What to say where brokers neither answer nor refuse. A listener with TLS closes what comes without, silently.
    pub(crate) fn unanswered(&self) -> String {
        let protocol = match self.protocol.as_str() {
            "" => "plaintext",
            protocol => protocol,
        };
        format!(
            "no broker of {} answers to {}: check bootstrap.servers and KAFKA_SECURITY_PROTOCOL",
            self.bootstrap,
            protocol.to_ascii_uppercase()
        )
    }

    /// The text of a refusal by a broker.
    pub(crate) fn refusal(&self, broker: &str, reason: &str, of_tls: bool) -> String {
        let (what, way_out) = match (self.protocol.as_str(), self.mechanism.as_str()) {
            ("ssl", _) | ("sasl_ssl", _) if of_tls || self.protocol == "ssl" => (
                "TLS".to_owned(),
                "check KAFKA_BROKER_TLS_CA_LOCATION, and KAFKA_CLIENT_TLS_CRT_LOCATION and KAFKA_CLIENT_TLS_KEY_LOCATION \
                 where the broker asks for a certificate",
            ),
            ("sasl_ssl" | "sasl_plaintext", "OAUTHBEARER") => (
                "SASL OAUTHBEARER".to_owned(),
                "check the files of KAFKA_CLIENT_SASL_OAUTHBEARER_LOCATION (or the variables instead of them)",
            ),
            ("sasl_ssl" | "sasl_plaintext", mechanism) => (
                format!("SASL {mechanism} of user {}", self.user),
                "check KAFKA_CLIENT_SASL_USERNAME, the file of KAFKA_CLIENT_SASL_PASSWORD_LOCATION and KAFKA_SASL_MECHANISM",
            ),
            _ => (
                "a connection without TLS and SASL".to_owned(),
                "check KAFKA_SECURITY_PROTOCOL and the port of bootstrap.servers",
            ),
        };
        format!("broker {broker} refuses {what}: {reason}; {way_out}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(pairs: &[(&str, &str)]) -> Access {
        let all = pairs.iter();
        Access::of(
            &all.map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn a_refusal_names_broker_mechanism_and_way_out_until_it_has_passed() {
        let scram = access(&[
            ("bootstrap.servers", "a:1,b:2"),
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "SCRAM-SHA-256"),
            ("sasl.username", "ann"),
        ]);
        let reason = "sasl_ssl://b:2/bootstrap: SASL authentication error: Invalid (after 4ms in state AUTH_REQ)";
        let text = scram.note(Some(Code::Authentication), reason).unwrap();
        assert_eq!(
            text,
            "broker b:2 refuses SASL SCRAM-SHA-256 of user ann: SASL authentication error: Invalid; check \
             KAFKA_CLIENT_SASL_USERNAME, the file of KAFKA_CLIENT_SASL_PASSWORD_LOCATION and KAFKA_SASL_MECHANISM"
        );
        assert_eq!(scram.refused(), Some(text));
        scram.passed();
        assert_eq!(scram.refused(), None);
        let away =
            "sasl_ssl://b:2/bootstrap: Connect to ipv4#127.0.0.1:2 failed: Connection refused";
        assert_eq!(scram.note(Some(Code::BrokerTransportFailure), away), None);
        let text = scram
            .note(Some(Code::SSL), "sasl_ssl://b:2/1: SSL handshake failed")
            .unwrap();
        assert!(text.starts_with(
            "broker b:2 refuses TLS: SSL handshake failed; check KAFKA_BROKER_TLS_CA"
        ));
    }

    #[test]
    fn what_no_broker_said_names_the_bootstrap_servers() {
        let token = access(&[
            ("bootstrap.servers", "a:1,b:2"),
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "OAUTHBEARER"),
        ]);
        let reason =
            "Failed to acquire SASL OAUTHBEARER token: no token from http://t/: it answers 401";
        let text = token.note(Some(Code::Authentication), reason).unwrap();
        assert!(
            text.starts_with("broker a:1,b:2 refuses SASL OAUTHBEARER: Failed to acquire"),
            "{text}"
        );
        assert!(
            text.contains(
                "it answers 401; check the files of KAFKA_CLIENT_SASL_OAUTHBEARER_LOCATION"
            )
        );
        let tls = access(&[("security.protocol", "ssl")]);
        let reason = "ssl://b:2/bootstrap: Receive failed: error:0A000412:SSL routines::sslv3 alert bad certificate";
        let text = tls
            .note(Some(Code::BrokerTransportFailure), reason)
            .unwrap();
        assert!(
            text.starts_with("broker b:2 refuses TLS: Receive failed"),
            "{text}"
        );
        let plain = access(&[("bootstrap.servers", "a:1")]);
        assert!(
            plain
                .unanswered()
                .contains("no broker of a:1 answers to PLAINTEXT: check")
        );
        let reason = "a:1/bootstrap: Disconnected: might be caused by incorrect security.protocol configuration (connecting to a SSL listener?)";
        let text = plain
            .note(Some(Code::BrokerTransportFailure), reason)
            .unwrap();
        assert!(
            text.starts_with("broker a:1 refuses a connection without TLS"),
            "{text}"
        );
    }
}
