//! REST requests.
use bytes::Bytes;
use http::{HeaderValue, Method as Verb, Request, Response, Uri, header, uri::PathAndQuery};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::{
    body::{ProxyBody, RestResponse},
    errors::{Refusal, Reset},
    headers,
    metrics::{Code, Method},
    models::Models,
    openai,
    proxy::{Exchange, Proxy},
    routes::{self, Rest},
};

pub(crate) async fn handle<M: Models>(
    proxy: &Proxy<M>,
    mut request: Request<Incoming>,
) -> Result<Response<ProxyBody>, Reset> {
    let core = &proxy.core;
    let id = headers::request_id(request.headers_mut());
    let mut exchange = Exchange::begin(
        core,
        Method::Rest,
        label(request.method()),
        request.headers(),
    );
    let route = routes::rest(request.method(), request.uri().path());
    if let Ok(Rest::OpenAi(route)) = route {
        return openai::handle(proxy, request, route, id, exchange).await;
    }
    let path = match upstream_path(proxy, &request, route, &mut exchange).await {
        Ok(path) => path,
        Err(refusal) => {
            exchange.finish(Code::Http(refusal.status.as_u16()));
            if refusal.reset {
                return Err(Reset::Stalled);
            }
            return Ok(refusal.rest(&id));
        }
    };
    let head = *request.method() == Verb::HEAD;
    if head {
        *request.method_mut() = Verb::GET;
    }
    *request.uri_mut() = path;
    *request.version_mut() = http::Version::HTTP_11;
    headers::strip(request.headers_mut());
    exchange.propagate(request.headers_mut());
    if let Ok(host) = HeaderValue::from_str(&core.rest.address) {
        request.headers_mut().insert(header::HOST, host);
    }
    let stalled = core.stalled();
    let sent = tokio::select! {
        biased;
        sent = core.rest.send(request) => sent,
        () = stalled.cancelled() => Err(Reset::Stalled),
    };
    match sent {
        Ok((response, sender)) => {
            let (mut parts, incoming) = response.into_parts();
            headers::strip(&mut parts.headers);
            parts.headers.entry(headers::REQUEST_ID).or_insert(id);
            let code = Code::Http(parts.status.as_u16());
            let relayed = RestResponse::new(incoming, sender, core.clone(), exchange, code);
            let body = ProxyBody::rest(relayed);
            let body = if head {
                without_body(body, &mut parts.headers).await
            } else {
                body
            };
            Ok(Response::from_parts(parts, body))
        }
        Err(reset) => {
            exchange.finish(Code::Http(502));
            tracing::debug!(cause = %reset, "a request was reset");
            Err(reset)
        }
    }
}

/// Decides whether a request may pass, waits for its model and turn, and names its path at the inference server.
async fn upstream_path<M: Models>(
    proxy: &Proxy<M>,
    request: &Request<Incoming>,
    route: Result<Rest, routes::Refused>,
    exchange: &mut Exchange,
) -> Result<Uri, Refusal> {
    let uri = request.uri();
    let tail = match route {
        Ok(Rest::Server(path)) => return Ok(Uri::from_static(path)),
        Ok(Rest::Model(tail)) => tail,
        Ok(Rest::OpenAi(_)) => return Err(Refusal::route(routes::Refused::NotFound, uri.path())),
        Err(refused) => return Err(Refusal::route(refused, uri.path())),
    };
    let internal = exchange.internal().ok_or_else(Refusal::unnamed)?;
    let turns = proxy.admit(&internal, exchange).await?;
    model_path(&turns.path, tail, uri)
}

/// A path of a model at the inference server, with the query that the client sent.
pub(crate) fn model_path(model: &str, tail: &str, uri: &Uri) -> Result<Uri, Refusal> {
    let query = uri.query().unwrap_or_default();
    let mut path = String::with_capacity(model.len() + tail.len() + query.len() + 2);
    path.push_str(model);
    for (mark, part) in [('/', tail), ('?', query)] {
        if !part.is_empty() {
            path.push(mark);
            path.push_str(part);
        }
    }
    let path = PathAndQuery::from_maybe_shared(Bytes::from(path));
    path.map(Uri::from)
        .map_err(|_| Refusal::route(routes::Refused::NotFound, uri.path()))
}

/// The most that is read of a response to a `HEAD`, so that its connection can be used again.
const HEAD_BYTES: usize = 1 << 20;

/// Answers `HEAD`, which inference servers refuse, by what they answer to `GET`: its headers and its length.
async fn without_body(body: ProxyBody, fields: &mut http::HeaderMap) -> ProxyBody {
    if let Ok(body) = http_body_util::Limited::new(body, HEAD_BYTES)
        .collect()
        .await
    {
        fields.insert(
            header::CONTENT_LENGTH,
            HeaderValue::from(body.to_bytes().len()),
        );
    }
    ProxyBody::full(Bytes::new())
}

/// The method as a label, of which there are few.
fn label(method: &Verb) -> &'static str {
    match *method {
        Verb::GET => "GET",
        Verb::HEAD => "HEAD",
        Verb::POST => "POST",
        Verb::PUT => "PUT",
        Verb::DELETE => "DELETE",
        Verb::OPTIONS => "OPTIONS",
        Verb::PATCH => "PATCH",
        _ => "OTHER",
    }
}
