//! Artefacts from a real S3 server, the web and the disk, by a whole agent with a real rclone.
#![allow(clippy::unwrap_used)] // a test may
#[path = "../common/mod.rs"]
mod common;
mod stores;

use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use common::{Agent, World, contents, get, model, until};
use seldon_proto::agent::ModelVersion;
use seldon_proto::agent::model_event_message::Event;
use seldon_proto::agent::model_operation_message::Operation::{LoadModel, UnloadModel};
use seldon_proto::scheduler::{StorageConfig, storage_config::Config};
use stores::{KEY, S3, Web, write};

const IRIS: &str = "s3://models/iris";

fn with(mut version: ModelVersion, config: Config) -> ModelVersion {
    let spec = version.model.as_mut().unwrap().model_spec.as_mut().unwrap();
    spec.storage_config = Some(StorageConfig {
        config: Some(config),
    });
    version
}

fn secret(name: &str, uri: &str, secret: &str) -> ModelVersion {
    with(
        model(name, 1, uri),
        Config::StorageSecretName(secret.into()),
    )
}

/// Orders a model and waits: nothing, or why not.
async fn load(world: &World, version: &ModelVersion) -> Result<(), String> {
    world.scheduler.order(LoadModel, version);
    outcome(world, version).await
}

async fn outcome(world: &World, version: &ModelVersion) -> Result<(), String> {
    let model = version.model.as_ref().unwrap();
    let event = world
        .scheduler
        .event(&model.meta.as_ref().unwrap().name)
        .await;
    match event.event() {
        Event::Loaded => Ok(()),
        _ => Err(event.message),
    }
}

/// An agent that finds secrets in the world's folder `secrets`.
async fn agent(world: &World, more: &[&str]) -> Agent {
    let secrets = format!(
        "--secrets-path={}",
        world.folder.path().join("secrets").display()
    );
    let agent = world.agent(&[&[secrets.as_str()], more].concat()).await;
    until("a subscription", async || {
        let seen = world.scheduler.seen.lock().unwrap();
        (!seen.subscriptions.is_empty()).then_some(())
    })
    .await;
    agent
}

/// The secret as the documentation prints it, but for the address.
fn manifest(s3: &S3) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: minio-secret\n  namespace: seldon-mesh\ntype: Opaque\nstringData:\n  s3: |\n    type: s3\n    name: s3\n    parameters:\n      provider: minio\n      env_auth: false\n      access_key_id: minioadmin\n      secret_access_key: minioadmin\n      endpoint: http://127.0.0.1:{}\n",
        s3.port
    )
}

fn configure(world: &World, secrets: &[&str]) {
    let config = serde_json::json!({"rclone": {"config_secrets": secrets}});
    write(
        &world.folder.path().join("config/agent.json"),
        &config.to_string(),
    );
}

