//! The runner of a real Kafka: its listeners, and that a kill takes nothing from its folder.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, FromClientConfig as _};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use seldon_components::Cache;
use seldon_local::kafka::{Options, RealKafka, Tls};

const LONG: Duration = Duration::from_secs(60);

fn client(settings: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (name, value) in settings {
        config.set(*name, *value);
    }
    config
}

/// The offsets from and to that a partition has, once it has a leader.
fn ends(config: &ClientConfig, topic: &str) -> (i64, i64) {
    let reader: BaseConsumer = config.create().unwrap();
    let start = Instant::now();
    loop {
        match reader.fetch_watermarks(topic, 0, Duration::from_secs(5)) {
            Ok(ends) => return ends,
            Err(error) => assert!(start.elapsed() < LONG, "{error}"),
        }
    }
}

#[test]
fn a_killed_kafka_has_its_data_when_it_is_back() {
    let mut kafka = RealKafka::start(&Cache::open().unwrap(), Options::default()).unwrap();
    let config = client(&[("bootstrap.servers", kafka.bootstrap())]);
    let admin: AdminClient<DefaultClientContext> = AdminClient::from_config(&config).unwrap();
    let wanted = NewTopic::new("kept", 1, TopicReplication::Fixed(1));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(admin.create_topics([&wanted], &AdminOptions::new()))
        .unwrap();
    let producer: BaseProducer = config.create().unwrap();
    for number in 0..100 {
        let value = number.to_string();
        producer
            .send(BaseRecord::<str, str>::to("kept").payload(&value))
            .map_err(|(error, _)| error)
            .unwrap();
    }
    producer.flush(LONG).unwrap();
    kafka.kill().unwrap();
    assert_eq!(kafka.pid(), None);
    kafka.restart().unwrap();
    assert_eq!(ends(&config, "kept"), (0, 100));
    kafka.stop().unwrap();
}

#[test]
fn every_listener_lets_in_who_may() {
    let options = Options::default().user("ann", "secret").tls(Tls::Mutual);
    let kafka = RealKafka::start(&Cache::open().unwrap(), options).unwrap();
    let (sasl, tls, both) = (
        kafka.sasl().unwrap(),
        kafka.tls().unwrap(),
        kafka.sasl_tls().unwrap(),
    );
    let file = |name: &str| kafka.file(name).display().to_string();
    let (ca, certificate, key) = (file("ca.crt"), file("client.crt"), file("client.key"));
    let authority = [("ssl.ca.location", ca.as_str())];
    let own = [
        ("ssl.certificate.location", certificate.as_str()),
        ("ssl.key.location", key.as_str()),
    ];
    let user = |mechanism, password| {
        [
            ("sasl.mechanism", mechanism),
            ("sasl.username", "ann"),
            ("sasl.password", password),
        ]
    };
    let enters = |address: &str, protocol: &str, parts: &[&[(&str, &str)]], time: u64| {
        let mut config = client(&[
            ("bootstrap.servers", address),
            ("security.protocol", protocol),
        ]);
        for (name, value) in parts.concat() {
            config.set(name, value);
        }
        let reader: BaseConsumer = config.create().unwrap();
        // Of one topic: librdkafka cannot read the answer about all where there are none.
        let seen = reader.fetch_metadata(Some("any"), Duration::from_secs(time));
        if let Err(error) = &seen {
            eprintln!("{address} {protocol}: {error}");
        }
        seen.is_ok()
    };
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        assert!(
            enters(&sasl, "sasl_plaintext", &[&user(mechanism, "secret")], 20),
            "{mechanism}"
        );
        assert!(
            enters(
                &both,
                "sasl_ssl",
                &[&user(mechanism, "secret"), &authority, &own],
                20
            ),
            "{mechanism} over TLS"
        );
    }
    assert!(enters(&tls, "ssl", &[&authority, &own], 20), "TLS");
    assert!(
        !enters(&tls, "ssl", &[&authority], 3),
        "TLS without a certificate"
    );
    assert!(
        !enters(&sasl, "sasl_plaintext", &[&user("PLAIN", "wrong")], 3),
        "a wrong password"
    );
}
