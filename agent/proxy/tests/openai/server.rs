//! An inference server that says what a test wants, behind a proxy.
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use seldon_agent_proxy::{Limits, Upstream};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};

use crate::support::{Body, Seen, World, text};

pub const IRIS: (&str, &str) = ("seldon-internal-model", "iris_1");
pub const CHAT: &str = "/v2/models/iris/infer/chat/completions";

/// What the inference server says next.
pub enum Reply {
    Json(u16, String),
    /// Server-sent events, as they are sent here.
    Events(mpsc::Receiver<Result<Bytes, std::io::Error>>),
    /// The first half of an answer.
    Broken,
    Gzip,
    Nothing,
}

/// What it was asked.
pub struct Asked {
    pub line: String,
    pub fields: HeaderMap,
    pub body: Value,
}

#[derive(Default)]
pub struct Server {
    pub asked: Mutex<Vec<Asked>>,
    pub reply: Mutex<Option<Reply>>,
}

type Sent = BoxBody<Bytes, std::io::Error>;

impl Server {
    async fn start() -> (Arc<Self>, String) {
        let server = Arc::new(Self::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let served = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = served.clone();
                let service = service_fn(move |request| {
                    let served = served.clone();
                    async move { Ok::<_, Infallible>(served.answer(request).await) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        (server, address)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Sent> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        self.asked.lock().unwrap().push(Asked {
            line: format!("{} {}", parts.method, parts.uri),
            fields: parts.headers,
            body: serde_json::from_slice(&body).unwrap(),
        });
        let full = |text: String| Full::from(text).map_err(|never| match never {}).boxed();
        let reply = self.reply.lock().unwrap().take();
        let response = Response::builder().header("x-of-model", "1");
        let json = "application/json";
        match reply.unwrap_or(Reply::Nothing) {
            Reply::Json(status, body) => response
                .status(status)
                .header("content-type", json)
                .body(full(body)),
            Reply::Events(events) => {
                let events = stream::unfold(events, |mut events| async {
                    let event = events.recv().await?;
                    Some((event.map(Frame::data), events))
                });
                let body = StreamBody::new(events).boxed();
                response
                    .header("content-type", "text/event-stream; charset=utf-8")
                    .body(body)
            }
            Reply::Broken => {
                let half = [
                    Ok(Frame::data(Bytes::from_static(b"{\"outputs\":"))),
                    Err(std::io::Error::other("it breaks")),
                ];
                response
                    .header("content-type", json)
                    .body(StreamBody::new(stream::iter(half)).boxed())
            }
            Reply::Gzip => response
                .header("content-encoding", "gzip")
                .body(full("{}".into())),
            Reply::Nothing => std::future::pending().await,
        }
        .unwrap()
    }

    /// Says what it answers to the next request.
    pub fn says(&self, status: u16, body: impl Into<String>) {
        *self.reply.lock().unwrap() = Some(Reply::Json(status, body.into()));
    }

    /// Answers the next request with the events that are sent here.
    pub fn streams(&self) -> mpsc::Sender<Result<Bytes, std::io::Error>> {
        let (sender, events) = mpsc::channel(1);
        *self.reply.lock().unwrap() = Some(Reply::Events(events));
        sender
    }

    pub fn last(&self) -> Asked {
        self.asked.lock().unwrap().pop().unwrap()
    }
}

pub async fn start(limits: Limits) -> (World, Arc<Server>) {
    let (server, address) = Server::start().await;
    let upstream = Upstream {
        http: address.clone(),
        grpc: address,
    };
    let world = World::before(upstream, limits, Arc::new(Seen::default())).await;
    (world, server)
}

/// What a model answers.
pub fn outputs(content: &str) -> String {
    let tensor = json!({"name": "content", "shape": [1], "datatype": "BYTES", "data": [content]});
    json!({"model_name": "iris_1", "outputs": [tensor]}).to_string()
}

/// The same as an event.
pub fn event(content: &str) -> Result<Bytes, std::io::Error> {
    Ok(format!("data: {}\n\n", outputs(content)).into())
}

/// A request with further options.
pub fn chat(more: Value) -> Body {
    let mut body = json!({"model": "iris", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    text(&body.to_string())
}

pub async fn body(response: Response<Incoming>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub async fn parsed(response: Response<Incoming>) -> Value {
    serde_json::from_str(&body(response).await).unwrap()
}
