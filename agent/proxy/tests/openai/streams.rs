//! Streams, event by event.
use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use seldon_agent_proxy::Limits;
use serde_json::{Value, json};

use crate::{
    server::{CHAT, IRIS, chat, event, start},
    support::eventually,
};

/// The next piece of a stream, which is a chunk or several.
async fn next(body: &mut Incoming) -> Option<String> {
    let frame = tokio::time::timeout(Duration::from_secs(10), body.frame());
    let frame = frame.await.expect("a chunk within ten seconds")?.unwrap();
    Some(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap())
}

#[tokio::test]
async fn a_stream_is_translated_event_by_event() {
    let (world, server) = start(Limits::default()).await;
    let events = server.streams();
    let response = world
        .send("POST", CHAT, &[IRIS], chat(json!({"stream": true})))
        .await;
    let kind = &response.headers()["content-type"];
    assert_eq!(kind, "text/event-stream; charset=utf-8");
    assert_eq!(server.last().fields["accept"], "text/event-stream");
    let mut body = response.into_body();
    for content in ["He", "llo"] {
        // The next is only sent when this one has come out.
        events.send(event(content)).await.unwrap();
        let chunk = next(&mut body).await.unwrap();
        let chunk: Value = serde_json::from_str(chunk.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(chunk["choices"][0]["delta"]["content"], content);
        assert_eq!(world.registry.in_flight.load(Ordering::SeqCst), 1);
    }
    drop(events);
    let end = next(&mut body).await.unwrap();
    assert!(end.contains("\"finish_reason\":\"stop\"") && end.ends_with("data: [DONE]\n\n"));
    assert_eq!(next(&mut body).await, None);
    eventually("the model is let go", || {
        world.registry.in_flight.load(Ordering::SeqCst) == 0
    })
    .await;
    assert!(world.metrics().contains("code=\"200\",method=\"POST\""));
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_ends_it() {
    let (world, server) = start(Limits::default()).await;
    let events = server.streams();
    let response = world
        .send("POST", CHAT, &[IRIS], chat(json!({"stream": true})))
        .await;
    events.send(event("a")).await.unwrap();
    let mut body = response.into_body();
    next(&mut body).await.unwrap();
    drop(body);
    // The inference server's side of it is dropped though it has said no more.
    let closed = tokio::time::timeout(Duration::from_secs(10), events.closed());
    closed.await.expect("the inference server is told");
    eventually("the model is let go", || {
        world.registry.in_flight.load(Ordering::SeqCst) == 0
    })
    .await;
    assert!(world.metrics().contains("code=\"499\",method=\"POST\""));
}

#[tokio::test]
async fn a_stream_that_fails_says_so() {
    let limits = Limits {
        translated_event_bytes: 4 << 10,
        ..Limits::default()
    };
    let (world, server) = start(limits).await;
    let said = Bytes::from_static(b"data: {\"error\": \"no\"}\n\n");
    for (bad, code) in [
        (Err(std::io::Error::other("it breaks")), "upstream_error"),
        (Ok(said), "server_error"),
        (Ok(Bytes::from(vec![b'x'; 8 << 10])), "bad_model_output"),
    ] {
        let events = server.streams();
        let response = world
            .send("POST", CHAT, &[IRIS], chat(json!({"stream": true})))
            .await;
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        events.send(event("a")).await.unwrap();
        next(&mut body).await.unwrap();
        events.send(bad).await.unwrap();
        let last = next(&mut body).await.unwrap();
        let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(error["error"]["code"], code, "{error}");
        assert_eq!(next(&mut body).await, None);
    }
    eventually("each is counted as what it became", || {
        let page = world.metrics();
        ["500", "502"]
            .iter()
            .all(|code| page.contains(&format!("code=\"{code}\",method=\"POST\"")))
    })
    .await;
}

#[tokio::test]
async fn an_event_for_which_there_is_no_room_ends_a_stream() {
    let limits = Limits {
        all_decompressed_bytes: 2 << 10,
        ..Limits::default()
    };
    let (world, server) = start(limits).await;
    let events = server.streams();
    let response = world
        .send("POST", CHAT, &[IRIS], chat(json!({"stream": true})))
        .await;
    let mut body = response.into_body();
    // Within the length of an event, but others may hold no more.
    events
        .send(Ok(Bytes::from(vec![b'x'; 4 << 10])))
        .await
        .unwrap();
    let last = next(&mut body).await.unwrap();
    assert!(last.contains("\"code\":\"service_unavailable\""), "{last}");
    assert_eq!(next(&mut body).await, None);
}
