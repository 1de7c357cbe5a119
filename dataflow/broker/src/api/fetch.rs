use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, FetchableTopicResponse, PartitionData,
};
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse, ProducerId};
use tokio::time::Instant;

use crate::connection::Session;
use crate::node::Node;

/// Longer than any client waits.
const LONGEST: Duration = Duration::from_secs(300);

/// Waits until there is something to read, or an error, or the time is up.
pub(super) async fn fetch(node: &Node, session: &Session, request: &FetchRequest) -> FetchResponse {
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(LONGEST);
    let deadline = Instant::now() + wait;
    let least = usize::try_from(request.min_bytes).unwrap_or(0);
    let mut late = wait.is_zero();
    // The second look notes the waiter; most fetches are answered by the first.
    let mut waits = false;
    loop {
        if ready(node, session, request, waits) || late || least == 0 {
            let (response, size, failed) = read(node, request);
            if late || failed || size >= least {
                return response;
            }
            if waits {
                // Some, but not enough: whatever comes next may be.
                tokio::time::sleep_until(deadline.min(Instant::now() + Duration::from_millis(5)))
                    .await;
                late = Instant::now() >= deadline;
                continue;
            }
        }
        if !waits {
            waits = true;
            continue;
        }
        late = tokio::time::timeout_at(deadline, session.waiter.notified())
            .await
            .is_err();
    }
}

fn ready(node: &Node, session: &Session, request: &FetchRequest, waits: bool) -> bool {
    let committed = request.isolation_level == 1;
    let mut ready = false;
    for topic in &request.topics {
        let Some(known) = node.topics.get(&topic.topic) else {
            return true;
        };
        for partition in &topic.partitions {
            let Some(log) = known.partition(partition.partition) else {
                return true;
            };
            let waiter = waits.then_some(&session.waiter);
            ready |= log.lock().ready(partition.fetch_offset, committed, waiter);
            if ready {
                return true;
            }
        }
    }
    ready
}

/// Reads what there is; returns the size of it, and whether there is an error.
fn read(node: &Node, request: &FetchRequest) -> (FetchResponse, usize, bool) {
    let most = (node.config.memory_bytes / 8).clamp(1 << 20, 16 << 20);
    let most = usize::try_from(request.max_bytes).unwrap_or(0).min(most);
    let (mut size, mut failed) = (0, false);
    let mut response = FetchResponse::default();
    for topic in &request.topics {
        let mut answers = Vec::with_capacity(topic.partitions.len());
        for partition in &topic.partitions {
            let limit = usize::try_from(partition.partition_max_bytes).unwrap_or(0);
            let limit = limit.min(most.saturating_sub(size));
            let answer = read_partition(
                node,
                &topic.topic,
                partition,
                request.isolation_level == 1,
                limit,
                size == 0,
            );
            size += answer.records.as_ref().map_or(0, Bytes::len);
            failed |= answer.error_code != 0;
            answers.push(answer);
        }
        let answer = FetchableTopicResponse::default()
            .with_topic(topic.topic.clone())
            .with_partitions(answers);
        response.responses.push(answer);
    }
    (response, size, failed)
}

fn read_partition(
    node: &Node,
    topic: &str,
    wanted: &FetchPartition,
    committed: bool,
    limit: usize,
    first: bool,
) -> PartitionData {
    let mut answer = PartitionData::default()
        .with_partition_index(wanted.partition)
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1)
        .with_records(Some(Bytes::new()))
        .with_preferred_read_replica(BrokerId(-1))
        .with_aborted_transactions(None);
    let Some(partition) = node.topics.partition(topic, wanted.partition) else {
        return answer.with_error_code(ResponseError::UnknownTopicOrPartition.code());
    };
    let log = partition.lock();
    let ends = log.ends();
    answer.high_watermark = ends.next;
    answer.last_stable_offset = ends.stable;
    answer.log_start_offset = ends.start;
    match log.read(wanted.fetch_offset, committed, limit, first) {
        Ok(read) => {
            let listed = |one: crate::log::Aborted| {
                AbortedTransaction::default()
                    .with_producer_id(ProducerId(one.producer))
                    .with_first_offset(one.first)
            };
            answer.records = Some(read.records);
            answer.aborted_transactions =
                committed.then(|| read.aborted.into_iter().map(listed).collect());
        }
        Err(error) => answer.error_code = error.code(),
    }
    answer
}