/// Everything that agents log in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> &'static Self {
        static LOG: LazyLock<Log> = LazyLock::new(|| {
            let log = Log::default();
            let writer = log.clone();
            tracing_subscriber::fmt()
                .with_max_level(tracing::Level::TRACE)
                .with_writer(move || writer.clone())
                .with_ansi(false)
                .init();
            log
        });
        &LOG
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_by_secret_inline_and_preloaded_remote() {
    let world = World::new().await;
    let s3 = S3::start(world.folder.path()).await;
    let secrets = world.folder.path().join("secrets");
    write(&secrets.join("minio-secret.yaml"), &manifest(&s3));
    // As Kubernetes mounts a secret.
    let preloaded = s3.storage("in-cluster", KEY, KEY).to_string();
    write(&secrets.join("mounted/any-key"), &preloaded);
    configure(&world, &["mounted", "absent"]);
    let agent = agent(&world, &[]).await;

    load(&world, &secret("a", IRIS, "minio-secret"))
        .await
        .unwrap();
    let inline = s3.storage("s3", KEY, KEY).to_string();
    let inline = with(model("b", 1, IRIS), Config::StorageRcloneConfig(inline));
    load(&world, &inline).await.unwrap();
    load(&world, &model("c", 1, "in-cluster://models/iris"))
        .await
        .unwrap();
    for internal in ["a_1", "b_1", "c_1"] {
        let version = world.installed(internal).join("1");
        assert_eq!(
            std::fs::read_to_string(version.join("model.joblib")).unwrap(),
            "weights"
        );
        assert!(version.join("notes/read-me.txt").is_file());
        assert_eq!(agent.infer(internal).await.as_deref(), Ok(internal));
    }
    // A secret that changes counts from the next model on.
    let wrong = manifest(&s3).replace("secret_access_key: minioadmin", "secret_access_key: other");
    write(&secrets.join("minio-secret.yaml"), &wrong);
    let error = load(&world, &secret("d", IRIS, "minio-secret"))
        .await
        .unwrap_err();
    assert!(error.contains("access was denied"), "{error}");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_remote_path_and_cause_and_no_secret() {
    let log = Log::start();
    let world = World::new().await;
    let s3 = S3::start(world.folder.path()).await;
    let secrets = world.folder.path().join("secrets");
    for (name, storage) in [
        ("good", s3.storage("s3", KEY, KEY)),
        ("stranger", s3.storage("s3", "PLANTEDKEY", "PLANTED")),
        ("forger", s3.storage("s3", KEY, "PLANTED")),
        ("other", s3.storage("gs", KEY, "PLANTED")),
    ] {
        write(&secrets.join(name).join("key"), &storage.to_string());
    }
    let down = s3.storage("s3", "PLANTED", "PLANTED").to_string();
    let down = down.replace(&format!(":{}", s3.port), ":1");
    write(&secrets.join("down.json"), &down);
    write(&secrets.join("broken.yaml"), "name: s3\ntype: [PLANTED\n");
    write(
        &secrets.join("command.yaml"),
        "name: s3\ntype: webdav\nparameters:\n  bearer_token_command: PLANTED\n",
    );
    configure(&world, &["stranger", "broken"]);
    let agent = agent(&world, &["--download-retry-seconds=0"]).await;

    let denied = "s3://models/iris cannot be read: access was denied";
    for (index, (name, uri, expected)) in [
        ("stranger", IRIS, denied),
        ("forger", IRIS, denied),
        (
            "good",
            "s3://nowhere/iris",
            "no artefact at s3://nowhere/iris: the bucket does not exist",
        ),
        (
            "good",
            "s3://models/none",
            "no artefact at s3://models/none: nothing is there",
        ),
        (
            "good",
            "s3://models/iris/model.joblib",
            "s3://models/iris/model.joblib cannot be read: it is a file, not a folder",
        ),
        (
            "good",
            "gs://models/iris",
            "storage configuration is called \"s3\", but storageUri names remote \"gs\"",
        ),
        (
            "other",
            IRIS,
            "secret \"other\" cannot be used: storage configuration is called \"gs\"",
        ),
        (
            "down",
            IRIS,
            "s3://models/iris cannot be read: the storage cannot be reached",
        ),
        ("broken", IRIS, "neither JSON nor YAML"),
        ("command", IRIS, "\"bearer_token_command\" is not allowed"),
        ("absent", IRIS, "secret \"absent\" is not in"),
        ("../secrets/good", IRIS, "cannot be a secret's name"),
    ]
    .into_iter()
    .enumerate()
    {
        let version = secret(&format!("model-{index}"), uri, name);
        let error = load(&world, &version).await.unwrap_err();
        assert!(error.contains(expected), "{name} {uri}: {error}");
        assert!(!error.contains("PLANTED"), "{error}");
    }
    // The remote of the agent's own configuration, with the same cause.
    let error = load(&world, &model("own", 1, IRIS)).await.unwrap_err();
    assert!(
        error.contains(denied) && !error.contains("PLANTED"),
        "{error}"
    );

    let metrics = get(agent.metrics, "/metrics").await.1;
    agent.end().await;
    let logged = log.text();
    assert!(
        logged.contains("a secret of config_secrets is left out"),
        "{logged}"
    );
    // rclone's configuration file holds the remote of the agent's own configuration, for its owner alone.
    let conf = world.folder.path().join("agent/rclone-process/rclone.conf");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&conf).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    std::fs::remove_file(conf).unwrap();
    for (place, text) in [
        ("log", logged),
        ("metrics", metrics),
        ("files", contents(&world.folder.path().join("agent"))),
    ] {
        assert!(!text.contains("PLANTED"), "{place}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_download_serves_all_models_and_each_has_its_own_files() {
    let world = World::new().await;
    let s3 = S3::start(world.folder.path()).await;
    write(
        &world.folder.path().join("secrets/minio-secret.yaml"),
        &manifest(&s3),
    );
    let agent = agent(&world, &["--memory-bytes=10000"]).await;
    let sent = || {
        (
            s3.sent("models/iris/model.joblib"),
            s3.sent("models/iris/notes/read-me.txt"),
        )
    };
    // At the same time.
    let names: Vec<_> = (0..10).map(|index| format!("at-once-{index}")).collect();
    let versions: Vec<_> = names
        .iter()
        .map(|name| secret(name, IRIS, "minio-secret"))
        .collect();
    for version in &versions {
        world.scheduler.order(LoadModel, version);
    }
    for version in &versions {
        outcome(&world, version).await.unwrap();
    }
    assert_eq!(sent(), (1, 1));
    // One after another.
    for index in 0..10 {
        let name = format!("later-{index}");
        load(&world, &secret(&name, IRIS, "minio-secret"))
            .await
            .unwrap();
    }
    assert_eq!(sent(), (1, 1));

    // One of them changes its file in place: no other one sees it, now or later.
    let file = |internal: &str| world.installed(internal).join("1/model.joblib");
    std::fs::write(file("later-0_1"), "mangled").unwrap();
    load(&world, &secret("after", IRIS, "minio-secret"))
        .await
        .unwrap();
    for internal in ["at-once-0_1", "later-1_1", "after_1"] {
        assert_eq!(
            std::fs::read_to_string(file(internal)).unwrap(),
            "weights",
            "{internal}"
        );
    }
    // The artefact changes, to as many bytes: those that are loaded keep theirs, the next one has the new.
    std::fs::write(s3.file("models/iris/model.joblib"), "WEIGHTS").unwrap();
    std::fs::remove_file(s3.file("models/iris/notes/read-me.txt")).unwrap();
    load(&world, &secret("newer", IRIS, "minio-secret"))
        .await
        .unwrap();
    assert_eq!(std::fs::read_to_string(file("newer_1")).unwrap(), "WEIGHTS");
    assert!(
        !world
            .installed("newer_1")
            .join("1/notes/read-me.txt")
            .exists()
    );
    assert_eq!(std::fs::read_to_string(file("after_1")).unwrap(), "weights");
    // Changed so shortly before it was fetched, it may have changed once more within the same second.
    std::fs::write(s3.file("models/iris/model.joblib"), "wEIGHTS").unwrap();
    load(&world, &secret("newest", IRIS, "minio-secret"))
        .await
        .unwrap();
    assert_eq!(
        std::fs::read_to_string(file("newest_1")).unwrap(),
        "wEIGHTS"
    );
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_where_nothing_may_be() {
    let world = World::new().await;
    let s3 = S3::start(world.folder.path()).await;
    write(
        &world.folder.path().join("secrets/minio-secret.yaml"),
        &manifest(&s3),
    );
    let agent = agent(&world, &["--artefact-cache-megabytes=0"]).await;
    for (count, name) in [(1, "one"), (2, "two")] {
        load(&world, &secret(name, IRIS, "minio-secret"))
            .await
            .unwrap();
        assert_eq!(s3.sent("models/iris/model.joblib"), count);
    }
    until("an empty folder of downloads", async || {
        let text = contents(&world.folder.path().join("agent/rclone"));
        (!text.contains("weights")).then_some(())
    })
    .await;
    agent.end().await;
}

/// Names of downloaded files.
fn downloaded(world: &World, name: &str) -> bool {
    let folder = world.folder.path().join("agent/rclone");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files = entries.map(|entry| entry.path().join("files").join(name));
    files.any(|file| Path::exists(&file))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_fetches_only_what_is_missing() {
    let world = World::new().await;
    let web = Web::start().await;
    let allowed = format!("--allowed-http-hosts={}", web.host());
    let first = agent(&world, &[&allowed]).await;
    let uri = format!("http://{}/m", web.host());
    let iris = model("iris", 1, &uri);
    world.scheduler.order(LoadModel, &iris);
    until("half of the artefact", async || {
        (downloaded(&world, "model.joblib") && web.asked("slow.bin") > 0).then_some(())
    })
    .await;
    first.end().await;
    until("the end of the first download", async || {
        (web.cut() > 0).then_some(())
    })
    .await;
    let asked = web.asked("slow.bin");
    web.open();
    let second = agent(&world, &[&allowed]).await;
    world.scheduler.subscription(1).await;
    load(&world, &iris).await.unwrap();
    assert_eq!(web.asked("model.joblib"), 1, "it was there");
    assert_eq!(web.asked("slow.bin"), asked + 1);
    let installed = world.installed("iris_1").join("1");
    let slow = installed.join("slow.bin");
    assert_eq!(std::fs::read_to_string(slow).unwrap(), "long awaited");
    let files = std::fs::read_dir(installed).unwrap().flatten();
    let mut files: Vec<_> = files.map(|entry| entry.file_name()).collect();
    files.sort();
    assert_eq!(files, ["model-settings.json", "model.joblib", "slow.bin"]);
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_ends_when_nobody_wants_it() {
    let log = Log::start();
    let world = World::new().await;
    let web = Web::start().await;
    let allowed = format!("--allowed-http-hosts={}", web.host());
    let agent = agent(&world, &[&allowed]).await;
    let uri = format!("http://{}/m", web.host());
    let (one, two) = (model("one", 1, &uri), model("two", 1, &uri));
    let waiting = async |count: usize| {
        until("the download", async || {
            (web.asked("slow.bin") >= count).then_some(())
        })
        .await;
    };
    world.scheduler.order(LoadModel, &one);
    waiting(1).await;
    world.scheduler.order(UnloadModel, &one);
    until("the end of the download", async || {
        (web.cut() == 1).then_some(())
    })
    .await;
    let event = world.scheduler.event("one").await;
    assert_eq!(event.event(), Event::Unloaded, "{}", event.message);

    // Another one wants it, too: it goes on for that one.
    world.scheduler.order(LoadModel, &one);
    waiting(2).await;
    world.scheduler.order(LoadModel, &two);
    let joined = format!("waiting for that download artefact=\"{uri}\"");
    until("the second model", async || {
        log.text().contains(&joined).then_some(())
    })
    .await;
    world.scheduler.order(UnloadModel, &one);
    let event = world.scheduler.event("one").await;
    assert_eq!(event.event(), Event::Unloaded, "{}", event.message);
    web.open();
    outcome(&world, &two).await.unwrap();
    assert_eq!((web.asked("slow.bin"), web.asked("model.joblib")), (2, 1));
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_has_a_time_limit_and_a_host_has_to_be_allowed() {
    let world = World::new().await;
    let web = Web::start().await;
    let allowed = format!("--allowed-http-hosts={}", web.host());
    let agent = agent(&world, &[&allowed, "--max-download-minutes=0"]).await;
    let uri = format!("http://{}/m", web.host());
    let error = load(&world, &model("slow", 1, &uri)).await.unwrap_err();
    assert!(
        error.starts_with(&uri) && error.contains("--max-download-minutes"),
        "{error}"
    );
    let other = load(
        &world,
        &model("other", 1, "http://user:PLANTED@localhost/m"),
    )
    .await;
    let other = other.unwrap_err();
    assert!(
        other.contains("\"localhost\"") && other.contains("--allowed-http-hosts"),
        "{other}"
    );
    assert!(!other.contains("PLANTED"), "{other}");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_this_machine_and_an_alias_of_it() {
    let world = World::new().await;
    let agent = agent(&world, &[]).await;
    let local = world.store().join("seldon-models/iris");
    let uris = ["gs://seldon-models/iris", local.to_str().unwrap()];
    for (name, uri) in ["alias", "local"].into_iter().zip(uris) {
        load(&world, &model(name, 1, uri)).await.unwrap();
        let file = world.installed(&format!("{name}_1")).join("1/model.joblib");
        // Its own: neither the store's nor another model's.
        std::fs::write(file, name).unwrap();
    }
    assert_eq!(contents(&local), "weights");
    let file = world.installed("alias_1").join("1/model.joblib");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "alias");
    agent.end().await;
}
