//! Names of headers, which of them count, and which go no further.
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The only header that decides which model answers; Envoy overwrites it.
pub(crate) const INTERNAL_MODEL: HeaderName = HeaderName::from_static("seldon-internal-model");
/// The name the client asked for.
pub(crate) const MODEL: HeaderName = HeaderName::from_static("seldon-model");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub(crate) const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Marks the agent's own answer that the model cannot be had from this replica. The request never reached an inference
/// server, so Envoy asks another replica; the scheduler's routes name this header.
pub(crate) const ABSENT: HeaderName = HeaderName::from_static("x-seldon-absent");

/// Where a client saw its former answers come from. The choice is made before it comes here.
const ROUTE: HeaderName = HeaderName::from_static("x-seldon-route");
/// A longer one goes no further: inference servers refuse requests by gRPC with more than 8 KiB of headers.
const LONGEST_ROUTE: usize = 4 << 10;

/// Headers for one connection only, and those that parts of the system leave for each other.
const REMOVED: [HeaderName; 12] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("x-seldon-scope"),
    HeaderName::from_static("x-seldon-mirror-cluster"),
    HeaderName::from_static("x-seldon-mirror-model"),
    // From an inference server it would have an inference run again.
    ABSENT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
];

/// Removes what must not be passed on, headers named by `connection` included.
pub(crate) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| *name != INTERNAL_MODEL && *name != MODEL)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in &REMOVED {
        headers.remove(name);
    }
    let routes = headers.get_all(ROUTE).iter();
    if routes.map(HeaderValue::len).sum::<usize>() > LONGEST_ROUTE {
        headers.remove(ROUTE);
    }
}

/// The model that answers: the last value, should several arrive.
pub(crate) fn internal(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get_all(INTERNAL_MODEL).iter().next_back()?;
    value.to_str().ok().filter(|name| !name.is_empty())
}

/// The name the client asked for, if it named one.
pub(crate) fn external(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers
        .get(MODEL)
        .filter(|value| !value.is_empty() && value.to_str().is_ok())
}

/// The model's name without the version that its internal name ends with.
pub(crate) fn stem(internal: &str) -> &str {
    match internal.rsplit_once('_') {
        Some((name, version))
            if !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit()) =>
        {
            name
        }
        _ => internal,
    }
}

/// The request's id, made and set if it has none.
pub(crate) fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    if let Some(id) = headers.get(REQUEST_ID).filter(|id| !id.is_empty()) {
        return id.clone();
    }
    let id = HeaderValue::from_str(&seldon_telemetry::request_id())
        .expect("letters and digits make a header value");
    headers.insert(REQUEST_ID, id.clone());
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stem_drops_a_version_only() {
        for (internal, name) in [
            ("iris_1", "iris"),
            ("my_model_12", "my_model"),
            ("my_model", "my_model"),
            ("a_", "a_"),
        ] {
            assert_eq!(stem(internal), name);
        }
    }

    #[test]
    fn connection_headers_go_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-private, seldon-internal-model"),
            ("x-private", "1"),
            ("x-seldon-scope", "i:other"),
            ("x-seldon-absent", "1"),
            ("seldon-internal-model", "iris_1"),
            ("transfer-encoding", "chunked"),
            ("traceparent", "00-1-2-01"),
        ] {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        strip(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["seldon-internal-model", "traceparent"]);
    }

    #[test]
    fn a_long_route_goes_no_further() {
        let route = |count: usize| {
            let mut headers = HeaderMap::new();
            for _ in 0..2 {
                let value = ":iris_1:".repeat(count);
                headers.append(ROUTE, HeaderValue::from_str(&value).unwrap());
            }
            strip(&mut headers);
            headers.get_all(ROUTE).iter().count()
        };
        assert_eq!((route(1), route(256), route(257)), (2, 2, 0));
    }

    #[test]
    fn last_internal_name_counts() {
        let mut headers = HeaderMap::new();
        headers.append(INTERNAL_MODEL, HeaderValue::from_static("first_1"));
        headers.append(INTERNAL_MODEL, HeaderValue::from_static("last_1"));
        assert_eq!(internal(&headers), Some("last_1"));
    }
}
