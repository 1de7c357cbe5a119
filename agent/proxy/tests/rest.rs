//! REST through the proxy to a real server.
#![allow(clippy::unwrap_used)] // a test may
mod support;

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use seldon_agent_proxy::{Limits, Upstream};
use support::{Seen, World, eventually, text};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const IRIS: (&str, &str) = ("seldon-internal-model", "iris_1");

#[tokio::test]
async fn paths_name_the_model_of_the_header() {
    let world = World::start(Limits::default()).await;
    for (verb, path, seen) in [
        (
            "POST",
            "/v2/models/iris/infer",
            "POST /v2/models/iris_1/infer",
        ),
        (
            "POST",
            "/v2/models/other/infer?a=b%20c&d",
            "POST /v2/models/iris_1/infer?a=b%20c&d",
        ),
        (
            "POST",
            "/v2/models/x.experiment/versions/7/infer",
            "POST /v2/models/iris_1/infer",
        ),
        (
            "POST",
            "/v2/models/iris%2Fb/%69nfer/",
            "POST /v2/models/iris_1/infer",
        ),
        ("GET", "/v2/models/iris", "GET /v2/models/iris_1"),
        (
            "GET",
            "/v2/models/iris/versions/1/ready",
            "GET /v2/models/iris_1/ready",
        ),
        ("GET", "/v2/health/ready", "GET /v2/health/ready"),
        ("GET", "/v2", "GET /v2"),
    ] {
        assert_eq!(
            world.ask(verb, path, &[IRIS]).await,
            (200, seen.into(), "{\"ok\": true}".into())
        );
    }
}

#[tokio::test]
async fn head_is_answered_as_get_without_body() {
    let world = World::start(Limits::default()).await;
    for path in [
        "/v2/models/iris/ready",
        "/v2/models/iris",
        "/v2/health/live",
    ] {
        let response = world.send("HEAD", path, &[IRIS], text("")).await;
        assert_eq!(response.status(), 200);
        assert!(
            response.headers()["x-seen"]
                .to_str()
                .unwrap()
                .starts_with("GET ")
        );
        assert_eq!(response.headers()["content-length"], "12");
        assert!(
            response
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .is_empty()
        );
    }
}

