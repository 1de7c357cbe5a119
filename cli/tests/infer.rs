//! Inference: what is sent, and all that is printed.
#![allow(clippy::unwrap_used)]
mod fakes;

use std::sync::atomic::{AtomicUsize, Ordering};

use fakes::{body, data_plane, seldon};
use hyper::Response;
use prost::Message as _;
use seldon_proto::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse,
    model_infer_response::InferOutputTensor,
};
use tempfile::TempDir;
use tonic::body::Body;

const DATA: &str = r#"{"inputs": [{"name": "predict", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2, 3, 4]]}]}"#;

fn rest(status: u16, route: &str, text: &str) -> Response<Body> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("x-seldon-route", route)
        .body(body(text))
        .unwrap()
}

/// A gRPC answer in one message, or only a status.
fn grpc(message: Result<ModelInferResponse, (&str, &str)>, routes: &[&str]) -> Response<Body> {
    let mut response = Response::builder().header("content-type", "application/grpc");
    for route in routes {
        response = response.header("x-seldon-route", *route);
    }
    match message {
        Ok(message) => {
            let mut frame = vec![0];
            frame.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
            frame.extend(message.encode_to_vec());
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let frames = [
                Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(
                    hyper::body::Bytes::from(frame),
                )),
                Ok(hyper::body::Frame::trailers(trailers)),
            ];
            response
                .body(Body::new(http_body_util::StreamBody::new(
                    tokio_stream::iter(frames),
                )))
                .unwrap()
        }
        Err((code, text)) => response
            .header("grpc-status", code)
            .header("grpc-message", text)
            .body(Body::empty())
            .unwrap(),
    }
}

#[tokio::test]
async fn rest_sends_what_is_documented_and_indents_the_answer() {
    let answer = r#"{"model_name":"iris_1","parameters":{},"outputs":[{"name":"predict","shape":[1,1],"data":[2]}]}"#;
    let (host, seen) = data_plane(Box::new(move |_| rest(200, ":iris_1:", answer))).await;
    let home = TempDir::new().unwrap();
    let ran = seldon(
        home.path(),
        &[("SELDON_INFER_HOST", &host)],
        &["model", "infer", "iris", DATA],
    )
    .await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(
        ran.out,
        "{\n\t\"model_name\": \"iris_1\",\n\t\"parameters\": {},\n\t\"outputs\": [\n\t\t{\n\t\t\t\"name\": \"predict\",\n\t\t\t\"shape\": [\n\t\t\t\t1,\n\t\t\t\t1\n\t\t\t],\n\t\t\t\"data\": [\n\t\t\t\t2\n\t\t\t]\n\t\t}\n\t]\n}\n"
    );
    {
        let seen = seen.lock().unwrap();
        let (head, sent) = &seen[0];
        assert_eq!(
            (head.method.as_str(), head.uri.path()),
            ("POST", "/v2/models/iris/infer")
        );
        assert_eq!(sent, DATA.as_bytes());
        let mut names: Vec<_> = head.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "connection",
                "content-length",
                "content-type",
                "host",
                "seldon-model"
            ]
        );
        assert_eq!(head.headers["seldon-model"], "iris");
        assert_eq!(head.headers["host"], host.as_str());
    }
    // The route was saved: a sticky request carries it.
    let words = [
        "pipeline",
        "infer",
        "p",
        DATA,
        "-s",
        "--inference-host",
        &host,
        "--header",
        "x-request-id=test-id",
    ];
    seldon(home.path(), &[], &words).await;
    let seen = seen.lock().unwrap();
    let head = &seen[1].0;
    assert_eq!(head.uri.path(), "/v2/models/p/infer");
    assert_eq!(head.headers["seldon-model"], "p.pipeline");
    assert_eq!(head.headers["x-seldon-route"], ":iris_1:");
    assert_eq!(head.headers["x-request-id"], "test-id");
}

#[tokio::test]
async fn many_are_counted_by_route_and_code() {
    let count = AtomicUsize::new(0);
    let reply = move |_: &fakes::Seen| match count.fetch_add(1, Ordering::Relaxed) % 5 {
        0 | 1 => rest(200, ":iris_1:", "{}"),
        2 => rest(200, ":iris2_1:", "{}"),
        3 => rest(503, ":iris_1:", "away"),
        _ => rest(429, ":iris_1:", "busy"),
    };
    let (host, _) = data_plane(Box::new(reply)).await;
    let home = TempDir::new().unwrap();
    let words = [
        "model",
        "infer",
        "iris",
        "-i",
        "10",
        DATA,
        "--inference-host",
        &host,
    ];
    let ran = seldon(home.path(), &[], &words).await;
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (
            0,
            "Success: map[:iris2_1::2 :iris_1::4]\nErrors: map[:iris_1::map[429:2 503:2]]\n"
        )
    );
}

