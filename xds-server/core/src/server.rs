//! A server: its replicas, what they can take, and what is on them.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seldon_proto::{
    agent::{AgentSubscribeRequest, ReplicaUsage},
    scheduler::{KubernetesMeta, Model},
};

use crate::{Config, Endpoint, Generation, StreamId, scaling::ServerScaling, schedule::Sets};

/// A drain that its agent asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drain {
    /// A model may still be asked for there, because it cannot be served elsewhere.
    pub(crate) stuck: BTreeSet<Arc<str>>,
    /// Whom to answer; empty once answered.
    pub(crate) tokens: Vec<u64>,
    /// Models that may still be asked for there.
    pub(crate) pending: BTreeSet<Arc<str>>,
    pub(crate) deadline: Duration,
}

/// One replica of a server: an agent and the runtime beside it.
#[derive(Clone, Debug)]
pub(crate) struct ServerReplica {
    /// The agent's stream; none while it is lost.
    pub(crate) stream: Option<StreamId>,
    pub(crate) lost_at: Option<Duration>,
    pub(crate) endpoint: Endpoint,
    /// The newest generation in which the endpoint changed.
    pub(crate) endpoint_generation: Generation,
    pub(crate) total_memory: u64,
    pub(crate) over_commit: u32,
    pub(crate) capabilities: BTreeSet<String>,
    /// Bytes that can be booked: what the agent had free plus what its models take.
    pub(crate) capacity: u64,
    pub(crate) booked: u64,
    /// Bytes booked beyond the capacity by what was learned only after a model was placed.
    pub(crate) excess: u64,
    /// Entries (whatever their state) by model.
    pub(crate) models: BTreeMap<Arc<str>, u32>,
    /// Those of them that take memory, or would.
    pub(crate) awake: u32,
    /// Since when there have been none of those.
    pub(crate) empty_since: Option<Duration>,
    /// Models that can answer.
    pub(crate) loaded: u32,
    /// As its agent said last.
    pub(crate) usage: ReplicaUsage,
    pub(crate) drain: Option<Drain>,
    /// The server is to have fewer replicas, and this is one too many.
    pub(crate) surplus: bool,
}

/// How far a replica can be counted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Usable,
    /// Its stream is lost, but only just.
    Suspect,
    /// Its stream is lost for so long that models get replacements.
    Lost,
    /// It has been lost for so long that others take over even when they are fewer.
    Expired,
    /// It is about to go; models move first.
    Leaving,
    /// It was to go, and went.
    Left,
}

/// A server by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    /// Replicas wanted; unknown until a client tells.
    pub(crate) expected: Option<u32>,
    pub(crate) min_replicas: u32,
    pub(crate) max_replicas: u32,
    /// Replicas that the store last knew of.
    pub(crate) recorded: u32,
    pub(crate) kubernetes_meta: Option<KubernetesMeta>,
    pub(crate) shared: bool,
    pub(crate) replicas: BTreeMap<u32, ServerReplica>,
    /// Common to all replicas that are connected.
    pub(crate) capabilities: BTreeSet<String>,
    pub(crate) sets: Sets,
    pub(crate) scaling: ServerScaling,
}

impl ServerReplica {
    pub(crate) fn new(index: u32) -> ServerReplica {
        ServerReplica {
            stream: None,
            lost_at: None,
            endpoint: Endpoint {
                replica: index,
                host: String::new(),
                http_port: 0,
                grpc_port: 0,
                over_committed: false,
            },
            endpoint_generation: 0,
            total_memory: 0,
            over_commit: 0,
            capabilities: BTreeSet::new(),
            capacity: 0,
            booked: 0,
            excess: 0,
            models: BTreeMap::new(),
            awake: 0,
            empty_since: None,
            loaded: 0,
            usage: ReplicaUsage::default(),
            drain: None,
            surplus: false,
        }
    }

    /// Whether its agent is ours: those serve both protocols on one port.
    pub(crate) fn is_ours(&self) -> bool {
        self.endpoint.http_port == self.endpoint.grpc_port
    }

    /// Takes over what an agent says of itself; whether its endpoint changed.
    pub(crate) fn describe(&mut self, subscription: &AgentSubscribeRequest) -> bool {
        let config = subscription.replica_config.clone().unwrap_or_default();
        let endpoint = endpoint(subscription);
        self.total_memory = config.memory_bytes;
        self.over_commit = config.over_commit_percentage;
        self.capabilities = config
            .capabilities
            .iter()
            .map(|word| word.trim().to_owned())
            .collect();
        let changed = !endpoint.same_place(&self.endpoint);
        self.endpoint = Endpoint {
            over_committed: self.endpoint.over_committed,
            ..endpoint
        };
        changed
    }

