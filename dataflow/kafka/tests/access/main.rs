//! Logging in to a real Kafka by every documented means, each through the documented variables and files: topics are
//! made, written and read; what is refused is refused with a text that helps.
#![allow(clippy::unwrap_used)]

mod tokens;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use seldon_components::Cache;
use seldon_kafka::{Admin, Consumer, Position, Producer, Settings};
use seldon_local::kafka::{Options, RealKafka, Tls};
use seldon_records::{Headers, Outgoing};
use tokio::{task::spawn_blocking, time::timeout};

const LIMIT: Duration = Duration::from_secs(60);
/// A refusal is told by then.
const SOON: Duration = Duration::from_secs(25);

type Variables = Vec<(&'static str, String)>;

fn settings(bootstrap: &str, variables: &Variables) -> Settings {
    let json =
        format!(r#"{{"bootstrap.servers": "{bootstrap}", "topics": {{"retention.ms": 3600000}}}}"#);
    Settings::from_json_with(&json, &|name| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| value.clone())
    })
    .unwrap()
}

/// Makes a topic, writes and reads it, and deletes it.
async fn use_it(name: &str, settings: &Settings) {
    let admin = Admin::new(settings).unwrap();
    let topic: Arc<str> = format!("seldon.{name}")
        .to_ascii_lowercase()
        .replace(' ', "-")
        .into();
    let topics = [topic.to_string()];
    admin
        .create(&topics, false)
        .await
        .unwrap_or_else(|error| panic!("{name}: {error:#}"));
    assert_eq!(admin.partitions(&topic).await.unwrap(), Some(1), "{name}");
    let consumer = Consumer::new(settings, "g", false).unwrap();
    // Before anything is read, as programs do.
    assert_eq!(
        consumer.ends(&[(topic.clone(), 0)]).await.unwrap(),
        [0],
        "{name}"
    );
    consumer
        .assign(&[(topic.clone(), 0, Position::Offset(0))])
        .unwrap();
    let producer = Producer::new(settings).unwrap();
    let record = Outgoing {
        topic,
        partition: Some(0),
        key: None,
        value: Some(name.to_owned().into()),
        headers: Headers::new(),
    };
    producer
        .send(record)
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let read = timeout(LIMIT, async {
        loop {
            match consumer.recv().await {
                Ok(record) => return record,
                Err(error) => eprintln!("{name}: {error}"),
            }
        }
    });
    assert_eq!(
        read.await.unwrap().value.unwrap(),
        name.as_bytes(),
        "{name}"
    );
    admin.delete(&topics).await.unwrap();
}

/// Tries to; returns what is said.
async fn refused(name: &str, settings: &Settings) -> String {
    let admin = Admin::new(settings).unwrap();
    let start = Instant::now();
    let told = admin.create(&["seldon.never".to_owned()], false).await;
    let text = format!("{:#}", told.expect_err(name));
    assert!(start.elapsed() < SOON, "{name}: {:?}", start.elapsed());
    eprintln!("{name}: {text}");
    text
}

struct Kafka {
    running: RealKafka,
    secrets: tempfile::TempDir,
}

impl Kafka {
    async fn start(options: Options) -> Self {
        let start = move || RealKafka::start(&Cache::open().unwrap(), options).unwrap();
        Self {
            running: spawn_blocking(start).await.unwrap(),
            secrets: tempfile::tempdir().unwrap(),
        }
    }

