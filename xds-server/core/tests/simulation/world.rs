//! The world: who there is, what is on its way, and what happens next.
use std::{collections::BTreeMap, time::Duration};

use seldon_core::{AgentKey, Config, StreamId, Synchronisation};
use seldon_proto::agent::{
    AgentSubscribeRequest, ModelEventMessage, ModelOperationMessage, ModelScalingTriggerMessage,
};

use crate::{
    agents::Agent,
    clients::{Client, Owner, Request},
    envoys::{Ack, Envoy},
    queue::{Queue, Random},
    scheduler::{Scheduler, Ticket},
    sim::agent,
};

/// Servers with the replicas that they have at first and may have at most.
pub const SERVERS: [(&str, u32, u32); 2] = [("alpha", 3, 4), ("beta", 2, 2)];

/// A model's version on an agent.
pub type Entry = (String, u32);

/// A report on its way.
#[derive(Clone, Debug)]
pub struct Call {
    pub key: AgentKey,
    pub process: u64,
    pub entry: Entry,
    pub message: ModelEventMessage,
    pub refusals: u32,
}

/// What can happen.
#[derive(Debug)]
pub enum Happening {
    // What comes to the scheduler; of a life before it is lost.
    Start,
    Tick {
        life: u64,
    },
    Commit {
        life: u64,
    },
    Subscribe {
        key: AgentKey,
        link: u64,
        subscription: Box<AgentSubscribeRequest>,
    },
    StreamEnded {
        life: u64,
        key: AgentKey,
        stream: StreamId,
    },
    Report {
        life: u64,
        call: Box<Call>,
        answered: bool,
    },
    Trigger {
        life: u64,
        message: Box<ModelScalingTriggerMessage>,
    },
    Drain {
        life: u64,
        key: AgentKey,
        process: u64,
    },
    Progress {
        life: u64,
    },
    EnvoyAcks {
        link: u64,
        ack: Ack,
    },
    EnvoyLinkEnded {
        life: u64,
        link: u64,
    },
    LeaseEnded {
        life: u64,
    },
    Ask {
        life: u64,
        ticket: Ticket,
        request: Box<Request>,
    },
    Notify {
        life: u64,
        server: usize,
        first: bool,
    },
    // What comes to an agent.
    Accepted {
        key: AgentKey,
        link: u64,
    },
    Order {
        key: AgentKey,
        link: u64,
        message: Box<ModelOperationMessage>,
    },
    LinkEnded {
        key: AgentKey,
        link: u64,
    },
    Dial {
        key: AgentKey,
        process: u64,
    },
    Done {
        key: AgentKey,
        process: u64,
        entry: Entry,
        work: u64,
        succeeded: bool,
    },
    CallEnded {
        call: Box<Call>,
        delivered: bool,
    },
    AgentStarts {
        key: AgentKey,
        process: u64,
    },
    AgentEnds {
        key: AgentKey,
        process: u64,
    },
    // What Envoys do.
    EnvoyDials {
        envoy: usize,
    },
    EnvoyTakes {
        envoy: usize,
        link: u64,
    },
    // What people do.
    Client {
        number: usize,
    },
    Answered {
        ticket: Ticket,
        outcome: Result<(), String>,
    },
    Lost {
        ticket: Ticket,
    },
    OwnerActs {
        server: usize,
    },
    OwnerWishes {
        server: usize,
    },
    Fault,
}

/// An agent's connection.
pub struct Link {
    pub life: u64,
    pub stream: Option<StreamId>,
    pub broken: bool,
    /// What is sent arrives after what was sent before.
    pub last: Duration,
}

pub struct World {
    pub queue: Queue<Happening>,
    pub random: Random,
    told: bool,
    pub scheduler: Scheduler,
    pub agents: BTreeMap<AgentKey, Agent>,
    pub links: BTreeMap<u64, Link>,
    pub envoys: Vec<Envoy>,
    pub clients: Vec<Client>,
    pub owners: Vec<Owner>,
    pub count: u64,
    /// Faults happen; later they do not any more.
    pub troubled: bool,
    /// Everything fits.
    pub roomy: bool,
    /// The owner notifies, as the operator does.
    pub owned: bool,
    /// Effects since this was last set to 0.
    pub effects: u64,
    pub ticks: u64,
    /// A server was asked to have fewer replicas.
    pub shrunk: bool,
}

impl World {
    pub fn new(seed: u64, told: bool) -> World {
        let mut random = Random::new(seed);
        let owned = random.chance(500);
        let synchronisation = match owned && random.chance(600) {
            true => Synchronisation::FirstServers {
                timeout: Duration::from_secs(120),
            },
            false => Synchronisation::AfterTimeout(Duration::from_secs(30)),
        };
        let config = Config {
            load_timeout: Duration::from_secs(600),
            unload_timeout: Duration::from_secs(300),
            model_autoscaling: random.chance(500),
            scale_down_pause: Duration::from_secs(1),
            scale_to_zero: random.chance(500).then_some(Duration::from_secs(2)),
            server_packing: if random.chance(200) { 0.3 } else { 0.0 },
            ..Config::new(synchronisation)
        };
        let roomy = random.chance(700);
        let mut agents = BTreeMap::new();
        for (server, count, most) in SERVERS {
            for index in 0..most {
                let memory = if roomy { 100_000 } else { 250 };
                let over_commit = if random.chance(300) { 50 } else { 0 };
                let key = agent(server, index);
                let known = Agent::new(memory, over_commit, index < count);
                agents.insert(key, known);
            }
        }
        let mut world = World {
            queue: Queue::new(),
            scheduler: Scheduler::new(config),
            agents,
            links: BTreeMap::new(),
            envoys: (0..2).map(|_| Envoy::default()).collect(),
            clients: Client::all(),
            owners: SERVERS
                .iter()
                .map(|(name, count, most)| Owner::new(name, *count, *most))
                .collect(),
            count: 0,
            troubled: true,
            roomy,
            owned,
            effects: 0,
            ticks: 0,
            shrunk: false,
            random,
            told,
        };
        world.tell(|| format!("seed {seed}: owned {owned}, roomy {roomy}"));
        world.queue.at(Duration::ZERO, Happening::Start);
        for (key, known) in &world.agents {
            if !known.gone {
                let after = world.random.millis(0, 3_000);
                world.queue.at(
                    after,
                    Happening::AgentStarts {
                        key: key.clone(),
                        process: 0,
                    },
                );
            }
        }
        for envoy in 0..world.envoys.len() {
            let after = world.random.millis(0, 3_000);
            world.queue.at(after, Happening::EnvoyDials { envoy });
        }
        for number in 0..world.clients.len() {
            let after = world.random.millis(0, 20_000);
            world.queue.at(after, Happening::Client { number });
        }
        for server in 0..SERVERS.len() {
            world
                .queue
                .at(Duration::from_secs(60), Happening::OwnerWishes { server });
        }
        world.queue.at(Duration::from_secs(5), Happening::Fault);
        world
    }

