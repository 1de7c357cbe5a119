//! A trivially fast inference server: REST and gRPC on both of its ports, answers that cost nothing to make.
//!
//! It keeps no models: every load succeeds after [`Behaviour::load`], every inference is answered at once with the
//! model's name in it, so that a test can see who answered.
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
use tokio::net::TcpListener;

/// How the server treats what it is asked.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// How long a load takes.
    pub load: Duration,
    /// How long an inference takes.
    pub infer: Duration,
    /// Loads of models whose name starts so are refused.
    pub refuse_prefix: Option<String>,
    /// Inferences of models whose name starts so are never answered.
    pub hang_prefix: Option<String>,
}

type Frames = futures_list::Frames;
type Answer = Response<Either<Full<Bytes>, StreamBody<Frames>>>;

/// Serves until dropped or aborted.
pub async fn serve(listener: TcpListener, behaviour: Behaviour) {
    let behaviour = Arc::new(behaviour);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let behaviour = behaviour.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, behaviour.clone()));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http2().max_concurrent_streams(100_000);
            let _ = builder
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    behaviour: Arc<Behaviour>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let collected = request.into_body().collect().await;
    let body = collected.map(|b| b.to_bytes()).unwrap_or_default();
    Ok(
        match path.strip_prefix("/inference.GRPCInferenceService/") {
            Some(call) => grpc(call, &body, &behaviour).await,
            None => rest(&method, &path, &behaviour).await,
        },
    )
}

async fn infer_time(model: &str, behaviour: &Behaviour) {
    if behaviour
        .hang_prefix
        .as_deref()
        .is_some_and(|p| model.starts_with(p))
    {
        std::future::pending::<()>().await;
    }
    if !behaviour.infer.is_zero() {
        tokio::time::sleep(behaviour.infer).await;
    }
}

async fn rest(method: &Method, path: &str, behaviour: &Behaviour) -> Answer {
    let rest = path.strip_prefix("/v2/models/").unwrap_or_default();
    let (model, verb) = rest.split_once('/').unwrap_or((rest, ""));
    let json = match (method, verb) {
        (&Method::POST, "infer") => {
            infer_time(model, behaviour).await;
            format!(
                r#"{{"model_name":"{model}","outputs":[{{"name":"predict","shape":[1],"datatype":"INT64","data":[2]}}]}}"#
            )
        }
        (&Method::GET, "ready" | "") if !model.is_empty() => format!(r#"{{"name":"{model}"}}"#),
        (&Method::GET, _) if path.starts_with("/v2/health/") => "{}".to_owned(),
        _ => {
            let mut answer = full("{\"error\":\"not found\"}".into());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            return answer;
        }
    };
    let mut answer = full(json.into());
    answer
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/json"));
    answer
}

fn full(body: Bytes) -> Answer {
    Response::new(Either::Left(Full::new(body)))
}

async fn grpc(call: &str, body: &Bytes, behaviour: &Behaviour) -> Answer {
    let message = body.get(5..).unwrap_or_default();
    match call {
        "ServerLive" => reply(&pb::ServerLiveResponse { live: true }),
        "ServerReady" => reply(&pb::ServerReadyResponse { ready: true }),
        "ModelReady" => reply(&pb::ModelReadyResponse { ready: true }),
        "RepositoryIndex" => reply(&pb::RepositoryIndexResponse::default()),
        "RepositoryModelUnload" => reply(&pb::RepositoryModelUnloadResponse {}),
        "RepositoryModelLoad" => {
            let name = pb::RepositoryModelLoadRequest::decode(message)
                .map(|r| r.model_name)
                .unwrap_or_default();
            if behaviour
                .refuse_prefix
                .as_deref()
                .is_some_and(|p| name.starts_with(p))
            {
                return status("3", "this model cannot be loaded");
            }
            tokio::time::sleep(behaviour.load).await;
            reply(&pb::RepositoryModelLoadResponse {})
        }
        "ModelInfer" => {
            let request = pb::ModelInferRequest::decode(message).unwrap_or_default();
            infer_time(&request.model_name, behaviour).await;
            reply(&pb::ModelInferResponse {
                model_name: request.model_name,
                id: request.id,
                ..Default::default()
            })
        }
        _ => status("12", "unimplemented"),
    }
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
