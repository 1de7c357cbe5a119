//! Counters whose names are documented.
use std::{fmt, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeGaugeValue, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, counter},
};

/// A counter under exactly its registered name: the library would append `_total`, which some documented names lack and
/// others have already.
#[derive(Debug, Default)]
pub struct Plain<N>(counter::Counter<N, AtomicU64>)
where
    AtomicU64: counter::Atomic<N>;

/// Counts events.
pub type Count = Plain<u64>;
/// Sums up time.
pub type Seconds = Plain<f64>;

impl<N> Plain<N>
where
    AtomicU64: counter::Atomic<N>,
{
    /// Adds to it.
    pub fn add(&self, more: N) {
        self.0.inc_by(more);
    }
}

impl<N> Clone for Plain<N>
where
    AtomicU64: counter::Atomic<N>,
{
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<N> TypedMetric for Plain<N>
where
    AtomicU64: counter::Atomic<N>,
{
    const TYPE: MetricType = MetricType::Counter;
}

impl<N> EncodeMetric for Plain<N>
where
    AtomicU64: counter::Atomic<N>,
    N: EncodeGaugeValue,
{
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        encoder.encode_gauge(&self.0.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
