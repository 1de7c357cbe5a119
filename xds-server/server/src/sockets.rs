//! The ports, bound before anything else is started.
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::flags::Flags;

/// All listening sockets. Ports that the configuration does not ask for are `None`.
pub struct Sockets {
    pub xds: TcpListener,
    pub scheduler: Option<TcpListener>,
    pub scheduler_mtls: Option<TcpListener>,
    pub agents: Option<TcpListener>,
    pub agents_mtls: Option<TcpListener>,
    /// For dataflow engines, always in plain text as documented.
    pub dataflow: Option<TcpListener>,
    pub health: TcpListener,
}

impl Sockets {
    /// The first port that cannot be bound ends it, with an error that says which and of which flag.
    pub async fn bind(flags: &Flags, mtls: bool) -> anyhow::Result<Self> {
        let plain = flags.allow_plaintxt;
        Ok(Self {
            xds: bind(flags.envoy_port, "envoy-port").await?,
            scheduler: bind_if(plain, flags.scheduler_port, "scheduler-port").await?,
            scheduler_mtls: bind_if(mtls, flags.scheduler_mtls_port, "scheduler-mtls-port").await?,
            agents: bind_if(plain, flags.agent_port, "agent-port").await?,
            agents_mtls: bind_if(mtls, flags.agent_mtls_port, "agent-mtls-port").await?,
            dataflow: Some(bind(flags.dataflow_port, "dataflow-port").await?),
            health: bind(flags.health_probe_port, "health-probe-port").await?,
        })
    }
}

async fn bind_if(wanted: bool, port: u16, flag: &str) -> anyhow::Result<Option<TcpListener>> {
    Ok(if wanted {
        Some(bind(port, flag).await?)
    } else {
        None
    })
}

async fn bind(port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        .await
        .with_context(|| {
            format!(
                "port {port} cannot be used: stop what listens there or choose another by --{flag}"
            )
        })
}
