//! What cannot work is refused, or shown as failed with a reason to act on; nothing else is disturbed.
use std::fs;

use anyhow::{Context, Result, ensure};
use seldon_e2e::{Ask, Case, Loaded, Running, Spec};
use seldon_proto::scheduler as pb;
use seldon_proto::scheduler::model_status::ModelState;

use crate::protocol::IRIS;

pub const CASES: &[Case] = &[
    ("bad_input::manifests", manifests),
    ("bad_input::over_the_api", over_the_api),
    ("bad_input::artefacts", artefacts),
    ("bad_input::placement", placement),
    ("bad_input::secrets_are_not_told", secrets),
];

/// A manifest, and what the CLI says of it.
const MANIFESTS: &[(&str, &str, &[&str])] = &[
    (
        "unknown field",
        "apiVersion: mlops.seldon.io/v1alpha1\nkind: Model\nmetadata:\n  name: bad\nspec:\n  storageUri: gs://a/b\n  requirement:\n  - sklearn\n",
        &[":7", "spec.requirement"],
    ),
    (
        "wrong type",
        "apiVersion: mlops.seldon.io/v1alpha1\nkind: Model\nmetadata:\n  name: bad\nspec:\n  storageUri: gs://a/b\n  replicas: many\n",
        &[":7", "spec.replicas"],
    ),
    (
        "wrong quantity",
        "apiVersion: mlops.seldon.io/v1alpha1\nkind: Model\nmetadata:\n  name: bad\nspec:\n  storageUri: gs://a/b\n  memory: 100Kb\n",
        &[":7", "spec.memory"],
    ),
    (
        "bad name",
        "apiVersion: mlops.seldon.io/v1alpha1\nkind: Model\nmetadata:\n  name: Bad_Name\nspec:\n  storageUri: gs://a/b\n",
        &[":4", "metadata.name", "Bad_Name"],
    ),
    (
        "no storageUri",
        "apiVersion: mlops.seldon.io/v1alpha1\nkind: Model\nmetadata:\n  name: bad\nspec:\n  requirements:\n  - sklearn\n",
        &["storageUri"],
    ),
    ("no YAML", "apiVersion: [\n", &["bad.yaml"]),
    (
        "an unknown kind",
        "apiVersion: mlops.seldon.io/v1alpha1\nkind: Modell\nmetadata:\n  name: bad\n",
        &["Modell"],
    ),
    ("nothing", "", &["bad.yaml"]),
    (
        "the second of two",
        "apiVersion: mlops.seldon.io/v1alpha1\nkind: Model\nmetadata:\n  name: bad\nspec:\n  storageUri: gs://a/b\n---\napiVersion: mlops.seldon.io/v1alpha1\nkind: Model\nmetadata:\n  name: worse\nspec:\n  storage: x\n",
        &[":13", "spec.storage"],
    ),
];

fn manifests(running: &Running) -> Result<()> {
    let folder = running.folder().join("manifests");
    fs::create_dir_all(&folder)?;
    let file = folder.join("bad.yaml");
    let path = file.to_str().context("a path of text")?;
    for (what, text, words) in MANIFESTS {
        fs::write(&file, text)?;
        let said = running
            .cli(&["model", "load", "-f", path])?
            .refused()
            .with_context(|| (*what).to_owned())?;
        ensure!(said.starts_with("Error: "), "{what}: {said}");
        for word in *words {
            ensure!(said.contains(word), "{what}: no {word:?} in {said}");
        }
    }
    let said = running
        .cli(&["model", "load", "-f", "no-such-file.yaml"])?
        .refused()?;
    ensure!(said.contains("no-such-file.yaml"), "{said}");
    let list = running.cli(&["model", "list"])?.ok()?;
    ensure!(
        !list.contains("bad") && !list.contains("worse"),
        "part of a file was loaded:\n{list}"
    );
    for words in [
        &["model", "status", "nobody"][..],
        &["model", "unload", "nobody"],
        &["server", "status", "nobody"],
    ] {
        let said = running.cli(words)?.refused()?;
        ensure!(said.contains("nobody"), "{words:?}: {said}");
    }
    Ok(())
}

