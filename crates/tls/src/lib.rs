//! TLS as the documented environment describes it: which sides use it, with which files, read again when they change.
//!
//! A name such as `CONTROL_PLANE` has a protocol (`CONTROL_PLANE_SECURITY_PROTOCOL`) and two sides whose certificates
//! are named by `CONTROL_PLANE_SERVER_TLS_*` and `CONTROL_PLANE_CLIENT_TLS_*`.
mod channel;
mod environment;
mod files;
mod io;
mod public;
mod rotation;

pub use channel::channel;
pub use environment::{Environment, Protocol};
pub use files::{Files, Pem};
pub use io::{ClientIo, Connector, Incoming, ServerIo, connector};
pub use rotation::{ClientTls, ServerTls};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{variable}={value:?} is not known: use PLAINTEXT or SSL")]
    Protocol { variable: String, value: String },
    #[error("{variable} is not set, and {for_what} needs it")]
    Missing { variable: String, for_what: String },
    #[error(
        "{variable} names a Kubernetes secret: mount it and name its files in {prefix}_TLS_*_LOCATION"
    )]
    Secret { variable: String, prefix: String },
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
    #[error("certificate and key of {prefix} do not make a usable identity: {reason}")]
    Identity { prefix: String, reason: String },
    #[error(
        "no authority that this system trusts can be read ({reason}): install its ca-certificates, or name a file in SSL_CERT_FILE"
    )]
    Authorities { reason: String },
}
