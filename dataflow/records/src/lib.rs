//! What the parts of a pipeline exchange through Kafka: topics, records, their headers and contents.
#![warn(missing_docs)]

mod contents;
pub mod header;
mod headers;
mod names;
mod record;

pub use contents::{Contents, Undecodable, decode_request, decode_response};
pub use headers::Headers;
pub use names::{Names, PrefixError, Topic, bucket, fnv32a};
pub use record::{Identity, Outgoing, Record, Visits};
