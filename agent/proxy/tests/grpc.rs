//! gRPC through the proxy to a real server.
#![allow(clippy::unwrap_used)] // a test may
mod support;

use std::{io::Write as _, sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use seldon_agent_proxy::{Limits, Upstream};
use seldon_proto::inference::*;
use support::{Body, Seen, World, eventually, named};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

fn infer(model_name: &str, id: &str) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model_name.into(),
        model_version: "9".into(),
        id: id.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn every_rpc_of_a_model_names_it() {
    let world = World::start(Limits::default()).await;
    let mut client = world.grpc().await;
    let answer = client
        .model_infer(named("iris_1", infer("evil_1", "a")))
        .await
        .unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap().len(), 20);
    let answer = answer.into_inner();
    assert_eq!(
        (
            answer.model_name.as_str(),
            answer.model_version.as_str(),
            answer.id.as_str()
        ),
        ("iris_1", "", "a")
    );
    let ready = ModelReadyRequest {
        name: "evil_1".into(),
        version: "9".into(),
    };
    assert!(
        client
            .model_ready(named("iris_1", ready))
            .await
            .unwrap()
            .into_inner()
            .ready
    );
    let asked = ModelMetadataRequest {
        name: "evil_1".into(),
        version: "9".into(),
    };
    let metadata = client
        .model_metadata(named("iris_1", asked))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (metadata.name.as_str(), metadata.versions),
        ("iris_1", vec![String::new()])
    );
    assert!(
        client
            .server_live(ServerLiveRequest {})
            .await
            .unwrap()
            .into_inner()
            .live
    );
    assert!(
        client
            .server_ready(ServerReadyRequest {})
            .await
            .unwrap()
            .into_inner()
            .ready
    );
    assert_eq!(
        client
            .server_metadata(ServerMetadataRequest {})
            .await
            .unwrap()
            .into_inner()
            .name,
        "inner"
    );
}

#[tokio::test]
async fn metadata_passes_both_ways() {
    let world = World::start(Limits::default()).await;
    let mut client = world.grpc().await;
    let mut request = named("iris_1", infer("", ""));
    for (name, value) in [
        ("x-request-id", "mine"),
        ("x-mine", "1"),
        ("x-seldon-scope", "i:x"),
        ("traceparent", "00-0-0-01"),
    ] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let answer = client.model_infer(request).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap(), "mine");
    let seen = world.seen.metadata.lock().unwrap().clone().unwrap();
    assert_eq!(
        (
            seen.get("x-request-id").unwrap(),
            seen.get("x-mine").unwrap()
        ),
        (&"mine".parse().unwrap(), &"1".parse().unwrap())
    );
    assert!(seen.get("traceparent").is_some() && seen.get("x-seldon-scope").is_none());
    let failed = client
        .model_infer(named("iris_1", infer("", "fail")))
        .await
        .unwrap_err();
    assert_eq!(
        (failed.code(), failed.message()),
        (Code::FailedPrecondition, "asked to fail")
    );
    for line in [
        "code=\"OK\",method_type=\"grpc\",model=\"iris\",model_internal=\"iris_1\"",
        "code=\"FailedPrecondition\",method_type=\"grpc\",model=\"iris\",model_internal=\"iris_1\"",
        "code=\"OK\",method=\"/inference.GRPCInferenceService/ModelInfer\"",
    ] {
        assert!(world.metrics().contains(line), "{line}");
    }
}

#[tokio::test]
async fn refusals_are_statuses() {
    let world = World::start(Limits::default()).await;
    let mut client = world.grpc().await;
    let unnamed = client.model_infer(infer("iris", "")).await.unwrap_err();
    assert_eq!(unnamed.code(), Code::FailedPrecondition);
    assert!(unnamed.message().contains("seldon-internal-model"));
    assert_eq!(unnamed.metadata().get("x-request-id").unwrap().len(), 20);
    let unknown = client
        .model_infer(named("unknown_1", infer("", "")))
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("unknown_1"));
    let full = client
        .model_infer(named("full_1", infer("", "")))
        .await
        .unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    let broken = client
        .model_infer(named("broken_1", infer("", "")))
        .await
        .unwrap_err();
    assert_eq!(broken.code(), Code::Unavailable);
    // Envoy is to ask another replica for what this one does not have, and for nothing else.
    let absent = [unnamed, unknown, full, broken]
        .map(|status| status.metadata().contains_key("x-seldon-absent"));
    assert_eq!(absent, [false, true, false, true]);
    let load = RepositoryModelLoadRequest::default();
    assert_eq!(
        client
            .repository_model_load(named("iris_1", load))
            .await
            .unwrap_err()
            .code(),
        Code::Unimplemented
    );
    let index = RepositoryIndexRequest::default();
    assert_eq!(
        client
            .repository_index(named("iris_1", index))
            .await
            .unwrap_err()
            .code(),
        Code::Unimplemented
    );
}

