//! A trivially fast inference server: REST and gRPC on both of its ports, answers that cost nothing to make.
//!
//! Of its models it keeps the names, for its index: every load succeeds after [`Behaviour::load`], every inference is
//! answered at once with the model's name in it, so that a test can see who answered. What it was asked is in its
//! [`Ledger`], which `GET /fake/asked` shows.
use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use prost::Message as _;
use seldon_proto::inference as pb;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::echo;
use crate::ledger::{Inference, Ledger};

/// How the server treats what it is asked.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// How long a load takes.
    pub load: Duration,
    /// If set, only of models whose name starts so.
    pub load_prefix: Option<String>,
    /// How long an inference takes.
    pub infer: Duration,
    /// Loads of models whose name starts so are refused.
    pub refuse_prefix: Option<String>,
    /// Inferences of models whose name starts so are never answered.
    pub hang_prefix: Option<String>,
    /// Inferences of models whose name starts so fail: 500, or `INTERNAL`.
    pub fail_prefix: Option<String>,
    /// Inferences of models whose name starts so take this long.
    pub slow: Option<(String, Duration)>,
    /// So many of those at a time, over all listeners; none given is no limit.
    pub slow_slots: Option<Arc<Semaphore>>,
    /// Of models whose name starts so, each request is recorded.
    pub record_prefix: Option<String>,
    /// Models whose name starts so answer with their inputs as outputs.
    pub echo_prefix: Option<String>,
}

fn begins(model: &str, prefix: Option<&str>) -> bool {
    prefix.is_some_and(|prefix| model.starts_with(prefix))
}

type Frames = futures_list::Frames;
type Answer = Response<Either<Full<Bytes>, StreamBody<Frames>>>;

/// Serves until dropped or aborted.
pub async fn serve(listener: TcpListener, behaviour: Behaviour) {
    serve_with(listener, behaviour, Arc::default()).await;
}

/// Serves until dropped or aborted, and notes what it is asked in a ledger that others may share.
pub async fn serve_with(listener: TcpListener, behaviour: Behaviour, ledger: Arc<Ledger>) {
    let server = Arc::new(Server { behaviour, ledger });
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let server = server.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, server.clone()));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(100_000);
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

struct Server {
    behaviour: Behaviour,
    ledger: Arc<Ledger>,
}

async fn answer(request: Request<Incoming>, server: Arc<Server>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    let body = body.unwrap_or_default();
    let path = head.uri.path();
    Ok(
        match path.strip_prefix("/inference.GRPCInferenceService/") {
            Some(call) => server.grpc(call, &head.headers, &body).await,
            None => server.rest(&head.method, path, &head.headers, &body).await,
        },
    )
}

impl Server {
    /// Notes an inference and takes its time; tells whether it is to fail.
    async fn infer(
        &self,
        model: &str,
        protocol: &'static str,
        headers: &HeaderMap,
        body: &[u8],
    ) -> bool {
        let behaviour = &self.behaviour;
        let record = begins(model, behaviour.record_prefix.as_deref());
        let inference = || Inference::new(model, protocol, headers, body);
        self.ledger.note(model, record.then(inference));
        if begins(model, behaviour.hang_prefix.as_deref()) {
            std::future::pending::<()>().await;
        }
        let slow = behaviour.slow.as_ref();
        let slow = slow.filter(|(prefix, _)| model.starts_with(prefix));
        let time = slow.map_or(behaviour.infer, |(_, time)| *time);
        let slots = behaviour.slow_slots.as_ref().filter(|_| slow.is_some());
        let _slot = match slots {
            // Never closed.
            Some(slots) => slots.acquire().await.ok(),
            None => None,
        };
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        begins(model, behaviour.fail_prefix.as_deref())
    }

