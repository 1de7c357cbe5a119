//! Experiments: what is sent, all that is printed, and sessions that stay where they began.
#![allow(clippy::unwrap_used)]
mod fakes;

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
};

use fakes::{Bench, World, body, data_plane, seldon};
use hyper::Response;
use prost::Message as _;
use seldon_proto::{
    inference::ModelInferResponse,
    introspect::{CandidateState, ExplainExperimentResponse, Measured},
    scheduler::*,
};
use tempfile::TempDir;
use tonic::{Status, body::Body};

const SPLIT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../samples/experiments/ab-default-model.yaml"
);
const DATA: &str =
    r#"{"inputs":[{"name":"predict","shape":[1,4],"datatype":"FP32","data":[[1,2,3,4]]}]}"#;

fn status(active: bool, description: &str) -> ExperimentStatusResponse {
    ExperimentStatusResponse {
        experiment_name: "experiment-sample".to_owned(),
        active,
        candidates_ready: active,
        mirror_ready: true,
        status_description: description.to_owned(),
        kubernetes_meta: Some(KubernetesMeta::default()),
    }
}

#[tokio::test]
async fn start_and_stop_print_nothing_and_a_refusal_has_the_words_of_grpc() {
    let bench = Bench::new(World::default()).await;
    let said = async |words: &[&str]| {
        let ran = bench.run(words).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{words:?}");
        ran.out
    };
    assert_eq!(said(&["experiment", "start", "-f", SPLIT]).await, "");
    assert_eq!(said(&["experiment", "stop", "experiment-sample"]).await, "");
    assert_eq!(
        said(&["experiment", "stop", "-f", SPLIT, "--force"]).await,
        ""
    );
    assert_eq!(
        said(&["experiment", "stop", "e", "-v"]).await,
        "{\"name\":\"e\"}\n{}\n"
    );
    {
        let mut world = bench.fake.0.lock().unwrap();
        let started = &world.started[0];
        assert_eq!(started.default.as_deref(), Some("iris"));
        let shares: Vec<_> = started
            .candidates
            .iter()
            .map(|candidate| (candidate.name.as_str(), candidate.weight))
            .collect();
        assert_eq!(shares, [("iris", 50), ("iris2", 50)]);
        assert_eq!(
            world.stopped,
            ["experiment-sample", "experiment-sample", "e"]
        );
        world.refusal = Some(Status::failed_precondition("iris is taken"));
    }
    let ran = bench.run(&["experiment", "start", "-f", SPLIT]).await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (
            255,
            "Error: rpc error: code = FailedPrecondition desc = iris is taken\n"
        )
    );
}

#[tokio::test]
async fn status_waits_and_is_one_line_for_a_pipe_and_a_page_on_demand() {
    let experiments = [
        status(false, "model iris2 is not available"),
        status(true, "experiment active"),
    ];
    let bench = Bench::new(World {
        experiments: experiments.into(),
        ..Default::default()
    })
    .await;
    let ran = bench
        .run(&["experiment", "status", "experiment-sample", "-w"])
        .await;
    let line = "{\"experimentName\":\"experiment-sample\",\"active\":true,\"candidatesReady\":true,\"mirrorReady\":true,\"statusDescription\":\"experiment active\",\"kubernetesMeta\":{}}\n";
    assert_eq!((ran.code, ran.out.as_str()), (0, line), "{ran:?}");
    let ran = bench.run(&["experiment", "list"]).await;
    assert_eq!(
        ran.out,
        "experiment\t\tactive\n----------\t\t------\nexperiment-sample\ttrue\n"
    );
    let page = [
        "experiment",
        "status",
        "experiment-sample",
        "--output=table",
    ];
    // A scheduler that cannot tell more is no error.
    let ran = bench.run(&page).await;
    assert!(
        ran.code == 0 && ran.out.ends_with("true\n\nexperiment active\n"),
        "{ran:?}"
    );
    let candidate = |name: &str, percent| CandidateState {
        name: name.to_owned(),
        wanted_percent: 50.0,
        in_force_percent: percent,
        measured: Some(Measured {
            requests: 40,
            errors: 1,
            mean_ms: 3.0,
        }),
        ..Default::default()
    };
    bench.fake.0.lock().unwrap().explained = Some(ExplainExperimentResponse {
        experiment: "experiment-sample".to_owned(),
        candidates: vec![candidate("iris", 100.0), candidate("iris2", 0.0)],
        ..Default::default()
    });
    let ran = bench.run(&page).await;
    for part in [
        " 50.0 % ██████████░░░░░░░░░░  100.0 % ████████████████████  40        2.5 %   3.0 ms",
        "0 of 0 have acknowledged",
    ] {
        assert!(ran.out.contains(part), "{part}: {}", ran.out);
    }
}

