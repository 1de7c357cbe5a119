//! A real Kafka: one that runs already, or one for this test.

use seldon_components::Cache;
use seldon_local::kafka::{Options, RealKafka};

pub(crate) enum Kafka {
    Given(String),
    Ours(RealKafka),
}

impl Kafka {
    pub(crate) fn start() -> Result<Self, String> {
        if let Ok(bootstrap) = std::env::var("SELDON_TEST_KAFKA") {
            return Ok(Self::Given(bootstrap));
        }
        let options = Options::default().property("auto.create.topics.enable", "true");
        let start = || RealKafka::start(&Cache::open()?, options);
        start()
            .map(Self::Ours)
            .map_err(|error| format!("{error:#}"))
    }

    pub(crate) fn bootstrap(&self) -> &str {
        match self {
            Self::Given(bootstrap) => bootstrap,
            Self::Ours(kafka) => kafka.bootstrap(),
        }
    }
}
