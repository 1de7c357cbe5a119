//! The Open Inference Protocol through Envoy: what names the model, what answers, what is refused.
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message;
use seldon_e2e::{Ask, Case, Loaded, Running, Spec, framed, message_frame};
use seldon_proto::inference as pb;
use tonic::Code;

pub const CASES: &[Case] = &[
    ("protocol::the_header_or_the_path_names_the_model", names),
    ("protocol::health_and_metadata", health_and_metadata),
    ("protocol::server_health_and_metadata", server),
    (
        "protocol::answers_carry_request_id_and_route",
        ids_and_routes,
    ),
    ("protocol::unknown_models_are_not_found_by_name", unknown),
    (
        "protocol::malformed_requests_get_the_protocols_error",
        malformed,
    ),
    ("protocol::malformed_frames_end", malformed_frames),
    ("protocol::nothing_else_is_reachable", unreachable),
];

/// The documented request.
pub const IRIS: &str = r#"{"inputs": [{"name": "predict", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2, 3, 4]]}]}"#;

/// The same as a message.
pub fn iris(model: &str) -> pb::ModelInferRequest {
    let tensor = pb::model_infer_request::InferInputTensor {
        name: "predict".into(),
        datatype: "FP32".into(),
        shape: vec![1, 4],
        contents: Some(pb::InferTensorContents {
            fp32_contents: vec![1.0, 2.0, 3.0, 4.0],
            ..Default::default()
        }),
        ..Default::default()
    };
    pb::ModelInferRequest {
        model_name: model.into(),
        inputs: vec![tensor],
        ..Default::default()
    }
}

pub const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Asks, and tells who answered by the two things that say so.
fn answered(running: &Running, ask: &Ask) -> Result<String> {
    let answer = ask.send(running.data())?;
    let json = answer.ok()?;
    let name = json["model_name"]
        .as_str()
        .context("no model_name")?
        .to_owned();
    ensure!(
        json["outputs"][0]["data"] == serde_json::json!([2]),
        "{json}"
    );
    let routes = answer.all("x-seldon-route");
    ensure!(
        routes == [format!(":{name}:")],
        "{name} answered by {routes:?}"
    );
    Ok(name)
}

fn names(running: &Running) -> Result<()> {
    let _a = Loaded::available(running, &Spec::iris("names-a"))?;
    let _b = Loaded::available(running, &Spec::iris("names-b"))?;
    for (what, path, header, wanted) in [
        ("path", "/v2/models/names-a/infer", None, "names-a_1"),
        (
            "header",
            "/v2/models/names-a/infer",
            Some("names-a"),
            "names-a_1",
        ),
        (
            "header beats path",
            "/v2/models/names-a/infer",
            Some("names-b"),
            "names-b_1",
        ),
        (
            "header, no such path",
            "/v2/models/nothing/infer",
            Some("names-b"),
            "names-b_1",
        ),
        (
            "slash at the end",
            "/v2/models/names-a/infer/",
            None,
            "names-a_1",
        ),
        ("slashes", "//v2//models/names-a//infer", None, "names-a_1"),
        (
            "query",
            "/v2/models/names-a/infer?a=/v2/models/names-b/infer&b=%2F",
            None,
            "names-a_1",
        ),
        (
            "percent-encoding",
            "/v2/models/n%61mes%2Da/infer",
            None,
            "names-a_1",
        ),
        (
            "percent-encoded action",
            "/v2/models/names-a/%69nfer",
            None,
            "names-a_1",
        ),
        (
            "version",
            "/v2/models/names-a/versions/1/infer",
            None,
            "names-a_1",
        ),
        (
            "dots",
            "/v2/models/names-b/../names-a/infer",
            None,
            "names-a_1",
        ),
        (
            "absolute form",
            "http://seldon.test/v2/models/names-a/infer",
            None,
            "names-a_1",
        ),
    ] {
        let mut ask = Ask::post(path, IRIS);
        if let Some(model) = header {
            ask = ask.header("Seldon-Model", model);
        }
        let name = answered(running, &ask).context(what)?;
        ensure!(name == wanted, "{what}: {name} answered, not {wanted}");
    }
    for host in ["localhost", "iris.example.com:8080", "10.0.0.1", "ünknown"] {
        let ask = Ask::post("/v2/models/names-a/infer", IRIS).header("Host", host);
        if host.is_ascii() {
            ensure!(answered(running, &ask)? == "names-a_1", "host {host}");
        }
    }
    // Over gRPC, without a header.
    let answer = running.block_on(running.inference().model_infer(iris("names-b")))?;
    ensure!(answer.get_ref().model_name == "names-b_1", "{answer:?}");
    Ok(())
}

