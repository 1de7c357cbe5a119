//! Asking a model through Envoy.
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use seldon_grpc::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use seldon_inference::request_to_json;
use seldon_proto::inference::ModelInferRequest;
use seldon_records::{Headers, Record, decode_request, header as records};
use seldon_telemetry::RequestSpan;
use seldon_tls::ClientTls;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{
    Code,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};
use tower::Service as _;

use crate::{failure::Failure, metrics::Metrics, metrics::OfModel};

/// Connections to Envoy, shared by all requests.
const CONNECTIONS: usize = 2;
/// A model that cannot be reached is asked again for this long at most, within its time.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a model answered.
pub(crate) struct Answer {
    pub(crate) value: Bytes,
    pub(crate) headers: HeaderMap,
    /// What [`records::INFER_TYPE`] says of the value.
    pub(crate) encoding: &'static str,
}

/// What a model is asked.
enum Question {
    Grpc(ModelInferRequest),
    Rest(Bytes),
}

/// Asks models.
pub(crate) struct Asker {
    channels: Vec<Channel>,
    turn: AtomicUsize,
    metrics: Metrics,
}

impl Asker {
    pub(crate) fn new(
        host: &str,
        port: u16,
        tls: Option<&ClientTls>,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let connect = |_| -> anyhow::Result<Channel> {
            Ok(Endpoint::from_shared(format!("http://{host}:{port}"))?
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true)
                .http2_adaptive_window(true)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(10))
                .connect_with_connector_lazy(seldon_tls::connector(tls.cloned())))
        };
        Ok(Self {
            channels: (0..CONNECTIONS).map(connect).collect::<Result<_, _>>()?,
            turn: AtomicUsize::new(0),
            metrics,
        })
    }

    /// Asks, again where that may help, until the deadline.
    pub(crate) async fn ask(
        &self,
        model: &str,
        record: &Record,
        deadline: Instant,
        span: Option<&RequestSpan>,
    ) -> Result<Answer, Failure> {
        let question = question(record)?;
        let headers = request_headers(model, &record.headers, span);
        let give_up = deadline.min(Instant::now() + UNAVAILABLE_FOR);
        let mut pause = Duration::from_millis(50);
        loop {
            let once = self.once(model, &question, headers.clone(), deadline);
            let failure = match timeout_at(deadline, once).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(late(model)),
            };
            if !failure.passes || Instant::now() + pause >= give_up {
                return Err(failure);
            }
            tracing::debug!(model, reason = failure.text, "asked again");
            let of = OfModel {
                model: model.to_owned(),
            };
            self.metrics.retries.get_or_create(&of).inc();
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn once(
        &self,
        model: &str,
        question: &Question,
        headers: HeaderMap,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let channel = self.channels[turn % CONNECTIONS].clone();
        match question {
            Question::Grpc(request) => grpc(channel, model, request, headers, deadline).await,
            Question::Rest(body) => rest(channel, model, body, headers).await,
        }
    }
}

/// The failure of a model that takes too long.
pub(crate) fn late(model: &str) -> Failure {
    Failure::new(
        Code::DeadlineExceeded,
        format!("model {model} did not answer in time"),
    )
}

fn question(record: &Record) -> Result<Question, Failure> {
    let invalid = |text: String| Failure::new(Code::InvalidArgument, text);
    let value = record.value.as_ref();
    let value = value.ok_or_else(|| invalid("the record has no value".to_owned()))?;
    let declared = record.headers.text(records::INFER_TYPE);
    let request = decode_request(&record.headers, value).map_err(|e| invalid(e.to_string()))?;
    let json = match declared.filter(|declared| !declared.is_empty()) {
        Some(declared) => declared.to_ascii_lowercase().starts_with("json/"),
        None => value.trim_ascii_start().first() == Some(&b'{'),
    };
    if !json {
        return Ok(Question::Grpc(request));
    }
    request_to_json(&request)
        .map(|body| Question::Rest(body.to_string().into()))
        .map_err(|error| invalid(error.to_string()))
}

async fn grpc(
    channel: Channel,
    model: &str,
    request: &ModelInferRequest,
    headers: HeaderMap,
    deadline: Instant,
) -> Result<Answer, Failure> {
    let request = ModelInferRequest {
        model_name: model.to_owned(),
        ..request.clone()
    };
    let mut request = tonic::Request::new(request);
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    let mut client = GrpcInferenceServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    let response = client.model_infer(request).await;
    let response = response.map_err(|status| match status.code() {
        // tonic's own clock may be quicker than ours.
        Code::Cancelled if Instant::now() >= deadline - Duration::from_millis(50) => late(model),
        _ => Failure::of_status(&status),
    })?;
    let (headers, message, _) = response.into_parts();
    Ok(Answer {
        value: message.encode_to_vec().into(),
        headers: headers.into_headers(),
        encoding: "proto/InferModelResponse",
    })
}

async fn rest(
    mut channel: Channel,
    model: &str,
    body: &Bytes,
    headers: HeaderMap,
) -> Result<Answer, Failure> {
    let broken = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Unavailable, format!("model {model}: {error}"))
    };
    let mut request = Request::post(format!("/v2/models/{model}/infer"))
        .body(tonic::body::Body::new(Full::new(body.clone())))
        .map_err(|error| Failure::new(Code::InvalidArgument, error.to_string()))?;
    *request.headers_mut() = headers;
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    let ready = std::future::poll_fn(|task| channel.poll_ready(task)).await;
    ready.map_err(|error| broken(&error))?;
    let response = channel.call(request).await;
    let (parts, body) = response.map_err(|error| broken(&error))?.into_parts();
    let body = body.collect().await.map_err(|error| broken(&error))?;
    let body = body.to_bytes();
    if !parts.status.is_success() {
        return Err(Failure::of_http(parts.status, &body));
    }
    Ok(Answer {
        value: body,
        headers: parts.headers,
        encoding: "json/inferModelResponse",
    })
}

/// All `x-*` of the record, but what would tell Envoy how to do its work; and the trace.
fn request_headers(model: &str, of: &Headers, span: Option<&RequestSpan>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(of.len() + 2);
    for (name, value) in of.iter() {
        let passed = (name.starts_with("x-") && !name.starts_with("x-envoy-"))
            || matches!(name, "traceparent" | "tracestate" | "baggage");
        if !passed {
            continue;
        }
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(name),
            HeaderValue::from_maybe_shared(value.clone()),
        ) {
            headers.append(name, value);
        }
    }
    if let Ok(model) = HeaderValue::from_str(model) {
        headers.insert("seldon-model", model);
    }
    if let Some(span) = span {
        span.inject(&mut headers);
    }
    headers
}
