//! REST: paths and forms.
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as Verb, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use prost::Message as _;
use seldon_inference::{Wanted, request_from_rest, response_to_rest};
use seldon_proto::inference::ModelMetadataResponse;
use serde_json::{Value, json};
use tonic::body::Body;

use crate::{
    failure::Failure,
    gateway::{self, Gateway, Permit},
    headers,
    metrics::Method,
    room::{Held, Measured, Share},
    target::{Target, Unnamed},
};

/// What a path asks for; the name is what stands in the path.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    Alive,
    Server,
    Infer(Named<'a>),
    /// One of the forms that stream.
    Stream,
    Ready(Named<'a>),
    Metadata(Named<'a>),
}

/// A name in a path, below `pipelines` or below `models`.
#[derive(Debug, PartialEq, Eq)]
enum Named<'a> {
    Pipeline(&'a str),
    Model(&'a str),
}

impl Named<'_> {
    /// The header names the target; the path where there is none.
    fn target(&self, fields: &HeaderMap) -> Result<Target, Unnamed> {
        match (Target::of_headers(fields)?, self) {
            (Some(target), _) => Ok(target),
            (None, Named::Model(name)) => Target::parse(name),
            (None, Named::Pipeline(_)) => Ok(self.own()),
        }
    }

    /// What the path itself says.
    fn own(&self) -> Target {
        let (Named::Pipeline(name) | Named::Model(name)) = self;
        let stem = name.strip_suffix(".pipeline");
        Target::Pipeline(
            stem.filter(|stem| !stem.is_empty())
                .unwrap_or(name)
                .to_string(),
        )
    }

    /// A pipeline: the one in a path below `pipelines`, the one that the header names otherwise.
    fn pipeline(&self, fields: &HeaderMap) -> Result<Target, Failure> {
        let target = match self {
            Named::Pipeline(_) => Ok(self.own()),
            Named::Model(_) => self.target(fields),
        };
        match target {
            Ok(Target::Pipeline(name)) => Ok(Target::Pipeline(name)),
            Ok(model) => {
                let message = format!("{}: only pipelines are asked here", model.describe());
                Err(Failure::invalid(message))
            }
            Err(cause) => Err(Failure::unnamed(&cause)),
        }
    }
}

fn asked(path: &str) -> Option<Asked<'_>> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let named = |kind: &str, name| match kind {
        "pipelines" => Some(Named::Pipeline(name)),
        "models" => Some(Named::Model(name)),
        _ => None,
    };
    Some(match parts[..] {
        ["ready"] | ["v2", "health", "live" | "ready"] => Asked::Alive,
        ["v2"] => Asked::Server,
        ["v2", _, ""] => return None,
        ["v2", kind, name] => Asked::Metadata(named(kind, name)?),
        ["v2", _, "", _] => return None,
        ["v2", kind, name, "infer"] => Asked::Infer(named(kind, name)?),
        [
            "v2",
            kind,
            name,
            "infer_stream" | "generate" | "generate_stream",
        ] => named(kind, name).map(|_| Asked::Stream)?,
        ["v2", kind, name, "ready"] => Asked::Ready(named(kind, name)?),
        _ => return None,
    })
}

pub(crate) async fn handle(gateway: &Arc<Gateway>, request: Request<Incoming>) -> Response<Body> {
    let id = gateway::request_id(request.headers());
    let head = *request.method() == Verb::HEAD;
    let response = answer(gateway, request, &id)
        .await
        .unwrap_or_else(|failure| failure.rest(&id));
    if head { bodiless(response) } else { response }
}

