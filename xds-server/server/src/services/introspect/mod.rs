//! What the scheduler did and why.
mod experiment;
mod pipeline;
mod route;

use seldon_ads::{Engine, EnvoyStatus};
use seldon_core::Explanation;
use seldon_grpc::introspect::introspect_server::Introspect;
use seldon_proto::introspect::*;
use tonic::{Request, Response, Status};

use crate::{measure::Meter, writer::Handle};

/// Serves `seldon.mlops.introspect.Introspect`.
#[derive(Clone)]
pub struct Introspection {
    writer: Handle,
    engine: Engine,
    meter: Meter,
}

impl Introspection {
    pub fn new(writer: Handle, engine: Engine, meter: Meter) -> Self {
        Self {
            writer,
            engine,
            meter,
        }
    }
}

#[tonic::async_trait]
impl Introspect for Introspection {
    async fn xds_status(
        &self,
        _: Request<XdsStatusRequest>,
    ) -> Result<Response<XdsStatusResponse>, Status> {
        let generation = self.writer.read(|state, _| state.generation()).await?;
        Ok(Response::new(XdsStatusResponse {
            envoys: self.engine.envoys().into_iter().map(envoy).collect(),
            generation,
        }))
    }

    async fn explain_model(
        &self,
        request: Request<ExplainModelRequest>,
    ) -> Result<Response<ExplainModelResponse>, Status> {
        let model = request.into_inner().model;
        let asked = model.clone();
        let explanation = self
            .writer
            .read(move |state, _| state.explain(&asked))
            .await?;
        let mut explanation = explanation
            .map(explained)
            .ok_or_else(|| Status::failed_precondition(format!("model {model} is not known")))?;
        let envoys = self.engine.envoys();
        (
            explanation.envoys_acknowledged,
            explanation.envoys_connected,
        ) = acknowledged(&envoys, explanation.route_generation);
        Ok(Response::new(explanation))
    }

    async fn explain_pipeline(
        &self,
        request: Request<ExplainPipelineRequest>,
    ) -> Result<Response<ExplainPipelineResponse>, Status> {
        let name = request.into_inner().pipeline;
        let asked = name.clone();
        let explanation = self
            .writer
            .read(move |state, _| state.explain_pipeline(&asked));
        let Some(explanation) = explanation.await? else {
            let unknown = format!("pipeline {name} is not known");
            return Err(Status::failed_precondition(unknown));
        };
        let generation = explanation.route_generation;
        let counts = acknowledged(&self.engine.envoys(), generation);
        Ok(Response::new(pipeline::explained(explanation, counts)))
    }

    async fn explain_experiment(
        &self,
        request: Request<ExplainExperimentRequest>,
    ) -> Result<Response<ExplainExperimentResponse>, Status> {
        let name = request.into_inner().experiment;
        let asked = name.clone();
        let explanation = self
            .writer
            .read(move |state, _| state.explain_experiment(&asked));
        let Some(explanation) = explanation.await? else {
            return Err(Status::failed_precondition(format!(
                "experiment {name} is not known"
            )));
        };
        let totals = self.meter.totals().await;
        let mut explained = experiment::explained(explanation, totals);
        (explained.envoys_acknowledged, explained.envoys_connected) =
            acknowledged(&self.engine.envoys(), explained.generation);
        Ok(Response::new(explained))
    }

    async fn explain_route(
        &self,
        request: Request<ExplainRouteRequest>,
    ) -> Result<Response<ExplainRouteResponse>, Status> {
        let request = request.into_inner();
        if request.name.is_empty() {
            return Err(Status::invalid_argument("the request has no name"));
        }
        let name = request.name.clone();
        let seen = self
            .writer
            .read(move |state, _| route::look(state, &name))
            .await?;
        let mut explained = route::explained(&request, &seen);
        let envoys = self.engine.envoys();
        explained.envoys = envoys.iter().map(|e| route::envoy(e, &seen)).collect();
        Ok(Response::new(explained))
    }
}

/// How many of the connected Envoys have acknowledged a generation, and how many there are.
fn acknowledged(envoys: &[EnvoyStatus], generation: u64) -> (u32, u32) {
    let connected = || envoys.iter().filter(|envoy| envoy.connected);
    let all = connected().count();
    let reached = connected().filter(|envoy| envoy.acknowledged >= generation);
    let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
    (number(reached.count()), number(all))
}

fn envoy(status: EnvoyStatus) -> Envoy {
    Envoy {
        stream: status.stream,
        node_id: status.node.id,
        node_cluster: status.node.cluster,
        address: status.node.address,
        version: status.node.version,
        connected: status.connected,
        protocol: if status.delta {
            "delta".into()
        } else {
            "state-of-the-world".into()
        },
        since_ms: milliseconds(status.since),
        acknowledged_generation: status.acknowledged,
        types: status
            .types
            .into_iter()
            .map(|t| ResourceTypeStatus {
                type_url: t.type_url,
                sent: t.sent,
                acknowledged: t.acknowledged,
                pending: t.pending,
            })
            .collect(),
        rejections: status
            .rejections
            .into_iter()
            .map(|r| Rejection {
                type_url: r.type_url,
                resource: r.resource,
                reason: r.reason,
                since_ms: milliseconds(r.since),
            })
            .collect(),
    }
}

fn milliseconds(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// An explanation without what only the engine knows.
fn explained(explanation: Explanation) -> ExplainModelResponse {
    let splits = explanation.route.map(|r| r.splits).unwrap_or_default();
    ExplainModelResponse {
        model: explanation.model.to_string(),
        state: explanation.state,
        reason: explanation.reason,
        waits_for: explanation.waits_for,
        help: explanation.help,
        scaling: explanation.scaling,
        servers: explanation.servers.into_iter().map(server).collect(),
        route: splits
            .into_iter()
            .map(|split| RouteSplit {
                version: split.version,
                server: split.replicas.server.to_string(),
                replicas: split.replicas.replicas.into_iter().collect(),
                weight: split.weight,
            })
            .collect(),
        route_generation: explanation.route_generation,
        ..Default::default()
    }
}

fn server(verdict: seldon_core::ServerVerdict) -> ServerVerdict {
    ServerVerdict {
        server: verdict.server.to_string(),
        chosen: verdict.chosen,
        reason: verdict.reason,
        replicas: verdict
            .replicas
            .into_iter()
            .map(|replica| ReplicaVerdict {
                replica: replica.replica,
                chosen: replica.chosen,
                reason: replica.reason,
            })
            .collect(),
    }
}
