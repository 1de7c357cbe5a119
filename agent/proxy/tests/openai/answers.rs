//! What is translated both ways, and who answers.
use std::sync::atomic::Ordering;

use seldon_agent_proxy::Limits;
use serde_json::json;

use crate::{
    refusals::refused,
    server::{CHAT, IRIS, body, chat, outputs, parsed, start},
    support::text,
};

#[tokio::test]
async fn a_chat_is_translated_both_ways() {
    let (world, server) = start(Limits::default()).await;
    server.says(200, outputs("hello"));
    let fields = [
        IRIS,
        ("seldon-model", "iris"),
        ("x-request-id", "own"),
        ("content-type", "text/plain"),
        ("accept-encoding", "gzip"),
        ("authorization", "Bearer key"),
        ("x-seldon-scope", "i:other"),
    ];
    let path = format!("{CHAT}?a=b");
    let response = world
        .send("POST", &path, &fields, chat(json!({"temperature": 0.5})))
        .await;
    assert_eq!(response.status(), 200);
    for (name, value) in [
        ("content-type", "application/json"),
        ("x-request-id", "own"),
        ("x-of-model", "1"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    let mut answer = parsed(response).await;
    let created = answer["created"].take().as_u64().unwrap();
    assert!(created > 1_700_000_000);
    let message = json!({"role": "assistant", "content": "hello"});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(
        answer,
        json!({
            "id": "chatcmpl-own", "object": "chat.completion", "created": null, "model": "iris",
            "choices": [choice], "usage": null,
        })
    );

    let asked = server.last();
    assert_eq!(asked.line, "POST /v2/models/iris_1/infer?a=b");
    assert_eq!(asked.body["inputs"][1]["data"], json!(["hi"]));
    let options = json!({"llm_parameters": {"temperature": 0.5}});
    assert_eq!(asked.body["parameters"], options);
    for (name, value) in [
        ("content-type", "application/json"),
        ("accept", "application/json"),
        ("accept-encoding", "identity"),
        ("authorization", "Bearer key"),
        ("x-request-id", "own"),
    ] {
        assert_eq!(asked.fields[name], value);
    }
    assert!(!asked.fields.contains_key("x-seldon-scope"));
    let line = "seldon_model_infer_total{code=\"200\",method_type=\"rest\",model=\"iris\",model_internal=\"iris_1\",server=\"mlserver\",server_replica=\"0\"} 1";
    assert!(world.metrics().contains(line), "{}", world.metrics());
    assert_eq!(world.registry.in_flight.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn other_calls_and_the_path_of_streams() {
    let (world, server) = start(Limits::default()).await;
    let tensor = json!({"name": "embedding", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]});
    server.says(200, json!({ "outputs": [tensor] }).to_string());
    let request = json!({"model": "iris", "input": "a", "encoding_format": "base64"});
    let path = "/v2/models/iris/infer_stream/embeddings";
    let answer = world
        .send("POST", path, &[IRIS], text(&request.to_string()))
        .await;
    // An embedding is never streamed.
    assert_eq!(parsed(answer).await["data"][0]["embedding"], "AACAPwAAAEA=");
    assert_eq!(server.last().line, "POST /v2/models/iris_1/infer");

    let streamed = |stream: bool| json!({"prompt": "a", "stream": stream});
    let silent = json!({"prompt": "a"});
    for (path, more, line) in [
        ("infer_stream/completions", silent.clone(), "infer_stream"),
        ("infer_stream/completions", streamed(false), "infer"),
        ("infer/completions", streamed(true), "infer_stream"),
        ("versions/3/infer/completions", silent.clone(), "infer"),
        ("infer/images/generations", silent, "infer"),
    ] {
        server.says(500, "{}");
        let path = format!("/v2/models/iris/{path}");
        world.send("POST", &path, &[IRIS], chat(more)).await;
        assert_eq!(server.last().line, format!("POST /v2/models/iris_1/{line}"));
    }
}

#[tokio::test]
async fn the_body_names_what_path_or_header_names() {
    let (world, server) = start(Limits::default()).await;
    for (path, header, model, status) in [
        ("iris", "iris", "iris", 200),
        ("%69ris", "iris", "iris", 200),
        ("x.experiment", "x.experiment", "x.experiment", 200),
        ("iris", "x.experiment", "x.experiment", 200),
        ("iris", "x.experiment", "iris", 200),
        ("x.experiment", "x.experiment", "iris", 404),
        ("iris", "iris", "iris_1", 404),
    ] {
        server.says(200, outputs("a"));
        let fields = [IRIS, ("seldon-model", header)];
        let path = format!("/v2/models/{path}/infer/chat/completions");
        let response = world
            .send("POST", &path, &fields, chat(json!({ "model": model })))
            .await;
        assert_eq!(response.status(), status, "{path} {header} {model}");
    }
}

#[tokio::test]
async fn an_address_lists_its_model() {
    let (world, _server) = start(Limits::default()).await;
    let model = json!({"id": "iris", "object": "model", "created": 0, "owned_by": "seldon"});
    let list = json!({"object": "list", "data": [model]});
    for (path, wanted) in [("models", list), ("models/iris", model)] {
        let path = format!("/v2/models/iris/infer/{path}");
        let response = world.send("GET", &path, &[IRIS], text("")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(parsed(response).await, wanted);
        let response = world.send("HEAD", &path, &[IRIS], text("")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(body(response).await, "");
        let (status, _) = refused(&world, "POST", &path, &[IRIS], text("")).await;
        assert_eq!(status, 405);
        let gone = [("seldon-internal-model", "gone_1")];
        let (status, error) = refused(&world, "GET", &path, &gone, text("")).await;
        assert_eq!((status, &error["code"]), (404, &"model_not_found".into()));
    }
    let path = "/v2/models/iris/infer/models/other";
    let (status, error) = refused(&world, "GET", path, &[IRIS], text("")).await;
    assert_eq!((status, &error["code"]), (404, &"model_not_found".into()));
}

#[tokio::test]
async fn large_bodies_are_translated_elsewhere() {
    let (world, server) = start(Limits::default()).await;
    let long = "é\"".repeat(500_000);
    server.says(200, outputs(&long));
    let sent = json!({"model": "iris", "messages": [{"role": "user", "content": long}]});
    let answer = world
        .send("POST", CHAT, &[IRIS], text(&sent.to_string()))
        .await;
    let answer = parsed(answer).await;
    assert!(answer["choices"][0]["message"]["content"] == long);
    assert!(server.last().body["inputs"][1]["data"][0] == long);
}
