//! Requests in OpenAI's language: held, translated, and answered in the same language.
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as Verb, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use seldon_openai::{
    Asked, Call, Context, Events, Failure, error_of_model, from_inference, models, to_inference,
};

use crate::{
    body::ProxyBody,
    errors::{Refusal, Reset, json},
    headers,
    held::{NotHeld, Share, whole},
    metrics::Code,
    models::Models,
    openai_stream::OpenAiStream,
    pool::RestSender,
    proxy::{Core, Exchange, Proxy},
    rest,
    routes::{self, OpenAi},
};

/// Bodies up to this size are translated at once; others would keep the thread from other requests.
const AT_ONCE: usize = 256 << 10;

/// Why there is no answer of the model.
enum Stop {
    Refused(Refusal),
    Failed(Failure),
    Reset(Reset),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        if refusal.reset {
            Self::Reset(Reset::Stalled)
        } else {
            Self::Refused(refusal)
        }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Reset> for Stop {
    fn from(reset: Reset) -> Self {
        Self::Reset(reset)
    }
}

pub(crate) async fn handle<M: Models>(
    proxy: &Proxy<M>,
    request: Request<Incoming>,
    route: OpenAi,
    id: HeaderValue,
    mut exchange: Exchange,
) -> Result<Response<ProxyBody>, Reset> {
    let answered = match route {
        OpenAi::Call { call, streamed } => {
            let asked = ask(proxy, request, (call, streamed), &id, &mut exchange).await;
            match asked {
                Ok(Answer::Whole(response)) => Ok(response),
                Ok(Answer::Stream(parts, begun)) => {
                    let stream = OpenAiStream::new(*begun, proxy.core.clone(), exchange);
                    return Ok(Response::from_parts(*parts, ProxyBody::openai(stream)));
                }
                Err(stop) => Err(stop),
            }
        }
        OpenAi::Models { retrieved } => list(proxy, &request, retrieved, &id, &mut exchange).await,
        OpenAi::Method(allow) => {
            let refused = routes::Refused::Method(allow);
            Err(Refusal::route(refused, request.uri().path()).into())
        }
    };
    let response = match answered {
        Ok(response) => response,
        Err(Stop::Refused(refusal)) => refusal.openai(&id),
        Err(Stop::Failed(failure)) => failed(&failure, &id),
        Err(Stop::Reset(reset)) => {
            exchange.finish(Code::Http(502));
            tracing::debug!(cause = %reset, "a request was reset");
            return Err(reset);
        }
    };
    exchange.finish(Code::Http(response.status().as_u16()));
    Ok(response)
}

/// What a model answered.
enum Answer {
    Whole(Response<ProxyBody>),
    Stream(Box<http::response::Parts>, Box<Begun>),
}

/// A stream that has begun at the inference server.
pub(crate) struct Begun {
    pub(crate) incoming: Incoming,
    pub(crate) sender: RestSender<Full<Bytes>>,
    pub(crate) events: Events,
}

/// The models of an address, which are one.
async fn list<M: Models>(
    proxy: &Proxy<M>,
    request: &Request<Incoming>,
    retrieved: bool,
    id: &HeaderValue,
    exchange: &mut Exchange,
) -> Result<Response<ProxyBody>, Stop> {
    let internal = exchange.internal().ok_or_else(Refusal::unnamed)?;
    let path = request.uri().path();
    let (name, asked) = (routes::model_in(path), routes::last_in(path));
    if retrieved && asked != name {
        let message = format!("no model {asked} at this address, which serves {name}");
        return Err(Failure::coded(404, "model_not_found", message).into());
    }
    proxy.admit(&internal, exchange).await?;
    Ok(json(StatusCode::OK, models(&name, retrieved), id))
}

async fn ask<M: Models>(
    proxy: &Proxy<M>,
    request: Request<Incoming>,
    (call, streamed): (Call, bool),
    id: &HeaderValue,
    exchange: &mut Exchange,
) -> Result<Answer, Stop> {
    let core = &proxy.core;
    let internal = exchange.internal().ok_or_else(Refusal::unnamed)?;
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        return Err(Refusal::compressed().into());
    }
    let most = core.limits.translated_bytes;
    if request.body().size_hint().lower() > most as u64 {
        return Err(Refusal::too_large(most).into());
    }
    // Before the body is read: what waits for its turn holds nothing.
    let turns = proxy.admit(&internal, exchange).await?;
    let (parts, incoming) = request.into_parts();
    let mut share = Share::none(&core.budget);
    let asked = translated(core, call, &parts, incoming, &mut share).await?;
    let stream = call.streams() && asked.stream.unwrap_or(streamed);
    let context = Context {
        call,
        id: id.to_str().unwrap_or_default().to_owned(),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        model: routes::model_in(parts.uri.path()).into_owned(),
        base64: asked.base64,
        include_usage: asked.include_usage,
    };
    let tail = if stream { "infer_stream" } else { "infer" };
    let path = rest::model_path(&turns.path, tail, &parts.uri)?;
    let request = upstream_request(core, parts.headers, path, asked.body, stream, exchange);
    let stalled = core.stalled();
    let answered = answer(core, request, context, stream, id, &mut share);
    tokio::select! {
        biased;
        answered = answered => answered,
        () = stalled.cancelled() => Err(Reset::Stalled.into()),
    }
}

