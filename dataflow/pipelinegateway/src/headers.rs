//! Headers: from a request into its record, from a record into the answer.
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use seldon_records::{Headers, Record, header};

/// Set by Envoy; the last one counts.
pub(crate) const INTERNAL_MODEL: HeaderName = HeaderName::from_static("seldon-internal-model");
/// What the client asked for.
pub(crate) const MODEL: HeaderName = HeaderName::from_static("seldon-model");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Length of the JSON before binary tensors.
pub(crate) const JSON_LENGTH: HeaderName =
    HeaderName::from_static("inference-header-content-length");
/// Marks an answer of ours that Envoy may replace by another replica's: nothing was begun.
pub(crate) const ABSENT: HeaderName = HeaderName::from_static("x-seldon-absent");

const ROUTE: HeaderName = HeaderName::from_static(header::ROUTE);
const TRACE: [&str; 2] = ["traceparent", "tracestate"];
/// Nobody waits longer, whatever is asked for.
const LONGEST_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// A longer one goes no further, as at agents.
const LONGEST_ROUTE: usize = 4 << 10;

/// Headers of ours or of Envoy's that mean nothing to a pipeline, or that a client must not set.
const OWN: [&str; 6] = [
    "x-seldon-scope",
    "x-seldon-mirror-cluster",
    "x-seldon-mirror-model",
    "x-seldon-absent",
    header::REQUEST_ID,
    header::PIPELINE_VERSION,
];

/// The headers of a request's record: all `x-*` and the trace, the routes taken so far in one.
pub(crate) fn of_request(fields: &HeaderMap, request_id: &str) -> Headers {
    let mut headers = Headers::new();
    headers.push(header::REQUEST_ID, request_id.to_owned());
    for (name, value) in fields {
        let passes = name.as_str().starts_with("x-") && !OWN.contains(&name.as_str());
        if (passes && name != ROUTE) || TRACE.contains(&name.as_str()) {
            headers.push(name.as_str(), value.as_bytes().to_vec());
        }
    }
    let values = fields.get_all(&ROUTE).iter().map(HeaderValue::as_bytes);
    let routes = routes(values);
    if !routes.is_empty() && routes.len() <= LONGEST_ROUTE {
        headers.push(header::ROUTE, routes);
    }
    headers
}

/// The headers of an answer: the key as `x-request-id`, all other `x-*` but Envoy's, which it would act on, and the
/// routes of all steps in one. The pipeline's own route is left to Envoy, which adds it: a client that sends its routes back would have it twice.
pub(crate) fn of_answer(record: &Record) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in record.headers.iter() {
        let own = OWN.contains(&name) && name != header::PIPELINE_VERSION;
        let own = own || name.starts_with("x-envoy-");
        let passes = name.starts_with("x-") && !own && name != header::ROUTE;
        if passes || TRACE.contains(&name) {
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_maybe_shared(value.clone());
            if let (Ok(name), Ok(value)) = (name, value) {
                fields.append(name, value);
            }
        }
    }
    let all = record.headers.iter();
    let values = all.filter(|(name, _)| *name == header::ROUTE);
    let mut routes = routes(values.map(|(_, value)| &value[..]));
    if let Some(pipeline) = record.headers.text(header::PIPELINE) {
        let own = format!(":{pipeline}.pipeline:");
        let others: Vec<&str> = routes.split(' ').filter(|route| *route != own).collect();
        routes = others.join(" ");
    }
    if let (false, Ok(routes)) = (routes.is_empty(), HeaderValue::from_str(&routes)) {
        fields.insert(ROUTE, routes);
    }
    let id = record
        .key
        .as_ref()
        .or_else(|| record.headers.get(header::REQUEST_ID));
    if let Some(Ok(id)) = id.map(|id| HeaderValue::from_maybe_shared(id.clone())) {
        fields.insert(REQUEST_ID, id);
    }
    fields
}

