//! Memory stays flat while large bodies pass. Alone in its process, which it measures.
#![allow(clippy::unwrap_used)] // a test may
mod support;

use std::{fs, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use seldon_agent_proxy::{Limits, Upstream};
use support::{Body, Seen, World, sink};
use tokio::net::TcpStream;

const BODY: usize = 64 << 20;
const PIECE: usize = 64 << 10;

/// The most this process ever held, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

fn pieces(first: Bytes) -> Body {
    let rest = (0..BODY / PIECE).map(|_| Bytes::from(vec![7; PIECE]));
    let frames = std::iter::once(first)
        .chain(rest)
        .map(|piece| Ok(Frame::data(piece)));
    StreamBody::new(stream::iter(frames)).boxed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_64_mb_stream() {
    let (address, counted) = sink().await;
    let upstream = Upstream {
        http: address.clone(),
        grpc: address,
    };
    let world = World::before(upstream, Limits::default(), Arc::new(Seen::default())).await;
    let fields = [("seldon-internal-model", "iris_1")];
    world
        .send(
            "POST",
            "/v2/models/iris/infer",
            &fields,
            support::text("warm"),
        )
        .await;
    let before = peak();
    for _ in 0..3 {
        let response = world
            .send(
                "POST",
                "/v2/models/iris/infer",
                &fields,
                pieces(Bytes::new()),
            )
            .await;
        assert_eq!(response.status(), 200);
    }
    let rest = peak() - before;
    assert_eq!(*counted.borrow(), 4 + 3 * BODY as u64);

    // One message whose only field is raw_input_contents.
    let mut first = BytesMut::new();
    first.put_u8(0);
    first.put_u32(5 + BODY as u32);
    first.put_slice(&[0x3a, 0x80, 0x80, 0x80, 0x20]);
    let stream = TcpStream::connect(world.address).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://agent/inference.GRPCInferenceService/ModelInfer")
        .header("content-type", "application/grpc")
        .header("seldon-internal-model", "iris_1")
        .body(pieces(first.freeze()));
    let response = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "0");
    let appended = 2 + "iris_1".len() as u64 + 2;
    assert_eq!(*counted.borrow(), 4 + 4 * BODY as u64 + 10 + appended);

    let all = peak() - before;
    assert!(
        rest < 16 << 20 && all < 24 << 20,
        "grew by {} KiB (REST) and {} KiB in all",
        rest >> 10,
        all >> 10
    );
}