#[tokio::test]
async fn every_message_of_a_stream_names_the_model_at_once() {
    let world = World::start(Limits::default()).await;
    let mut client = world.grpc().await;
    let (send, messages) = tokio::sync::mpsc::channel(1);
    let request = named(
        "iris_1",
        tokio_stream::wrappers::ReceiverStream::new(messages),
    );
    send.send(infer("evil_1", "0")).await.unwrap();
    let mut answers = client
        .model_stream_infer(request)
        .await
        .unwrap()
        .into_inner();
    for count in 0..5 {
        // The next message is sent only after the answer to this one.
        let answer = answers.next().await.unwrap().unwrap();
        assert_eq!(
            (answer.model_name.as_str(), answer.id),
            ("iris_1", count.to_string())
        );
        send.send(infer("evil_1", &(count + 1).to_string()))
            .await
            .unwrap();
    }
    drop(send);
    assert!(answers.next().await.unwrap().is_ok());
    assert!(answers.next().await.is_none());
    eventually("the model is let go", || {
        world.registry.in_flight.load(Ordering::SeqCst) == 0
    })
    .await;
}

/// Sends a body as it is, piece by piece; returns the response's headers, body and trailers.
async fn raw(
    world: &World,
    path: &str,
    fields: &[(&str, &str)],
    pieces: Vec<Vec<u8>>,
) -> Result<(HeaderMap, Bytes, HeaderMap), hyper::Error> {
    let stream = TcpStream::connect(world.address).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let pieces = pieces
        .into_iter()
        .map(|piece| Ok(Frame::data(Bytes::from(piece))));
    let body: Body = BodyExt::boxed(StreamBody::new(stream::iter(pieces)));
    let mut request = Request::post(format!("http://agent{path}"))
        .header("content-type", "application/grpc")
        .header("seldon-internal-model", "iris_1")
        .header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let (parts, body) = sender
        .send_request(request.body(body).unwrap())
        .await?
        .into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok((parts.headers, body.to_bytes(), trailers))
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

#[tokio::test]
async fn messages_may_be_cut_anywhere() {
    let world = World::start(Limits::default()).await;
    let frame = framed(0, &infer("evil_1", "cut").encode_to_vec());
    let pieces = frame.iter().map(|byte| vec![*byte]).collect();
    let (_, body, trailers) = raw(&world, INFER, &[], pieces).await.unwrap();
    let answer = ModelInferResponse::decode(&body[5..]).unwrap();
    assert_eq!(
        (answer.model_name.as_str(), answer.id.as_str()),
        ("iris_1", "cut")
    );
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(trailers["x-request-id"].len(), 20);
}

#[tokio::test]
async fn compressed_messages_go_on_uncompressed() {
    let world = World::start(Limits {
        decompressed_bytes: 1 << 20,
        ..Limits::default()
    })
    .await;
    let gzip = |message: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(message).unwrap();
        framed(1, &encoder.finish().unwrap())
    };
    let compressed = gzip(&infer("evil_1", "zip").encode_to_vec());
    let (_, body, _) = raw(
        &world,
        INFER,
        &[("grpc-encoding", "gzip")],
        vec![compressed.clone()],
    )
    .await
    .unwrap();
    assert_eq!(
        ModelInferResponse::decode(&body[5..]).unwrap().model_name,
        "iris_1"
    );
    assert!(
        world
            .seen
            .metadata
            .lock()
            .unwrap()
            .as_ref()
            .unwrap()
            .get("grpc-encoding")
            .is_none()
    );
    let bomb = gzip(&vec![0; 4 << 20]);
    for (encoding, body, code) in [
        ("gzip", bomb, "8"),
        ("zstd", compressed.clone(), "12"),
        ("identity", compressed, "13"),
    ] {
        let (fields, _, _) = raw(&world, INFER, &[("grpc-encoding", encoding)], vec![body])
            .await
            .unwrap();
        assert_eq!(fields["grpc-status"], code, "{encoding}");
    }
}

