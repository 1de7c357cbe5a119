//! Results and positions in transactions.
//!
//! A position is stored with the transactional id of who works on what follows. Whoever takes a model over fences that id
//! first, so that the former owner cannot write any more, and then reads the position again.
use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::future::join_all;
use seldon_kafka::{SendError, Transactions};
use seldon_records::Outgoing;
use tokio::time::{Instant, sleep};

use crate::{bucket::Bucket, model::Key, result, shared::Shared, work::NO_TOPIC_FOR};

/// Results of this time share a transaction.
const GATHER: Duration = Duration::from_millis(2);

type Positions = Vec<(Arc<str>, i32, i64)>;

/// The transactional id of a gateway for one of its buckets.
pub(crate) fn transactional_id(shared: &Shared, bucket: u32) -> String {
    let name = format!("seldon-modelgateway-{}-{bucket}", shared.options.name);
    shared.names.group(&name)
}

/// Writes what is done in transactions until the process stops, and then what is left.
pub(crate) async fn run(bucket: Arc<Bucket>, transactions: Transactions, owner: String) {
    let shared = Arc::clone(&bucket.shared);
    loop {
        bucket.done.notified().await;
        sleep(GATHER).await;
        let (outgoing, positions) = bucket.ready();
        if positions.is_empty() {
            continue;
        }
        if let Err(error) = write(&bucket, &transactions, &owner, &outgoing, &positions).await {
            return shared.fail(format!(
                "results cannot be written in transactions: {error}"
            ));
        }
        bucket.stored(&positions);
    }
}

/// Writes a batch, again until it is written; fails where another has taken over.
async fn write(
    bucket: &Bucket,
    transactions: &Transactions,
    owner: &str,
    outgoing: &[Outgoing],
    positions: &Positions,
) -> Result<(), SendError> {
    let mut pause = Duration::from_millis(20);
    let mut outgoing: Vec<Option<Outgoing>> = outgoing.iter().cloned().map(Some).collect();
    let start = Instant::now();
    loop {
        match attempt(bucket, transactions, owner, &outgoing, positions).await {
            Ok(()) => return Ok(()),
            Err((failed, error)) if passes(&error) => {
                tracing::warn!("a transaction failed: {error}");
                undo(transactions).await?;
                for at in failed {
                    heal(bucket, &mut outgoing[at], &error, start).await;
                }
            }
            Err((_, error)) => return Err(error),
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn attempt(
    bucket: &Bucket,
    transactions: &Transactions,
    owner: &str,
    outgoing: &[Option<Outgoing>],
    positions: &Positions,
) -> Result<(), (Vec<usize>, SendError)> {
    let whole = |error| (Vec::new(), error);
    transactions.begin().map_err(whole)?;
    let records = outgoing.iter().enumerate();
    let deliveries = records.filter_map(|(at, one)| {
        let enqueued = transactions.enqueue(one.clone()?);
        Some(async move {
            match enqueued {
                Ok(delivery) => delivery.await.map_err(|error| (at, error)),
                Err(error) => Err((at, error)),
            }
        })
    });
    let answers = join_all(deliveries.collect::<Vec<_>>()).await;
    let errors: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    // What one record spoils fails for those behind it, too: what says most counts.
    let kinds: [fn(&SendError) -> bool; 4] = [
        |error| !passes(error),
        |error| *error == SendError::TooLarge,
        |error| matches!(error, SendError::UnknownTopic(_)),
        |_| true,
    ];
    for is_kind in kinds {
        if let Some((_, first)) = errors.iter().find(|(_, error)| is_kind(error)) {
            let failed = errors.iter().filter(|(_, error)| is_kind(error));
            return Err((failed.map(|(at, _)| *at).collect(), first.clone()));
        }
    }
    transactions
        .offsets_of(&bucket.consumer, positions, owner)
        .await
        .map_err(whole)?;
    transactions.commit().await.map_err(whole)
}

fn passes(error: &SendError) -> bool {
    error.is_retryable() || *error == SendError::TooLarge
}

/// A broker may be away for so long; a gateway that starts anew undoes what is left as well.
const UNDO_FOR: Duration = Duration::from_secs(120);

/// Undoes a transaction, also where the broker is away for a while.
async fn undo(transactions: &Transactions) -> Result<(), SendError> {
    let (start, mut pause) = (Instant::now(), Duration::from_millis(100));
    loop {
        match transactions.abort().await {
            Err(error) if error.is_retryable() && start.elapsed() < UNDO_FOR => {
                tracing::warn!("not undone yet: {error}");
            }
            done => return done,
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

/// Makes a record one that can be written, or gives it up where there is no such.
async fn heal(bucket: &Bucket, record: &mut Option<Outgoing>, error: &SendError, start: Instant) {
    let Some(failed) = record else {
        return;
    };
    let shared = &bucket.shared;
    match error {
        SendError::TooLarge => {
            let model = bucket.model_of(failed);
            *record = result::instead(&shared.errors, &model, failed, &error.to_string());
            if record.is_none() {
                tracing::error!(model = %model, "an error is given up: {error}");
            }
        }
        SendError::UnknownTopic(_) if start.elapsed() > NO_TOPIC_FOR => {
            // Deleted by hand, and it cannot be made again: nobody can read it.
            tracing::error!(topic = %failed.topic, "a result is given up: {error}");
            *record = None;
        }
        SendError::UnknownTopic(_) => {
            let topic = failed.topic.to_string();
            if let Err(error) = shared
                .admin
                .create(std::slice::from_ref(&topic), false)
                .await
            {
                tracing::warn!(topic, "cannot be made again: {error:#}");
            } else if let Ok(Some(count)) = shared.admin.partitions(&topic).await {
                failed.partition = failed.partition.map(|one| one % count.max(1));
            }
        }
        _ => {}
    }
}

/// Fences the former owners of partitions: what they have stored stands after that.
pub(crate) async fn take_over(bucket: &Bucket, keys: &[Key], owner: &str) -> anyhow::Result<()> {
    let mut former: Vec<String> = bucket
        .consumer
        .committed_by(keys)
        .await?
        .into_iter()
        .flatten()
        .map(|(_, former)| former)
        .filter(|former| !former.is_empty() && former != owner)
        .collect();
    former.sort();
    former.dedup();
    for id in &former {
        tracing::info!(owner = id, "the former owner is fenced");
        let fenced = Transactions::new(&bucket.shared.settings, id).await;
        drop(fenced.with_context(|| format!("{id} cannot be fenced"))?);
    }
    Ok(())
}
