//! The processes of a local system, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::counts::Counts;

/// One process. Each inference server has an agent: those of `mlserver` come first, then those of `triton`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Component {
    /// The embedded Kafka broker.
    Broker,
    Scheduler,
    MlServer(usize),
    Triton(usize),
    Agent(usize),
    DataflowEngine(usize),
    ModelGateway(usize),
    PipelineGateway(usize),
    Envoy(usize),
}

impl Component {
    /// Lists the processes of a system.
    pub fn all(counts: &Counts) -> Vec<Self> {
        let mut all = Vec::new();
        all.extend((0..counts.brokers).map(|_| Self::Broker));
        all.push(Self::Scheduler);
        let servers = (0..counts.replicas).map(Self::MlServer);
        let servers = servers.chain((0..counts.tritons).map(Self::Triton));
        for (index, server) in servers.enumerate() {
            all.extend([server, Self::Agent(index)]);
        }
        all.extend((0..counts.engines).map(Self::DataflowEngine));
        all.extend((0..counts.model_gateways).map(Self::ModelGateway));
        all.extend((0..counts.pipeline_gateways).map(Self::PipelineGateway));
        all.extend((0..counts.envoys).map(Self::Envoy));
        all
    }

    /// The name without a number.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Broker => "kafka",
            Self::Scheduler => "scheduler",
            Self::MlServer(_) => "mlserver",
            Self::Triton(_) => "triton",
            Self::Agent(_) => "agent",
            Self::DataflowEngine(_) => "dataflow-engine",
            Self::ModelGateway(_) => "modelgateway",
            Self::PipelineGateway(_) => "pipelinegateway",
            Self::Envoy(_) => "envoy",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker | Self::Scheduler => to.write_str(self.kind()),
            Self::MlServer(index)
            | Self::Triton(index)
            | Self::Agent(index)
            | Self::DataflowEngine(index)
            | Self::ModelGateway(index)
            | Self::PipelineGateway(index)
            | Self::Envoy(index) => write!(to, "{}-{index}", self.kind()),
        }
    }
}

impl FromStr for Component {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbered = text
            .rsplit_once('-')
            .and_then(|(kind, index)| Some((kind, index.parse().ok()?)));
        let (kind, index) = numbered.unwrap_or((text, 0));
        match (kind, index) {
            ("kafka", 0) => Ok(Self::Broker),
            ("scheduler", 0) => Ok(Self::Scheduler),
            ("mlserver", index) => Ok(Self::MlServer(index)),
            ("triton", index) => Ok(Self::Triton(index)),
            ("agent", index) => Ok(Self::Agent(index)),
            ("dataflow-engine", index) => Ok(Self::DataflowEngine(index)),
            ("modelgateway", index) => Ok(Self::ModelGateway(index)),
            ("pipelinegateway", index) => Ok(Self::PipelineGateway(index)),
            ("envoy", index) => Ok(Self::Envoy(index)),
            _ => Err(format!(
                "no component {text}: name scheduler, envoy-0, agent-0, mlserver-0, triton-0, kafka, modelgateway-0, …"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        let counts = Counts {
            tritons: 2,
            ..Counts::new(3, 2).pipelines()
        };
        let all = Component::all(&counts);
        for component in &all {
            assert_eq!(component.to_string().parse(), Ok(*component));
        }
        assert_eq!(all.len(), 2 + 2 * 5 + 3 + 2);
        assert_eq!("envoy".parse(), Ok(Component::Envoy(0)));
        assert!("zookeeper".parse::<Component>().is_err());
        assert!("kafka-1".parse::<Component>().is_err());
    }
}
