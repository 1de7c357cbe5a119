//! What the stand-in inference server was asked: how often each model, and of some models each request as it came.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Requests so far.
#[derive(Debug, Default)]
pub struct Ledger {
    asked: Mutex<Asked>,
    loaded: Mutex<BTreeSet<String>>,
}

/// A copy of the ledger.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Asked {
    /// Inferences by the model's name, as the agent gave it.
    pub counts: BTreeMap<String, u64>,
    /// Loads by the model's name.
    #[serde(default)]
    pub loads: BTreeMap<String, u64>,
    /// Oldest first.
    pub recorded: Vec<Inference>,
}

/// One request as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inference {
    pub model: String,
    /// `rest` or `grpc`.
    pub protocol: String,
    /// Of the body; of a gRPC message without its frame.
    pub length: usize,
    pub sha256: String,
    pub headers: Vec<(String, String)>,
}

/// No test looks at more; a server that runs on must not grow.
const KEPT: usize = 10_000;

impl Inference {
    pub(crate) fn new(model: &str, protocol: &str, headers: &HeaderMap, body: &[u8]) -> Self {
        let text =
            |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)));
        Self {
            model: model.to_owned(),
            protocol: protocol.to_owned(),
            length: body.len(),
            sha256: digest(body),
            headers: headers.collect(),
        }
    }
}

/// Returns the SHA-256 in hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

impl Ledger {
    pub(crate) fn note(&self, model: &str, inference: Option<Inference>) {
        let mut asked = self.lock();
        match asked.counts.get_mut(model) {
            Some(count) => *count += 1,
            None => drop(asked.counts.insert(model.to_owned(), 1)),
        }
        if asked.recorded.len() < KEPT {
            asked.recorded.extend(inference);
        }
    }

    /// Notes that a model was loaded, or unloaded.
    pub(crate) fn hold(&self, model: String, loaded: bool) {
        if loaded {
            *self.lock().loads.entry(model.clone()).or_default() += 1;
        }
        let mut held = self.held();
        if loaded {
            held.insert(model);
        } else {
            held.remove(&model);
        }
    }

    /// The models that are loaded.
    pub(crate) fn held(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string(&*self.lock()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
