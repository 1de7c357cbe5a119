//! Results and progress in transactions.
//!
//! While one is committed the next results gather, so under load transactions grow by themselves and an idle engine
//! answers at once.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use seldon_kafka::{SendError, Transactions};
use tokio::sync::mpsc;

use super::{Broken, Item, Job, Tools, plain::fatal};

/// Records after which a transaction takes no further group.
const RECORDS: usize = 1_000;
const PAUSE: Duration = Duration::from_millis(100);
/// How often committing and undoing are tried before the client is given up.
const TRIES: u32 = 5;

#[derive(Default)]
struct Batch {
    results: Vec<Item>,
    progress: HashMap<bytes::Bytes, Item>,
}

pub(super) async fn run(
    transactions: Arc<Transactions>,
    tools: Tools,
    mut jobs: mpsc::UnboundedReceiver<Job>,
) -> Result<(), Broken> {
    while let Some(mut batch) = gather(&mut jobs).await {
        if batch.results.is_empty() && batch.progress.is_empty() {
            continue;
        }
        while let Err(error) = attempt(&transactions, &tools, &mut batch).await {
            if error == SendError::Fenced {
                return Err(Broken::Fenced);
            }
            if fatal(&error) {
                return Err(Broken::Failed(error.to_string()));
            }
            tools.metrics.retried();
            tracing::warn!(%error, "a transaction is undone and tried again");
            undo(&transactions).await?;
        }
        batch.progress.into_values().for_each(Item::written);
    }
    Ok(())
}

/// Groups, each of results and the progress that covers them, as many as are there.
async fn gather(jobs: &mut mpsc::UnboundedReceiver<Job>) -> Option<Batch> {
    let mut batch = Batch::default();
    let mut complete = false;
    loop {
        let job = match complete {
            true if batch.results.len() >= RECORDS => return Some(batch),
            true => match jobs.try_recv() {
                Ok(job) => job,
                Err(_) => return Some(batch),
            },
            false => match jobs.recv().await {
                Some(job) => job,
                None => return None,
            },
        };
        match job {
            Job::Results(items) => {
                batch.results.extend(items);
                complete = false;
            }
            Job::Progress(items) => {
                for mut item in items {
                    let key = item.record.key.clone().unwrap_or_default();
                    let former = batch.progress.remove(&key);
                    item.part_of
                        .extend(former.into_iter().flat_map(|former| former.part_of));
                    batch.progress.insert(key, item);
                }
                complete = true;
            }
        }
    }
}

async fn attempt(
    transactions: &Transactions,
    tools: &Tools,
    batch: &mut Batch,
) -> Result<(), SendError> {
    transactions.begin()?;
    let results = write(transactions, batch.results.iter().map(|item| &item.record)).await;
    let progress = batch.progress.values().map(|item| &item.record);
    let progress = write(transactions, progress).await;
    let answers = join_all(results).await;
    let mut failure = None;
    for (item, answer) in batch.results.iter_mut().zip(answers) {
        match answer {
            Ok(_) => {}
            Err(error @ SendError::TooLarge) => {
                if let Some(record) = tools.instead(&item.record, &error) {
                    item.record = record;
                } else {
                    item.record.value = None;
                }
                failure.get_or_insert(error);
            }
            Err(error) => {
                if matches!(error, SendError::UnknownTopic(_)) {
                    tools.heal(&item.record.topic);
                }
                failure = Some(error);
            }
        }
    }
    for answer in join_all(progress).await {
        if let Err(error) = answer {
            failure = Some(error);
        }
    }
    if let Some(error) = failure {
        return Err(error);
    }
    commit(transactions).await
}

/// Hands records over; what is refused at once is answered like what the broker refuses.
async fn write<'a, I: Iterator<Item = &'a seldon_records::Outgoing>>(
    transactions: &Transactions,
    records: I,
) -> Vec<BoxFuture<'static, Result<(i32, i64), SendError>>> {
    let mut answers = Vec::new();
    for record in records {
        let enqueued = loop {
            match transactions.enqueue(record.clone()) {
                Err(SendError::Full) => tokio::time::sleep(Duration::from_millis(5)).await,
                enqueued => break enqueued,
            }
        };
        let answer = async move {
            match enqueued {
                Ok(delivery) => delivery.await,
                Err(error) => Err(error),
            }
        };
        answers.push(Box::pin(answer) as BoxFuture<'static, _>);
    }
    answers
}

async fn commit(transactions: &Transactions) -> Result<(), SendError> {
    let mut tries = 0;
    loop {
        match transactions.commit().await {
            Ok(()) => return Ok(()),
            // Without an answer nobody knows; the same commit may be asked for again.
            Err(error) if error.is_retryable() && tries < TRIES && !fatal(&error) => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn undo(transactions: &Transactions) -> Result<(), Broken> {
    for _ in 0..TRIES {
        tokio::time::sleep(PAUSE).await;
        match transactions.abort().await {
            Ok(()) => return Ok(()),
            Err(SendError::Fenced) => return Err(Broken::Fenced),
            Err(error) => tracing::debug!(%error, "a transaction cannot be undone yet"),
        }
    }
    Err(Broken::Failed("a transaction cannot be undone".to_owned()))
}
