//! Group commit: one transaction for all that has gathered while the last one was written.
use std::{
    collections::{BTreeMap, BTreeSet},
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
    orders: Vec<Dispatch>,
}

/// What may go out once all that it follows from is durable: whoever gets it must not be ahead of the store.
pub struct Dispatch {
    /// What it is about; of one thing all go out in their order.
    pub about: Key,
    pub send: Box<dyn FnOnce() + Send>,
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

    /// Commits `writes` and all before them, those that failed included, then calls each of `told`. Sends `orders` when
    /// `writes`, and what was written about the same things before, are durable.
    pub fn submit(&self, writes: Vec<Write>, told: Vec<Told>, orders: Vec<Dispatch>) {
        if writes.is_empty() && told.is_empty() && orders.is_empty() {
            return;
        }
        let job = Job {
            writes,
            told,
            orders,
        };
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
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

/// Orders that wait for what they follow from.
#[derive(Default)]
struct Held(Vec<(Arc<[Key]>, Dispatch)>);

impl Held {
    fn add(&mut self, writes: &[Write], orders: Vec<Dispatch>) {
        let after: Arc<[Key]> = match orders.is_empty() {
            true => return,
            false => writes.iter().map(key).collect(),
        };
        let orders = orders.into_iter().map(|order| (after.clone(), order));
        self.0.extend(orders);
    }

    /// Sends those for which nothing is owed.
    fn release(&mut self, owed: &Owed) {
        let mut behind: BTreeSet<Key> = BTreeSet::new();
        for (after, order) in std::mem::take(&mut self.0) {
            let waits = |key: &Key| owed.0.contains_key(key);
            let about = &order.about;
            if behind.contains(about) || waits(about) || after.iter().any(waits) {
                behind.insert(about.clone());
                self.0.push((after, order));
            } else {
                (order.send)();
            }
        }
    }
}

fn run(mut store: impl Store, queue: &mpsc::Receiver<Job>) {
    let mut owed = Owed::default();
    let mut held = Held::default();
    loop {
        let next = match owed.0.is_empty() {
            true => queue.recv().map_err(mpsc::RecvTimeoutError::from),
            false => queue.recv_timeout(RETRY),
        };
        let mut told = Vec::new();
        match next {
            Ok(job) => gather(job, queue, (&mut owed, &mut held), &mut told),
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
        held.release(&owed);
    }
}

fn gather(
    job: Job,
    queue: &mpsc::Receiver<Job>,
    (owed, held): (&mut Owed, &mut Held),
    told: &mut Vec<Told>,
) {
    let mut next = Some(job);
    let mut taken = 0;
    while let Some(job) = next {
        taken += job.writes.len();
        held.add(&job.writes, job.orders);
        owed.0
            .extend(job.writes.into_iter().map(|write| (key(&write), write)));
        told.extend(job.told);
        next = match taken < LARGEST_GROUP {
            true => queue.try_recv().ok(),
            false => None,
        };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may
mod tests {
    use super::*;
    use crate::store::StoreError;

    /// Commits when it is let, as often as it is let.
    struct Slow(mpsc::Receiver<bool>);

    impl Store for Slow {
        fn restore(&self) -> Result<Option<Vec<Record>>, StoreError> {
            Ok(None)
        }

        fn commit(&mut self, _: &[Write]) -> Result<(), StoreError> {
            match self.0.recv() {
                Ok(true) => Ok(()),
                _ => Err(StoreError::Failed("no room".into())),
            }
        }
    }

    #[test]
    fn orders_leave_when_what_they_follow_from_is_stored() {
        let (let_, may) = mpsc::channel();
        let committer = Committer::new(Slow(may)).unwrap();
        let (sent, orders) = mpsc::channel();
        let order = |of: &str, text: &'static str| {
            let sent = sent.clone();
            Dispatch {
                about: Key::Pipeline(of.into()),
                send: Box::new(move || sent.send(text).unwrap()),
            }
        };
        let write = |of: &str| vec![Write::ForgetPipeline(of.into())];
        committer.submit(
            write("p"),
            vec![],
            vec![order("p", "p"), order("m", "m of p")],
        );
        committer.submit(
            vec![],
            vec![],
            vec![order("p", "p again"), order("m", "m again")],
        );
        committer.submit(vec![], vec![], vec![order("q", "q")]);
        let pause = Duration::from_millis(50);
        assert!(orders.recv_timeout(pause).is_err(), "ahead of the store");
        // It fails: what does not follow from it goes, the rest waits, in its order.
        let_.send(false).unwrap();
        let_.send(false).unwrap();
        let patience = Duration::from_secs(20);
        assert_eq!(orders.recv_timeout(patience).unwrap(), "q");
        assert!(orders.recv_timeout(pause).is_err());
        let_.send(true).unwrap();
        for expected in ["p", "m of p", "p again", "m again"] {
            assert_eq!(orders.recv_timeout(patience).unwrap(), expected);
        }
        drop((let_, committer));
    }
}
