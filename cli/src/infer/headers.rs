//! Headers of a request, and headers as they are printed.
use anyhow::{Context as _, Result, bail};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::output;

pub(crate) const ROUTE: HeaderName = HeaderName::from_static("x-seldon-route");
const MODEL: HeaderName = HeaderName::from_static("seldon-model");

/// What every request of a command carries.
#[derive(Debug, Clone)]
pub(crate) struct Headers {
    model: HeaderValue,
    given: Vec<(HeaderName, HeaderValue)>,
}

impl Headers {
    /// Takes the name to ask for and `key=value` pairs.
    pub(crate) fn new(model: &str, pairs: &[String]) -> Result<Self> {
        let model =
            HeaderValue::from_str(model).with_context(|| format!("\"{model}\" is not a name"))?;
        let given = pairs
            .iter()
            .map(|pair| header(pair))
            .collect::<Result<_>>()?;
        Ok(Self { model, given })
    }

    /// The headers of one request; those the user gave replace ours.
    pub(crate) fn with_routes(&self, routes: &[String]) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(MODEL, self.model.clone());
        for route in routes {
            if let Ok(value) = HeaderValue::from_str(route) {
                map.append(ROUTE, value);
            }
        }
        for (name, value) in &self.given {
            map.insert(name.clone(), value.clone());
        }
        map
    }
}

fn header(pair: &str) -> Result<(HeaderName, HeaderValue)> {
    let Some((key, value)) = pair.split_once('=') else {
        bail!("header \"{pair}\" is not of the form key=value");
    };
    if ["host", "authority", ":authority"].contains(&key.to_ascii_lowercase().as_str()) {
        bail!("header {key} is set by --authority");
    }
    let name = HeaderName::from_bytes(key.as_bytes())
        .with_context(|| format!("\"{key}\" is not a header name"))?;
    let value = HeaderValue::from_str(value)
        .with_context(|| format!("header {key} has a value that cannot be sent"))?;
    Ok((name, value))
}

/// Prints headers as Go prints its map: `> Key:[one two]`.
pub(crate) fn print(mark: &str, headers: &HeaderMap, name: fn(&str) -> String) -> Result<()> {
    for key in headers.keys() {
        let values: Vec<_> = headers
            .get_all(key)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        output::line(format_args!(
            "{mark} {}:[{}]",
            name(key.as_str()),
            values.join(" ")
        ))?;
    }
    Ok(())
}

/// `x-seldon-route` as HTTP/1.1 writes it: `X-Seldon-Route`.
pub(crate) fn canonical(name: &str) -> String {
    let mut start = true;
    name.chars()
        .map(|symbol| {
            let upper = if start {
                symbol.to_ascii_uppercase()
            } else {
                symbol
            };
            start = symbol == '-';
            upper
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_headers_replace_ours_and_host_is_refused() {
        let pairs = ["X-Foo=a=b".to_owned(), "seldon-model=other".to_owned()];
        let headers = Headers::new("iris", &pairs)
            .expect("valid")
            .with_routes(&[":a_1:".to_owned(), ":b_1:".to_owned()]);
        assert_eq!(headers["x-foo"], "a=b");
        assert_eq!(headers["seldon-model"], "other");
        assert_eq!(headers.get_all(ROUTE).iter().count(), 2);
        for wrong in ["Host=x", "authority=x", "nothing", "a b=c", "a=\n"] {
            assert!(
                Headers::new("iris", &[wrong.to_owned()]).is_err(),
                "{wrong}"
            );
        }
        assert_eq!(
            canonical("x-envoy-upstream-service-time"),
            "X-Envoy-Upstream-Service-Time"
        );
    }
}