/// Each route once, in the order of their first appearance: `:a_1: :b_1:`.
fn routes<'a>(values: impl Iterator<Item = &'a [u8]>) -> String {
    let mut routes: Vec<&str> = Vec::new();
    for value in values {
        let tokens = std::str::from_utf8(value).unwrap_or_default();
        for token in tokens.split([' ', ',']).filter(|token| !token.is_empty()) {
            if !routes.contains(&token) {
                routes.push(token);
            }
        }
    }
    routes.join(" ")
}

/// How long the caller waits, if it says so.
pub(crate) fn patience(fields: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| fields.get(name)?.to_str().ok();
    let grpc = text("grpc-timeout").and_then(grpc_timeout);
    let envoy = text("x-envoy-expected-rq-timeout-ms")
        .and_then(|text| text.parse().ok())
        .filter(|milliseconds| *milliseconds > 0)
        .map(Duration::from_millis);
    let asked = grpc.into_iter().chain(envoy).min();
    asked.map(|asked| asked.min(LONGEST_PATIENCE))
}

/// At most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_headers_pass_both_ways() {
        let mut fields = HeaderMap::new();
        for (name, value) in [
            ("x-seldon-route", ":a_1: :p.pipeline:"),
            ("x-seldon-route", ":b_1:"),
            ("x-forwarded-proto", "http"),
            ("x-envoy-max-retries", "9"),
            ("x-seldon-scope", "c:p.pipeline"),
            ("x-pipeline-version", "7"),
            ("x-request-id", "old"),
            ("authorization", "secret"),
            ("traceparent", "00-1-2-01"),
        ] {
            let name: HeaderName = name.parse().unwrap();
            fields.append(name, value.parse().unwrap());
        }
        let headers = of_request(&fields, "id");
        let mut all: Vec<_> = headers.iter().map(|(name, _)| name).collect();
        all.sort_unstable();
        let wanted = [
            "traceparent",
            "x-envoy-max-retries",
            "x-forwarded-proto",
            "x-request-id",
            "x-seldon-route",
        ];
        assert_eq!(all, wanted);
        assert_eq!(headers.text("x-request-id"), Some("id"));
        assert_eq!(
            headers.text(header::ROUTE),
            Some(":a_1: :p.pipeline: :b_1:")
        );

        let mut headers = headers;
        headers.push(header::ROUTE, ":c_1:");
        headers.push(header::ROUTE, ":a_1:");
        headers.push(header::PIPELINE_VERSION, "2");
        headers.push(header::ID, "0");
        let record = Record {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            key: Some("key".into()),
            value: None,
            headers,
            timestamp_ms: 0,
        };
        let answer = of_answer(&record);
        assert_eq!(answer["x-request-id"], "key");
        assert_eq!(answer[header::ROUTE], ":a_1: :p.pipeline: :b_1: :c_1:");
        assert_eq!(answer.get_all(header::ROUTE).iter().count(), 1);
        assert_eq!(answer["x-pipeline-version"], "2");
        assert!(!answer.contains_key("seldon-id"));
        assert!(!answer.contains_key("x-envoy-max-retries"));
    }

    #[test]
    fn the_shorter_patience_counts() {
        let mut fields = HeaderMap::new();
        assert_eq!(patience(&fields), None);
        fields.insert("x-envoy-expected-rq-timeout-ms", HeaderValue::from(60_000));
        assert_eq!(patience(&fields), Some(Duration::from_secs(60)));
        fields.insert("grpc-timeout", HeaderValue::from_static("250m"));
        assert_eq!(patience(&fields), Some(Duration::from_millis(250)));
        let endless = HeaderValue::from(u64::MAX);
        fields.insert("x-envoy-expected-rq-timeout-ms", endless);
        fields.insert("grpc-timeout", HeaderValue::from_static("99999999H"));
        assert_eq!(patience(&fields), Some(LONGEST_PATIENCE));
        for wrong in ["", "m", "123456789S", "-1S", "1x", "é"] {
            assert_eq!(grpc_timeout(wrong), None, "{wrong}");
        }
    }
}
