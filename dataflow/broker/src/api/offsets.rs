use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use kafka_protocol::messages::*;

use super::code;
use crate::node::Node;

/// Times that stand for places.
const END: i64 = -1;
const START: i64 = -2;
const NEWEST: i64 = -3;

pub(super) fn list(node: &Node, request: ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    let committed = request.isolation_level == 1;
    let topic = |topic: list_offsets_request::ListOffsetsTopic| {
        let partition = |wanted: &list_offsets_request::ListOffsetsPartition| {
            let found = place(
                node,
                &topic.name,
                wanted.partition_index,
                wanted.timestamp,
                committed,
            );
            let (offset, timestamp) = *found.as_ref().unwrap_or(&(-1, -1));
            ListOffsetsPartitionResponse::default()
                .with_partition_index(wanted.partition_index)
                .with_error_code(code(&found))
                .with_offset(offset)
                .with_timestamp(timestamp)
                .with_leader_epoch(if version >= 4 { 0 } else { -1 })
        };
        let partitions = topic.partitions.iter().map(partition).collect();
        ListOffsetsTopicResponse::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions)
    };
    ListOffsetsResponse::default().with_topics(request.topics.into_iter().map(topic).collect())
}

fn place(
    node: &Node,
    topic: &str,
    index: i32,
    time: i64,
    committed: bool,
) -> Result<(i64, i64), ResponseError> {
    let partition = node
        .topics
        .partition(topic, index)
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    let log = partition.lock();
    let ends = log.ends();
    let none = (-1, -1);
    Ok(match time {
        END => (if committed { ends.stable } else { ends.next }, -1),
        START => (ends.start, -1),
        NEWEST => log.newest().unwrap_or(none),
        time if time < 0 => return Err(ResponseError::UnsupportedVersion),
        time => log.at_time(time)?.unwrap_or(none),
    })
}

/// There is but one epoch.
pub(super) fn for_epoch(
    node: &Node,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topic = |topic: offset_for_leader_epoch_request::OffsetForLeaderTopic| {
        let partition = |wanted: &offset_for_leader_epoch_request::OffsetForLeaderPartition| {
            let known = node.topics.partition(&topic.topic, wanted.partition);
            let end = known
                .map(|known| known.lock().ends().next)
                .ok_or(ResponseError::UnknownTopicOrPartition);
            EpochEndOffset::default()
                .with_partition(wanted.partition)
                .with_error_code(code(&end))
                .with_leader_epoch(if end.is_ok() { 0 } else { -1 })
                .with_end_offset(end.unwrap_or(-1))
        };
        let partitions = topic.partitions.iter().map(partition).collect();
        OffsetForLeaderTopicResult::default()
            .with_topic(topic.topic.clone())
            .with_partitions(partitions)
    };
    OffsetForLeaderEpochResponse::default()
        .with_topics(request.topics.into_iter().map(topic).collect())
}

pub(super) fn delete_records(node: &Node, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let topic = |topic: delete_records_request::DeleteRecordsTopic| {
        let partition = |wanted: &delete_records_request::DeleteRecordsPartition| {
            let start = node.topics.delete_records(
                &topic.name,
                wanted.partition_index,
                wanted.offset,
                &node.journal,
            );
            DeleteRecordsPartitionResult::default()
                .with_partition_index(wanted.partition_index)
                .with_error_code(code(&start))
                .with_low_watermark(start.unwrap_or(-1))
        };
        let partitions = topic.partitions.iter().map(partition).collect();
        DeleteRecordsTopicResult::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions)
    };
    DeleteRecordsResponse::default().with_topics(request.topics.into_iter().map(topic).collect())
}
