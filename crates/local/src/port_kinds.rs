//! The ports of each kind of process, and the flags of `seldon local up` that set them.

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// The scheduler's ports, and the flags of `seldon local up` that set them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct SchedulerPorts {
    /// Scheduler: discovery by Envoys
    #[arg(
        id = "port-xds",
        long = "port-xds",
        value_name = "PORT",
        default_value_t = 9002
    )]
    pub xds: u16,
    /// Scheduler: the API that the CLI speaks
    #[arg(
        id = "port-scheduler",
        long = "port-scheduler",
        value_name = "PORT",
        default_value_t = 9004
    )]
    pub api: u16,
    /// Scheduler: agents
    #[arg(
        id = "port-agents",
        long = "port-agents",
        value_name = "PORT",
        default_value_t = 9005
    )]
    pub agents: u16,
    /// Scheduler: dataflow engines
    #[arg(
        id = "port-dataflow",
        long = "port-dataflow",
        value_name = "PORT",
        default_value_t = 9008
    )]
    pub dataflow: u16,
    /// Scheduler: `/ready` and `/live`
    #[arg(
        id = "port-scheduler-health",
        long = "port-scheduler-health",
        value_name = "PORT",
        default_value_t = 9019
    )]
    pub health: u16,
}

/// An Envoy's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct EnvoyPorts {
    /// Envoy: inference (further Envoys: 100 higher each, as with the following)
    #[arg(
        id = "port-envoy",
        long = "port-envoy",
        value_name = "PORT",
        default_value_t = 9000
    )]
    pub data: u16,
    /// Envoy: `/ready` and `/stats/prometheus`
    #[arg(
        id = "port-envoy-status",
        long = "port-envoy-status",
        value_name = "PORT",
        default_value_t = 9003
    )]
    pub status: u16,
    /// Envoy: administration, on loopback
    #[arg(
        id = "port-envoy-admin",
        long = "port-envoy-admin",
        value_name = "PORT",
        default_value_t = 9901
    )]
    pub admin: u16,
}

/// The ports of a server replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct ReplicaPorts {
    /// Agent: inference by REST (further replicas: 100 higher each, as with the following)
    #[arg(
        id = "port-agent-rest",
        long = "port-agent-rest",
        value_name = "PORT",
        default_value_t = 9999
    )]
    pub rest: u16,
    /// Agent: inference by gRPC
    #[arg(
        id = "port-agent-grpc",
        long = "port-agent-grpc",
        value_name = "PORT",
        default_value_t = 9998
    )]
    pub grpc: u16,
    /// Agent: drain before a stop
    #[arg(
        id = "port-agent-drain",
        long = "port-agent-drain",
        value_name = "PORT",
        default_value_t = 9995
    )]
    pub drain: u16,
    /// Agent: `/ready`
    #[arg(
        id = "port-agent-ready",
        long = "port-agent-ready",
        value_name = "PORT",
        default_value_t = 9993
    )]
    pub ready: u16,
    /// Agent: debug service
    #[arg(
        id = "port-agent-debug",
        long = "port-agent-debug",
        value_name = "PORT",
        default_value_t = 7777
    )]
    pub debug: u16,
    /// Agent: `/metrics`
    #[arg(
        id = "port-agent-metrics",
        long = "port-agent-metrics",
        value_name = "PORT",
        default_value_t = 9006
    )]
    pub metrics: u16,
    /// MLServer: REST
    #[arg(
        id = "port-mlserver-rest",
        long = "port-mlserver-rest",
        value_name = "PORT",
        default_value_t = 8080
    )]
    pub server_rest: u16,
    /// MLServer: gRPC
    #[arg(
        id = "port-mlserver-grpc",
        long = "port-mlserver-grpc",
        value_name = "PORT",
        default_value_t = 8081
    )]
    pub server_grpc: u16,
    /// MLServer: metrics
    #[arg(
        id = "port-mlserver-metrics",
        long = "port-mlserver-metrics",
        value_name = "PORT",
        default_value_t = 8084
    )]
    pub server_metrics: u16,
}

/// The ports of a replica of the server `triton`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct TritonPorts {
    /// Triton's agent: inference by REST (further replicas: 100 higher each, as with the following)
    #[arg(
        id = "port-triton-agent-rest",
        long = "port-triton-agent-rest",
        value_name = "PORT",
        default_value_t = 9989
    )]
    pub rest: u16,
    /// Triton's agent: inference by gRPC
    #[arg(
        id = "port-triton-agent-grpc",
        long = "port-triton-agent-grpc",
        value_name = "PORT",
        default_value_t = 9988
    )]
    pub grpc: u16,
    /// Triton's agent: drain before a stop
    #[arg(
        id = "port-triton-agent-drain",
        long = "port-triton-agent-drain",
        value_name = "PORT",
        default_value_t = 9985
    )]
    pub drain: u16,
    /// Triton's agent: `/ready`
    #[arg(
        id = "port-triton-agent-ready",
        long = "port-triton-agent-ready",
        value_name = "PORT",
        default_value_t = 9983
    )]
    pub ready: u16,
    /// Triton's agent: debug service
    #[arg(
        id = "port-triton-agent-debug",
        long = "port-triton-agent-debug",
        value_name = "PORT",
        default_value_t = 7778
    )]
    pub debug: u16,
    /// Triton's agent: `/metrics`
    #[arg(
        id = "port-triton-agent-metrics",
        long = "port-triton-agent-metrics",
        value_name = "PORT",
        default_value_t = 9007
    )]
    pub metrics: u16,
    /// Triton: REST
    #[arg(
        id = "port-triton-rest",
        long = "port-triton-rest",
        value_name = "PORT",
        default_value_t = 8090
    )]
    pub server_rest: u16,
    /// Triton: gRPC
    #[arg(
        id = "port-triton-grpc",
        long = "port-triton-grpc",
        value_name = "PORT",
        default_value_t = 8091
    )]
    pub server_grpc: u16,
    /// Triton: metrics
    #[arg(
        id = "port-triton-metrics",
        long = "port-triton-metrics",
        value_name = "PORT",
        default_value_t = 8092
    )]
    pub server_metrics: u16,
}

