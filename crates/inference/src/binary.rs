//! The binary tensor extension of REST: tensors as raw bytes behind the JSON that describes them.
//!
//! The header `Inference-Header-Content-Length` holds the length of the JSON. A tensor with the parameter
//! `binary_data_size` has that many bytes behind it, in the order of the tensors.
use bytes::Bytes;
use seldon_proto::inference::{ModelInferRequest, ModelInferResponse};
use serde_json::{Map, Value};

use crate::{
    Datatype, Error, Problem,
    json::{Message, check_raw, request_from_message},
    parameters, raw, value,
};

const SIZE: &str = "binary_data_size";
const ONE_OUTPUT: &str = "binary_data";
const ALL_OUTPUTS: &str = "binary_data_output";

/// Which outputs a request asks for in binary form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    all: bool,
    outputs: Vec<(String, bool)>,
}

/// A response's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestBody {
    /// JSON, and the binary outputs behind it.
    pub bytes: Bytes,
    /// Of the JSON, where there are binary outputs.
    pub json_length: Option<usize>,
}

impl Wanted {
    /// Takes the parameters that only concern the form of the answer.
    fn take(message: &mut Message) -> Result<Self, Error> {
        let all = take_flag(&mut message.parameters, ALL_OUTPUTS)?.unwrap_or(false);
        let mut outputs = Vec::new();
        for output in message.outputs.iter_mut().flatten() {
            if let Some(binary) = take_flag(&mut output.parameters, ONE_OUTPUT)? {
                outputs.push((output.name.clone(), binary));
            }
        }
        Ok(Self { all, outputs })
    }

    /// Whether an output goes out in binary form.
    pub fn binary(&self, output: &str) -> bool {
        let named = self.outputs.iter().find(|(name, _)| name == output);
        named.map_or(self.all, |(_, binary)| *binary)
    }
}

fn take(parameters: &mut Option<Map<String, Value>>, name: &str) -> Option<Value> {
    parameters.as_mut()?.shift_remove(name)
}

fn take_flag(
    parameters: &mut Option<Map<String, Value>>,
    name: &str,
) -> Result<Option<bool>, Error> {
    match take(parameters, name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(yes)) => Ok(Some(yes)),
        Some(_) => Err(Error::Binary(format!(
            "parameter \"{name}\" must be true or false"
        ))),
    }
}

/// Reads a request's body; `json_length` is the header's value, if there is one. Binary tensors are not copied.
pub fn request_from_rest(
    body: &Bytes,
    json_length: Option<usize>,
) -> Result<(ModelInferRequest, Wanted), Error> {
    let length = json_length.unwrap_or(body.len());
    if length > body.len() {
        let reason = format!(
            "the header says {length} bytes of JSON, the body has {}",
            body.len()
        );
        return Err(Error::Binary(reason));
    }
    let mut message = Message::read(&body[..length])?;
    let wanted = Wanted::take(&mut message)?;
    let mut rest = body.slice(length..);
    for tensor in message.inputs.iter_mut().flatten() {
        let Some(size) = take(&mut tensor.parameters, SIZE) else {
            continue;
        };
        let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
        match size {
            Some(size) if size <= rest.len() => tensor.binary = Some(rest.split_to(size)),
            Some(size) => {
                let (name, left) = (&tensor.name, rest.len());
                let reason = format!("tensor \"{name}\" has {size} bytes, but {left} are left");
                return Err(Error::Binary(reason));
            }
            None => {
                let reason = format!("{SIZE} of tensor \"{}\" is not a length", tensor.name);
                return Err(Error::Binary(reason));
            }
        }
    }
    if !rest.is_empty() {
        let reason = format!("{} bytes belong to no tensor", rest.len());
        return Err(Error::Binary(reason));
    }
    Ok((request_from_message(message)?, wanted))
}

/// Writes a response as a body, with the outputs wanted in binary form behind the JSON.
pub fn response_to_rest(response: &ModelInferResponse, wanted: &Wanted) -> Result<RestBody, Error> {
    check_raw(response.raw_output_contents.len(), response.outputs.len())?;
    let mut out = Vec::with_capacity(256 + response.outputs.len() * 128);
    out.extend_from_slice(b"{\"model_name\":");
    serde_json::to_writer(&mut out, &response.model_name)?;
    for (name, value) in [
        (&b",\"model_version\":"[..], &response.model_version),
        (b",\"id\":", &response.id),
    ] {
        if !value.is_empty() {
            out.extend_from_slice(name);
            serde_json::to_writer(&mut out, value)?;
        }
    }
    write_parameters(&mut out, parameters::to_json(&response.parameters))?;
    out.extend_from_slice(b",\"outputs\":[");
    let mut binaries = Vec::new();
    for index in 0..response.outputs.len() {
        if index > 0 {
            out.push(b',');
        }
        let binary = write_output(&mut out, response, index, wanted)?;
        binaries.extend(binary);
    }
    out.extend_from_slice(b"]}");
    let json_length = (!binaries.is_empty()).then_some(out.len());
    for binary in binaries {
        out.extend_from_slice(&binary);
    }
    let bytes = out.into();
    Ok(RestBody { bytes, json_length })
}

/// Writes one output; returns its bytes where they go behind the JSON.
fn write_output(
    out: &mut Vec<u8>,
    response: &ModelInferResponse,
    index: usize,
    wanted: &Wanted,
) -> Result<Option<Bytes>, Error> {
    let tensor = &response.outputs[index];
    let mut parameters = parameters::to_json(&tensor.parameters);
    let text = parameters::is_text(&tensor.parameters);
    let failed = |problem: Problem| problem.of(&tensor.name);
    let datatype: Datatype = tensor.datatype.parse().map_err(failed)?;
    let raw = response.raw_output_contents.get(index);
    let none = Default::default();
    let typed = tensor.contents.as_ref().unwrap_or(&none);
    let binary = match raw {
        _ if !wanted.binary(&tensor.name) => None,
        Some(raw) => Some(raw.clone()),
        None => Some(raw::to_raw(datatype, typed).map_err(failed)?),
    };
    out.push(b'{');
    if let Some(binary) = &binary {
        parameters.insert(SIZE.to_owned(), binary.len().into());
    } else {
        out.extend_from_slice(b"\"data\":");
        match raw {
            Some(raw) => {
                let contents = raw::from_raw(datatype, raw).map_err(failed)?;
                value::write_json(datatype, &contents, text, out)?;
            }
            None => value::write_json(datatype, typed, text, out)?,
        }
        out.push(b',');
    }
    out.extend_from_slice(b"\"name\":");
    serde_json::to_writer(&mut *out, &tensor.name)?;
    out.extend_from_slice(b",\"shape\":");
    serde_json::to_writer(&mut *out, &tensor.shape)?;
    out.extend_from_slice(b",\"datatype\":");
    serde_json::to_writer(&mut *out, &tensor.datatype)?;
    write_parameters(out, parameters)?;
    out.push(b'}');
    Ok(binary)
}

fn write_parameters(out: &mut Vec<u8>, parameters: Map<String, Value>) -> Result<(), Error> {
    if !parameters.is_empty() {
        out.extend_from_slice(b",\"parameters\":");
        serde_json::to_writer(out, &parameters)?;
    }
    Ok(())
}
