//! Between the messages of discovery and what the machine of a stream speaks; the same for both variants.
use std::{collections::HashMap, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{Node as WireNode, node::UserAgentVersionType},
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
            Resource,
        },
    },
    google::protobuf::{Any, Struct, Value, value::Kind},
};

use crate::{Node, world::Content};

/// Names in a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Names {
    Delta {
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        /// Versions the client holds from a former stream.
        initial: HashMap<String, String>,
    },
    /// All names wanted from now on, and the version of the last accepted response.
    Full { names: Vec<String>, version: String },
}

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) node: Option<Node>,
    pub(crate) type_url: String,
    pub(crate) nonce: String,
    pub(crate) error: Option<String>,
    pub(crate) names: Names,
}

/// A response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) type_url: Arc<str>,
    pub(crate) nonce: String,
    /// Of the whole response; state of the world only.
    pub(crate) version: String,
    pub(crate) resources: Vec<(Arc<str>, Content)>,
    pub(crate) removed: Vec<Arc<str>>,
}

pub(crate) fn hex(version: u64) -> String {
    format!("{version:016x}")
}

/// A version that is not ours equals none of ours, but for one chance in 2^64.
pub(crate) fn unhex(version: &str) -> u64 {
    u64::from_str_radix(version, 16).unwrap_or(0)
}

impl From<DeltaDiscoveryRequest> for Asked {
    fn from(r: DeltaDiscoveryRequest) -> Self {
        Asked {
            node: r.node.map(node),
            type_url: r.type_url,
            nonce: r.response_nonce,
            error: r.error_detail.map(|e| e.message),
            names: Names::Delta {
                subscribe: r.resource_names_subscribe,
                unsubscribe: r.resource_names_unsubscribe,
                initial: r.initial_resource_versions.into_iter().collect(),
            },
        }
    }
}

impl From<DiscoveryRequest> for Asked {
    fn from(r: DiscoveryRequest) -> Self {
        Asked {
            node: r.node.map(node),
            type_url: r.type_url,
            nonce: r.response_nonce,
            error: r.error_detail.map(|e| e.message),
            names: Names::Full {
                names: r.resource_names,
                version: r.version_info,
            },
        }
    }
}

fn any(type_url: &str, content: &Content) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: content.body.to_vec(),
    }
}

impl From<Answer> for DeltaDiscoveryResponse {
    fn from(a: Answer) -> Self {
        let resource = |(name, content): &(Arc<str>, Content)| Resource {
            name: name.to_string(),
            version: hex(content.version),
            resource: Some(any(&a.type_url, content)),
            ..Default::default()
        };
        DeltaDiscoveryResponse {
            resources: a.resources.iter().map(resource).collect(),
            removed_resources: a.removed.iter().map(|n| n.to_string()).collect(),
            type_url: a.type_url.to_string(),
            nonce: a.nonce,
            ..Default::default()
        }
    }
}

impl From<Answer> for DiscoveryResponse {
    fn from(a: Answer) -> Self {
        DiscoveryResponse {
            resources: a
                .resources
                .iter()
                .map(|(_, c)| any(&a.type_url, c))
                .collect(),
            version_info: a.version,
            type_url: a.type_url.to_string(),
            nonce: a.nonce,
            ..Default::default()
        }
    }
}

fn node(n: WireNode) -> Node {
    let version = match n.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(v)) => v,
        Some(UserAgentVersionType::UserAgentBuildVersion(b)) => {
            let text = |v: envoy_types::pb::envoy::r#type::v3::SemanticVersion| {
                format!("{}.{}.{}", v.major_number, v.minor_number, v.patch)
            };
            b.version.map(text).unwrap_or_default()
        }
        None => String::new(),
    };
    Node {
        id: n.id,
        cluster: n.cluster,
        address: String::new(),
        version,
        metadata: n.metadata.map(object).unwrap_or_default(),
    }
}

fn object(s: Struct) -> serde_json::Value {
    // Sorted: the fields arrive in a map without order.
    let sorted: std::collections::BTreeMap<_, _> = s.fields.into_iter().collect();
    serde_json::Value::Object(sorted.into_iter().map(|(k, v)| (k, json(v))).collect())
}

fn json(v: Value) -> serde_json::Value {
    match v.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        // Numbers of a Struct are doubles; a port should still read as an integer.
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => (n as i64).into(),
        Some(Kind::NumberValue(n)) => n.into(),
        Some(Kind::StringValue(s)) => s.into(),
        Some(Kind::BoolValue(b)) => b.into(),
        Some(Kind::StructValue(s)) => object(s),
        Some(Kind::ListValue(l)) => l.values.into_iter().map(json).collect(),
    }
}
