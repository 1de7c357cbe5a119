//! Group commit: one transaction for all that has gathered while the last one was written.
use std::{sync::Arc, sync::mpsc, thread};

use super::{Store, StoreError, Write};

/// What is told once the writes before it are durable, or were not.
pub type Outcome = Result<(), Arc<StoreError>>;
type Told = Box<dyn FnOnce(Outcome) + Send>;

/// Most writes in one transaction, so that nobody waits for a very long one.
const LARGEST_GROUP: usize = 4096;

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

    /// Commits `writes` and all before them, then calls each of `told`.
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

fn run(mut store: impl Store, queue: &mpsc::Receiver<Job>) {
    while let Ok(mut group) = queue.recv() {
        while group.writes.len() < LARGEST_GROUP
            && let Ok(next) = queue.try_recv()
        {
            group.writes.extend(next.writes);
            group.told.extend(next.told);
        }
        let outcome = match group.writes.as_slice() {
            [] => Ok(()),
            writes => store.commit(writes).map_err(Arc::new),
        };
        if let Err(error) = &outcome {
            tracing::error!(%error, writes = group.writes.len(), "desired state was not stored");
        }
        for told in group.told {
            told(outcome.clone());
        }
    }
}
