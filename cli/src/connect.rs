//! Finding the other side and connecting to it.
use std::{env, path::Path, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use http::Uri;
use seldon_tls::{ClientTls, Files};
use tonic::transport::{Channel, Endpoint};

use crate::{
    args::Host,
    config::{self, TlsFiles},
};

/// A host that does not answer at all holds a command no longer than this.
const CONNECT: Duration = Duration::from_secs(5);

/// A scheduler that was silent for so long is asked for a sign of life, and has as long again to give it.
const SILENCE: Duration = Duration::from_secs(5);

/// An address and where it was taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    from: String,
}

/// The names under which an address can be given.
struct Names {
    flag: &'static str,
    field: &'static str,
    variable: &'static str,
    default: &'static str,
}

const SCHEDULER: Names = Names {
    flag: "--scheduler-host",
    field: "controlplane.schedulerHost",
    variable: "SELDON_SCHEDULE_HOST",
    default: "0.0.0.0:9004",
};

const INFERENCE: Names = Names {
    flag: "--inference-host",
    field: "dataplane.inferHost",
    variable: "SELDON_INFER_HOST",
    default: "0.0.0.0:9000",
};

impl Address {
    /// What to tell when the scheduler has been reached and does not answer.
    pub(crate) fn silent(&self, what: impl std::fmt::Display) -> anyhow::Error {
        anyhow!(
            "the scheduler at {} (from {}) does not answer: {what}\nis it stopped, or is something else on this port? \
             on this machine `seldon local status` and `seldon local logs scheduler` tell",
            self.host,
            self.from
        )
    }
}

impl Names {
    /// The flag, else the active configuration, else the variable, else the default.
    fn choose(&self, flag: Option<&str>, field: Option<&str>, variable: Option<String>) -> Address {
        let given = |host: &str, from: &str| Address {
            host: host.to_owned(),
            from: from.to_owned(),
        };
        let field = field.filter(|host| !host.is_empty());
        let variable = variable.filter(|host| !host.is_empty());
        match (flag, field, variable) {
            (Some(host), ..) => given(host, self.flag),
            (_, Some(host), _) => {
                given(host, &format!("{} of the active configuration", self.field))
            }
            (.., Some(host)) => given(&host, self.variable),
            _ => given(self.default, "the default"),
        }
    }

    fn unreachable(&self, what: &str, address: &Address, error: &anyhow::Error) -> anyhow::Error {
        anyhow!(
            "cannot reach {what} at {} (from {}): {}\nis it running? `seldon local up` starts a system on this machine; \
             another address is given by {}, {} or {} of a configuration",
            address.host,
            address.from,
            error.root_cause(),
            self.flag,
            self.variable,
            self.field
        )
    }
}

/// Connects to the scheduler.
pub(crate) async fn scheduler(host: &Host) -> Result<(Channel, Address)> {
    let settings = config::active()?.controlplane;
    let address = SCHEDULER.choose(
        host.scheduler_host.as_deref(),
        settings.scheduler_host.as_deref(),
        env::var(SCHEDULER.variable).ok(),
    );
    // The documented switch is the key; `tls` alone is meant as well.
    let tls = match settings.tls || settings.files.key_path.is_some() {
        true => Some(client_tls(&settings.files, "controlplane", &[b"h2"])?),
        false => None,
    };
    let connect = async {
        // A process that is stopped keeps its connections: only pings tell.
        let endpoint = endpoint(&address.host, &host.authority, tls.is_some())?
            .http2_keep_alive_interval(SILENCE)
            .keep_alive_timeout(SILENCE)
            .keep_alive_while_idle(true);
        let connector = seldon_tls::connector(tls);
        anyhow::Ok(endpoint.connect_with_connector(connector).await?)
    };
    match connect.await {
        Ok(channel) => Ok((channel, address)),
        Err(error) => Err(SCHEDULER.unreachable("the scheduler", &address, &error)),
    }
}

/// Opens an HTTP/2 connection.
pub(crate) async fn channel(
    host: &str,
    authority: &str,
    tls: Option<ClientTls>,
) -> Result<Channel> {
    let endpoint = endpoint(host, authority, tls.is_some())?;
    let connector = seldon_tls::connector(tls);
    Ok(endpoint.connect_with_connector(connector).await?)
}

