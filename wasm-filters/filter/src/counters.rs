//! Counters in the host's statistics: few, none per model, and five for each candidate of an experiment that is used.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use proxy_wasm::{hostcalls, types::MetricType};
use seldon_routing::{Choice, Decision, NamedBy, Rule};

/// Of the filter as a whole. Defining one again, in another worker or configuration, gives the same counter.
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

thread_local! {
    /// Every metric that this VM has defined. The host would keep one more id each time that one is defined again,
    /// and configurations come by the thousand.
    static DEFINED: RefCell<BTreeMap<String, u32>> = const { RefCell::new(BTreeMap::new()) };
}

/// A metric's id; none where the host has none to give.
fn define(kind: MetricType, name: String) -> Option<u32> {
    let known = DEFINED.try_with(|all| all.try_borrow().ok()?.get(&name).copied());
    if let Ok(Some(id)) = known {
        return Some(id);
    }
    let id = hostcalls::define_metric(kind, &name).ok()?;
    let _ = DEFINED.try_with(|all| all.try_borrow_mut().map(|mut all| all.insert(name, id)));
    Some(id)
}

#[derive(Clone, Copy, Default)]
struct Counter(Option<u32>);

impl Counter {
    fn define(name: impl Into<String>) -> Self {
        Self(define(MetricType::Counter, name.into()))
    }

    fn increment(self) {
        self.add(1);
    }

    fn add(self, more: u64) {
        if let Some(id) = self.0 {
            // A counter that cannot be written is no reason to fail a request.
            let _ = hostcalls::increment_metric(id, i64::try_from(more).unwrap_or(i64::MAX));
        }
    }
}

/// What is counted of a candidate.
#[derive(Clone, Copy)]
pub(crate) struct OfCandidate {
    begun: Counter,
    requests: Counter,
    errors: Counter,
    microseconds: Counter,
    milliseconds: Option<u32>,
}

impl OfCandidate {
    fn define(experiment: &str, candidate: &str) -> Self {
        let tags = format!(";e={experiment};c={candidate};");
        let name = |what: &str| format!("seldon_experiment_{what}{tags}");
        Self {
            begun: Counter::define(name("begun_total")),
            requests: Counter::define(name("requests_total")),
            errors: Counter::define(name("errors_total")),
            microseconds: Counter::define(name("microseconds_total")),
            milliseconds: define(MetricType::Histogram, name("duration_ms")),
        }
    }

    /// A request ended, so long after it was given to this candidate; none where that says nothing of the candidate.
    pub(crate) fn ended(self, failed: bool, after: Option<Duration>) {
        self.requests.increment();
        if failed {
            self.errors.increment();
        }
        let Some(after) = after else { return };
        self.microseconds
            .add(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
        if let Some(id) = self.milliseconds {
            let milliseconds = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            let _ = hostcalls::record_metric(id, milliseconds);
        }
    }
}

/// Counters of the candidates and mirrors of one configuration, by where that holds them; a candidate that gets no
/// request has none.
#[derive(Default)]
pub(crate) struct OfExperiments {
    candidates: RefCell<BTreeMap<usize, OfCandidate>>,
    mirrors: RefCell<BTreeMap<usize, Counter>>,
}

impl OfExperiments {
    /// Counts the request as begun, and its copy, if there is one; says where the answer is to be counted.
    pub(crate) fn chosen(&self, choice: &Choice<'_>) -> OfCandidate {
        let Choice {
            experiment,
            candidate,
            mirror,
            ..
        } = choice;
        if let Some((mirror, _)) = mirror {
            let define = || {
                let name = &mirror.name;
                Counter::define(format!(
                    "seldon_experiment_mirrored_total;e={experiment};c={name};"
                ))
            };
            kept(&self.mirrors, address(*mirror), define).increment();
        }
        let define = || OfCandidate::define(experiment, &candidate.name);
        let counters = kept(&self.candidates, address(*candidate), define);
        counters.begun.increment();
        counters
    }
}

fn address<T>(of: &T) -> usize {
    std::ptr::from_ref(of).addr()
}

fn kept<T: Copy>(
    all: &RefCell<BTreeMap<usize, T>>,
    address: usize,
    define: impl FnOnce() -> T,
) -> T {
    let known = all
        .try_borrow()
        .ok()
        .and_then(|all| all.get(&address).copied());
    known.unwrap_or_else(|| {
        let new = define();
        if let Ok(mut all) = all.try_borrow_mut() {
            all.insert(address, new);
        }
        new
    })
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