#[tokio::test]
async fn malformed_messages_never_reach_the_server() {
    let world = World::start(Limits {
        message_bytes: 1 << 20,
        ..Limits::default()
    })
    .await;
    let swallow = framed(0, b"\x0a\x06evil_1\xa2\x06\x0a");
    let long = [0, 0xff, 0xff, 0xff, 0xff];
    for (body, code) in [
        (swallow, "3"),
        (long.to_vec(), "8"),
        (vec![0, 0, 0], "3"),
        (Vec::new(), "3"),
        (framed(7, b""), "13"),
    ] {
        let (fields, _, _) = raw(&world, INFER, &[], vec![body.clone()]).await.unwrap();
        assert_eq!(fields["grpc-status"], code, "{body:?}");
    }
    assert!(world.seen.infer.lock().unwrap().is_empty());
    // A later message of a stream that already has answers.
    let stream = "/inference.GRPCInferenceService/ModelStreamInfer";
    let pieces = vec![
        framed(0, &infer("a", "1").encode_to_vec()),
        framed(0, b"\x0a\x06evil_1\xa3\x06"),
    ];
    let (fields, _, trailers) = raw(&world, stream, &[], pieces).await.unwrap();
    assert_eq!(
        fields
            .get("grpc-status")
            .or(trailers.get("grpc-status"))
            .unwrap(),
        "3"
    );
    eventually("the model is let go", || {
        world.registry.in_flight.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn only_protobuf_over_http_2_passes() {
    let world = World::start(Limits::default()).await;
    let fields = [
        ("seldon-internal-model", "iris_1"),
        ("content-type", "application/grpc"),
    ];
    assert_eq!(world.ask("POST", INFER, &fields).await.0, 415);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let world = World::start(Limits::default()).await;
    let mut client = world.grpc().await;
    let request =
        tokio::spawn(async move { client.model_infer(named("hang_1", infer("", ""))).await });
    eventually("the request arrives", || {
        world.seen.hanging.load(Ordering::SeqCst) == 1
    })
    .await;
    request.abort();
    eventually("the request is given up", || {
        world.seen.abandoned.load(Ordering::SeqCst) == 1
    })
    .await;
    eventually("the model is let go", || {
        world.registry.in_flight.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_hangs_leaves_its_neighbour_alone() {
    let limits = Limits {
        concurrent_per_model: 100,
        queue_per_model: 500,
        queue_deadline: Duration::from_millis(500),
        ..Limits::default()
    };
    let world = World::start(limits).await;
    let client = world.grpc().await;
    let hanging: Vec<_> = (0..1_000)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.model_infer(named("hang_1", infer("", ""))).await })
        })
        .collect();
    eventually("its places are taken", || {
        world.seen.hanging.load(Ordering::SeqCst) == 100
    })
    .await;
    let mut neighbour = world.grpc().await;
    for _ in 0..100 {
        neighbour
            .model_infer(named("iris_1", infer("", "")))
            .await
            .unwrap();
    }
    let refused = "seldon_model_infer_total{code=\"ResourceExhausted\",method_type=\"grpc\",model=\"hang\",model_internal=\"hang_1\",server=\"mlserver\",server_replica=\"0\"} 900";
    eventually("the rest is refused", || world.metrics().contains(refused)).await;
    world.proxy.reset_in_flight();
    let mut reset = 0;
    for request in hanging {
        reset += usize::from(request.await.unwrap().unwrap_err().code() != Code::ResourceExhausted);
    }
    assert_eq!(reset, 100);
}

#[tokio::test]
async fn an_unreachable_server_resets_the_stream_unsent() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let upstream = Upstream {
        http: gone.clone(),
        grpc: gone,
    };
    let world = World::before(upstream, Limits::default(), Arc::new(Seen::default())).await;
    let error = raw(&world, INFER, &[], vec![framed(0, b"")])
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&error)
        .unwrap()
        .downcast_ref::<h2::Error>()
        .unwrap();
    assert_eq!(cause.reason(), Some(h2::Reason::REFUSED_STREAM));
}

#[tokio::test]
async fn a_server_that_breaks_off_resets_the_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            // Takes a request and goes away.
            connection.accept().await.unwrap().unwrap();
        }
    });
    let upstream = Upstream {
        http: address.clone(),
        grpc: address,
    };
    let world = World::before(upstream, Limits::default(), Arc::new(Seen::default())).await;
    let error = raw(&world, INFER, &[], vec![framed(0, b"")])
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&error)
        .unwrap()
        .downcast_ref::<h2::Error>()
        .unwrap();
    assert!(cause.is_reset() && cause.is_remote(), "{cause}");
    assert!(
        world
            .metrics()
            .contains("code=\"Unavailable\",method_type=\"grpc\"")
    );
}

#[tokio::test]
async fn large_tensors_pass() {
    let world = World::start(Limits::default()).await;
    let mut client = world.grpc().await.max_decoding_message_size(usize::MAX);
    let tensor = Bytes::from((0..20u32 << 20).map(|n| (n >> 4) as u8).collect::<Vec<_>>());
    let request = ModelInferRequest {
        raw_input_contents: vec![tensor.clone()],
        ..infer("evil_1", "")
    };
    let answer = client
        .model_infer(named("iris_1", request))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.model_name, "iris_1");
    assert!(answer.raw_output_contents[0] == tensor);
}
