//! An authority of the tests, and one certificate by it for everybody.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Files in PEM.
pub struct Certificates {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// Makes another authority and writes `ca.crt`, and `tls.crt` and `tls.key` that it signed, into a folder.
    pub fn make(folder: &Path) -> Result<Self> {
        let authority_key = KeyPair::generate()?;
        let mut authority = CertificateParams::new(vec![])?;
        // With one name for both, a leaf would look as if it had signed itself.
        let name = "authority of the tests";
        authority.distinguished_name.push(DnType::CommonName, name);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_pem = authority.self_signed(&authority_key)?.pem();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, "everyone");
        let leaf = leaf.signed_by(&key, &issuer)?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).map(|()| path)
        };
        Ok(Self {
            authority: write("ca.crt", authority_pem)?,
            certificate: write("tls.crt", leaf.pem())?,
            key: write("tls.key", key.serialize_pem())?,
        })
    }
}
