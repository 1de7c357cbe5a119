//! The gateway over a real broker of this process.
#![allow(clippy::unwrap_used)]
#[path = "gateway/bounds.rs"]
mod bounds;
mod support;

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use seldon_inference::request_from_json;
use seldon_proto::inference::*;
use seldon_records::{Headers, Outgoing, Record, header};
use serde_json::{Value, json};
use support::{PATIENCE, Scene, pipeline};
use tonic::Code;

fn one(datatype: &str, data: Value) -> Value {
    let count = data.as_array().unwrap().len();
    json!({"name": datatype, "shape": [count], "datatype": datatype, "data": data})
}

fn small() -> Value {
    json!({"inputs": [one("INT32", json!([1, 2]))]})
}

fn request(name: &str) -> ModelInferRequest {
    let mut request = request_from_json(small().to_string().as_bytes()).unwrap();
    request.model_name = name.to_owned();
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rest_round_trip_of_every_type_with_headers() {
    let mut scene = Scene::new(&[]).await;
    scene.create(&pipeline("echo", 1)).await;
    let told = scene.subscription();
    assert!(told.is_pipeline_gateway);
    assert_eq!(
        (told.subscriber_name.as_str(), told.subscriber_ip.as_str()),
        ("gateway-0", "127.0.0.1")
    );
    // One port for both: Envoy speaks HTTP/2 to it for REST as well.
    assert_eq!(told.subscriber_http_port, u32::from(scene.http.port()));
    assert_eq!(told.subscriber_grpc_port, u32::from(scene.http.port()));

    let plain = [
        ("BOOL", json!([true, false])),
        ("UINT8", json!([0, 255])),
        ("UINT16", json!([65535])),
        ("UINT32", json!([u32::MAX])),
        ("UINT64", json!([u64::MAX, 9_007_199_254_740_993u64])),
        ("INT8", json!([-128])),
        ("INT16", json!([-32768])),
        ("INT32", json!([i32::MIN])),
        ("INT64", json!([i64::MIN, 9_007_199_254_740_993i64])),
        ("FP32", json!([0.1, "NaN"])),
        ("FP64", json!([0.1, 5e-324])),
    ];
    // With FP16 all tensors travel raw, without it typed.
    for half in [false, true] {
        let mut inputs: Vec<Value> = plain.iter().map(|(t, data)| one(t, data.clone())).collect();
        if half {
            inputs.push(one("FP16", json!([1.5, -65504.0])));
        }
        let mut bytes = one("BYTES", json!(["a", "é"]));
        bytes["parameters"] = json!({"content_type": "str"});
        inputs.push(bytes);
        let body = json!({"id": "mine", "parameters": {"a": 1}, "inputs": inputs});
        let headers = [
            ("x-request-id", "test-id"),
            ("x-other", "kept"),
            ("x-seldon-route", ":old_1:"),
        ];
        let answer = scene.infer("echo", &headers, body.to_string()).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        let wanted =
            json!({"model_name": "", "id": "mine", "parameters": {"a": 1}, "outputs": inputs});
        assert_eq!(answer.json(), wanted);
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(
            text.contains(r#"{"data":[true,false],"name":"BOOL","shape":[2],"datatype":"BOOL"}"#),
            "{text}"
        );
        assert_eq!(answer.fields["x-request-id"], "test-id");
        assert_eq!(answer.fields["x-pipeline-version"], "1");
        assert_eq!(answer.fields["x-other"], "kept");
        assert_eq!(
            answer.fields["x-seldon-route"],
            ":old_1: :step_1: :other_1:"
        );
        assert_eq!(answer.fields.get_all("x-seldon-route").iter().count(), 1);
        let record = scene.saw().await;
        assert_eq!(record.key.as_deref(), Some(&b"test-id"[..]));
        assert_eq!(record.headers.text(header::PIPELINE), Some("echo"));
        assert_eq!(record.headers.text("x-other"), Some("kept"));
        assert_eq!(record.headers.text(header::ID).unwrap().len(), 32);
        assert!(
            record
                .headers
                .text(header::DEADLINE)
                .unwrap()
                .parse::<u64>()
                .unwrap()
                > 0
        );
    }
    // Nested data, an id of our own, and the name by header instead of by path.
    let body = r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"INT32","data":[[1,2],[3,4]]}]}"#;
    let named = [
        ("seldon-model", "nobody"),
        ("seldon-internal-model", "echo.pipeline"),
    ];
    let answer = scene.infer("other", &named, body).await;
    assert_eq!(answer.json()["outputs"][0]["data"], json!([1, 2, 3, 4]));
    assert_eq!(answer.fields["x-request-id"].len(), 20);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binary_tensors_and_selected_outputs() {
    let mut scene = Scene::new(&[]).await;
    scene.create(&pipeline("echo", 1)).await;
    let head = json!({"parameters": {"binary_data_output": true}, "inputs": [
        {"name": "x", "shape": [2], "datatype": "FP16", "parameters": {"binary_data_size": 4}},
        {"name": "y", "shape": [1], "datatype": "INT64", "data": [7]},
    ], "outputs": [{"name": "y"}, {"name": "x", "parameters": {"binary_data": false}}]})
    .to_string();
    let length = head.len().to_string();
    let body = [head.as_bytes(), &[0, 0x3c, 0, 0xc0]].concat();
    let answer = scene
        .infer(
            "echo",
            &[("Inference-Header-Content-Length", &length)],
            body.clone(),
        )
        .await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    assert_eq!(answer.fields["content-type"], "application/octet-stream");
    let length: usize = answer.fields["inference-header-content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let (json, binary) = answer.body.split_at(length);
    assert_eq!(
        std::str::from_utf8(json).unwrap(),
        r#"{"model_name":"","outputs":[{"data":[1.0,-2.0],"name":"x","shape":[2],"datatype":"FP16"},{"name":"y","shape":[1],"datatype":"INT64","parameters":{"binary_data_size":8}}]}"#
    );
    assert_eq!(binary, 7i64.to_le_bytes());
    let refused = scene
        .infer("echo", &[("Inference-Header-Content-Length", "9999")], body)
        .await;
    assert_eq!(
        (
            refused.status,
            refused.error().contains("9999 bytes of JSON")
        ),
        (400, true)
    );

    let mut two = small();
    two["inputs"]
        .as_array_mut()
        .unwrap()
        .push(one("BOOL", json!([true])));
    two["outputs"] = json!([{"name": "BOOL"}]);
    let answer = scene.infer("echo", &[], two.to_string()).await;
    assert_eq!(
        answer.json()["outputs"],
        json!([one("BOOL", json!([true]))])
    );
    two["outputs"] = json!([{"name": "nope"}]);
    let answer = scene.infer("echo", &[], two.to_string()).await;
    assert_eq!(answer.status, 400);
    assert!(
        answer
            .error()
            .contains("none of the outputs asked for (nope)"),
        "{}",
        answer.error()
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_on_both_ports_and_typed_errors() {
    let mut scene = Scene::new(&[]).await;
    for name in ["echo", "fail", "garbage"] {
        scene.create(&pipeline(name, 1)).await;
    }
    for address in [scene.http, scene.grpc] {
        let mut client = scene.rpc(address).await;
        // Named in the message, and with an id that the answer keeps.
        let mut message = request("echo.pipeline");
        message.id = "mine".into();
        let mut call = tonic::Request::new(message.clone());
        call.metadata_mut()
            .insert("x-request-id", "test-id".parse().unwrap());
        let answer = client.model_infer(call).await.expect("answered");
        assert_eq!(answer.metadata().get("x-request-id").unwrap(), "test-id");
        assert_eq!(
            answer.metadata().get("x-seldon-route").unwrap(),
            ":step_1: :other_1:"
        );
        let answer = answer.into_inner();
        assert_eq!(answer.id, "mine");
        assert_eq!(answer.outputs[0].contents, message.inputs[0].contents);
        let error = client
            .model_infer(request("nobody.pipeline"))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        assert!(
            error.message().contains("pipeline nobody"),
            "{}",
            error.message()
        );
        let error = client
            .model_infer(request("a.experiment"))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(
            client
                .server_ready(ServerReadyRequest {})
                .await
                .unwrap()
                .into_inner()
                .ready
        );
        let error = client
            .model_infer(request("fail.pipeline"))
            .await
            .unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Code::Unknown, "step : it broke")
        );
        assert!(error.metadata().contains_key("x-request-id"));
        let mut typed = request("fail.pipeline");
        typed.inputs[0].name = "typed".into();
        let error = client.model_infer(typed).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Code::Unavailable, "step : it broke")
        );
    }
    let failed = scene.infer("fail", &[], small().to_string()).await;
    assert_eq!(
        (failed.status, failed.error().as_str()),
        (400, "step : it broke")
    );
    let typed = small()
        .to_string()
        .replace(r#""name":"INT32""#, r#""name":"typed""#);
    assert_eq!(scene.infer("fail", &[], typed).await.status, 503);
    let garbage = scene.infer("garbage", &[], small().to_string()).await;
    assert_eq!(garbage.status, 500);
    assert!(
        garbage.error().starts_with("pipeline garbage: "),
        "{}",
        garbage.error()
    );
    let unknown = scene.infer("nobody", &[], small().to_string()).await;
    assert_eq!(
        (unknown.status, unknown.error().as_str()),
        (404, "pipeline nobody: no such pipeline on this gateway")
    );
    let invalid = scene.infer("echo", &[], "{").await;
    assert_eq!(invalid.status, 400);
    for no_request in ["[]", "7", "null", ""] {
        let invalid = scene.infer("echo", &[], no_request).await;
        assert_eq!(invalid.status, 400, "{no_request:?}");
        let said = invalid.error();
        let wanted = "pipeline echo: not a message of the inference protocol: ";
        assert!(said.starts_with(wanted), "{said}");
        let object = said.contains("expected a JSON object");
        assert!(object || no_request.is_empty(), "{said}");
    }
    let wrong = scene
        .infer("echo", &[("seldon-model", "x.experiment")], "{}")
        .await;
    assert_eq!(wrong.status, 400);
    assert_eq!(
        scene
            .get(scene.http, "/v2/pipelines/echo/infer")
            .await
            .status,
        405
    );

    let metrics = scene.get(scene.metrics, "/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    for line in [
        r#"seldon_pipeline_infer_total{code="OK",method_type="grpc",pipeline="echo",server="pipeline-gateway"} 2"#,
        r#"seldon_pipeline_infer_total{code="503",method_type="rest",pipeline="fail",server="pipeline-gateway"} 1"#,
        r#"seldon_pipeline_infer_api_seconds_count{code="400",method="POST",pipeline="fail",server="pipeline-gateway"} 1"#,
        r#"seldon_pipeline_aggregate_infer_total{method_type="grpc",server="pipeline-gateway"} "#,
        "seldon_pipeline_infer_seconds_total{",
        "seldon_pipeline_aggregate_infer_seconds_total{",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_cancellation_and_a_full_gateway() {
    let mut scene = Scene::new(&["--max-in-flight", "2", "--request-timeout-ms", "400"]).await;
    for name in ["hang", "echo"] {
        scene.create(&pipeline(name, 1)).await;
    }
    let late = scene.infer("hang", &[], small().to_string()).await;
    assert_eq!(
        (late.status, late.error().as_str()),
        (504, "pipeline hang: no answer within 400 ms")
    );
    let sooner = scene
        .infer(
            "hang",
            &[("x-envoy-expected-rq-timeout-ms", "50")],
            small().to_string(),
        )
        .await;
    assert_eq!(
        (sooner.status, sooner.error().as_str()),
        (504, "pipeline hang: no answer within 50 ms")
    );
    let mut client = scene.rpc(scene.grpc).await;
    let mut call = tonic::Request::new(request("hang.pipeline"));
    call.set_timeout(Duration::from_millis(300));
    let error = client.model_infer(call).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(
        error.message().contains("pipeline hang"),
        "{}",
        error.message()
    );

    for _ in 0..3 {
        scene.saw().await;
    }

    // Two wait: the third is refused at once. When they give up, there is place again.
    for seconds in 0..2 {
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let mut client = client.clone();
            waiting.push(tokio::spawn(async move {
                let mut call = tonic::Request::new(request("hang.pipeline"));
                call.metadata_mut()
                    .insert("x-envoy-expected-rq-timeout-ms", "60000".parse().unwrap());
                client.model_infer(call).await
            }));
        }
        // Both hold their places before anybody else asks.
        for _ in 0..2 {
            while scene.saw().await.headers.text(header::PIPELINE) != Some("hang") {}
        }
        let full = async || {
            let answer = scene.infer("echo", &[], small().to_string()).await;
            (answer.status == 429).then_some(answer)
        };
        let full = scene.until("429", full).await;
        assert_eq!(full.fields["retry-after"], "1");
        assert!(
            full.error().contains("as many requests as it can take"),
            "{}",
            full.error()
        );
        let error = client
            .model_infer(request("echo.pipeline"))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "round {seconds}");
        for call in waiting {
            call.abort();
        }
        let free = async || {
            let answer = scene.infer("echo", &[], small().to_string()).await;
            (answer.status == 200).then_some(())
        };
        scene.until("a place", free).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_with_one_request_id_get_their_own_answers() {
    let mut scene = Scene::new(&[]).await;
    scene.create(&pipeline("echo", 1)).await;
    // What others wait for is not looked at, readable or not.
    let foreign: Headers = [(header::ID, "0123"), (header::PIPELINE, "echo")]
        .into_iter()
        .collect();
    let record = Outgoing {
        topic: scene.names.pipeline_outputs("echo").into(),
        partition: Some(0),
        key: Some("same".into()),
        value: Some("nonsense".into()),
        headers: foreign,
    };
    scene.producer.send(record).await.unwrap();
    let calls = (0..100).map(|number: i32| {
        let scene = &scene;
        async move {
            let body = json!({"inputs": [one("INT32", json!([number]))]}).to_string();
            let answer = scene.infer("echo", &[("x-request-id", "same")], body).await;
            assert_eq!(answer.json()["outputs"][0]["data"], json!([number]));
            assert_eq!(answer.fields["x-request-id"], "same");
        }
    });
    futures_util::future::join_all(calls).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_reached_through_their_topics() {
    let scene = Scene::new(&[]).await;
    let unknown = scene
        .infer(
            "x",
            &[("seldon-model", "nobody.model")],
            small().to_string(),
        )
        .await;
    assert_eq!(
        (unknown.status, unknown.error().as_str()),
        (404, "model nobody: no such model on this gateway")
    );
    for model in ["m", "broken"] {
        let topics = [
            scene.names.model_inputs(model),
            scene.names.model_outputs(model),
        ];
        scene.topics(&topics, &topics[0]).await;
    }
    for name in ["m", "m.model"] {
        let found = async || {
            let answer = scene
                .infer("x", &[("seldon-model", name)], small().to_string())
                .await;
            (answer.status != 404).then_some(answer)
        };
        let answer = scene.until("the model", found).await;
        assert_eq!(answer.json()["outputs"][0]["data"], json!([1, 2]));
    }
    let broken = scene
        .infer(
            "x",
            &[("seldon-model", "broken.model")],
            small().to_string(),
        )
        .await;
    assert_eq!(
        (broken.status, broken.error().as_str()),
        (404, "broken : no such model")
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_and_metadata_ask_the_models() {
    let mut scene = Scene::new(&[]).await;
    scene.create(&pipeline("echo", 1)).await;
    scene.create(&pipeline("echo", 2)).await;
    let path = "/v2/pipelines/echo/ready";
    let waiting = scene.get(scene.http, path).await;
    assert_eq!(
        (waiting.status, waiting.error().as_str()),
        (424, "pipeline echo: models that are not ready: step")
    );
    scene.model("step", false);
    assert_eq!(scene.get(scene.http, path).await.status, 424);
    let mut client = scene.rpc(scene.grpc).await;
    let ask = |name: &str| ModelReadyRequest {
        name: name.into(),
        ..Default::default()
    };
    assert!(
        !client
            .model_ready(ask("echo.pipeline"))
            .await
            .unwrap()
            .into_inner()
            .ready
    );
    scene.model("step", true);
    assert_eq!(scene.get(scene.http, path).await.status, 200);
    assert!(
        client
            .model_ready(ask("echo"))
            .await
            .unwrap()
            .into_inner()
            .ready
    );
    let error = client.model_ready(ask("nobody")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(
        scene
            .get(scene.http, "/v2/pipelines/nobody/ready")
            .await
            .status,
        404
    );
    assert_eq!(
        scene.get(scene.http, "/v2/models/echo/ready").await.status,
        400
    );
    for head in ["/v2/models/echo.pipeline/ready", "/v2/pipelines/echo"] {
        let request = Request::head(format!("http://{}{head}", scene.http));
        let answer = scene.call(request, "").await;
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{head}");
    }
    let tensor = json!([{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]);
    let wanted = json!({"name": "echo", "versions": ["2"], "platform": "seldon-pipeline", "inputs": tensor, "outputs": tensor});
    assert_eq!(
        scene.get(scene.http, "/v2/pipelines/echo").await.json(),
        wanted
    );
    let ask = ModelMetadataRequest {
        name: "echo".into(),
        ..Default::default()
    };
    let metadata = client.model_metadata(ask).await.unwrap().into_inner();
    assert_eq!((metadata.versions.len(), metadata.inputs.len()), (1, 1));
    for probe in ["/startup", "/ready", "/live"] {
        assert_eq!(scene.get(scene.health, probe).await.status, 200);
    }
    scene.end().await;
}

type Client = hyper_util::client::legacy::Client<
    hyper_util::client::legacy::connect::HttpConnector,
    http_body_util::Full<Bytes>,
>;

/// What answers a request of the pipeline that hangs.
fn answer(scene: &Scene, record: &Record) -> Outgoing {
    Outgoing {
        topic: scene.names.pipeline_outputs("hang").into(),
        partition: Some(record.partition),
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
    }
}

/// A call to the pipeline that hangs; its status.
async fn call(client: Client, http: std::net::SocketAddr) -> u16 {
    let request = Request::post(format!("http://{http}/v2/pipelines/hang/infer"));
    let body = http_body_util::Full::new(Bytes::from(small().to_string()));
    let request = request.body(body).unwrap();
    client.request(request).await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_that_leaves_and_a_stop_let_requests_finish() {
    let mut scene = Scene::new(&[]).await;
    for (name, version) in [("hang", 1), ("hang", 2), ("echo", 1)] {
        scene.create(&pipeline(name, version)).await;
    }
    let http = scene.http;
    let executor = hyper_util::rt::TokioExecutor::new;
    let client = hyper_util::client::legacy::Client::builder(executor()).build_http();
    let waiting = tokio::spawn(call(client.clone(), http));
    let record = scene.saw().await;
    // One version of two leaves: nothing changes for callers.
    scene.delete(&pipeline("hang", 1));
    assert_eq!(scene.ack().await.update.unwrap().op, 2);
    // With a version that was never served here those before it leave, too.
    scene.delete(&pipeline("hang", 3));
    let gone = async || {
        let answer = scene
            .infer(
                "hang",
                &[("x-envoy-expected-rq-timeout-ms", "20")],
                small().to_string(),
            )
            .await;
        (answer.status == 404).then_some(answer)
    };
    let gone = scene.until("404", gone).await;
    assert_eq!(gone.fields["x-seldon-absent"], "1");
    assert!(scene.try_ack().is_none(), "a request is still in flight");
    scene.producer.send(answer(&scene, &record)).await.unwrap();
    assert_eq!(waiting.await.unwrap(), 200);
    assert!(scene.ack().await.success);

    // The same with the whole gateway: what is in flight ends, what is new is refused.
    scene.create(&pipeline("hang", 4)).await;
    let waiting = tokio::spawn(call(client, http));
    let record = loop {
        let seen = scene.saw().await;
        // Not one of the calls that asked whether the pipeline is gone.
        if seen.topic == record.topic && !seen.headers.has("x-envoy-expected-rq-timeout-ms") {
            break seen;
        }
    };
    let mut client = scene.rpc(scene.grpc).await;
    scene.stop.cancel();
    let refused = async || client.model_infer(request("echo.pipeline")).await.err();
    let refused = scene.until("a refusal", refused).await;
    // Ours, or the client's own: its connection was closed, and there is nobody to connect to.
    let closed = std::error::Error::source(&refused).is_some();
    assert!(refused.code() == Code::Unavailable || closed, "{refused:?}");
    scene.producer.send(answer(&scene, &record)).await.unwrap();
    let status = tokio::time::timeout(PATIENCE, waiting).await;
    assert_eq!(status.expect("in time").unwrap(), 200);
    scene.end().await;
}

#[test]
fn a_broker_that_is_away_is_told_in_time() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(without_broker());
    // As the process does: questions to the broker that are under way are not waited for.
    runtime.shutdown_background();
}

async fn without_broker() {
    let mut scene = Scene::new(&["--produce-timeout-ms", "300"]).await;
    scene.create(&pipeline("echo", 1)).await;
    assert_eq!(
        scene.infer("echo", &[], small().to_string()).await.status,
        200
    );
    scene.broker.take().unwrap().stop().await;
    let away = scene.infer("echo", &[], small().to_string()).await;
    assert_eq!(away.status, 503);
    assert!(
        away.error()
            .starts_with("pipeline echo: Kafka did not take the request"),
        "{}",
        away.error()
    );
    assert_eq!(away.fields["retry-after"], "1");
    scene.end().await;
}
