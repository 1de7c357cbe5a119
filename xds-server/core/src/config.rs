//! The rules' settings.
use std::time::Duration;

use seldon_records::Names;

/// What is waited for after a start, before anything is moved or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synchronisation {
    /// The servers known from the store, or this long. With none known there is nothing to wait for. For local use.
    AfterTimeout(Duration),
    /// The servers known from the store, or as many replicas as the first `ServerNotify` names, or this long.
    FirstServers { timeout: Duration },
}

/// The rules' settings; all times are spans.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub synchronisation: Synchronisation,
    /// How long a replica whose stream is lost keeps its endpoints, unless they are a model's last.
    pub suspect: Duration,
    /// How long a stream may be lost before replacements are placed; at most `suspect`.
    pub replace_after: Duration,
    /// An agent's own limit for a load, and for an unload.
    pub load_timeout: Duration,
    pub unload_timeout: Duration,
    /// A drain is answered at the latest after this.
    pub drain_timeout: Duration,
    /// The wait after the first failure to load or unload; doubles with each.
    pub retry_first: Duration,
    /// Failures in a row after which a load waits for a new agent or a new version.
    pub retry_limit: u32,
    /// How long a model that is gone is still shown, and kept from being revived by an agent that was away.
    pub keep_terminated: Duration,
    /// How topics are called.
    pub names: Names,
    /// Model gateways are told only of models that a pipeline uses or that have settings of dataflow.
    pub topics_on_demand: bool,
    /// How many owners a pipeline may have where several are of use (`maxShardCountMultiplier`).
    pub shards: u32,
    /// Workers beyond these numbers, times `shards`, own nothing; 0 means all.
    pub model_gateways_max: u32,
    pub pipeline_gateways_max: u32,
    /// A worker's own limit for an order.
    pub order_timeout: Duration,
    /// Models that have bounds are scaled by what agents see of their requests.
    pub model_autoscaling: bool,
    /// The least time after a change of a model's replicas before one is added, and before one is taken.
    pub scale_up_pause: Duration,
    pub scale_down_pause: Duration,
    /// How long a model that may have no replica must not have been asked for before it has none; `None` is never.
    pub scale_to_zero: Option<Duration>,
    /// Servers that have bounds are scaled by what their models need.
    pub server_autoscaling: bool,
    /// How long a model must have lacked memory before its server is asked to grow: what is being unloaded frees some.
    pub scale_server_up_pause: Duration,
    /// How long a replica of a server must have held nothing before the server is asked to do without it.
    pub scale_server_down_pause: Duration,
    /// Of a hundred times that a model leaves a replica, how often, as a share, models may be packed onto fewer; 0 for
    /// never.
    pub server_packing: f64,
}

impl Config {
    /// Settings with documented or generous times.
    pub fn new(synchronisation: Synchronisation) -> Config {
        Config {
            synchronisation,
            suspect: Duration::from_secs(60),
            replace_after: Duration::from_secs(5),
            load_timeout: Duration::from_secs(2 * 3600),
            unload_timeout: Duration::from_secs(15 * 60),
            drain_timeout: Duration::from_secs(100),
            retry_first: Duration::from_secs(5),
            retry_limit: 5,
            keep_terminated: Duration::from_secs(3600),
            names: Names::new(None, "", None).expect("the default prefix is valid"),
            topics_on_demand: false,
            shards: 1,
            model_gateways_max: 0,
            pipeline_gateways_max: 0,
            order_timeout: Duration::from_secs(120),
            model_autoscaling: false,
            scale_up_pause: Duration::from_secs(10),
            scale_down_pause: Duration::from_secs(60),
            scale_to_zero: None,
            server_autoscaling: true,
            scale_server_up_pause: Duration::from_secs(5),
            scale_server_down_pause: Duration::from_secs(60),
            server_packing: 0.0,
        }
    }

    pub(crate) fn most_model_gateways(&self) -> u32 {
        self.model_gateways_max.saturating_mul(self.shards)
    }

    pub(crate) fn most_pipeline_gateways(&self) -> u32 {
        self.pipeline_gateways_max.saturating_mul(self.shards)
    }

    /// The wait after `failures` failures in a row.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        self.retry_first * 2u32.pow(failures.saturating_sub(1).min(6))
    }
}
