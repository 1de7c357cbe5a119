//! What the filter does with one request.

use std::borrow::Cow;

use crate::{
    CLIENT_SCOPE, Candidate, Config, Copy, Experiment, INTERNAL_SCOPE, Mirror, Peek, Random,
    Version,
    chance::{draw, draw_any},
    cohort::Cohort,
    grpc::Hold,
    header, model_name_in_message, model_name_in_path,
};

/// Longest `x-seldon-route` that is looked at, in bytes; a longer one falls through to the split.
pub const MAX_STICKY: usize = 8 * 1024;

const GRPC_METHODS: &[u8] = b"/inference.GRPCInferenceService/Model";
const GRPC_STREAM: &[u8] = b"/inference.GRPCInferenceService/ModelStreamInfer";

/// The headers of a request, read when they are needed: each read leaves the VM.
pub trait Headers {
    /// A header's value; where several have this name, a host may know the first only.
    fn get(&self, name: &str) -> Option<Vec<u8>>;

    /// Every value of a header, joined by commas; dearer than [`Headers::get`].
    fn all(&self, name: &str) -> Vec<u8> {
        self.get(name).unwrap_or_default()
    }
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
    /// Which rule decided.
    pub rule: Rule,
    /// Who was chosen; none for a plain name, or where no candidate has a weight.
    pub choice: Option<Choice<'a>>,
}

/// Which rule decided where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The scope of the request's name leads on.
    Plain,
    /// `x-seldon-route` names a version of a live candidate.
    Sticky,
    /// The cohort of the experiment's header.
    Cohort,
    /// A draw by weight.
    Split,
}

/// Who gets a request of an experiment, and its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The experiment's name, without `.experiment`.
    pub experiment: &'a str,
    /// Its candidate.
    pub candidate: &'a Candidate,
    /// The candidate's version.
    pub version: &'a Version,
    /// Who gets a copy, if one is sent.
    pub mirror: Option<(&'a Mirror, &'a Copy)>,
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
            return std::str::from_utf8(&client)
                .ok()
                .and_then(|name| self.config.experiment_of(name))
                .and_then(|found| self.choose(found, headers))
                .map_or(Decision::Leave, |(rule, choice)| {
                    steered(
                        Vec::with_capacity(3),
                        NamedBy::Header,
                        rule,
                        choice,
                        headers,
                    )
                });
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
    pub fn on_message(
        &self,
        headers: &impl Headers,
        hold: &mut Hold,
        bytes: &[u8],
        end: bool,
    ) -> Decision<'a> {
        match model_name_in_message(bytes) {
            Peek::Name(name) => self.derived(name, headers, NamedBy::Message),
            Peek::More(needed) if !end && hold.goes_on(needed) => Decision::AwaitMessage,
            _ => Decision::Leave,
        }
    }

    /// A derived name gets the key that the client's header would have got: one scope serves both.
    fn derived(&self, name: String, headers: &impl Headers, named_by: NamedBy) -> Decision<'a> {
        let chosen = self
            .config
            .experiment_of(&name)
            .and_then(|found| self.choose(found, headers));
        let scope = chosen.is_none().then(|| format!("{CLIENT_SCOPE}{name}"));
        let mut writes = Vec::with_capacity(4);
        writes.push(Write {
            name: header::MODEL,
            value: name.into(),
        });
        if let Some((rule, choice)) = chosen {
            return steered(writes, named_by, rule, choice, headers);
        }
        writes.extend(scope.map(|scope| Write {
            name: header::SCOPE,
            value: scope.into(),
        }));
        Decision::Steer(Steering {
            writes,
            named_by,
            rule: Rule::Plain,
            choice: None,
        })
    }

    fn choose(
        &self,
        (name, experiment): (&'a str, &'a Experiment),
        headers: &impl Headers,
    ) -> Option<(Rule, Choice<'a>)> {
        let (rule, candidate, version) = match experiment.pinned(name, headers) {
            Some(pinned) => pinned,
            None => {
                let candidate = draw(&experiment.candidates, self.random)?;
                let version = draw_any(&candidate.versions, self.random)?;
                (Rule::Split, candidate, version)
            }
        };
        let mirror = experiment
            .mirror
            .as_ref()
            .filter(|m| self.random.below(100) < u64::from(m.percent))
            .and_then(|m| Some((m, draw_any(&m.versions, self.random)?)));
        let choice = Choice {
            experiment: name,
            candidate,
            version,
            mirror,
        };
        Some((rule, choice))
    }
}

fn steered<'a>(
    mut writes: Vec<Write<'a>>,
    named_by: NamedBy,
    rule: Rule,
    choice: Choice<'a>,
    headers: &impl Headers,
) -> Decision<'a> {
    writes.push(Write {
        name: header::SCOPE,
        value: format!("{INTERNAL_SCOPE}{}", choice.version.route).into(),
    });
    if let Some((_, copy)) = choice.mirror {
        let cluster = copy.grpc_cluster.as_ref().filter(|_| is_grpc(headers));
        writes.push(Write {
            name: header::MIRROR_CLUSTER,
            value: cluster.unwrap_or(&copy.cluster).into(),
        });
        writes.push(Write {
            name: header::MIRROR_MODEL,
            value: (&copy.model).into(),
        });
    }
    Decision::Steer(Steering {
        writes,
        named_by,
        rule,
        choice: Some(choice),
    })
}

impl Experiment {
    /// What the request's own headers decide, without any chance: `x-seldon-route`, then the cohort.
    pub(crate) fn pinned(
        &self,
        name: &str,
        headers: &impl Headers,
    ) -> Option<(Rule, &Candidate, &Version)> {
        let route = headers.get(header::ROUTE);
        let mut named = route.as_deref().and_then(|route| self.named_in(route));
        if named.is_none() && route.is_some() {
            // A client may send each saved route in a header of its own.
            named = self.named_in(&headers.all(header::ROUTE));
        }
        if let Some((candidate, version)) = named {
            return Some((Rule::Sticky, candidate, version));
        }
        let value = headers.get(self.cohort.as_deref()?)?;
        if value.is_empty() {
            return None;
        }
        let cohort = Cohort::of(&value, name);
        let candidate = cohort.candidate(&self.candidates)?;
        let version = cohort.version(&candidate.versions)?;
        Some((Rule::Cohort, candidate, version))
    }

    /// The first `:name_version:` in an `x-seldon-route` that is one of this experiment.
    fn named_in(&self, route: &[u8]) -> Option<(&Candidate, &Version)> {
        if route.len() > MAX_STICKY {
            return None;
        }
        let mut tokens = route.split(|b| *b == b':').skip(1).peekable();
        while let Some(token) = tokens.next() {
            tokens.peek()?; // what follows the last colon is not closed by one
            if token.is_empty() {
                continue;
            }
            for candidate in &self.candidates {
                let named = |v: &&Version| v.route.as_bytes() == token;
                if let Some(version) = candidate.versions.iter().find(named) {
                    return Some((candidate, version));
                }
            }
        }
        None
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

/// Whether the request's content type is that of gRPC, by Envoy's rule.
pub fn is_grpc(headers: &impl Headers) -> bool {
    let kind = headers.get("content-type").unwrap_or_default();
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
}

/// Whether a gRPC request opens a stream, which lives as long as its client likes.
pub fn is_stream(headers: &impl Headers) -> bool {
    let path = headers.get(":path").unwrap_or_default();
    path.split(|b| *b == b'?').next() == Some(GRPC_STREAM)
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
