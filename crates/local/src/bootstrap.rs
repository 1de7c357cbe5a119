//! Envoy's bootstrap, filled in for a local system.

use anyhow::{Result, bail};

use crate::config::Config;

const TEMPLATE: &str = include_str!("../../../envoy/bootstrap.yaml");
const TLS: &str = include_str!("../../../envoy/xds-tls.yaml");

/// Renders the bootstrap of one Envoy.
pub(crate) fn render(config: &Config, index: usize) -> Result<String> {
    let Some(ports) = config.ports.envoys.get(index) else {
        bail!("no ports for envoy-{index}")
    };
    let module = if config.without_filter.contains(&index) {
        String::new()
    } else {
        config.parts.filter_module.display().to_string()
    };
    let mut values = vec![
        ("SELDON_ENVOY_DATA_PORT", ports.data.to_string()),
        ("SELDON_ENVOY_STATUS_HOST", "0.0.0.0".to_owned()),
        ("SELDON_ENVOY_STATUS_PORT", ports.status.to_string()),
        ("SELDON_ENVOY_ADMIN_PORT", ports.admin.to_string()),
        ("SELDON_XDS_HOST", "127.0.0.1".to_owned()),
        ("SELDON_XDS_PORT", config.scheduler_seen().xds.to_string()),
        ("SELDON_FILTER_MODULE", module),
    ];
    let Some(tls) = &config.xds_tls else {
        return fill(TEMPLATE, &values);
    };
    let files = [
        ("ENVOY_XDS_CLIENT_TLS_CRT", &tls.certificate),
        ("ENVOY_XDS_CLIENT_TLS_KEY", &tls.key),
        ("ENVOY_XDS_SERVER_TLS_CA", &tls.authority),
    ];
    values.extend(files.map(|(name, path)| (name, path.display().to_string())));
    fill(&with_tls()?, &values)
}

fn with_tls() -> Result<String> {
    let Some((before, after)) = TEMPLATE.split_once("    # With TLS") else {
        bail!("the bootstrap has no place for TLS")
    };
    Ok(format!("{before}{TLS}    #{after}"))
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
    fn tls_belongs_to_the_scheduler_s_cluster() {
        let text = with_tls().unwrap();
        let (before, after) = text.split_once("transport_socket:").unwrap();
        assert!(before.contains("name: xds_cluster") && !before.contains("name: admin"));
        assert!(after.contains("connection_keepalive") && !after.contains("transport_socket:"));
    }

    #[test]
    fn an_unknown_placeholder_is_named() {
        let text = fill("a: ${NEW}", &[]).unwrap_err().to_string();
        assert!(text.contains("${NEW}"), "{text}");
    }
}
