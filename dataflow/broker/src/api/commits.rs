use std::collections::BTreeMap;
use std::time::Instant;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartition, OffsetFetchResponseTopic,
};
use kafka_protocol::messages::*;

use super::{code, text};
use crate::group::{Committed, Group};
use crate::groups;
use crate::node::Node;

/// What may stand beside an offset.
pub(super) const METADATA: usize = 4096;

pub(super) fn commit(node: &Node, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let name = request.group_id.as_str();
    let mut all = node.groups.lock();
    let allowed = super::membership::valid(name).and_then(|()| {
        let group = all.entry(name.to_owned()).or_default();
        let instance = request.group_instance_id.as_ref();
        let generation = request.generation_id_or_member_epoch;
        group.may_commit(&request.member_id, instance, generation, Instant::now())?;
        Ok(group)
    });
    let (error, mut group) = match allowed {
        Ok(group) => (Ok(()), Some(group)),
        Err(error) => (Err(error), None),
    };
    let topic = |topic: offset_commit_request::OffsetCommitRequestTopic| {
        let known = node.topics.get(&topic.name);
        let mut one = |wanted: &offset_commit_request::OffsetCommitRequestPartition| {
            error?;
            let index = wanted.partition_index;
            let partition = known.as_ref().and_then(|known| known.partition(index));
            partition.ok_or(ResponseError::UnknownTopicOrPartition)?;
            let offset = committed(
                wanted.committed_offset,
                wanted.committed_metadata.as_deref(),
            )?;
            let group: &mut Group = group.as_deref_mut().ok_or(ResponseError::UnknownMemberId)?;
            let done = groups::commit(group, name, &topic.name, index, offset, &node.journal);
            done.map_err(|_| ResponseError::KafkaStorageError)
        };
        let partition = |wanted: &offset_commit_request::OffsetCommitRequestPartition| {
            OffsetCommitResponsePartition::default()
                .with_error_code(code(&one(wanted)))
                .with_partition_index(wanted.partition_index)
        };
        let partitions = topic.partitions.iter().map(partition).collect();
        OffsetCommitResponseTopic::default()
            .with_partitions(partitions)
            .with_name(topic.name.clone())
    };
    OffsetCommitResponse::default().with_topics(request.topics.into_iter().map(topic).collect())
}

pub(super) fn committed(offset: i64, metadata: Option<&str>) -> Result<Committed, ResponseError> {
    if metadata.is_some_and(|metadata| metadata.len() > METADATA) {
        return Err(ResponseError::OffsetMetadataTooLarge);
    }
    Ok(Committed {
        offset,
        metadata: metadata.map(ToOwned::to_owned),
    })
}

pub(super) fn fetch(node: &Node, request: OffsetFetchRequest) -> OffsetFetchResponse {
    let nothing = Group::default();
    let all = node.groups.lock();
    let group = all.get(request.group_id.as_str()).unwrap_or(&nothing);
    let mut wanted: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    match request.topics {
        Some(topics) => {
            for topic in topics {
                wanted
                    .entry(topic.name.to_string())
                    .or_default()
                    .extend(topic.partition_indexes);
            }
        }
        None => {
            for (topic, partition) in group.offsets.keys() {
                wanted.entry(topic.clone()).or_default().push(*partition);
            }
        }
    }
    let topic = |(name, partitions): (String, Vec<i32>)| {
        let partition = |index: i32| {
            let place = (name.clone(), index);
            let open = group
                .pending
                .values()
                .any(|offsets| offsets.contains_key(&place));
            let unstable = request.require_stable && open;
            let error = if unstable {
                ResponseError::UnstableOffsetCommit.code()
            } else {
                0
            };
            let found = group.offsets.get(&place).filter(|_| !unstable);
            let metadata = found
                .and_then(|found| found.metadata.as_deref())
                .unwrap_or_default();
            OffsetFetchResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(error)
                .with_committed_offset(found.map_or(-1, |found| found.offset))
                .with_committed_leader_epoch(-1)
                .with_metadata(Some(text(metadata)))
        };
        OffsetFetchResponseTopic::default()
            .with_name(TopicName(text(&name)))
            .with_partitions(partitions.into_iter().map(partition).collect())
    };
    OffsetFetchResponse::default().with_topics(wanted.into_iter().map(topic).collect())
}

pub(super) fn delete(node: &Node, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let name = request.group_id.as_str();
    let mut all = node.groups.lock();
    let Some(group) = all.get_mut(name) else {
        return OffsetDeleteResponse::default()
            .with_error_code(ResponseError::GroupIdNotFound.code());
    };
    // Whether a member reads the topic is not looked at: no members, then.
    if !group.members.is_empty() {
        return OffsetDeleteResponse::default()
            .with_error_code(ResponseError::NonEmptyGroup.code());
    }
    let topic = |topic: offset_delete_request::OffsetDeleteRequestTopic| {
        let mut partitions = Vec::new();
        for partition in &topic.partitions {
            let index = partition.partition_index;
            let done = groups::forget(group, name, &topic.name, index, &node.journal);
            let done = done.map_err(|_| ResponseError::KafkaStorageError);
            let answer = OffsetDeleteResponsePartition::default().with_partition_index(index);
            partitions.push(answer.with_error_code(code(&done)));
        }
        OffsetDeleteResponseTopic::default()
            .with_partitions(partitions)
            .with_name(topic.name)
    };
    OffsetDeleteResponse::default().with_topics(request.topics.into_iter().map(topic).collect())
}
