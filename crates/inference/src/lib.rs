//! The Open Inference Protocol: tensors as JSON, as typed protobuf contents and as raw bytes, and the way between.
//!
//! 64-bit integers stay exact in every direction. FP16 has no typed contents in the protocol, so a message that holds
//! an FP16 tensor is carried raw; in JSON it is written as numbers.
#![warn(missing_docs)]

mod binary;
mod datatype;
mod error;
mod half;
mod json;
mod object;
mod parameters;
mod protojson;
mod raw;
mod value;

pub use binary::{RestBody, Wanted, request_from_rest, response_to_rest};
pub use datatype::Datatype;
pub use error::{Error, Problem};
pub use json::{request_from_json, request_to_json, response_from_json, response_to_json};
pub use protojson::{from_protojson, to_protojson, to_protojson_value};
pub use raw::{pack_request, pack_response, unpack_request, unpack_response};
