//! Which paths and RPCs may reach the inference server, and how they are spelled there.
use std::borrow::Cow;

use http::Method;
use seldon_openai::Call;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// The inference server itself, under this path.
    Server(&'static str),
    /// A model, with what follows its name.
    Model(&'static str),
    /// A model, spoken to in OpenAI's language.
    OpenAi(OpenAi),
}

/// What a request of OpenAI's API asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenAi {
    /// Something to be translated; `streamed` where the path says so.
    Call { call: Call, streamed: bool },
    /// The list of models, or the one that is named last.
    Models { retrieved: bool },
    /// Nothing, for its method is none of those that are allowed: this is said in OpenAI's form.
    Method(&'static str),
}

/// Why a request goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    NotFound,
    /// With the methods that are allowed.
    Method(&'static str),
}

/// What a model answers to, how, and the name for it at the inference server.
const MODEL: [(&str, bool); 5] = [
    ("infer", true),
    ("infer_stream", true),
    ("generate", true),
    ("generate_stream", true),
    ("ready", false),
];

/// Finds the route of a REST request. The model's name in the path does not matter: the header names the model.
pub(crate) fn rest(method: &Method, path: &str) -> Result<Rest, Refused> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments = path
        .strip_prefix('/')
        .ok_or(Refused::NotFound)?
        .split('/')
        .map(decoded);
    let mut next = || segments.next();
    let fixed = |segment: Option<Cow<'_, str>>, wanted| segment.as_deref() == Some(wanted);
    if !fixed(next(), "v2") {
        return Err(Refused::NotFound);
    }
    let (route, posts) = match next().as_deref() {
        None => (Rest::Server("/v2"), false),
        Some("health") => match next().as_deref() {
            Some("live") => (Rest::Server("/v2/health/live"), false),
            Some("ready") => (Rest::Server("/v2/health/ready"), false),
            _ => return Err(Refused::NotFound),
        },
        Some("models") => {
            next()
                .filter(|name| !name.is_empty())
                .ok_or(Refused::NotFound)?;
            let mut tail = next();
            if tail.as_deref() == Some("versions") {
                next()
                    .filter(|version| !version.is_empty())
                    .ok_or(Refused::NotFound)?;
                tail = next();
            }
            match tail.as_deref() {
                None => (Rest::Model(""), false),
                Some(tail) => {
                    let known = MODEL.iter().find(|(name, _)| *name == tail);
                    let &(name, posts) = known.ok_or(Refused::NotFound)?;
                    match next() {
                        None => (Rest::Model(name), posts),
                        Some(first) => {
                            let route = openai(name, &first, next().as_deref())?;
                            (Rest::OpenAi(route), !matches!(route, OpenAi::Models { .. }))
                        }
                    }
                }
            }
        }
        _ => return Err(Refused::NotFound),
    };
    if next().is_some() {
        return Err(Refused::NotFound);
    }
    let allowed = if posts {
        *method == Method::POST
    } else {
        *method == Method::GET || *method == Method::HEAD
    };
    let allow = if posts { "POST" } else { "GET, HEAD" };
    match route {
        _ if allowed => Ok(route),
        Rest::OpenAi(_) => Ok(Rest::OpenAi(OpenAi::Method(allow))),
        _ => Err(Refused::Method(allow)),
    }
}

/// Finds what follows `infer` or `infer_stream` in OpenAI's API.
fn openai(tail: &str, first: &str, second: Option<&str>) -> Result<OpenAi, Refused> {
    let streamed = match tail {
        "infer" => false,
        "infer_stream" => true,
        _ => return Err(Refused::NotFound),
    };
    let call = match (first, second) {
        ("chat", Some("completions")) => Call::Chat,
        ("completions", None) => Call::Completions,
        ("embeddings", None) => Call::Embeddings,
        ("images", Some("generations")) => Call::Images,
        ("models", None) => return Ok(OpenAi::Models { retrieved: false }),
        ("models", Some(name)) if !name.is_empty() => {
            return Ok(OpenAi::Models { retrieved: true });
        }
        _ => return Err(Refused::NotFound),
    };
    Ok(OpenAi::Call { call, streamed })
}

