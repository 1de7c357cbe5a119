//! One record as the user sees it.
use std::fmt::Write as _;

use anyhow::Result;
use seldon_inference::{to_protojson_value, unpack_request, unpack_response};
use seldon_records::{Headers, Record, Topic, decode_request, decode_response, header};
use serde_json::{Map, Value, json};

/// A record, read.
pub(super) struct Message {
    key: String,
    value: Value,
    headers: Vec<(String, Vec<String>)>,
}

/// Longer values are cut where the user asks for it.
const TRUNCATED: usize = 250;

impl Message {
    /// `None` where only one tensor is wanted and the record has no such.
    pub(super) fn of(record: &Record, topic: &Topic, tensor: Option<&str>) -> Option<Self> {
        let value = record.value.as_deref().unwrap_or_default();
        let text = || Value::String(String::from_utf8_lossy(value).into_owned());
        let shown = if record.headers.has(header::ERROR) || *topic == Topic::Errors {
            Ok(Some(text()))
        } else {
            contents(&record.headers, value, topic, tensor)
        };
        let value = match shown {
            Ok(value) => value?,
            Err(error) => json!({"error": error.to_string(), "text": text()}),
        };
        Some(Self {
            key: String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned(),
            value,
            headers: grouped(&record.headers),
        })
    }

    /// `topic⇥key⇥json`, and the headers as Go prints lists.
    pub(super) fn line(&self, topic: &str, verbose: bool, truncate: bool) -> String {
        let mut value = self.value.to_string();
        if truncate && let Some((cut, _)) = value.char_indices().nth(TRUNCATED) {
            value.truncate(cut);
            value.push_str("...");
        }
        let mut line = format!("{topic}\t{}\t{value}", self.key);
        for (name, values) in self.headers.iter().filter(|_| verbose) {
            // Writing into a string cannot fail.
            let _ = write!(line, "\t{name}=[{}]", values.join(" "));
        }
        line
    }

    pub(super) fn json(&self) -> Value {
        let headers: Map<String, Value> = self
            .headers
            .iter()
            .map(|(name, values)| (name.clone(), json!(values)))
            .collect();
        json!({"headers": headers, "key": self.key, "value": self.value})
    }
}

/// A request shows its raw contents as well as their values, a response only values, as documented.
fn contents(
    headers: &Headers,
    value: &[u8],
    topic: &Topic,
    tensor: Option<&str>,
) -> Result<Option<Value>> {
    if matches!(topic, Topic::ModelInputs(_) | Topic::PipelineInputs(_)) {
        let mut request = decode_request(headers, value)?;
        let raw = request.raw_input_contents.clone();
        unpack_request(&mut request)?;
        let Some(name) = tensor else {
            request.raw_input_contents = raw;
            return Ok(Some(to_protojson_value(&request)?));
        };
        let found = request.inputs.iter().find(|input| input.name == name);
        Ok(found.map(to_protojson_value).transpose()?)
    } else {
        let mut response = decode_response(headers, value)?;
        unpack_response(&mut response)?;
        let Some(name) = tensor else {
            return Ok(Some(to_protojson_value(&response)?));
        };
        let found = response.outputs.iter().find(|output| output.name == name);
        Ok(found.map(to_protojson_value).transpose()?)
    }
}

fn grouped(headers: &Headers) -> Vec<(String, Vec<String>)> {
    let mut grouped: Vec<(String, Vec<String>)> = Vec::new();
    for (name, value) in headers.iter() {
        let value = String::from_utf8_lossy(value).into_owned();
        match grouped.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value),
            None => grouped.push((name.to_owned(), vec![value])),
        }
    }
    grouped
}
