//! Clients, each with one object of its own: they ask again until they are answered, and only then want something else.
//! Owners of servers follow what the scheduler asks for late, or not at all.
use std::{fmt, time::Duration};

use seldon_core::Event;
use seldon_proto::scheduler::{Experiment, Model, ServerNotify};

use crate::{
    queue::Random,
    scheduler::Ticket,
    sim::{self, agent, experiment, mirror, spec},
    world::{Happening, SERVERS, World},
};

pub const MODELS: usize = 5;
const EXPERIMENTS: usize = 3;

#[derive(Clone, Debug)]
pub enum Request {
    Load(Box<Model>),
    Unload(String),
    Start(Box<Experiment>),
    Stop(String),
}

impl Request {
    pub fn event(self) -> Event {
        match self {
            Request::Load(model) => Event::LoadModel(model),
            Request::Unload(name) => Event::UnloadModel {
                name,
                kubernetes_meta: None,
            },
            Request::Start(spec) => Event::StartExperiment(spec),
            Request::Stop(name) => Event::StopExperiment { name },
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Load(model) => {
                let (meta, spec) = (
                    model.meta.as_ref().unwrap(),
                    model.model_spec.as_ref().unwrap(),
                );
                let wish = model.deployment_spec.as_ref().unwrap();
                write!(
                    f,
                    "load {} of {} on {:?}, {} replicas from {} to {}",
                    meta.name,
                    spec.uri,
                    spec.server,
                    wish.replicas,
                    wish.min_replicas,
                    wish.max_replicas
                )
            }
            Request::Unload(name) => write!(f, "unload {name}"),
            Request::Start(spec) => write!(
                f,
                "start {}: {:?}, mirror {:?}",
                spec.name, spec.candidates, spec.mirror
            ),
            Request::Stop(name) => write!(f, "stop {name}"),
        }
    }
}

/// What somebody wants of one object.
pub struct Client {
    pub name: String,
    /// Asked for and not answered yet.
    pub asking: Option<(u64, Request)>,
    /// Copies of the request on their way.
    copies: u32,
    /// The answer, which counts when no copy is on its way any more.
    answer: Option<bool>,
    /// One of the copies was not answered.
    unsure: bool,
    /// The last that was answered.
    pub settled: Option<Request>,
}

impl Client {
    pub fn all() -> Vec<Client> {
        let models = (0..MODELS).map(|number| format!("model-{number}"));
        let experiments = (0..EXPERIMENTS).map(|number| format!("experiment-{number}"));
        let of = |name| Client {
            name,
            asking: None,
            copies: 0,
            answer: None,
            unsure: false,
            settled: None,
        };
        models.chain(experiments).map(of).collect()
    }

    /// What it was promised, when nothing is under way.
    pub fn promised(&self) -> Option<&Request> {
        self.settled.as_ref().filter(|_| self.asking.is_none())
    }
}

/// Whoever owns a server's replicas.
pub struct Owner {
    pub server: &'static str,
    pub expected: u32,
    pub most: u32,
}

impl Owner {
    pub fn new(server: &'static str, expected: u32, most: u32) -> Owner {
        Owner {
            server,
            expected,
            most,
        }
    }
}

fn wish(random: &mut Random, name: &str, roomy: bool) -> Request {
    if random.chance(250) {
        return Request::Unload(name.into());
    }
    let replicas = u32::try_from(random.below(4)).unwrap();
    let mut wanted = sim::model(name, replicas);
    let kinds = if roomy { 4 } else { 3 };
    spec(&mut wanted).uri = format!("gs://models/{}", random.below(kinds));
    if random.chance(200) {
        spec(&mut wanted).server = Some(random.pick(&SERVERS).0.to_owned());
    }
    let deployment = wanted.deployment_spec.as_mut().unwrap();
    if random.chance(400) {
        deployment.min_replicas = replicas.min(1);
    }
    if random.chance(300) && replicas > 0 {
        deployment.max_replicas = 3;
    }
    // One that may rest.
    if random.chance(300) {
        (deployment.replicas, deployment.min_replicas) = (1, 0);
        deployment.max_replicas = 3;
    }
    Request::Load(Box::new(wanted))
}

fn split(random: &mut Random, name: &str) -> Request {
    if random.chance(300) {
        return Request::Stop(name.into());
    }
    let first = random.below(MODELS);
    let names: Vec<String> = (0..3)
        .map(|at| format!("model-{}", (first + at) % MODELS))
        .collect();
    let count = 1 + random.below(2);
    let candidates: Vec<(&str, u32)> = names[..count]
        .iter()
        .map(|name| (name.as_str(), 50))
        .collect();
    let default = random.chance(600).then_some(names[0].as_str());
    let mut spec = experiment(name, default, &candidates);
    if random.chance(300) {
        spec.mirror = mirror(&names[2], 50);
    }
    Request::Start(Box::new(spec))
}

impl World {
    pub fn client_acts(&mut self, number: usize) {
        if self.troubled {
            let pause = self.random.millis(300, 30_000);
            self.queue.after(pause, Happening::Client { number });
        }
        let roomy = self.roomy;
        if self.clients[number].asking.is_none() {
            if !self.troubled {
                return;
            }
            let name = self.clients[number].name.clone();
            let wish = match number < MODELS {
                true => wish(&mut self.random, &name, roomy),
                false => split(&mut self.random, &name),
            };
            self.begin(number, wish);
        } else if self.clients[number].copies == 0 {
            self.send_request(number);
        } else if self.troubled && self.random.chance(100) {
            // It does not wait for an answer before it asks again.
            self.send_request(number);
        }
    }

    pub fn begin(&mut self, number: usize, wish: Request) {
        let id = self.number();
        let client = &mut self.clients[number];
        (client.asking, client.answer) = (Some((id, wish)), None);
        self.send_request(number);
    }

