//! What an agent does with the scheduler's orders. Orders of different models run side by side; a newer order of one
//! model takes over from an older one, as in the agent's registry.
use std::time::Duration;

use seldon_core::AgentKey;
use seldon_proto::{
    agent::{
        ModelOperationMessage, model_event_message::Event as Report,
        model_operation_message::Operation,
    },
    scheduler::Model,
};

use crate::{
    agents::{Held, Phase, bytes},
    world::{Entry, Happening, World},
};

/// One artefact, run in one way.
fn same(left: &Model, right: &Model) -> bool {
    let plain = |model: &Model| {
        let mut spec = model.model_spec.clone().unwrap();
        spec.model_runtime_info = None;
        spec
    };
    plain(left) == plain(right)
}

impl World {
    pub fn ordered(&mut self, key: &AgentKey, link: u64, message: ModelOperationMessage) {
        if self.links[&link].broken || self.agents[key].link != Some(link) {
            return;
        }
        let operation = message.operation();
        let version = message.model_version.unwrap();
        let model = version.model.unwrap();
        let entry: Entry = (model.meta.clone().unwrap().name, version.version);
        self.tell(|| {
            let (name, number) = &entry;
            let keeping = if message.resting { ", at rest" } else { "" };
            format!(
                "{}-{}: is to {} {name}:{number}{keeping}",
                key.server,
                key.replica,
                operation.as_str_name()
            )
        });
        let held = self.agents[key].held.get(&entry).cloned();
        let as_before = held.as_ref().is_some_and(|held| same(&held.model, &model));
        let phase = held.map(|held| held.phase);
        let resting = message.resting;
        if operation == Operation::LoadModel
            && as_before
            && let Some(held) = self.agent(key).held.get_mut(&entry)
        {
            (held.resting, held.rested) = (resting, held.rested || resting);
        }
        match (operation, phase) {
            (Operation::LoadModel, _) if self.agents[key].draining => {
                self.report(key, &entry, Report::LoadFailed);
            }
            (Operation::LoadModel, Some(Phase::Loaded)) if as_before => {
                self.report(key, &entry, Report::Loaded);
            }
            // It joins the load that is under way.
            (Operation::LoadModel, Some(Phase::Loading(_))) if as_before => {}
            (Operation::LoadModel, _) => {
                let work = self.work(key, &entry, 900);
                self.agent(key).held.insert(
                    entry,
                    Held {
                        model,
                        phase: Phase::Loading(work),
                        resting,
                        rested: resting,
                    },
                );
            }
            (_, None) => self.report(key, &entry, Report::Unloaded),
            (_, Some(Phase::Loading(_))) => {
                self.agent(key).held.remove(&entry);
                self.report(key, &entry, Report::Unloaded);
            }
            (_, Some(_)) => {
                let work = self.work(key, &entry, 900);
                self.agent(key).held.get_mut(&entry).unwrap().phase = Phase::Unloading(work);
            }
        }
    }

    /// Begins what takes its time, and may fail.
    fn work(&mut self, key: &AgentKey, entry: &Entry, succeeds: usize) -> u64 {
        let work = self.number();
        let took = match self.random.below(100) {
            0 if self.troubled => self.random.millis(100_000, 900_000),
            1..10 => self.random.millis(2_000, 60_000),
            _ => self.random.millis(5, 2_000),
        };
        let succeeded = !self.troubled || self.random.chance(succeeds);
        let (key, process, entry) = (key.clone(), self.agents[key].process, entry.clone());
        self.queue.after(
            took,
            Happening::Done {
                key,
                process,
                entry,
                work,
                succeeded,
            },
        );
        work
    }

    pub fn done(&mut self, key: &AgentKey, process: u64, entry: Entry, work: u64, succeeded: bool) {
        let agent = self.agent(key);
        if agent.process != process || !agent.up {
            return;
        }
        let Some(held) = agent.held.get(&entry).cloned() else {
            return;
        };
        let event = match held.phase {
            Phase::Loading(own) if own == work => {
                // Where some were at rest, and are booked anew, others leave their memory to whoever is asked for.
                let evicts = agent.held.values().any(|held| held.rested);
                let room = agent.registered() + bytes(&held.model) <= agent.capacity();
                let fits = (room || evicts) && bytes(&held.model) <= agent.memory;
                if succeeded && fits {
                    agent.ever.insert(entry.clone());
                    agent.held.get_mut(&entry).unwrap().phase = Phase::Loaded;
                    Report::Loaded
                } else {
                    agent.held.remove(&entry);
                    Report::LoadFailed
                }
            }
            Phase::Unloading(own) if own == work => {
                if succeeded {
                    agent.held.remove(&entry);
                    Report::Unloaded
                } else {
                    // It tries again by itself after a while.
                    let again = Duration::from_secs(200);
                    let (key, entry) = (key.clone(), entry.clone());
                    self.queue.after(
                        again,
                        Happening::Done {
                            key,
                            process,
                            entry,
                            work,
                            succeeded: true,
                        },
                    );
                    Report::UnloadFailed
                }
            }
            _ => return,
        };
        self.tell(|| {
            let (name, number) = &entry;
            format!(
                "{}-{}: {} {name}:{number}",
                key.server,
                key.replica,
                event.as_str_name()
            )
        });
        self.report(key, &entry, event);
    }
}
