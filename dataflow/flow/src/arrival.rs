//! A record as the steps see it: read once, taken apart if it is a batch.
use std::sync::Arc;

use bytes::Bytes;
use seldon_proto::inference::ModelInferRequest;
use seldon_records::{
    Headers, Identity, Record, Topic, Visits, decode_request, decode_response, header,
};

use crate::{Input, members::Member, members::read_members, rows};

/// One request's record: a record that was read, or its rows of a batch.
#[derive(Debug)]
pub struct Arrival {
    pub cause: Arc<Input>,
    pub key: Option<Bytes>,
    pub headers: Headers,
    pub identity: Identity,
    pub visits: Visits,
    pub repeat: bool,
    pub message: ModelInferRequest,
}

impl Arrival {
    /// About what it occupies while it waits: the record, and what was read from it.
    pub fn size(&self) -> usize {
        let value = self.cause.record.value.as_ref().map_or(0, Bytes::len);
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len() + 48)
            .sum();
        2 * value + headers + 256
    }
}

/// Who must be told that a record could not be taken, and why.
#[derive(Debug)]
pub struct Failure {
    pub key: Option<Bytes>,
    pub headers: Headers,
    pub identity: Identity,
    pub status: u16,
    pub text: String,
}

/// The arrivals of a record: one, or one for each member of a batch.
pub fn open(input: &Arc<Input>, topic: Option<&Topic>) -> Result<Vec<Arrival>, Vec<Failure>> {
    let record = &input.record;
    let members = members(record);
    let message = read(record, topic);
    match (members, message) {
        (Ok(None), Ok(message)) => {
            let (key, headers) = (record.key.clone(), record.headers.clone());
            Ok(vec![arrival(input, key, headers, message)])
        }
        (Ok(Some(members)), Ok(message)) => {
            let counts: Vec<usize> = members.iter().map(|member| member.rows).collect();
            let parts = rows::split(&message, &counts);
            let of_all = || rows::is_one(&message).then(|| vec![message.clone(); counts.len()]);
            let Some(parts) = parts.or_else(of_all) else {
                let total = counts
                    .iter()
                    .fold(0_usize, |sum, rows| sum.saturating_add(*rows));
                let text = format!(
                    "step {:?} answered a batch of {total} rows with tensors that have another first dimension, so \
                     that the rows cannot be told apart: remove batch from the step, or let its model keep the rows",
                    step(topic)
                );
                return Err(failures(record, Some(members), 500, &text));
            };
            let arrivals = members.into_iter().zip(parts).map(|(member, message)| {
                let headers = answered(member.headers, &record.headers);
                arrival(input, member.key, headers, message)
            });
            Ok(arrivals.collect())
        }
        (members, Err(text)) => {
            let status = if matches!(topic, Some(Topic::PipelineInputs(_))) {
                400
            } else {
                500
            };
            let text = format!("a record of topic {} was refused: {text}", record.topic);
            Err(failures(record, members.ok().flatten(), status, &text))
        }
        (Err(text), Ok(_)) => Err(failures(record, None, 500, &text)),
    }
}

/// The failures to report for a record: one, or one for each member of a batch.
pub fn failures(
    record: &Record,
    members: Option<Vec<Member>>,
    status: u16,
    text: &str,
) -> Vec<Failure> {
    let failure = |key: Option<Bytes>, headers: Headers| Failure {
        identity: identity(record, &headers),
        key,
        headers,
        status,
        text: text.to_owned(),
    };
    match members {
        None => vec![failure(record.key.clone(), record.headers.clone())],
        Some(members) => members
            .into_iter()
            .map(|member| failure(member.key, member.headers))
            .collect(),
    }
}

/// The members of a batch; `None`: it is none.
pub fn members(record: &Record) -> Result<Option<Vec<Member>>, String> {
    let header = record.headers.get(header::BATCH);
    header.map(|header| read_members(header)).transpose()
}

fn arrival(
    input: &Arc<Input>,
    key: Option<Bytes>,
    headers: Headers,
    message: ModelInferRequest,
) -> Arrival {
    Arrival {
        identity: identity(&input.record, &headers),
        visits: Visits::of(&headers),
        repeat: input.replayed
            || input.record.headers.has(header::REPEAT)
            || headers.has(header::REPEAT),
        cause: input.clone(),
        key,
        headers,
        message,
    }
}

/// As the headers say, else by the record's place.
fn identity(record: &Record, headers: &Headers) -> Identity {
    let probe = Record {
        topic: record.topic.clone(),
        partition: record.partition,
        offset: record.offset,
        key: None,
        value: None,
        headers: headers
            .get(header::ID)
            .map(|id| (header::ID, id.clone()))
            .into_iter()
            .collect(),
        timestamp_ms: 0,
    };
    Identity::of(&probe)
}

fn read(record: &Record, topic: Option<&Topic>) -> Result<ModelInferRequest, String> {
    let Some(value) = &record.value else {
        return Err("it has no value".to_owned());
    };
    let is_response = matches!(
        topic,
        Some(Topic::ModelOutputs(_) | Topic::PipelineOutputs(_))
    );
    let message = if is_response {
        let response = decode_response(&record.headers, value).map_err(|error| error.0)?;
        seldon_records::Contents::Response(response).into_request()
    } else {
        decode_request(&record.headers, value).map_err(|error| error.0)?
    };
    let (raw, tensors) = (message.raw_input_contents.len(), message.inputs.len());
    if raw != 0 && raw != tensors {
        return Err(format!("it has {raw} raw contents for {tensors} tensors"));
    }
    Ok(message)
}

fn step(topic: Option<&Topic>) -> &str {
    topic.and_then(Topic::owner).unwrap_or_default()
}

/// A member's headers with those that the batch's answer got on its way.
fn answered(mut member: Headers, answer: &Headers) -> Headers {
    for (name, value) in answer.iter() {
        if name == header::ROUTE {
            if !member
                .iter()
                .any(|(known, route)| known == name && route == value)
            {
                member.push(name, value.clone());
            }
        } else if name.starts_with("x-") && !member.has(name) {
            member.push(name, value.clone());
        }
    }
    member
}
