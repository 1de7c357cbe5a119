//! How many processes of each kind a local system has.

use serde::{Deserialize, Serialize};

/// Numbers of processes by kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Replicas of the server `mlserver`, each with its agent.
    pub replicas: usize,
    /// Replicas of the server `triton`, each with its agent.
    pub tritons: usize,
    pub envoys: usize,
    /// The embedded Kafka broker: one or none.
    pub brokers: usize,
    pub model_gateways: usize,
    pub pipeline_gateways: usize,
    pub engines: usize,
}

impl Counts {
    /// A system for models alone.
    pub fn new(replicas: usize, envoys: usize) -> Self {
        Self {
            replicas,
            tritons: 0,
            envoys,
            brokers: 0,
            model_gateways: 0,
            pipeline_gateways: 0,
            engines: 0,
        }
    }

    /// Adds what pipelines need, a broker included.
    #[must_use]
    pub fn pipelines(self) -> Self {
        Self {
            brokers: 1,
            model_gateways: 1,
            pipeline_gateways: 1,
            engines: 1,
            ..self
        }
    }
}