fn over_the_api(running: &Running) -> Result<()> {
    let load = |model| {
        running.block_on(async {
            running
                .scheduler()
                .load_model(pb::LoadModelRequest { model })
                .await
        })
    };
    for name in [
        "",
        "Upper",
        "a_1",
        "a/b",
        "../a",
        "-a",
        "a.b",
        "a b",
        &"a".repeat(300),
    ] {
        let refused = load(Some(Spec::iris(name).message()))
            .err()
            .with_context(|| format!("{name:?} was taken"))?;
        ensure!(!refused.message().is_empty(), "{name:?}: {refused:?}");
    }
    ensure!(load(None).is_err(), "no model was taken");
    ensure!(
        load(Some(pb::Model::default())).is_err(),
        "a model without meta was taken"
    );
    Ok(())
}

/// Loads a model that must fail, and returns the reason, which `status` and `explain` must both give.
fn fails(running: &Running, spec: &Spec, state: ModelState) -> Result<String> {
    let model = Loaded::load(running, spec)?;
    let reason = model.wait(state)?;
    let status = running.cli(&["model", "status", &spec.name])?.ok()?;
    ensure!(status.contains(state.as_str_name()), "status: {status}");
    let explained = running.cli(&["explain", "model", &spec.name])?.ok()?;
    ensure!(
        explained.contains(state.as_str_name()) && tells(&explained, &reason),
        "{reason:?} is not in\n{explained}"
    );
    let waited = running
        .cli(&[
            "model",
            "status",
            &spec.name,
            "-w",
            "ModelAvailable",
            "-t",
            "1",
        ])?
        .refused()?;
    ensure!(
        waited.contains("Model wait status timeout") && tells(&waited, &reason),
        "{waited}"
    );
    let answer =
        Ask::post(&format!("/v2/models/{}/infer", spec.name), IRIS).send(running.data())?;
    ensure!(
        (400..600).contains(&answer.status),
        "it answers: {}",
        answer.text()
    );
    Ok(reason)
}

/// Numbers aside: other cases take memory meanwhile.
fn tells(text: &str, reason: &str) -> bool {
    let without = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    without(text).contains(&without(reason))
}

fn artefacts(running: &Running) -> Result<()> {
    let _neighbour = Loaded::available(running, &Spec::iris("artefacts-neighbour").replicas(2))?;
    for (name, uri, requirement, words) in [
        (
            "bad-missing",
            "gs://e2e/missing",
            "sklearn",
            &["e2e/missing"][..],
        ),
        (
            "bad-nothing",
            "gs://e2e/nothing",
            "sklearn",
            &["model-settings.json", "joblib"],
        ),
        (
            "bad-broken",
            "gs://e2e/broken",
            "sklearn",
            &["the inference server failed"],
        ),
        (
            "bad-python",
            "gs://e2e/python-error",
            "python",
            &["these weights do not fit"],
        ),
        (
            "bad-remote",
            "s3://bucket/model",
            "sklearn",
            &["s3", "not configured"],
        ),
        ("bad-dots", "gs://e2e/../../etc", "sklearn", &[".."]),
        ("bad-local", "/etc", "sklearn", &["/etc", "outside"]),
        (
            "bad-command",
            ":webdav,bearer_token_command='touch /tmp/seldon-e2e-owned':x",
            "sklearn",
            &["storageUri"],
        ),
        ("bad-inline", "gs,remote=/etc:x", "sklearn", &["storageUri"]),
        ("bad-empty", "", "sklearn", &["storageUri"]),
        ("bad-http", "http://127.0.0.1:1/model", "sklearn", &["http"]),
    ] {
        let spec = Spec::new(name, uri, requirement);
        let reason = match fails(running, &spec, ModelState::ModelFailed) {
            Ok(reason) => reason,
            // What can be seen to be wrong may be refused at once.
            Err(error) => match error.downcast_ref::<tonic::Status>() {
                Some(refused) => refused.message().to_owned(),
                None => return Err(error.context(name)),
            },
        };
        for word in words {
            ensure!(
                reason.contains(word),
                "{name}: no {word:?} in the reason {reason:?}"
            );
        }
        let answer =
            Ask::post("/v2/models/artefacts-neighbour/infer", IRIS).send(running.data())?;
        answer
            .ok()
            .with_context(|| format!("the neighbour of {name}"))?;
    }
    ensure!(
        !std::path::Path::new("/tmp/seldon-e2e-owned").exists(),
        "a command of a storageUri ran"
    );
    Ok(())
}

