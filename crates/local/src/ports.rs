//! Which port each part listens on: the documented ones, or a block of free ones for a test.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser as _;
use serde::{Deserialize, Serialize};

/// Every port of a local system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub scheduler: SchedulerPorts,
    pub envoys: Vec<EnvoyPorts>,
    /// One for each replica of the server: an agent and its inference server; rclone takes a free port by itself.
    pub replicas: Vec<ReplicaPorts>,
}

/// The scheduler's ports, and the flags of `seldon local up` that set them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct SchedulerPorts {
    /// Scheduler: discovery by Envoys
    #[arg(long = "port-xds", value_name = "PORT", default_value_t = 9002)]
    pub xds: u16,
    /// Scheduler: the API that the CLI speaks
    #[arg(long = "port-scheduler", value_name = "PORT", default_value_t = 9004)]
    pub api: u16,
    /// Scheduler: agents
    #[arg(long = "port-agents", value_name = "PORT", default_value_t = 9005)]
    pub agents: u16,
    /// Scheduler: dataflow engines
    #[arg(long = "port-dataflow", value_name = "PORT", default_value_t = 9008)]
    pub dataflow: u16,
    /// Scheduler: `/ready` and `/live`
    #[arg(
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
    #[arg(long = "port-envoy", value_name = "PORT", default_value_t = 9000)]
    pub data: u16,
    /// Envoy: `/ready` and `/stats/prometheus`
    #[arg(
        long = "port-envoy-status",
        value_name = "PORT",
        default_value_t = 9003
    )]
    pub status: u16,
    /// Envoy: administration, on loopback
    #[arg(long = "port-envoy-admin", value_name = "PORT", default_value_t = 9901)]
    pub admin: u16,
}

/// The ports of a server replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct ReplicaPorts {
    /// Agent: inference by REST (further replicas: 100 higher each, as with the following)
    #[arg(long = "port-agent-rest", value_name = "PORT", default_value_t = 9999)]
    pub rest: u16,
    /// Agent: inference by gRPC
    #[arg(long = "port-agent-grpc", value_name = "PORT", default_value_t = 9998)]
    pub grpc: u16,
    /// Agent: drain before a stop
    #[arg(long = "port-agent-drain", value_name = "PORT", default_value_t = 9995)]
    pub drain: u16,
    /// Agent: `/ready`
    #[arg(long = "port-agent-ready", value_name = "PORT", default_value_t = 9993)]
    pub ready: u16,
    /// Agent: debug service
    #[arg(long = "port-agent-debug", value_name = "PORT", default_value_t = 7777)]
    pub debug: u16,
    /// Agent: `/metrics`
    #[arg(
        long = "port-agent-metrics",
        value_name = "PORT",
        default_value_t = 9006
    )]
    pub metrics: u16,
    /// MLServer: REST
    #[arg(
        long = "port-mlserver-rest",
        value_name = "PORT",
        default_value_t = 8080
    )]
    pub server_rest: u16,
    /// MLServer: gRPC
    #[arg(
        long = "port-mlserver-grpc",
        value_name = "PORT",
        default_value_t = 8081
    )]
    pub server_grpc: u16,
    /// MLServer: metrics
    #[arg(
        long = "port-mlserver-metrics",
        value_name = "PORT",
        default_value_t = 8084
    )]
    pub server_metrics: u16,
}

/// Their defaults, in one place: those of the flags.
#[derive(clap::Parser)]
#[command(no_binary_name = true)]
struct First {
    #[command(flatten)]
    scheduler: SchedulerPorts,
    #[command(flatten)]
    envoy: EnvoyPorts,
    #[command(flatten)]
    replica: ReplicaPorts,
}

/// A further Envoy or replica has its ports this much higher.
const NEXT: u16 = 100;

impl Ports {
    /// Sets out the ports of several Envoys and replicas from those of the first ones.
    pub fn from_first(
        scheduler: SchedulerPorts,
        envoy: &EnvoyPorts,
        replica: &ReplicaPorts,
        envoys: usize,
        replicas: usize,
    ) -> Result<Self> {
        let steps = |count: usize| {
            (0..count).map(|index| {
                u16::try_from(index)
                    .unwrap_or(u16::MAX)
                    .saturating_mul(NEXT)
            })
        };
        let ports = Self {
            scheduler,
            envoys: steps(envoys)
                .map(|step| envoy.map(|port| port.saturating_add(step)))
                .collect(),
            replicas: steps(replicas)
                .map(|step| replica.map(|port| port.saturating_add(step)))
                .collect(),
        };
        ports.distinct()?;
        Ok(ports)
    }

    /// Returns the documented ports; further Envoys and replicas have theirs 100 higher each.
    pub fn documented(replicas: usize, envoys: usize) -> Result<Self> {
        let none: [&str; 0] = [];
        let first = First::try_parse_from(none).context("every port has a default")?;
        Self::from_first(
            first.scheduler,
            &first.envoy,
            &first.replica,
            envoys,
            replicas,
        )
    }

    /// Returns the same ports, all of them `offset` higher.
    pub fn shifted(&self, offset: u16) -> Self {
        let shift = |port: u16| port.saturating_add(offset);
        Self {
            scheduler: self.scheduler.map(shift),
            envoys: self.envoys.iter().map(|envoy| envoy.map(shift)).collect(),
            replicas: self
                .replicas
                .iter()
                .map(|replica| replica.map(shift))
                .collect(),
        }
    }

