//! gRPC frame by frame, for what no proper client sends.
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(30);

/// An answer with whatever it says of its outcome.
#[derive(Debug)]
pub struct FramedAnswer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl FramedAnswer {
    /// Returns `grpc-status`, from the trailers or the headers.
    pub fn code(&self) -> Option<i32> {
        let value = self
            .trailers
            .get("grpc-status")
            .or_else(|| self.headers.get("grpc-status"))?;
        value.to_str().ok()?.parse().ok()
    }

    /// Decodes the first message.
    pub fn message<M: Message + Default>(&self) -> Result<M> {
        let bytes = self.body.get(5..).context("no message")?;
        Ok(M::decode(bytes)?)
    }
}

/// A message with its frame header.
pub fn message_frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// Calls a method over HTTP/2 with a body as it is.
pub async fn framed(
    port: u16,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<FramedAnswer> {
    let call = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await?;
        tokio::spawn(connection);
        let mut request = Request::post(format!("http://seldon.test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        anyhow::Ok(FramedAnswer {
            status: parts.status,
            headers: parts.headers,
            body: body.to_bytes(),
            trailers,
        })
    };
    tokio::time::timeout(LIMIT, call)
        .await
        .with_context(|| format!("{path} hangs"))?
        .with_context(|| path.to_owned())
}
