//! What is refused, what is held, what a model says in place of an answer, and what is reset.
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use seldon_agent_proxy::{Limits, Upstream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    server::{CHAT, IRIS, Reply, chat, outputs, parsed, start},
    support::{Body, Seen, World, eventually, text},
};

/// Status and error of a request that is refused.
pub async fn refused(
    world: &World,
    verb: &str,
    path: &str,
    fields: &[(&str, &str)],
    sent: Body,
) -> (u16, Value) {
    let response = world.send(verb, path, fields, sent).await;
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    assert!(response.headers().contains_key("x-request-id"));
    let mut error = parsed(response).await;
    for part in ["message", "type", "code"] {
        assert!(error["error"][part].is_string(), "{error}");
    }
    (status, error["error"].take())
}

const GONE: (&str, &str) = ("seldon-internal-model", "gone_1");
const FULL: (&str, &str) = ("seldon-internal-model", "full_1");
const BROKEN: (&str, &str) = ("seldon-internal-model", "broken_1");

#[tokio::test]
async fn what_the_proxy_refuses_is_said_in_openais_form() {
    let (world, server) = start(Limits::default()).await;
    let hi = || chat(json!({}));
    let nothing = chat(json!({"messages": []}));
    let other = chat(json!({"model": "other"}));
    let gzip = ("content-encoding", "gzip");
    for (verb, fields, sent, status, code) in [
        ("POST", vec![IRIS], text("{"), 400, "invalid_json"),
        ("POST", vec![IRIS], nothing, 400, "invalid_value"),
        ("POST", vec![IRIS], other, 404, "model_not_found"),
        ("POST", vec![], hi(), 404, "model_not_found"),
        ("POST", vec![GONE], hi(), 404, "model_not_found"),
        ("POST", vec![FULL], hi(), 429, "rate_limit_exceeded"),
        ("POST", vec![BROKEN], hi(), 503, "service_unavailable"),
        ("GET", vec![IRIS], text(""), 405, "method_not_allowed"),
        (
            "POST",
            vec![IRIS, gzip],
            hi(),
            415,
            "unsupported_media_type",
        ),
    ] {
        let (found, error) = refused(&world, verb, CHAT, &fields, sent).await;
        assert_eq!((found, &error["code"]), (status, &code.into()), "{error}");
    }
    assert!(server.asked.lock().unwrap().is_empty());
    for (verb, field, name, value) in [
        ("POST", FULL, "retry-after", "7"),
        ("POST", GONE, "x-seldon-absent", "1"),
        ("GET", IRIS, "allow", "POST"),
    ] {
        let response = world.send(verb, CHAT, &[field], hi()).await;
        assert_eq!(response.headers()[name], value);
    }
    // What is not of that API is refused as ever.
    let path = "/v2/models/iris/infer/files";
    let (status, _, body) = world.ask("POST", path, &[IRIS]).await;
    let wanted = format!("{{\"error\":\"no such inference path: {path}\"}}");
    assert_eq!((status, body), (404, wanted));
}

/// A body that begins and does not end.
fn endless(first: &'static str) -> Body {
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(first.as_bytes())))]);
    let body = futures_util::StreamExt::chain(first, stream::pending());
    StreamBody::new(body).boxed()
}