#[tokio::test]
async fn refusals_are_json_and_say_why() {
    let world = World::start(Limits::default()).await;
    let model = |name| vec![("seldon-internal-model", name)];
    for (verb, path, fields, status, reason) in [
        (
            "POST",
            "/v2/repository/index",
            model("iris_1"),
            404,
            "no such inference path",
        ),
        ("GET", "/metrics", vec![], 404, "no such inference path"),
        (
            "GET",
            "/v2/models/iris/infer",
            model("iris_1"),
            405,
            "use POST",
        ),
        (
            "POST",
            "/v2/models/iris/infer",
            vec![],
            404,
            "seldon-internal-model",
        ),
        (
            "POST",
            "/v2/models/iris/infer",
            model("unknown_1"),
            404,
            "model unknown_1: no such model",
        ),
        (
            "POST",
            "/v2/models/iris/infer",
            model("broken_1"),
            503,
            "no artefact",
        ),
        (
            "POST",
            "/v2/models/iris/infer",
            model("full_1"),
            429,
            "in use",
        ),
    ] {
        let response = world.send(verb, path, &fields, text("{}")).await;
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(response.headers()["x-request-id"].len(), 20);
        assert_eq!(
            response.headers().contains_key("retry-after"),
            status == 429
        );
        // Envoy is to ask another replica for what this one does not have, and for nothing else.
        let absent = ["no such model", "no artefact"];
        assert_eq!(
            response.headers().contains_key("x-seldon-absent"),
            absent.iter().any(|text| reason.contains(text)),
            "{reason}"
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(error["error"].as_str().unwrap().contains(reason), "{error}");
    }
    assert!(
        !world.metrics().contains("unknown_1"),
        "names that do not exist make no series"
    );
}

#[tokio::test]
async fn request_ids_and_headers_pass() {
    let world = World::start(Limits::default()).await;
    let path = "/v2/models/iris/infer";
    let made = world.send("POST", path, &[IRIS], text("")).await;
    assert_eq!(
        made.headers()["x-request-id"],
        made.headers()["x-seen-request-id"]
    );
    assert_eq!(made.headers()["x-request-id"].len(), 20);
    let own = world
        .send("POST", path, &[IRIS, ("x-request-id", "mine")], text(""))
        .await;
    assert_eq!(
        (
            &own.headers()["x-request-id"],
            &own.headers()["x-seen-request-id"]
        ),
        (&"mine".parse().unwrap(), &"mine".parse().unwrap())
    );
    let servers = [
        IRIS,
        ("x-request-id", "mine"),
        ("x-own-request-id", "servers"),
    ];
    assert_eq!(
        world.send("POST", path, &servers, text("")).await.headers()["x-request-id"],
        "servers"
    );
    let fields = [
        IRIS,
        ("traceparent", "00-0-0-01"),
        ("x-seldon-scope", "i:x"),
        ("connection", "x-a"),
        ("x-a", "1"),
    ];
    let response = world.send("POST", path, &fields, text("")).await;
    let seen = response.headers()["x-seen-headers"].to_str().unwrap();
    assert!(seen.contains("traceparent"), "{seen}");
    assert!(
        !seen.contains("x-seldon-scope") && !seen.contains("x-a"),
        "{seen}"
    );
}

#[tokio::test]
async fn server_sent_events_are_not_held_back() {
    let world = World::start(Limits::default()).await;
    let fields = [("seldon-internal-model", "stream_1")];
    let response = world
        .send("POST", "/v2/models/s/infer_stream", &fields, text("{}"))
        .await;
    let mut body = response.into_body();
    for count in 0..3 {
        // The server sends the next event only when told so, after this one has arrived.
        let event = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(event, format!("data: {count}\n\n"));
        world.seen.next_event.notify_one();
    }
    assert!(body.frame().await.is_none());
    eventually("the model is let go", || {
        world.registry.in_flight.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let world = World::start(Limits::default()).await;
    let mut client = TcpStream::connect(world.address).await.unwrap();
    let request = "POST /v2/models/h/infer HTTP/1.1\r\nhost: a\r\nseldon-internal-model: hang_1\r\ncontent-length: 2\r\n\r\n{}";
    client.write_all(request.as_bytes()).await.unwrap();
    eventually("the request arrives", || {
        world.seen.hanging.load(Ordering::SeqCst) == 1
    })
    .await;
    drop(client);
    eventually("the request is given up", || {
        world.seen.abandoned.load(Ordering::SeqCst) == 1
    })
    .await;
    eventually("the model is let go", || {
        world.registry.in_flight.load(Ordering::SeqCst) == 0
    })
    .await;
    assert!(
        world
            .metrics()
            .contains("code=\"499\",method_type=\"rest\",model=\"hang\",model_internal=\"hang_1\"")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_hangs_leaves_its_neighbour_alone() {
    let limits = Limits {
        concurrent_per_model: 100,
        queue_per_model: 500,
        queue_deadline: Duration::from_millis(500),
        ..Limits::default()
    };
    let world = Arc::new(World::start(limits).await);
    let hanging: Vec<_> = (0..1_000)
        .map(|_| {
            let world = world.clone();
            let fields = [("seldon-internal-model", "hang_1")];
            tokio::spawn(async move {
                world
                    .send("POST", "/v2/models/h/infer", &fields, text("{}"))
                    .await
                    .status()
            })
        })
        .collect();
    eventually("its places are taken", || {
        world.seen.hanging.load(Ordering::SeqCst) == 100
    })
    .await;
    for _ in 0..100 {
        assert_eq!(
            world.ask("POST", "/v2/models/iris/infer", &[IRIS]).await.0,
            200
        );
    }
    let metrics = "seldon_model_infer_total{code=\"429\",method_type=\"rest\",model=\"hang\",model_internal=\"hang_1\",server=\"mlserver\",server_replica=\"0\"} 900";
    eventually("the rest is refused", || world.metrics().contains(metrics)).await;
    assert_eq!(world.seen.hanging.load(Ordering::SeqCst), 100);
    world.proxy.reset_in_flight();
    let mut refused = 0;
    for request in hanging {
        refused += usize::from(request.await.is_ok_and(|status| status == 429));
    }
    assert_eq!(refused, 900, "100 were reset");
    assert_eq!(
        world.ask("POST", "/v2/models/iris/infer", &[IRIS]).await.0,
        200
    );
}

#[tokio::test]
async fn an_unreachable_server_resets_the_request() {
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
    assert_eq!(answer_of(&world, "GET /v2/health/live").await, "");
    assert_eq!(answer_of(&world, "POST /v2/models/a/infer").await, "");
}

#[tokio::test]
async fn a_server_that_breaks_off_resets_the_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.read_u8().await.unwrap();
        }
    });
    let upstream = Upstream {
        http: address.clone(),
        grpc: address,
    };
    let world = World::before(upstream, Limits::default(), Arc::new(Seen::default())).await;
    assert_eq!(answer_of(&world, "POST /v2/models/a/infer").await, "");
}

/// All that the proxy says before it closes the connection.
async fn answer_of(world: &World, line: &str) -> String {
    let mut client = TcpStream::connect(world.address).await.unwrap();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: a\r\nseldon-internal-model: iris_1\r\ncontent-length: 0\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn connections_the_server_closed_are_not_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        // One answer a connection, which claims to stay open.
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
        }
    });
    let upstream = Upstream {
        http: address.clone(),
        grpc: address,
    };
    let world = World::before(upstream, Limits::default(), Arc::new(Seen::default())).await;
    for _ in 0..20 {
        let (status, _, body) = world.ask("GET", "/v2/models/iris", &[IRIS]).await;
        assert_eq!((status, body.as_str()), (200, "ok"));
        // Lets the closing arrive before the next request.
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn shutdown_lets_requests_finish() {
    let world = World::start(Limits::default()).await;
    let fields = [("seldon-internal-model", "stream_1")];
    let response = world
        .send("POST", "/v2/models/s/infer_stream", &fields, text("{}"))
        .await;
    world.shutdown.cancel();
    eventually("no more is accepted", || {
        std::net::TcpStream::connect(world.address).is_err()
    })
    .await;
    assert!(!world.serving.is_finished());
    world.seen.next_event.notify_one();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.unwrap();
        world.seen.next_event.notify_one();
    }
    tokio::time::timeout(Duration::from_secs(10), world.serving)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let world = Arc::new(
        World::start(Limits {
            drain_deadline: Duration::from_millis(50),
            ..Limits::default()
        })
        .await,
    );
    let asking = world.clone();
    let request = tokio::spawn(async move {
        let fields = [("seldon-internal-model", "hang_1")];
        asking
            .try_send("POST", "/v2/models/h/infer", &fields, text("{}"))
            .await
            .is_err()
    });
    eventually("the request arrives", || {
        world.seen.hanging.load(Ordering::SeqCst) == 1
    })
    .await;
    world.shutdown.cancel();
    assert!(request.await.unwrap());
}

