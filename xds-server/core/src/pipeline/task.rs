//! Orders to workers: sent, answered, repeated.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::fleet::{Fleets, NEVER};
use crate::{Effect, Generation, Order, Worker, world::World};

/// What a worker is to do about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It may have it; nothing has been decided.
    Perhaps,
    Create,
    Delete {
        keep_topics: bool,
    },
    /// To let it go at once: another engine goes on with what is in flight.
    HandOver,
}

/// How far the order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// To be sent as soon as the worker is there, or `due` has come.
    Waiting,
    Sent,
    Done,
    Failed,
}

/// One object at one worker.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) doing: Doing,
    pub(crate) phase: Phase,
    /// What the order is about.
    pub(crate) version: u32,
    /// The last order, and the first that asked for the same.
    pub(crate) timestamp: u64,
    pub(crate) first: u64,
    pub(crate) due: Option<Duration>,
    pub(crate) failures: u32,
    pub(crate) reason: Option<Arc<str>>,
    /// It has said, on its present stream, that it has the object.
    pub(crate) serving: bool,
    /// Of a pipeline gateway: whether an Envoy may have been told of it, and what must be left behind before it ends.
    pub(crate) routed: bool,
    pub(crate) gate: Option<Generation>,
}

/// One object at all its workers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks(pub(crate) BTreeMap<Arc<str>, Task>);

impl Task {
    pub(crate) fn new(doing: Doing, version: u32) -> Task {
        Task {
            doing,
            phase: Phase::Waiting,
            version,
            timestamp: 0,
            first: NEVER,
            due: None,
            failures: 0,
            reason: None,
            serving: false,
            routed: false,
            gate: None,
        }
    }

    /// Of a worker that may have had it since before the scheduler began.
    pub(crate) fn doubtful() -> Task {
        Task {
            routed: true,
            ..Task::new(Doing::Perhaps, 0)
        }
    }

    /// Asks for something else, or (the same) changes nothing.
    pub(crate) fn want(&mut self, doing: Doing, version: u32) {
        if (self.doing, self.version) == (doing, version) {
            return;
        }
        (self.doing, self.version) = (doing, version);
        (self.phase, self.first, self.due) = (Phase::Waiting, NEVER, None);
        (self.failures, self.reason) = (0, None);
        if doing == Doing::Create {
            self.gate = None;
        } else {
            // Wanted again later, it has to be taken up anew before requests are led there.
            self.serving = false;
        }
    }

    pub(crate) fn is_create(&self) -> bool {
        self.doing == Doing::Create
    }

    /// Whether it is to be let go.
    pub(crate) fn is_delete(&self) -> bool {
        matches!(self.doing, Doing::Delete { .. } | Doing::HandOver)
    }

    /// Whether the worker was not told on its present stream.
    pub(crate) fn is_untold(&self) -> bool {
        self.phase == Phase::Waiting && self.first == NEVER
    }

    pub(crate) fn ready(&self) -> bool {
        self.is_create() && self.phase == Phase::Done
    }

    pub(crate) fn failed(&self) -> bool {
        self.phase == Phase::Failed || self.failures > 0
    }

    /// The worker's stream is another: it is told again.
    pub(crate) fn reconnected(&mut self) {
        (self.phase, self.first, self.due) = (Phase::Waiting, NEVER, None);
        self.serving = false;
    }

    /// The worker's stream is gone: what was on its way may be lost.
    pub(crate) fn disconnected(&mut self) {
        if self.phase == Phase::Sent {
            (self.phase, self.due) = (Phase::Waiting, None);
        }
    }

    fn fail(&mut self, reason: &str, world: &World) {
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Failed;
        self.reason = Some(reason.into());
        let longest = world.config.retry_limit.max(1);
        let wait = world.config.backoff(self.failures.min(longest));
        self.due = Some(world.now.monotonic + wait);
    }
}

