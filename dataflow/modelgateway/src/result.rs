//! What is written when a model has answered, or not.
use http::HeaderMap;
use seldon_records::{Headers, Outgoing, header};
use seldon_telemetry::RequestSpan;

use crate::{
    ask::Answer,
    failure::Failure,
    model::{Job, Model, Target},
};

/// How long the model took, as Envoy tells.
const TOOK: &str = "x-envoy-upstream-service-time";

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
        // Of Envoy's only the one that is documented there; none of them goes out again.
        let wanted = name.starts_with("x-") && !name.starts_with("x-envoy-") || name == TOOK;
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

/// What is written where a record is too large: an error for a result; for an error, the same with its small headers only.
/// `None`: that was tried already.
pub(crate) fn instead(
    errors: &Target,
    model: &str,
    record: &Outgoing,
    why: &str,
) -> Option<Outgoing> {
    const SMALL: usize = 1 << 10;
    let mut headers = record.headers.clone();
    let is_error = record.topic == errors.topic;
    if is_error {
        let small = headers.iter().filter(|(_, value)| value.len() <= SMALL);
        let small: Headers = small.map(|(name, value)| (name, value.clone())).collect();
        if small.len() == headers.len() {
            return None;
        }
        headers = small;
    } else {
        headers.set(header::ERROR, model.to_owned());
        headers.set(header::STATUS, "413");
        headers.set(header::GRPC_STATUS, "8");
        headers.remove(header::INFER_TYPE);
    }
    let text = || format!("the answer of model {model} cannot be written: {why}");
    Some(Outgoing {
        topic: errors.topic.clone(),
        partition: record.partition.map(|one| errors.partition(one)),
        key: record.key.clone(),
        value: if is_error {
            record.value.clone()
        } else {
            Some(text().into())
        },
        headers,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_becomes_an_error_and_then_a_small_one() {
        let errors = Target::new("errors", 1);
        let headers = [("pipeline", "p".to_owned()), ("x-large", "h".repeat(9_000))];
        let result = Outgoing {
            topic: "outputs".into(),
            partition: Some(3),
            key: Some("k".into()),
            value: Some(vec![0; 9_000].into()),
            headers: headers.into_iter().collect(),
        };
        let error = instead(&errors, "m", &result, "too large").unwrap();
        assert_eq!((&*error.topic, error.partition), ("errors", Some(0)));
        assert_eq!(error.headers.text(header::ERROR), Some("m"));
        assert_eq!(error.headers.text(header::STATUS), Some("413"));
        let small = instead(&errors, "m", &error, "too large").unwrap();
        assert_eq!(small.headers.text("pipeline"), Some("p"));
        assert_eq!(small.headers.text(header::STATUS), Some("413"));
        assert!(!small.headers.has("x-large"));
        assert!(instead(&errors, "m", &small, "too large").is_none());
    }
}
