//! Errors as a user reads them.
use std::fmt;

use tonic::{Code, Status};

/// A call that the other side refused, in the words gRPC's own tools use.
#[derive(Debug)]
pub(crate) struct RpcError(pub(crate) Status);

impl fmt::Display for RpcError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "rpc error: code = {} desc = {}",
            code_name(self.0.code()),
            self.0.message()
        )?;
        if self.0.code() == Code::Unimplemented {
            write!(
                out,
                "\nthe service at this address does not offer this call: check the address and its version"
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for RpcError {}

/// The state waited for did not come in time.
#[derive(Debug)]
pub(crate) struct WaitTimeout {
    /// Model, Pipeline or Experiment.
    pub(crate) kind: &'static str,
    /// What was seen last, for the next step.
    pub(crate) seen: String,
}

impl fmt::Display for WaitTimeout {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} wait status timeout", self.kind)?;
        if !self.seen.is_empty() {
            write!(out, "\n{}", self.seen)?;
        }
        Ok(())
    }
}

impl std::error::Error for WaitTimeout {}

/// The whole chain on one line, without causes that their outer error has told already.
pub(crate) fn display(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// A wrong command line, told as the other errors are.
pub(crate) fn usage(error: &clap::Error) -> String {
    let text = error.to_string();
    match text.strip_prefix("error: ") {
        Some(rest) => format!("Error: {rest}"),
        None => format!("Error: incomplete command\n\n{text}"),
    }
}

/// The name of a code in Go, which documented output shows.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