/// What came of a report.
pub(crate) enum Taken {
    /// It is about an order that does not stand any more.
    Stale,
    Failed,
    Done(Doing),
}

impl Tasks {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.0.values().filter_map(|task| task.due).min()
    }

    /// Takes in how an order ended.
    pub(crate) fn reported(
        &mut self,
        (stream, timestamp): (&str, u64),
        create: bool,
        success: bool,
        reason: &str,
        world: &World,
    ) -> Taken {
        let found = self.0.iter_mut().find(|(name, task)| {
            (stream.is_empty() || stream == &***name)
                && (task.first..=task.timestamp).contains(&timestamp)
                && matches!(task.phase, Phase::Sent | Phase::Failed)
                && (if create {
                    task.is_create()
                } else {
                    task.is_delete()
                })
        });
        let Some((name, task)) = found else {
            return Taken::Stale;
        };
        let doing = task.doing;
        match success {
            true if create => {
                (task.phase, task.due, task.failures) = (Phase::Done, None, 0);
                (task.serving, task.reason) = (true, None);
            }
            true => {
                let name = name.clone();
                self.0.remove(&name);
            }
            false => {
                if task.phase == Phase::Sent {
                    let text = if reason.is_empty() {
                        "no reason was given"
                    } else {
                        reason
                    };
                    task.fail(text, world);
                }
                return Taken::Failed;
            }
        }
        Taken::Done(doing)
    }

    /// Sends what is to be sent, and repeats what was not answered.
    pub(crate) fn send(
        &mut self,
        worker: Worker,
        fleets: &mut Fleets,
        world: &mut World,
        compose: impl Fn(&str, &Task) -> Option<Order>,
    ) {
        let now = world.now.monotonic;
        for (name, task) in &mut self.0 {
            let stream = fleets.of(worker).get(name).and_then(|member| member.stream);
            let passed = task.due.is_some_and(|due| due <= now);
            match task.phase {
                Phase::Sent if passed => task.fail("it did not answer in time", world),
                Phase::Failed if passed => (task.phase, task.due) = (Phase::Waiting, None),
                _ => {}
            }
            let Some(stream) = stream.filter(|_| task.phase == Phase::Waiting) else {
                continue;
            };
            if task.doing == Doing::Perhaps {
                continue;
            }
            let timestamp = fleets.stamp(world);
            task.timestamp = timestamp;
            task.first = task.first.min(timestamp);
            task.phase = Phase::Sent;
            task.due = Some(now + world.config.order_timeout);
            if let Some(message) = compose(name, task) {
                world.effects.push(Effect::Tell {
                    worker,
                    stream,
                    name: name.clone(),
                    message,
                });
            }
        }
    }

    /// `ready/all ready, …` with the parts that are not zero.
    pub(crate) fn counts(&self) -> String {
        let of = |rule: fn(&Task) -> bool| self.0.values().filter(|task| rule(task)).count();
        let creating = of(Task::is_create);
        let deleting = of(Task::is_delete);
        let parts = [
            (of(Task::ready), creating, "ready"),
            (
                of(|task| task.is_create() && task.phase == Phase::Failed),
                creating,
                "failed",
            ),
            (
                of(|task| task.is_delete() && task.phase != Phase::Failed),
                deleting,
                "terminating",
            ),
            (
                of(|task| task.is_delete() && task.phase == Phase::Failed),
                deleting,
                "terminate failed",
            ),
        ];
        let told: Vec<String> = parts
            .into_iter()
            .filter(|(count, _, _)| *count > 0)
            .map(|(count, all, word)| format!("{count}/{all} {word}"))
            .collect();
        told.join(", ")
    }

    /// The first failure, in words.
    pub(crate) fn failure(&self) -> Option<String> {
        self.0.iter().find_map(|(name, task)| {
            let reason = task.reason.as_ref()?;
            Some(format!("{name}: {reason}"))
        })
    }
}
