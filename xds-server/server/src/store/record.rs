//! Records as bytes. Field numbers are for ever.
use std::sync::Arc;

use prost::Message;
use seldon_core::Record;
use seldon_proto::scheduler::Model;

use super::StoreError;

#[derive(Clone, PartialEq, Message)]
struct ModelRecord {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, optional, tag = "2")]
    spec: Option<Model>,
    #[prost(bool, tag = "3")]
    deleted: bool,
    #[prost(uint32, tag = "4")]
    born: u32,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ServerRecord {
    #[prost(uint32, tag = "1")]
    expected_replicas: u32,
    #[prost(uint32, tag = "2")]
    min_replicas: u32,
    #[prost(uint32, tag = "3")]
    max_replicas: u32,
}

/// What a record is filed under, and its bytes.
pub(super) enum Encoded<'a> {
    Model(&'a str, Vec<u8>),
    Server(&'a str, Vec<u8>),
}

pub(super) fn encode(record: &Record) -> Encoded<'_> {
    match record {
        Record::Model {
            name,
            version,
            spec,
            deleted,
            born,
        } => {
            let value = ModelRecord {
                born: *born,
                version: *version,
                spec: Some(Model::clone(spec)),
                deleted: *deleted,
            };
            Encoded::Model(name, value.encode_to_vec())
        }
        Record::Server {
            name,
            expected_replicas,
            min_replicas,
            max_replicas,
        } => {
            let value = ServerRecord {
                expected_replicas: *expected_replicas,
                min_replicas: *min_replicas,
                max_replicas: *max_replicas,
            };
            Encoded::Server(name, value.encode_to_vec())
        }
    }
}

pub(super) fn model(name: &str, bytes: &[u8]) -> Result<Record, StoreError> {
    let value = ModelRecord::decode(bytes).map_err(unreadable("model", name))?;
    Ok(Record::Model {
        name: name.into(),
        version: value.version,
        spec: Arc::new(value.spec.unwrap_or_default()),
        deleted: value.deleted,
        born: value.born,
    })
}

pub(super) fn server(name: &str, bytes: &[u8]) -> Result<Record, StoreError> {
    let value = ServerRecord::decode(bytes).map_err(unreadable("server", name))?;
    Ok(Record::Server {
        name: name.into(),
        expected_replicas: value.expected_replicas,
        min_replicas: value.min_replicas,
        max_replicas: value.max_replicas,
    })
}

fn unreadable(kind: &'static str, name: &str) -> impl FnOnce(prost::DecodeError) -> StoreError {
    move |cause| StoreError::Record {
        kind,
        name: name.into(),
        cause,
    }
}