fn health_and_metadata(running: &Running) -> Result<()> {
    let _model = Loaded::available(
        running,
        &Spec::new(
            "meta",
            "gs://seldon-models/scv2/samples/mlserver_1.5.0/iris-sklearn",
            "sklearn",
        ),
    )?;
    for header in [false, true] {
        for path in [
            "/v2/models/meta/ready",
            "/v2/models/meta",
            "/v2/models/meta/versions/1/ready",
        ] {
            let named = |ask: Ask| {
                if header {
                    ask.header("seldon-model", "meta")
                } else {
                    ask
                }
            };
            let get = named(Ask::get(path)).send(running.data())?;
            ensure!(
                get.status == 200,
                "GET {path}: {} {}",
                get.status,
                get.text()
            );
            let head = named(Ask::new("HEAD", path)).send(running.data())?;
            ensure!(
                head.status == 200 && head.body.is_empty(),
                "HEAD {path}: {}",
                head.status
            );
        }
    }
    let metadata = Ask::get("/v2/models/meta").send(running.data())?.ok()?;
    ensure!(
        metadata["name"] == "meta_1"
            && metadata["inputs"][0]["shape"] == serde_json::json!([-1, 4]),
        "{metadata}"
    );
    running.block_on(async {
        let mut client = running.inference();
        let name = || ("meta".to_owned(), String::new());
        let (name_, version) = name();
        let ready = client
            .model_ready(pb::ModelReadyRequest {
                name: name_,
                version,
            })
            .await?;
        ensure!(ready.get_ref().ready, "not ready over gRPC");
        let (name_, version) = name();
        let metadata = client
            .model_metadata(pb::ModelMetadataRequest {
                name: name_,
                version,
            })
            .await?
            .into_inner();
        ensure!(
            metadata.name == "meta_1" && metadata.inputs.len() == 1,
            "{metadata:?}"
        );
        Ok(())
    })
}

fn server(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::iris("served"))?;
    for path in ["/v2/health/live", "/v2/health/ready", "/v2"] {
        for method in ["GET", "HEAD"] {
            let answer = Ask::new(method, path).send(running.data())?;
            ensure!(
                answer.status == 200,
                "{method} {path}: {} {}",
                answer.status,
                answer.text()
            );
        }
    }
    let about = Ask::get("/v2").send(running.data())?.ok()?;
    ensure!(
        about["name"].is_string() && about["version"].is_string() && about["extensions"].is_array(),
        "{about}"
    );
    running.block_on(async {
        let mut client = running.inference();
        ensure!(
            client
                .server_live(pb::ServerLiveRequest {})
                .await?
                .get_ref()
                .live,
            "not live"
        );
        ensure!(
            client
                .server_ready(pb::ServerReadyRequest {})
                .await?
                .get_ref()
                .ready,
            "not ready"
        );
        let about = client
            .server_metadata(pb::ServerMetadataRequest {})
            .await?
            .into_inner();
        ensure!(!about.name.is_empty(), "{about:?}");
        Ok(())
    })
}

fn ids_and_routes(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::iris("ids"))?;
    let ask = Ask::post("/v2/models/ids/infer", IRIS);
    let given = ask
        .clone()
        .header("X-Request-Id", "mine/1")
        .send(running.data())?;
    ensure!(
        given.all("x-request-id") == ["mine/1"],
        "{:?}",
        given.fields
    );
    let made = ask.send(running.data())?;
    let id = made.field("x-request-id");
    ensure!(is_xid(id), "{id:?} is no xid");
    ensure!(
        ask.send(running.data())?.field("x-request-id") != id,
        "the same id twice"
    );
    // The id of the message is another one, and comes back.
    let with_id = IRIS.replacen('{', r#"{"id": "42","#, 1);
    let answer = Ask::post("/v2/models/ids/infer", with_id)
        .send(running.data())?
        .ok()?;
    ensure!(answer["id"] == "42", "{answer}");

    running.block_on(async {
        let mut request = tonic::Request::new(iris("ids"));
        request
            .metadata_mut()
            .insert("x-request-id", "mine-2".parse()?);
        let answer = running.inference().model_infer(request).await?;
        ensure!(
            answer
                .metadata()
                .get("x-request-id")
                .is_some_and(|id| id == "mine-2"),
            "{answer:?}"
        );
        ensure!(
            answer
                .metadata()
                .get("x-seldon-route")
                .is_some_and(|route| route == ":ids_1:"),
            "{answer:?}"
        );
        let answer = running.inference().model_infer(iris("ids")).await?;
        let id = answer
            .metadata()
            .get("x-request-id")
            .context("no id")?
            .to_str()?;
        ensure!(is_xid(id), "{id:?} is no xid");
        Ok(())
    })
}

