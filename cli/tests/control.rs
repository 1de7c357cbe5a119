//! Commands to a scheduler: exit status and all that is printed.
#![allow(clippy::unwrap_used)]
mod fakes;

use std::fs;

use fakes::{Bench, Fake, World, seldon};
use seldon_proto::scheduler::*;
use tempfile::TempDir;
use tonic::Status;

const IRIS: &str = "apiVersion: mlops.seldon.io/v1alpha1
kind: Model
metadata:
  name: iris
spec:
  storageUri: gs://seldon-models/mlserver/iris
  requirements:
  - sklearn
";

fn model(name: &str, state: model_status::ModelState, reason: &str) -> ModelStatusResponse {
    ModelStatusResponse {
        model_name: name.to_owned(),
        versions: vec![ModelVersionStatus {
            version: 1,
            server_name: "mlserver".to_owned(),
            kubernetes_meta: Some(KubernetesMeta::default()),
            state: Some(ModelStatus {
                state: state.into(),
                reason: reason.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

use model_status::ModelState::{ModelAvailable, ModelFailed, ModelProgressing, ModelTerminated};

#[tokio::test]
async fn loading_prints_the_empty_answer_and_unloading_nothing() {
    let bench = Bench::new(World::default()).await;
    let file = bench.file(
        "iris.yaml",
        &format!("{IRIS}---\n{}", IRIS.replace("name: iris", "name: iris2")),
    );
    let ran = bench.run(&["model", "load", "-f", &file]).await;
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "{}\n{}\n", "")
    );
    let ran = bench.run(&["load", "-f", &file, "--force"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "{}\n{}\n"));
    let ran = bench.run(&["model", "unload", "iris"]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
    let ran = bench.run(&["unload", "-f", &file, "-v"]).await;
    assert_eq!(
        ran.out,
        "{\"model\":{\"name\":\"iris2\"}}\n{}\n{\"model\":{\"name\":\"iris\"}}\n{}\n"
    );
    let world = bench.fake.0.lock().unwrap();
    assert_eq!(world.loaded.len(), 4);
    assert_eq!(
        world.loaded[0].model_spec.as_ref().unwrap().uri,
        "gs://seldon-models/mlserver/iris"
    );
    assert_eq!(world.unloaded, ["iris", "iris2", "iris"]);
}

#[tokio::test]
async fn a_wrong_manifest_is_told_and_nothing_is_loaded() {
    let bench = Bench::new(World::default()).await;
    let file = bench.file(
        "bad.yaml",
        &IRIS.replace("  requirements", "  replicas: \"two\"\n  requirements"),
    );
    let ran = bench.run(&["model", "load", "-f", &file]).await;
    let text =
        format!("Error: {file}:7: spec.replicas: invalid type: string \"two\", expected u32\n");
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (255, "", text.as_str())
    );
    assert!(bench.fake.0.lock().unwrap().loaded.is_empty());
    let server = bench.file("s.yaml", "apiVersion: mlops.seldon.io/v1alpha1\nkind: Server\nmetadata: {name: s}\nspec: {serverConfig: mlserver}\n");
    let ran = bench.run(&["load", "-f", &server]).await;
    assert!(
        ran.code == 255 && ran.err.contains("s is a Server"),
        "{ran:?}"
    );
    let ran = bench.run(&["model", "load", "-f", &server]).await;
    assert!(
        ran.err
            .contains("s.yaml:1: this is a Server, expected a Model"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn refusals_have_the_words_of_grpc() {
    let refusal = Some(Status::failed_precondition("model iris is being deleted"));
    let bench = Bench::new(World {
        refusal,
        ..Default::default()
    })
    .await;
    let file = bench.file("iris.yaml", IRIS);
    let ran = bench.run(&["model", "load", "-f", &file]).await;
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (
            255,
            "Error: rpc error: code = FailedPrecondition desc = model iris is being deleted\n"
        )
    );
    let ran = bench.run(&["pipeline", "status", "p"]).await;
    assert!(
        ran.code == 255
            && ran
                .err
                .starts_with("Error: rpc error: code = Unimplemented"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn status_is_one_line_and_waiting_prints_the_empty_answer() {
    let progressing = model("iris", ModelProgressing, "");
    let available = model("iris", ModelAvailable, "");
    let models = [
        vec![progressing.clone()],
        vec![progressing],
        vec![available],
    ]
    .into();
    let bench = Bench::new(World {
        models,
        ..Default::default()
    })
    .await;
    let ran = bench
        .run(&["model", "status", "iris", "-w", "ModelAvailable"])
        .await;
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "{}\n", "")
    );
    let ran = bench.run(&["model", "status", "iris"]).await;
    assert_eq!(
        ran.out,
        "{\"modelName\":\"iris\",\"versions\":[{\"version\":1,\"serverName\":\"mlserver\",\"kubernetesMeta\":{},\"state\":{\"state\":\"ModelAvailable\"}}]}\n"
    );
    let ran = bench.run(&["model", "status", "iris", "-o", "yaml"]).await;
    assert!(
        ran.out.starts_with("modelName: iris\nversions:\n"),
        "{ran:?}"
    );
    let ran = bench
        .run(&["model", "status", "iris", "--output=table"])
        .await;
    assert!(
        ran.out.contains("1\tmlserver\tModelAvailable\t0\t"),
        "{ran:?}"
    );
    let asked = bench.fake.0.lock().unwrap().asked[0].clone();
    assert_eq!(asked.subscriber_name, "seldon CLI");
}

#[tokio::test]
async fn a_wait_in_vain_ends_with_the_documented_words() {
    let models = [vec![model("iris", ModelFailed, "no artefact")]].into();
    let bench = Bench::new(World {
        models,
        ..Default::default()
    })
    .await;
    let ran = bench
        .run(&["model", "status", "iris", "-w", "ModelAvailable", "-t", "1"])
        .await;
    assert_eq!((ran.code, ran.out.as_str()), (255, ""));
    let lines: Vec<_> = ran.err.lines().collect();
    assert_eq!(lines[0], "Error: Model wait status timeout");
    assert!(
        lines[1].starts_with("iris is ModelFailed: no artefact"),
        "{ran:?}"
    );
    let ran = bench.run(&["model", "status", "iris", "-w", "Ready"]).await;
    assert!(
        ran.code == 255 && ran.err.contains("\"Ready\" is not a state of a model"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn lists_are_tables_without_what_is_gone() {
    let models = [vec![
        model("tfsimple1", ModelFailed, "no artefact"),
        model("old", ModelTerminated, ""),
        model("iris", ModelAvailable, ""),
    ]];
    let servers = vec![ServerStatusResponse {
        server_name: "mlserver".to_owned(),
        available_replicas: 1,
        num_loaded_model_replicas: 2,
        ..Default::default()
    }];
    let bench = Bench::new(World {
        models: models.into(),
        servers,
        ..Default::default()
    })
    .await;
    let ran = bench.run(&["model", "list"]).await;
    assert_eq!(
        ran.out,
        "model\t\tstate\t\treason\n-----\t\t-----\t\t------\niris\t\tModelAvailable\t\ntfsimple1\tModelFailed\tno artefact\n"
    );
    let ran = bench.run(&["server", "list"]).await;
    assert_eq!(
        ran.out,
        "server\t\treplicas\tmodels\n------\t\t--------\t------\nmlserver\t1\t\t2\n"
    );
    let ran = bench
        .run(&["server", "status", "mlserver", "-o=false"])
        .await;
    assert_eq!(ran.out, "mlserver loaded models 2 available replicas 1\n");
    let ran = bench.run(&["server", "list", "-o", "json"]).await;
    assert_eq!(
        ran.out,
        "[{\"serverName\":\"mlserver\",\"availableReplicas\":1,\"numLoadedModelReplicas\":2}]\n"
    );
}

#[tokio::test]
async fn the_address_comes_from_the_flag_then_the_configuration_then_the_variable() {
    let bench = Bench::new(World::default()).await;
    let away = ["model", "list", "--scheduler-host", "127.0.0.1:1"];
    let ran = bench.run(&away).await;
    assert_eq!(ran.code, 255);
    assert!(
        ran.err.starts_with("Error: cannot reach the scheduler at 127.0.0.1:1 (from --scheduler-host): Connection refused"),
        "{ran:?}"
    );
    let config = bench.file(
        "c.json",
        r#"{"controlplane":{"schedulerHost":"127.0.0.1:1"}}"#,
    );
    assert_eq!(bench.run(&["config", "add", "away", &config]).await.out, "");
    assert_eq!(bench.run(&["config", "activate", "away"]).await.code, 0);
    let ran = bench.run(&["config", "list"]).await;
    let row = ran.out.lines().last().unwrap();
    assert!(row.starts_with("away\t") && row.ends_with("\t*"), "{ran:?}");
    let ran = bench.run(&["server", "list"]).await;
    assert!(
        ran.err
            .contains("controlplane.schedulerHost of the active configuration"),
        "{ran:?}"
    );
    assert_eq!(
        bench
            .run(&["server", "list", "--scheduler-host", &bench.host])
            .await
            .code,
        0
    );
    assert_eq!(bench.run(&["config", "deactivate", "away"]).await.code, 0);
    assert_eq!(bench.run(&["server", "list"]).await.code, 0);
    let ran = bench.run(&["config", "activate", "nobody"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (255, ""));
}

#[tokio::test]
async fn envoys_and_decisions_are_told() {
    let bench = Bench::new(World::default()).await;
    let ran = bench.run(&["xds", "status"]).await;
    for part in [
        "test-id",
        "for 3 s",
        "7/8",
        "stream 1 refused Cluster c1: bad",
    ] {
        assert!(ran.out.contains(part), "{part}: {ran:?}");
    }
    let ran = bench.run(&["xds", "status", "-o", "json"]).await;
    assert!(
        ran.out.contains("\"acknowledgedGeneration\":\"7\""),
        "{ran:?}"
    );
    let ran = bench.run(&["explain", "pipeline", "tfsimples"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    for part in [
        "tfsimples version 1",
        "tfsimples.inputs",
        "dataflow-engine-0",
        "no route leads to it",
    ] {
        assert!(ran.out.contains(part), "{part} in\n{}", ran.out);
    }
    let ran = bench.run(&["explain", "model", "iris"]).await;
    for part in [
        "iris is ScheduleFailed: no server fits",
        "lacks capability triton",
        "no route leads to it",
    ] {
        assert!(ran.out.contains(part), "{part}: {ran:?}");
    }
    assert!(!ran.out.contains("\n\n\n"), "{ran:?}");
}

#[tokio::test]
async fn wrong_words_end_with_255_and_help_with_0() {
    let bench = Bench::new(World::default()).await;
    for words in [
        &["model"][..],
        &["model", "load"],
        &["model", "list", "--nothing"],
        &[],
    ] {
        let ran = bench.run(words).await;
        assert!(ran.code == 255 && ran.err.starts_with("Error: "), "{ran:?}");
    }
    let ran = bench.run(&["--version"]).await;
    assert_eq!((ran.code, ran.out.starts_with("seldon ")), (0, true));
    assert!(
        bench
            .run(&["completion", "bash"])
            .await
            .out
            .contains("seldon")
    );
}

#[tokio::test]
async fn a_configuration_with_certificates_speaks_tls() {
    let home = TempDir::new().unwrap();
    let host = Fake::default().serve_tls(home.path()).await;
    let path = |name: &str| home.path().join(name).display().to_string();
    let config = |crt: &str, key: &str| {
        format!(
            r#"{{"controlplane":{{"schedulerHost":"{host}","tls":true,"keyPath":"{}","crtPath":"{}","caPath":"{}"}}}}"#,
            path(key),
            path(crt),
            path("server.ca")
        )
    };
    fs::write(path("c.json"), config("client.crt", "client.key")).unwrap();
    let run = async |words: &[&str]| seldon(home.path(), &[], words).await;
    assert_eq!(run(&["config", "add", "c", &path("c.json")]).await.code, 0);
    assert_eq!(run(&["config", "activate", "c"]).await.code, 0);
    let ran = run(&["server", "list"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    // A certificate that the scheduler does not know, and no TLS at all, are refused.
    fs::write(path("c.json"), config("server.crt", "server.key")).unwrap();
    assert_eq!(run(&["server", "list"]).await.code, 255);
    fs::write(path("c.json"), "{}").unwrap();
    assert_eq!(
        run(&["server", "list", "--scheduler-host", &host])
            .await
            .code,
        255
    );
}

#[tokio::test]
async fn a_scheduler_that_does_not_answer_is_named_in_time() {
    // As a stopped process: the kernel takes the connection, and nobody reads.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let home = TempDir::new().unwrap();
    let ask = async |words: &[&str]| {
        let variables = [("SELDON_SCHEDULE_HOST", host.as_str())];
        let run = seldon(home.path(), &variables, words);
        let ran = tokio::time::timeout(std::time::Duration::from_secs(30), run);
        let ran = ran.await.expect("the command ends by itself");
        let told = format!("the scheduler at {host} (from SELDON_SCHEDULE_HOST) does not answer");
        assert!(
            ran.code == 255 && ran.out.is_empty() && ran.err.contains(&told),
            "{ran:?}"
        );
        ran.err
    };
    let (once, waited, experiment, list) = tokio::join!(
        ask(&["model", "status", "iris", "-t", "1"]),
        ask(&["model", "status", "iris", "-t", "1", "-w", "ModelAvailable"]),
        ask(&["experiment", "status", "e", "-t", "1"]),
        // Without a time of its own, by the pings of the connection.
        ask(&["model", "list"]),
    );
    assert!(once.contains("nothing within 1 s"), "{once}");
    assert!(waited.contains("Model wait status timeout"), "{waited}");
    assert!(experiment.contains("nothing within 1 s"), "{experiment}");
    assert!(list.contains("seldon local status"), "{list}");
}
