//! A version that is live, with all that waits in it.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use seldon_records::Identity;

use crate::{batches::Open, graph::Graph, joins::Joins, timers::Due};

/// A retired version still serves what comes late, such as answers of steps beside the output, for this long.
const LATE_MS: i64 = 60_000;

#[derive(Debug)]
pub struct Live {
    pub graph: Arc<Graph>,
    pub is_retired: bool,
    /// Its order to end was carried out.
    pub is_removed: bool,
    pub last_ms: i64,
    pub joins: Vec<Joins>,
    pub batches: Vec<Option<Open>>,
    /// Requests that entered and were not answered yet, with the time when nobody waits for them any more.
    pub runs: HashMap<Identity, Due>,
    /// Until then requests may be in flight that another process began, nobody knows which.
    pub inherited_until: i64,
    /// Of those known, the ones that have shown no sign yet.
    pub inherited: HashSet<u32>,
    /// Records held in joins and batches.
    pub waiting: usize,
}

impl Live {
    pub fn new(graph: Graph) -> Self {
        let steps = graph.steps.len();
        Self {
            graph: Arc::new(graph),
            is_retired: false,
            is_removed: false,
            last_ms: i64::MIN,
            joins: std::iter::repeat_with(Joins::default).take(steps).collect(),
            batches: std::iter::repeat_with(|| None).take(steps).collect(),
            runs: HashMap::new(),
            inherited_until: i64::MIN,
            inherited: HashSet::new(),
            waiting: 0,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.is_retired && self.waiting == 0 && self.runs.is_empty()
    }

    pub fn is_gone(&self, now_ms: i64) -> bool {
        self.is_idle() && now_ms.saturating_sub(self.last_ms) > LATE_MS
    }

    /// Whether it holds nothing at all, not even what is left of joins that are over.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
            && self.runs.is_empty()
            && self.joins.iter().all(Joins::is_empty)
            && self.batches.iter().all(Option::is_none)
    }
}
