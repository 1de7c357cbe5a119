//! One Envoy on its shipped bootstrap, at a discovery engine in this process.
use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use prost::Message;
use seldon_ads::Engine;
use seldon_components::{Cache, EnvoyVersion};
use seldon_e2e::faults::Envoy;
use seldon_e2e::{eventually_async, root};
use seldon_local::{Ports, Reservation};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;

/// Ends when dropped.
pub(crate) struct Running {
    process: Child,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    pub(crate) admin: Envoy,
    _ports: Reservation,
    _folder: TempDir,
}

impl Running {
    /// Starts it and waits until it is ready with the engine's world.
    pub(crate) async fn start(
        engine: &Engine,
        version: EnvoyVersion,
        filter: bool,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let discovery = listener.local_addr()?.port();
        let router = tonic::transport::Server::builder().add_service(engine.service());
        let server = tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
        let binary = tokio::task::spawn_blocking(move || Cache::open()?.envoy(version)).await??;
        let reservation = Ports::free(&seldon_local::Counts::new(1, 1))?;
        let ports = reservation.ports.envoys[0].clone();
        let module = root().join("target/wasm/seldon-filter.wasm");
        ensure!(
            !filter || module.is_file(),
            "no filter module: build it by `cargo xtask wasm`"
        );
        let module = if filter {
            module.display().to_string()
        } else {
            String::new()
        };
        let text = [
            ("ENVOY_DATA_PORT", ports.data.to_string()),
            ("ENVOY_STATUS_HOST", "127.0.0.1".to_owned()),
            ("ENVOY_STATUS_PORT", ports.status.to_string()),
            ("ENVOY_ADMIN_PORT", ports.admin.to_string()),
            ("XDS_HOST", "127.0.0.1".to_owned()),
            ("XDS_PORT", discovery.to_string()),
            ("FILTER_MODULE", module),
        ]
        .iter()
        .fold(
            fs::read_to_string(root().join("envoy/bootstrap.yaml"))?,
            |text, (name, value)| text.replace(&format!("${{SELDON_{name}}}"), value),
        );
        let folder = tempfile::tempdir()?;
        let bootstrap = folder.path().join("bootstrap.yaml");
        fs::write(&bootstrap, text)?;
        let process = Command::new(binary)
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "--log-level",
                "error",
                "--config-path",
            ])
            .arg(&bootstrap)
            .stdin(Stdio::null())
            .spawn()?;
        let running = Self {
            process,
            server,
            admin: Envoy(ports.admin),
            _ports: reservation,
            _folder: folder,
        };
        let ready = async || running.admin.get("/ready").await.map(drop);
        eventually_async(20, ready)
            .await
            .context("Envoy does not turn ready")?;
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.server.abort();
    }
}

/// Returns the addresses of an encoded assignment.
pub(crate) fn addresses(body: &Bytes) -> Result<BTreeSet<String>> {
    let assignment = ClusterLoadAssignment::decode(body.clone())?;
    let mut found = BTreeSet::new();
    for endpoint in assignment
        .endpoints
        .into_iter()
        .flat_map(|all| all.lb_endpoints)
    {
        let Some(HostIdentifier::Endpoint(endpoint)) = endpoint.host_identifier else {
            continue;
        };
        if let Some(Address::SocketAddress(socket)) =
            endpoint.address.and_then(|address| address.address)
            && let Some(PortSpecifier::PortValue(port)) = socket.port_specifier
        {
            found.insert(format!("{}:{port}", socket.address));
        }
    }
    Ok(found)
}
