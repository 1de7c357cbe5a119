//! Which port each part listens on: the documented ones, or a block of free ones for a test.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser as _;
use serde::{Deserialize, Serialize};

use crate::counts::Counts;
pub use crate::port_kinds::{
    BrokerPorts, EnginePorts, EnvoyPorts, ModelGatewayPorts, Named, PipelineGatewayPorts,
    ReplicaPorts, SchedulerPorts, TritonPorts,
};

/// Every port of a local system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub scheduler: SchedulerPorts,
    pub envoys: Vec<EnvoyPorts>,
    /// One for each replica of the server: an agent and its inference server; rclone takes a free port by itself.
    pub replicas: Vec<ReplicaPorts>,
    /// The same for the server `triton`.
    #[serde(default)]
    pub tritons: Vec<TritonPorts>,
    #[serde(default)]
    pub brokers: Vec<BrokerPorts>,
    #[serde(default)]
    pub model_gateways: Vec<ModelGatewayPorts>,
    #[serde(default)]
    pub pipeline_gateways: Vec<PipelineGatewayPorts>,
    #[serde(default)]
    pub engines: Vec<EnginePorts>,
}

/// The ports of the first process of each kind, as flags of `seldon local up`; the defaults are the documented ones.
#[derive(Clone, Debug, clap::Args)]
pub struct FirstPorts {
    #[command(flatten)]
    pub scheduler: SchedulerPorts,
    #[command(flatten)]
    pub envoy: EnvoyPorts,
    #[command(flatten)]
    pub replica: ReplicaPorts,
    #[command(flatten)]
    pub triton: TritonPorts,
    #[command(flatten)]
    pub broker: BrokerPorts,
    #[command(flatten)]
    pub model_gateway: ModelGatewayPorts,
    #[command(flatten)]
    pub pipeline_gateway: PipelineGatewayPorts,
    #[command(flatten)]
    pub engine: EnginePorts,
}

/// Reads their defaults, which are in one place: that of the flags.
#[derive(clap::Parser)]
#[command(no_binary_name = true)]
struct Defaults {
    #[command(flatten)]
    first: FirstPorts,
}

/// A further process of a kind has its ports this much higher.
const NEXT: u16 = 100;

/// Copies the first one's ports, each time higher.
fn row<T>(first: &T, count: usize, map: impl Fn(&T, u16) -> T) -> Vec<T> {
    let step = |index: usize| {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        index.saturating_mul(NEXT)
    };
    (0..count).map(|index| map(first, step(index))).collect()
}

macro_rules! rows {
    ($counts:ident, $first:ident, $($many:ident $count:ident $one:ident),+) => {
        Ports {
            scheduler: $first.scheduler.clone(),
            $($many: row(&$first.$one, $counts.$count, |ports, step| {
                ports.map(|port| port.saturating_add(step))
            })),+
        }
    };
}

impl Ports {
    /// Sets out the ports of all processes from those of the first ones.
    pub fn from_first(first: &FirstPorts, counts: &Counts) -> Result<Self> {
        let ports = rows!(
            counts, first,
            envoys envoys envoy,
            replicas replicas replica,
            tritons tritons triton,
            brokers brokers broker,
            model_gateways model_gateways model_gateway,
            pipeline_gateways pipeline_gateways pipeline_gateway,
            engines engines engine
        );
        ports.distinct()?;
        Ok(ports)
    }

    /// Returns the documented ports; further processes of a kind have theirs 100 higher each.
    pub fn documented(counts: &Counts) -> Result<Self> {
        let none: [&str; 0] = [];
        let defaults = Defaults::try_parse_from(none).context("every port has a default")?;
        Self::from_first(&defaults.first, counts)
    }

    /// Tells how many processes have ports here.
    pub fn counts(&self) -> Counts {
        Counts {
            replicas: self.replicas.len(),
            tritons: self.tritons.len(),
            envoys: self.envoys.len(),
            brokers: self.brokers.len(),
            model_gateways: self.model_gateways.len(),
            pipeline_gateways: self.pipeline_gateways.len(),
            engines: self.engines.len(),
        }
    }

    /// Returns the same ports, all of them `offset` higher.
    pub fn shifted(&self, offset: u16) -> Self {
        let shift = |port: u16| port.saturating_add(offset);
        macro_rules! all {
            ($($many:ident),+) => {
                Self {
                    scheduler: self.scheduler.map(shift),
                    $($many: self.$many.iter().map(|ports| ports.map(shift)).collect()),+
                }
            };
        }
        all!(
            envoys,
            replicas,
            tritons,
            brokers,
            model_gateways,
            pipeline_gateways,
            engines
        )
    }

    /// Lists every port with its owner and the flag that sets it.
    pub fn named(&self) -> Vec<Named> {
        let mut all = self.scheduler.named("scheduler");
        macro_rules! add {
            ($($many:ident $owner:literal),+) => {
                $(for (index, ports) in self.$many.iter().enumerate() {
                    all.extend(ports.named(&format!($owner, index = index)));
                })+
            };
        }
        add!(
            envoys "envoy-{index}",
            replicas "replica {index} of mlserver",
            tritons "replica {index} of triton",
            brokers "kafka, broker {index}",
            model_gateways "modelgateway-{index}",
            pipeline_gateways "pipelinegateway-{index}",
            engines "dataflow-engine-{index}"
        );
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
    pub fn free(counts: &Counts) -> Result<Reservation> {
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
            let ports = Self::block(start, counts)?;
            if ports.named().iter().all(|port| is_free(port.number)) {
                return Ok(Reservation { ports, _lock: lock });
            }
        }
        bail!("no free block of ports from {FIRST_BLOCK} on")
    }

    fn block(start: u16, counts: &Counts) -> Result<Self> {
        let mut next = start..start + BLOCK;
        let mut take = || {
            next.next()
                .with_context(|| format!("{counts:?} need too many ports"))
        };
        Ok(Self {
            scheduler: SchedulerPorts::take(&mut take)?,
            envoys: many(counts.envoys, || EnvoyPorts::take(&mut take))?,
            replicas: many(counts.replicas, || ReplicaPorts::take(&mut take))?,
            tritons: many(counts.tritons, || TritonPorts::take(&mut take))?,
            brokers: many(counts.brokers, || BrokerPorts::take(&mut take))?,
            model_gateways: many(counts.model_gateways, || ModelGatewayPorts::take(&mut take))?,
            pipeline_gateways: many(counts.pipeline_gateways, || {
                PipelineGatewayPorts::take(&mut take)
            })?,
            engines: many(counts.engines, || EnginePorts::take(&mut take))?,
        })
    }
}

fn many<T>(count: usize, mut make: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
    (0..count).map(|_| make()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_differ_and_are_free() {
        let first = Ports::free(&Counts::new(2, 2).pipelines()).unwrap();
        let second = Ports::free(&Counts::new(2, 2).pipelines()).unwrap();
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
        let ports = Ports::documented(&Counts {
            tritons: 3,
            ..Counts::new(5, 3).pipelines()
        })
        .unwrap();
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
        let held = Ports::free(&Counts::new(1, 1)).unwrap();
        let _listener = TcpListener::bind(("127.0.0.1", held.ports.envoys[0].data)).unwrap();
        let text = held.ports.check_free().unwrap_err().to_string();
        assert!(
            text.contains("--port-envoy)") && text.contains(&held.ports.envoys[0].data.to_string()),
            "{text}"
        );
    }
}
