//! Pipelines under load while their parts fall: by records written to their topics, and by callers that wait.
//!
//! Inference servers are stand-ins that answer with what they were asked, so that a wrong answer is seen. One case at a
//! time: a case runs faults against a whole system.
#![allow(clippy::unwrap_used)]

mod away;
mod callers;
mod changes;
mod falls;
mod outputs;
mod pairs;
mod processes;
mod scene;
mod topics;
mod unloaded;

use std::process::ExitCode;

use seldon_e2e::faults::{Fault, run_faults};
use seldon_local::Component::{Broker, DataflowEngine, Envoy, ModelGateway, PipelineGateway};
use seldon_local::Signal;

const CASES: &[Fault] = &[
    ("engine_killed", || falls::killed(DataflowEngine(0))),
    ("model_gateway_killed", || falls::killed(ModelGateway(0))),
    ("pipeline_gateway_killed", || {
        falls::killed(PipelineGateway(0))
    }),
    ("envoy_killed", || falls::killed(Envoy(0))),
    ("embedded_broker_killed", || falls::killed(Broker)),
    ("engine_killed_exactly_once", || {
        falls::killed_exactly_once(DataflowEngine(0))
    }),
    ("model_gateway_killed_exactly_once", || {
        falls::killed_exactly_once(ModelGateway(0))
    }),
    ("pipeline_updated", changes::updated),
    ("one_of_two_killed", pairs::killed),
    ("one_of_two_stopped", pairs::stopped),
    ("scaled_up_and_down", pairs::scaled),
    ("uneven_partitions_and_alike_ids", pairs::uneven_and_alike),
    ("model_unloaded_and_loaded_again", unloaded::away_and_back),
    ("broker_stopped_for_30_seconds", || {
        away::broker_away(Signal::SIGSTOP)
    }),
    ("real_kafka_killed", falls::real_kafka_killed),
];

fn main() -> ExitCode {
    run_faults(CASES)
}
