//! A scheduler on real sockets, without Envoys.
use std::time::Duration;

use seldon_core::{Config, Synchronisation};
use seldon_scheduler::{resources::ListenerOptions, services::GatewayPorts, system::Options};
use tokio::net::TcpListener;
use tonic::transport::Channel;

/// Longer than anything here takes; only a failure waits for it.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn socket() -> (TcpListener, u16) {
    let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

pub async fn channel(port: u16) -> Channel {
    let address = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    address.connect().await.unwrap()
}

/// It waits for no agents when it begins.
pub fn options<S>(store: S) -> Options<S> {
    Options {
        rules: Config::new(Synchronisation::AfterTimeout(Duration::ZERO)),
        listener: ListenerOptions {
            port: 9000,
            access_log: None,
            tls: None,
        },
        filter_module: None,
        envoy_stats_port: 9003,
        envoy_certificates: None,
        control_plane_tls: None,
        discovery_tls: None,
        routing_lease: Duration::ZERO,
        gateway_ports: GatewayPorts {
            http: 9010,
            grpc: 9011,
        },
        scaling: None,
        store,
    }
}
