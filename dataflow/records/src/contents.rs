//! A record's value: a request or a response, in any of the documented encodings.
use prost::Message;
use seldon_inference::{request_from_json, response_from_json};
use seldon_proto::inference::{
    ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor,
    model_infer_response::InferOutputTensor,
};

use crate::{Headers, header};

/// A request or a response.
#[derive(Clone, Debug, PartialEq)]
pub enum Contents {
    /// As on inputs topics.
    Request(ModelInferRequest),
    /// As on outputs topics.
    Response(ModelInferResponse),
}

/// A value that is neither; the text says what was tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the record cannot be read: {0}")]
pub struct Undecodable(pub String);

impl Contents {
    /// As a request: a response's outputs become inputs.
    pub fn into_request(self) -> ModelInferRequest {
        match self {
            Self::Request(request) => request,
            Self::Response(response) => ModelInferRequest {
                id: response.id,
                parameters: response.parameters,
                inputs: response.outputs.into_iter().map(as_input).collect(),
                raw_input_contents: response.raw_output_contents,
                ..Default::default()
            },
        }
    }

    /// As a response: a request's inputs become outputs.
    pub fn into_response(self) -> ModelInferResponse {
        match self {
            Self::Response(response) => response,
            Self::Request(request) => ModelInferResponse {
                id: request.id,
                parameters: request.parameters,
                outputs: request.inputs.into_iter().map(as_output).collect(),
                raw_output_contents: request.raw_input_contents,
                ..Default::default()
            },
        }
    }
}

fn as_input(tensor: InferOutputTensor) -> InferInputTensor {
    InferInputTensor {
        name: tensor.name,
        datatype: tensor.datatype,
        shape: tensor.shape,
        parameters: tensor.parameters,
        contents: tensor.contents,
    }
}

fn as_output(tensor: InferInputTensor) -> InferOutputTensor {
    InferOutputTensor {
        name: tensor.name,
        datatype: tensor.datatype,
        shape: tensor.shape,
        parameters: tensor.parameters,
        contents: tensor.contents,
    }
}

/// Reads the value of a record on an inputs topic. Without the header that says how, a protobuf request is tried, then
/// JSON (where outputs count as inputs).
pub fn decode_request(headers: &Headers, value: &[u8]) -> Result<ModelInferRequest, Undecodable> {
    decode(headers, value, true).map(Contents::into_request)
}

/// Reads the value of a record on an outputs topic.
pub fn decode_response(headers: &Headers, value: &[u8]) -> Result<ModelInferResponse, Undecodable> {
    decode(headers, value, false).map(Contents::into_response)
}

fn decode(headers: &Headers, value: &[u8], request: bool) -> Result<Contents, Undecodable> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Undecodable(format!("it is no {what}: {error}"))
    };
    match headers
        .text(header::INFER_TYPE)
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        None | Some("") => undeclared(value, request),
        Some("proto/infermodelrequest") => ModelInferRequest::decode(value)
            .map(Contents::Request)
            .map_err(|error| failed("protobuf ModelInferRequest", &error)),
        Some("proto/infermodelresponse") => ModelInferResponse::decode(value)
            .map(Contents::Response)
            .map_err(|error| failed("protobuf ModelInferResponse", &error)),
        Some("json/infermodelrequest") => request_from_json(value)
            .map(Contents::Request)
            .map_err(|error| failed("JSON request", &error)),
        Some("json/infermodelresponse") => response_from_json(value)
            .map(Contents::Response)
            .map_err(|error| failed("JSON response", &error)),
        Some(other) => Err(Undecodable(format!(
            "{} is {other:?}: use json/inferModelRequest, json/inferModelResponse, proto/InferModelRequest or \
             proto/InferModelResponse",
            header::INFER_TYPE
        ))),
    }
}

/// JSON begins with a brace, which in protobuf would be a group of field 15 that no message has.
fn undeclared(value: &[u8], request: bool) -> Result<Contents, Undecodable> {
    let value = unframed(value);
    let text = value.trim_ascii_start();
    if text.first() == Some(&b'{') {
        return json(text);
    }
    // Both kinds begin alike: where both could be read, the one that fits the topic is meant. They have their tensors in
    // the same field, so the other would not find any more of them.
    let (as_request, as_response) = (
        || ModelInferRequest::decode(value).map(Contents::Request),
        || ModelInferResponse::decode(value).map(Contents::Response),
    );
    let read = if request {
        as_request().or_else(|error| as_response().map_err(|_| error))
    } else {
        as_response().or_else(|_| as_request())
    };
    read.map_err(|error| Undecodable(format!("it is neither protobuf ({error}) nor JSON")))
}

fn json(text: &[u8]) -> Result<Contents, Undecodable> {
    let request = request_from_json(text);
    match request {
        Ok(request) if !request.inputs.is_empty() => Ok(Contents::Request(request)),
        request => match response_from_json(text) {
            Ok(response) if !response.outputs.is_empty() => Ok(Contents::Response(response)),
            _ => request
                .map(Contents::Request)
                .map_err(|error| Undecodable(format!("it is no JSON request: {error}"))),
        },
    }
}

/// Without a schema registry's frame: a zero, four bytes of a schema's number, a zero. No message begins with a zero.
fn unframed(value: &[u8]) -> &[u8] {
    match value {
        [0, _, _, _, _, 0, message @ ..] => message,
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> ModelInferRequest {
        let text = br#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT32","data":[7]}]}"#;
        request_from_json(text).expect("a valid request")
    }

    #[test]
    fn every_documented_encoding() {
        let none = Headers::new();
        let protobuf = request().encode_to_vec();
        assert_eq!(decode_request(&none, &protobuf), Ok(request()));
        let framed = [&[0, 0, 0, 0, 9, 0], &protobuf[..]].concat();
        assert_eq!(decode_request(&none, &framed), Ok(request()));
        let response = Contents::Request(request()).into_response();
        assert_eq!(
            decode_request(&none, &response.encode_to_vec()),
            Ok(request())
        );
        assert_eq!(
            decode_response(&none, &response.encode_to_vec()),
            Ok(response)
        );
        let json = br#" {"outputs":[{"name":"x","shape":[1],"datatype":"INT32","data":[7]}]}"#;
        assert_eq!(decode_request(&none, json), Ok(request()));
        let declared: Headers = [(header::INFER_TYPE, "proto/InferModelRequest")]
            .into_iter()
            .collect();
        assert_eq!(decode_request(&declared, &protobuf), Ok(request()));
        assert!(decode_request(&declared, b"{}").is_err());
        let wrong: Headers = [(header::INFER_TYPE, "xml")].into_iter().collect();
        assert!(decode_request(&wrong, &protobuf).is_err());
        assert!(decode_request(&none, b"\xff\xff nonsense").is_err());
    }
}