/// Reads and translates a request. What it becomes stays counted in `share`.
async fn translated(
    core: &Core,
    call: Call,
    parts: &http::request::Parts,
    incoming: Incoming,
    share: &mut Share,
) -> Result<Asked, Stop> {
    let limits = &core.limits;
    let (most, deadline) = (limits.translated_bytes, limits.translated_deadline);
    let read = tokio::time::timeout(deadline, whole(incoming, most, share)).await;
    let body = match read.map_err(|_| Refusal::slow(deadline))? {
        Ok(body) => body,
        Err(NotHeld::TooLarge) => return Err(Refusal::too_large(most).into()),
        Err(NotHeld::Full) => return Err(Refusal::full().into()),
        // Nobody is there any more to be told.
        Err(NotHeld::Broken(cause)) => return Err(Reset::Broken(cause.into()).into()),
    };
    let mut names = vec![routes::model_in(parts.uri.path()).into_owned()];
    let header = headers::external(&parts.headers);
    names.extend(
        header
            .and_then(|name| name.to_str().ok())
            .map(str::to_owned),
    );
    let asked = off_thread(body.len(), move || {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        to_inference(call, &body, &names)
    })
    .await?;
    if !share.resize(asked.body.len()) {
        return Err(Refusal::full().into());
    }
    Ok(asked)
}

/// Runs what may take long elsewhere.
async fn off_thread<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if bytes <= AT_ONCE {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

fn upstream_request(
    core: &Core,
    mut fields: HeaderMap,
    path: Uri,
    body: Vec<u8>,
    stream: bool,
    exchange: &Exchange,
) -> Request<Full<Bytes>> {
    headers::strip(&mut fields);
    exchange.propagate(&mut fields);
    fields.remove(header::CONTENT_LENGTH);
    let accept = if stream {
        "text/event-stream"
    } else {
        "application/json"
    };
    for (name, value) in [
        (header::CONTENT_TYPE, "application/json"),
        (header::ACCEPT, accept),
        // It has to be read here.
        (header::ACCEPT_ENCODING, "identity"),
    ] {
        fields.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(host) = HeaderValue::from_str(&core.translated.address) {
        fields.insert(header::HOST, host);
    }
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Verb::POST;
    *request.uri_mut() = path;
    *request.headers_mut() = fields;
    request
}

/// Asks the inference server, and translates what it says; a stream only begins here.
async fn answer(
    core: &Core,
    request: Request<Full<Bytes>>,
    context: Context,
    stream: bool,
    id: &HeaderValue,
    share: &mut Share,
) -> Result<Answer, Stop> {
    let (response, sender) = core.translated.send(request).await?;
    let (mut parts, incoming) = response.into_parts();
    headers::strip(&mut parts.headers);
    let kind = parts.headers.remove(header::CONTENT_TYPE);
    let coded = parts.headers.remove(header::CONTENT_ENCODING).is_some();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts
        .headers
        .entry(headers::REQUEST_ID)
        .or_insert_with(|| id.clone());
    if coded {
        return Err(
            Failure::coded(502, "bad_model_output", "the model's answer is compressed").into(),
        );
    }
    let events = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    if stream && parts.status == StatusCode::OK && events {
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        parts.headers.insert(header::CONTENT_TYPE, kind);
        let begun = Begun {
            incoming,
            sender,
            events: Events::new(context, core.limits.translated_event_bytes),
        };
        return Ok(Answer::Stream(Box::new(parts), Box::new(begun)));
    }
    let most = core.limits.translated_bytes;
    let body = match whole(incoming, most, share).await {
        Ok(body) => body,
        Err(NotHeld::TooLarge) => {
            let message = format!("the model's answer is larger than the {most} bytes allowed");
            return Err(Failure::coded(502, "bad_model_output", message).into());
        }
        Err(NotHeld::Full) => return Err(Refusal::full().into()),
        // Nothing was said to the client yet, so another replica may be asked.
        Err(NotHeld::Broken(cause)) => return Err(Reset::Broken(cause.into()).into()),
    };
    core.translated.keep(sender);
    if parts.status != StatusCode::OK {
        let status = parts.status.as_u16();
        let status = if status < 400 { 502 } else { status };
        return Err(error_of_model(status, &body).into());
    }
    if stream {
        let message = "the model answered without a stream: it does not implement one";
        return Err(Failure::coded(502, "bad_model_output", message).into());
    }
    let answer = off_thread(body.len(), move || from_inference(&context, &body)).await?;
    let mut share = share.take();
    if !share.resize(answer.len()) {
        return Err(Refusal::full().into());
    }
    let kind = HeaderValue::from_static("application/json");
    parts.headers.insert(header::CONTENT_TYPE, kind);
    let body = ProxyBody::full(share.keep(answer.into_bytes()));
    Ok(Answer::Whole(Response::from_parts(parts, body)))
}

fn failed(failure: &Failure, id: &HeaderValue) -> Response<ProxyBody> {
    let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::BAD_GATEWAY);
    json(status, failure.body(), id)
}
