//! The documented variables.
use std::path::PathBuf;

use crate::{ClientTls, Error, Files, ServerTls};

/// How a connection is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    #[default]
    Plaintext,
    Ssl,
}

/// Reads the variables of one name. The source is injected so that tests need no process environment.
pub struct Environment<'a> {
    name: &'a str,
    lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Environment<'a> {
    /// `name` is such as `CONTROL_PLANE` or `ENVOY`.
    pub fn new(name: &'a str, lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { name, lookup }
    }

    /// The variables of this process.
    pub fn of_process(name: &'a str) -> Self {
        fn variable(name: &str) -> Option<String> {
            std::env::var(name).ok()
        }
        Self::new(name, &variable)
    }

    fn get(&self, variable: &str) -> Option<String> {
        (self.lookup)(variable).filter(|v| !v.is_empty())
    }

    /// `<NAME>_SECURITY_PROTOCOL`; plaintext where it is not set.
    pub fn protocol(&self) -> Result<Protocol, Error> {
        let variable = format!("{}_SECURITY_PROTOCOL", self.name);
        match self.get(&variable).as_deref() {
            None | Some("PLAINTEXT") => Ok(Protocol::Plaintext),
            Some("SSL") => Ok(Protocol::Ssl),
            Some(value) => Err(Error::Protocol {
                variable,
                value: value.to_owned(),
            }),
        }
    }

    /// The files of one side, such as `SERVER`, `CLIENT`, `UPSTREAM_SERVER`: `<NAME>_<SIDE>_TLS_{KEY,CRT,CA}_LOCATION`.
    pub fn files(&self, side: &str) -> Result<Files, Error> {
        let prefix = format!("{}_{side}", self.name);
        let path = |what: &str| {
            self.get(&format!("{prefix}_TLS_{what}_LOCATION"))
                .map(PathBuf::from)
        };
        let files = Files {
            key: path("KEY"),
            crt: path("CRT"),
            ca: path("CA"),
            prefix,
        };
        let secret = format!("{}_TLS_SECRET_NAME", files.prefix);
        if self.get(&secret).is_some() && files.is_empty() {
            return Err(Error::Secret {
                variable: secret,
                prefix: files.prefix,
            });
        }
        Ok(files)
    }

    /// What to connect with as the side `own` to the side `peer`, by HTTP/2; nothing where the protocol is plaintext. Needs
    /// a tokio runtime.
    pub fn client(&self, own: &str, peer: &str) -> Result<Option<ClientTls>, Error> {
        match self.protocol()? {
            Protocol::Plaintext => Ok(None),
            Protocol::Ssl => {
                ClientTls::follow(self.files(own)?, self.files(peer)?, &[b"h2"]).map(Some)
            }
        }
    }

    /// What to accept connections of Envoy with, as one of its upstreams; nothing where the protocol is plaintext. Needs a
    /// tokio runtime.
    pub fn upstream(&self) -> Result<Option<ServerTls>, Error> {
        match self.protocol()? {
            Protocol::Plaintext => Ok(None),
            Protocol::Ssl => {
                let own = self.files("UPSTREAM_SERVER")?;
                let peer = self.files("UPSTREAM_CLIENT")?;
                // Envoy names no protocol towards upstreams, and each connection is looked at anyway.
                ServerTls::follow(own, peer, &[b"h2", b"http/1.1"]).map(Some)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        move |k| pairs.iter().find(|p| p.0 == k).map(|p| p.1.clone())
    }

    #[test]
    fn protocol_defaults_to_plaintext_and_names_what_is_wrong() {
        let none = with(&[]);
        assert_eq!(
            Environment::new("ENVOY", &none).protocol().unwrap(),
            Protocol::Plaintext
        );
        let ssl = with(&[("ENVOY_SECURITY_PROTOCOL", "SSL")]);
        assert_eq!(
            Environment::new("ENVOY", &ssl).protocol().unwrap(),
            Protocol::Ssl
        );
        let odd = with(&[("ENVOY_SECURITY_PROTOCOL", "TLS")]);
        let error = Environment::new("ENVOY", &odd)
            .protocol()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("ENVOY_SECURITY_PROTOCOL") && error.contains("SSL"),
            "{error}"
        );
    }

    #[test]
    fn files_are_found_by_side() {
        let env = with(&[("ENVOY_UPSTREAM_SERVER_TLS_CA_LOCATION", "/ca")]);
        let files = Environment::new("ENVOY", &env)
            .files("UPSTREAM_SERVER")
            .unwrap();
        assert_eq!(files.ca, Some("/ca".into()));
        assert!(files.key.is_none());
        let secret = with(&[("ENVOY_SERVER_TLS_SECRET_NAME", "s")]);
        assert!(Environment::new("ENVOY", &secret).files("SERVER").is_err());
    }
}