    /// Lists every port with its owner and the flag that sets it.
    pub fn named(&self) -> Vec<Named> {
        let mut all = self.scheduler.named("scheduler");
        for (index, envoy) in self.envoys.iter().enumerate() {
            all.extend(envoy.named(&format!("envoy-{index}")));
        }
        for (index, replica) in self.replicas.iter().enumerate() {
            all.extend(replica.named(&format!("replica {index} of mlserver")));
        }
        all
    }

    /// Fails, naming every port that something else listens on.
    pub fn check_free(&self) -> Result<()> {
        self.distinct()?;
        let taken: Vec<Named> = self
            .named()
            .into_iter()
            .filter(|port| !is_free(port.number))
            .collect();
        if taken.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = taken
            .iter()
            .map(|port| format!("{} (for {}, set by {})", port.number, port.owner, port.flag))
            .collect();
        let noun = if list.len() == 1 { "port" } else { "ports" };
        bail!(
            "{noun} in use: {}; stop what listens there, or choose others, all at once by --port-offset",
            list.join(", ")
        )
    }

    fn distinct(&self) -> Result<()> {
        let mut all = self.named();
        all.sort_by_key(|port| port.number);
        for pair in all.windows(2) {
            if let [a, b] = pair
                && a.number == b.number
            {
                bail!(
                    "port {} is given to {} ({}) and to {} ({}): change one",
                    a.number,
                    a.owner,
                    a.flag,
                    b.owner,
                    b.flag
                );
            }
        }
        Ok(())
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
            fn map(&self, change: impl Fn(u16) -> u16) -> Self {
                Self { $($field: change(self.$field)),+ }
            }

            fn named(&self, owner: &str) -> Vec<Named> {
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

/// Tells whether nothing listens on a port.
///
/// Two Envoys share a port silently (SO_REUSEPORT), so binding it as Envoy does proves nothing: nobody may answer
/// there, and it must be possible to bind it without sharing.
fn is_free(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err()
        && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

/// Free ports that no other test takes while this is held.
#[derive(Debug)]
pub struct Reservation {
    pub ports: Ports,
    _lock: File,
}

/// Blocks lie below the range from which the kernel takes ports for outgoing connections.
const FIRST_BLOCK: u16 = 16_000;
const BLOCK: u16 = 200;
const BLOCKS: u16 = 80;

impl Ports {
    /// Reserves free ports; any number of processes may ask at once.
    pub fn free(replicas: usize, envoys: usize) -> Result<Reservation> {
        let folder = std::env::temp_dir().join(format!("seldon-ports-{}", nix::unistd::getuid()));
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let first = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap_or(0);
        for step in 0..BLOCKS {
            let start = FIRST_BLOCK + (first + step) % BLOCKS * BLOCK;
            let path = folder.join(start.to_string());
            let lock =
                File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            if lock.try_lock().is_err() {
                continue;
            }
            let ports = Self::block(start, replicas, envoys)?;
            if ports.named().iter().all(|port| is_free(port.number)) {
                return Ok(Reservation { ports, _lock: lock });
            }
        }
        bail!("no free block of ports from {FIRST_BLOCK} on")
    }

    fn block(start: u16, replicas: usize, envoys: usize) -> Result<Self> {
        let mut next = start..start + BLOCK;
        let mut take = || {
            next.next().with_context(|| {
                format!("{replicas} replicas and {envoys} Envoys need too many ports")
            })
        };
        let scheduler = SchedulerPorts {
            xds: take()?,
            api: take()?,
            agents: take()?,
            dataflow: take()?,
            health: take()?,
        };
        let envoys = (0..envoys)
            .map(|_| {
                Ok(EnvoyPorts {
                    data: take()?,
                    status: take()?,
                    admin: take()?,
                })
            })
            .collect::<Result<_>>()?;
        let replicas = (0..replicas)
            .map(|_| {
                Ok(ReplicaPorts {
                    rest: take()?,
                    grpc: take()?,
                    drain: take()?,
                    ready: take()?,
                    debug: take()?,
                    metrics: take()?,
                    server_rest: take()?,
                    server_grpc: take()?,
                    server_metrics: take()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            scheduler,
            envoys,
            replicas,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_differ_and_are_free() {
        let first = Ports::free(2, 2).unwrap();
        let second = Ports::free(2, 2).unwrap();
        first.ports.check_free().unwrap();
        second.ports.check_free().unwrap();
        let numbers = |held: &Reservation| {
            held.ports
                .named()
                .iter()
                .map(|port| port.number)
                .collect::<Vec<_>>()
        };
        assert!(
            numbers(&first)
                .iter()
                .all(|port| !numbers(&second).contains(port))
        );
    }

    #[test]
    fn documented_ports_do_not_collide() {
        let ports = Ports::documented(5, 3).unwrap();
        assert_eq!(
            (
                ports.envoys[0].data,
                ports.replicas[0].rest,
                ports.scheduler.xds
            ),
            (9000, 9999, 9002)
        );
    }

    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let held = Ports::free(1, 1).unwrap();
        let _listener = TcpListener::bind(("127.0.0.1", held.ports.envoys[0].data)).unwrap();
        let text = held.ports.check_free().unwrap_err().to_string();
        assert!(
            text.contains("--port-envoy)") && text.contains(&held.ports.envoys[0].data.to_string()),
            "{text}"
        );
    }
}
