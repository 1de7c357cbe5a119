//! Errors in OpenAI's form.
use serde::Deserialize;
use serde_json::{json, value::RawValue};

/// Longest text of an inference server that is quoted.
const QUOTED: usize = 2_000;

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status.
    pub status: u16,
    /// For programs.
    pub code: &'static str,
    /// The option that is wrong.
    pub param: Option<String>,
    /// For people.
    pub message: String,
}

impl Failure {
    /// A failure of which only the status is known.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        let code = match status {
            404 => "not_found",
            405 => "method_not_allowed",
            408 => "request_timeout",
            413 => "request_too_large",
            415 => "unsupported_media_type",
            429 => "rate_limit_exceeded",
            503 => "service_unavailable",
            504 => "timeout",
            400..=499 => "invalid_request",
            _ => "server_error",
        };
        Self::coded(status, code, message)
    }

    /// The same with a code of its own.
    pub fn coded(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        let (message, param) = (message.into(), None);
        Self {
            status,
            code,
            param,
            message,
        }
    }

    pub(crate) fn request(code: &'static str, param: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..Self::coded(400, code, message)
        }
    }

    /// The model answered what cannot be understood.
    pub(crate) fn model(message: impl Into<String>) -> Self {
        Self::coded(502, "bad_model_output", message)
    }

    /// The body that says so.
    pub fn body(&self) -> String {
        let kind = match self.status {
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let error =
            json!({"message": self.message, "type": kind, "param": self.param, "code": self.code});
        json!({ "error": error }).to_string()
    }
}

/// What an inference server said in place of an answer: its status, and its own words where they can be found.
pub fn error_of_model(status: u16, body: &[u8]) -> Failure {
    #[derive(Deserialize)]
    struct Said<'a> {
        #[serde(borrow, default)]
        error: Option<&'a RawValue>,
        #[serde(borrow, default)]
        detail: Option<&'a RawValue>,
    }
    let said: Option<Said<'_>> = serde_json::from_slice(body).ok();
    let words = said.and_then(|said| said.error.or(said.detail));
    let mut words = match words {
        // A text, or whatever else is there as it stands.
        Some(raw) => serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned()),
        None => String::from_utf8_lossy(&body[..body.len().min(QUOTED)])
            .trim()
            .to_owned(),
    };
    if let Some((end, _)) = words.char_indices().nth(QUOTED) {
        words.truncate(end);
    }
    if words.is_empty() {
        words = format!("the model answered with status {status} and no reason");
    }
    Failure::new(status, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_openais() {
        let failure = Failure::request("invalid_value", "messages", "no messages");
        assert_eq!(
            failure.body(),
            r#"{"error":{"message":"no messages","type":"invalid_request_error","param":"messages","code":"invalid_value"}}"#
        );
        for (status, kind, code) in [
            (400, "invalid_request_error", "invalid_request"),
            (404, "invalid_request_error", "not_found"),
            (405, "invalid_request_error", "method_not_allowed"),
            (408, "invalid_request_error", "request_timeout"),
            (413, "invalid_request_error", "request_too_large"),
            (415, "invalid_request_error", "unsupported_media_type"),
            (429, "rate_limit_error", "rate_limit_exceeded"),
            (500, "server_error", "server_error"),
            (503, "server_error", "service_unavailable"),
            (504, "server_error", "timeout"),
        ] {
            let body: serde_json::Value =
                serde_json::from_str(&Failure::new(status, "x").body()).unwrap();
            assert_eq!(
                (&body["error"]["type"], &body["error"]["code"]),
                (&kind.into(), &code.into())
            );
            assert_eq!(body["error"]["param"], serde_json::Value::Null);
        }
    }

    #[test]
    fn a_server_is_quoted() {
        for (body, words) in [
            (&br#"{"error": "ValueError: no"}"#[..], "ValueError: no"),
            (
                br#"{"detail": [{"loc": ["body"]}]}"#,
                r#"[{"loc": ["body"]}]"#,
            ),
            (b"Internal Server Error\n", "Internal Server Error"),
            (b"", "the model answered with status 500 and no reason"),
            (br#"{"error": null}"#, r#"{"error": null}"#),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        ] {
            let failure = error_of_model(500, body);
            assert_eq!(
                (failure.status, failure.message.as_str()),
                (500, words),
                "{body:?}"
            );
        }
        let long = error_of_model(
            422,
            format!(r#"{{"error": "{}"}}"#, "é".repeat(5000)).as_bytes(),
        );
        assert_eq!(long.message.chars().count(), QUOTED);
    }
}
