//! Listeners: each speaks HTTP/1.1 and HTTP/2, REST and gRPC.
use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{Request, Response, Version, header};
use hyper::{body::Incoming as Body, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use seldon_tls::{Incoming, ServerIo, ServerTls};
use tokio::net::TcpListener;
use tokio_stream::StreamExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{gateway::Gateway, grpc::Rpcs, rest};

/// Bytes of a body under way that are not taken yet.
const STREAM_WINDOW: u32 = 1 << 20;
const STREAMS: u32 = 1_000;
/// Time for a request's headers, and for an idle connection: above the 60 s after which Envoy closes its own.
const HEADERS: Duration = Duration::from_secs(75);

/// Serves one listener until `stop`; then refuses what is new, and returns when what is in flight has ended, or when the
/// time for that has passed.
pub(crate) async fn serve(
    gateway: Arc<Gateway>,
    rpcs: Rpcs,
    listener: TcpListener,
    tls: Option<ServerTls>,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    let abandon = CancellationToken::new();
    let http = Arc::new(builder());
    let mut incoming = Incoming::new(listener, tls);
    loop {
        let accepted = tokio::select! {
            accepted = incoming.next() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Some(Ok(io)) => {
                let connection = connection(
                    gateway.clone(),
                    rpcs.clone(),
                    http.clone(),
                    io,
                    stop.clone(),
                );
                let abandon = abandon.clone();
                connections.spawn(async move { abandon.run_until_cancelled(connection).await });
            }
            Some(Err(cause)) => tracing::warn!(%cause, "cannot accept a connection"),
            None => break,
        }
    }
    drop(incoming);
    connections.close();
    let drained = tokio::time::timeout(gateway.limits.drain, connections.wait());
    if drained.await.is_err() {
        let left = gateway.waiting.count();
        tracing::warn!(left, "requests in flight were broken off at the end");
        abandon.cancel();
        connections.wait().await;
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * STREAMS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

async fn connection(
    gateway: Arc<Gateway>,
    rpcs: Rpcs,
    http: Arc<auto::Builder<TokioExecutor>>,
    io: ServerIo,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let (gateway, rpcs) = (gateway.clone(), rpcs.clone());
        async move { Ok::<_, Infallible>(handle(&gateway, &rpcs, request).await) }
    });
    let connection = http.serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(cause) = ended {
        tracing::debug!(%cause, "a connection ended");
    }
}

/// By content type, so that Envoy may use either port for both.
async fn handle(
    gateway: &Arc<Gateway>,
    rpcs: &Rpcs,
    request: Request<Body>,
) -> Response<tonic::body::Body> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc && request.version() == Version::HTTP_2 {
        rpcs.handle(request).await
    } else {
        rest::handle(gateway, request).await
    }
}

/// From now on every request is refused.
pub(crate) fn refuse(gateway: &Gateway) {
    gateway.stopping.store(true, Ordering::Relaxed);
}
