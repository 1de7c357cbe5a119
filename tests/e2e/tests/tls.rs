//! Everything over TLS: agents and the CLI to the scheduler, Envoy to scheduler and agents, clients to Envoy.
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use seldon_e2e::{Answer, Case, Certificates, Running, run};
use seldon_local::{Component, System, TlsFiles};
use serde_json::json;

const CASES: &[Case] = &[
    ("tls::a_model_is_loaded_and_asked", loaded_and_asked),
    ("tls::plain_or_unknown_peers_are_turned_away", turned_away),
];

fn main() -> ExitCode {
    run(start, CASES)
}

const IRIS: &str = r#"{"inputs": [{"name": "predict", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2, 3, 4]]}]}"#;

/// Each side of each connection has its own variables; here all of them name the same three files.
const SIDES: [&str; 5] = [
    "CONTROL_PLANE_SERVER",
    "CONTROL_PLANE_CLIENT",
    "ENVOY_DOWNSTREAM_SERVER",
    "ENVOY_UPSTREAM_SERVER",
    "ENVOY_UPSTREAM_CLIENT",
];

fn start() -> Result<Running> {
    // Left to the system's cleaning.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tls");
    fs::create_dir_all(&folder)?;
    Certificates::make(&folder)?;
    // The second Envoy never runs: its ports are the scheduler's with TLS.
    let mut builder = System::builder()
        .envoys(2)
        .without(Component::Envoy(1))
        .deadline(Duration::from_secs(60));
    for part in ["scheduler", "agent"] {
        for protocol in ["CONTROL_PLANE", "ENVOY"] {
            builder = builder.env(part, format!("{protocol}_SECURITY_PROTOCOL"), "SSL");
        }
        for side in SIDES {
            for (what, file) in [("KEY", "tls.key"), ("CRT", "tls.crt"), ("CA", "ca.crt")] {
                let path = folder.join(file).display().to_string();
                builder = builder.env(part, format!("{side}_TLS_{what}_LOCATION"), path);
            }
        }
    }
    Running::start(builder.config(move |config| {
        let spare = config.ports.envoys[1].clone();
        config.xds_tls = Some(TlsFiles {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            authority: folder.join("ca.crt"),
        });
        let flags = [
            format!("--scheduler-mtls-port={}", spare.data),
            format!("--agent-mtls-port={}", spare.status),
            "--allow-plaintxt=false".to_owned(),
        ];
        config
            .args
            .entry("scheduler".to_owned())
            .or_default()
            .extend(flags);
        let port = format!("--scheduler-tls-port={}", spare.status);
        config
            .args
            .entry("agent".to_owned())
            .or_default()
            .push(port);
    }))
}

fn file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tls");
    folder.join(name).display().to_string()
}

/// The scheduler's API with TLS.
fn api(running: &Running) -> String {
    format!("127.0.0.1:{}", running.system().ports().envoys[1].data)
}

fn loaded_and_asked(running: &Running) -> Result<()> {
    let files = json!({"tls": true, "keyPath": file("tls.key"), "crtPath": file("tls.crt"), "caPath": file("ca.crt")});
    let mut settings = json!({"dataplane": files, "controlplane": files});
    settings["dataplane"]["inferHost"] = json!(format!("127.0.0.1:{}", running.data()));
    settings["controlplane"]["schedulerHost"] = json!(api(running));
    let path = running.folder().join("tls.json");
    fs::write(&path, settings.to_string())?;
    running
        .cli(&[
            "config",
            "add",
            "tls",
            path.to_str().context("a path of text")?,
        ])?
        .ok()?;
    running.cli(&["config", "activate", "tls"])?.ok()?;
    running
        .cli(&["model", "load", "-f", "models/sklearn-iris-gs.yaml"])?
        .ok()?;
    running
        .cli(&[
            "model",
            "status",
            "iris",
            "-w",
            "ModelAvailable",
            "-t",
            "30",
        ])?
        .ok()?;
    let answer = running.cli(&["model", "infer", "iris", IRIS])?.ok()?;
    ensure!(answer.contains("iris_1"), "{answer}");
    let message = r#"{"inputs":[{"name":"input","contents":{"fp32_contents":[1,2,3,4]},"datatype":"FP32","shape":[1,4]}]}"#;
    let answer = running
        .cli(&[
            "model",
            "infer",
            "iris",
            "--inference-mode",
            "grpc",
            message,
        ])?
        .ok()?;
    ensure!(answer.contains("iris_1"), "{answer}");
    for version in ["--http1.1", "--http2"] {
        let line = format!(
            "curl --silent --fail {version} --cacert {} https://127.0.0.1:{}/v2/models/iris/infer -H 'Content-Type: application/json' -d '{IRIS}'",
            file("ca.crt"),
            running.data()
        );
        let answer = running.shell(".", &line)?.ok()?;
        ensure!(answer.contains("iris_1"), "{version}: {answer}");
    }
    let line = format!(
        "grpcurl -cacert {} -import-path apis -proto mlops/v2_dataplane/v2_dataplane.proto -d '{{\"model_name\":\"iris\",\"inputs\":[{{\"name\":\"input\",\"contents\":{{\"fp32_contents\":[1,2,3,4]}},\"datatype\":\"FP32\",\"shape\":[1,4]}}]}}' 127.0.0.1:{} inference.GRPCInferenceService/ModelInfer",
        file("ca.crt"),
        running.data()
    );
    let answer = running.shell(".", &line)?.ok()?;
    ensure!(answer.contains("iris_1"), "{answer}");
    running.cli(&["model", "unload", "iris"])?.ok()?;
    Ok(())
}

fn turned_away(running: &Running) -> Result<()> {
    let plain = Answer::to(running.data(), b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n", b"");
    ensure!(plain.is_err(), "Envoy answers without TLS: {plain:?}");
    let agent = running.system().ports().replicas[0].rest;
    let plain = Answer::to(agent, b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n", b"");
    ensure!(plain.is_err(), "the agent answers without TLS: {plain:?}");
    let line = format!(
        "curl --silent --cacert {} https://127.0.0.1:{agent}/v2",
        file("ca.crt")
    );
    ensure!(
        running.shell(".", &line)?.code != 0,
        "the agent answers a client without a certificate"
    );
    let line = format!(
        "grpcurl -connect-timeout 2 -cacert {} {} list",
        file("ca.crt"),
        api(running)
    );
    ensure!(
        running.shell(".", &line)?.code != 0,
        "the scheduler answers a client without a certificate"
    );
    let line = format!(
        "grpcurl -cacert {} -cert {} -key {} {} list",
        file("ca.crt"),
        file("tls.crt"),
        file("tls.key"),
        api(running)
    );
    let services = running.shell(".", &line)?.ok()?;
    ensure!(
        services.contains("seldon.mlops.scheduler.Scheduler"),
        "{services}"
    );
    for port in [
        running.system().ports().scheduler.api,
        running.system().ports().scheduler.agents,
    ] {
        ensure!(
            std::net::TcpStream::connect(("127.0.0.1", port)).is_err(),
            "plain port {port} is open"
        );
    }
    Ok(())
}