    fn send_request(&mut self, number: usize) {
        let (life, alive) = (self.scheduler.life, self.scheduler.alive);
        let client = &mut self.clients[number];
        let Some((id, request)) = client.asking.clone() else {
            return;
        };
        client.copies += 1;
        let ticket = Ticket {
            client: number,
            request: id,
        };
        let after = self.random.delay();
        let lost = !alive || (self.troubled && self.random.chance(50));
        self.queue.after(
            after,
            match lost {
                true => Happening::Lost { ticket },
                false => Happening::Ask {
                    life,
                    ticket,
                    request: Box::new(request),
                },
            },
        );
    }

    pub fn answered(&mut self, ticket: Ticket, outcome: Result<(), String>) {
        let client = &mut self.clients[ticket.client];
        client.copies -= 1;
        let request = &client.asking.as_ref().unwrap().1;
        match (&outcome, request) {
            (Ok(()), _) => client.answer = Some(true),
            // It is gone, which is what was wanted.
            (Err(_), Request::Unload(_) | Request::Stop(_)) => client.answer = Some(true),
            (Err(text), _) if text.contains("still being unloaded") => {}
            (Err(_), _) => client.answer = client.answer.or(Some(false)),
        }
        self.conclude(ticket.client);
    }

    /// It was not answered, and may have been accepted all the same.
    pub fn request_lost(&mut self, ticket: Ticket) {
        let client = &mut self.clients[ticket.client];
        client.copies -= 1;
        client.unsure = true;
        self.conclude(ticket.client);
    }

    fn conclude(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.copies > 0 {
            return;
        }
        let unsure = std::mem::take(&mut client.unsure);
        let answer = client.answer.take();
        match answer.filter(|accepted| *accepted || !unsure) {
            Some(accepted) => {
                let (_, request) = client.asking.take().unwrap();
                if accepted {
                    client.settled = Some(request);
                }
                let (name, settled) = (&self.clients[number].name, &self.clients[number].settled);
                self.tell(|| {
                    format!(
                        "client: {name} is settled ({accepted}): {}",
                        settled
                            .as_ref()
                            .map(ToString::to_string)
                            .unwrap_or_default()
                    )
                });
            }
            None if !self.troubled => {
                self.queue
                    .after(Duration::from_secs(1), Happening::Client { number });
            }
            None => {}
        }
    }

    /// A server's owner says how many replicas there are to be.
    pub fn notify(&mut self, life: u64, server: usize, first: bool) {
        if !self.scheduler.is(life) {
            return;
        }
        // The first message after a start names all servers.
        let named = if first {
            0..SERVERS.len()
        } else {
            server..server + 1
        };
        let servers: Vec<ServerNotify> = named
            .map(|at| {
                let owner = &self.owners[at];
                ServerNotify {
                    name: owner.server.into(),
                    expected_replicas: owner.expected,
                    min_replicas: 1,
                    max_replicas: owner.most,
                    ..ServerNotify::default()
                }
            })
            .collect();
        self.tell(|| {
            format!(
                "scheduler: is notified of {:?}",
                servers
                    .iter()
                    .map(|s| (&s.name, s.expected_replicas))
                    .collect::<Vec<_>>()
            )
        });
        self.step(
            Event::ServerNotify {
                servers,
                first_sync: first,
            },
            None,
        );
    }

    pub fn scaling_asked(&mut self, name: &str) {
        let server = SERVERS.iter().position(|(server, ..)| *server == name);
        let Some(server) = server.filter(|_| self.owned) else {
            return;
        };
        if self.random.chance(700) {
            let after = self.random.millis(10, 60_000);
            self.queue.after(after, Happening::OwnerActs { server });
        }
    }

    /// The owner follows what is asked for by then.
    pub fn owner_acts(&mut self, server: usize) {
        if !self.scheduler.alive {
            return;
        }
        let request = self
            .scheduler
            .state
            .scaling_request(self.owners[server].server);
        if let Some(request) = request {
            let replicas = u32::try_from(request.expected_replicas).unwrap();
            self.resize(server, replicas);
        }
    }

    /// Now and then the owner has a will of its own.
    pub fn owner_wishes(&mut self, server: usize) {
        if !self.owned || !self.troubled {
            return;
        }
        if self.random.chance(200) {
            let most = self.owners[server].most as usize;
            let replicas = 1 + u32::try_from(self.random.below(most)).unwrap();
            self.resize(server, replicas);
        }
        self.queue
            .after(Duration::from_secs(60), Happening::OwnerWishes { server });
    }

    fn resize(&mut self, server: usize, replicas: u32) {
        let owner = &mut self.owners[server];
        let replicas = replicas.clamp(1, owner.most);
        self.shrunk |= replicas < owner.expected;
        owner.expected = replicas;
        let (name, most, life) = (owner.server, owner.most, self.scheduler.life);
        self.tell(|| format!("owner: {name} has {replicas} replicas from now on"));
        let after = self.random.delay();
        self.queue.after(
            after,
            Happening::Notify {
                life,
                server,
                first: false,
            },
        );
        for index in 0..most {
            let key = agent(name, index);
            let known = self.agent(&key);
            known.gone = index >= replicas;
            let (gone, up, process) = (known.gone, known.up, known.process);
            match (gone, up) {
                (true, true) => self.agent_leaves(&key),
                (true, false) => self.agent(&key).held.clear(),
                (false, false) => {
                    let after = self.random.millis(500, 20_000);
                    self.queue
                        .after(after, Happening::AgentStarts { key, process });
                }
                // One that is on its way out comes back when it has ended.
                (false, true) => {}
            }
        }
    }
}
