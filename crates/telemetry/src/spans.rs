//! Spans of requests that are passed on.
use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue, Value, global,
    trace::{SpanKind, Status, TraceContextExt as _, Tracer as _},
};

use crate::{extract, inject, traces};

/// The time in which a request is answered; it ends when this is dropped.
pub struct RequestSpan(Context);

impl RequestSpan {
    /// Begins a span below the caller's, if the headers name one. Nothing where traces are not exported, which costs a
    /// look at a flag.
    pub fn begin(name: &'static str, headers: &HeaderMap) -> Option<Self> {
        if !traces::are_exported() {
            return None;
        }
        let parent = extract(headers);
        let tracer = global::tracer("seldon");
        let span = tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .start_with_context(&tracer, &parent);
        Some(Self(parent.with_span(span)))
    }

    /// Makes the next process's spans children of this one.
    pub fn inject(&self, headers: &mut HeaderMap) {
        inject(&self.0, headers);
    }

    /// Adds an attribute.
    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        self.0.span().set_attribute(KeyValue::new(name, value));
    }

    /// Marks the request as failed.
    pub fn fail(&self) {
        self.0.span().set_status(Status::error(""));
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        self.0.span().end();
    }
}
