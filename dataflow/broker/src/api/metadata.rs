use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::*;

use super::{BROKER, text};
use crate::node::Node;
use crate::topic::Topic;

const CLUSTER: &str = "seldon";
/// Nothing is known of what the client may do.
const UNKNOWN: i32 = i32::MIN;

pub(super) fn metadata(node: &Node, request: MetadataRequest, version: i16) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BROKER)
        .with_host(node.host.clone())
        .with_port(i32::from(node.port));
    let topics = match request.topics {
        Some(topics) if version > 0 || !topics.is_empty() => {
            let create = version < 4 || request.allow_auto_topic_creation;
            topics
                .into_iter()
                .filter_map(|topic| topic.name)
                .map(|name| by_name(node, name, create))
                .collect()
        }
        _ => node.topics.all().iter().map(|topic| found(topic)).collect(),
    };
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(text(CLUSTER)))
        .with_controller_id(BROKER)
        .with_topics(topics)
        .with_cluster_authorized_operations(UNKNOWN)
}

fn by_name(node: &Node, name: TopicName, create: bool) -> MetadataResponseTopic {
    let topic = match (node.topics.get(&name), node.config.auto_create) {
        (Some(topic), _) => Ok(topic),
        (None, Some(partitions)) if create => {
            let created =
                node.topics
                    .create(&name, partitions, Default::default(), false, &node.journal);
            // Another client may have been quicker.
            created.or_else(|error| node.topics.get(&name).ok_or(error))
        }
        _ if !crate::topic::valid_name(&name) => Err(ResponseError::InvalidTopicException),
        _ => Err(ResponseError::UnknownTopicOrPartition),
    };
    match topic {
        Ok(topic) => found(&topic),
        Err(error) => MetadataResponseTopic::default()
            .with_name(Some(name))
            .with_error_code(error.code())
            .with_topic_authorized_operations(UNKNOWN),
    }
}

fn found(topic: &Topic) -> MetadataResponseTopic {
    let partition = |index| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BROKER)
            .with_leader_epoch(0)
            .with_replica_nodes(vec![BROKER])
            .with_isr_nodes(vec![BROKER])
    };
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(&topic.name))))
        .with_partitions((0..topic.count()).map(partition).collect())
        .with_topic_authorized_operations(UNKNOWN)
}

pub(super) fn cluster(node: &Node, _: DescribeClusterRequest) -> DescribeClusterResponse {
    let broker = DescribeClusterBroker::default()
        .with_broker_id(BROKER)
        .with_host(node.host.clone())
        .with_port(i32::from(node.port));
    DescribeClusterResponse::default()
        .with_cluster_id(text(CLUSTER))
        .with_controller_id(BROKER)
        .with_brokers(vec![broker])
        .with_cluster_authorized_operations(UNKNOWN)
}

/// This broker coordinates all groups and transactions.
pub(super) fn coordinator(node: &Node, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    let port = i32::from(node.port);
    let here = |key| {
        Coordinator::default()
            .with_key(key)
            .with_node_id(BROKER)
            .with_host(node.host.clone())
            .with_port(port)
    };
    let mut response = FindCoordinatorResponse::default();
    if request.coordinator_keys.is_empty() {
        response = response
            .with_node_id(BROKER)
            .with_host(node.host.clone())
            .with_port(port);
    } else {
        response.coordinators = request.coordinator_keys.into_iter().map(here).collect();
    }
    response
}
