//! Whole requests and responses, JSON to protobuf and back.
use bytes::Bytes;
use seldon_proto::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    model_infer_response::InferOutputTensor,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    Datatype, Error, Problem,
    object::{self, Object},
    parameters::{self, Parameters},
    raw, value,
};

#[derive(Deserialize)]
pub(crate) struct Message {
    #[serde(default)]
    model_name: Option<String>,
    #[serde(default)]
    model_version: Option<String>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    pub(crate) parameters: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "object::list")]
    pub(crate) inputs: Option<Vec<Tensor>>,
    #[serde(default, deserialize_with = "object::list")]
    pub(crate) outputs: Option<Vec<Tensor>>,
}

impl Message {
    pub(crate) fn read(text: &[u8]) -> Result<Self, Error> {
        let Object(message) = serde_json::from_slice(text)?;
        Ok(message)
    }
}

#[derive(Deserialize)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    #[serde(default)]
    datatype: Option<String>,
    #[serde(default)]
    shape: Option<Vec<i64>>,
    #[serde(default)]
    pub(crate) parameters: Option<Map<String, Value>>,
    #[serde(default)]
    pub(crate) data: Value,
    /// What came behind the JSON in place of `data`.
    #[serde(skip)]
    pub(crate) binary: Option<Bytes>,
}

/// Reads a request's JSON. Contents are typed; with an FP16 tensor among them, all are raw.
pub fn request_from_json(text: &[u8]) -> Result<ModelInferRequest, Error> {
    request_from_message(Message::read(text)?)
}

/// A request of what was read; with a binary or an FP16 tensor among them, all are raw.
pub(crate) fn request_from_message(message: Message) -> Result<ModelInferRequest, Error> {
    let mut request = ModelInferRequest {
        model_name: message.model_name.unwrap_or_default(),
        model_version: message.model_version.unwrap_or_default(),
        id: message.id.unwrap_or_default(),
        parameters: parameters::from_json(message.parameters)?,
        ..Default::default()
    };
    let mut binaries = Vec::new();
    for mut tensor in message.inputs.unwrap_or_default() {
        let binary = tensor.binary.take();
        let (datatype, contents) = match &binary {
            Some(raw) => (check_binary(&tensor, raw)?, None),
            None => read_tensor(&tensor).map(|(datatype, contents)| (datatype, Some(contents)))?,
        };
        binaries.push((datatype, binary));
        request.inputs.push(InferInputTensor {
            name: tensor.name,
            datatype: datatype.name().to_owned(),
            shape: tensor.shape.unwrap_or_default(),
            parameters: parameters::from_json(tensor.parameters)?,
            contents,
        });
    }
    for output in message.outputs.unwrap_or_default() {
        request.outputs.push(InferRequestedOutputTensor {
            name: output.name,
            parameters: parameters::from_json(output.parameters)?,
        });
    }
    let raw = |(datatype, binary): &(Datatype, Option<Bytes>)| {
        *datatype == Datatype::Fp16 || binary.is_some()
    };
    if binaries.iter().any(raw) {
        for (tensor, (datatype, binary)) in request.inputs.iter_mut().zip(binaries) {
            let raw = match (binary, tensor.contents.take()) {
                (Some(raw), _) => raw,
                (None, contents) => raw::to_raw(datatype, &contents.unwrap_or_default())
                    .map_err(|problem| problem.of(&tensor.name))?,
            };
            request.raw_input_contents.push(raw);
        }
    }
    Ok(request)
}

/// Reads a response's JSON. Contents are typed; with an FP16 tensor among them, all are raw.
pub fn response_from_json(text: &[u8]) -> Result<ModelInferResponse, Error> {
    let message = Message::read(text)?;
    let mut response = ModelInferResponse {
        model_name: message.model_name.unwrap_or_default(),
        model_version: message.model_version.unwrap_or_default(),
        id: message.id.unwrap_or_default(),
        parameters: parameters::from_json(message.parameters)?,
        ..Default::default()
    };
    for tensor in message.outputs.unwrap_or_default() {
        let (datatype, contents) = read_tensor(&tensor)?;
        response.outputs.push(InferOutputTensor {
            name: tensor.name,
            datatype: datatype.name().to_owned(),
            shape: tensor.shape.unwrap_or_default(),
            parameters: parameters::from_json(tensor.parameters)?,
            contents: Some(contents),
        });
    }
    if response
        .outputs
        .iter()
        .any(|tensor| tensor.datatype == Datatype::Fp16.name())
    {
        raw::pack_response(&mut response)?;
    }
    Ok(response)
}

