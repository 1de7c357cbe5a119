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

/// Stores of before experiments have no table for them.
#[test]
fn a_store_without_experiments_opens() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = Disk::open(folder.path()).unwrap();
    disk.commit(&[Write::Put(model("iris"))]).unwrap();
    drop(disk);
    let database = redb::Database::open(folder.path().join("scheduler.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let table = redb::TableDefinition::<&str, &[u8]>::new("experiments");
    assert!(transaction.delete_table(table).unwrap());
    transaction.commit().unwrap();
    drop(database);
    let mut again = Disk::open(folder.path()).unwrap();
    assert_eq!(again.restore().unwrap(), Some(vec![model("iris")]));
    again.commit(&[Write::Put(experiment("e"))]).unwrap();
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
