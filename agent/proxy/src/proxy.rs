//! The proxy and what all its requests share.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use seldon_telemetry::RequestSpan;
use seldon_tls::ServerTls;
use tokio::{net::TcpListener, sync::OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{Admission, Turns},
    body::ProxyBody,
    errors::{Refusal, Reset},
    grpc, headers,
    held::Budget,
    metrics::{Code, Method, Metrics, ModelSeries},
    models::{Lease, Limits, Models, NotServed, Upstream},
    pool::{GrpcPool, RestPool},
    rest, server,
};

/// Passes inference requests on to one inference server. Cheap to clone.
pub struct Proxy<M> {
    pub(crate) models: Arc<M>,
    pub(crate) core: Arc<Core>,
}

impl<M> Clone for Proxy<M> {
    fn clone(&self) -> Self {
        Self {
            models: self.models.clone(),
            core: self.core.clone(),
        }
    }
}

/// What does not depend on the kind of registry.
pub(crate) struct Core {
    pub(crate) rest: RestPool,
    /// For requests that were translated.
    pub(crate) translated: RestPool<Full<Bytes>>,
    pub(crate) grpc: GrpcPool,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) budget: Arc<Budget>,
    admission: Admission,
    stalled: Mutex<CancellationToken>,
}

impl<M: Models> Proxy<M> {
    /// A proxy in front of `upstream` for the models of a registry.
    pub fn new(models: Arc<M>, upstream: Upstream, limits: Limits, metrics: Arc<Metrics>) -> Self {
        let translated = RestPool::new(upstream.http.clone(), &limits);
        let rest = RestPool::new(upstream.http, &limits);
        let grpc = GrpcPool::new(upstream.grpc, &limits);
        let core = Core {
            rest,
            translated,
            grpc,
            metrics,
            budget: Budget::new(&limits),
            limits,
            admission: Admission::default(),
            stalled: Mutex::default(),
        };
        Self {
            models,
            core: Arc::new(core),
        }
    }

    /// Serves REST and gRPC, HTTP/1.1 and HTTP/2, on one listener until `shutdown`; then accepts no more, tells clients
    /// so, and returns when the requests in flight have ended or [`Limits::drain_deadline`] has passed. Each connection
    /// gets the certificate that is current when it is accepted.
    pub async fn serve(
        &self,
        listener: TcpListener,
        tls: Option<ServerTls>,
        shutdown: CancellationToken,
    ) {
        server::serve(self.clone(), listener, tls, shutdown).await;
    }

    /// Removes what is kept of a model that left this replica, its metrics included.
    pub fn forget(&self, internal: &str) {
        self.core.admission.forget(internal);
        self.core.metrics.forget(internal);
    }

    /// Resets every request whose response has not begun and gives up all connections: for an inference server that
    /// still accepts connections but does not answer any more, so that Envoy tries other replicas.
    pub fn reset_in_flight(&self) {
        let stalled = std::mem::take(
            &mut *self
                .core
                .stalled
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.core.rest.clear();
        self.core.translated.clear();
        self.core.grpc.clear();
        stalled.cancel();
    }

    pub(crate) async fn handle(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<ProxyBody>, Reset> {
        let is_grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        if is_grpc {
            grpc::handle(self, request).await
        } else {
            rest::handle(self, request).await
        }
    }

    /// Makes sure that a model answers and that it is this request's turn.
    pub(crate) async fn admit(
        &self,
        internal: &str,
        exchange: &mut Exchange,
    ) -> Result<Arc<Turns>, Refusal> {
        let limits = &self.core.limits;
        let lease =
            match tokio::time::timeout(limits.load_deadline, self.models.acquire(internal)).await {
                Ok(lease) => lease,
                Err(_) => Err(NotServed::Loading {
                    retry_after: limits.queue_deadline,
                }),
            };
        exchange.lease = Some(lease.map_err(|cause| Refusal::model(internal, &cause))?);
        // Only now: a model that is not here, or not any more, gets no series that nobody would remove.
        exchange.series = Some(self.core.metrics.model(internal));
        let turns = self.core.admission.model(internal, limits);
        exchange.place = Some(
            turns
                .take(limits)
                .await
                .map_err(|_| Refusal::busy(internal))?,
        );
        Ok(turns)
    }
}

impl Core {
    /// Cancelled when requests in flight now are to be reset.
    pub(crate) fn stalled(&self) -> CancellationToken {
        self.stalled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A request from its arrival to the end of its response: holds the model, and counts the answer once.
pub(crate) struct Exchange {
    metrics: Arc<Metrics>,
    method: Method,
    label: &'static str,
    started: Instant,
    internal: Option<Arc<str>>,
    external: Option<HeaderValue>,
    series: Option<Arc<ModelSeries>>,
    lease: Option<Lease>,
    place: Option<OwnedSemaphorePermit>,
    span: Option<RequestSpan>,
    counted: bool,
}

impl Exchange {
    /// `label` is the method as `seldon_model_infer_api_seconds` shows it.
    pub(crate) fn begin(
        core: &Core,
        method: Method,
        label: &'static str,
        fields: &http::HeaderMap,
    ) -> Self {
        Self {
            metrics: core.metrics.clone(),
            method,
            label,
            started: Instant::now(),
            internal: headers::internal(fields).map(Arc::from),
            external: headers::external(fields).cloned(),
            series: None,
            lease: None,
            place: None,
            span: RequestSpan::begin("seldon-rproxy", fields),
            counted: false,
        }
    }

    /// The model that answers, if the request names one.
    pub(crate) fn internal(&self) -> Option<Arc<str>> {
        self.internal.clone()
    }

    /// Makes the inference server's spans children of this request's.
    pub(crate) fn propagate(&self, fields: &mut http::HeaderMap) {
        if let Some(span) = &self.span {
            span.inject(fields);
        }
    }

    /// Counts the answer and lets the model go.
    pub(crate) fn finish(&mut self, code: Code) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let took = self.started.elapsed();
        self.metrics.answered(self.label, code, took);
        if let Some(series) = self.series.take() {
            let asked = self.external.as_ref().and_then(|name| name.to_str().ok());
            let external = asked.unwrap_or_else(|| headers::stem(series.internal()));
            self.metrics
                .answered_by(&series, external, self.method, code, took);
        }
        self.place = None;
        self.lease = None;
        if let Some(span) = self.span.take() {
            self.describe(&span, code);
        }
    }

    fn describe(&self, span: &RequestSpan, code: Code) {
        let failed = match code {
            Code::Http(status) => {
                span.set("http.response.status_code", i64::from(status));
                status >= 500 || status == 499
            }
            Code::Grpc(status) => {
                span.set("rpc.grpc.status_code", i64::from(status));
                status != 0
            }
        };
        if failed {
            span.fail();
        }
        span.set("seldon.method", self.label);
        if let Some(internal) = &self.internal {
            span.set("seldon.model_internal", internal.to_string());
        }
    }
}

impl Drop for Exchange {
    /// A client that went away before the end.
    fn drop(&mut self) {
        self.finish(match self.method {
            Method::Rest => Code::Http(499),
            Method::Grpc => Code::Grpc(1),
        });
    }
}