fn is_xid(text: &str) -> bool {
    text.len() == 20
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'v').contains(&byte))
}

fn unknown(running: &Running) -> Result<()> {
    for ask in [
        Ask::post("/v2/models/ghost/infer", IRIS),
        Ask::post("/v2/models/other/infer", IRIS).header("seldon-model", "ghost"),
        Ask::get("/v2/models/ghost"),
        Ask::get("/v2/models/ghost/ready"),
        Ask::post("/v2/pipelines/ghost/infer", IRIS),
    ] {
        let answer = ask.send(running.data())?;
        ensure!(
            answer.status == 404 && answer.field("content-type").starts_with("application/json"),
            "{answer:?}"
        );
        ensure!(answer.error()?.contains("ghost"), "{}", answer.text());
    }
    // It is named by its kind, whichever way it was asked for.
    let kinds = [
        ("/v2/models/ghost/infer", "ghost", "no model named ghost"),
        (
            "/v2/pipelines/ghost/infer",
            "",
            "no such pipeline is loaded",
        ),
        (
            "/v2/models/ghost/infer",
            "ghost.pipeline",
            "no such pipeline is loaded",
        ),
        (
            "/v2/models/ghost/infer",
            "ghost.experiment",
            "no such experiment is started",
        ),
    ];
    for (path, header, wanted) in kinds {
        let mut ask = Ask::post(path, IRIS);
        if !header.is_empty() {
            ask = ask.header("seldon-model", header);
        }
        let said = ask.send(running.data())?.error()?;
        ensure!(said.contains(wanted) && said.contains("ghost"), "{said}");
    }
    let head = Ask::new("HEAD", "/v2/models/ghost/ready").send(running.data())?;
    ensure!(head.status == 404, "{head:?}");
    let done = running.cli(&["model", "infer", "ghost", IRIS])?;
    let said = done.refused()?;
    ensure!(said.contains("ghost") && said.contains("404"), "{said}");
    running.block_on(async {
        for header in [false, true] {
            let mut request = tonic::Request::new(iris("ghost"));
            if header {
                request
                    .metadata_mut()
                    .insert("seldon-model", "ghost".parse()?);
            }
            let refused = running
                .inference()
                .model_infer(request)
                .await
                .err()
                .context("answered")?;
            ensure!(
                refused.code() == Code::NotFound && refused.message().contains("ghost"),
                "{refused:?}"
            );
        }
        let nameless = running
            .inference()
            .model_infer(iris(""))
            .await
            .err()
            .context("answered")?;
        ensure!(
            matches!(nameless.code(), Code::NotFound | Code::InvalidArgument),
            "{nameless:?}"
        );
        Ok(())
    })
}

fn malformed(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::iris("malformed"))?;
    let path = "/v2/models/malformed/infer";
    for body in [
        "",
        "{",
        "[]",
        "null",
        "\u{1}\u{2}",
        "{}",
        r#"{"inputs": {}}"#,
        r#"{"inputs": [{"name": "predict"}]}"#,
        r#"{"inputs": [{"name": "predict", "shape": "x", "datatype": "FP32", "data": [1]}]}"#,
    ] {
        let answer = Ask::post(path, body)
            .send(running.data())
            .with_context(|| format!("body {body:?}"))?;
        // MLServer says `detail` where the protocol says `error`; answers of a server pass untouched.
        answer.refused().with_context(|| format!("body {body:?}"))?;
    }
    for (method, target, status) in [
        ("DELETE", path, 405),
        ("GET", path, 405),
        ("PUT", path, 405),
    ] {
        let answer = Ask::new(method, target).send(running.data())?;
        ensure!(
            answer.status == status,
            "{method} {target}: {} {}",
            answer.status,
            answer.text()
        );
    }
    // What no HTTP server should take: Envoy says so, and closes.
    for head in [
        "POST /v2/models/malformed/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v2/models/malformed/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        "POST /v2/models/malformed/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "POST /v2/models/malformed/infer\r\n\r\n",
        "\u{0}\u{1}\u{2}\r\n\r\n",
    ] {
        let answer = seldon_e2e::Answer::to(running.data(), head.as_bytes(), b"")
            .with_context(|| format!("{head:?}"))?;
        ensure!(
            (400..500).contains(&answer.status),
            "{head:?}: {}",
            answer.status
        );
    }
    // It still works for others.
    ensure!(
        answered(running, &Ask::post(path, IRIS))? == "malformed_1",
        "not well afterwards"
    );
    Ok(())
}