#[tokio::test]
async fn what_is_held_is_bounded() {
    let limits = Limits {
        translated_bytes: 2 << 10,
        all_decompressed_bytes: 3 << 10,
        translated_deadline: Duration::from_millis(200),
        ..Limits::default()
    };
    let (world, server) = start(limits).await;
    let long = "x".repeat(3 << 10);
    let known = chat(json!({ "user": long }));
    let (status, error) = refused(&world, "POST", CHAT, &[IRIS], known).await;
    assert_eq!((status, &error["code"]), (413, &"request_too_large".into()));
    // Of unknown length.
    let pieces = (0..4).map(|_| Ok(Frame::data(Bytes::from(vec![b' '; 1 << 10]))));
    let unknown = StreamBody::new(stream::iter(pieces)).boxed();
    let (status, _) = refused(&world, "POST", CHAT, &[IRIS], unknown).await;
    assert_eq!(status, 413);
    let (status, error) = refused(&world, "POST", CHAT, &[IRIS], endless("{")).await;
    assert_eq!((status, &error["code"]), (408, &"request_timeout".into()));

    // Two that fit alone do not fit together; once the first has gone the second does.
    let large = |bytes: usize| chat(json!({ "user": "x".repeat(bytes) }));
    {
        let first = world.send("POST", CHAT, &[IRIS], large(1 << 10));
        tokio::pin!(first);
        let meanwhile = async {
            eventually("the first is at the model", || {
                server.asked.lock().unwrap().len() == 1
            })
            .await;
            refused(&world, "POST", CHAT, &[IRIS], large(1_900)).await
        };
        tokio::select! {
            _ = &mut first => panic!("the model says nothing to the first"),
            (status, error) = meanwhile => {
                assert_eq!((status, &error["code"]), (503, &"service_unavailable".into()));
            }
        }
    }
    eventually("the first is given up", || {
        world.registry.in_flight.load(Ordering::SeqCst) == 0
    })
    .await;
    server.says(200, outputs("a"));
    let response = world.send("POST", CHAT, &[IRIS], large(1_900)).await;
    assert_eq!(response.status(), 200);
    let answer = parsed(response).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "a");
    server.says(200, outputs(&long));
    let (status, error) = refused(&world, "POST", CHAT, &[IRIS], chat(json!({}))).await;
    assert_eq!((status, &error["code"]), (502, &"bad_model_output".into()));
}

#[tokio::test]
async fn what_a_model_says_instead_of_an_answer_is_passed_on() {
    let (world, server) = start(Limits::default()).await;
    let raised = "{\"error\": \"ValueError: no\"}";
    let gone = "{\"error\": \"Model iris_1 not found\"}";
    let empty = "{\"outputs\": []}";
    for (status, body, stream, wanted, message) in [
        (500, raised, false, 500, "ValueError: no"),
        (422, "{\"detail\": \"field\"}", false, 422, "field"),
        (404, gone, true, 404, "Model iris_1 not found"),
        (204, "", false, 502, "no reason"),
        (200, empty, false, 502, "none of the outputs"),
        (200, empty, true, 502, "without a stream"),
    ] {
        server.says(status, body);
        let sent = chat(json!({ "stream": stream }));
        let (found, error) = refused(&world, "POST", CHAT, &[IRIS], sent).await;
        assert_eq!(found, wanted, "{error}");
        let said = error["message"].as_str().unwrap();
        assert!(said.contains(message), "{said}");
    }
    *server.reply.lock().unwrap() = Some(Reply::Gzip);
    let (status, _) = refused(&world, "POST", CHAT, &[IRIS], chat(json!({}))).await;
    assert_eq!(status, 502);
}

#[tokio::test]
async fn what_broke_before_an_answer_is_reset() {
    let (world, server) = start(Limits::default()).await;
    for reply in [Reply::Broken, Reply::Nothing] {
        let stalls = matches!(reply, Reply::Nothing);
        *server.reply.lock().unwrap() = Some(reply);
        let request = world.try_send("POST", CHAT, &[IRIS], chat(json!({})));
        let (failed, ()) = tokio::join!(request, async {
            eventually("the model is asked", || {
                server.asked.lock().unwrap().pop().is_some()
            })
            .await;
            if stalls {
                world.proxy.reset_in_flight();
            }
        });
        assert!(failed.is_err());
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let upstream = Upstream {
        http: address.clone(),
        grpc: address,
    };
    let world = World::before(upstream, Limits::default(), Arc::new(Seen::default())).await;
    let failed = world.try_send("POST", CHAT, &[IRIS], chat(json!({}))).await;
    assert!(failed.is_err());
}
