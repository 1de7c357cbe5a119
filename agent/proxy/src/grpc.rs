//! gRPC requests.
use http::{
    HeaderMap, HeaderValue, Request, Response, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::body::Incoming;

use crate::{
    body::{Failure, GrpcResponse, ProxyBody, Rewritten, status},
    errors::{Refusal, Reset},
    frames::Rewriter,
    headers,
    metrics::{Code, Method},
    models::Models,
    proxy::{Exchange, Proxy},
    routes,
};

pub(crate) async fn handle<M: Models>(
    proxy: &Proxy<M>,
    mut request: Request<Incoming>,
) -> Result<Response<ProxyBody>, Reset> {
    let core = &proxy.core;
    let id = headers::request_id(request.headers_mut());
    let rpc = routes::rpc(request.uri().path());
    let label = rpc.map_or("unknown", |rpc| rpc.path);
    let mut exchange = Exchange::begin(core, Method::Grpc, label, request.headers());
    let rewriter = match admitted(proxy, &request, rpc, &mut exchange).await {
        Ok(rewriter) => rewriter,
        Err(refusal) if refusal.reset => {
            exchange.finish(Code::Grpc(refusal.grpc));
            return Err(Reset::Stalled);
        }
        Err(refusal) if request.version() != Version::HTTP_2 => {
            exchange.finish(Code::Grpc(refusal.grpc));
            return Ok(refusal.rest(&id));
        }
        Err(refusal) => {
            exchange.finish(Code::Grpc(refusal.grpc));
            return Ok(refusal.grpc(&id));
        }
    };
    exchange.propagate(request.headers_mut());
    let failure = Failure::default();
    let request = upstream_request(
        request,
        &core.grpc.address,
        label,
        rewriter,
        failure.clone(),
    );
    let stalled = core.stalled();
    let sent = tokio::select! {
        biased;
        sent = core.grpc.send(request) => sent,
        () = stalled.cancelled() => Err(Reset::Stalled),
    };
    match (sent, failure.get()) {
        (Ok((response, stream)), None) => {
            let (mut parts, incoming) = response.into_parts();
            headers::strip(&mut parts.headers);
            parts
                .headers
                .entry(headers::REQUEST_ID)
                .or_insert_with(|| id.clone());
            let mut relayed = GrpcResponse::new(incoming, stream, exchange, failure, id);
            if let Some(code) = status(&parts.headers) {
                relayed.complete(code);
            }
            Ok(Response::from_parts(parts, ProxyBody::grpc(relayed)))
        }
        // Also where the server has answered what it saw of a message that we refuse: ours is the better reason.
        (_, Some(cause)) => {
            let refusal = Refusal::frame(cause);
            exchange.finish(Code::Grpc(refusal.grpc));
            Ok(refusal.grpc(&id))
        }
        (Err(reset), None) => {
            exchange.finish(Code::Grpc(14));
            tracing::debug!(cause = %reset, "a request was reset");
            Err(reset)
        }
    }
}

/// Decides whether a request may pass and waits for its model and turn.
async fn admitted<M: Models>(
    proxy: &Proxy<M>,
    request: &Request<Incoming>,
    rpc: Option<routes::Rpc>,
    exchange: &mut Exchange,
) -> Result<Option<Rewriter>, Refusal> {
    if request.version() != Version::HTTP_2 || !is_protobuf(request.headers()) {
        return Err(Refusal::media_type());
    }
    let rpc = rpc.ok_or_else(|| Refusal::rpc(request.uri().path()))?;
    if !rpc.of_model {
        return Ok(None);
    }
    let gzip = match request
        .headers()
        .get(headers::GRPC_ENCODING)
        .map(HeaderValue::as_bytes)
    {
        None | Some(b"identity") => false,
        Some(b"gzip") => true,
        Some(other) => return Err(Refusal::encoding(&String::from_utf8_lossy(other))),
    };
    let internal = exchange.internal().ok_or_else(Refusal::unnamed)?;
    let turns = proxy.admit(&internal, exchange).await?;
    let core = &proxy.core;
    let rewriter = Rewriter::with_suffix(
        turns.suffix.clone(),
        gzip,
        &core.limits,
        core.budget.clone(),
    );
    let one = rpc.path != routes::MODEL_STREAM_INFER;
    Ok(Some(if one {
        rewriter.expecting_one()
    } else {
        rewriter
    }))
}

/// Whether the messages are protobuf's, the only ones a field can be appended to.
fn is_protobuf(fields: &HeaderMap) -> bool {
    let content_type = fields.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let kind = content_type.and_then(|value| value.strip_prefix(b"application/grpc"));
    kind.is_some_and(|kind| {
        let kind = kind.strip_prefix(b"+proto").unwrap_or(kind);
        kind.is_empty() || kind[0] == b';' || kind[0] == b' '
    })
}

fn upstream_request(
    request: Request<Incoming>,
    address: &str,
    path: &'static str,
    rewriter: Option<Rewriter>,
    failure: Failure,
) -> Request<Rewritten> {
    let (mut parts, incoming) = request.into_parts();
    headers::strip(&mut parts.headers);
    parts.headers.remove(header::HOST);
    parts
        .headers
        .insert(header::TE, HeaderValue::from_static("trailers"));
    if rewriter.is_some() {
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(headers::GRPC_ENCODING);
    }
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Authority::try_from(address).ok();
    uri.path_and_query = Some(PathAndQuery::from_static(path));
    parts.uri = Uri::from_parts(uri).unwrap_or_else(|_| Uri::from_static(path));
    parts.version = Version::HTTP_2;
    Request::from_parts(parts, Rewritten::new(incoming, rewriter, failure))
}
