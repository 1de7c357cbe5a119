//! Answers the proxy gives itself, in the protocol's form, and resets.
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use seldon_openai::Failure;

use crate::{body::ProxyBody, frames::FrameError, headers, models::NotServed, routes::Refused};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request broken off before its response began, so that Envoy may try it elsewhere.
#[derive(Debug, thiserror::Error)]
pub enum Reset {
    /// Nothing of the request reached the inference server: `REFUSED_STREAM`.
    #[error("the inference server at {address} cannot be reached: {cause}")]
    Unsent {
        /// Where it should be.
        address: String,
        /// What went wrong.
        cause: String,
        /// Tells the client's connection which reset to send.
        #[source]
        reason: h2::Error,
    },
    /// The connection broke before response headers came: `INTERNAL_ERROR`.
    #[error("the inference server broke off a request")]
    Broken(#[source] BoxError),
    /// The agent found that the inference server does not answer any more.
    #[error("the inference server does not answer")]
    Stalled,
}

impl Reset {
    pub(crate) fn unsent(address: &str, cause: impl ToString) -> Self {
        let reason = h2::Error::from(h2::Reason::REFUSED_STREAM);
        Self::Unsent {
            address: address.to_owned(),
            cause: cause.to_string(),
            reason,
        }
    }
}

/// An answer of the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) grpc: u8,
    /// The request is to be reset instead of answered.
    pub(crate) reset: bool,
    /// Another replica may have the model.
    absent: bool,
    message: String,
    retry_after: Option<Duration>,
    allow: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, grpc: u8, message: impl Into<String>) -> Self {
        Self {
            status,
            grpc,
            message: message.into(),
            reset: false,
            absent: false,
            retry_after: None,
            allow: None,
        }
    }

    fn absent(mut self) -> Self {
        self.absent = true;
        self
    }

    fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    pub(crate) fn unnamed() -> Self {
        let message = "no model is named: header seldon-internal-model is missing (Envoy sets it from seldon-model)";
        Self::new(StatusCode::NOT_FOUND, 9, message)
    }

    pub(crate) fn route(refused: Refused, path: &str) -> Self {
        match refused {
            Refused::NotFound => Self::new(
                StatusCode::NOT_FOUND,
                12,
                format!("no such inference path: {path}"),
            ),
            Refused::Method(allow) => {
                let message = format!("method not allowed for {path}, use {allow}");
                Self {
                    allow: Some(allow),
                    ..Self::new(StatusCode::METHOD_NOT_ALLOWED, 12, message)
                }
            }
        }
    }

    pub(crate) fn rpc(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            12,
            format!("method {path} is not served to clients"),
        )
    }

    pub(crate) fn encoding(encoding: &str) -> Self {
        let message = format!("grpc-encoding {encoding} is not supported, use gzip or identity");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, 12, message)
    }

    pub(crate) fn media_type() -> Self {
        let message =
            "gRPC needs HTTP/2 and content type application/grpc or application/grpc+proto";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, 12, message)
    }

    pub(crate) fn model(internal: &str, cause: &NotServed) -> Self {
        let message = format!("model {internal}: {cause}");
        match *cause {
            NotServed::Unknown => Self::new(StatusCode::NOT_FOUND, 5, message).absent(),
            NotServed::Loading { retry_after } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, 14, message).after(retry_after)
            }
            NotServed::Overloaded { retry_after } | NotServed::Crowded { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, 8, message).after(retry_after)
            }
            NotServed::Failed(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, 14, message).absent()
            }
            NotServed::Away => Self {
                reset: true,
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, 14, message)
            },
        }
    }

    pub(crate) fn busy(internal: &str) -> Self {
        let message =
            format!("model {internal} has as many requests as it can take, try again later");
        Self::new(StatusCode::TOO_MANY_REQUESTS, 8, message).after(Duration::from_secs(1))
    }

    pub(crate) fn frame(cause: &FrameError) -> Self {
        let message = cause.to_string();
        match cause {
            FrameError::TooLarge { .. } | FrameError::Inflated => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, 8, message)
            }
            FrameError::Compression(_) => Self::new(StatusCode::BAD_REQUEST, 13, message),
            FrameError::Malformed(_) | FrameError::Truncated | FrameError::Missing => {
                Self::new(StatusCode::BAD_REQUEST, 3, message)
            }
        }
    }

    /// The whole request has to be held, and is too large for that.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the request is larger than the {limit} bytes allowed");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, 8, message)
    }

    /// The whole request has to be held, and did not come.
    pub(crate) fn slow(deadline: Duration) -> Self {
        let message = format!("the request did not come within {} s", deadline.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, 4, message)
    }

    /// Other requests hold as much as may be held.
    pub(crate) fn full() -> Self {
        let message = "as many bytes of other requests are held as may be held, try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, 8, message).after(Duration::from_secs(1))
    }

    /// What has to be read is compressed.
    pub(crate) fn compressed() -> Self {
        let message = "content-encoding is not supported here: send the request uncompressed";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, 12, message)
    }

    /// As `{"error": …}`.
    pub(crate) fn rest(&self, id: &HeaderValue) -> Response<ProxyBody> {
        let body = serde_json::json!({ "error": self.message }).to_string();
        self.json(body, id)
    }

    /// As OpenAI says it.
    pub(crate) fn openai(&self, id: &HeaderValue) -> Response<ProxyBody> {
        let failure = Failure::new(self.status.as_u16(), self.message.as_str());
        // Which path it is was known before.
        let code = match self.status {
            StatusCode::NOT_FOUND => "model_not_found",
            _ => failure.code,
        };
        self.json(Failure { code, ..failure }.body(), id)
    }

    fn json(&self, body: String, id: &HeaderValue) -> Response<ProxyBody> {
        let mut response = json(self.status, body, id);
        let fields = response.headers_mut();
        self.mark(fields);
        if let Some(allow) = self.allow {
            fields.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(wait) = self.retry_after {
            fields.insert(
                header::RETRY_AFTER,
                HeaderValue::from(wait.as_secs().max(1)),
            );
        }
        response
    }

    /// As a gRPC status without messages.
    pub(crate) fn grpc(&self, id: &HeaderValue) -> Response<ProxyBody> {
        let mut response = Response::new(ProxyBody::full(Bytes::new()));
        let fields = response.headers_mut();
        fields.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        fields.insert(headers::REQUEST_ID, id.clone());
        fields.insert(
            headers::GRPC_ACCEPT_ENCODING,
            HeaderValue::from_static("identity,gzip"),
        );
        self.mark(fields);
        self.trailers(fields);
        response
    }

    /// Tells Envoy to ask another replica, if one may have the model.
    fn mark(&self, fields: &mut http::HeaderMap) {
        if self.absent {
            fields.insert(headers::ABSENT, HeaderValue::from_static("1"));
        }
    }

    /// Sets status and message.
    pub(crate) fn trailers(&self, fields: &mut http::HeaderMap) {
        fields.insert(
            headers::GRPC_STATUS,
            HeaderValue::from(u16::from(self.grpc)),
        );
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.message)) {
            fields.insert(headers::GRPC_MESSAGE, message);
        }
    }
}

/// An answer of the proxy itself that is JSON.
pub(crate) fn json(
    status: StatusCode,
    body: impl Into<Bytes>,
    id: &HeaderValue,
) -> Response<ProxyBody> {
    let mut response = Response::new(ProxyBody::full(body.into()));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    fields.insert(headers::REQUEST_ID, id.clone());
    response
}

/// A message as `grpc-message` carries it.
fn percent_encoded(message: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
    text
}