#[tokio::test]
async fn errors_and_headers_are_printed_as_documented() {
    let reply = |seen: &fakes::Seen| match seen.0.uri.path() {
        "/v2/models/bad/infer" => rest(400, ":bad_1:", r#"{"error":"wrong shape"}"#),
        "/v2/models/gone/infer" => rest(404, "", r#"{"error":"no model"}"#),
        "/v2/models/iris" => rest(200, "", r#"{"name":"iris_1","versions":[]}"#),
        _ => rest(200, ":iris_1:", "{}"),
    };
    let (host, _) = data_plane(Box::new(reply)).await;
    let home = TempDir::new().unwrap();
    let run = |words: Vec<&'static str>| {
        let (home, host) = (home.path().to_owned(), host.clone());
        async move { seldon(&home, &[("SELDON_INFER_HOST", &host)], &words).await }
    };
    let ran = run(vec!["model", "infer", "bad", "{}"]).await;
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (255, "", "Error: wrong shape\n")
    );
    let ran = run(vec!["model", "infer", "gone", "{}"]).await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (
            255,
            "Error: V2 server error: 404 {\"error\":\"no model\"}\n"
        )
    );
    let ran = run(vec![
        "model",
        "infer",
        "iris",
        "{}",
        "--show-headers",
        "--authority",
        "a.example",
    ])
    .await;
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(
        &lines[..2],
        ["> POST /v2/models/iris/infer HTTP/1.1", "> Host: a.example"]
    );
    for line in [
        "> Content-Type:[application/json]",
        "> Seldon-Model:[iris]",
        "< X-Seldon-Route:[:iris_1:]",
        "{}",
        "",
    ] {
        assert!(lines.contains(&line), "{line}: {ran:?}");
    }
    let ran = run(vec!["model", "infer", "iris", "{}", "-o=false", "-r"]).await;
    assert_eq!(ran.out, "{}\n");
    let ran = run(vec!["model", "metadata", "iris"]).await;
    assert_eq!(
        ran.out,
        "{\n\t\"name\": \"iris_1\",\n\t\"versions\": []\n}\n"
    );
    let ran = run(vec!["model", "infer", "iris", "{}", "--header", "Host=x"]).await;
    assert!(
        ran.code == 255 && ran.err.contains("--authority"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_whole_url_is_a_host() {
    let (host, seen) = data_plane(Box::new(|_| rest(200, ":iris_1:", "{}"))).await;
    let home = TempDir::new().unwrap();
    let url = format!("http://{host}/v2/models/iris/infer");
    for words in [
        vec!["model", "infer", "--inference-host", &url, "{}"],
        vec!["model", "infer", "iris", "{}", "--inference-host", &url],
    ] {
        let ran = seldon(home.path(), &[], &words).await;
        assert_eq!((ran.code, ran.out.as_str()), (0, "{}\n"), "{ran:?}");
    }
    for (head, _) in seen.lock().unwrap().iter() {
        assert_eq!(
            (
                head.uri.path(),
                head.headers["seldon-model"].to_str().unwrap()
            ),
            ("/v2/models/iris/infer", "iris")
        );
    }
}

#[tokio::test]
async fn grpc_answers_are_one_line_with_typed_contents() {
    let reply = |seen: &fakes::Seen| {
        let request = ModelInferRequest::decode(&seen.1[5..]).unwrap();
        assert_eq!(seen.0.headers["seldon-model"], request.model_name.as_str());
        if request.model_name == "gone" {
            return grpc(Err(("5", "no model gone")), &[]);
        }
        let contents = InferTensorContents {
            fp32_contents: vec![1.0, 2.0, 3.0, 4.0],
            ..Default::default()
        };
        assert_eq!(request.inputs[0].contents, Some(contents));
        let message = ModelInferResponse {
            model_name: "iris_1".to_owned(),
            outputs: vec![InferOutputTensor {
                name: "predict".to_owned(),
                datatype: "INT64".to_owned(),
                shape: vec![1, 1],
                ..Default::default()
            }],
            raw_output_contents: vec![2i64.to_le_bytes().to_vec().into()],
            ..Default::default()
        };
        grpc(Ok(message), &[":iris_1:", ":p.pipeline:"])
    };
    let (host, _) = data_plane(Box::new(reply)).await;
    let home = TempDir::new().unwrap();
    let vars = [("SELDON_INFER_HOST", host.as_str())];
    let typed = r#"{"model_name":"x","inputs":[{"name":"input","contents":{"fp32_contents":[1,2,3,4]},"datatype":"FP32","shape":[1,4]}]}"#;
    let line = "{\"modelName\":\"iris_1\",\"outputs\":[{\"name\":\"predict\",\"datatype\":\"INT64\",\"shape\":[\"1\",\"1\"],\"contents\":{\"int64Contents\":[\"2\"]}}]}\n";
    for data in [typed, DATA] {
        let ran = seldon(
            home.path(),
            &vars,
            &["model", "infer", "iris", "--inference-mode", "grpc", data],
        )
        .await;
        assert_eq!(
            (ran.code, ran.out.as_str(), ran.err.as_str()),
            (0, line, "")
        );
    }
    let ran = seldon(
        home.path(),
        &vars,
        &[
            "model",
            "infer",
            "iris",
            "--inference-mode=grpc",
            "-i",
            "50",
            typed,
        ],
    )
    .await;
    assert_eq!(ran.out, "Success: map[:iris_1::50 :p.pipeline::50]\n");
    let words = [
        "model",
        "infer",
        "iris",
        "--inference-mode",
        "grpc",
        "--show-headers",
        "-s",
        typed,
    ];
    let ran = seldon(home.path(), &vars, &words).await;
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(
        lines[0],
        "> /inference.GRPCInferenceService/ModelInfer HTTP/2"
    );
    for line in [
        "> seldon-model:[iris]",
        "> x-seldon-route:[:iris_1: :p.pipeline:]",
        "< x-seldon-route:[:iris_1: :p.pipeline:]",
    ] {
        assert!(lines.contains(&line), "{line}: {ran:?}");
    }
    let ran = seldon(
        home.path(),
        &vars,
        &["model", "infer", "gone", "--inference-mode", "grpc", typed],
    )
    .await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (
            255,
            "Error: rpc error: code = NotFound desc = no model gone\n"
        )
    );
    let ran = seldon(
        home.path(),
        &vars,
        &[
            "model",
            "infer",
            "iris",
            "--inference-mode",
            "grpc",
            r#"{"foo":1}"#,
        ],
    )
    .await;
    assert!(ran.code == 255 && ran.err.contains("foo"), "{ran:?}");
}