#[tokio::test]
async fn a_wait_in_vain_tells_the_reason() {
    let bench = Bench::new(World {
        experiments: [status(false, "model iris2 is not available")].into(),
        ..Default::default()
    })
    .await;
    let ran = bench
        .run(&["experiment", "status", "experiment-sample", "-w", "-t", "1"])
        .await;
    let lines: Vec<_> = ran.err.lines().collect();
    assert_eq!(
        (ran.code, lines[0]),
        (255, "Error: Experiment wait status timeout")
    );
    assert!(
        lines[1].contains("is not active: model iris2 is not available"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn the_way_of_a_request_is_told() {
    let bench = Bench::new(World::default()).await;
    let words = [
        "explain",
        "route",
        "iris",
        "-H",
        "x-user=a",
        "-H",
        "X-Seldon-Route: :iris_1:",
    ];
    let ran = bench.run(&words).await;
    let told = "\
request  iris
rule     split (experiment experiment-sample)
reason   no header names a candidate

answered by
  iris   iris_1    75.0 % ███████████████░░░░░
  iris2  iris2_1   25.0 % █████░░░░░░░░░░░░░░░

a copy goes to
  iris3  iris3_1   10.0 % ██░░░░░░░░░░░░░░░░░░

Envoys
  stream 1  127.0.0.1:1  has acknowledged it
  stream 2  127.0.0.1:2  has not acknowledged it: goes on with generation 6
";
    assert_eq!((ran.code, ran.out.as_str()), (0, told), "{ran:?}");
    {
        let world = bench.fake.0.lock().unwrap();
        let headers: Vec<_> = world.routes_asked[0]
            .headers
            .iter()
            .map(|header| (header.name.as_str(), header.value.as_str()))
            .collect();
        assert_eq!(headers, [("x-user", "a"), ("x-seldon-route", ":iris_1:")]);
    }
    let ran = bench.run(&["explain", "route", "iris", "-o", "json"]).await;
    assert!(ran.out.contains("\"rule\":\"split\""), "{ran:?}");
    let ran = bench.run(&["explain", "route", "iris", "-H", "x"]).await;
    assert!(
        ran.code == 255 && ran.err.contains("name: value"),
        "{ran:?}"
    );
}

/// Splits as an experiment does: where `x-seldon-route` names a candidate, that one answers, else they take turns.
async fn candidates() -> (String, std::sync::Arc<std::sync::Mutex<Vec<fakes::Seen>>>) {
    let turn = AtomicUsize::new(0);
    data_plane(Box::new(move |(head, _): &fakes::Seen| {
        let names = [":iris2_1:", ":iris_1:"];
        let routes = head.headers.get_all("x-seldon-route");
        let named = names
            .into_iter()
            .find(|name| routes.iter().any(|route| route == name));
        let route =
            named.unwrap_or_else(|| names[turn.fetch_add(1, Ordering::Relaxed) % names.len()]);
        let response = Response::builder().header("x-seldon-route", route);
        if head.headers["content-type"] == "application/grpc" {
            return grpc(response);
        }
        let json = response.header("content-type", "application/json");
        json.body(body("{}")).unwrap()
    }))
    .await
}

fn grpc(response: http::response::Builder) -> Response<Body> {
    let message = ModelInferResponse::default().encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = [
        Ok::<_, std::convert::Infallible>(hyper::body::Frame::data(hyper::body::Bytes::from(
            frame,
        ))),
        Ok(hyper::body::Frame::trailers(trailers)),
    ];
    response
        .header("content-type", "application/grpc")
        .body(Body::new(http_body_util::StreamBody::new(
            tokio_stream::iter(frames),
        )))
        .unwrap()
}

#[tokio::test]
async fn a_session_stays_with_its_first_answer_over_rest_and_grpc() {
    let (host, seen) = candidates().await;
    let home = TempDir::new().unwrap();
    let ask = async |words: &[&str]| {
        let all: Vec<_> = ["model", "infer", "iris", "-i", "50", DATA]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        let ran = seldon(home.path(), &[("SELDON_INFER_HOST", &host)], &all).await;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran.out
    };
    // The first request has no session, its answer begins one.
    assert_eq!(ask(&["-s"]).await, "Success: map[:iris2_1::50]\n");
    let session = home.path().join(".config/seldon/cli/session");
    assert_eq!(fs::read_to_string(&session).unwrap(), ":iris2_1:");
    let grpc = ["-s", "--inference-mode", "grpc"];
    assert_eq!(ask(&grpc).await, "Success: map[:iris2_1::50]\n");
    // Without -s the split goes on, and the last answer is the next session.
    assert_eq!(ask(&[]).await, "Success: map[:iris2_1::25 :iris_1::25]\n");
    let last = fs::read_to_string(&session).unwrap();
    assert_eq!(ask(&["-s"]).await, format!("Success: map[{last}:50]\n"));

    // One header for each saved route, and none that cannot be sent.
    fs::write(&session, ":old_1:, :iris_1:,:\u{1}:").unwrap();
    seen.lock().unwrap().clear();
    assert_eq!(ask(&["-s"]).await, "Success: map[:iris_1::50]\n");
    let routes: Vec<_> = seen.lock().unwrap()[0]
        .0
        .headers
        .get_all("x-seldon-route")
        .iter()
        .map(|value| value.to_str().unwrap().to_owned())
        .collect();
    assert_eq!(routes, [":old_1:", ":iris_1:"]);
    assert_eq!(fs::read_to_string(&session).unwrap(), ":iris_1:");
}

#[tokio::test]
async fn a_stale_or_damaged_session_never_fails() {
    let (host, _) = candidates().await;
    let home = TempDir::new().unwrap();
    let session = home.path().join(".config/seldon/cli/session");
    fs::create_dir_all(session.parent().unwrap()).unwrap();
    let damaged: [Vec<u8>; 5] = [
        b":gone_7:".to_vec(),
        b"\xff\xfe,\n".to_vec(),
        Vec::new(),
        ":iris9_1:,".repeat(50_000).into_bytes(),
        ",,,\r\n:".into(),
    ];
    for text in damaged {
        fs::write(&session, &text).unwrap();
        let vars = [("SELDON_INFER_HOST", host.as_str())];
        let words = ["model", "infer", "iris", "-s", DATA];
        let ran = seldon(home.path(), &vars, &words).await;
        assert_eq!((ran.code, ran.out.as_str()), (0, "{}\n"), "{ran:?}");
        let kept = fs::read_to_string(&session).unwrap();
        assert!([":iris_1:", ":iris2_1:"].contains(&kept.as_str()), "{kept}");
    }
}