    async fn rest(&self, method: &Method, path: &str, headers: &HeaderMap, body: &[u8]) -> Answer {
        let rest = path.strip_prefix("/v2/models/").unwrap_or_default();
        let (model, verb) = rest.split_once('/').unwrap_or((rest, ""));
        let json = match (method, verb) {
            (&Method::POST, "infer") => {
                if self.infer(model, "rest", headers, body).await {
                    return failed(StatusCode::INTERNAL_SERVER_ERROR, "this model fails");
                }
                if begins(model, self.behaviour.echo_prefix.as_deref()) {
                    match echo::rest(model, body) {
                        Some(answer) => answer,
                        None => return failed(StatusCode::BAD_REQUEST, "this is no request"),
                    }
                } else {
                    format!(
                        r#"{{"model_name":"{model}","outputs":[{{"name":"predict","shape":[1],"datatype":"INT64","data":[2]}}]}}"#
                    )
                }
            }
            (&Method::GET, "ready" | "") if !model.is_empty() => format!(r#"{{"name":"{model}"}}"#),
            (&Method::GET, _) if path.starts_with("/v2/health/") => "{}".to_owned(),
            (&Method::GET, _) if path == "/fake/asked" => self.ledger.json(),
            _ => return failed(StatusCode::NOT_FOUND, "not found"),
        };
        let mut answer = full(json.into());
        answer
            .headers_mut()
            .insert("content-type", HeaderValue::from_static("application/json"));
        answer
    }

    async fn grpc(&self, call: &str, headers: &HeaderMap, body: &Bytes) -> Answer {
        let behaviour = &self.behaviour;
        let message = body.get(5..).unwrap_or_default();
        match call {
            "ServerLive" => reply(&pb::ServerLiveResponse { live: true }),
            "ServerReady" => reply(&pb::ServerReadyResponse { ready: true }),
            "ModelReady" => reply(&pb::ModelReadyResponse { ready: true }),
            // An agent that misses here what it has loaded takes the server for one that restarts again and again.
            "RepositoryIndex" => {
                let ready = |name: &String| pb::repository_index_response::ModelIndex {
                    name: name.clone(),
                    state: "READY".to_owned(),
                    ..Default::default()
                };
                let models = self.ledger.held().iter().map(ready).collect();
                reply(&pb::RepositoryIndexResponse { models })
            }
            "RepositoryModelUnload" => {
                let name = pb::RepositoryModelUnloadRequest::decode(message)
                    .map(|r| r.model_name)
                    .unwrap_or_default();
                self.ledger.hold(name, false);
                reply(&pb::RepositoryModelUnloadResponse {})
            }
            "RepositoryModelLoad" => {
                let name = pb::RepositoryModelLoadRequest::decode(message)
                    .map(|r| r.model_name)
                    .unwrap_or_default();
                if begins(&name, behaviour.refuse_prefix.as_deref()) {
                    return status("3", "this model cannot be loaded");
                }
                let all = behaviour.load_prefix.is_none();
                if all || begins(&name, behaviour.load_prefix.as_deref()) {
                    tokio::time::sleep(behaviour.load).await;
                }
                self.ledger.hold(name, true);
                reply(&pb::RepositoryModelLoadResponse {})
            }
            "ModelInfer" => {
                let request = pb::ModelInferRequest::decode(message).unwrap_or_default();
                if self
                    .infer(&request.model_name, "grpc", headers, message)
                    .await
                {
                    return status("13", "this model fails");
                }
                if begins(&request.model_name, behaviour.echo_prefix.as_deref()) {
                    return reply(&echo::grpc(request));
                }
                reply(&pb::ModelInferResponse {
                    model_name: request.model_name,
                    id: request.id,
                    ..Default::default()
                })
            }
            _ => status("12", "unimplemented"),
        }
    }
}

fn full(body: Bytes) -> Answer {
    Response::new(Either::Left(Full::new(body)))
}

fn failed(status: StatusCode, error: &str) -> Answer {
    let mut answer = full(format!("{{\"error\":\"{error}\"}}").into());
    *answer.status_mut() = status;
    answer
}

fn reply(message: &impl prost::Message) -> Answer {
    let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    frame.extend_from_slice(&message.encode_to_vec());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = vec![Frame::data(frame.freeze()), Frame::trailers(trailers)];
    let mut answer = Response::new(Either::Right(StreamBody::new(futures_list::frames(frames))));
    answer
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    answer
}

fn status(code: &'static str, text: &'static str) -> Answer {
    let mut answer = full(Bytes::new());
    let headers = answer.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(code));
    headers.insert("grpc-message", HeaderValue::from_static(text));
    answer
}

/// A stream over a list of frames.
mod futures_list {
    use super::*;

    pub(super) type Frames =
        futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;

    pub(super) fn frames(list: Vec<Frame<Bytes>>) -> Frames {
        let list: Vec<_> = list.into_iter().map(Ok).collect();
        futures_util::stream::iter(list)
    }
}
