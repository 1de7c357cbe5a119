//! TLS towards clients and agents. Certificates come by SDS under the documented names, so that they can be renewed.
use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::core::v3::{
        DataSource, TransportSocket, data_source::Specifier, transport_socket::ConfigType,
    },
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
        Secret, TlsCertificate, UpstreamTlsContext, common_tls_context::ValidationContextType,
        secret,
    },
};
use prost::{Message, Name};

use super::wire::{any, from_ads, truth};

pub const DOWNSTREAM_SERVER: &str = "downstream_server";
pub const DOWNSTREAM_CLIENT: &str = "downstream_client";
pub const UPSTREAM_CLIENT: &str = "upstream_client";
pub const UPSTREAM_SERVER: &str = "upstream_server";

/// What of TLS is configured between clients, Envoy and agents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// There is an authority for clients' certificates.
    pub downstream_authority: bool,
    /// Clients without a certificate are turned away.
    pub clients_must_authenticate: bool,
    /// Envoy has a certificate to show to agents.
    pub upstream_certificate: bool,
    /// There is an authority for agents' certificates.
    pub upstream_authority: bool,
}

impl Tls {
    /// Towards agents. No ALPN list: with one, an HTTP/1.1 client made Envoy negotiate h2 and then speak HTTP/1.1.
    pub(super) fn upstream(self) -> TransportSocket {
        let certificate = self.upstream_certificate.then_some(UPSTREAM_CLIENT);
        let authority = self.upstream_authority.then_some(UPSTREAM_SERVER);
        socket(&UpstreamTlsContext {
            common_tls_context: Some(context(certificate, authority, &[])),
            ..Default::default()
        })
    }

    /// Towards clients.
    pub(super) fn downstream(self) -> TransportSocket {
        let authority = self.downstream_authority.then_some(DOWNSTREAM_CLIENT);
        let alpn = ["h2", "http/1.1"];
        socket(&DownstreamTlsContext {
            common_tls_context: Some(context(Some(DOWNSTREAM_SERVER), authority, &alpn)),
            require_client_certificate: truth(self.clients_must_authenticate),
            ..Default::default()
        })
    }
}

/// A certificate with its key.
pub fn certificate(name: &str, chain: &[u8], key: &[u8]) -> Bytes {
    let certificate = TlsCertificate {
        certificate_chain: inline(chain),
        private_key: inline(key),
        ..Default::default()
    };
    encode(name, secret::Type::TlsCertificate(certificate))
}

/// The authority that peers' certificates must come from.
pub fn authority(name: &str, ca: &[u8]) -> Bytes {
    let context = CertificateValidationContext {
        trusted_ca: inline(ca),
        ..Default::default()
    };
    encode(name, secret::Type::ValidationContext(context))
}

fn encode(name: &str, kind: secret::Type) -> Bytes {
    Secret {
        name: name.into(),
        r#type: Some(kind),
    }
    .encode_to_vec()
    .into()
}

fn inline(pem: &[u8]) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineBytes(pem.to_vec())),
        ..Default::default()
    })
}

fn context(certificate: Option<&str>, authority: Option<&str>, alpn: &[&str]) -> CommonTlsContext {
    CommonTlsContext {
        tls_certificate_sds_secret_configs: certificate.map(by_sds).into_iter().collect(),
        validation_context_type: authority
            .map(|name| ValidationContextType::ValidationContextSdsSecretConfig(by_sds(name))),
        alpn_protocols: alpn.iter().map(|p| (*p).into()).collect(),
        ..Default::default()
    }
}

fn by_sds(name: &str) -> SdsSecretConfig {
    SdsSecretConfig {
        name: name.into(),
        sds_config: from_ads(),
    }
}

fn socket<M: Message + Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".into(),
        config_type: Some(ConfigType::TypedConfig(any(context))),
    }
}
