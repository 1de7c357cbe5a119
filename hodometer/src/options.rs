//! Flags and environment, named as documented. A flag beats the environment, which beats the default.
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;

use crate::{target::Target, usage::Level};

/// Counts what is in use, and publishes it where it is told to: nowhere without a publish address.
#[derive(Clone, Debug, Parser)]
#[command(name = "seldon-hodometer", version)]
pub struct Options {
    /// Host of the scheduler.
    #[arg(long, env = "SCHEDULER_HOST", default_value = "seldon-scheduler")]
    pub scheduler_host: String,
    /// Its port without TLS [default: 9004]
    #[arg(long, env = "SCHEDULER_PLAINTXT_PORT")]
    pub scheduler_plaintxt_port: Option<u16>,
    /// The same by its older name.
    #[arg(long, env = "SCHEDULER_PORT", hide = true)]
    pub scheduler_port: Option<u16>,
    /// Used instead with CONTROL_PLANE_SECURITY_PROTOCOL=SSL.
    #[arg(long, env = "SCHEDULER_TLS_PORT", default_value_t = 9044)]
    pub scheduler_tls_port: u16,
    /// How much is told; each level holds the ones before it.
    #[arg(
        long,
        env = "METRICS_LEVEL",
        value_enum,
        ignore_case = true,
        default_value_t
    )]
    pub metrics_level: Level,
    /// trace, debug, info, warn or error.
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// A random UUID that tells this installation from others [default: a new one at each start]
    #[arg(long, env = "CLUSTER_ID")]
    pub cluster_id: Option<String>,
    /// Where to publish; nothing leaves without this or the next.
    // Not shown with its value, which may hold a secret.
    #[arg(long, env = "PUBLISH_URL", hide_env_values = true)]
    pub publish_url: Option<String>,
    /// More addresses, separated by commas.
    #[arg(long, env = "EXTRA_PUBLISH_URLS", hide_env_values = true)]
    pub extra_publish_urls: Option<String>,
    /// Time from one snapshot to the next.
    #[arg(
        long,
        env = "PUBLISH_INTERVAL_SECONDS",
        default_value_t = 8 * 3600,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub publish_interval_seconds: u64,
    /// How long an address may take.
    #[arg(
        long,
        env = "PUBLISH_TIMEOUT_SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub publish_timeout_seconds: u64,
    /// In Kubernetes, the namespace of the installation.
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    pub namespace: String,
}

impl Options {
    pub(crate) fn plaintxt_port(&self) -> u16 {
        let given = self.scheduler_plaintxt_port.or(self.scheduler_port);
        given.unwrap_or(9004)
    }

    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs(self.publish_interval_seconds)
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.publish_timeout_seconds)
    }

    /// Every address to publish to, once each.
    pub(crate) fn targets(&self) -> anyhow::Result<Vec<Target>> {
        let one = self.publish_url.iter();
        let one = one.map(|text| ("PUBLISH_URL".to_owned(), text.as_str()));
        let more = self.extra_publish_urls.as_deref().unwrap_or_default();
        let more = more.split(',').enumerate();
        let more = more.map(|(at, text)| (format!("EXTRA_PUBLISH_URLS, address {}", at + 1), text));
        let given = one.chain(more).map(|(place, text)| (place, text.trim()));
        let mut targets = Vec::new();
        // A chart that has nothing to set sets nothing but the name.
        for (place, text) in given.filter(|(_, text)| !text.is_empty()) {
            let target: Target = text.parse().with_context(|| place)?;
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        Ok(targets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flag beats the environment, so that a test's own environment does not matter.
    fn targets(publish: &str, extra: &str) -> anyhow::Result<Vec<String>> {
        let options = Options::parse_from([
            "seldon-hodometer",
            &format!("--publish-url={publish}"),
            &format!("--extra-publish-urls={extra}"),
        ]);
        let targets = options.targets()?;
        Ok(targets.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_of_both_variables_are_taken_once_each() {
        let all = targets("http://a", "http://b, https://c/x ,,http://a/track").unwrap();
        assert_eq!(all, ["http://a/track", "http://b/track", "https://c/x"]);
        // Only the variable that is a list is taken apart at commas.
        assert_eq!(targets("http://a/x,y", "").unwrap(), ["http://a/x,y"]);
        assert_eq!(targets("", "").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_address_that_is_none_is_named_by_its_place() {
        let error = targets("", "http://a,b").unwrap_err();
        let error = format!("{error:#}");
        assert_eq!(
            error,
            "EXTRA_PUBLISH_URLS, address 2: is no http:// or https:// address"
        );
    }

    #[test]
    fn the_older_name_of_the_port_is_known() {
        let port = |flags: &[&str]| {
            let words = ["seldon-hodometer"].iter().chain(flags);
            Options::parse_from(words).plaintxt_port()
        };
        assert_eq!(port(&["--scheduler-port=1"]), 1);
        assert_eq!(
            port(&["--scheduler-port=1", "--scheduler-plaintxt-port=2"]),
            2
        );
    }
}