/// The model that a path names, which matters only where a body names one too.
pub(crate) fn model_in(path: &str) -> Cow<'_, str> {
    decoded(path.split('/').nth(3).unwrap_or_default())
}

/// The last segment of a path.
pub(crate) fn last_in(path: &str) -> Cow<'_, str> {
    let path = path.strip_suffix('/').unwrap_or(path);
    decoded(path.rsplit('/').next().unwrap_or_default())
}

/// A segment with its percent-encoding undone; what is not text matches nothing.
fn decoded(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    let bytes = segment.as_bytes();
    let mut text = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = segment.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                text.push(byte);
                at += 3;
            }
            None => {
                text.push(bytes[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&text).into_owned())
}

/// The path of a model at the inference server.
pub(crate) fn model_path(internal: &str) -> String {
    use std::fmt::Write as _;
    let mut path = String::from("/v2/models/");
    for byte in internal.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            write!(path, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
    path
}

/// An RPC that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rpc {
    /// The full method, as the label `method` shows it.
    pub(crate) path: &'static str,
    /// Whether its requests name a model in field 1 and a version in field 2.
    pub(crate) of_model: bool,
}

/// The only RPC that takes a stream of messages.
pub(crate) const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// Finds an allowed RPC by its full method.
pub(crate) fn rpc(path: &str) -> Option<Rpc> {
    const fn rpc(path: &'static str, of_model: bool) -> Rpc {
        Rpc { path, of_model }
    }
    const ALLOWED: [Rpc; 7] = [
        rpc("/inference.GRPCInferenceService/ModelInfer", true),
        rpc(MODEL_STREAM_INFER, true),
        rpc("/inference.GRPCInferenceService/ModelReady", true),
        rpc("/inference.GRPCInferenceService/ModelMetadata", true),
        rpc("/inference.GRPCInferenceService/ServerLive", false),
        rpc("/inference.GRPCInferenceService/ServerReady", false),
        rpc("/inference.GRPCInferenceService/ServerMetadata", false),
    ];
    ALLOWED.into_iter().find(|rpc| rpc.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(call: Call, streamed: bool) -> Rest {
        Rest::OpenAi(OpenAi::Call { call, streamed })
    }

    #[test]
    fn names_in_a_path() {
        for (path, model, last) in [
            ("/v2/models/iris/infer/models/iris", "iris", "iris"),
            ("/v2/models/%69ris/infer/models/a%2Fb/", "iris", "a/b"),
            ("/v2", "", "v2"),
        ] {
            assert_eq!((&*model_in(path), &*last_in(path)), (model, last));
        }
    }

    #[test]
    fn inference_paths_pass() {
        for (method, path, route) in [
            ("POST", "/v2/models/iris/infer", Rest::Model("infer")),
            ("POST", "/v2/models/iris/infer/", Rest::Model("infer")),
            (
                "POST",
                "/v2/models/x.experiment/infer",
                Rest::Model("infer"),
            ),
            ("POST", "/v2/models/iris%2Fa/%69nfer", Rest::Model("infer")),
            (
                "POST",
                "/v2/models/iris/versions/1/infer",
                Rest::Model("infer"),
            ),
            ("POST", "/v2/models/versions/infer", Rest::Model("infer")),
            (
                "POST",
                "/v2/models/iris/infer_stream",
                Rest::Model("infer_stream"),
            ),
            ("POST", "/v2/models/iris/generate", Rest::Model("generate")),
            (
                "POST",
                "/v2/models/iris/versions/2/generate_stream",
                Rest::Model("generate_stream"),
            ),
            (
                "POST",
                "/v2/models/iris/infer/chat/completions",
                call(Call::Chat, false),
            ),
            (
                "POST",
                "/v2/models/iris/versions/1/infer_stream/%63hat/completions/",
                call(Call::Chat, true),
            ),
            (
                "POST",
                "/v2/models/x.experiment/infer/completions",
                call(Call::Completions, false),
            ),
            (
                "POST",
                "/v2/models/iris/infer/embeddings",
                call(Call::Embeddings, false),
            ),
            (
                "POST",
                "/v2/models/iris/infer/images/generations",
                call(Call::Images, false),
            ),
            (
                "GET",
                "/v2/models/iris/infer/models",
                Rest::OpenAi(OpenAi::Models { retrieved: false }),
            ),
            (
                "GET",
                "/v2/models/iris/infer/models/iris",
                Rest::OpenAi(OpenAi::Models { retrieved: true }),
            ),
            ("GET", "/v2/models/iris", Rest::Model("")),
            ("HEAD", "/v2/models/iris/versions/1", Rest::Model("")),
            ("GET", "/v2/models/iris/ready", Rest::Model("ready")),
            (
                "HEAD",
                "/v2/models/iris/versions/1/ready",
                Rest::Model("ready"),
            ),
            ("GET", "/v2/health/live", Rest::Server("/v2/health/live")),
            ("HEAD", "/v2/health/ready", Rest::Server("/v2/health/ready")),
            ("GET", "/v2", Rest::Server("/v2")),
            ("GET", "/v2/", Rest::Server("/v2")),
        ] {
            assert_eq!(
                rest(&method.parse().unwrap(), path),
                Ok(route),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for (method, path, refused) in [
            ("POST", "/v2/repository/index", Refused::NotFound),
            ("POST", "/v2/repository/models/iris/load", Refused::NotFound),
            ("POST", "/v2/models/iris/load", Refused::NotFound),
            (
                "POST",
                "/v2/models/..%2Frepository/models/iris/unload",
                Refused::NotFound,
            ),
            ("POST", "/v2/models/iris/infer/chat", Refused::NotFound),
            (
                "POST",
                "/v2/models/iris/infer/chat/completions/1",
                Refused::NotFound,
            ),
            (
                "POST",
                "/v2/models/iris/infer//chat/completions",
                Refused::NotFound,
            ),
            (
                "POST",
                "/v2/models/iris/generate/chat/completions",
                Refused::NotFound,
            ),
            (
                "POST",
                "/v2/models/iris/chat/completions",
                Refused::NotFound,
            ),
            (
                "POST",
                "/v2/models/iris/infer/images/edits",
                Refused::NotFound,
            ),
            ("POST", "/v2/models/iris/infer/files", Refused::NotFound),
            (
                "POST",
                "/v2/models/iris/infer/infer/embeddings",
                Refused::NotFound,
            ),
            ("GET", "/v2/models/iris/infer/models//", Refused::NotFound),
            ("GET", "/v2/models/iris/infer/models/a/b", Refused::NotFound),
            ("GET", "/v2/models/iris/ready/models", Refused::NotFound),
            ("POST", "/v2/models//infer", Refused::NotFound),
            ("GET", "/v2/models/iris/versions", Refused::NotFound),
            ("GET", "/v2/models", Refused::NotFound),
            ("GET", "/v2/docs", Refused::NotFound),
            ("GET", "/metrics", Refused::NotFound),
            ("GET", "/", Refused::NotFound),
            ("GET", "//v2/health/live", Refused::NotFound),
            ("GET", "/v2/models/iris/infer", Refused::Method("POST")),
            ("POST", "/v2/models/iris", Refused::Method("GET, HEAD")),
            (
                "DELETE",
                "/v2/models/iris/ready",
                Refused::Method("GET, HEAD"),
            ),
            ("POST", "/v2/health/live", Refused::Method("GET, HEAD")),
        ] {
            assert_eq!(
                rest(&method.parse().unwrap(), path),
                Err(refused),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn repository_rpcs_are_not_allowed() {
        assert!(rpc("/inference.GRPCInferenceService/ModelInfer").is_some_and(|rpc| rpc.of_model));
        for path in [
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            "/grpc.health.v1.Health/Check",
            "/",
        ] {
            assert_eq!(rpc(path), None);
        }
    }

    #[test]
    fn odd_names_stay_one_segment() {
        assert_eq!(model_path("iris_1"), "/v2/models/iris_1");
        assert_eq!(model_path("../a?b_1"), "/v2/models/..%2Fa%3Fb_1");
    }
}