/// Over HTTP/2 nobody else leaves the body of an answer to `HEAD` out.
fn bodiless(response: Response<Body>) -> Response<Body> {
    let length = response.body().size_hint().exact();
    let mut response = response.map(|_| Body::empty());
    if let Some(length) = length {
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

async fn answer(
    gateway: &Arc<Gateway>,
    request: Request<Incoming>,
    id: &HeaderValue,
) -> Result<Response<Body>, Failure> {
    let uri = request.uri().clone();
    let path = uri.path();
    let asked = asked(path).ok_or_else(|| Failure::path(path))?;
    let verb = request.method();
    match (&asked, verb) {
        (Asked::Infer(_), &Verb::POST) | (Asked::Stream, _) => {}
        (Asked::Infer(_), _) => return Err(Failure::method(path, "POST")),
        (_, &Verb::GET | &Verb::HEAD) => {}
        _ => return Err(Failure::method(path, "GET, HEAD")),
    }
    let fields = request.headers();
    match asked {
        Asked::Alive => Ok(empty(id)),
        Asked::Stream => Err(Failure::stream(path)),
        Asked::Server => Ok(as_json(&server(), id)),
        Asked::Ready(named) => {
            let target = named.pipeline(fields)?;
            let route = gateway.routes.get(&target);
            let route = route.ok_or_else(|| Failure::unknown(&target, fields))?;
            gateway.models.ready(&route).await.map(|()| empty(id))
        }
        Asked::Metadata(named) => {
            let target = named.pipeline(fields)?;
            let route = gateway.routes.get(&target);
            let route = route.ok_or_else(|| Failure::unknown(&target, fields))?;
            let metadata = gateway.models.metadata(&route).await;
            Ok(as_json(&described(&metadata), id))
        }
        Asked::Infer(named) => {
            let target = named
                .target(fields)
                .map_err(|cause| Failure::unnamed(&cause))?;
            infer(gateway, &target, request, id).await
        }
    }
}

async fn infer(
    gateway: &Arc<Gateway>,
    target: &Target,
    request: Request<Incoming>,
    id: &HeaderValue,
) -> Result<Response<Body>, Failure> {
    let mut permit = gateway
        .admit(target, Method::Rest, request.headers())
        .await?;
    let share = gateway.room.share();
    let answered = admitted(gateway, &permit, request, id, &share).await;
    let status = answered
        .as_ref()
        .map_or_else(|failure| failure.status, Response::status);
    permit.exchange.finish(status.as_str());
    answered.map(|response| response.map(|body| Body::new(Held::new(body, share))))
}

async fn admitted(
    gateway: &Arc<Gateway>,
    permit: &Permit,
    request: Request<Incoming>,
    id: &HeaderValue,
    share: &Arc<Share>,
) -> Result<Response<Body>, Failure> {
    let (parts, body) = request.into_parts();
    let fields = parts.headers;
    let encoding = fields.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        return Err(Failure::invalid(
            "content-encoding is not supported for pipelines",
        ));
    }
    let target = &permit.route.target;
    let unread = |cause| Failure::unread(Some(target), &cause, &gateway.limits);
    let body = Measured::new(body, gateway.limits.body, share.clone()).map_err(unread)?;
    let body = body.collect().await.map_err(unread)?;
    let asked = read(target, &fields, body.to_bytes())?;
    let record = gateway.infer(permit, &fields, id, asked.value).await?;
    share.turn_into(record.value.as_ref().map_or(0, Bytes::len));
    let mut response = gateway::response(target, &record)?;
    gateway::select(target, &mut response, &asked.outputs)?;
    if response.id.is_empty() {
        response.id = asked.id;
    }
    let body = response_to_rest(&response, &asked.wanted);
    let body = body.map_err(|cause| Failure::unreadable(target, cause))?;
    let mut response = Response::new(Body::new(Full::new(body.bytes)));
    let fields = response.headers_mut();
    *fields = headers::of_answer(&record);
    fields
        .entry(headers::REQUEST_ID)
        .or_insert_with(|| id.clone());
    let content_type = match body.json_length {
        Some(length) => {
            fields.insert(headers::JSON_LENGTH, length.into());
            "application/octet-stream"
        }
        None => "application/json",
    };
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

/// A request that was read: its record's value, and what its answer should be like.
struct Read {
    value: Bytes,
    id: String,
    outputs: Vec<String>,
    wanted: Wanted,
}

fn read(target: &Target, fields: &HeaderMap, body: Bytes) -> Result<Read, Failure> {
    let length = match fields.get(headers::JSON_LENGTH) {
        None => None,
        Some(value) => {
            let length = value
                .to_str()
                .ok()
                .and_then(|text| text.trim().parse().ok());
            let wrong = || Failure::invalid("inference-header-content-length is not a length");
            Some(length.ok_or_else(wrong)?)
        }
    };
    let failed = |cause| Failure::invalid(format!("{}: {cause}", target.describe()));
    let (mut request, wanted) = request_from_rest(&body, length).map_err(failed)?;
    let outputs = request
        .outputs
        .iter()
        .map(|output| output.name.clone())
        .collect();
    if matches!(target, Target::Pipeline(_)) {
        // They name what the pipeline gives; its first step may know none of them.
        request.outputs.clear();
        // Whatever it calls, it is no model.
        request.model_name.clear();
    }
    Ok(Read {
        value: request.encode_to_vec().into(),
        id: request.id,
        outputs,
        wanted,
    })
}

fn server() -> Value {
    json!({
        "name": "seldon-pipelinegateway",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"],
    })
}

fn described(metadata: &ModelMetadataResponse) -> Value {
    let tensors =
        |tensors: &[seldon_proto::inference::model_metadata_response::TensorMetadata]| {
            let each = tensors.iter().map(|tensor| {
            json!({"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape})
        });
            Value::from_iter(each)
        };
    json!({
        "name": metadata.name,
        "versions": metadata.versions,
        "platform": metadata.platform,
        "inputs": tensors(&metadata.inputs),
        "outputs": tensors(&metadata.outputs),
    })
}

fn as_json(value: &Value, id: &HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from(value.to_string()))));
    let fields = response.headers_mut();
    fields.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    fields.insert(headers::REQUEST_ID, id.clone());
    response
}

fn empty(id: &HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::OK;
    response
        .headers_mut()
        .insert(headers::REQUEST_ID, id.clone());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let model = || Named::Model("x");
        assert_eq!(asked("/v2/models/x/infer"), Some(Asked::Infer(model())));
        assert_eq!(asked("/v2/models/x/ready/"), Some(Asked::Ready(model())));
        assert_eq!(asked("/v2/models/x"), Some(Asked::Metadata(model())));
        let pipeline = Named::Pipeline("x");
        assert_eq!(asked("/v2/pipelines/x/infer"), Some(Asked::Infer(pipeline)));
        for path in ["/v2/pipelines/x/infer_stream", "/v2/models/x/generate"] {
            assert_eq!(asked(path), Some(Asked::Stream), "{path}");
        }
        assert_eq!(asked("/v2/health/live"), Some(Asked::Alive));
        assert_eq!(asked("/ready"), Some(Asked::Alive));
        assert_eq!(asked("/v2"), Some(Asked::Server));
        for wrong in [
            "",
            "/",
            "/v2/x/y",
            "/v2/models//infer",
            "/v2/models/x/y",
            "/v2/models/",
        ] {
            assert_eq!(asked(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_header_beats_the_path() {
        let mut fields = HeaderMap::new();
        let name = |target: &str| Ok(Target::Pipeline(target.to_owned()));
        assert_eq!(Named::Pipeline("p").target(&fields), name("p"));
        assert_eq!(Named::Pipeline("p.pipeline").target(&fields), name("p"));
        assert_eq!(Named::Model("p.pipeline").target(&fields), name("p"));
        let model = Ok(Target::Model("p".to_owned()));
        assert_eq!(Named::Model("p").target(&fields), model);
        fields.insert("seldon-model", HeaderValue::from_static("q.pipeline"));
        assert_eq!(Named::Pipeline("p").target(&fields), name("q"));
    }
}
