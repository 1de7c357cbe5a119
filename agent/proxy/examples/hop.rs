//! What one hop through the proxy costs: CPU of the proxy's process for each request, at saturation.
//!
//! `cargo run -p seldon-agent-proxy --example hop [--release] [seconds]`. Server, proxy and driver are processes of
//! their own that share the machine, so requests a second say little; CPU time is the figure.
use std::{
    convert::Infallible,
    env, fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use prometheus_client::registry::Registry;
use seldon_agent_proxy::{Identity, Lease, Limits, Metrics, Models, NotServed, Proxy, Upstream};
use tokio::net::{TcpListener, TcpStream};

type Failed = Box<dyn std::error::Error + Send + Sync>;

const CONNECTIONS: usize = 16;
const BODY: &[u8] = br#"{"inputs": [{"name": "predict", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2, 3, 4]]}]}"#;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server"] => serve().await,
        ["proxy", upstream] => proxy(upstream).await,
        ["driver", kind, address, seconds] => {
            let took = Duration::from_secs(seconds.parse()?);
            println!("{}", drive(kind, address, took).await?);
            Ok(())
        }
        [] => measure("5"),
        [seconds] => measure(seconds),
        _ => Err("usage: hop [seconds]".into()),
    }
}

fn measure(seconds: &str) -> Result<(), Failed> {
    let (mut server, upstream) = role(&["server"])?;
    let (mut proxy, address) = role(&["proxy", &upstream])?;
    for kind in ["rest", "grpc"] {
        role(&["driver", kind, &address, "1"])?.0.wait()?;
        let before = cpu(&proxy)?;
        let (mut driver, requests) = role(&["driver", kind, &address, seconds])?;
        driver.wait()?;
        let (requests, used) = (requests.parse::<f64>()?, cpu(&proxy)? - before);
        let rate = requests / seconds.parse::<f64>()?;
        println!(
            "{kind}: {:.1} µs CPU a request, {rate:.0} requests a second",
            used * 1e6 / requests
        );
    }
    for process in [&mut proxy, &mut server] {
        process.kill()?;
        process.wait()?;
    }
    Ok(())
}

/// Starts this program in a role and reads the first line it prints.
fn role(arguments: &[&str]) -> Result<(Child, String), Failed> {
    let mut child = Command::new(env::current_exe()?)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("the process has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    Ok((child, line.trim().to_owned()))
}

/// Seconds of CPU a process has used.
fn cpu(process: &Child) -> Result<f64, Failed> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id()))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|ticks| ticks.parse::<f64>().ok())
            .ok_or("unknown form of stat")
    };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

async fn listen() -> Result<TcpListener, Failed> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    Ok(listener)
}

/// An inference server that costs next to nothing.
async fn serve() -> Result<(), Failed> {
    let listener = listen().await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service_fn(|request: Request<Incoming>| async move {
            let grpc = request.version() == http::Version::HTTP_2;
            request.into_body().collect().await?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = match grpc {
                true => vec![
                    Frame::data(Bytes::from_static(&[0; 5])),
                    Frame::trailers(trailers),
                ],
                false => vec![Frame::data(Bytes::from_static(b"{}"))],
            };
            let body = StreamBody::new(futures_util::stream::iter(
                frames.into_iter().map(Ok::<_, Infallible>),
            ));
            let kind = if grpc {
                "application/grpc"
            } else {
                "application/json"
            };
            let mut response = Response::new(body);
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static(kind));
            Ok::<_, hyper::Error>(response)
        });
        tokio::spawn(async move {
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

struct AnyModel;

impl Models for AnyModel {
    async fn acquire(&self, _: &str) -> Result<Lease, NotServed> {
        Ok(Lease::new(()))
    }
}

async fn proxy(upstream: &str) -> Result<(), Failed> {
    let identity = Identity {
        server: "mlserver".into(),
        replica: 0,
    };
    let metrics = Metrics::new(&identity, &mut Registry::default());
    let upstream = Upstream {
        http: upstream.into(),
        grpc: upstream.into(),
    };
    let proxy = Proxy::new(Arc::new(AnyModel), upstream, Limits::default(), metrics);
    proxy.serve(listen().await?, None, Default::default()).await;
    Ok(())
}

/// Sends requests over 16 connections, one at a time each, and counts the answers.
async fn drive(kind: &str, address: &str, took: Duration) -> Result<u64, Failed> {
    let (count, until) = (Arc::new(AtomicU64::new(0)), Instant::now() + took);
    let mut drivers = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (count, stream) = (
            count.clone(),
            TokioIo::new(TcpStream::connect(address).await?),
        );
        stream.inner().set_nodelay(true)?;
        if kind == "rest" {
            let (mut sender, connection) = http1::handshake(stream).await?;
            drivers.spawn(async move {
                let _connection = tokio::spawn(connection);
                while Instant::now() < until {
                    let request = Request::post("/v2/models/iris/infer")
                        .header("host", "agent")
                        .header("content-type", "application/json")
                        .header("seldon-model", "iris")
                        .header("seldon-internal-model", "iris_1");
                    sender.ready().await?;
                    let response = sender
                        .send_request(request.body(Full::new(Bytes::from_static(BODY)))?)
                        .await?;
                    if response.status() != 200 {
                        return Err("a request failed".into());
                    }
                    response.into_body().collect().await?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, Failed>(())
            });
        } else {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            drivers.spawn(async move {
                let _connection = tokio::spawn(connection);
                let message = [&[0, 0, 0, 0, 56, 0x3a, 54][..], &[7; 54]].concat();
                let message = Bytes::from(message);
                while Instant::now() < until {
                    let request =
                        Request::post("http://agent/inference.GRPCInferenceService/ModelInfer")
                            .header("content-type", "application/grpc")
                            .header("te", "trailers")
                            .header("seldon-model", "iris")
                            .header("seldon-internal-model", "iris_1");
                    let response = sender
                        .send_request(request.body(Full::new(message.clone()))?)
                        .await?;
                    let body = response.into_body().collect().await?;
                    if body
                        .trailers()
                        .and_then(|trailers| trailers.get("grpc-status"))
                        .is_none_or(|status| status != "0")
                    {
                        return Err("a request failed".into());
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
    }
    while let Some(driver) = drivers.join_next().await {
        driver??;
    }
    Ok(count.load(Ordering::Relaxed))
}
