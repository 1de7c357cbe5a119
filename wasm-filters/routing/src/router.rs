//! What the filter does with one request.

use std::borrow::Cow;

use crate::{
    CLIENT_SCOPE, Candidate, Config, Experiment, INTERNAL_SCOPE, Peek, Random, header,
    model_name_in_message, model_name_in_path,
};

/// Longest `x-seldon-route` that is looked at, in bytes; a longer one falls through to the split.
pub const MAX_STICKY: usize = 8 * 1024;

const GRPC_METHODS: &[u8] = b"/inference.GRPCInferenceService/Model";

/// The headers of a request, read when they are needed: each read leaves the VM.
pub trait Headers {
    /// A header's value; several of one name are joined by commas.
    fn get(&self, name: &str) -> Option<Vec<u8>>;
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Change nothing: the scope that Envoy selected answers, or its router with 404.
    Leave,
    /// Hold the headers and ask again when bytes of the body are there.
    AwaitMessage,
    /// Write these headers; Envoy then selects scope and route again.
    Steer(Steering<'a>),
}

/// Where a request goes, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering<'a> {
    /// Headers to overwrite.
    pub writes: Vec<Write<'a>>,
    /// Where the name stood.
    pub named_by: NamedBy,
    /// The name is that of an experiment.
    pub experiment: bool,
    /// `x-seldon-route` decided, not the split.
    pub sticky: bool,
    /// A copy goes to the experiment's mirror.
    pub mirrored: bool,
}

/// One header to overwrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write<'a> {
    /// One of [`header`].
    pub name: &'static str,
    /// Its only value.
    pub value: Cow<'a, str>,
}

/// Where a request's name stood. A client's header beats the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// In the client's `seldon-model`.
    Header,
    /// In the path of a REST request.
    Path,
    /// In the first message of a gRPC request.
    Message,
}

/// The rules, over a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// The experiments in force.
    pub config: &'a Config,
    /// Decides splits and mirrored shares.
    pub random: &'a Random,
}

impl<'a> Router<'a> {
    /// Decides once the headers are there; `end` says that no body follows.
    pub fn on_headers(&self, headers: &impl Headers, end: bool) -> Decision<'a> {
        if let Some(client) = client_name(headers) {
            let experiment = std::str::from_utf8(&client)
                .ok()
                .and_then(|name| self.config.experiments.get(name));
            return match experiment {
                Some(experiment) => self.split(experiment, headers, Vec::new(), NamedBy::Header),
                None => Decision::Leave,
            };
        }
        let path = headers.get(":path").unwrap_or_default();
        if let Some(name) = model_name_in_path(&path) {
            return self.derived(name, headers, NamedBy::Path);
        }
        if !end && path.starts_with(GRPC_METHODS) && is_grpc(headers) {
            return Decision::AwaitMessage;
        }
        Decision::Leave
    }

    /// Decides on the first bytes of the body of a request that awaits its message; `end` says that no more follow.
    pub fn on_message(&self, headers: &impl Headers, bytes: &[u8], end: bool) -> Decision<'a> {
        match model_name_in_message(bytes) {
            Peek::Name(name) => self.derived(name, headers, NamedBy::Message),
            Peek::More if !end => Decision::AwaitMessage,
            _ => Decision::Leave,
        }
    }

    /// A derived name gets the key that the client's header would have got: one scope serves both.
    fn derived(&self, name: String, headers: &impl Headers, named_by: NamedBy) -> Decision<'a> {
        let experiment = self.config.experiments.get(&name);
        let scope = format!("{CLIENT_SCOPE}{name}");
        let mut writes = vec![Write {
            name: header::MODEL,
            value: name.into(),
        }];
        if let Some(experiment) = experiment {
            return self.split(experiment, headers, writes, named_by);
        }
        writes.push(Write {
            name: header::SCOPE,
            value: scope.into(),
        });
        Decision::Steer(Steering {
            writes,
            named_by,
            experiment: false,
            sticky: false,
            mirrored: false,
        })
    }

    fn split(
        &self,
        experiment: &'a Experiment,
        headers: &impl Headers,
        mut writes: Vec<Write<'a>>,
        named_by: NamedBy,
    ) -> Decision<'a> {
        let route = headers.get(header::ROUTE).unwrap_or_default();
        let sticky = experiment.named_in(&route);
        let Some(candidate) = sticky.or_else(|| experiment.by_weight(self.random)) else {
            return Decision::Leave; // cannot be: a configuration without weights is refused
        };
        writes.push(Write {
            name: header::SCOPE,
            value: format!("{INTERNAL_SCOPE}{}", candidate.scope).into(),
        });
        let mirror = experiment
            .mirror
            .as_ref()
            .filter(|m| self.random.below(100) < u64::from(m.percent));
        if let Some(mirror) = mirror {
            writes.push(Write {
                name: header::MIRROR_CLUSTER,
                value: mirror.cluster.as_str().into(),
            });
            writes.push(Write {
                name: header::MIRROR_MODEL,
                value: mirror.model.as_str().into(),
            });
        }
        Decision::Steer(Steering {
            writes,
            named_by,
            experiment: true,
            sticky: sticky.is_some(),
            mirrored: mirror.is_some(),
        })
    }
}

impl Experiment {
    /// The candidate of the first `:name_version:` in an `x-seldon-route` that is one of this experiment.
    fn named_in(&self, route: &[u8]) -> Option<&Candidate> {
        if route.len() > MAX_STICKY {
            return None;
        }
        let mut tokens = route.split(|b| *b == b':').skip(1).peekable();
        while let Some(token) = tokens.next() {
            tokens.peek()?; // what follows the last colon is not closed by one
            let named = |c: &&Candidate| c.routes.iter().any(|r| r.as_bytes() == token);
            if let Some(candidate) = self.candidates.iter().find(named) {
                return Some(candidate);
            }
        }
        None
    }

    fn by_weight(&self, random: &Random) -> Option<&Candidate> {
        let total = self
            .candidates
            .iter()
            .fold(0u64, |sum, c| sum.saturating_add(c.weight.into()));
        let mut left = random.below(total);
        self.candidates.iter().find(|c| {
            let here = left < u64::from(c.weight);
            left = left.saturating_sub(c.weight.into());
            here
        })
    }
}

/// What the client named, if it did: from the scope key that the listener made of it, which cannot be forged.
fn client_name(headers: &impl Headers) -> Option<Vec<u8>> {
    let scope = headers.get(header::SCOPE).unwrap_or_default();
    let name = match scope.strip_prefix(CLIENT_SCOPE.as_bytes()) {
        Some(name) => name.to_vec(),
        // A listener that is not ours and makes no scope key.
        None => headers.get(header::MODEL).unwrap_or_default(),
    };
    (!name.is_empty()).then_some(name)
}

fn is_grpc(headers: &impl Headers) -> bool {
    let kind = headers.get("content-type").unwrap_or_default();
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
