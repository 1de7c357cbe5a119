//! How the world looks when all is well and everybody had time.
use std::collections::BTreeSet;

use seldon_core::{AgentKey, Now, Record};
use seldon_proto::scheduler::{Model, model_status::ModelState};

use crate::{
    agents::Phase,
    checks::is_stored,
    clients::{MODELS, Request},
    world::World,
};

impl World {
    pub fn check_rest(&mut self) {
        assert!(self.scheduler.alive && self.scheduler.state.synchronised());
        assert!(
            self.effects == 0 && self.ticks == 0,
            "{} effects and {} ticks in the last hour of rest: {}",
            self.effects,
            self.ticks,
            self.shown(),
        );
        for client in &self.clients {
            assert!(
                client.asking.is_none(),
                "{} was never answered",
                client.asking.as_ref().unwrap().1
            );
        }
        for (key, agent) in &self.agents {
            assert_eq!(agent.up, !agent.gone, "{key:?}");
            assert!(agent.gone || agent.accepted, "{key:?} is not connected");
            for (entry, held) in &agent.held {
                assert_eq!(held.phase, Phase::Loaded, "{entry:?} on {key:?}");
            }
        }
        self.check_durable();
        for number in 0..MODELS {
            match self.clients[number].promised() {
                Some(Request::Load(wanted)) => self.check_wanted(&wanted.clone()),
                _ => self.check_unwanted(number),
            }
        }
        let wanted: BTreeSet<String> = self
            .clients
            .iter()
            .filter(|client| matches!(client.promised(), Some(Request::Start(_))))
            .map(|client| client.name.clone())
            .collect();
        let running: BTreeSet<String> = self
            .scheduler
            .state
            .experiment_names()
            .map(ToString::to_string)
            .collect();
        assert_eq!(wanted, running);
    }

    /// All objects in words.
    fn shown(&self) -> String {
        let state = &self.scheduler.state;
        let models = state.model_names().filter_map(|name| {
            let status = state.model_status(name, false, Now::default())?;
            let shown = status.versions.first()?.state.clone()?;
            Some(format!("{name} {:?} {}", shown.state(), shown.reason))
        });
        let servers = state.server_names().filter_map(|name| {
            let status = state.server_status(name)?;
            Some(format!("{name}: {status:?}"))
        });
        models.chain(servers).collect::<Vec<_>>().join("\n    ")
    }

    /// Places that hold a model, with the version.
    fn held(&self, model: &str) -> BTreeSet<(AgentKey, u32)> {
        let of = |(key, agent): (&AgentKey, &crate::agents::Agent)| {
            let held = agent.held.keys().filter(|(name, _)| name == model);
            held.map(|(_, version)| (key.clone(), *version))
                .collect::<Vec<_>>()
        };
        let there = self.agents.iter().filter(|(_, agent)| !agent.gone);
        there.flat_map(of).collect()
    }

    fn check_unwanted(&self, number: usize) {
        let name = &self.clients[number].name;
        let held = self.held(name);
        assert!(
            held.is_empty(),
            "nobody wants {name}, and there is {held:?}"
        );
        let stored = self.scheduler.store.get(&("model", name.clone()));
        assert!(
            stored.is_none(),
            "nobody wants {name}, and it is stored: {stored:?}"
        );
        assert!(
            self.scheduler.state.route(name).is_none(),
            "nobody wants {name}, and it is routed"
        );
    }

    fn check_wanted(&self, wanted: &Model) {
        let name = &wanted.meta.as_ref().unwrap().name;
        let record = self.scheduler.store.get(&("model", name.clone()));
        assert!(is_stored(record, wanted), "{name} is stored as {record:?}");
        let Some(Record::Model {
            scaled, version, ..
        }) = record
        else {
            unreachable!()
        };
        let deployment = wanted.deployment_spec.as_ref().unwrap();
        // One at rest has the place of one.
        let at_rest = *scaled == Some(0);
        let target = scaled.map_or(deployment.replicas, |scaled| scaled.max(1)) as usize;
        let state = &self.scheduler.state;
        let status = state.model_status(name, false, Now::default()).unwrap();
        let shown = status.versions[0].state.clone().unwrap();
        let explained = || {
            format!(
                "{name}: {:?} {} of {target}; {:#?}",
                shown.state(),
                shown.reason,
                state.explain(name)
            )
        };
        // Desired, actual, routed and taken by Envoys are one.
        let held = self.held(name);
        let route = state.route(name);
        let routed: BTreeSet<(AgentKey, u32)> = route
            .iter()
            .flat_map(|route| &route.splits)
            .flat_map(|split| {
                let place = |index: &u32| {
                    (
                        AgentKey {
                            server: split.replicas.server.clone(),
                            replica: *index,
                        },
                        split.version,
                    )
                };
                split
                    .replicas
                    .replicas
                    .iter()
                    .map(place)
                    .collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(held, routed, "held and routed of {}", explained());
        for envoy in &self.envoys {
            assert_eq!(
                envoy.route(name),
                route.as_ref(),
                "taken by an Envoy: {name}"
            );
        }
        let versions: BTreeSet<u32> = held.iter().map(|(_, version)| *version).collect();
        for (key, version) in &held {
            let entry = (name.clone(), *version);
            let there = &self.agents[key].held[&entry];
            let resting = there.resting;
            assert_eq!(
                resting,
                at_rest,
                "{entry:?} on {key:?} rests; {}",
                explained()
            );
        }
        if target == 0 {
            assert!(
                held.is_empty() && shown.state() == ModelState::ModelScaledDown,
                "{}",
                explained()
            );
            return;
        }
        if !self.roomy {
            return;
        }
        let pinned = wanted.model_spec.as_ref().unwrap().server.as_deref();
        let servers = self
            .owners
            .iter()
            .filter(|owner| pinned.is_none_or(|pinned| pinned == owner.server));
        let most = servers.map(|owner| owner.expected as usize).max().unwrap();
        let least = deployment.min_replicas as usize;
        if target <= most {
            assert!(
                held.len() == target && shown.state() == ModelState::ModelAvailable,
                "{}",
                explained()
            );
            assert_eq!(versions, BTreeSet::from([*version]), "{}", explained());
        } else if least > 0 && least <= most {
            assert!(
                !held.is_empty() && shown.state() == ModelState::ModelAvailable,
                "{}",
                explained()
            );
        } else {
            // As many as there are of a version that was there before, or none.
            assert_ne!(
                shown.state(),
                ModelState::ModelProgressing,
                "{}",
                explained()
            );
        }
    }
}
