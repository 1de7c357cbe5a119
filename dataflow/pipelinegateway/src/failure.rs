//! What a caller gets in place of an answer, over REST and over gRPC.
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use seldon_kafka::SendError;
use seldon_records::{Record, header as record_header};
use tonic::{Code, Status, body::Body, metadata::MetadataMap};

use crate::{
    gateway::Limits,
    headers,
    room::Unread,
    target::{Target, Unnamed},
};

/// A typed failure.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) grpc: Code,
    message: String,
    retry_after: Option<Duration>,
    fields: Box<HeaderMap>,
}

impl Failure {
    fn new(status: StatusCode, grpc: Code, message: impl Into<String>) -> Self {
        Self {
            status,
            grpc,
            message: message.into(),
            retry_after: None,
            fields: Box::default(),
        }
    }

    fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Nothing was begun: Envoy may ask another gateway.
    fn absent(mut self) -> Self {
        let mark = HeaderValue::from_static("1");
        self.fields.insert(headers::ABSENT, mark);
        self
    }

    pub(crate) fn unnamed(cause: &Unnamed) -> Self {
        let message = cause.to_string();
        Self::new(StatusCode::BAD_REQUEST, Code::FailedPrecondition, message)
    }

    pub(crate) fn path(path: &str) -> Self {
        let message = format!("no such path: {path}");
        Self::new(StatusCode::NOT_FOUND, Code::Unimplemented, message)
    }

    pub(crate) fn stream(call: &str) -> Self {
        let message = format!(
            "{call}: pipelines do not stream: ask the pipeline by infer (ModelInfer), or the streaming model by its own name"
        );
        Self::new(StatusCode::NOT_IMPLEMENTED, Code::Unimplemented, message)
    }

    pub(crate) fn method(path: &str, allow: &'static str) -> Self {
        let message = format!("method not allowed for {path}, use {allow}");
        let mut failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, message);
        let allow = HeaderValue::from_static(allow);
        failure.fields.insert(header::ALLOW, allow);
        failure
    }

    /// Nobody here answers for it. Envoy, which adds a header of its own, sends only what this gateway has served: it has
    /// just begun and will have it in a moment, or has just left it.
    pub(crate) fn unknown(target: &Target, fields: &HeaderMap) -> Self {
        let what = target.describe();
        if fields.contains_key(&headers::INTERNAL_MODEL) {
            let message =
                format!("{what}: this gateway does not serve it at the moment, try again");
            return Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message)
                .after(Duration::from_secs(1))
                .absent();
        }
        let kind = what.split(' ').next().unwrap_or_default();
        let message = format!("{what}: no such {kind} on this gateway");
        Self::new(StatusCode::NOT_FOUND, Code::NotFound, message).absent()
    }

    pub(crate) fn stopping(target: &Target) -> Self {
        let message = format!("{}: this gateway is being stopped", target.describe());
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message)
            .after(Duration::from_secs(1))
            .absent()
    }

    pub(crate) fn busy(target: &Target) -> Self {
        let what = target.describe();
        let message =
            format!("{what}: this gateway has as many requests as it can take, try again later");
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            Code::ResourceExhausted,
            message,
        )
        .after(Duration::from_secs(1))
    }

    /// A body that is not read on. Without a target where that is not known yet.
    pub(crate) fn unread(target: Option<&Target>, cause: &Unread, limits: &Limits) -> Self {
        match cause {
            Unread::TooLarge => Self::too_large(limits.body),
            Unread::Broken(_) => Self::invalid(cause.to_string()),
            Unread::Full => {
                let what = target.map_or_else(String::new, |target| target.describe() + ": ");
                let bytes = limits.bytes;
                let message = format!(
                    "{what}the requests at this gateway are as large as it can take together (--max-in-flight-bytes \
                     {bytes}), try again later"
                );
                let status = StatusCode::TOO_MANY_REQUESTS;
                Self::new(status, Code::ResourceExhausted, message).after(Duration::from_secs(1))
            }
        }
    }

    pub(crate) fn late(target: &Target, waited: Duration) -> Self {
        let waited = waited.as_millis();
        let message = format!("{}: no answer within {waited} ms", target.describe());
        Self::new(StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded, message)
    }

    pub(crate) fn unsent(target: &Target, cause: &SendError) -> Self {
        let message = format!("{}: {cause}", target.describe());
        match cause {
            SendError::TooLarge => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::ResourceExhausted,
                message,
            ),
            _ => Self::kafka(message),
        }
    }

    pub(crate) fn unwritten(target: &Target, waited: Duration) -> Self {
        let waited = waited.as_millis();
        let what = target.describe();
        Self::kafka(format!(
            "{what}: Kafka did not take the request within {waited} ms"
        ))
    }

    pub(crate) fn kafka(message: String) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message)
            .after(Duration::from_secs(1))
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, message)
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes");
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Code::ResourceExhausted,
            message,
        )
    }

    pub(crate) fn unreadable(target: &Target, cause: impl std::fmt::Display) -> Self {
        let message = format!("{}: its answer cannot be used: {cause}", target.describe());
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, message)
    }

    pub(crate) fn unready(message: String) -> Self {
        Self::new(StatusCode::FAILED_DEPENDENCY, Code::Unavailable, message)
    }

    pub(crate) fn unasked(message: String) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Code::Unavailable,
            message,
        )
    }

    /// What a step failed with: `<step> : <text>`, with the status that the step gave, 400 where it gave none.
    pub(crate) fn of_record(record: &Record) -> Option<Self> {
        let step = record.headers.get(record_header::ERROR)?;
        let step = String::from_utf8_lossy(step);
        let text = text(record.value.as_deref().unwrap_or_default());
        let number = |name: &str| record.headers.text(name)?.parse::<u16>().ok();
        let status = number(record_header::STATUS)
            .filter(|status| (400..600).contains(status))
            .and_then(|status| StatusCode::from_u16(status).ok());
        let grpc = number(record_header::GRPC_STATUS)
            .map(|code| Code::from(i32::from(code)))
            .filter(|code| *code != Code::Ok);
        let message = format!("{step} : {text}");
        let mut failure = Self::new(
            status.unwrap_or_else(|| grpc.map_or(StatusCode::BAD_REQUEST, http_status)),
            grpc.unwrap_or_else(|| status.map_or(Code::Unknown, grpc_code)),
            message,
        );
        failure.fields = Box::new(headers::of_answer(record));
        if failure.status == StatusCode::TOO_MANY_REQUESTS {
            failure = failure.after(Duration::from_secs(1));
        }
        Some(failure)
    }

    /// As `{"error": …}`.
    pub(crate) fn rest(self, id: &HeaderValue) -> Response<Body> {
        let text = serde_json::json!({ "error": self.message }).to_string();
        let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
        *response.status_mut() = self.status;
        let fields = response.headers_mut();
        *fields = *self.fields;
        let json = HeaderValue::from_static("application/json");
        fields.insert(header::CONTENT_TYPE, json);
        fields
            .entry(headers::REQUEST_ID)
            .or_insert_with(|| id.clone());
        if let Some(wait) = self.retry_after {
            fields.insert(header::RETRY_AFTER, wait.as_secs().max(1).into());
        }
        response
    }

    /// As a gRPC status.
    pub(crate) fn status(mut self, id: &HeaderValue) -> Status {
        let id = || id.clone();
        self.fields.entry(headers::REQUEST_ID).or_insert_with(id);
        Status::with_metadata(
            self.grpc,
            self.message,
            MetadataMap::from_headers(*self.fields),
        )
    }
}

