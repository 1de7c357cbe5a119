//! Counters in the host's statistics; few, and none per model.

use proxy_wasm::{hostcalls, types::MetricType};
use seldon_routing::{Decision, NamedBy, Rule};

/// Ids of the host's counters. Defining one again, in another worker or configuration, gives the same counter.
#[derive(Default)]
pub(crate) struct Counters {
    entered: Counter,
    named_by_path: Counter,
    named_by_message: Counter,
    held: Counter,
    left: Counter,
    split: Counter,
    sticky: Counter,
    cohort: Counter,
    mirrored: Counter,
}

#[derive(Default)]
struct Counter(Option<u32>);

impl Counter {
    fn define(name: &str) -> Self {
        Self(hostcalls::define_metric(MetricType::Counter, name).ok())
    }

    fn increment(&self) {
        if let Some(id) = self.0 {
            // A counter that cannot be written is no reason to fail a request.
            let _ = hostcalls::increment_metric(id, 1);
        }
    }
}

impl Counters {
    pub(crate) fn define() -> Self {
        Self {
            entered: Counter::define("seldon_filter_entered_total"),
            named_by_path: Counter::define("seldon_filter_named_by_path_total"),
            named_by_message: Counter::define("seldon_filter_named_by_message_total"),
            held: Counter::define("seldon_filter_held_total"),
            left: Counter::define("seldon_filter_left_total"),
            split: Counter::define("seldon_filter_split_total"),
            sticky: Counter::define("seldon_filter_sticky_total"),
            cohort: Counter::define("seldon_filter_cohort_total"),
            mirrored: Counter::define("seldon_filter_mirrored_total"),
        }
    }

    /// A request came in.
    pub(crate) fn entered(&self) {
        self.entered.increment();
    }

    /// A request is held at its headers.
    pub(crate) fn held(&self) {
        self.held.increment();
    }

    /// A request was decided upon.
    pub(crate) fn count(&self, decision: &Decision<'_>) {
        let steering = match decision {
            Decision::Leave => return self.left.increment(),
            Decision::AwaitMessage => return,
            Decision::Steer(steering) => steering,
        };
        match steering.named_by {
            NamedBy::Header => {}
            NamedBy::Path => self.named_by_path.increment(),
            NamedBy::Message => self.named_by_message.increment(),
        }
        match steering.rule {
            Rule::Plain => {}
            Rule::Sticky => self.sticky.increment(),
            Rule::Cohort => self.cohort.increment(),
            Rule::Split => self.split.increment(),
        }
        if steering.choice.is_some_and(|c| c.mirror.is_some()) {
            self.mirrored.increment();
        }
    }
}
