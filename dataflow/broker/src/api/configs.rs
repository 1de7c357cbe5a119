use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse as Altered;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult,
};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as AlteredSome;
use kafka_protocol::messages::*;

use super::{code, text};
use crate::node::Node;
use crate::topic::Settings;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// Where a value comes from.
const GIVEN: i8 = 1;
const DEFAULT: i8 = 5;
/// How a value is altered.
const SET: i8 = 0;
const REMOVE: i8 = 1;

/// What holds for a topic: the given settings over the defaults.
fn all(node: &Node, name: &str) -> Result<Vec<(String, String, i8)>, ResponseError> {
    let topic = node
        .topics
        .get(name)
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    let given = topic.settings();
    let limit = |limit: Option<i64>| limit.unwrap_or(-1).to_string();
    let bytes = node
        .config
        .retention_bytes
        .and_then(|bytes| i64::try_from(bytes).ok());
    let defaults = [
        ("cleanup.policy", "delete".to_owned()),
        ("max.message.bytes", "1048588".to_owned()),
        ("retention.bytes", limit(bytes)),
        ("retention.ms", limit(node.config.retention_ms)),
    ];
    let defaults = defaults
        .into_iter()
        .filter(|(name, _)| !given.contains_key(*name));
    let defaults = defaults.map(|(name, value)| (name.to_owned(), value, DEFAULT));
    let mut found: Vec<_> = defaults.collect();
    found.extend(given.into_iter().map(|(name, value)| (name, value, GIVEN)));
    found.sort();
    Ok(found)
}

pub(super) fn describe(node: &Node, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let resource = |wanted: describe_configs_request::DescribeConfigsResource| {
        let found = match wanted.resource_type {
            TOPIC => all(node, &wanted.resource_name),
            BROKER => Ok(Vec::new()),
            _ => Err(ResponseError::InvalidRequest),
        };
        let keys = wanted.configuration_keys.as_ref();
        let asked =
            |name: &str| keys.is_none_or(|keys| keys.iter().any(|key| key.as_str() == name));
        let configs = found.iter().flatten().filter(|(name, _, _)| asked(name));
        let configs = configs.map(|(name, value, source)| {
            DescribeConfigsResourceResult::default()
                .with_name(text(name))
                .with_value(Some(text(value)))
                .with_config_source(*source)
                .with_documentation(None)
        });
        DescribeConfigsResult::default()
            .with_error_code(code(&found))
            .with_error_message(None)
            .with_resource_type(wanted.resource_type)
            .with_configs(configs.collect())
            .with_resource_name(wanted.resource_name.clone())
    };
    DescribeConfigsResponse::default()
        .with_results(request.resources.into_iter().map(resource).collect())
}

fn set(
    node: &Node,
    kind: i8,
    name: &str,
    only_check: bool,
    change: impl FnOnce(Settings) -> Result<Settings, ResponseError>,
) -> Result<(), ResponseError> {
    if kind != TOPIC {
        return Err(ResponseError::InvalidRequest);
    }
    let topic = node
        .topics
        .get(name)
        .ok_or(ResponseError::UnknownTopicOrPartition)?;
    let settings = change(topic.settings())?;
    if only_check {
        let valid = crate::topic::valid_settings(&settings);
        return if valid {
            Ok(())
        } else {
            Err(ResponseError::InvalidConfig)
        };
    }
    node.topics.set(&topic, settings, &node.journal)
}

/// Replaces all settings of a topic.
pub(super) fn alter(node: &Node, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let resource = |wanted: alter_configs_request::AlterConfigsResource| {
        let given = wanted.configs.iter().filter_map(|config| {
            let value = config.value.as_ref()?;
            Some((config.name.to_string(), value.to_string()))
        });
        let given: Settings = given.collect();
        let done = set(
            node,
            wanted.resource_type,
            &wanted.resource_name,
            request.validate_only,
            |_| Ok(given),
        );
        Altered::default()
            .with_error_code(code(&done))
            .with_error_message(None)
            .with_resource_type(wanted.resource_type)
            .with_resource_name(wanted.resource_name)
    };
    AlterConfigsResponse::default()
        .with_responses(request.resources.into_iter().map(resource).collect())
}

/// Sets and removes some settings of a topic; lists are not appended to.
pub(super) fn alter_some(
    node: &Node,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let resource = |wanted: incremental_alter_configs_request::AlterConfigsResource| {
        let change = |mut settings: Settings| {
            for config in &wanted.configs {
                match (config.config_operation, &config.value) {
                    (SET, Some(value)) => {
                        settings.insert(config.name.to_string(), value.to_string())
                    }
                    (REMOVE, _) => settings.remove(config.name.as_str()),
                    _ => return Err(ResponseError::InvalidConfig),
                };
            }
            Ok(settings)
        };
        let done = set(
            node,
            wanted.resource_type,
            &wanted.resource_name,
            request.validate_only,
            change,
        );
        AlteredSome::default()
            .with_error_code(code(&done))
            .with_error_message(None)
            .with_resource_type(wanted.resource_type)
            .with_resource_name(wanted.resource_name)
    };
    IncrementalAlterConfigsResponse::default()
        .with_responses(request.resources.into_iter().map(resource).collect())
}
