//! Group commit: one transaction for all that has gathered while the last one was written.
use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use seldon_core::Record;

use super::{Store, StoreError, Write};

/// What is told once the writes before it are durable, or were not.
pub type Outcome = Result<(), Arc<StoreError>>;
type Told = Box<dyn FnOnce(Outcome) + Send>;

/// Most writes taken into one transaction, so that nobody waits for a very long one.
const LARGEST_GROUP: usize = 4096;
/// Writes that failed are tried again after so long, if nothing else is written before.
const RETRY: Duration = Duration::from_secs(5);

struct Job {
    writes: Vec<Write>,
    told: Vec<Told>,
}

/// Writes on a thread of its own, in order.
pub struct Committer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Committer {
    pub fn new(store: impl Store) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("store".into())
            .spawn(move || run(store, &queue))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Commits `writes` and all before them, those that failed included, then calls each of `told`.
    pub fn submit(&self, writes: Vec<Write>, told: Vec<Told>) {
        if writes.is_empty() && told.is_empty() {
            return;
        }
        let job = Job { writes, told };
        let refused = match &self.jobs {
            Some(jobs) => jobs.send(job).err().map(|refused| refused.0),
            None => Some(job),
        };
        if let Some(job) = refused {
            let gone = Arc::new(StoreError::Failed("its thread has ended".into()));
            job.told
                .into_iter()
                .for_each(|told| told(Err(gone.clone())));
        }
    }
}

/// Waits for what was submitted.
impl Drop for Committer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a write is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Model(Arc<str>),
    Server(Arc<str>),
    Experiment(Arc<str>),
    Pipeline(Arc<str>),
}

fn key(write: &Write) -> Key {
    match write {
        Write::Put(Record::Model { name, .. }) | Write::ForgetModel(name) => {
            Key::Model(name.clone())
        }
        Write::Put(Record::Pipeline { name, .. }) | Write::ForgetPipeline(name) => {
            Key::Pipeline(name.clone())
        }
        Write::Put(Record::Server { name, .. }) | Write::ForgetServer(name) => {
            Key::Server(name.clone())
        }
        Write::Put(Record::Experiment { name, .. }) | Write::ForgetExperiment(name) => {
            Key::Experiment(name.clone())
        }
    }
}

/// Writes that are not durable yet; of several about one thing, the last.
#[derive(Default)]
struct Owed(BTreeMap<Key, Write>);

impl Owed {
    /// Tries to commit all that is owed. What fails stays owed: the rules will not ask for it again.
    fn commit(&mut self, store: &mut impl Store) -> Outcome {
        if self.0.is_empty() {
            return Ok(());
        }
        let writes: Vec<Write> = self.0.values().cloned().collect();
        let outcome = store.commit(&writes).map_err(Arc::new);
        match &outcome {
            Ok(()) => self.0.clear(),
            Err(error) => {
                tracing::error!(%error, writes = writes.len(), "desired state was not stored yet");
            }
        }
        outcome
    }
}

fn run(mut store: impl Store, queue: &mpsc::Receiver<Job>) {
    let mut owed = Owed::default();
    loop {
        let next = match owed.0.is_empty() {
            true => queue.recv().map_err(mpsc::RecvTimeoutError::from),
            false => queue.recv_timeout(RETRY),
        };
        let mut told = Vec::new();
        match next {
            Ok(job) => gather(job, queue, &mut owed, &mut told),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let _ = owed.commit(&mut store); // the last chance; it says so where it fails
                return;
            }
        }
        let outcome = owed.commit(&mut store);
        for told in told {
            told(outcome.clone());
        }
    }
}

fn gather(job: Job, queue: &mpsc::Receiver<Job>, owed: &mut Owed, told: &mut Vec<Told>) {
    let mut next = Some(job);
    let mut taken = 0;
    while let Some(job) = next {
        taken += job.writes.len();
        owed.0
            .extend(job.writes.into_iter().map(|write| (key(&write), write)));
        told.extend(job.told);
        next = match taken < LARGEST_GROUP {
            true => queue.try_recv().ok(),
            false => None,
        };
    }
}
