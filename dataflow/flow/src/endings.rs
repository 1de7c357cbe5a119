//! What waits and is given up before its time.
use std::sync::Arc;

use crate::{
    Emit, Flow,
    flow::Window,
    graph::Sink,
    joins::{JoinKey, Slot, Verdict, judge},
    steps::{At, failure},
};

impl Flow {
    /// Joins hold twice what they may: the oldest is given up and its caller told. Whether there was one.
    pub(crate) fn give_up_oldest(&mut self, now_ms: i64, out: &mut Vec<Emit>) -> bool {
        let oldest = self
            .windows
            .pop_where(|window| !matches!(window, Window::Batch(..)));
        match oldest {
            Some(Window::Join(version, step, key)) => {
                let why = "the joins of the pipeline hold all they may: send it again, or raise the limit";
                self.give_up((version, step), &key, why, now_ms, out);
                true
            }
            Some(Window::Constants(version, step, id)) => {
                self.drop_constants((version, step), &id);
                true
            }
            _ => false,
        }
    }

    /// Lets go on what waits in a version for more to come and may go on without, as its pipeline is being removed: batches
    /// are sent as they are, joins that would go on when their window ends do now.
    pub fn hasten(&mut self, version: u32, now_ms: i64) -> Vec<Emit> {
        let mut out = Vec::new();
        for at in self.waiting_in(version) {
            self.flush(at, &mut out);
            for key in self.open(at) {
                let Some(live) = self.versions.get(&version) else {
                    break;
                };
                let step = &live.graph.steps[at.1];
                let goes_on = live.joins[at.1].entries.get(&key).is_some_and(|entry| {
                    let verdict = judge(step, &entry.slots, &entry.fired, true);
                    matches!(verdict, Verdict::Fire(_))
                });
                if goes_on {
                    self.close(at, &key, now_ms, &mut out);
                }
            }
        }
        self.counted(out)
    }

    /// Ends what waits in a version for sides that have not come, as its pipeline is being removed, and tells the callers.
    /// What waits beside the output ends as when its window does: its caller hears from the output.
    pub fn end_waiting(&mut self, version: u32, now_ms: i64) -> Vec<Emit> {
        let mut out = Vec::new();
        for at in self.waiting_in(version) {
            let Some(live) = self.versions.get(&version) else {
                break;
            };
            let is_beside = live.graph.beside[at.1];
            let constants: Vec<_> = live.joins[at.1].constants.keys().cloned().collect();
            for key in self.open(at) {
                if is_beside {
                    self.close(at, &key, now_ms, &mut out);
                } else {
                    let why = "the pipeline is being removed";
                    self.give_up(at, &key, why, now_ms, &mut out);
                }
            }
            for id in constants {
                self.drop_constants(at, &id);
            }
        }
        self.counted(out)
    }

    /// The steps of a version, where something waits in any.
    fn waiting_in(&self, version: u32) -> Vec<At> {
        let live = self.versions.get(&version);
        let live = live.filter(|live| live.waiting > 0);
        let steps = 0..live.map_or(0, |live| live.joins.len());
        steps.map(|step| (version, step)).collect()
    }

    /// Joins of a step that are not over.
    fn open(&self, at: At) -> Vec<JoinKey> {
        let live = self.versions.get(&at.0);
        let entries = live.into_iter().flat_map(|live| &live.joins[at.1].entries);
        let open = entries.filter(|(_, entry)| !entry.is_over);
        open.map(|(key, _)| key.clone()).collect()
    }

    fn counted(&mut self, out: Vec<Emit>) -> Vec<Emit> {
        self.held.check(&self.limits);
        self.counts.emitted += out.len() as u64;
        out
    }

    /// Gives a join up, with its window.
    fn give_up(&mut self, at: At, key: &JoinKey, why: &str, now_ms: i64, out: &mut Vec<Emit>) {
        // Where a side went on alone, that is an answer.
        let entry = self
            .entry(at, key)
            .filter(|entry| !entry.is_over && !entry.fired.contains(&true));
        let first = entry.and_then(|entry| entry.slots.iter().find_map(Slot::arrival).cloned());
        self.release(at, key);
        let Some(live) = self.versions.get_mut(&at.0) else {
            return;
        };
        if let Some(entry) = live.joins[at.1].entries.remove(key) {
            self.windows.remove(entry.due);
        }
        let Some(arrival) = first else {
            return;
        };
        let step = &live.graph.steps[at.1];
        let (foreign, name) = (step.kind == Sink::Entry, step.name.clone());
        let is_answer = live.graph.answers.is_some();
        self.counts.half_joins += 1;
        let text = format!(
            "step {name:?} of pipeline {:?} still waited for a side of this request: {why}",
            self.pipeline
        );
        let causes = vec![Arc::clone(&arrival.cause)];
        let failure = failure(&arrival, 503, text);
        if is_answer {
            // It becomes one when it was read back.
            let identity = self.failing(&arrival.identity, foreign);
            self.expect(at.0, &identity, now_ms);
        }
        self.fail(Some(at.0), failure, causes, foreign, out);
    }
}
