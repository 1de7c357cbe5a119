use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::*;

use super::{code, commits, membership};
use crate::groups;
use crate::node::Node;

/// The longest that a transaction may ask to stay open.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Newer versions have a word of their own for a producer whose id another one holds.
fn fenced<T>(result: Result<T, ResponseError>, newer: bool) -> Result<T, ResponseError> {
    result.map_err(|error| match error {
        ResponseError::InvalidProducerEpoch if newer => ResponseError::ProducerFenced,
        ResponseError::ProducerFenced if !newer => ResponseError::InvalidProducerEpoch,
        error => error,
    })
}

pub(super) fn init(
    node: &Node,
    request: InitProducerIdRequest,
    version: i16,
) -> InitProducerIdResponse {
    let given = (request.producer_id.0, request.producer_epoch);
    let holder = (version >= 3 && given.0 >= 0).then_some(given);
    let mut known = node.transactions.lock();
    let begun = match (request.transactional_id.as_deref(), holder) {
        (Some(id), _) => {
            let timeout =
                Duration::from_millis(u64::try_from(request.transaction_timeout_ms).unwrap_or(0));
            if id.is_empty() {
                Err(ResponseError::InvalidRequest)
            } else if timeout.is_zero() || timeout > LONGEST {
                Err(ResponseError::InvalidTransactionTimeout)
            } else {
                known.init(id, timeout, holder, &node.parts())
            }
        }
        (None, Some((producer, epoch))) if (0..i16::MAX - 1).contains(&epoch) => {
            Ok((producer, epoch + 1))
        }
        (None, _) => known
            .new_producer(&node.journal)
            .map(|producer| (producer, 0)),
    };
    let begun = fenced(begun, version >= 4);
    let (producer, epoch) = *begun.as_ref().unwrap_or(&(-1, -1));
    InitProducerIdResponse::default()
        .with_error_code(code(&begun))
        .with_producer_id(ProducerId(producer))
        .with_producer_epoch(epoch)
}

pub(super) fn add_partitions(
    node: &Node,
    request: AddPartitionsToTxnRequest,
    version: i16,
) -> AddPartitionsToTxnResponse {
    let id = request.v3_and_below_transactional_id.as_str();
    let producer = request.v3_and_below_producer_id.0;
    let epoch = request.v3_and_below_producer_epoch;
    let wanted: Vec<(String, i32)> = request
        .v3_and_below_topics
        .iter()
        .flat_map(|topic| {
            topic
                .partitions
                .iter()
                .map(|index| (topic.name.to_string(), *index))
        })
        .collect();
    let there = |place: &(String, i32)| node.topics.partition(&place.0, place.1).is_some();
    // All or none: those that could be added say why they were not.
    let missing = !wanted.iter().all(there);
    let added = if missing {
        Err(ResponseError::OperationNotAttempted)
    } else {
        let mut known = node.transactions.lock();
        let held = fenced(known.held(id, producer, epoch), version >= 2);
        held.and_then(|held| held.extend(id, wanted, None, &node.journal))
    };
    node.deadlines.notify_one();
    let topic = |topic: add_partitions_to_txn_request::AddPartitionsToTxnTopic| {
        let partition = |index: &i32| {
            let absent = node.topics.partition(&topic.name, *index).is_none();
            let error = if absent {
                ResponseError::UnknownTopicOrPartition.code()
            } else {
                code(&added)
            };
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*index)
                .with_partition_error_code(error)
        };
        let partitions = topic.partitions.iter().map(partition).collect();
        AddPartitionsToTxnTopicResult::default()
            .with_results_by_partition(partitions)
            .with_name(topic.name.clone())
    };
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(
        request.v3_and_below_topics.into_iter().map(topic).collect(),
    )
}

pub(super) fn add_offsets(
    node: &Node,
    request: AddOffsetsToTxnRequest,
    version: i16,
) -> AddOffsetsToTxnResponse {
    let id = request.transactional_id.as_str();
    let mut known = node.transactions.lock();
    let held = membership::valid(&request.group_id).and_then(|()| {
        fenced(
            known.held(id, request.producer_id.0, request.producer_epoch),
            version >= 2,
        )
    });
    let group = request.group_id.to_string();
    let done = held.and_then(|held| held.extend(id, Vec::new(), Some(group), &node.journal));
    node.deadlines.notify_one();
    AddOffsetsToTxnResponse::default().with_error_code(code(&done))
}

pub(super) fn commit_offsets(
    node: &Node,
    request: TxnOffsetCommitRequest,
) -> TxnOffsetCommitResponse {
    let id = request.transactional_id.as_str();
    let name = request.group_id.as_str();
    let producer = request.producer_id.0;
    let mut known = node.transactions.lock();
    let mut all = node.groups.lock();
    let group = all.entry(name.to_owned()).or_default();
    let allowed = known
        .held(id, producer, request.producer_epoch)
        .and_then(|held| {
            if !held.groups.contains(name) {
                return Err(ResponseError::InvalidTxnState);
            }
            if request.member_id.is_empty() {
                return Ok(());
            }
            let instance = request.group_instance_id.as_ref();
            group.check(
                &request.member_id,
                instance,
                request.generation_id,
                Instant::now(),
            )
        });
    let topic = |topic: txn_offset_commit_request::TxnOffsetCommitRequestTopic| {
        let mut partitions = Vec::new();
        for wanted in &topic.partitions {
            let place = (topic.name.as_str(), wanted.partition_index);
            let done = allowed.and_then(|()| {
                node.topics
                    .partition(place.0, place.1)
                    .ok_or(ResponseError::UnknownTopicOrPartition)?;
                let offset = commits::committed(
                    wanted.committed_offset,
                    wanted.committed_metadata.as_deref(),
                )?;
                let done =
                    groups::commit_later(group, name, producer, place, offset, &node.journal);
                done.map_err(|_| ResponseError::KafkaStorageError)
            });
            let answer = TxnOffsetCommitResponsePartition::default().with_partition_index(place.1);
            partitions.push(answer.with_error_code(code(&done)));
        }
        TxnOffsetCommitResponseTopic::default()
            .with_partitions(partitions)
            .with_name(topic.name)
    };
    TxnOffsetCommitResponse::default().with_topics(request.topics.into_iter().map(topic).collect())
}

pub(super) fn end(node: &Node, request: EndTxnRequest, version: i16) -> EndTxnResponse {
    let id = request.transactional_id.as_str();
    let mut known = node.transactions.lock();
    let done = known.end(
        id,
        request.producer_id.0,
        request.producer_epoch,
        request.committed,
        &node.parts(),
    );
    EndTxnResponse::default().with_error_code(code(&fenced(done, version >= 2)))
}
