//! Configurations that follow their files: new connections use what the files hold now.
use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use crate::{Error, Files, Pem, files};

/// How often the files are compared. Reading a few kilobytes costs nothing, and it sees every way of replacing a
/// file, symbolic links of mounted secrets included.
const PERIOD: Duration = Duration::from_secs(5);

/// A server's configuration; the newest usable one. A file that cannot be used leaves the former in force.
#[derive(Clone)]
pub struct ServerTls(watch::Receiver<Arc<ServerConfig>>);

/// A client's configuration, likewise.
#[derive(Clone)]
pub struct ClientTls(pub(crate) watch::Receiver<Arc<ClientConfig>>);

impl From<watch::Receiver<Arc<ServerConfig>>> for ServerTls {
    /// Configurations that someone else keeps current.
    fn from(configs: watch::Receiver<Arc<ServerConfig>>) -> Self {
        Self(configs)
    }
}

impl ServerTls {
    /// Builds the first configuration and follows the files for as long as anyone holds this. Needs a tokio runtime.
    pub fn follow(own: Files, peer: Files, alpn: &'static [&'static [u8]]) -> Result<Self, Error> {
        follow(own, peer, move |own, peer| {
            files::server_config(own, peer, alpn)
        })
        .map(Self)
    }

    pub fn current(&self) -> Arc<ServerConfig> {
        self.0.borrow().clone()
    }
}

impl ClientTls {
    /// See [`ServerTls::follow`].
    pub fn follow(own: Files, peer: Files, alpn: &'static [&'static [u8]]) -> Result<Self, Error> {
        follow(own, peer, move |own, peer| {
            files::client_config(own, peer, alpn)
        })
        .map(Self)
    }

    pub fn current(&self) -> Arc<ClientConfig> {
        self.0.borrow().clone()
    }
}

fn follow<T: Send + Sync + 'static>(
    own: Files,
    peer: Files,
    build: impl Fn(&Files, &Files) -> Result<T, Error> + Send + 'static,
) -> Result<watch::Receiver<Arc<T>>, Error> {
    let mut seen = contents(&own, &peer)?;
    let (sender, receiver) = watch::channel(Arc::new(build(&own, &peer)?));
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            tokio::select! {
                () = sender.closed() => return,
                _ = ticks.tick() => {}
            }
            let Ok(now) = contents(&own, &peer) else {
                continue;
            };
            if now == seen {
                continue;
            }
            match build(&own, &peer) {
                Ok(config) => {
                    tracing::info!(
                        identity = own.prefix,
                        "certificates changed: new connections use them"
                    );
                    sender.send_replace(Arc::new(config));
                }
                Err(error) => {
                    tracing::error!(%error, "changed certificates cannot be used, the former stay")
                }
            }
            seen = now;
        }
    });
    Ok(receiver)
}

fn contents(own: &Files, peer: &Files) -> Result<(Pem, Pem), Error> {
    Ok((own.read()?, peer.read()?))
}
