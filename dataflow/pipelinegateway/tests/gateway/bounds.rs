//! What a gateway does not do, or not any more: how much it takes, how long it waits, what it refuses, what it leaves out.
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::json;
use tonic::Code;

use crate::{
    one, request, small,
    support::{Scene, pipeline},
};

/// A request of about so many bytes.
fn sized(bytes: usize) -> String {
    let mut text = one("BYTES", json!(["x".repeat(bytes)]));
    text["parameters"] = json!({"content_type": "str"});
    json!({"inputs": [text]}).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_in_flight_are_bounded() {
    let flags = [
        "--max-in-flight-bytes",
        "10000",
        "--request-timeout-ms",
        "60000",
    ];
    let mut scene = Scene::new(&flags).await;
    for name in ["hang", "echo"] {
        scene.create(&pipeline(name, 1)).await;
    }
    // Alone, one may be larger.
    let large = scene.infer("echo", &[], sized(30_000)).await;
    assert_eq!(large.status, 200, "{:?}", large.body);
    let held = |size: usize| {
        let uri = format!("http://{}/v2/pipelines/hang/infer", scene.http);
        let request = Request::post(uri).body(Full::new(Bytes::from(sized(size))));
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        tokio::spawn(async move { client.request(request.unwrap()).await.map(drop) })
    };
    let waiting = [held(4_000), held(4_000)];
    let mut seen = 0;
    while seen < 2 {
        seen += usize::from(scene.saw().await.headers.text("pipeline") == Some("hang"));
    }

    let full = scene.infer("echo", &[], sized(4_000)).await;
    assert_eq!(full.status, 429, "{:?}", full.body);
    assert_eq!(full.fields["retry-after"], "1");
    let said = full.error();
    assert!(
        said.starts_with("pipeline echo: ") && said.contains("--max-in-flight-bytes 10000"),
        "{said}"
    );
    for named in [true, false] {
        let mut client = scene.rpc(scene.grpc).await;
        let mut message = request("echo.pipeline");
        message.id = "x".repeat(4_000);
        let mut call = tonic::Request::new(message);
        if named {
            let name = "echo.pipeline".parse().unwrap();
            call.metadata_mut().insert("seldon-model", name);
        }
        let error = client.model_infer(call).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
        assert!(
            error.message().contains("--max-in-flight-bytes"),
            "{error:?}"
        );
    }
    // Those that fit are taken all the same.
    let fits = scene.infer("echo", &[], small().to_string()).await;
    assert_eq!(fits.status, 200);
    let metrics = scene.get(scene.metrics, "/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    for line in [
        r#"seldon_pipeline_infer_total{code="429",method_type="rest",pipeline="echo",server="pipeline-gateway"} 1"#,
        r#"seldon_pipeline_infer_total{code="ResourceExhausted",method_type="grpc",pipeline="echo",server="pipeline-gateway"} 1"#,
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }

    // A caller that goes away gives back what it held.
    for call in waiting {
        call.abort();
    }
    let free = async || {
        let answer = scene.infer("echo", &[], sized(9_000)).await;
        (answer.status == 200).then_some(())
    };
    scene.until("room", free).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_caller_waits_longer_than_the_gateway_lets_it() {
    let flags = ["--max-request-timeout-ms", "300"];
    let mut scene = Scene::new(&flags).await;
    scene.create(&pipeline("hang", 1)).await;
    for header in [
        None,
        Some(("x-envoy-expected-rq-timeout-ms", "60000")),
        Some(("grpc-timeout", "1H")),
    ] {
        let headers: Vec<_> = header.into_iter().collect();
        let late = scene.infer("hang", &headers, small().to_string()).await;
        let told = (late.status, late.error());
        assert_eq!(
            told,
            (504, "pipeline hang: no answer within 300 ms".to_owned()),
            "{header:?}"
        );
    }
    let mut client = scene.rpc(scene.grpc).await;
    let mut call = tonic::Request::new(request("hang.pipeline"));
    call.set_timeout(Duration::from_secs(60));
    let late = client.model_infer(call).await.unwrap_err();
    assert_eq!(late.message(), "pipeline hang: no answer within 300 ms");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_refused_with_the_way_out() {
    let mut scene = Scene::new(&[]).await;
    scene.create(&pipeline("echo", 1)).await;
    for form in ["infer_stream", "generate", "generate_stream"] {
        let uri = format!("http://{}/v2/pipelines/echo/{form}", scene.http);
        let refused = scene.call(Request::post(uri), small().to_string()).await;
        assert_eq!(refused.status, 501, "{form}");
        let said = refused.error();
        assert!(
            said.contains("pipelines do not stream") && said.contains("by infer"),
            "{said}"
        );
    }
    let mut client = scene.rpc(scene.grpc).await;
    let messages = futures_util::stream::iter([request("echo.pipeline")]);
    let refused = client.model_stream_infer(messages).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let said = refused.message();
    assert!(
        said.contains("pipelines do not stream") && said.contains("ModelInfer"),
        "{said}"
    );
    scene.end().await;
}

/// As Envoy asks: REST over HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rest_over_http2_and_head_without_a_body() {
    let mut scene = Scene::new(&[]).await;
    scene.create(&pipeline("echo", 1)).await;
    scene.model("step", true);
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let ask = async |method: &str, path: &str, body: String| {
        let uri = format!("http://{}{path}", scene.http);
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .version(Version::HTTP_2);
        let answer = client
            .request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap();
        let (parts, body) = answer.into_parts();
        let body = body
            .collect()
            .await
            .expect("the answer keeps to the protocol")
            .to_bytes();
        (parts.status.as_u16(), parts.headers, body)
    };
    let (status, _, body) = ask("POST", "/v2/pipelines/echo/infer", small().to_string()).await;
    assert_eq!(status, 200, "{body:?}");
    for path in [
        "/v2/pipelines/echo",
        "/v2/pipelines/echo/ready",
        "/v2/pipelines/nobody/ready",
        "/ready",
    ] {
        let (status, fields, body) = ask("GET", path, String::new()).await;
        let (of_head, head, nothing) = ask("HEAD", path, String::new()).await;
        assert_eq!((of_head, nothing.len()), (status, 0), "{path}");
        assert_eq!(
            head.get("content-type"),
            fields.get("content-type"),
            "{path}"
        );
        let length = head
            .get("content-length")
            .map(|length| length.to_str().unwrap().to_owned());
        assert_eq!(length.unwrap_or_default(), body.len().to_string(), "{path}");
    }
    scene.end().await;
}
