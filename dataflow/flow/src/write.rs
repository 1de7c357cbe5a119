//! Records to be written: headers, values, errors.
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use seldon_proto::inference::ModelInferRequest;
use seldon_records::{Contents, Headers, Identity, Outgoing, Visits, header};

use crate::{Emit, Input, Place, arrival::Arrival, graph::Step};

/// A record of a step, before it is written alone or in a batch.
#[derive(Debug)]
pub struct Ready {
    pub key: Option<Bytes>,
    pub headers: Headers,
    pub message: ModelInferRequest,
    pub causes: Vec<Arc<Input>>,
    /// Where these wait while it is in a batch.
    pub places: Vec<(Arc<Input>, Place)>,
}

/// Headers that a step sets itself, or that end with one.
const OWN: [&str; 10] = [
    header::PIPELINE,
    header::PIPELINE_VERSION,
    header::ID,
    header::VISITS,
    header::REPEAT,
    header::ERROR,
    header::STATUS,
    header::GRPC_STATUS,
    header::BATCH,
    header::INFER_TYPE,
];

/// The headers of all parts: of a name that several have the first part's, but all their different routes.
pub fn joined<'a>(parts: impl Iterator<Item = &'a Headers>) -> Headers {
    let mut joined: Vec<(&str, &Bytes)> = Vec::new();
    for part in parts {
        let before = joined.len();
        for (name, value) in part.iter() {
            if OWN.contains(&name) || header::NOT_PASSED_ON.contains(&name) {
                continue;
            }
            let known = if name == header::ROUTE {
                joined.contains(&(name, value))
            } else {
                joined[..before].iter().any(|(known, _)| *known == name)
            };
            if !known {
                joined.push((name, value));
            }
        }
    }
    joined
        .into_iter()
        .map(|(name, value)| (name, value.clone()))
        .collect()
}

/// Sets what says whose record it is.
pub fn sign(
    headers: &mut Headers,
    pipeline: &str,
    version: Option<u32>,
    identity: &Identity,
    visits: &Visits,
    repeat: bool,
) {
    headers.set(
        header::PIPELINE,
        Bytes::copy_from_slice(pipeline.as_bytes()),
    );
    if let Some(version) = version {
        headers.set(header::PIPELINE_VERSION, version.to_string());
    }
    headers.set(
        header::ID,
        Bytes::copy_from_slice(identity.as_str().as_bytes()),
    );
    visits.write(headers);
    if repeat {
        headers.set(header::REPEAT, "1");
    }
}

/// The record of a step.
pub fn emit(step: &Step, ready: Ready) -> Emit {
    let mut message = ready.message;
    message.model_name.clear();
    message.model_version.clear();
    let value = if step.to_outputs {
        Contents::Request(message).into_response().encode_to_vec()
    } else {
        message.encode_to_vec()
    };
    Emit {
        record: Outgoing {
            topic: step.sink.clone(),
            partition: partition(&ready.causes),
            key: ready.key,
            value: Some(value.into()),
            headers: ready.headers,
        },
        causes: ready.causes,
    }
}

/// The partition of what comes first.
pub fn partition(causes: &[Arc<Input>]) -> Option<i32> {
    causes.first().map(|cause| cause.record.partition)
}

/// The different records behind these arrivals.
pub fn causes<'a>(arrivals: impl Iterator<Item = &'a Arc<Arrival>>) -> Vec<Arc<Input>> {
    let mut causes: Vec<Arc<Input>> = Vec::new();
    for arrival in arrivals {
        if !causes
            .iter()
            .any(|cause| Arc::ptr_eq(cause, &arrival.cause))
        {
            causes.push(arrival.cause.clone());
        }
    }
    causes
}

/// Marks headers as those of an error of the pipeline itself.
pub fn mark_error(headers: &mut Headers, pipeline: &str, status: u16) {
    let grpc = match status {
        400 => 3,
        503 => 14,
        _ => 13,
    };
    headers.remove(header::BATCH);
    headers.remove(header::INFER_TYPE);
    headers.set(header::ERROR, Bytes::copy_from_slice(pipeline.as_bytes()));
    headers.set(header::STATUS, status.to_string());
    headers.set(header::GRPC_STATUS, grpc.to_string());
}
