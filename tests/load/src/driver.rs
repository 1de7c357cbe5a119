//! An HTTP/1.1 and gRPC load driver.
//!
//! With a rate it is an open loop: a request is due at its time whether or not earlier ones were answered, and its
//! latency counts from when it was due. Without one, each connection sends as fast as it is answered.
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpStream,
    sync::{Mutex, watch},
    time::Instant,
};

/// One kind of request; the driver goes round its list.
#[derive(Clone, Debug)]
pub struct Shot {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Shot {
    /// A REST inference for a model by header.
    pub fn rest(model: &str, body: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        if let Ok(value) = model.parse() {
            headers.insert("seldon-model", value);
        }
        Self {
            path: format!("/v2/models/{model}/infer"),
            headers,
            body: Bytes::from(body.to_owned()),
        }
    }

    /// A gRPC inference for a model by header.
    pub fn grpc(model: &str, message: &impl prost::Message) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        if let Ok(value) = model.parse() {
            headers.insert("seldon-model", value);
        }
        let bytes = message.encode_to_vec();
        let mut body = vec![0];
        body.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        body.extend_from_slice(&bytes);
        Self {
            path: "/inference.GRPCInferenceService/ModelInfer".into(),
            headers,
            body: body.into(),
        }
    }

    fn is_grpc(&self) -> bool {
        self.path.starts_with("/inference.")
    }
}

/// What to send, where, and how fast.
#[derive(Clone, Debug)]
pub struct Load {
    /// Host and port of each Envoy; connections are spread over them.
    pub targets: Vec<String>,
    pub shots: Vec<Shot>,
    pub connections: usize,
    /// Requests a second over all connections; `None`: as fast as answers come.
    pub rate: Option<f64>,
    pub deadline: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    pub sent: u64,
    pub succeeded: u64,
    /// What failed, by a short text: the status, or the error of the connection.
    pub failures: BTreeMap<String, u64>,
    /// How many successes carried this as `x-seldon-route`.
    pub routes: BTreeMap<String, u64>,
    /// Microseconds from when a request was due to the end of its answer.
    pub latency: Histogram<u64>,
    pub elapsed: Duration,
}

impl Report {
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
    pub fn per_second(&self) -> f64 {
        self.succeeded as f64 / self.elapsed.as_secs_f64()
    }
}

/// Load that is under way.
pub struct Running {
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

struct Shared {
    load: Load,
    started: Instant,
    next: AtomicU64,
    stop: watch::Sender<bool>,
    tally: Mutex<Tally>,
    done: AtomicU64,
}

struct Tally {
    succeeded: u64,
    failures: BTreeMap<String, u64>,
    routes: BTreeMap<String, u64>,
    latency: Histogram<u64>,
}

impl Tally {
    fn success(&mut self, route: &str) {
        self.succeeded += 1;
        match self.routes.get_mut(route) {
            Some(count) => *count += 1,
            None => drop(self.routes.insert(route.to_owned(), 1)),
        }
    }
}

impl Load {
    /// Starts sending; ends by [`Running::stop`].
    pub fn start(self) -> anyhow::Result<Running> {
        anyhow::ensure!(
            !self.targets.is_empty() && !self.shots.is_empty(),
            "nothing to send, or nowhere"
        );
        let latency = Histogram::new_with_max(60_000_000, 3)?;
        let shared = Arc::new(Shared {
            started: Instant::now(),
            next: AtomicU64::new(0),
            stop: watch::Sender::new(false),
            done: AtomicU64::new(0),
            tally: Mutex::new(Tally {
                succeeded: 0,
                failures: BTreeMap::new(),
                routes: BTreeMap::new(),
                latency,
            }),
            load: self,
        });
        let tasks = (0..shared.load.connections)
            .map(|lane| tokio::spawn(lane_loop(shared.clone(), lane)))
            .collect();
        Ok(Running { shared, tasks })
    }

