//! Answers the proxy gives itself, in the protocol's form, and resets.
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

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
            NotServed::Overloaded { retry_after } => {
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

    /// As `{"error": …}`.
    pub(crate) fn rest(&self, id: &HeaderValue) -> Response<ProxyBody> {
        let body = Bytes::from(serde_json::json!({ "error": self.message }).to_string());
        let mut response = Response::new(ProxyBody::full(body));
        *response.status_mut() = self.status;
        let fields = response.headers_mut();
        fields.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        fields.insert(headers::REQUEST_ID, id.clone());
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
