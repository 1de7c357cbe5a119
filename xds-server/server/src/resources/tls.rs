//! TLS towards clients and agents.
//!
//! Certificates stand in the clusters and the listener themselves. By SDS they would come between a cluster and its
//! acknowledgement, which Envoy withholds until it has them.
use std::fmt;

use envoy_types::pb::envoy::{
    config::core::v3::{
        DataSource, TransportSocket, data_source::Specifier, transport_socket::ConfigType,
    },
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, TlsCertificate,
        UpstreamTlsContext, common_tls_context::ValidationContextType,
    },
};
use prost::{Message, Name};

use super::wire::{any, truth};

/// A certificate chain and its key, as PEM.
#[derive(Clone, PartialEq)]
pub struct Identity {
    pub chain: Vec<u8>,
    pub key: Vec<u8>,
}

/// What Envoy shows to clients and agents, and what it demands of them; PEM.
#[derive(Clone, PartialEq)]
pub struct Tls {
    pub downstream: Identity,
    pub downstream_authority: Option<Vec<u8>>,
    /// Clients without a certificate are turned away.
    pub clients_must_authenticate: bool,
    pub upstream: Option<Identity>,
    pub upstream_authority: Option<Vec<u8>>,
}

/// Without any key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Towards agents.
    pub(super) fn upstream(&self, alpn: &[&str]) -> TransportSocket {
        let authority = self.upstream_authority.as_deref();
        socket(&UpstreamTlsContext {
            common_tls_context: Some(context(self.upstream.as_ref(), authority, alpn)),
            ..Default::default()
        })
    }

    /// Towards clients.
    pub(super) fn downstream(&self) -> TransportSocket {
        let authority = self.downstream_authority.as_deref();
        let alpn = ["h2", "http/1.1"];
        socket(&DownstreamTlsContext {
            common_tls_context: Some(context(Some(&self.downstream), authority, &alpn)),
            require_client_certificate: truth(self.clients_must_authenticate),
            ..Default::default()
        })
    }
}

fn context(
    identity: Option<&Identity>,
    authority: Option<&[u8]>,
    alpn: &[&str],
) -> CommonTlsContext {
    let certificate = |identity: &Identity| TlsCertificate {
        certificate_chain: inline(&identity.chain),
        private_key: inline(&identity.key),
        ..Default::default()
    };
    let trusted = |ca: &[u8]| {
        ValidationContextType::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(ca),
            ..Default::default()
        })
    };
    CommonTlsContext {
        tls_certificates: identity.map(certificate).into_iter().collect(),
        validation_context_type: authority.map(trusted),
        alpn_protocols: alpn.iter().map(|p| (*p).into()).collect(),
        ..Default::default()
    }
}

fn inline(pem: &[u8]) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineBytes(pem.to_vec())),
        ..Default::default()
    })
}

fn socket<M: Message + Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(ConfigType::TypedConfig(any(context))),
    }
}
