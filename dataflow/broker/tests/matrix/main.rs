//! What the system needs of a broker, one case each: asked of the embedded broker, and of a real Kafka by the same code.
//!
//! `SELDON_TEST_KAFKA` names a Kafka that runs already, or is `off`; without it one is started when its first case runs.
#![allow(clippy::unwrap_used)]

mod client;
mod groups;
mod kafka;
mod records;
mod topics;
mod transactions;

use std::sync::{Arc, OnceLock};

use client::Broker;
use libtest_mimic::{Arguments, Failed, Trial};

type Case = (&'static str, fn(&Broker) -> Result<(), String>);

const CASES: &[&[Case]] = &[
    topics::CASES,
    records::CASES,
    groups::CASES,
    transactions::CASES,
];

fn main() {
    let mut arguments = Arguments::from_args();
    // Most cases wait; many at once cost little.
    arguments.test_threads = arguments.test_threads.or(Some(6));
    let embedded: Arc<OnceLock<Result<Embedded, String>>> = Arc::default();
    let kafka: Arc<OnceLock<Result<kafka::Kafka, String>>> = Arc::default();
    let mut trials = Vec::new();
    for (name, case) in CASES.iter().copied().flatten() {
        let (name, case) = (*name, *case);
        let cell = embedded.clone();
        trials.push(Trial::test(format!("embedded::{name}"), move || {
            let running = cell
                .get_or_init(Embedded::start)
                .as_ref()
                .map_err(Failed::from)?;
            case(&Broker {
                bootstrap: running.bootstrap.clone(),
                embedded: true,
            })
            .map_err(Failed::from)
        }));
        let cell = kafka.clone();
        let trial = Trial::test(format!("kafka::{name}"), move || {
            let running = cell
                .get_or_init(kafka::Kafka::start)
                .as_ref()
                .map_err(Failed::from)?;
            case(&Broker {
                bootstrap: running.bootstrap().to_owned(),
                embedded: false,
            })
            .map_err(Failed::from)
        });
        trials.push(trial.with_ignored_flag(
            std::env::var("SELDON_TEST_KAFKA").is_ok_and(|value| value == "off"),
        ));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // `exit` drops nothing: what was started must be stopped first.
    drop((embedded, kafka));
    conclusion.exit();
}

/// The broker in this process, on a thread of its own.
struct Embedded {
    bootstrap: String,
    _runtime: tokio::runtime::Runtime,
    _running: seldon_broker::Running,
}

impl Embedded {
    fn start() -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let config = seldon_broker::Config {
            auto_create: Some(1),
            ..Default::default()
        };
        let running = runtime
            .block_on(seldon_broker::Broker::start(config))
            .map_err(|error| format!("{error:#}"))?;
        Ok(Self {
            bootstrap: running.bootstrap(),
            _running: running,
            _runtime: runtime,
        })
    }
}
