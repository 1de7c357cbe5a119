//! What can be wrong with a tensor.
use crate::Datatype;

/// A message that cannot be carried over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not the shape of the protocol.
    #[error("not a message of the inference protocol: {0}")]
    Json(#[from] serde_json::Error),
    /// One of its tensors is at fault.
    #[error("tensor \"{tensor}\": {problem}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A parameter has a value that the protobuf form cannot hold.
    #[error("parameter \"{0}\" must be a string, a boolean or a 64-bit integer")]
    Parameter(String),
    /// There must be one raw content a tensor.
    #[error("{raw} raw contents for {tensors} tensors")]
    RawCount {
        /// Raw contents in the message.
        raw: usize,
        /// Tensors in the message.
        tensors: usize,
    },
    /// The bytes behind the JSON are not what the JSON says.
    #[error("binary tensors: {0}")]
    Binary(String),
    /// Not protobuf's JSON form of the message wanted.
    #[error("not the JSON form of {message}: {reason}")]
    ProtoJson {
        /// The message's full name.
        message: String,
        /// Where and what.
        reason: String,
    },
}

/// What is wrong with one tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// None of the thirteen.
    #[error(
        "datatype \"{0}\" is not known, expected BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64 or BYTES"
    )]
    Datatype(String),
    /// An element that its type cannot hold.
    #[error("element {index} is not {datatype}: {found}")]
    Element {
        /// Its place in the flat list.
        index: usize,
        /// The tensor's type.
        datatype: Datatype,
        /// What stands there, cut short.
        found: String,
    },
    /// `data` missing or not a list.
    #[error("data is missing or not a list")]
    Data,
    /// More or fewer elements than the shape says.
    #[error("{found} elements, but the shape {shape:?} holds {wanted}")]
    Count {
        /// Elements found.
        found: usize,
        /// The shape as given.
        shape: Vec<i64>,
        /// Elements that it holds.
        wanted: u128,
    },
    /// A dimension below zero.
    #[error("the shape {0:?} has a negative dimension")]
    Shape(Vec<i64>),
    /// Both `data` and `binary_data_size`.
    #[error("it has both data and binary_data_size")]
    Twice,
    /// Raw bytes that end inside an element.
    #[error("{0} raw bytes are not a whole number of {1} elements")]
    Raw(usize, Datatype),
}

impl Problem {
    pub(crate) fn of(self, tensor: &str) -> Error {
        Error::Tensor {
            tensor: tensor.to_owned(),
            problem: self,
        }
    }
}
