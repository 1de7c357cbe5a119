//! OpenAI's API through the proxy to a real server that says what a test wants.
#![allow(clippy::unwrap_used)] // a test may
mod answers;
mod refusals;
mod server;
mod streams;
#[path = "../support/mod.rs"]
mod support;
