//! What a step does with the records that feed it.
use std::sync::Arc;

use seldon_records::{Identity, Visits, header};

use crate::{
    Emit, Flow,
    arrival::{Arrival, Failure},
    batches::{Batched, Open},
    flow::Window,
    graph::{Graph, Sink, Step},
    joins::{Constants, Entry, Fired, JoinKey, Slot, Verdict, join_id, judge, round},
    rows, tensors,
    write::{self, Ready},
};

/// How long late sides of an outer join are expected.
const LATE_MS: i64 = 60_000;

/// Version and step.
pub(crate) type At = (u32, usize);

impl Flow {
    fn graph(&self, at: At) -> Option<Arc<Graph>> {
        self.versions.get(&at.0).map(|live| live.graph.clone())
    }

    /// A record comes to a step.
    pub(crate) fn arrive(
        &mut self,
        at: At,
        port: usize,
        arrival: &Arc<Arrival>,
        now_ms: i64,
        out: &mut Vec<Emit>,
    ) {
        let Some(graph) = self.graph(at) else {
            return;
        };
        let step = &graph.steps[at.1];
        let is_single = step.ports.len() == 1;
        let mut slot = Slot::Here(arrival.clone());
        if !finds(step, port, arrival) {
            self.counts.without_tensors += 1;
            if is_single || !step.ports[port].once {
                return;
            }
            slot = Slot::Absent;
        }
        if is_single {
            match judge(step, &[slot], &[false], false) {
                Verdict::Fire(fired) => self.fire(at, fired, now_ms, out),
                Verdict::Wait | Verdict::Dead => self.counts.without_tensors += 1,
            }
        } else if step.is_any() && step.triggers.is_empty() {
            if let Slot::Here(arrival) = slot {
                let data = vec![(port, arrival)];
                let gates = Vec::new();
                self.fire(at, Fired { data, gates }, now_ms, out);
            }
        } else if step.ports[port].constant {
            self.arrive_constant(at, port, &join_id(step, arrival), slot, now_ms, out);
        } else {
            self.arrive_join(at, step, port, arrival, slot, now_ms, out);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn arrive_join(
        &mut self,
        at: At,
        step: &Step,
        port: usize,
        arrival: &Arc<Arrival>,
        slot: Slot,
        now_ms: i64,
        out: &mut Vec<Emit>,
    ) {
        let Some(live) = self.versions.get_mut(&at.0) else {
            return;
        };
        let joins = &mut live.joins[at.1];
        let id = join_id(step, arrival);
        let (key, is_known) = joins.find(&id, &round(step, arrival), port);
        if !is_known {
            let until = now_ms.saturating_add(step.window_ms);
            let due = self
                .windows
                .add(until, Window::Join(at.0, at.1, key.clone()));
            let mut slots = vec![Slot::Waiting; step.ports.len()];
            for (port, slot) in joins
                .constants
                .get(&id)
                .into_iter()
                .flat_map(|found| &found.slots)
            {
                slots[*port] = slot.clone();
            }
            let fired = vec![false; slots.len()];
            let entry = Entry {
                slots,
                fired,
                is_over: false,
                due,
            };
            joins.entries.insert(key.clone(), entry);
        }
        if let Some(entry) = joins.entries.get_mut(&key) {
            if entry.is_over {
                entry.slots[port] = Slot::Used;
            } else {
                if let Slot::Here(arrival) = &slot {
                    live.waiting += 1;
                    self.held.add(arrival);
                }
                entry.slots[port] = slot;
            }
        }
        self.settle(at, &key, false, now_ms, out);
    }

    fn arrive_constant(
        &mut self,
        at: At,
        port: usize,
        id: &Identity,
        slot: Slot,
        now_ms: i64,
        out: &mut Vec<Emit>,
    ) {
        let Some(live) = self.versions.get_mut(&at.0) else {
            return;
        };
        let window_ms = live.graph.steps[at.1].window_ms;
        let joins = &mut live.joins[at.1];
        let until = now_ms.saturating_add(window_ms);
        let windows = &mut self.windows;
        let constants = joins.constants.entry(id.clone()).or_insert_with(|| {
            windows.add(until, Window::Constants(at.0, at.1, id.clone()));
            Constants { slots: Vec::new() }
        });
        if constants.slots.iter().any(|(known, _)| *known == port) {
            return;
        }
        constants.slots.push((port, slot.clone()));
        if let Slot::Here(arrival) = &slot {
            live.waiting += 1;
            self.held.add(arrival);
        }
        for key in joins.of(id) {
            if let Some(entry) = self.entry(at, &key).filter(|entry| !entry.is_over) {
                entry.slots[port] = slot.clone();
            }
            self.settle(at, &key, false, now_ms, out);
        }
    }

    pub(crate) fn entry(&mut self, at: At, key: &JoinKey) -> Option<&mut Entry> {
        self.versions.get_mut(&at.0)?.joins[at.1]
            .entries
            .get_mut(key)
    }

    /// Lets a join go on, end or wait.
    fn settle(&mut self, at: At, key: &JoinKey, closed: bool, now_ms: i64, out: &mut Vec<Emit>) {
        let Some(graph) = self.graph(at) else {
            return;
        };
        let step = &graph.steps[at.1];
        let Some(entry) = self.entry(at, key) else {
            return;
        };
        let due = entry.due;
        let is_last = closed || !entry.slots.iter().any(|slot| matches!(slot, Slot::Waiting));
        if !entry.is_over {
            let mut fire = None;
            match judge(step, &entry.slots, &entry.fired, closed) {
                Verdict::Wait => {}
                Verdict::Dead => entry.is_over = true,
                Verdict::Fire(fired) => {
                    fired
                        .data
                        .iter()
                        .for_each(|(port, _)| entry.fired[*port] = true);
                    entry.is_over = is_last || !step.is_any();
                    fire = Some(fired);
                }
            }
            let has_fired = entry.fired.contains(&true);
            match fire {
                Some(fired) if step.is_any() => {
                    fired
                        .apart()
                        .for_each(|fired| self.fire(at, fired, now_ms, out));
                }
                Some(fired) => self.fire(at, fired, now_ms, out),
                None => {}
            }
            let is_over = self.entry(at, key).is_some_and(|entry| entry.is_over);
            if closed && !has_fired {
                self.counts.half_joins += 1;
            }
            if is_over || closed {
                self.release(at, key);
            }
            if closed && has_fired && !step.is_any() {
                return self.outlast(at, key, now_ms);
            }
        }
        if is_last && self.entry(at, key).is_some_and(|entry| entry.is_over) {
            self.windows.remove(due);
            if let Some(live) = self.versions.get_mut(&at.0) {
                live.joins[at.1].entries.remove(key);
            }
        }
    }

    /// Sides that come after the window of an outer join belong to what went on without them.
    fn outlast(&mut self, at: At, key: &JoinKey, now_ms: i64) {
        let window = Window::Join(at.0, at.1, key.clone());
        let due = self.windows.add(now_ms.saturating_add(LATE_MS), window);
        if let Some(entry) = self.entry(at, key) {
            entry.due = due;
        }
    }

    /// A join is over: what it held is free.
    pub(crate) fn release(&mut self, at: At, key: &JoinKey) {
        let Some(live) = self.versions.get_mut(&at.0) else {
            return;
        };
        let step = &live.graph.steps[at.1];
        let Some(entry) = live.joins[at.1].entries.get_mut(key) else {
            return;
        };
        entry.is_over = true;
        for (slot, port) in entry.slots.iter_mut().zip(&step.ports) {
            if let Slot::Here(arrival) = slot {
                if !port.constant {
                    live.waiting -= 1;
                    self.held.remove(arrival);
                }
                *slot = Slot::Used;
            }
        }
    }

    /// A join's window is over, or is ended before its time.
    pub(crate) fn close(&mut self, at: At, key: &JoinKey, now_ms: i64, out: &mut Vec<Emit>) {
        if let Some(due) = self.entry(at, key).map(|entry| entry.due) {
            self.windows.remove(due);
        }
        self.settle(at, key, true, now_ms, out);
    }

    pub(crate) fn drop_constants(&mut self, at: At, id: &Identity) {
        let Some(live) = self.versions.get_mut(&at.0) else {
            return;
        };
        let Some(constants) = live.joins[at.1].constants.remove(id) else {
            return;
        };
        for arrival in constants
            .slots
            .iter()
            .filter_map(|(_, slot)| slot.arrival())
        {
            live.waiting -= 1;
            self.held.remove(arrival);
        }
    }

    /// A step goes on with what came together.
    fn fire(&mut self, at: At, fired: Fired, now_ms: i64, out: &mut Vec<Emit>) {
        let Some(graph) = self.graph(at) else {
            return;
        };
        let step = &graph.steps[at.1];
        let all = || {
            fired
                .data
                .iter()
                .map(|(_, arrival)| arrival)
                .chain(&fired.gates)
        };
        let Some(first) = all().next() else {
            return;
        };
        let foreign = step.kind == Sink::Entry;
        let causes = write::causes(all());
        let message = match gather(step, &fired) {
            Ok(message) => message,
            Err(error) => {
                let text = format!(
                    "the inputs of step {:?} cannot be put together: {error}",
                    step.name
                );
                return self.fail(Some(at.0), failure(first, 500, text), causes, foreign, out);
            }
        };
        let mut headers = write::joined(all().map(|arrival| &arrival.headers));
        let mut visits = Visits::default();
        let mut identity = first.identity.clone();
        if foreign {
            identity = run_of(all(), &self.pipeline);
            headers.remove(header::DEADLINE);
        } else {
            all().for_each(|arrival| visits.merge(&arrival.visits));
            if step.is_any() {
                // One run may come here on several ways: they are different visits.
                for (port, _) in &fired.data {
                    visits.add(&format!("{}.{}", step.name, step.ports[*port].source));
                }
            }
        }
        if graph.cyclic && step.kind == Sink::Model {
            let visit = visits.add(&step.name);
            if visit.saturating_sub(1) > graph.max_revisits {
                let text = format!(
                    "step {:?} was reached again more often than maxStepRevisits of pipeline {:?} allows ({})",
                    step.name, self.pipeline, graph.max_revisits
                );
                return self.fail(Some(at.0), failure(first, 500, text), causes, foreign, out);
            }
        }
        let repeat = all().any(|arrival| arrival.repeat);
        write::sign(
            &mut headers,
            &self.pipeline,
            Some(at.0),
            &identity,
            &visits,
            repeat,
        );
        let waits = |arrival: &Arc<Arrival>| (arrival.cause.clone(), step.place(arrival));
        let places = match step.batch {
            Some(_) => all().map(waits).collect(),
            None => Vec::new(),
        };
        let ready = Ready {
            key: first.key.clone(),
            headers,
            message,
            causes,
            places,
        };
        match step.batch {
            Some(_) => self.batch(at, step, ready, now_ms, out),
            None => out.push(write::emit(step, ready)),
        }
        match step.kind {
            Sink::Output => self.end(at.0, &identity, now_ms),
            Sink::Entry => self.expect(at.0, &identity, now_ms),
            Sink::Model => {}
        }
    }

    fn batch(&mut self, at: At, step: &Step, ready: Ready, now_ms: i64, out: &mut Vec<Emit>) {
        let (Some(batch), Some(live)) = (step.batch, self.versions.get_mut(&at.0)) else {
            return;
        };
        let Some(rows) = rows::rows(&ready.message) else {
            return out.push(write::emit(step, ready));
        };
        let windows = &mut self.windows;
        let open = live.batches[at.1].get_or_insert_with(|| {
            let until = now_ms.saturating_add(batch.window_ms);
            Open::new(windows.add(until, Window::Batch(at.0, at.1)))
        });
        match open.add(batch, ready, rows) {
            Batched::Alone(ready) => out.push(write::emit(step, *ready)),
            Batched::Waits => live.waiting += 1,
            Batched::Full => {
                live.waiting += 1;
                self.flush(at, out);
            }
        }
    }

    /// Sends a batch, full or not.
    pub(crate) fn flush(&mut self, at: At, out: &mut Vec<Emit>) {
        let Some(live) = self.versions.get_mut(&at.0) else {
            return;
        };
        if let Some(open) = live.batches[at.1].take() {
            live.waiting -= open.len();
            self.windows.remove(open.due);
            let step = &live.graph.steps[at.1];
            out.extend(open.close(step, &self.pipeline, at.0));
        }
    }
}

/// Whether a record has anything that a step asks for.
pub(crate) fn finds(step: &Step, port: usize, arrival: &Arrival) -> bool {
    let data = step.ports[port].data.as_ref();
    data.is_some_and(|data| data.finds(&arrival.message))
        || step
            .triggers
            .iter()
            .any(|trigger| trigger.port == port && trigger.tensor.finds(&arrival.message))
}

fn gather(
    step: &Step,
    fired: &Fired,
) -> Result<seldon_proto::inference::ModelInferRequest, seldon_inference::Error> {
    let parts = fired.data.iter().filter_map(|(port, arrival)| {
        let port = &step.ports[*port];
        Some(tensors::select(
            &arrival.message,
            port.data.as_ref()?,
            &port.renames,
        ))
    });
    tensors::merge(parts.collect::<Result<_, _>>()?)
}

/// The run of this pipeline that follows from records of others, the same each time.
fn run_of<'a>(arrivals: impl Iterator<Item = &'a Arc<Arrival>>, pipeline: &str) -> Identity {
    let arrivals: Vec<_> = arrivals.collect();
    let mut parts: Vec<&[u8]> = vec![pipeline.as_bytes()];
    for arrival in arrivals {
        parts.push(arrival.identity.as_str().as_bytes());
        parts.push(arrival.cause.record.topic.as_bytes());
        parts.push(
            arrival
                .headers
                .get(header::VISITS)
                .map_or(&[], |visits| visits),
        );
    }
    Identity::derived(&parts)
}

pub(crate) fn failure(arrival: &Arrival, status: u16, text: String) -> Failure {
    Failure {
        key: arrival.key.clone(),
        headers: arrival.headers.clone(),
        identity: arrival.identity.clone(),
        status,
        text,
    }
}
