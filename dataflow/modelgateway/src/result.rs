//! What is written when a model has answered, or not.
use http::HeaderMap;
use seldon_records::{Headers, Outgoing, header};
use seldon_telemetry::RequestSpan;

use crate::{
    ask::Answer,
    failure::Failure,
    model::{Job, Model, Target},
};

/// The result of a model.
pub(crate) fn result(
    model: &Model,
    job: &Job,
    answer: Answer,
    span: Option<&RequestSpan>,
) -> Outgoing {
    let mut headers = common(job, span);
    for (name, value) in &answer.headers {
        let name = name.as_str();
        let wanted = name.starts_with("x-") && !name.starts_with("x-envoy-");
        // Routes grow with each step; of others the request's own stands.
        if wanted && (name == header::ROUTE || !job.record.headers.has(name)) {
            headers.push(name, value.as_bytes().to_vec());
        }
    }
    if headers.has(header::INFER_TYPE) {
        headers.set(header::INFER_TYPE, answer.encoding);
    }
    Outgoing {
        topic: model.outputs.topic.clone(),
        partition: Some(model.outputs.partition(job.record.partition)),
        key: job.record.key.clone(),
        value: Some(answer.value),
        headers,
    }
}

/// What is written instead.
pub(crate) fn error(
    errors: &Target,
    model: &Model,
    job: &Job,
    failure: &Failure,
    span: Option<&RequestSpan>,
) -> Outgoing {
    let mut headers = common(job, span);
    headers.set(header::ERROR, model.name.to_string());
    headers.set(header::STATUS, failure.http.to_string());
    headers.set(header::GRPC_STATUS, failure.grpc.to_string());
    Outgoing {
        topic: errors.topic.clone(),
        partition: Some(errors.partition(job.record.partition)),
        key: job.record.key.clone(),
        value: Some(failure.text.clone().into()),
        headers,
    }
}

fn common(job: &Job, span: Option<&RequestSpan>) -> Headers {
    let mut headers = job.record.headers.clone();
    if job.replayed {
        headers.set(header::REPEAT, "1");
    }
    if let Some(span) = span {
        let mut trace = HeaderMap::new();
        span.inject(&mut trace);
        for (name, value) in &trace {
            headers.set(name.as_str(), value.as_bytes().to_vec());
        }
    }
    headers
}
