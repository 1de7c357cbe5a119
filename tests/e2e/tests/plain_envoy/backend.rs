//! A server that keeps what it is asked.
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// What came.
#[derive(Debug)]
pub(crate) struct Request {
    headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Request {
    /// The first value of a header, or an empty text.
    pub(crate) fn field(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

/// Answers every request, REST and gRPC, until dropped.
pub(crate) struct Backend {
    pub(crate) port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    _runtime: Runtime,
}

impl Backend {
    pub(crate) fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let backend = Self {
            port: listener.local_addr()?.port(),
            requests: requests.clone(),
            _runtime: runtime,
        };
        backend._runtime.spawn(serve(listener, requests));
        Ok(backend)
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// What came since it was last asked for.
    pub(crate) fn taken(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

async fn serve(listener: TcpListener, requests: Arc<Mutex<Vec<Request>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let requests = requests.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, requests.clone()));
            // A connection that Envoy closes is no matter.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: http::Request<hyper::body::Incoming>,
    requests: Arc<Mutex<Vec<Request>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(|b| b.to_bytes())
        .unwrap_or_default();
    let kind = parts.headers.get("content-type").cloned();
    let mut response = Response::new(Full::from("{}"));
    if let Some(kind) = kind.filter(|k| k.as_bytes().starts_with(b"application/grpc")) {
        *response.body_mut() = Full::default();
        response.headers_mut().insert("content-type", kind);
        response
            .headers_mut()
            .insert("grpc-status", HeaderValue::from_static("0"));
    }
    requests.lock().unwrap().push(Request {
        headers: parts.headers,
        body,
    });
    Ok(response)
}
