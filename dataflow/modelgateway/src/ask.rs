//! Asking a model through Envoy.
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use seldon_grpc::Plain;
use seldon_inference::request_to_json;
use seldon_proto::inference::{ModelInferRequest, ModelInferResponse};
use seldon_records::{Headers, Record, decode_request, header as records};
use seldon_telemetry::RequestSpan;
use seldon_tls::ClientTls;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{
    Code, Status,
    client::Grpc,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};
use tower::Service as _;

use crate::{failure::Failure, metrics::Metrics, metrics::OfModel, model::Model};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
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
    /// A message.
    Grpc(Bytes),
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
        of: &Model,
        record: &Record,
        deadline: Instant,
        span: Option<&RequestSpan>,
    ) -> Result<Answer, Failure> {
        let model = &*of.name;
        let question = question(model, record)?;
        let headers = request_headers(model, &record.headers, span);
        let unavailable = deadline.min(Instant::now() + UNAVAILABLE_FOR);
        let mut pause = Duration::from_millis(50);
        loop {
            let once = self.once(model, &question, headers.clone(), deadline);
            let failure = match timeout_at(deadline, once).await {
                Ok(Ok(answer)) => {
                    of.absence.over();
                    return Ok(answer);
                }
                Ok(Err(failure)) => failure,
                Err(_) => return Err(late(model)),
            };
            let give_up = if failure.absent {
                deadline.min(of.absence.missed(Instant::now()))
            } else {
                of.absence.over();
                unavailable
            };
            if !failure.passes || Instant::now() + pause >= give_up {
                return Err(failure.of_model(model));
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

fn question(model: &str, record: &Record) -> Result<Question, Failure> {
    let invalid = |text: String| Failure::new(Code::InvalidArgument, text);
    let value = record.value.as_ref();
    let value = value.ok_or_else(|| invalid("the record has no value".to_owned()))?;
    let declared = record.headers.text(records::INFER_TYPE);
    if is_request(declared, value) {
        return Ok(Question::Grpc(named(model, value)));
    }
    let request = decode_request(&record.headers, value).map_err(|e| invalid(e.to_string()))?;
    let json = match declared.filter(|declared| !declared.is_empty()) {
        Some(declared) => declared.to_ascii_lowercase().starts_with("json/"),
        None => value.trim_ascii_start().first() == Some(&b'{'),
    };
    if !json {
        return Ok(Question::Grpc(named(model, &request.encode_to_vec())));
    }
    request_to_json(&request)
        .map(|body| Question::Rest(body.to_string().into()))
        .map_err(|error| invalid(error.to_string()))
}

/// Whether a value is a protobuf request as it is, so that it may go on without being made anew.
fn is_request(declared: Option<&str>, value: &Bytes) -> bool {
    let declared = declared.filter(|declared| !declared.is_empty());
    declared.is_none_or(|declared| declared.eq_ignore_ascii_case("proto/inferModelRequest"))
        && value.first() != Some(&0)
        && value.trim_ascii_start().first() != Some(&b'{')
        && ModelInferRequest::decode(value.clone()).is_ok()
}

/// The message that asks a model by its name: in protobuf, what comes last of a field counts.
fn named(model: &str, request: &[u8]) -> Bytes {
    let name = ModelInferRequest {
        model_name: model.to_owned(),
        ..Default::default()
    };
    let mut message = BytesMut::with_capacity(request.len() + name.encoded_len());
    message.put_slice(request);
    name.encode_raw(&mut message);
    message.freeze()
}

async fn grpc(
    channel: Channel,
    model: &str,
    request: &Bytes,
    headers: HeaderMap,
    deadline: Instant,
) -> Result<Answer, Failure> {
    let mut request = tonic::Request::new(request.clone());
    *request.metadata_mut() = MetadataMap::from_headers(headers);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    let mut client = Grpc::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    let ready = client.ready().await;
    let path = PathAndQuery::from_static(INFER);
    let response = match ready {
        Ok(()) => client.unary(request, path, Plain).await,
        Err(error) => Err(Status::unknown(format!("Envoy is not ready: {error}"))),
    };
    let response = response.map_err(|status| match status.code() {
        // tonic's own clock may be quicker than ours.
        Code::Cancelled if Instant::now() >= deadline - Duration::from_millis(50) => late(model),
        _ => Failure::of_status(&status),
    })?;
    let (headers, value, _) = response.into_parts();
    if let Err(error) = ModelInferResponse::decode(value.clone()) {
        let text = format!("model {model} answered what is no ModelInferResponse: {error}");
        return Err(Failure::new(Code::Internal, text));
    }
    Ok(Answer {
        value,
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
        return Err(Failure::of_http(parts.status, &parts.headers, &body));
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
