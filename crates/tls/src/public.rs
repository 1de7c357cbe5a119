//! Connections to addresses outside the installation.
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use tokio::sync::watch;

use crate::{ClientTls, Error, files};

impl ClientTls {
    /// Trusts the authorities that this system trusts, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`, as they are now;
    /// shows no certificate.
    pub fn public(alpn: &[&[u8]]) -> Result<Self, Error> {
        let unusable = |reason: String| Error::Authorities { reason };
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Systems hold some that are too old to be understood; the others do.
        let (usable, _) = roots.add_parsable_certificates(found.certs);
        if usable == 0 {
            let first = found.errors.first();
            return Err(unusable(
                first.map_or_else(|| "there is none".to_owned(), ToString::to_string),
            ));
        }
        let mut config = ClientConfig::builder_with_provider(files::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self(watch::channel(Arc::new(config)).1))
    }
}
