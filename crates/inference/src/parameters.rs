//! Parameters of requests and tensors.
use std::collections::HashMap;

use seldon_proto::inference::{InferParameter, infer_parameter::ParameterChoice};
use serde_json::{Map, Value};

use crate::Error;

pub(crate) type Parameters = HashMap<String, InferParameter>;

/// Reads a JSON object; a `null` says nothing and is left out.
pub(crate) fn from_json(object: Option<Map<String, Value>>) -> Result<Parameters, Error> {
    let mut parameters = Parameters::new();
    for (name, value) in object.unwrap_or_default() {
        let choice = match &value {
            Value::Null => continue,
            Value::Bool(yes) => ParameterChoice::BoolParam(*yes),
            Value::String(text) => ParameterChoice::StringParam(text.clone()),
            Value::Number(number) => match number.as_i64() {
                Some(integer) => ParameterChoice::Int64Param(integer),
                None => return Err(Error::Parameter(name)),
            },
            Value::Array(_) | Value::Object(_) => return Err(Error::Parameter(name)),
        };
        parameters.insert(
            name,
            InferParameter {
                parameter_choice: Some(choice),
            },
        );
    }
    Ok(parameters)
}

/// Writes a JSON object, sorted by name.
pub(crate) fn to_json(parameters: &Parameters) -> Map<String, Value> {
    let mut names: Vec<_> = parameters.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    let mut object = Map::new();
    for (name, parameter) in names {
        let value = match &parameter.parameter_choice {
            None => continue,
            Some(ParameterChoice::BoolParam(yes)) => Value::from(*yes),
            Some(ParameterChoice::Int64Param(integer)) => Value::from(*integer),
            Some(ParameterChoice::StringParam(text)) => Value::from(text.as_str()),
        };
        object.insert(name.clone(), value);
    }
    object
}

/// Whether BYTES elements are texts in JSON; otherwise they are written in base64.
pub(crate) fn is_text(parameters: &Parameters) -> bool {
    let content_type = parameters
        .get("content_type")
        .and_then(|value| value.parameter_choice.as_ref());
    matches!(content_type, Some(ParameterChoice::StringParam(kind)) if kind == "str" || kind == "datetime")
}
