//! TLS of the control plane and of Envoy, from the documented environment.
use std::{sync::Arc, time::Duration};

use seldon_tls::{Environment, Error, Files, Pem, Protocol, ServerTls};

use crate::{
    resources::{Identity, ListenerOptions, Tls, listening},
    writer::Handle,
};

/// How often certificates are compared with what Envoys have.
const PERIOD: Duration = Duration::from_secs(5);

/// The server side of the control plane, where CONTROL_PLANE_SECURITY_PROTOCOL=SSL.
pub fn control_plane() -> Result<Option<ServerTls>, Error> {
    server_when("CONTROL_PLANE")
}

/// The server side of discovery, where ENVOY_SECURITY_PROTOCOL=SSL; its certificates are those of the control plane.
pub fn discovery() -> Result<Option<ServerTls>, Error> {
    server_when("ENVOY")
}

fn server_when(switch: &str) -> Result<Option<ServerTls>, Error> {
    if Environment::of_process(switch).protocol()? == Protocol::Plaintext {
        return Ok(None);
    }
    let control_plane = Environment::of_process("CONTROL_PLANE");
    let own = control_plane.files("SERVER")?;
    let peer = control_plane.files("CLIENT")?;
    ServerTls::follow(own, peer, &[b"h2"]).map(Some)
}

/// Envoy's certificates, towards clients and agents.
pub struct EnvoyCertificates {
    downstream_server: Files,
    downstream_client: Files,
    upstream_client: Files,
    upstream_server: Files,
    seen: [Pem; 4],
    must_authenticate: bool,
}

impl EnvoyCertificates {
    /// `None` where Envoy does not use TLS.
    pub fn from_environment() -> Result<Option<Self>, Error> {
        let envoy = Environment::of_process("ENVOY");
        if envoy.protocol()? == Protocol::Plaintext {
            return Ok(None);
        }
        let mut certificates = Self {
            downstream_server: envoy.files("DOWNSTREAM_SERVER")?,
            downstream_client: envoy.files("DOWNSTREAM_CLIENT")?,
            upstream_client: envoy.files("UPSTREAM_CLIENT")?,
            upstream_server: envoy.files("UPSTREAM_SERVER")?,
            seen: Default::default(),
            must_authenticate: std::env::var("ENVOY_DOWNSTREAM_CLIENT_MTLS")
                .is_ok_and(|v| matches!(v.as_str(), "true" | "1" | "True" | "TRUE")),
        };
        certificates.seen = certificates.read()?;
        let server = &certificates.seen[0];
        for (part, what) in [(&server.crt, "CRT"), (&server.key, "KEY")] {
            if part.is_none() {
                return Err(Error::Missing {
                    variable: format!("ENVOY_DOWNSTREAM_SERVER_TLS_{what}_LOCATION"),
                    for_what: "ENVOY_SECURITY_PROTOCOL=SSL".into(),
                });
            }
        }
        Ok(Some(certificates))
    }

    fn read(&self) -> Result<[Pem; 4], Error> {
        Ok([
            self.downstream_server.read()?,
            self.downstream_client.read()?,
            self.upstream_client.read()?,
            self.upstream_server.read()?,
        ])
    }

    /// What clusters and listener hold.
    pub fn tls(&self) -> Arc<Tls> {
        let [server, client_ca, client, agents_ca] = &self.seen;
        let identity = |pem: &Pem| {
            let (chain, key) = (pem.crt.clone()?, pem.key.clone()?);
            Some(Identity { chain, key })
        };
        Arc::new(Tls {
            downstream: identity(server).unwrap_or(Identity {
                chain: Vec::new(), // refused at the start, and by Envoy, which then keeps the last good one
                key: Vec::new(),
            }),
            downstream_authority: client_ca.ca.clone(),
            clients_must_authenticate: self.must_authenticate && client_ca.ca.is_some(),
            upstream: identity(client),
            // The documented validation secret, else the one beside Envoy's own certificate.
            upstream_authority: agents_ca.ca.clone().or_else(|| client.ca.clone()),
        })
    }

    /// Sends renewed certificates to Envoys, for as long as it is polled.
    pub async fn follow(mut self, writer: Handle, listener: ListenerOptions) {
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            ticks.tick().await;
            match self.read() {
                Ok(now) if now != self.seen => {
                    tracing::info!("certificates changed: Envoys get them");
                    self.seen = now;
                    let tls = self.tls();
                    let listener = ListenerOptions {
                        tls: Some(tls.clone()),
                        ..listener.clone()
                    };
                    writer.renew(tls, listening(&listener));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "certificates cannot be read, the former stay")
                }
            }
        }
    }
}