/// The text of an error record; a model server's `{"error": "…"}` without its wrapping.
fn text(value: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wrapped {
        error: String,
    }
    match serde_json::from_slice::<Wrapped>(value) {
        Ok(wrapped) => wrapped.error,
        Err(_) => String::from_utf8_lossy(value).trim_end().to_owned(),
    }
}

fn http_status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
        Code::Ok | Code::Cancelled | Code::Unknown => StatusCode::BAD_REQUEST,
    }
}

fn grpc_code(status: StatusCode) -> Code {
    match status.as_u16() {
        400 | 422 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::NotFound,
        409 => Code::Aborted,
        413 | 429 => Code::ResourceExhausted,
        424 => Code::FailedPrecondition,
        501 => Code::Unimplemented,
        502 | 503 => Code::Unavailable,
        504 => Code::DeadlineExceeded,
        500 => Code::Internal,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use seldon_records::Headers;

    use super::*;

    fn failed(more: &[(&str, &str)], value: &'static str) -> Failure {
        let pairs = [(record_header::ERROR, "step")];
        let all = pairs.iter().chain(more);
        let headers: Headers = all
            .map(|(name, value)| (*name, value.to_string()))
            .collect();
        let record = Record {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            key: None,
            value: Some(Bytes::from_static(value.as_bytes())),
            headers,
            timestamp_ms: 0,
        };
        Failure::of_record(&record).expect("an error record")
    }

    #[test]
    fn what_envoy_sends_here_exists() {
        let target = Target::Pipeline("p".to_owned());
        let mut fields = HeaderMap::new();
        let unknown = Failure::unknown(&target, &fields);
        assert_eq!(
            (unknown.status.as_u16(), unknown.grpc),
            (404, Code::NotFound)
        );
        fields.insert(
            headers::INTERNAL_MODEL,
            HeaderValue::from_static("p.pipeline"),
        );
        let elsewhere = Failure::unknown(&target, &fields);
        assert_eq!(
            (elsewhere.status.as_u16(), elsewhere.grpc),
            (503, Code::Unavailable)
        );
        assert!(elsewhere.retry_after.is_some() && elsewhere.fields.contains_key(headers::ABSENT));
    }

    #[test]
    fn error_records_are_typed() {
        let plain = failed(&[], "no");
        assert_eq!((plain.status.as_u16(), plain.grpc), (400, Code::Unknown));
        assert_eq!(plain.message, "step : no");
        let both = failed(
            &[("seldon-status", "503"), ("seldon-grpc-status", "14")],
            "",
        );
        assert_eq!((both.status.as_u16(), both.grpc), (503, Code::Unavailable));
        let http = failed(&[("seldon-status", "404")], r#"{"error":"gone"}"#);
        assert_eq!((http.status.as_u16(), http.grpc), (404, Code::NotFound));
        assert_eq!(http.message, "step : gone");
        let grpc = failed(&[("seldon-grpc-status", "3"), ("seldon-status", "200")], "");
        assert_eq!(
            (grpc.status.as_u16(), grpc.grpc),
            (400, Code::InvalidArgument)
        );
    }
}