    /// A secret's file as it is mounted.
    fn secret(&self, name: &str, text: &str) -> String {
        let path = self.secrets.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn file(&self, name: &str) -> String {
        self.running.file(name).display().to_string()
    }

    fn authority(&self) -> Variables {
        vec![("KAFKA_BROKER_TLS_CA_LOCATION", self.file("ca.crt"))]
    }

    fn certificate(&self) -> Variables {
        vec![
            ("KAFKA_CLIENT_TLS_CRT_LOCATION", self.file("client.crt")),
            ("KAFKA_CLIENT_TLS_KEY_LOCATION", self.file("client.key")),
        ]
    }

    fn user(&self, mechanism: &str, password: &str) -> Variables {
        let file = self.secret(&format!("{mechanism}-{password}"), &format!("{password}\n"));
        vec![
            ("KAFKA_SASL_MECHANISM", mechanism.to_owned()),
            ("KAFKA_CLIENT_SASL_USERNAME", "ann".to_owned()),
            ("KAFKA_CLIENT_SASL_PASSWORD_LOCATION", file),
        ]
    }

    /// As the documented secret has it: a folder of files.
    fn client(&self, endpoint: &str, secret: &str) -> Variables {
        for (key, text) in [
            ("method", "OIDC"),
            ("client_id", "ann"),
            ("client_secret", secret),
            ("scope", "kafka"),
            ("token_endpoint_url", endpoint),
            ("extensions", "logicalCluster=lkc,identityPoolId=pool"),
        ] {
            self.secret(&format!("oauth-{secret}/{key}"), text);
        }
        let folder = self.secrets.path().join(format!("oauth-{secret}"));
        vec![
            ("KAFKA_SASL_MECHANISM", "OAUTHBEARER".to_owned()),
            (
                "KAFKA_CLIENT_SASL_OAUTHBEARER_LOCATION",
                folder.display().to_string(),
            ),
        ]
    }
}

fn protocol(name: &str) -> Variables {
    vec![("KAFKA_SECURITY_PROTOCOL", name.to_owned())]
}

const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Mutual TLS and every mechanism, plain and over TLS; one broker for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_documented_way_in_and_none_else() {
    let options = Options::default().user("ann", "secret").tls(Tls::Mutual);
    let kafka = Kafka::start(options).await;
    let (sasl, tls, both) = (
        kafka.running.sasl().unwrap(),
        kafka.running.tls().unwrap(),
        kafka.running.sasl_tls().unwrap(),
    );
    let tokens = tokens::Endpoint::start("ann", "secret").await;
    let certificates = [kafka.authority(), kafka.certificate()].concat();

    let mtls = [protocol("SSL"), certificates.clone()].concat();
    use_it("mutual TLS", &settings(&tls, &mtls)).await;
    let client = kafka.client(&tokens.address, "secret");
    let users = MECHANISMS.map(|mechanism| (mechanism, kafka.user(mechanism, "secret")));
    for (mechanism, user) in users.into_iter().chain([("OAUTHBEARER", client)]) {
        let plain = [protocol("SASL_PLAINTEXT"), user.clone()].concat();
        use_it(mechanism, &settings(&sasl, &plain)).await;
        let over_tls = [protocol("SASL_SSL"), user, certificates.clone()].concat();
        use_it(
            &format!("{mechanism} over TLS"),
            &settings(&both, &over_tls),
        )
        .await;
    }
    assert!(tokens.given() > 0);

    // Side by side, since each takes as long as brokers are given to answer.
    let mut wrong: Vec<(&str, String, Variables, [String; 3])> = Vec::new();
    for mechanism in MECHANISMS {
        let variables = [protocol("SASL_PLAINTEXT"), kafka.user(mechanism, "wrong")].concat();
        let named = [
            sasl.clone(),
            format!("SASL {mechanism} of user ann"),
            "KAFKA_CLIENT_SASL_PASSWORD_LOCATION".to_owned(),
        ];
        wrong.push((mechanism, sasl.clone(), variables, named));
    }
    let oauth = |secret| {
        [
            protocol("SASL_PLAINTEXT"),
            kafka.client(&tokens.address, secret),
        ]
        .concat()
    };
    let named = |reason: &str| {
        [
            sasl.clone(),
            reason.to_owned(),
            "KAFKA_CLIENT_SASL_OAUTHBEARER_LOCATION".to_owned(),
        ]
    };
    wrong.push(("no token", sasl.clone(), oauth("wrong"), named("401")));
    wrong.push((
        "a token of tomorrow",
        sasl.clone(),
        oauth(tokens::EARLY),
        named("OAUTHBEARER"),
    ));
    let way_out = |what: &str, address: &str| {
        [
            address.to_owned(),
            what.to_owned(),
            "KAFKA_CLIENT_TLS_CRT_LOCATION".to_owned(),
        ]
    };
    let stranger = [protocol("SSL"), kafka.authority()].concat();
    wrong.push((
        "no certificate",
        tls.clone(),
        stranger,
        way_out("TLS", &tls),
    ));
    let other = kafka.secret(
        "other.crt",
        &rcgen::generate_simple_self_signed(vec![])
            .unwrap()
            .cert
            .pem(),
    );
    let distrust = [
        protocol("SSL"),
        kafka.certificate(),
        vec![("KAFKA_BROKER_TLS_CA_LOCATION", other)],
    ];
    wrong.push((
        "another authority",
        tls.clone(),
        distrust.concat(),
        way_out("TLS", &tls),
    ));
    let silent = settings(&tls, &Variables::new());
    let no_tls = tokio::spawn(async move {
        let admin = Admin::new(&silent).unwrap();
        format!("{:#}", admin.partitions("t").await.unwrap_err())
    });
    let tries = wrong.into_iter().map(|(name, address, variables, named)| {
        let settings = settings(&address, &variables);
        tokio::spawn(async move {
            let text = refused(name, &settings).await;
            for part in named {
                assert!(text.contains(&part), "{name}: {part:?} is not in {text:?}");
            }
        })
    });
    for one in tries.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    let told = no_tls.await.unwrap();
    let named = format!("no broker of {tls} answers to PLAINTEXT: check");
    assert!(told.contains(&named), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_without_a_certificate_and_what_a_producer_and_a_reader_say() {
    let options = Options::default().user("ann", "secret").tls(Tls::Server);
    let kafka = Kafka::start(options).await;
    let tls = kafka.running.tls().unwrap();
    let one_way = [protocol("SSL"), kafka.authority()].concat();
    use_it("one-way TLS", &settings(&tls, &one_way)).await;

    let wrong = [
        protocol("SASL_PLAINTEXT"),
        kafka.user("SCRAM-SHA-512", "wrong"),
    ]
    .concat();
    let address = kafka.running.sasl().unwrap();
    let json = format!(
        r#"{{"bootstrap.servers": "{address}", "producer": {{"message.timeout.ms": 3000}}}}"#
    );
    let settings = Settings::from_json_with(&json, &|name| {
        let found = wrong.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| value.clone())
    })
    .unwrap();
    let record = Outgoing {
        topic: "seldon.t".into(),
        partition: Some(0),
        key: None,
        value: None,
        headers: Headers::new(),
    };
    let unsent = Producer::new(&settings)
        .unwrap()
        .send(record)
        .await
        .unwrap_err();
    assert!(
        unsent
            .to_string()
            .contains("refuses SASL SCRAM-SHA-512 of user ann"),
        "{unsent}"
    );
    let reader = Consumer::new(&settings, "g", false).unwrap();
    reader
        .assign(&[("seldon.t".into(), 0, Position::Beginning)])
        .unwrap();
    let told = timeout(LIMIT, async {
        loop {
            let error = reader.recv().await.unwrap_err().to_string();
            if error.contains("refuses SASL SCRAM-SHA-512 of user ann") {
                return;
            }
            eprintln!("{error}");
        }
    });
    told.await.expect("the reader says who refuses it");
}
