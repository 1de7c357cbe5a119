//! What goes wrong, and how it all becomes well again.
use std::time::Duration;

use seldon_core::AgentKey;
use seldon_proto::agent::{
    ModelEventMessage, ModelScalingTriggerMessage, ReplicaUsage,
    model_scaling_trigger_message::Trigger,
};

use crate::{
    clients::Request,
    world::{Call, Entry, Happening, World},
};

impl World {
    pub fn fault(&mut self) {
        if !self.troubled {
            return;
        }
        let pause = self.random.millis(200, 20_000);
        self.queue.after(pause, Happening::Fault);
        for _ in 0..4 {
            self.agents_talk();
        }
        let keys: Vec<AgentKey> = self
            .agents
            .iter()
            .filter(|(_, known)| known.up)
            .map(|(key, _)| key.clone())
            .collect();
        if keys.is_empty() {
            return;
        }
        let key = self.random.pick(&keys).clone();
        let now = self.queue.now;
        let envoy = self.random.below(self.envoys.len());
        match self.random.below(100) {
            0..12 => {
                if let Some(link) = self.agents[&key].link {
                    self.tell(|| {
                        format!("fault: the link of {}-{} breaks", key.server, key.replica)
                    });
                    self.break_link(&key, link);
                }
            }
            12..20 => {
                let span = self.random.millis(1_000, 100_000);
                self.tell(|| {
                    format!(
                        "fault: {}-{} is cut off for {span:?}",
                        key.server, key.replica
                    )
                });
                self.agent(&key).cut_until = now + span;
                if let Some(link) = self.agents[&key].link {
                    self.break_link(&key, link);
                }
            }
            20..32 => {
                let with_disk = self.random.chance(600);
                self.agent_dies(&key, with_disk, true);
            }
            32..38 => self.agent_leaves(&key),
            38..46 => {
                let span = self.random.millis(500, 40_000);
                self.tell(|| {
                    format!(
                        "fault: {}-{} is stopped for {span:?}",
                        key.server, key.replica
                    )
                });
                self.agent(&key).stopped_until = now + span;
                // Keep-alive finds out.
                if let Some(link) = self.agents[&key].link
                    && span > Duration::from_secs(15)
                {
                    self.break_link(&key, link);
                }
            }
            46..56 => self.envoy_cut(envoy),
            56..62 => self.crash(),
            62..70 => self.scheduler.doomed = true,
            70..76 => {
                let span = self.random.millis(500, 30_000);
                self.tell(|| format!("fault: the scheduler is stopped for {span:?}"));
                self.scheduler.stopped_until = now + span;
            }
            _ => {}
        }
    }

    /// What agents say unasked: thresholds of autoscaling, and how they are used.
    pub fn agents_talk(&mut self) {
        let life = self.scheduler.life;
        let keys: Vec<AgentKey> = self.agents.keys().cloned().collect();
        let key = self.random.pick(&keys).clone();
        let held = self.agents[&key].held.iter();
        let scaled = held.filter(|(_, held)| {
            let deployment = held.model.deployment_spec.as_ref();
            deployment.is_some_and(|deployment| deployment.max_replicas > 0)
        });
        let mut loaded: Vec<Entry> = scaled.map(|(entry, _)| entry.clone()).collect();
        if loaded.is_empty() {
            loaded = self.agents[&key].held.keys().cloned().collect();
        }
        if loaded.is_empty() || !self.agents[&key].accepted {
            return;
        }
        let entry = self.random.pick(&loaded).clone();
        let resting = self.agents[&key].held[&entry].resting;
        let (trigger, metric) = match self.random.below(3) {
            0 if !resting => (Trigger::ScaleUp, "lag"),
            1 if resting => (Trigger::ScaleUp, "woken"),
            _ => (Trigger::ScaleDown, "inactive_seconds"),
        };
        let value = u32::try_from(self.random.below(200)).unwrap();
        let message = ModelScalingTriggerMessage {
            server_name: key.server.to_string(),
            replica_idx: key.replica,
            model_name: entry.0.clone(),
            model_version: entry.1,
            trigger: trigger.into(),
            metrics: [(metric.to_owned(), value)].into(),
            ..ModelScalingTriggerMessage::default()
        };
        for _ in 0..1 + self.random.below(2) {
            let after = self.random.delay();
            self.queue.after(
                after,
                Happening::Trigger {
                    life,
                    message: Box::new(message.clone()),
                },
            );
        }
        let usage = ReplicaUsage {
            evicted_models: u32::try_from(self.random.below(3)).unwrap(),
            ..ReplicaUsage::default()
        };
        let message = ModelEventMessage {
            server_name: key.server.to_string(),
            replica_idx: key.replica,
            usage: Some(usage),
            ..ModelEventMessage::default()
        };
        let process = self.agents[&key].process;
        let call = Box::new(Call {
            key,
            process,
            entry,
            message,
            refusals: 0,
        });
        let after = self.random.delay();
        self.queue.after(
            after,
            Happening::Report {
                life,
                call,
                answered: false,
            },
        );
    }

    /// No more faults: everybody comes back, and is heard to the end.
    pub fn heal(&mut self) {
        self.tell(|| "all faults end".into());
        self.troubled = false;
        self.scheduler.doomed = false;
        self.scheduler.stopped_until = self.queue.now;
        for agent in self.agents.values_mut() {
            (agent.stopped_until, agent.cut_until) = (self.queue.now, self.queue.now);
        }
        for number in 0..self.clients.len() {
            self.queue
                .after(Duration::from_secs(1), Happening::Client { number });
        }
        if self.owned {
            let life = self.scheduler.life;
            for server in 0..self.owners.len() {
                self.queue.after(
                    Duration::from_secs(60),
                    Happening::Notify {
                        life,
                        server,
                        first: false,
                    },
                );
            }
        }
        // What Envoys refused they take when they come back.
        for envoy in 0..self.envoys.len() {
            self.envoy_cut(envoy);
        }
    }

    /// Loads that failed too often are given up until a client asks again.
    pub fn ask_again(&mut self) {
        self.tell(|| "clients ask again".into());
        for number in 0..self.clients.len() {
            if let Some(Request::Load(model)) = self.clients[number].promised() {
                let model = model.clone();
                self.begin(number, Request::Load(model));
            }
        }
    }
}
