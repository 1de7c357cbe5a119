//! The whole system as processes on one machine: for `seldon local`, the demo and the end-to-end tests.
//!
//! ```no_run
//! # async fn run() -> anyhow::Result<()> {
//! let system = seldon_local::System::builder().servers(2).envoys(2).start().await?;
//! println!("ask http://127.0.0.1:{}/v2/models/iris/infer", system.ports().envoys[0].data);
//! system.kill(seldon_local::Component::Agent(0), seldon_local::Signal::SIGKILL)?;
//! system.restart(seldon_local::Component::Agent(0)).await?;
//! system.stop().await;
//! # Ok(()) }
//! ```

mod bootstrap;
mod builder;
pub mod cli;
mod component;
mod config;
mod counts;
mod dataflow;
pub mod kafka;
mod parts;
mod port_kinds;
mod ports;
mod process;
mod ready;
mod supervise;
mod system;
mod triton;

pub use builder::Builder;
pub use component::Component;
pub use config::{Config, TlsFiles};
pub use counts::Counts;
pub use nix::sys::signal::Signal;
pub use parts::{Parts, make_artefacts};
pub use ports::{
    BrokerPorts, EnginePorts, EnvoyPorts, FirstPorts, ModelGatewayPorts, PipelineGatewayPorts,
    Ports, ReplicaPorts, Reservation, SchedulerPorts, TritonPorts,
};
pub use system::System;
