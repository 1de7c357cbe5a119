//! What holds at all times.
use std::collections::BTreeSet;

use seldon_core::{AgentKey, Event, Record, invariants};
use seldon_proto::{agent::model_operation_message::Operation, scheduler::Model};

use crate::{clients::Request, world::World};

/// Whether a stored model is the one that was asked for.
pub fn is_stored(record: Option<&Record>, wanted: &Model) -> bool {
    let Some(Record::Model {
        spec,
        deleted: false,
        ..
    }) = record
    else {
        return false;
    };
    let (stored, asked) = (
        spec.model_spec.as_ref().unwrap(),
        wanted.model_spec.as_ref().unwrap(),
    );
    (&stored.uri, &stored.server) == (&asked.uri, &asked.server)
        && spec.deployment_spec == wanted.deployment_spec
}

impl World {
    /// Models that have a route.
    pub fn routed(&self) -> BTreeSet<String> {
        self.scheduler
            .state
            .routes()
            .map(|route| route.model.to_string())
            .collect()
    }

    /// After each step of the rules.
    pub fn check_rules(&self, event: &Event, text: &str, before: &BTreeSet<String>) {
        if let Err(broken) = invariants::check(&self.scheduler.state) {
            panic!("{broken}\nafter {text}");
        }
        // A lost stream, time, what Envoys do or an agent's wish to go takes no model's last endpoint.
        let harmless = matches!(
            event,
            Event::AgentDisconnected { .. }
                | Event::SendFailed { .. }
                | Event::Tick
                | Event::RoutesAcknowledged { .. }
                | Event::RouteRejected { .. }
                | Event::DrainRequested { .. }
                | Event::ScalingTriggered(_)
                | Event::StartExperiment(_)
                | Event::StopExperiment { .. }
        );
        if harmless
            && self.scheduler.state.synchronised()
            && self.scheduler.engine_is_open()
            && !self.shrunk
        {
            let after = self.routed();
            let lost: Vec<&String> = before.difference(&after).collect();
            assert!(lost.is_empty(), "the routes of {lost:?} went after {text}");
        }
    }

    /// The drain law: nothing is unloaded that an Envoy can still send to.
    pub fn check_order(&self, agent: &AgentKey, model: &str, version: u32, operation: Operation) {
        if operation != Operation::UnloadModel {
            return;
        }
        for (number, envoy) in self.envoys.iter().enumerate() {
            if self.is_expired(number) {
                continue;
            }
            let uses = envoy.places().any(|(name, split)| {
                name == model
                    && split.version == version
                    && split.replicas.server == agent.server
                    && split.replicas.replicas.contains(&agent.replica)
            });
            assert!(
                !uses,
                "{model}:{version} is to be unloaded from {agent:?} while Envoy {number} uses it"
            );
        }
    }

    /// After every event: Envoys send only where a model was loaded once.
    pub fn check(&self) {
        for (number, envoy) in self.envoys.iter().enumerate() {
            for (name, split) in envoy.places() {
                for replica in &split.replicas.replicas {
                    let key = AgentKey {
                        server: split.replicas.server.clone(),
                        replica: *replica,
                    };
                    let entry = (name.to_owned(), split.version);
                    assert!(
                        self.agents[&key].ever.contains(&entry),
                        "Envoy {number} sends {entry:?} to {key:?}, which never loaded it"
                    );
                }
            }
        }
    }

    /// What was acknowledged is in the store.
    pub fn check_durable(&self) {
        for client in &self.clients {
            let model = self.scheduler.store.get(&("model", client.name.clone()));
            let experiment = self
                .scheduler
                .store
                .get(&("experiment", client.name.clone()));
            let kept = match client.promised() {
                None => true,
                Some(Request::Load(wanted)) => is_stored(model, wanted),
                Some(Request::Unload(_)) => {
                    !matches!(model, Some(Record::Model { deleted: false, .. }))
                }
                Some(Request::Start(wanted)) => {
                    matches!(experiment, Some(Record::Experiment { spec, .. }) if **spec == **wanted)
                }
                Some(Request::Stop(_)) => experiment.is_none(),
            };
            let stored = model.or(experiment);
            assert!(
                kept,
                "{} was promised and is not stored: {stored:?}",
                client.promised().unwrap()
            );
        }
    }
}