/// Writes a request as JSON, with flat data.
pub fn request_to_json(request: &ModelInferRequest) -> Result<Value, Error> {
    let mut object = head(&request.id, &request.parameters);
    check_raw(request.raw_input_contents.len(), request.inputs.len())?;
    let mut inputs = Vec::new();
    for (index, tensor) in request.inputs.iter().enumerate() {
        let raw = request.raw_input_contents.get(index).map(AsRef::as_ref);
        let data = write_data(
            &tensor.name,
            &tensor.datatype,
            tensor.contents.as_ref(),
            raw,
            &tensor.parameters,
        )?;
        inputs.push(write_tensor(
            data,
            &tensor.name,
            &tensor.shape,
            &tensor.datatype,
            &tensor.parameters,
        ));
    }
    object.insert("inputs".to_owned(), inputs.into());
    if !request.outputs.is_empty() {
        let outputs = request.outputs.iter().map(|output| {
            let mut object = Map::new();
            object.insert("name".to_owned(), output.name.as_str().into());
            insert_parameters(&mut object, &output.parameters);
            Value::Object(object)
        });
        object.insert("outputs".to_owned(), outputs.collect());
    }
    Ok(Value::Object(object))
}

/// Writes a response as JSON, with flat data; `model_name` is always there.
pub fn response_to_json(response: &ModelInferResponse) -> Result<Value, Error> {
    let mut object = Map::new();
    object.insert("model_name".to_owned(), response.model_name.as_str().into());
    if !response.model_version.is_empty() {
        object.insert(
            "model_version".to_owned(),
            response.model_version.as_str().into(),
        );
    }
    object.extend(head(&response.id, &response.parameters));
    check_raw(response.raw_output_contents.len(), response.outputs.len())?;
    let mut outputs = Vec::new();
    for (index, tensor) in response.outputs.iter().enumerate() {
        let raw = response.raw_output_contents.get(index).map(AsRef::as_ref);
        let data = write_data(
            &tensor.name,
            &tensor.datatype,
            tensor.contents.as_ref(),
            raw,
            &tensor.parameters,
        )?;
        outputs.push(write_tensor(
            data,
            &tensor.name,
            &tensor.shape,
            &tensor.datatype,
            &tensor.parameters,
        ));
    }
    object.insert("outputs".to_owned(), outputs.into());
    Ok(Value::Object(object))
}

/// The type of a tensor that came binary, if its size fits its shape.
fn check_binary(tensor: &Tensor, raw: &[u8]) -> Result<Datatype, Error> {
    let check = || {
        let datatype: Datatype = tensor.datatype.as_deref().unwrap_or_default().parse()?;
        if !tensor.data.is_null() {
            return Err(Problem::Twice);
        }
        let found = raw::len(datatype, raw)?;
        check_count(tensor.shape.as_deref().unwrap_or_default(), found)?;
        Ok(datatype)
    };
    check().map_err(|problem: Problem| problem.of(&tensor.name))
}

pub(crate) fn check_raw(raw: usize, tensors: usize) -> Result<(), Error> {
    if raw == 0 || raw == tensors {
        Ok(())
    } else {
        Err(Error::RawCount { raw, tensors })
    }
}

fn read_tensor(tensor: &Tensor) -> Result<(Datatype, InferTensorContents), Error> {
    let read = || {
        let datatype: Datatype = tensor.datatype.as_deref().unwrap_or_default().parse()?;
        let contents = value::from_json(datatype, &tensor.data)?;
        if let Some(shape) = &tensor.shape {
            check_count(shape, value::len(datatype, &contents))?;
        }
        Ok((datatype, contents))
    };
    read().map_err(|problem: Problem| problem.of(&tensor.name))
}

fn check_count(shape: &[i64], found: usize) -> Result<(), Problem> {
    let mut wanted: u128 = 1;
    for dimension in shape {
        let dimension = u128::try_from(*dimension).map_err(|_| Problem::Shape(shape.to_vec()))?;
        wanted = wanted.saturating_mul(dimension);
    }
    if wanted == found as u128 {
        Ok(())
    } else {
        Err(Problem::Count {
            found,
            shape: shape.to_vec(),
            wanted,
        })
    }
}

fn write_data(
    name: &str,
    datatype: &str,
    contents: Option<&InferTensorContents>,
    raw: Option<&[u8]>,
    parameters: &Parameters,
) -> Result<Value, Error> {
    let write = || {
        let datatype: Datatype = datatype.parse()?;
        let text = parameters::is_text(parameters);
        Ok(match (raw, contents) {
            (Some(raw), _) => value::to_json(datatype, &raw::from_raw(datatype, raw)?, text),
            (None, Some(contents)) => value::to_json(datatype, contents, text),
            (None, None) => json!([]),
        })
    };
    write().map_err(|problem: Problem| problem.of(name))
}

fn write_tensor(
    data: Value,
    name: &str,
    shape: &[i64],
    datatype: &str,
    parameters: &Parameters,
) -> Value {
    let mut object = Map::new();
    object.insert("data".to_owned(), data);
    object.insert("name".to_owned(), name.into());
    object.insert("shape".to_owned(), shape.into());
    object.insert("datatype".to_owned(), datatype.into());
    insert_parameters(&mut object, parameters);
    Value::Object(object)
}

fn head(id: &str, parameters: &Parameters) -> Map<String, Value> {
    let mut object = Map::new();
    if !id.is_empty() {
        object.insert("id".to_owned(), id.into());
    }
    insert_parameters(&mut object, parameters);
    object
}

fn insert_parameters(object: &mut Map<String, Value>, parameters: &Parameters) {
    if !parameters.is_empty() {
        object.insert(
            "parameters".to_owned(),
            parameters::to_json(parameters).into(),
        );
    }
}