fn malformed_frames(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::iris("frames"))?;
    let good = message_frame(&iris("frames").encode_to_vec());
    let mut compressed = good.to_vec();
    compressed[0] = 1;
    let mut endless = good.to_vec();
    endless[1] = 0xff;
    let cut = good.slice(..good.len() - 3);
    for (what, body) in [
        ("nothing", Bytes::new()),
        ("half a frame header", good.slice(..3)),
        ("a cut message", cut),
        ("a length of 4 GB", endless.into()),
        ("a compressed flag without compression", compressed.into()),
        ("no protobuf", message_frame(&[0xff; 40])),
        ("a wrong wire type", message_frame(&[0x0d, 1, 2, 3, 4])),
        ("JSON", Bytes::from_static(IRIS.as_bytes())),
    ] {
        for headers in [&[("seldon-model", "frames")][..], &[]] {
            let call = framed(running.data(), INFER, headers, body.clone());
            match running.block_on(call) {
                Ok(answer) => {
                    let accepted = answer.code() == Some(0) && !answer.body.is_empty();
                    ensure!(!accepted, "{what}: accepted, {answer:?}");
                }
                // A stream that was reset has ended; one that hangs has not.
                Err(error) => ensure!(!format!("{error:#}").contains("hangs"), "{what}: {error:#}"),
            }
        }
    }
    let call = framed(running.data(), INFER, &[], good);
    let answer: pb::ModelInferResponse = running.block_on(call)?.message()?;
    ensure!(
        answer.model_name == "frames_1",
        "not well afterwards: {answer:?}"
    );
    Ok(())
}

fn unreachable(running: &Running) -> Result<()> {
    let _model = Loaded::available(running, &Spec::iris("reachable"))?;
    let agent = running.system().ports().replicas[0].rest;
    for (method, path) in [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/reachable_1/load"),
        ("POST", "/v2/repository/models/reachable_1/unload"),
        ("POST", "/v2/models/reachable/../../repository/index"),
        ("POST", "/v2/models/reachable/..%2f..%2frepository/index"),
        (
            "POST",
            "/v2/models/reachable/%2e%2e/%2e%2e/repository/index",
        ),
        ("POST", "/v2/models/..\\repository\\index"),
        ("POST", "/v2/models/reachable/unload"),
        ("GET", "/v2/docs"),
        ("GET", "/v2/docs/dataplane.yaml"),
        ("GET", "/v2/models/reachable/docs"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/metrics"),
        ("GET", "/stats"),
        ("GET", "/"),
        ("GET", "/v2/models"),
        ("POST", "/v3/chat/completions"),
    ] {
        for header in [false, true] {
            for port in [running.data(), agent] {
                let mut ask = Ask::new(method, path);
                if header {
                    ask = ask
                        .header("seldon-model", "reachable")
                        .header("seldon-internal-model", "reachable_1");
                }
                let answer = ask.send(port)?;
                ensure!(
                    (400..500).contains(&answer.status),
                    "{method} {path} on {port}: {} {}",
                    answer.status,
                    answer.text()
                );
            }
        }
    }
    for method in [
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryStatus",
    ] {
        for service in [
            "inference.GRPCInferenceService",
            "inference.model_repository.ModelRepositoryService",
        ] {
            for headers in [
                &[
                    ("seldon-model", "reachable"),
                    ("seldon-internal-model", "reachable_1"),
                ][..],
                &[],
            ] {
                for port in [running.data(), agent] {
                    let body = message_frame(
                        &pb::RepositoryModelUnloadRequest {
                            repository_name: "reachable_1".into(),
                            model_name: "reachable_1".into(),
                            ..Default::default()
                        }
                        .encode_to_vec(),
                    );
                    let path = format!("/{service}/{method}");
                    let answer = running.block_on(framed(port, &path, headers, body))?;
                    ensure!(
                        matches!(answer.code(), Some(5 | 12)),
                        "{service}/{method} on {port}: {answer:?}"
                    );
                }
            }
        }
    }
    ensure!(
        answered(running, &Ask::post("/v2/models/reachable/infer", IRIS))? == "reachable_1",
        "unloaded"
    );
    Ok(())
}
