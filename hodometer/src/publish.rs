//! Sending a snapshot to every address, side by side, each within its time.
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, header};
use http_body_util::Full;
use seldon_tls::ClientTls;
use tokio::time::timeout;

use crate::{exchange::exchange, target::Target};

pub(crate) struct Publisher {
    addresses: Vec<Address>,
    tls: Option<ClientTls>,
    patience: Duration,
}

struct Address {
    target: Target,
    /// The last failure that was told, until it works again.
    failing: Option<String>,
}

impl Publisher {
    /// Reads the system's authorities where an address is encrypted.
    pub(crate) fn new(targets: Vec<Target>, patience: Duration) -> Result<Self, seldon_tls::Error> {
        let encrypted = targets.iter().any(Target::encrypted);
        let tls = encrypted.then(|| ClientTls::public(&[])).transpose()?;
        let addresses = targets.into_iter().map(|target| Address {
            target,
            failing: None,
        });
        Ok(Self {
            addresses: addresses.collect(),
            tls,
            patience,
        })
    }

    /// Sends it once everywhere. A failure is told once, and tried again only with the next snapshot.
    pub(crate) async fn publish(&mut self, body: &str) {
        let (tls, patience) = (&self.tls, self.patience);
        let sent = self.addresses.iter_mut().map(|address| async move {
            let tls = tls.as_ref().filter(|_| address.target.encrypted());
            let outcome = match timeout(patience, post(&address.target, tls, body)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no answer within {} s", patience.as_secs_f32())),
            };
            address.tell(outcome);
        });
        join_all(sent).await;
    }
}

impl Address {
    fn tell(&mut self, outcome: Result<(), String>) {
        let address = &self.target;
        match outcome {
            Ok(()) => {
                self.failing = None;
                tracing::info!(%address, "usage metrics published");
            }
            Err(error) if self.failing.as_ref() == Some(&error) => {
                tracing::debug!(%address, error, "usage metrics still not published");
            }
            Err(error) => {
                tracing::warn!(
                    %address,
                    error,
                    "usage metrics not published: tried again with the next snapshot"
                );
                self.failing = Some(error);
            }
        }
    }
}

async fn post(target: &Target, tls: Option<&ClientTls>, body: &str) -> Result<(), String> {
    let request = Request::post(target.path())
        .header(header::HOST, target.authority())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "text/plain")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .map_err(|error| error.to_string())?;
    let (status, answer) = exchange(target.uri(), tls.cloned(), request).await?;
    // MixPanel's way to say that it did not take an event.
    if status.is_success() && answer.trim_ascii() == b"0" {
        return Err("answered 0: not taken".to_owned());
    }
    match status.is_success() {
        true => Ok(()),
        false => Err(format!("answered {status}")),
    }
}
