//! `seldon explain route`: where a request would go, and why.
use anyhow::{Context as _, Result, bail};
use seldon_proto::introspect::{
    ExplainRouteRequest, ExplainRouteResponse, Header, RouteChance, RouteEnvoy,
};

use super::bars::{columns, share};
use crate::output::row;

/// The request, from headers as `name=value` or `name: value`.
pub(crate) fn request(name: String, headers: &[String]) -> Result<ExplainRouteRequest> {
    let headers = headers
        .iter()
        .map(|text| header(text))
        .collect::<Result<_>>()?;
    Ok(ExplainRouteRequest { name, headers })
}

/// A name has neither sign in it, so the first of either ends it.
fn header(text: &str) -> Result<Header> {
    let Some((name, value)) = text.split_once(['=', ':']) else {
        bail!("header \"{text}\" is neither of the form name=value nor name: value");
    };
    let name = http::HeaderName::from_bytes(name.trim().as_bytes())
        .with_context(|| format!("\"{}\" of \"{text}\" is not a header name", name.trim()))?;
    Ok(Header {
        name: name.to_string(),
        value: value.trim().to_owned(),
    })
}

/// The page.
pub(crate) fn text(answer: &ExplainRouteResponse) -> String {
    let rule = match answer.experiment.as_str() {
        "" => answer.rule.clone(),
        experiment => format!("{} (experiment {experiment})", answer.rule),
    };
    let mut parts = vec![columns(
        "",
        &[
            row([&"request", &answer.name]),
            row([&"rule", &rule]),
            row([&"reason", &answer.reason]),
        ],
    )];
    parts.push(match answer.chances.is_empty() {
        true => "nobody answers".to_owned(),
        false => format!("answered by\n{}", chances(&answer.chances)),
    });
    if !answer.copies.is_empty() {
        parts.push(format!("a copy goes to\n{}", chances(&answer.copies)));
    }
    parts.push(match answer.envoys.is_empty() {
        true => "no Envoy has connected".to_owned(),
        false => format!("Envoys\n{}", envoys(&answer.envoys)),
    });
    let parts: Vec<_> = parts.iter().map(|part| part.trim_end()).collect();
    parts.join("\n\n")
}

fn chances(chances: &[RouteChance]) -> String {
    let rows: Vec<_> = chances
        .iter()
        .map(|chance| row([&chance.name, &chance.version, &share(chance.percent)]))
        .collect();
    columns("  ", &rows)
}

fn envoys(envoys: &[RouteEnvoy]) -> String {
    let rows: Vec<_> = envoys
        .iter()
        .map(|envoy| {
            let state = match (envoy.connected, envoy.acknowledged) {
                (true, true) => "has acknowledged it",
                (true, false) => "has not acknowledged it",
                (false, true) => "had acknowledged it, not connected now",
                (false, false) => "had not acknowledged it, not connected now",
            };
            let state = match envoy.detail.as_str() {
                "" => state.to_owned(),
                detail => format!("{state}: {detail}"),
            };
            row([
                &format_args!("stream {}", envoy.stream),
                &envoy.address,
                &state,
            ])
        })
        .collect();
    columns("  ", &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_in_both_forms() {
        for text in [
            "X-Seldon-Route=:iris_1:",
            "x-seldon-route: :iris_1:",
            "x-seldon-route::iris_1:",
        ] {
            let header = header(text).expect("valid");
            assert_eq!(
                (header.name.as_str(), header.value.as_str()),
                ("x-seldon-route", ":iris_1:"),
                "{text}"
            );
        }
        assert_eq!(header("x-user=a: b=c").expect("valid").value, "a: b=c");
        for wrong in ["x-user", "=a", ":authority=x", "a b=c", ""] {
            assert!(header(wrong).is_err(), "{wrong}");
        }
    }
}
