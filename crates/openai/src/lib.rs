//! OpenAI's API, spoken to models that know the Open Inference Protocol: chat completions, completions, embeddings and
//! images become tensors, and tensors become answers or the chunks of a stream. JSON in, JSON out; no I/O, no clock.
//!
//! # Tensors of a request
//! Every tensor is BYTES with content type `str`; what is no text is its JSON as a text.
//!
//! | call | tensors |
//! |---|---|
//! | chat | one element a message: `role`, `content`, `type`, and where a message has them `tool_calls`, `tool_call_id`, `name`; `tools`, `tool_choice`, `parallel_tool_calls` |
//! | completions, images | `prompt` |
//! | embeddings | `input` |
//!
//! Token numbers in place of texts are one INT64 tensor. All other options pass unread as
//! `parameters.llm_parameters`; `model`, `stream` and an embedding's `encoding_format` are between the client and us.
//!
//! # Memory
//! Messages and options are written to the request as they are read, so what is held is what came and what goes.
#![warn(missing_docs)]

mod answer;
mod chat;
mod embeddings;
mod failure;
mod images;
mod messages;
mod models;
mod object;
mod request;
mod sse;
mod stream;
mod tensors;
mod texts;

pub use answer::from_inference;
pub use failure::{Failure, error_of_model};
pub use models::models;
pub use request::{Asked, to_inference};
pub use stream::Events;

/// What a client calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `/chat/completions`
    Chat,
    /// `/completions`, the older form without roles.
    Completions,
    /// `/embeddings`
    Embeddings,
    /// `/images/generations`
    Images,
}

impl Call {
    /// Whether its answer may be streamed.
    pub fn streams(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    /// What an answer says that it is; none where the API names none.
    fn object(self) -> Option<&'static str> {
        match self {
            Self::Chat => Some("chat.completion"),
            Self::Completions => Some("text_completion"),
            Self::Embeddings => Some("list"),
            Self::Images => None,
        }
    }

    /// The same for a chunk of a stream.
    fn chunk_object(self) -> Option<&'static str> {
        match self {
            Self::Chat => Some("chat.completion.chunk"),
            other => other.object(),
        }
    }

    /// What identifiers of its answers begin with; none where they have none.
    fn id_prefix(self) -> Option<&'static str> {
        match self {
            Self::Chat => Some("chatcmpl-"),
            Self::Completions => Some("cmpl-"),
            Self::Embeddings | Self::Images => None,
        }
    }
}

/// What an answer needs to know of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// What was called.
    pub call: Call,
    /// Identifies the request.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model as the client named it.
    pub model: String,
    /// Embeddings are wanted as base64 of little-endian 32-bit floats.
    pub base64: bool,
    /// A stream is to end with what it used, if the model tells.
    pub include_usage: bool,
}
