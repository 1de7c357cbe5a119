use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::code;
use crate::batch;
use crate::node::Node;

/// What a batch may take where its topic does not say: Kafka's default.
const BATCH: i64 = 1_048_588;

/// Nothing where the producer does not want an answer.
pub(super) fn produce(node: &Node, request: ProduceRequest) -> Option<ProduceResponse> {
    let transaction = request.transactional_id.as_deref().map(|id| &**id);
    let mut response = ProduceResponse::default();
    for topic in request.topic_data {
        let mut answers = Vec::with_capacity(topic.partition_data.len());
        for partition in topic.partition_data {
            let records = partition.records.unwrap_or_default();
            let done = append(node, &topic.name, partition.index, records, transaction);
            let (base, start) = *done.as_ref().unwrap_or(&(-1, -1));
            answers.push(
                PartitionProduceResponse::default()
                    .with_index(partition.index)
                    .with_error_code(code(&done))
                    .with_base_offset(base)
                    .with_log_append_time_ms(-1)
                    .with_log_start_offset(start),
            );
        }
        let answer = TopicProduceResponse::default()
            .with_name(topic.name)
            .with_partition_responses(answers);
        response.responses.push(answer);
    }
    node.make_room();
    (request.acks != 0).then_some(response)
}

fn append(
    node: &Node,
    name: &str,
    index: i32,
    records: Bytes,
    transaction: Option<&str>,
) -> Result<(i64, i64), ResponseError> {
    let topic = node
        .topics
        .get(name)
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    let partition = topic
        .partition(index)
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    let batches = batch::received(records)?;
    let most = topic
        .number("max.message.bytes", Some(BATCH))
        .unwrap_or(BATCH);
    let most = usize::try_from(most)
        .unwrap_or(0)
        .min(node.config.memory_bytes / 2);
    if batches.iter().any(|(header, _)| header.size > most) {
        return Err(ResponseError::MessageTooLarge);
    }
    if topic.policy("compact") && !batches.iter().all(|(header, bytes)| keyed(header, bytes)) {
        return Err(ResponseError::InvalidRecord);
    }
    let Some((first, _)) = batches.iter().find(|(header, _)| header.transactional()) else {
        let mut log = partition.lock();
        return log.append(&batches).map(|base| (base, log.ends().start));
    };
    // Held while it is written: a transaction that is being ended must not get more records.
    let mut transactions = node.transactions.lock();
    let id = transaction.ok_or(ResponseError::InvalidTxnState)?;
    transactions.may_write(id, first.producer, first.epoch, (name, index))?;
    let mut log = partition.lock();
    log.append(&batches).map(|base| (base, log.ends().start))
}

/// A compacted topic takes no record without a key; those within a compressed batch are not looked at.
fn keyed(header: &batch::Header, bytes: &[u8]) -> bool {
    header.compressed()
        || batch::records(header, bytes)
            .is_some_and(|records| records.iter().all(|record| record.key.is_some()))
}
