use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::*;

use super::code;
use crate::node::Node;
use crate::topic::Settings;

pub(super) fn create(node: &Node, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let topic = |wanted: CreatableTopic| {
        let created = create_one(node, &wanted, request.validate_only);
        CreatableTopicResult::default()
            .with_error_code(code(&created))
            .with_error_message(created.err().map(|error| super::text(&error.to_string())))
            .with_num_partitions(created.unwrap_or(-1))
            .with_replication_factor(if created.is_ok() { 1 } else { -1 })
            .with_configs(Some(Vec::new()))
            .with_name(wanted.name)
    };
    CreateTopicsResponse::default().with_topics(request.topics.into_iter().map(topic).collect())
}

fn create_one(
    node: &Node,
    wanted: &CreatableTopic,
    only_check: bool,
) -> Result<i32, ResponseError> {
    let partitions = match (wanted.assignments.len(), wanted.num_partitions) {
        (0, -1) => node.config.auto_create.unwrap_or(1),
        (0, count) => count,
        (count, _) => i32::try_from(count).unwrap_or(-1),
    };
    if wanted.assignments.is_empty() && !matches!(wanted.replication_factor, -1 | 1) {
        return Err(ResponseError::InvalidReplicationFactor);
    }
    let given = wanted.configs.iter().filter_map(|config| {
        let value = config.value.as_ref()?;
        Some((config.name.to_string(), value.to_string()))
    });
    let settings: Settings = given.collect();
    let topic = node.topics.create(
        &wanted.name,
        partitions,
        settings,
        only_check,
        &node.journal,
    )?;
    Ok(topic.count())
}

pub(super) fn delete(node: &Node, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let topic = |name: TopicName| {
        let deleted = node.topics.delete(&name, &node.journal).and_then(|()| {
            let forgotten = node.groups.forget_topic(&name, &node.journal);
            forgotten.map_err(|_| ResponseError::KafkaStorageError)
        });
        DeletableTopicResult::default()
            .with_error_code(code(&deleted))
            .with_name(Some(name))
    };
    DeleteTopicsResponse::default()
        .with_responses(request.topic_names.into_iter().map(topic).collect())
}

pub(super) fn grow(node: &Node, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let topic = |wanted: create_partitions_request::CreatePartitionsTopic| {
        let grown = node.topics.grow(
            &wanted.name,
            wanted.count,
            request.validate_only,
            &node.journal,
        );
        CreatePartitionsTopicResult::default()
            .with_error_code(code(&grown))
            .with_error_message(None)
            .with_name(wanted.name)
    };
    CreatePartitionsResponse::default()
        .with_results(request.topics.into_iter().map(topic).collect())
}
