//! Short forms of messages that many resources share.
use envoy_types::pb::{
    envoy::config::core::v3::{
        ConfigSource, HeaderValue, HeaderValueOption, config_source::ConfigSourceSpecifier,
        header_value_option::HeaderAppendAction,
    },
    google::protobuf::{Any, BoolValue, Duration, UInt32Value},
};
use prost::{Message, Name};

/// The message in its envelope.
pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// "From the stream this came by", without a limit on the wait for the first answer: an Envoy that gave up waiting
/// would turn ready with nothing and answer errors to everything.
pub(super) fn from_ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: 2,
        initial_fetch_timeout: Some(Duration::default()),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    })
}

/// A header that replaces what is there.
pub(super) fn overwrite(key: &str, value: &str) -> HeaderValueOption {
    header(key, value, HeaderAppendAction::OverwriteIfExistsOrAdd)
}

/// A header beside those that are there.
pub(super) fn append(key: &str, value: &str) -> HeaderValueOption {
    header(key, value, HeaderAppendAction::AppendIfExistsOrAdd)
}

fn header(key: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        }),
        append_action: action.into(),
        ..Default::default()
    }
}

pub(super) fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

pub(super) fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn truth(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}
