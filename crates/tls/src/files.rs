//! Certificates and keys in files.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::Error;

/// Where the material of one side lies. `prefix` is only for messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Files {
    pub prefix: String,
    pub key: Option<PathBuf>,
    pub crt: Option<PathBuf>,
    pub ca: Option<PathBuf>,
}

/// The contents of those files, as they are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Pem {
    pub key: Option<Vec<u8>>,
    pub crt: Option<Vec<u8>>,
    pub ca: Option<Vec<u8>>,
}

impl Files {
    pub fn is_empty(&self) -> bool {
        self.key.is_none() && self.crt.is_none() && self.ca.is_none()
    }

    /// Reads all files that are named.
    pub fn read(&self) -> Result<Pem, Error> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(read_file).transpose();
        Ok(Pem {
            key: read(&self.key)?,
            crt: read(&self.crt)?,
            ca: read(&self.ca)?,
        })
    }

    fn missing(&self, what: &str, for_what: &str) -> Error {
        Error::Missing {
            variable: format!("{}_TLS_{what}_LOCATION", self.prefix),
            for_what: for_what.to_owned(),
        }
    }

    fn identity(
        &self,
        pem: &Pem,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, Error> {
        match (&pem.crt, &pem.key) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(self.missing("CRT", "the key")),
            (Some(_), None) => Err(self.missing("KEY", "the certificate")),
            (Some(crt), Some(key)) => {
                let chain = certificates(crt, &self.crt)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|e| unusable(&self.key, e.to_string()))?;
                Ok(Some((chain, key)))
            }
        }
    }

    fn wrong_identity(&self, error: impl ToString) -> Error {
        Error::Identity {
            prefix: self.prefix.clone(),
            reason: error.to_string(),
        }
    }
}

/// A server that shows `own` and demands a client certificate signed by `peer`'s authority (`own`'s where none).
pub(crate) fn server_config(
    own: &Files,
    peer: &Files,
    alpn: &[&[u8]],
) -> Result<ServerConfig, Error> {
    let pem = own.read()?;
    let (chain, key) = own
        .identity(&pem)?
        .ok_or_else(|| own.missing("CRT", "a TLS server"))?;
    let roots = roots(own, &pem, peer)?.ok_or_else(|| own.missing("CA", "verifying clients"))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|e| own.wrong_identity(e))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| own.wrong_identity(e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| own.wrong_identity(e))?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

/// A client that trusts `peer`'s authority (`own`'s where none) and shows `own`'s certificate where there is one.
pub(crate) fn client_config(
    own: &Files,
    peer: &Files,
    alpn: &[&[u8]],
) -> Result<ClientConfig, Error> {
    let pem = own.read()?;
    let roots =
        roots(own, &pem, peer)?.ok_or_else(|| peer.missing("CA", "verifying the server"))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| own.wrong_identity(e))?
        .with_root_certificates(roots);
    let mut config = match own.identity(&pem)? {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|e| own.wrong_identity(e))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

fn roots(own: &Files, own_pem: &Pem, peer: &Files) -> Result<Option<RootCertStore>, Error> {
    let (pem, path) = match (&peer.ca, &own_pem.ca) {
        (Some(path), _) => (read_file(path)?, &peer.ca),
        (None, Some(pem)) => (pem.clone(), &own.ca),
        (None, None) => return Ok(None),
    };
    let mut store = RootCertStore::empty();
    for certificate in certificates(&pem, path)? {
        store
            .add(certificate)
            .map_err(|e| unusable(path, e.to_string()))?;
    }
    Ok(Some(store))
}

fn certificates(pem: &[u8], path: &Option<PathBuf>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(unusable(path, "holds no PEM certificate".into())),
        Err(e) => Err(unusable(path, e.to_string())),
    }
}

fn unusable(path: &Option<PathBuf>, reason: String) -> Error {
    let path = path
        .as_deref()
        .unwrap_or(Path::new(""))
        .display()
        .to_string();
    Error::File { path, reason }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|e| Error::File {
        path: path.display().to_string(),
        reason: e.to_string(),
    })
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