fn endpoint(host: &str, authority: &str, tls: bool) -> Result<Endpoint> {
    let scheme = if tls { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{host}"))
        .map_err(|_| anyhow!("\"{host}\" is not an address, expected HOST:PORT"))?
        .connect_timeout(CONNECT)
        .user_agent(concat!("seldon-cli/", env!("CARGO_PKG_VERSION")))?;
    if !authority.is_empty() {
        let origin: Uri = format!("{scheme}://{authority}")
            .parse()
            .map_err(|_| anyhow!("\"{authority}\" is not an authority"))?;
        endpoint = endpoint.origin(origin);
    }
    Ok(endpoint)
}

/// Where inference goes.
pub(crate) struct Inference {
    address: Address,
    /// Host and port.
    pub(crate) host: String,
    /// The path of a whole URL that was given as the host.
    pub(crate) path: Option<String>,
    pub(crate) tls: Option<ClientTls>,
}

impl Inference {
    /// Finds the data plane. `alpn` names what is spoken over TLS.
    pub(crate) fn find(flag: Option<&str>, alpn: &'static [&'static [u8]]) -> Result<Self> {
        let settings = config::active()?.dataplane;
        let address = INFERENCE.choose(
            flag,
            settings.infer_host.as_deref(),
            env::var(INFERENCE.variable).ok(),
        );
        let (scheme, host, path) = split_url(&address.host)?;
        let tls = if scheme.as_deref() == Some("https") || (scheme.is_none() && settings.tls) {
            if settings.skip_ssl_verify {
                bail!(
                    "dataplane.skipSSLVerify is not supported: name the authority's certificate in dataplane.caPath"
                );
            }
            Some(client_tls(&settings.files, "dataplane", alpn)?)
        } else {
            None
        };
        Ok(Self {
            host,
            path,
            tls,
            address,
        })
    }

    /// What to tell when the connection fails.
    pub(crate) fn unreachable(&self, error: impl Into<anyhow::Error>) -> anyhow::Error {
        INFERENCE.unreachable("the inference endpoint", &self.address, &error.into())
    }

    /// Scheme for URLs.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// Takes a URL apart: scheme, host with port, and path where there is one.
pub(crate) fn split_url(text: &str) -> Result<(Option<String>, String, Option<String>)> {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (Some(scheme.to_owned()), rest),
        Some((scheme, _)) => {
            bail!("\"{text}\" begins with {scheme}://, expected http:// or https://")
        }
        None => (None, text),
    };
    let (host, path) = match rest.split_once('/') {
        Some((host, path)) => (
            host,
            Some(path)
                .filter(|path| !path.is_empty())
                .map(|path| format!("/{path}")),
        ),
        None => (rest, None),
    };
    let valid = !host.is_empty() && host.parse::<http::uri::Authority>().is_ok();
    if !valid {
        bail!("\"{text}\" is not an address, expected HOST:PORT or a URL");
    }
    Ok((scheme, host.to_owned(), path))
}

fn client_tls(
    files: &TlsFiles,
    section: &str,
    alpn: &'static [&'static [u8]],
) -> Result<ClientTls> {
    let authority = files.ca_path.clone().or_else(system_authorities);
    if authority.is_none() {
        bail!(
            "TLS needs the certificate of an authority: set {section}.caPath in the active configuration"
        );
    }
    let own = Files {
        prefix: section.to_owned(),
        key: files.key_path.clone(),
        crt: files.crt_path.clone(),
        ca: authority,
    };
    let tls = ClientTls::follow(own, Files::default(), alpn);
    tls.with_context(|| {
        format!("{section}: keyPath, crtPath or caPath of the active configuration cannot be used")
    })
}

/// The authorities that this machine trusts.
fn system_authorities() -> Option<PathBuf> {
    const PLACES: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    let named = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.or_else(|| {
        PLACES
            .iter()
            .map(PathBuf::from)
            .find(|path| Path::is_file(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_beats_the_configuration_beats_the_variable() {
        let choose = |flag, field, variable: Option<&str>| {
            SCHEDULER
                .choose(flag, field, variable.map(str::to_owned))
                .host
        };
        assert_eq!(choose(Some("a:1"), Some("b:1"), Some("c:1")), "a:1");
        assert_eq!(choose(None, Some("b:1"), Some("c:1")), "b:1");
        assert_eq!(choose(None, Some(""), Some("c:1")), "c:1");
        assert_eq!(choose(None, None, Some("")), "0.0.0.0:9004");
    }

    #[test]
    fn urls_are_taken_apart() {
        let split = |text| split_url(text).ok();
        assert_eq!(split("h:80"), Some((None, "h:80".to_owned(), None)));
        assert_eq!(
            split("http://h/"),
            Some((Some("http".to_owned()), "h".to_owned(), None))
        );
        assert_eq!(
            split("https://s.example.com/v2/models/iris/infer"),
            Some((
                Some("https".to_owned()),
                "s.example.com".to_owned(),
                Some("/v2/models/iris/infer".to_owned())
            ))
        );
        for wrong in ["", "ftp://h", "http://", "h h", "/x"] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }
}
