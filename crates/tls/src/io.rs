//! Connections that are plain or encrypted, for servers and clients of gRPC and HTTP alike.
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tonic::transport::server::Connected;

use crate::{ClientTls, ServerTls};

/// A peer that does not finish its handshake holds a connection no longer than this.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// One accepted connection.
pub enum ServerIo {
    Plain(TcpStream),
    Tls(Box<server::TlsStream<TcpStream>>),
}

/// Accepted connections, ready to serve: `tonic`'s `serve_with_incoming` takes this. Handshakes run beside each other.
pub struct Incoming(mpsc::Receiver<io::Result<ServerIo>>);

impl Incoming {
    /// Accepts from `listener` for as long as this is held.
    pub fn new(listener: TcpListener, tls: Option<ServerTls>) -> Self {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = sender.closed() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) => {
                        let (sender, tls) = (sender.clone(), tls.clone());
                        tokio::spawn(async move {
                            if let Some(io) = accept(stream, tls).await {
                                let _ = sender.send(Ok(io)).await;
                            }
                        });
                    }
                    // Such as too many open files: others may close theirs.
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
        Self(receiver)
    }
}

async fn accept(stream: TcpStream, tls: Option<ServerTls>) -> Option<ServerIo> {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return Some(ServerIo::Plain(stream));
    };
    let acceptor = TlsAcceptor::from(tls.current());
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Some(ServerIo::Tls(Box::new(stream))),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a handshake failed");
            None
        }
        Err(_) => None,
    }
}

impl tokio_stream::Stream for Incoming {
    type Item = io::Result<ServerIo>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

impl Connected for ServerIo {
    /// The peer's address, where it is known.
    type ConnectInfo = Option<SocketAddr>;
    fn connect_info(&self) -> Self::ConnectInfo {
        match self {
            Self::Plain(s) => s.peer_addr().ok(),
            Self::Tls(s) => s.get_ref().0.peer_addr().ok(),
        }
    }
}

/// A connection to a server.
pub enum ClientIo {
    Plain(TcpStream),
    Tls(Box<client::TlsStream<TcpStream>>),
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<ClientIo>>> + Send>>;

/// Connects plain, or encrypted for the host in the address: what `tonic`'s `connect_with_connector` takes.
#[derive(Clone)]
pub struct Connector(Option<ClientTls>);

/// Makes a connector; plain where there is no TLS.
pub fn connector(tls: Option<ClientTls>) -> Connector {
    Connector(tls)
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<ClientIo>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let tls = self.0.clone();
        Box::pin(async move { connect(&uri, tls).await.map(TokioIo::new) })
    }
}

async fn connect(uri: &Uri, tls: Option<ClientTls>) -> io::Result<ClientIo> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{uri} names no host"));
    let host = uri
        .host()
        .ok_or_else(invalid)?
        .trim_matches(['[', ']'])
        .to_owned();
    let port = uri
        .port_u16()
        .unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(ClientIo::Plain(stream));
    };
    let name = ServerName::try_from(host).map_err(|_| invalid())?;
    let handshake = TlsConnector::from(tls.current()).connect(name, stream);
    let stream = timeout(HANDSHAKE, handshake).await??;
    Ok(ClientIo::Tls(Box::new(stream)))
}

macro_rules! delegate_io {
    ($io:ident) => {
        impl AsyncRead for $io {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
                    Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
                }
            }
        }
        impl AsyncWrite for $io {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
                    Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
                }
            }
            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(s) => Pin::new(s).poll_write_vectored(cx, bufs),
                    Self::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
                }
            }
            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::Plain(s) => s.is_write_vectored(),
                    Self::Tls(s) => s.is_write_vectored(),
                }
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(s) => Pin::new(s).poll_flush(cx),
                    Self::Tls(s) => Pin::new(s).poll_flush(cx),
                }
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
                    Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
                }
            }
        }
    };
}
delegate_io!(ServerIo);
delegate_io!(ClientIo);
