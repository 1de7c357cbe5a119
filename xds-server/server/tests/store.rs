//! What was acknowledged survives `kill -9`.
#![allow(clippy::unwrap_used)] // a test may
use std::{
    env,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use seldon_core::{Record, RolloutEvent, RolloutOutcome, RolloutRecord};
use seldon_proto::scheduler::{
    DataflowSpec, Experiment, ExperimentCohort, MetaData, Model, Pipeline,
};
use seldon_scheduler::store::{Committer, Disk, Store, StoreError, Write};

fn model(name: &str) -> Record {
    let meta = MetaData {
        name: name.into(),
        ..Default::default()
    };
    Record::Model {
        name: name.into(),
        version: 3,
        spec: Arc::new(Model {
            meta: Some(meta),
            ..Default::default()
        }),
        deleted: false,
        born: 2,
        scaled: Some(3),
    }
}

fn experiment(name: &str) -> Record {
    let spec = Experiment {
        name: name.into(),
        cohort: Some(ExperimentCohort {
            header: "x-user".into(),
        }),
        ..Default::default()
    };
    let decision = RolloutEvent {
        at: Duration::from_millis(1_700_000_000_123),
        percent: 0,
        reason: "too many errors".into(),
    };
    Record::Experiment {
        name: name.into(),
        last_good: (name == "a.b").then(|| Arc::new(Default::default())),
        spec: Arc::new(spec),
        rollout: Some(RolloutRecord {
            usual: Some(seldon_core::Counts {
                begun: 4,
                requests: 3,
                errors: 2,
                microseconds: 1,
            }),
            step: 2,
            outcome: RolloutOutcome::RolledBack,
            history: vec![decision],
        }),
    }
}

fn pipeline(name: &str) -> Record {
    let version = |version| {
        Arc::new(Pipeline {
            name: name.into(),
            version,
            allow_cycles: true,
            max_step_revisits: 3,
            dataflow_spec: Some(DataflowSpec {
                clean_topics_on_delete: true,
            }),
            ..Default::default()
        })
    };
    Record::Pipeline {
        name: name.into(),
        versions: vec![version(1), version(2)],
        deleted: false,
        former: vec![version(9)],
    }
}

fn names(store: &impl Store) -> Vec<String> {
    let records = store.restore().unwrap().unwrap();
    let name = |record: &Record| match record {
        Record::Model { name, .. }
        | Record::Server { name, .. }
        | Record::Pipeline { name, .. }
        | Record::Experiment { name, .. } => name.to_string(),
    };
    records.iter().map(name).collect()
}

#[test]
fn records_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = Disk::open(folder.path()).unwrap();
    assert_eq!(disk.restore().unwrap(), Some(vec![]));
    let server = Record::Server {
        name: "mlserver".into(),
        expected_replicas: 2,
        min_replicas: 1,
        max_replicas: 4,
    };
    let writes = [
        Write::Put(model("iris")),
        Write::Put(model("wine")),
        Write::Put(server.clone()),
        Write::ForgetModel("wine".into()),
        Write::Put(experiment("a.b")),
        Write::Put(experiment("gone")),
        Write::ForgetExperiment("gone".into()),
        Write::Put(pipeline("p")),
        Write::Put(pipeline("q")),
        Write::ForgetPipeline("q".into()),
    ];
    disk.commit(&writes).unwrap();
    drop(disk);
    let again = Disk::open(folder.path()).unwrap();
    let kept = vec![server, model("iris"), pipeline("p"), experiment("a.b")];
    assert_eq!(again.restore().unwrap(), Some(kept));
    let second = Disk::open(folder.path());
    assert!(
        matches!(second.err(), Some(StoreError::Open { .. })),
        "one scheduler only"
    );
}

