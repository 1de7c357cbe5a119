//! Why a model did not answer.
use std::error::Error as _;

use http::HeaderMap;
use tonic::{Code, Status};

/// Marks an answer of Envoy or of an agent that has no such model: nothing has run.
const ABSENT: &str = "x-seldon-absent";

/// A failure, as an error record tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) http: u16,
    pub(crate) grpc: i32,
    pub(crate) text: String,
    /// Asking again may help.
    pub(crate) passes: bool,
    /// Nobody serves the model.
    pub(crate) absent: bool,
}

impl Failure {
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            http: http_of(code),
            grpc: code as i32,
            text: cut(text.into()),
            passes: matches!(code, Code::Unavailable | Code::ResourceExhausted),
            absent: false,
        }
    }

    /// What the mark means depends on the status: one that has no model is asked again for a short time only.
    fn marked(mut self, headers: &HeaderMap) -> Self {
        self.absent = self.grpc == Code::NotFound as i32 && headers.contains_key(ABSENT);
        self.passes |= self.absent;
        self
    }

    /// As a caller is told it.
    pub(crate) fn of_model(mut self, model: &str) -> Self {
        if self.absent {
            self.text =
                format!("model {model} is not loaded: load it with seldon model load -f FILE");
        }
        self
    }

    /// A status with a source was made here, since the connection failed.
    pub(crate) fn of_status(status: &Status) -> Self {
        let broken = status.source().is_some();
        let code = match status.code() {
            Code::Unknown | Code::Internal | Code::Cancelled if broken => Code::Unavailable,
            code => code,
        };
        let mut text = status.message().to_owned();
        if text.is_empty() {
            text = code.description().to_owned();
        }
        Self::new(code, text).marked(status.metadata().as_ref())
    }

    pub(crate) fn of_http(status: http::StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let code = match status.as_u16() {
            400 | 405 | 411..=415 | 422 => Code::InvalidArgument,
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            404 => Code::NotFound,
            408 | 504 => Code::DeadlineExceeded,
            409 => Code::Aborted,
            429 => Code::ResourceExhausted,
            501 => Code::Unimplemented,
            502 | 503 => Code::Unavailable,
            _ => Code::Internal,
        };
        let text = if body.is_empty() {
            status.to_string()
        } else {
            String::from_utf8_lossy(body).into_owned()
        };
        Self {
            http: status.as_u16(),
            ..Self::new(code, text)
        }
        .marked(headers)
    }
}

/// Texts are for people: more than 64 KB of one is of no use to them.
fn cut(mut text: String) -> String {
    const LONGEST: usize = 64 << 10;
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

fn http_of(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Cancelled => 499,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_that_broke_here_is_asked_again() {
        let broke = |code: Code| {
            let mut status = Status::new(code, "operation was canceled");
            status.set_source(std::sync::Arc::new(std::io::Error::other("gone")));
            Failure::of_status(&status)
        };
        for code in [Code::Cancelled, Code::Unknown, Code::Internal] {
            assert!(broke(code).passes, "{code}");
            assert!(
                !Failure::of_status(&Status::new(code, "said so")).passes,
                "{code}"
            );
        }
        assert!(!broke(Code::InvalidArgument).passes);
    }
}
