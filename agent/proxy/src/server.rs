//! Listeners and their connections.
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use seldon_tls::ServerTls;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    models::{Limits, Models},
    pool::STREAM_WINDOW,
    proxy::Proxy,
};

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(15);

pub(crate) async fn serve<M: Models>(
    proxy: Proxy<M>,
    listener: TcpListener,
    tls: Option<ServerTls>,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    let abandon = CancellationToken::new();
    let http = Arc::new(builder(&proxy.core.limits));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(
                    proxy.clone(),
                    http.clone(),
                    tls.as_ref().map(|tls| TlsAcceptor::from(tls.current())),
                    stream,
                    shutdown.clone(),
                );
                let abandon = abandon.clone();
                connections.spawn(async move { abandon.run_until_cancelled(connection).await });
            }
            Err(cause) => pause_after(&cause).await,
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(proxy.core.limits.drain_deadline, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "requests in flight were broken off at shutdown"
        );
        abandon.cancel();
        connections.wait().await;
    }
}

/// Without file descriptors accepting fails at once, over and over: give others time to close theirs.
async fn pause_after(cause: &io::Error) {
    let of_one_connection = matches!(
        cause.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    );
    if !of_one_connection {
        tracing::warn!(%cause, "cannot accept a connection");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_deadline)
        // hyper's least is 8 KiB; reading larger bodies in larger pieces costs less.
        .max_buf_size(limits.header_bytes.max(8 << 10));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(limits.streams_per_client)
        .initial_stream_window_size(STREAM_WINDOW)
        // Never exhausted by streams whose bodies nobody takes, so that none of them holds up the others.
        .initial_connection_window_size(
            STREAM_WINDOW
                .saturating_mul(limits.streams_per_client)
                .min(i32::MAX as u32),
        )
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

async fn connection<M: Models>(
    proxy: Proxy<M>,
    http: Arc<auto::Builder<TokioExecutor>>,
    acceptor: Option<TlsAcceptor>,
    stream: TcpStream,
    shutdown: CancellationToken,
) {
    if let Err(cause) = stream.set_nodelay(true) {
        tracing::debug!(%cause, "a connection ended");
        return;
    }
    let Some(acceptor) = acceptor else {
        return exchange(proxy, &http, stream, shutdown).await;
    };
    match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => exchange(proxy, &http, stream, shutdown).await,
        Ok(Err(cause)) => tracing::debug!(%cause, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Answers requests until the client leaves or the shutdown has let the last of them finish.
async fn exchange<M: Models>(
    proxy: Proxy<M>,
    http: &auto::Builder<TokioExecutor>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    shutdown: CancellationToken,
) {
    let asked = Arc::new(AtomicBool::new(false));
    let silent = silent(asked.clone(), proxy.core.limits.header_deadline);
    let service = service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        let proxy = proxy.clone();
        async move { proxy.handle(request).await }
    });
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silent => return tracing::debug!("a connection asked nothing in time"),
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(cause) = ended {
        tracing::debug!(%cause, "a connection ended");
    }
}

/// Ends when a connection has asked nothing in its first `deadline`: hyper's own time limit starts only when it knows
/// the protocol, which takes a few bytes. Later silence is hyper's to end.
async fn silent(asked: Arc<AtomicBool>, deadline: Duration) {
    tokio::time::sleep(deadline).await;
    if asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}
