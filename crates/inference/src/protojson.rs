//! Protobuf's JSON form: 64-bit integers as strings, fields in the order of their declaration, maps sorted.
use prost::{Message, Name};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions};
use seldon_proto::POOL;
use serde_json::{Map, Value};

use crate::Error;

/// Writes a message on one line.
pub fn to_protojson<M: Message + Name>(message: &M) -> Result<String, Error> {
    Ok(to_protojson_value(message)?.to_string())
}

/// Writes a message as a JSON value.
pub fn to_protojson_value<M: Message + Name>(message: &M) -> Result<Value, Error> {
    let descriptor = descriptor::<M>()?;
    let mut dynamic = DynamicMessage::new(descriptor.clone());
    dynamic
        .transcode_from(message)
        .map_err(|error| failed::<M>(&error))?;
    let value =
        dynamic.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())?;
    Ok(ordered(value, &descriptor))
}

/// Reads a message; names may be written as declared or in camel case, unknown ones are refused.
pub fn from_protojson<M: Message + Name + Default>(text: &str) -> Result<M, Error> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let dynamic = DynamicMessage::deserialize(descriptor::<M>()?, &mut reader)
        .map_err(|error| failed::<M>(&error))?;
    reader.end().map_err(|error| failed::<M>(&error))?;
    dynamic.transcode_to().map_err(|error| failed::<M>(&error))
}

fn failed<M: Name>(reason: &dyn std::fmt::Display) -> Error {
    Error::ProtoJson {
        message: M::full_name(),
        reason: reason.to_string(),
    }
}

fn descriptor<M: Name>() -> Result<MessageDescriptor, Error> {
    POOL.get_message_by_name(&M::full_name())
        .ok_or_else(|| failed::<M>(&"the message is not in the descriptors"))
}

/// Puts fields into the order of declaration and map entries into the order of their keys.
fn ordered(value: Value, message: &MessageDescriptor) -> Value {
    let mut object = match value {
        // Well-known types have forms of their own.
        Value::Object(object) if !message.full_name().starts_with("google.protobuf.") => object,
        other => return other,
    };
    let mut fields: Vec<(Vec<i32>, FieldDescriptor)> = message
        .fields()
        .map(|field| (field.path().to_vec(), field))
        .collect();
    fields.sort_by(|(left, _), (right, _)| left.cmp(right));
    let mut sorted = Map::new();
    for (_, field) in fields {
        if let Some((name, value)) = object.remove_entry(field.json_name()) {
            sorted.insert(name, ordered_field(value, &field));
        }
    }
    sorted.extend(object);
    Value::Object(sorted)
}

fn ordered_field(value: Value, field: &FieldDescriptor) -> Value {
    let Kind::Message(inner) = field.kind() else {
        return value;
    };
    match value {
        Value::Object(entries) if field.is_map() => {
            let mut entries: Vec<_> = entries.into_iter().collect();
            entries.sort_by(|(left, _), (right, _)| key_order(left).cmp(&key_order(right)));
            let value_field = inner.map_entry_value_field();
            let sorted: Map<_, _> = entries
                .into_iter()
                .map(|(key, value)| (key, ordered_field(value, &value_field)))
                .collect();
            Value::Object(sorted)
        }
        Value::Array(items) => items
            .into_iter()
            .map(|item| ordered(item, &inner))
            .collect(),
        other => ordered(other, &inner),
    }
}

/// Numbers by their value, texts after them.
fn key_order(key: &str) -> (Option<i64>, &str) {
    (key.parse().ok(), key)
}