#[tokio::test]
async fn slow_headers_are_cut_off() {
    let limits = Limits {
        header_deadline: Duration::from_millis(50),
        ..Limits::default()
    };
    let world = World::start(limits).await;
    // The second could still become either protocol.
    for start in ["", "P", "PRI * HT", "GET /v2 HTTP/1.1\r\nhost:"] {
        let mut client = TcpStream::connect(world.address).await.unwrap();
        client.write_all(start.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut answer));
        let _ = closed.await.expect("the connection is closed");
    }
}

#[tokio::test]
async fn headers_are_bounded() {
    let world = World::start(Limits {
        header_bytes: 16 << 10,
        ..Limits::default()
    })
    .await;
    let long = "x".repeat(20 << 10);
    assert_eq!(world.ask("GET", "/v2", &[("x-long", &long)]).await.0, 431);
}

#[tokio::test]
async fn metrics_have_their_documented_names() {
    let world = World::start(Limits::default()).await;
    let mirrored = [
        ("seldon-internal-model", "echo_1"),
        ("seldon-model", "iris"),
    ];
    for fields in [&mirrored[..], &mirrored[..], &[IRIS]] {
        world.ask("POST", "/v2/models/iris/infer", fields).await;
    }
    let gauges = |world: &World| {
        for line in [
            "seldon_model_infer_total{code=\"200\",method_type=\"rest\",model=\"iris\",model_internal=\"echo_1\",server=\"mlserver\",server_replica=\"0\"} 2",
            "seldon_model_infer_total{code=\"200\",method_type=\"rest\",model=\"iris\",model_internal=\"iris_1\",server=\"mlserver\",server_replica=\"0\"} 1",
            "seldon_model_aggregate_infer_total{method_type=\"rest\",server=\"mlserver\",server_replica=\"0\"} 3",
            "seldon_model_infer_api_seconds_count{code=\"200\",method=\"POST\",server=\"mlserver\",server_replica=\"0\"} 3",
            "seldon_cache_evict_count{server=\"mlserver\",server_replica=\"0\"} 0",
            "# TYPE seldon_model_infer_total counter",
            "# TYPE seldon_load_model_counter counter",
        ] {
            assert!(
                world.metrics().lines().any(|found| found == line),
                "{line} is missing in\n{}",
                world.metrics()
            );
        }
        assert!(
            world
                .metrics()
                .contains("seldon_model_infer_seconds_total{code=\"200\",method_type=\"rest\",")
        );
        assert!(world.metrics().contains("le=\"0.075\""));
    };
    gauges(&world);
    world.proxy.forget("echo_1");
    assert!(!world.metrics().contains("echo_1"));
    assert!(world.metrics().contains("iris_1"));
}

#[tokio::test]
async fn bodies_of_any_kind_pass_unchanged() {
    let world = World::start(Limits::default()).await;
    let fields = [
        ("seldon-internal-model", "echo_1"),
        ("content-type", "application/octet-stream"),
    ];
    let chunks = (0..100u8).map(|n| Ok(Frame::data(Bytes::from(vec![n; usize::from(n) * 97]))));
    let wanted: Vec<u8> = (0..100u8)
        .flat_map(|n| vec![n; usize::from(n) * 97])
        .collect();
    let body = StreamBody::new(futures_util::stream::iter(chunks)).boxed();
    let response = world
        .send("POST", "/v2/models/e/infer", &fields, body)
        .await;
    let seen = response.headers()["x-seen-headers"].to_str().unwrap();
    assert!(!seen.contains("content-length"));
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        wanted
    );
}
