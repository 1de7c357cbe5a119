//! What waits and is given up before its time.
use std::sync::Arc;

use crate::{
    Emit, Flow,
    flow::Window,
    graph::Sink,
    joins::{JoinKey, Slot},
    steps::{At, failure},
};

impl Flow {
    /// Joins hold twice what they may: the oldest is given up and its caller told. Whether there was one.
    pub(crate) fn give_up_oldest(&mut self, out: &mut Vec<Emit>) -> bool {
        let oldest = self
            .windows
            .pop_where(|window| !matches!(window, Window::Batch(..)));
        match oldest {
            Some(Window::Join(version, step, key)) => {
                let why = "the joins of the pipeline hold all they may: send it again, or raise the limit";
                self.give_up((version, step), &key, why, out);
                true
            }
            Some(Window::Constants(version, step, id)) => {
                self.drop_constants((version, step), &id);
                true
            }
            _ => false,
        }
    }

    /// Ends what waits in a version for more to come, as its pipeline is being removed: joins that are open are given up
    /// and their callers told, and batches are sent as they are.
    pub fn end_waiting(&mut self, version: u32) -> Vec<Emit> {
        let mut out = Vec::new();
        let steps = match self.versions.get(&version) {
            Some(live) if live.waiting > 0 => live.joins.len(),
            _ => return out,
        };
        for at in (0..steps).map(|step| (version, step)) {
            self.flush(at, &mut out);
            let Some(live) = self.versions.get(&version) else {
                break;
            };
            let joins = &live.joins[at.1];
            let open = joins.entries.iter().filter(|(_, entry)| !entry.is_over);
            let open: Vec<JoinKey> = open.map(|(key, _)| key.clone()).collect();
            let constants: Vec<_> = joins.constants.keys().cloned().collect();
            for key in open {
                if let Some(due) = self.entry(at, &key).map(|entry| entry.due) {
                    self.windows.remove(due);
                }
                self.give_up(at, &key, "the pipeline is being removed", &mut out);
            }
            for id in constants {
                self.drop_constants(at, &id);
            }
        }
        self.held.check(&self.limits);
        self.counts.emitted += out.len() as u64;
        out
    }

    /// Gives a join up that has no window any more.
    fn give_up(&mut self, at: At, key: &JoinKey, why: &str, out: &mut Vec<Emit>) {
        // Where a side went on alone, that is an answer.
        let entry = self
            .entry(at, key)
            .filter(|entry| !entry.is_over && !entry.fired.contains(&true));
        let first = entry.and_then(|entry| entry.slots.iter().find_map(Slot::arrival).cloned());
        self.release(at, key);
        let Some(live) = self.versions.get_mut(&at.0) else {
            return;
        };
        live.joins[at.1].entries.remove(key);
        let Some(arrival) = first else {
            return;
        };
        let step = &live.graph.steps[at.1];
        let (foreign, name) = (step.kind == Sink::Entry, step.name.clone());
        self.counts.half_joins += 1;
        let text = format!(
            "step {name:?} of pipeline {:?} still waited for a side of this request: {why}",
            self.pipeline
        );
        let causes = vec![Arc::clone(&arrival.cause)];
        let failure = failure(&arrival, 503, text);
        self.fail(Some(at.0), failure, causes, foreign, out);
    }
}
