//! Connections to the inference server, which no limit shared by models keeps from growing.
use std::{
    collections::VecDeque,
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::{body::Rewritten, errors::Reset, models::Limits};

/// Window of one stream, and so what is held of a body that its reader does not take.
pub(crate) const STREAM_WINDOW: u32 = 128 << 10;

/// Opens a connection within the time allowed.
async fn connect(address: &str, deadline: Duration) -> Result<TcpStream, Reset> {
    let connecting = async {
        match address.parse::<SocketAddr>() {
            Ok(address) => TcpStream::connect(address).await,
            Err(_) => TcpStream::connect(address).await,
        }
    };
    let connected = tokio::time::timeout(deadline, connecting).await;
    let stream = connected
        .map_err(|_| Reset::unsent(address, "connecting took too long"))?
        .map_err(|cause| Reset::unsent(address, cause))?;
    stream
        .set_nodelay(true)
        .map_err(|cause| Reset::unsent(address, cause))?;
    Ok(stream)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// HTTP/1.1 connections, one request at a time each, the last used first. Requests pass on bodies as they come, or have
/// bodies `B` of our own.
pub(crate) struct RestPool<B = Incoming> {
    pub(crate) address: String,
    idle: Mutex<VecDeque<(RestSender<B>, Instant)>>,
    keep: Duration,
    deadline: Duration,
}

/// One connection.
pub(crate) type RestSender<B = Incoming> = http1::SendRequest<B>;

impl<B> RestPool<B>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    pub(crate) fn new(address: String, limits: &Limits) -> Self {
        Self {
            address,
            idle: Mutex::default(),
            keep: limits.upstream_idle,
            deadline: limits.connect_deadline,
        }
    }

    /// Sends a request and awaits the headers of its response. The connection belongs to the caller until the
    /// response's body has ended, then it may be given back by [`Self::keep`].
    pub(crate) async fn send(
        &self,
        mut request: Request<B>,
    ) -> Result<(Response<Incoming>, RestSender<B>), Reset> {
        // A kept connection may be closed just now: hyper then hands the request back, untouched.
        while let Some(mut sender) = self.take() {
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(Reset::Broken(failed.into_error().into())),
                },
            }
        }
        let mut sender = self.open().await?;
        match sender.try_send_request(request).await {
            Ok(response) => Ok((response, sender)),
            Err(mut failed) => match failed.take_message() {
                Some(_) => Err(Reset::unsent(&self.address, failed.into_error())),
                None => Err(Reset::Broken(failed.into_error().into())),
            },
        }
    }

    async fn open(&self) -> Result<RestSender<B>, Reset> {
        let stream = connect(&self.address, self.deadline).await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) =
            handshake.map_err(|cause| Reset::unsent(&self.address, cause))?;
        tokio::spawn(async move {
            if let Err(cause) = connection.await {
                tracing::debug!(%cause, "a connection to the inference server ended");
            }
        });
        sender
            .ready()
            .await
            .map_err(|cause| Reset::unsent(&self.address, cause))?;
        Ok(sender)
    }

    fn take(&self) -> Option<RestSender<B>> {
        let mut idle = lock(&self.idle);
        while let Some((sender, since)) = idle.pop_back() {
            if since.elapsed() > self.keep {
                // All others have been idle for longer still.
                idle.clear();
            } else if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection whose response has ended for the next request.
    pub(crate) fn keep(&self, sender: RestSender<B>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = lock(&self.idle);
        while idle
            .front()
            .is_some_and(|(first, since)| first.is_closed() || since.elapsed() > self.keep)
        {
            idle.pop_front();
        }
        idle.push_back((sender, Instant::now()));
    }

    pub(crate) fn clear(&self) {
        lock(&self.idle).clear();
    }
}

/// HTTP/2 connections with many requests each; another is opened when every one is full.
pub(crate) struct GrpcPool {
    pub(crate) address: String,
    connections: Mutex<Vec<Arc<Shared>>>,
    opening: tokio::sync::Mutex<()>,
    streams: usize,
    header_bytes: u32,
    deadline: Duration,
}

struct Shared {
    sender: http2::SendRequest<Rewritten>,
    streams: AtomicUsize,
    /// What the inference server allows.
    allowed: AtomicUsize,
}

/// A stream's place on its connection.
pub(crate) struct Stream(Arc<Shared>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl GrpcPool {
    pub(crate) fn new(address: String, limits: &Limits) -> Self {
        Self {
            address,
            connections: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            streams: limits.streams_per_upstream.max(1),
            header_bytes: u32::try_from(limits.header_bytes).unwrap_or(u32::MAX),
            deadline: limits.connect_deadline,
        }
    }

    /// Sends a request and awaits the headers of its response; the place is held until the response has ended.
    pub(crate) async fn send(
        &self,
        mut request: Request<Rewritten>,
    ) -> Result<(Response<Incoming>, Stream), Reset> {
        // A connection may just be closing: hyper then hands the request back, untouched.
        let mut attempts = 0;
        loop {
            let stream = match self.take() {
                Some(stream) => stream,
                None => self.open().await?,
            };
            let mut sender = stream.0.sender.clone();
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, stream)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if attempts < 3 => {
                        self.remove(&stream);
                        attempts += 1;
                        request = unsent;
                    }
                    Some(_) => return Err(Reset::unsent(&self.address, failed.into_error())),
                    None => return Err(Reset::Broken(failed.into_error().into())),
                },
            }
        }
    }

    /// A place on the first connection that has one: few busy connections cost less than many idle ones.
    fn take(&self) -> Option<Stream> {
        let mut connections = lock(&self.connections);
        connections.retain(|connection| !connection.sender.is_closed());
        connections.iter().find_map(|connection| {
            let most = self.streams.min(connection.allowed.load(Ordering::Relaxed));
            // Places are only taken under this lock, so the check holds until the addition.
            (connection.streams.load(Ordering::Relaxed) < most).then(|| {
                connection.streams.fetch_add(1, Ordering::Relaxed);
                Stream(connection.clone())
            })
        })
    }

    async fn open(&self) -> Result<Stream, Reset> {
        // One at a time: those who wait find the places of the connection just opened.
        let _opening = self.opening.lock().await;
        if let Some(stream) = self.take() {
            return Ok(stream);
        }
        let stream = connect(&self.address, self.deadline).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(
                STREAM_WINDOW.saturating_mul(u32::try_from(self.streams).unwrap_or(32)),
            )
            .max_header_list_size(self.header_bytes)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, mut connection) =
            handshake.map_err(|cause| Reset::unsent(&self.address, cause))?;
        let allowed = AtomicUsize::new(connection.current_max_send_streams());
        let shared = Arc::new(Shared {
            sender,
            streams: AtomicUsize::new(1),
            allowed,
        });
        let observed = Arc::downgrade(&shared);
        tokio::spawn(async move {
            let ended = poll_fn(|cx| {
                if let Some(shared) = observed.upgrade() {
                    shared
                        .allowed
                        .store(connection.current_max_send_streams(), Ordering::Relaxed);
                }
                Pin::new(&mut connection).poll(cx)
            });
            if let Err(cause) = ended.await {
                tracing::debug!(%cause, "a connection to the inference server ended");
            }
        });
        lock(&self.connections).push(shared.clone());
        Ok(Stream(shared))
    }

    fn remove(&self, stream: &Stream) {
        lock(&self.connections).retain(|connection| !Arc::ptr_eq(connection, &stream.0));
    }

    pub(crate) fn clear(&self) {
        lock(&self.connections).clear();
    }
}
