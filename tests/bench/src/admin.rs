//! An Envoy's admin interface, and a client that asks through Envoy again and again.
use anyhow::Result;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::shots::BODY;

/// Asks one path.
pub async fn get(port: u16, path: &str) -> Result<String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(driver);
    let request = http::Request::get(path)
        .header("host", "admin")
        .body(Full::new(Bytes::new()))?;
    let body = sender
        .send_request(request)
        .await?
        .into_body()
        .collect()
        .await?
        .to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// The sum of the counters or gauges of a name, which is a regular expression.
pub async fn stat(port: u16, name: &str) -> Result<f64> {
    let text = get(port, &format!("/stats?filter=^{name}$")).await?;
    let values = text.lines().filter_map(|l| l.rsplit_once(": "));
    Ok(values
        .filter_map(|(_, value)| value.trim().parse::<f64>().ok())
        .sum())
}

/// Asks for one model after another over one connection, anew where Envoy closed it, as it does after a 404.
pub struct Probe {
    target: String,
    sender: Option<hyper::client::conn::http1::SendRequest<Full<Bytes>>>,
}

impl Probe {
    pub fn new(target: String) -> Self {
        Self {
            target,
            sender: None,
        }
    }

    /// The headers of a success; nothing where it was none.
    pub async fn ask(&mut self, model: &str) -> Result<Option<HeaderMap>> {
        let mut sender = match self.sender.take().filter(|s| !s.is_closed()) {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(&self.target).await?;
                stream.set_nodelay(true)?;
                let (sender, driver) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                sender
            }
        };
        if sender.ready().await.is_err() {
            return Ok(None);
        }
        let request = http::Request::post("/v2/models/x/infer")
            .header("host", "bench")
            .header("seldon-model", model)
            .body(Full::new(Bytes::from_static(BODY.as_bytes())))?;
        let answer = sender.send_request(request).await?;
        let headers = answer
            .status()
            .is_success()
            .then(|| answer.headers().clone());
        answer.into_body().collect().await?;
        self.sender = Some(sender);
        Ok(headers)
    }
}