    /// Whether more is booked than it has in memory at a time. Over-commitment that is allowed and not used costs
    /// nothing; and what is near the limit does not go back and forth.
    pub(crate) fn under_pressure(&self) -> bool {
        let enough = match self.endpoint.over_committed {
            true => self.total_memory - self.total_memory / 5,
            false => self.total_memory,
        };
        self.over_commit > 0 && self.booked > enough
    }

    /// Counts models that take memory from now on, or do not any more.
    pub(crate) fn count_awake(&mut self, more: u32, fewer: u32) {
        self.awake = self.awake + more - fewer;
        if self.awake > 0 {
            self.empty_since = None;
        }
    }

    /// All that its agent lets be booked.
    pub(crate) fn most_memory(&self) -> u64 {
        let percent = 100 + u128::from(self.over_commit);
        let most = u128::from(self.total_memory) * percent / 100;
        u64::try_from(most).unwrap_or(u64::MAX)
    }

    pub(crate) fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.booked)
    }

    /// More where there are fewer models: those that take no memory are spread by that.
    pub(crate) fn few_models(&self) -> u64 {
        u64::MAX - self.models.len() as u64
    }

    pub(crate) fn standing(&self, now: Duration, config: &Config) -> Standing {
        if self.stream.is_none() && self.surplus {
            return Standing::Left;
        }
        match self.lost_at {
            Some(lost) if now >= lost + config.suspect => Standing::Expired,
            _ if self.surplus || self.drain.is_some() => Standing::Leaving,
            None => Standing::Usable,
            Some(lost) if now >= lost + config.replace_after => Standing::Lost,
            Some(_) => Standing::Suspect,
        }
    }

    pub(crate) fn usable(&self) -> bool {
        self.stream.is_some() && !self.surplus && self.drain.is_none()
    }
}

impl Server {
    pub(crate) fn connected(&self) -> impl Iterator<Item = (&u32, &ServerReplica)> {
        self.replicas
            .iter()
            .filter(|(_, replica)| replica.stream.is_some())
    }

    /// Models may be placed on these.
    pub(crate) fn usable(&self) -> impl Iterator<Item = (u32, &ServerReplica)> {
        self.replicas
            .iter()
            .filter(|(_, replica)| replica.usable())
            .map(|(index, replica)| (*index, replica))
    }

    pub(crate) fn refresh_capabilities(&mut self) {
        let mut sets = self.connected().map(|(_, replica)| &replica.capabilities);
        let first = sets.next().cloned().unwrap_or_default();
        self.capabilities = sets.fold(first, |common, set| {
            common.intersection(set).cloned().collect()
        });
    }

    /// Marks the replicas beyond those expected, highest index first; which marks changed.
    pub(crate) fn refresh_surplus(&mut self) -> Vec<u32> {
        let expected = self.expected.unwrap_or(u32::MAX);
        let mut too_many = self.replicas.len().saturating_sub(expected as usize);
        let mut changed = Vec::new();
        for (index, replica) in self.replicas.iter_mut().rev() {
            let surplus = too_many > 0 && *index >= expected;
            too_many -= usize::from(surplus);
            if replica.surplus != surplus {
                replica.surplus = surplus;
                changed.push(*index);
            }
        }
        changed
    }
}

/// Where an agent says that it listens.
pub(crate) fn endpoint(subscription: &AgentSubscribeRequest) -> Endpoint {
    let config = subscription.replica_config.clone().unwrap_or_default();
    let port = |number: i32| u16::try_from(number).unwrap_or(0);
    Endpoint {
        replica: subscription.replica_idx,
        host: config.inference_svc,
        http_port: port(config.inference_http_port),
        grpc_port: port(config.inference_grpc_port),
        // Known when its models are.
        over_committed: false,
    }
}

/// The first requirement that the server's replicas do not have in common.
pub(crate) fn missing_requirement<'a>(server: &Server, spec: &'a Model) -> Option<&'a str> {
    let requirements = spec.model_spec.iter().flat_map(|model| &model.requirements);
    requirements
        .map(|word| word.trim())
        .find(|word| !server.capabilities.contains(*word))
}