    pub fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// A line for whoever replays a seed.
    pub fn tell(&self, line: impl FnOnce() -> String) {
        if self.told {
            println!("{:>12.3} {}", self.queue.now.as_secs_f64(), line());
        }
    }

    /// Trouble, then none, then rest.
    pub fn play(mut self) {
        let minutes = 2 + self.random.below(10) as u64;
        self.run_until(Duration::from_secs(60 * minutes));
        self.heal();
        let healed = self.queue.now;
        self.run_until(healed + Duration::from_secs(1_800));
        self.ask_again();
        self.run_until(healed + Duration::from_secs(10_800));
        (self.effects, self.ticks) = (0, 0);
        self.run_until(healed + Duration::from_secs(14_400));
        self.check_rest();
    }

    fn run_until(&mut self, end: Duration) {
        let mut most = 400_000;
        while let Some(what) = self.queue.pop(end) {
            self.happen(what);
            self.check();
            most -= 1;
            assert!(
                most > 0,
                "the world does not come to rest: {most} events and more to come"
            );
        }
        self.queue.now = end;
    }

    fn happen(&mut self, what: Happening) {
        use Happening::*;
        let what = match self.held_back(what) {
            Some(what) => what,
            None => return,
        };
        match what {
            Start => self.start(),
            Tick { life } => self.tick(life),
            Commit { life } => self.commit(life),
            Subscribe {
                key,
                link,
                subscription,
            } => self.subscribed(&key, link, *subscription),
            StreamEnded { life, key, stream } => self.stream_ended(life, key, stream),
            Report {
                life,
                call,
                answered,
            } => self.report_arrives(life, *call, answered),
            Trigger { life, message } => self.triggered(life, *message),
            Drain { life, key, process } => self.drain_asked(life, key, process),
            Progress { life } => self.progress(life),
            EnvoyAcks { link, ack } => self.envoy_acks(link, ack),
            EnvoyLinkEnded { life, link } => self.envoy_link_ended(life, link),
            LeaseEnded { life } => self.lease_ended(life),
            Ask {
                life,
                ticket,
                request,
            } => self.asked(life, ticket, *request),
            Notify {
                life,
                server,
                first,
            } => self.notify(life, server, first),
            Accepted { key, link } => self.accepted(&key, link),
            Order { key, link, message } => self.ordered(&key, link, *message),
            LinkEnded { key, link } => self.link_ended(&key, link),
            Dial { key, process } => self.dial(&key, process),
            Done {
                key,
                process,
                entry,
                work,
                succeeded,
            } => self.done(&key, process, entry, work, succeeded),
            CallEnded { call, delivered } => self.call_ended(*call, delivered),
            AgentStarts { key, process } => self.agent_starts(&key, process),
            AgentEnds { key, process } => self.agent_ends(&key, process),
            EnvoyDials { envoy } => self.envoy_dials(envoy),
            EnvoyTakes { envoy, link } => self.envoy_takes(envoy, link),
            Client { number } => self.client_acts(number),
            Answered { ticket, outcome } => self.answered(ticket, outcome),
            Lost { ticket } => self.request_lost(ticket),
            OwnerActs { server } => self.owner_acts(server),
            OwnerWishes { server } => self.owner_wishes(server),
            Fault => self.fault(),
        }
    }

    /// What comes to somebody who is stopped waits, in its order.
    fn held_back(&mut self, what: Happening) -> Option<Happening> {
        use Happening::*;
        let until = match &what {
            Tick { .. }
            | Commit { .. }
            | Subscribe { .. }
            | StreamEnded { .. }
            | Report { .. }
            | Trigger { .. }
            | Drain { .. }
            | Progress { .. }
            | EnvoyAcks { .. }
            | EnvoyLinkEnded { .. }
            | LeaseEnded { .. }
            | Ask { .. }
            | Notify { .. } => self.scheduler.stopped_until,
            Accepted { key, .. }
            | Order { key, .. }
            | LinkEnded { key, .. }
            | Dial { key, .. }
            | Done { key, .. } => self.agents[key].stopped_until,
            _ => Duration::ZERO,
        };
        if until > self.queue.now {
            // Each has its own connection, so that after a pause one may be read before another.
            let mixed = matches!(
                what,
                Report { .. } | Subscribe { .. } | StreamEnded { .. } | Ask { .. }
            );
            let extra = if mixed {
                self.random.millis(0, 20)
            } else {
                Duration::ZERO
            };
            self.queue.at(until + extra, what);
            return None;
        }
        Some(what)
    }
}
