//! Results and positions in transactions.
//!
//! A position is stored with the transactional id of who works on what follows. Whoever takes a model over fences that id
//! first, so that the former owner cannot write any more, and then reads the position again.
use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use seldon_kafka::{SendError, Transactions};
use seldon_records::Outgoing;
use tokio::time::sleep;

use crate::{
    bucket::{Bucket, Key, Start},
    shared::Shared,
};

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
    loop {
        match attempt(bucket, transactions, owner, outgoing, positions).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_retryable() => tracing::warn!("a transaction failed: {error}"),
            Err(error) => return Err(error),
        }
        transactions.abort().await?;
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn attempt(
    bucket: &Bucket,
    transactions: &Transactions,
    owner: &str,
    outgoing: &[Outgoing],
    positions: &Positions,
) -> Result<(), SendError> {
    transactions.begin()?;
    let enqueued = outgoing.iter().cloned();
    let deliveries: Result<Vec<_>, _> = enqueued.map(|one| transactions.enqueue(one)).collect();
    for delivery in deliveries? {
        delivery.await?;
    }
    transactions
        .offsets_of(&bucket.consumer, positions, owner)
        .await?;
    transactions.commit().await
}

/// Fences the former owners of partitions, and tells where each is gone on with.
pub(crate) async fn take_over(
    bucket: &Bucket,
    keys: &[Key],
    ends: &[i64],
    owner: &str,
) -> anyhow::Result<Vec<Start>> {
    let consumer = &bucket.consumer;
    let mut former: Vec<String> = consumer
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
    let committed = consumer.committed(keys).await?;
    let starts: Vec<Start> = keys
        .iter()
        .zip(committed.iter().zip(ends))
        .map(|((_, partition), (committed, end))| Start {
            partition: *partition,
            position: committed.unwrap_or(*end),
            end: *end,
        })
        .collect();
    Ok(starts)
}