    /// Sends for so long.
    pub async fn run(self, duration: Duration) -> anyhow::Result<Report> {
        let running = self.start()?;
        tokio::time::sleep(duration).await;
        running.stop().await
    }
}

impl Running {
    /// Requests that were answered or have failed so far.
    pub fn answered(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Sends no more, waits for what is under way and reports.
    pub async fn stop(self) -> anyhow::Result<Report> {
        self.shared.stop.send_replace(true);
        let elapsed = self.shared.started.elapsed();
        for task in self.tasks {
            task.await?;
        }
        let tally = self.shared.tally.lock().await;
        Ok(Report {
            sent: self.shared.done.load(Ordering::Relaxed),
            succeeded: tally.succeeded,
            failures: tally.failures.clone(),
            routes: tally.routes.clone(),
            latency: tally.latency.clone(),
            elapsed,
        })
    }
}

/// One connection: takes the next due request, waits for its time, sends, waits for the answer.
async fn lane_loop(shared: Arc<Shared>, lane: usize) {
    let load = &shared.load;
    let target = &load.targets[lane % load.targets.len()];
    let mut rest: Option<http1::SendRequest<Full<Bytes>>> = None;
    let mut grpc: Option<http2::SendRequest<Full<Bytes>>> = None;
    let mut stop = shared.stop.subscribe();
    while !*stop.borrow() {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let due = match load.rate {
            Some(rate) => shared.started + Duration::from_secs_f64(number as f64 / rate),
            None => Instant::now(),
        };
        let waits = Instant::now() < due;
        tokio::select! {
            biased;
            () = async { drop(stop.wait_for(|stopped| *stopped).await) } => return,
            () = tokio::time::sleep_until(due) => {}
        }
        // A timer rings up to a millisecond late, which is not the system's doing; that this connection was busy is.
        let due = if waits { Instant::now() } else { due };
        let shot = &load.shots[number as usize % load.shots.len()];
        let outcome = tokio::time::timeout(load.deadline, async {
            if shot.is_grpc() {
                send_grpc(&mut grpc, target, shot).await
            } else {
                send_rest(&mut rest, target, shot).await
            }
        })
        .await
        .unwrap_or_else(|_| Err("deadline".into()));
        if outcome.is_err() {
            (rest, grpc) = (None, None);
        }
        shared.done.fetch_add(1, Ordering::Relaxed);
        let mut tally = shared.tally.lock().await;
        match outcome {
            Ok(route) => tally.success(
                route
                    .as_ref()
                    .map_or("", |route| route.to_str().unwrap_or("?")),
            ),
            Err(text) => *tally.failures.entry(text).or_default() += 1,
        }
        let _ = tally.latency.record(due.elapsed().as_micros() as u64);
    }
}

fn request(target: &str, shot: &Shot) -> Result<Request<Full<Bytes>>, String> {
    let uri = if shot.is_grpc() {
        format!("http://{target}{}", shot.path)
    } else {
        shot.path.clone()
    };
    let uri: Uri = uri.parse().map_err(|e| format!("{e}"))?;
    let mut request = Request::new(Full::new(shot.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = shot.headers.clone();
    if !shot.is_grpc() {
        let host = target.parse().map_err(|_| "target is no host".to_owned())?;
        request.headers_mut().insert("host", host);
    }
    Ok(request)
}

async fn connect(target: &str) -> Result<TokioIo<TcpStream>, String> {
    let stream = TcpStream::connect(target)
        .await
        .map_err(|e| format!("connect: {}", e.kind()))?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    Ok(TokioIo::new(stream))
}

async fn send_rest(
    connection: &mut Option<http1::SendRequest<Full<Bytes>>>,
    target: &str,
    shot: &Shot,
) -> Result<Option<HeaderValue>, String> {
    if connection.as_ref().is_none_or(|c| c.is_closed()) {
        let (sender, driver) = http1::handshake(connect(target).await?)
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(driver);
        *connection = Some(sender);
    }
    let Some(sender) = connection else {
        return Err("no connection".into());
    };
    sender
        .ready()
        .await
        .map_err(|e| format!("connection: {e}"))?;
    let answer = sender
        .send_request(request(target, shot)?)
        .await
        .map_err(|e| format!("answer: {e}"))?;
    let status = answer.status();
    let route = answer.headers().get("x-seldon-route").cloned();
    let body = answer
        .into_body()
        .collect()
        .await
        .map_err(|e| format!("body: {e}"))?
        .to_bytes();
    if status.is_success() {
        return Ok(route);
    }
    let text: String = String::from_utf8_lossy(&body).chars().take(120).collect();
    Err(format!("{} {text}", status.as_u16()))
}

async fn send_grpc(
    connection: &mut Option<http2::SendRequest<Full<Bytes>>>,
    target: &str,
    shot: &Shot,
) -> Result<Option<HeaderValue>, String> {
    if connection.as_ref().is_none_or(|c| c.is_closed()) {
        let (sender, driver) = http2::handshake(TokioExecutor::new(), connect(target).await?)
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(driver);
        *connection = Some(sender);
    }
    let Some(sender) = connection else {
        return Err("no connection".into());
    };
    sender
        .ready()
        .await
        .map_err(|e| format!("connection: {e}"))?;
    let answer = sender
        .send_request(request(target, shot)?)
        .await
        .map_err(|e| format!("answer: {e}"))?;
    let early = answer.headers().get("grpc-status").cloned();
    let route = answer.headers().get("x-seldon-route").cloned();
    let http_status = answer.status();
    let collected = answer
        .into_body()
        .collect()
        .await
        .map_err(|e| format!("body: {e}"))?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let status = early.or_else(|| trailers.get("grpc-status").cloned());
    match status.as_ref().and_then(|s| s.to_str().ok()) {
        Some("0") => Ok(route),
        Some(code) => Err(format!("grpc {code}")),
        None => Err(format!("no grpc-status, http {}", http_status.as_u16())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Behaviour, serve};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn both_protocols_are_answered_and_failures_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string();
        tokio::spawn(serve(listener, Behaviour::default()));
        let message = seldon_proto::inference::ModelInferRequest {
            model_name: "m".into(),
            ..Default::default()
        };
        let mut lost = Shot::rest("m", "{}");
        lost.path = "/nowhere".into();
        let load = Load {
            targets: vec![target],
            shots: vec![Shot::rest("m", "{}"), Shot::grpc("m", &message), lost],
            connections: 3,
            rate: Some(600.0),
            deadline: Duration::from_secs(5),
        };
        let report = load.run(Duration::from_millis(500)).await.unwrap();
        assert_eq!(report.sent, report.succeeded + report.failed());
        assert!(report.succeeded > 50, "{report:?}");
        let reasons: Vec<_> = report.failures.keys().collect();
        assert!(reasons.iter().all(|r| r.starts_with("404")), "{reasons:?}");
    }
}
