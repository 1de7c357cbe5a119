//! Envoy's bootstrap, filled in for a local system.

use anyhow::{Result, bail};

use crate::config::Config;

const TEMPLATE: &str = include_str!("../../../envoy/bootstrap.yaml");

/// Renders the bootstrap of one Envoy.
pub(crate) fn render(config: &Config, index: usize) -> Result<String> {
    let Some(ports) = config.ports.envoys.get(index) else {
        bail!("no ports for envoy-{index}")
    };
    let values = [
        ("SELDON_ENVOY_DATA_PORT", ports.data.to_string()),
        ("SELDON_ENVOY_STATUS_HOST", "0.0.0.0".to_owned()),
        ("SELDON_ENVOY_STATUS_PORT", ports.status.to_string()),
        ("SELDON_ENVOY_ADMIN_PORT", ports.admin.to_string()),
        ("SELDON_XDS_HOST", "127.0.0.1".to_owned()),
        ("SELDON_XDS_PORT", config.ports.scheduler.xds.to_string()),
        (
            "SELDON_FILTER_MODULE",
            config.parts.filter_module.display().to_string(),
        ),
    ];
    fill(TEMPLATE, &values)
}

fn fill(template: &str, values: &[(&str, String)]) -> Result<String> {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("${{{name}}}"), value);
    }
    if let Some((_, rest)) = text.split_once("${") {
        bail!(
            "the bootstrap names an unknown ${{{}",
            rest.split_inclusive('}').next().unwrap_or(rest)
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_placeholder_is_named() {
        let text = fill("a: ${NEW}", &[]).unwrap_err().to_string();
        assert!(text.contains("${NEW}"), "{text}");
    }
}
