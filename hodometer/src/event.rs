//! The form in which a snapshot is sent: MixPanel's, a list of events with properties.
use serde::Serialize;

use crate::usage::Usage;

const NAME: &str = "usage_metrics";

#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    properties: Properties<'a>,
}

#[derive(Serialize)]
struct Properties<'a> {
    /// Seconds since 1970.
    time: u64,
    distinct_id: &'a str,
    /// A receiver that gets an event twice keeps one.
    #[serde(rename = "$insert_id")]
    insert_id: &'a str,
    #[serde(flatten)]
    usage: &'a Usage,
}

/// Returns the body of a request that publishes a snapshot taken at `time`, in seconds since 1970.
pub(crate) fn body(usage: &Usage, insert_id: &str, time: u64) -> Result<String, serde_json::Error> {
    let properties = Properties {
        time,
        distinct_id: &usage.installation.cluster_id,
        insert_id,
        usage,
    };
    serde_json::to_string(&[Event {
        event: NAME,
        properties,
    }])
}
