//! A connection of our own to a broker, with a token: for requests that librdkafka cannot log in for.
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ApiKey, CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest,
        DeleteTopicsResponse, MetadataRequest, MetadataResponse, RequestHeader, ResponseHeader,
        SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest,
        SaslHandshakeResponse, TopicName,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
    },
    protocol::{Decodable, Encodable, StrBytes},
};
use rdkafka::ClientConfig;
use seldon_tls::{ClientIo, ClientTls, Files, connector};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::spawn_blocking,
    time::timeout,
};
use tower::Service as _;

use crate::{
    Result,
    access::Access,
    context::Context,
    maker::{Outcome, REQUEST, Wanted, answered},
    oauth::known_authorities,
};

/// An answer about topics is far smaller.
const LARGEST: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Logged in at the cluster's controller.
pub(crate) struct Wire {
    io: ClientIo,
    broker: String,
    asked: i32,
}

/// What logging in takes.
struct Login<'a> {
    tls: Option<ClientTls>,
    token: String,
    access: &'a Access,
}

impl Wire {
    /// Connects to the controller by way of any of the brokers that the settings name.
    pub(crate) async fn open(config: &ClientConfig, context: &Context) -> Result<Self> {
        let grant = context.grant.clone().context("no token can be had")?;
        let access = &context.access;
        let bootstrap = config
            .get("bootstrap.servers")
            .or(config.get("metadata.broker.list"));
        let bootstrap = bootstrap.context("bootstrap.servers is not set")?;
        let token = spawn_blocking(move || grant.token()).await?;
        let token =
            token.map_err(|e| anyhow!(access.refusal(bootstrap, &format!("{e:#}"), false)))?;
        let login = Login {
            tls: tls(config)?,
            token: token.token,
            access,
        };
        let mut last = anyhow!("bootstrap.servers names no broker");
        for address in bootstrap
            .split(',')
            .map(str::trim)
            .filter(|one| !one.is_empty())
        {
            let address = address
                .split_once("://")
                .map_or(address, |(_, address)| address);
            match Self::at_controller(address, &login).await {
                Ok(wire) => return Ok(wire),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn at_controller(address: &str, login: &Login<'_>) -> Result<Self> {
        let mut wire = Self::at(address, login).await?;
        let none = MetadataRequest::default().with_topics(Some(Vec::new()));
        let cluster: MetadataResponse = wire.ask(ApiKey::Metadata, 4, &none).await?;
        let mut brokers = cluster.brokers.iter();
        match brokers.find(|broker| broker.node_id == cluster.controller_id) {
            Some(controller) => {
                let host = controller.host.as_str();
                let bracketed = if host.contains(':') {
                    format!("[{host}]:{}", controller.port)
                } else {
                    format!("{host}:{}", controller.port)
                };
                Self::at(&bracketed, login).await
            }
            // Without one known, any broker passes requests on.
            None => Ok(wire),
        }
    }

    async fn at(address: &str, login: &Login<'_>) -> Result<Self> {
        let named = || format!("broker {address}");
        let logging_in = async {
            let scheme = if login.tls.is_some() { "https" } else { "http" };
            let uri = format!("{scheme}://{address}").parse()?;
            let connected = connector(login.tls.clone()).call(uri).await;
            let io = connected.map_err(|error| match login.tls {
                Some(_) if error.kind() == std::io::ErrorKind::InvalidData => {
                    anyhow!(login.access.refusal(address, &error.to_string(), true))
                }
                _ => error.into(),
            })?;
            let mut wire = Self {
                io: io.into_inner(),
                broker: address.to_owned(),
                asked: 0,
            };
            wire.log_in(login).await?;
            anyhow::Ok(wire)
        };
        timeout(PATIENCE, logging_in)
            .await
            .with_context(named)?
            .with_context(named)
    }

    async fn log_in(&mut self, login: &Login<'_>) -> Result<()> {
        let mechanism = StrBytes::from_static_str("OAUTHBEARER");
        let request = SaslHandshakeRequest::default().with_mechanism(mechanism);
        let answer: SaslHandshakeResponse = self.ask(ApiKey::SaslHandshake, 1, &request).await?;
        if answer.error_code != 0 {
            let offered: Vec<&str> = answer.mechanisms.iter().map(|one| one.as_str()).collect();
            let reason = format!("it offers {}", offered.join(", "));
            bail!(login.access.refusal(&self.broker, &reason, false));
        }
        let first = format!("n,,\x01auth=Bearer {}\x01\x01", login.token);
        let request = SaslAuthenticateRequest::default().with_auth_bytes(first.into());
        let answer: SaslAuthenticateResponse =
            self.ask(ApiKey::SaslAuthenticate, 1, &request).await?;
        // A token that is not taken is answered by a text first, and refused when that was acknowledged.
        if answer.error_code != 0 || !answer.auth_bytes.is_empty() {
            let text = answer.error_message.map_or_else(
                || String::from_utf8_lossy(&answer.auth_bytes).into_owned(),
                |text| text.to_string(),
            );
            let reason = format!("the token is not taken: {text}");
            bail!(login.access.refusal(&self.broker, &reason, false));
        }
        Ok(())
    }

    pub(crate) async fn create(&mut self, topics: &[Wanted<'_>]) -> Result<Vec<Outcome>> {
        let text = |text: &str| StrBytes::from_string(text.to_owned());
        let wanted = |wanted: &Wanted<'_>| -> Result<CreatableTopic> {
            let settings = wanted.settings.iter().map(|(name, value)| {
                CreatableTopicConfig::default()
                    .with_name(text(name))
                    .with_value(Some(text(value)))
            });
            Ok(CreatableTopic::default()
                .with_name(TopicName(text(wanted.name)))
                .with_num_partitions(wanted.partitions)
                .with_replication_factor(i16::try_from(wanted.replication)?)
                .with_configs(settings.collect()))
        };
        let request = CreateTopicsRequest::default()
            .with_topics(topics.iter().map(wanted).collect::<Result<_>>()?)
            .with_timeout_ms(millis());
        let answer: CreateTopicsResponse = self.ask(ApiKey::CreateTopics, 4, &request).await?;
        let outcomes = answer.topics.into_iter().map(|topic| {
            let text = topic.error_message.map(|text| text.to_string());
            answered(topic.name.to_string(), topic.error_code, text)
        });
        Ok(outcomes.collect())
    }

    pub(crate) async fn delete(&mut self, topics: &[&str]) -> Result<Vec<Outcome>> {
        let names = topics
            .iter()
            .map(|topic| TopicName(StrBytes::from_string((*topic).to_owned())));
        let request = DeleteTopicsRequest::default()
            .with_topic_names(names.collect())
            .with_timeout_ms(millis());
        let answer: DeleteTopicsResponse = self.ask(ApiKey::DeleteTopics, 3, &request).await?;
        let outcomes = answer.responses.into_iter().map(|topic| {
            let name = topic.name.map(|name| name.to_string()).unwrap_or_default();
            answered(name, topic.error_code, None)
        });
        Ok(outcomes.collect())
    }

    /// Versions are those that every supported Kafka has, before headers with tags.
    async fn ask<A: Decodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        request: &impl Encodable,
    ) -> Result<A> {
        let named = format!("broker {} does not answer {key:?}", self.broker);
        let asked = timeout(REQUEST + PATIENCE, self.exchange(key, version, request)).await;
        asked.with_context(|| named.clone())?.context(named)
    }

    async fn exchange<A: Decodable>(
        &mut self,
        key: ApiKey,
        version: i16,
        request: &impl Encodable,
    ) -> Result<A> {
        self.asked += 1;
        let header = RequestHeader::default()
            .with_request_api_key(key as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.asked)
            .with_client_id(Some(StrBytes::from_static_str("seldon")));
        let mut body = BytesMut::new();
        header.encode(&mut body, key.request_header_version(version))?;
        request.encode(&mut body, version)?;
        self.io.write_i32(i32::try_from(body.len())?).await?;
        self.io.write_all(&body).await?;
        self.io.flush().await?;

        let length = usize::try_from(self.io.read_i32().await?)?;
        ensure!(length <= LARGEST, "an answer of {length} bytes");
        let mut answer = vec![0; length];
        self.io.read_exact(&mut answer).await?;
        let mut answer = Bytes::from(answer);
        let header = ResponseHeader::decode(&mut answer, key.response_header_version(version))?;
        ensure!(
            header.correlation_id == self.asked,
            "it answers something else"
        );
        let decoded = A::decode(&mut answer, version)?;
        ensure!(!answer.has_remaining(), "its answer is longer than it says");
        Ok(decoded)
    }
}

fn millis() -> i32 {
    i32::try_from(REQUEST.as_millis()).unwrap_or(i32::MAX)
}

/// As librdkafka's properties say, as far as the documented variables set them.
fn tls(config: &ClientConfig) -> Result<Option<ClientTls>> {
    if config
        .get("security.protocol")
        .is_none_or(|protocol| !protocol.eq_ignore_ascii_case("sasl_ssl"))
    {
        return Ok(None);
    }
    if config.get("ssl.endpoint.identification.algorithm") == Some("none") {
        bail!(
            "with OAUTHBEARER the broker's name is checked where topics are made: leave \
             KAFKA_CLIENT_TLS_ENDPOINT_IDENTIFICATION_ALGORITHM unset, or make the topics yourself"
        );
    }
    let path = |name: &str| config.get(name).map(Into::into);
    let own = Files {
        prefix: "KAFKA_CLIENT".to_owned(),
        key: path("ssl.key.location"),
        crt: path("ssl.certificate.location"),
        ca: None,
    };
    let peer = Files {
        prefix: "KAFKA_BROKER".to_owned(),
        ca: path("ssl.ca.location").or_else(|| known_authorities().map(Into::into)),
        ..Files::default()
    };
    Ok(Some(ClientTls::follow(own, peer, &[])?))
}