/// As stores were before records had check sums, and before there were experiments.
#[test]
fn a_store_of_the_first_format_is_taken_over_and_a_copy_kept() {
    use prost::Message;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scheduler.redb");
    let database = redb::Database::create(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let about = redb::TableDefinition::<&str, u64>::new("about");
        let mut about = transaction.open_table(about).unwrap();
        about.insert("format", 1).unwrap();
        let models = redb::TableDefinition::<&str, &[u8]>::new("models");
        let mut models = transaction.open_table(models).unwrap();
        // Version 3, a specification with a name, not deleted, born 2.
        let meta = MetaData {
            name: "iris".into(),
            ..Default::default()
        };
        let spec = Model {
            meta: Some(meta),
            ..Default::default()
        };
        let spec = spec.encode_to_vec();
        let mut record = vec![0x08, 3, 0x12, u8::try_from(spec.len()).unwrap()];
        record.extend(spec);
        record.extend([0x20, 2]);
        models.insert("iris", record.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let mut taken = Disk::open(folder.path()).unwrap();
    let Record::Model {
        name,
        version,
        spec,
        deleted,
        born,
        ..
    } = model("iris")
    else {
        panic!("it is a model");
    };
    let kept = Record::Model {
        name,
        version,
        spec,
        deleted,
        born,
        scaled: None,
    };
    assert_eq!(taken.restore().unwrap(), Some(vec![kept]));
    taken.commit(&[Write::Put(experiment("e"))]).unwrap();
    drop(taken);
    assert_eq!(names(&Disk::open(folder.path()).unwrap()), ["iris", "e"]);
    let copy = redb::Database::open(folder.path().join("scheduler.redb.format-1")).unwrap();
    drop(copy);
}

#[test]
fn a_newer_store_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(Disk::open(folder.path()).unwrap());
    let file = folder.path().join("scheduler.redb");
    let database = redb::Database::open(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let about = redb::TableDefinition::<&str, u64>::new("about");
        let mut about = transaction.open_table(about).unwrap();
        about.insert("format", 99).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let refused = Disk::open(folder.path()).err().unwrap();
    let text = refused.to_string();
    assert!(
        text.contains("format 99") && text.contains("scheduler.redb"),
        "{text}"
    );
    let again = Disk::open(folder.path()).err().unwrap();
    assert_eq!(text, again.to_string());
}

/// Whatever byte of the file is another: what comes back is what was written, or it is said that the store is damaged,
/// and a copy is kept.
#[test]
fn a_damaged_store_is_refused_with_a_copy() {
    let made = tempfile::tempdir().unwrap();
    let mut disk = Disk::open(made.path()).unwrap();
    let models = (0..100).map(|number| Write::Put(model(&format!("m{number}"))));
    let others = [Write::Put(experiment("a.b")), Write::Put(pipeline("p"))];
    disk.commit(&models.chain(others).collect::<Vec<_>>())
        .unwrap();
    let whole = disk.restore().unwrap();
    drop(disk);
    let bytes = std::fs::read(made.path().join("scheduler.redb")).unwrap();
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let mut refused = 0;
    // Of the bytes that hold something, a sample.
    for at in used.iter().step_by(used.len() / 300 + 1) {
        let folder = tempfile::tempdir().unwrap();
        let mut other = bytes.clone();
        other[*at] ^= 0x15;
        std::fs::write(folder.path().join("scheduler.redb"), &other).unwrap();
        let open = || Disk::open(folder.path()).and_then(|disk| disk.restore());
        // Started again and again, as it would be.
        let first = open();
        let _ = open();
        match first {
            Ok(read) => assert_eq!(read, whole, "byte {at}"),
            Err(StoreError::Damaged { path, copy, .. }) => {
                refused += 1;
                assert!(path.ends_with("scheduler.redb"));
                assert!(copy.starts_with("a copy is kept as "), "{copy}");
                let files = std::fs::read_dir(folder.path()).unwrap();
                let files = files.count();
                assert!((2..=4).contains(&files), "byte {at}: {files} files");
            }
            Err(StoreError::Format { .. }) => refused += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(refused > 10, "{refused} of the samples were found out");
}

#[test]
fn what_is_no_store_is_refused_and_kept() {
    for content in [&b"not a database"[..], &[0; 4096]] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("scheduler.redb");
        std::fs::write(&file, content).unwrap();
        for _ in 0..2 {
            let refused = Disk::open(folder.path()).err().unwrap();
            assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
        }
        assert_eq!(std::fs::read(&file).unwrap(), content);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            2,
            "one copy"
        );
    }
}

/// Not a test by itself: the process that `acknowledged_writes_survive_a_kill` kills.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(folder) = env::var("STORE_CHILD_FOLDER") else {
        return;
    };
    let committer = Committer::new(Disk::open(Path::new(&folder)).unwrap()).unwrap();
    let (sender, told) = std::sync::mpsc::channel();
    for i in 0.. {
        let sender = sender.clone();
        let name = format!("m{i}");
        let writes = vec![Write::Put(model(&name))];
        let tell = move |outcome: seldon_scheduler::store::Outcome| {
            outcome.unwrap();
            let _ = sender.send(name);
        };
        committer.submit(writes, vec![Box::new(tell)], vec![]);
        for name in told.try_iter() {
            println!("durable {name}");
            std::io::stdout().flush().unwrap();
        }
    }
}

#[test]
fn acknowledged_writes_survive_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_writes_until_it_is_killed",
            "--nocapture",
        ])
        .env("STORE_CHILD_FOLDER", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let acknowledged: Vec<String> = lines
        .map(|line| line.unwrap())
        .filter_map(|line| Some(line.split_once("durable ")?.1.to_owned()))
        .take(50)
        .collect();
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert_eq!(acknowledged.len(), 50);
    let kept = names(&Disk::open(folder.path()).unwrap());
    for name in &acknowledged {
        assert!(kept.contains(name), "{name} was acknowledged and is lost");
    }
}