/// The embedded broker's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct BrokerPorts {
    /// Kafka broker: clients, on loopback
    #[arg(
        id = "port-kafka",
        long = "port-kafka",
        value_name = "PORT",
        default_value_t = 9092
    )]
    pub kafka: u16,
    /// Kafka broker: `/ready`
    #[arg(
        id = "port-kafka-health",
        long = "port-kafka-health",
        value_name = "PORT",
        default_value_t = 9093
    )]
    pub health: u16,
}

/// A model gateway's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct ModelGatewayPorts {
    /// Model gateway: `/ready` and `/metrics`
    #[arg(
        id = "port-modelgateway-health",
        long = "port-modelgateway-health",
        value_name = "PORT",
        default_value_t = 9020
    )]
    pub health: u16,
}

/// A pipeline gateway's ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct PipelineGatewayPorts {
    /// Pipeline gateway: inference by REST
    #[arg(
        id = "port-pipelinegateway-rest",
        long = "port-pipelinegateway-rest",
        value_name = "PORT",
        default_value_t = 9010
    )]
    pub http: u16,
    /// Pipeline gateway: inference by gRPC
    #[arg(
        id = "port-pipelinegateway-grpc",
        long = "port-pipelinegateway-grpc",
        value_name = "PORT",
        default_value_t = 9011
    )]
    pub grpc: u16,
    /// Pipeline gateway: `/metrics`
    #[arg(
        id = "port-pipelinegateway-metrics",
        long = "port-pipelinegateway-metrics",
        value_name = "PORT",
        default_value_t = 9009
    )]
    pub metrics: u16,
    /// Pipeline gateway: `/ready`
    #[arg(
        id = "port-pipelinegateway-health",
        long = "port-pipelinegateway-health",
        value_name = "PORT",
        default_value_t = 9021
    )]
    pub health: u16,
}

/// A dataflow engine's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct EnginePorts {
    /// Dataflow engine: `/ready` and `/metrics`
    #[arg(
        id = "port-engine-health",
        long = "port-engine-health",
        value_name = "PORT",
        default_value_t = 9022
    )]
    pub health: u16,
}

impl TritonPorts {
    /// The same ports, as those of any server's replica.
    pub(crate) fn replica(&self) -> ReplicaPorts {
        ReplicaPorts {
            rest: self.rest,
            grpc: self.grpc,
            drain: self.drain,
            ready: self.ready,
            debug: self.debug,
            metrics: self.metrics,
            server_rest: self.server_rest,
            server_grpc: self.server_grpc,
            server_metrics: self.server_metrics,
        }
    }
}

/// A port, who listens on it, and the flag of `seldon local up` that sets it.
#[derive(Clone, Debug)]
pub struct Named {
    pub owner: String,
    pub flag: &'static str,
    pub number: u16,
}

macro_rules! ports_of {
    ($kind:ident { $($field:ident $flag:literal),+ $(,)? }) => {
        impl $kind {
            pub(crate) fn map(&self, change: impl Fn(u16) -> u16) -> Self {
                Self { $($field: change(self.$field)),+ }
            }

            /// Takes each port from a row of free ones.
            pub(crate) fn take(mut next: impl FnMut() -> Result<u16>) -> Result<Self> {
                Ok(Self { $($field: next()?),+ })
            }

            pub(crate) fn named(&self, owner: &str) -> Vec<Named> {
                vec![$(Named { owner: owner.to_owned(), flag: $flag, number: self.$field }),+]
            }
        }
    };
}

ports_of!(SchedulerPorts {
    xds "--port-xds",
    api "--port-scheduler",
    agents "--port-agents",
    dataflow "--port-dataflow",
    health "--port-scheduler-health",
});
ports_of!(EnvoyPorts {
    data "--port-envoy",
    status "--port-envoy-status",
    admin "--port-envoy-admin",
});
ports_of!(ReplicaPorts {
    rest "--port-agent-rest",
    grpc "--port-agent-grpc",
    drain "--port-agent-drain",
    ready "--port-agent-ready",
    debug "--port-agent-debug",
    metrics "--port-agent-metrics",
    server_rest "--port-mlserver-rest",
    server_grpc "--port-mlserver-grpc",
    server_metrics "--port-mlserver-metrics",
});

ports_of!(TritonPorts {
    rest "--port-triton-agent-rest",
    grpc "--port-triton-agent-grpc",
    drain "--port-triton-agent-drain",
    ready "--port-triton-agent-ready",
    debug "--port-triton-agent-debug",
    metrics "--port-triton-agent-metrics",
    server_rest "--port-triton-rest",
    server_grpc "--port-triton-grpc",
    server_metrics "--port-triton-metrics",
});
ports_of!(BrokerPorts {
    kafka "--port-kafka",
    health "--port-kafka-health",
});
ports_of!(ModelGatewayPorts {
    health "--port-modelgateway-health",
});
ports_of!(PipelineGatewayPorts {
    http "--port-pipelinegateway-rest",
    grpc "--port-pipelinegateway-grpc",
    metrics "--port-pipelinegateway-metrics",
    health "--port-pipelinegateway-health",
});
ports_of!(EnginePorts {
    health "--port-engine-health",
});