fn placement(running: &Running) -> Result<()> {
    let _neighbour = Loaded::available(running, &Spec::iris("placement-neighbour"))?;
    let state = ModelState::ScheduleFailed;
    let reason = fails(
        running,
        &Spec::new(
            "needs-tensorflow",
            "gs://seldon-models/triton/simple",
            "tensorflow",
        ),
        state,
    )?;
    ensure!(reason.contains("tensorflow"), "{reason}");
    let reason = fails(running, &Spec::iris("needs-memory").memory(1 << 40), state)?;
    ensure!(
        reason.contains("needs 1 TiB") && reason.contains("in all"),
        "{reason}"
    );
    let reason = fails(running, &Spec::iris("needs-replicas").replicas(7), state)?;
    ensure!(reason.contains("replica"), "{reason}");
    Ask::post("/v2/models/placement-neighbour/infer", IRIS)
        .send(running.data())?
        .ok()
        .context("the neighbour")?;
    // The documented manifest of a Triton model is accepted, and waits.
    ensure!(
        running
            .cli(&["model", "load", "-f", "models/tfsimple1.yaml"])?
            .ok()?
            .trim()
            == "{}",
        "no {{}}"
    );
    let list = seldon_e2e::eventually(10, || {
        let list = running.cli(&["model", "list"])?.ok()?;
        ensure!(list.contains("ScheduleFailed"), "{list}");
        Ok(list)
    });
    running.cli(&["model", "unload", "tfsimple1"])?.ok()?;
    ensure!(list?.contains("tensorflow"), "no reason in the list");
    Ok(())
}

/// Planted in a model's storage configuration; found nowhere else.
const SECRET: &str = "planted-8c1f0a77";

fn secrets(running: &Running) -> Result<()> {
    let storage = format!(
        r#"{{"name": "dav", "type": "webdav", "parameters": {{"url": "http://127.0.0.1:1/", "vendor": "other", "bearer_token": "{SECRET}"}}}}"#
    );
    let mut model = Spec::new("secretive", "dav://bucket/model", "sklearn").message();
    let spec = model.model_spec.as_mut().context("a spec")?;
    spec.storage_config = Some(pb::StorageConfig {
        config: Some(pb::storage_config::Config::StorageRcloneConfig(storage)),
    });
    running.block_on(async {
        running
            .scheduler()
            .load_model(pb::LoadModelRequest { model: Some(model) })
            .await
    })?;
    let mut told = String::new();
    let outcome = seldon_e2e::eventually(50, || {
        let status = running.cli(&["model", "status", "secretive"])?.ok()?;
        ensure!(status.contains("ModelFailed"), "{status}");
        Ok(status)
    });
    for words in [
        &["model", "status", "secretive"][..],
        &["explain", "model", "secretive"],
        &["model", "list"],
        &[
            "model",
            "status",
            "secretive",
            "-w",
            "ModelAvailable",
            "-t",
            "1",
        ],
    ] {
        let done = running.cli(words)?;
        told.push_str(&(done.stdout + &done.stderr));
    }
    running.cli(&["model", "unload", "secretive"])?.ok()?;
    ensure!(!told.contains(SECRET), "the secret is in\n{told}");
    let logs = running.logs()?;
    let line = logs.lines().find(|line| line.contains(SECRET));
    ensure!(line.is_none(), "the secret is in a log: {line:?}");
    outcome.map(|_| ())
}
