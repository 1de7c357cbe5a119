//! Waiting for conditions, with a deadline.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Gets a path over plain HTTP/1.1 and returns status and answer, headers included.
pub(crate) async fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), exchange)
        .await
        .context("no answer within 2 s")??;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((
        status.with_context(|| format!("port {port} does not speak HTTP"))?,
        answer,
    ))
}

/// Succeeds if the path answers 200.
pub(crate) async fn ready(port: u16, path: &str) -> Result<()> {
    match get(port, path).await {
        Ok((200, _)) => Ok(()),
        Ok((status, _)) => bail!("{path} on port {port} answers {status}"),
        Err(error) => Err(error.context(format!("{path} on port {port} does not answer"))),
    }
}
