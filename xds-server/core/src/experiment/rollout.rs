//! A guarded roll-out: which step it is at, and when it goes on or back.
use std::{sync::Arc, time::Duration};

use seldon_proto::scheduler::Experiment;

use super::{
    check::steps,
    judge::{Guard, Judgement, judge},
};
use crate::{
    Counts, ExperimentRoute, Measurement, Now, RolloutEvent, RolloutOutcome, RolloutRecord,
};

pub(crate) const DEFAULT_STEPS: [u32; 4] = [10, 25, 50, 100];
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);

/// Readings of a window that may reach back to before it.
const SKIPPED: u32 = 2;

/// A guarded roll-out of one candidate, against the default.
#[derive(Clone, Debug)]
pub(crate) struct Rollout {
    pub(crate) default: Arc<str>,
    pub(crate) candidate: Arc<str>,
    /// Percent of the candidate, rising; at least one.
    pub(crate) steps: Vec<u32>,
    interval: Duration,
    guard: Guard,
    pub(crate) record: RolloutRecord,
    /// What is measured of the step; none while the step is not in force.
    window: Option<Window>,
    /// No Envoy could be read lately.
    unread: bool,
}

/// What was measured of a step since it began.
#[derive(Clone, Debug)]
struct Window {
    began: Duration,
    /// How often counters were read since. The first reading may have been under way when the window began, and the
    /// second reaches back to it: neither counts.
    readings: u32,
    /// Counters were read since the last decision was tried.
    fresh: bool,
    /// Versions of both sides: what another version did is no evidence.
    versions: Vec<(Arc<str>, u32)>,
    default: Counts,
    candidate: Counts,
}

impl Rollout {
    /// The roll-out of an experiment that has one; a new one, or the one that the store remembers.
    pub(crate) fn of(spec: &Experiment, known: Option<RolloutRecord>, now: Now) -> Option<Rollout> {
        let wanted = spec.rollout.as_ref()?;
        let default = spec.default.as_deref()?;
        let other = spec.candidates.iter().find(|one| one.name != default)?;
        let steps = steps(wanted).to_vec();
        let record = known.unwrap_or_else(|| RolloutRecord {
            history: vec![RolloutEvent {
                at: now.wall,
                percent: *steps.first().unwrap_or(&0),
                reason: "the roll-out began".into(),
            }],
            ..RolloutRecord::default()
        });
        Some(Rollout {
            default: default.into(),
            candidate: other.name.as_str().into(),
            interval: match wanted.interval_seconds {
                0 => DEFAULT_INTERVAL,
                seconds => Duration::from_secs(seconds.into()),
            },
            guard: Guard::of(wanted),
            steps,
            record,
            window: None,
            unread: false,
        })
    }

    /// The position of the step it is at.
    pub(crate) fn step(&self) -> usize {
        let step = usize::try_from(self.record.step).unwrap_or(usize::MAX);
        step.min(self.steps.len().saturating_sub(1))
    }

    /// What the candidate gets of a hundred requests.
    pub(crate) fn percent(&self) -> u32 {
        match self.record.outcome {
            RolloutOutcome::RolledBack => 0,
            _ => self.steps.get(self.step()).copied().unwrap_or(0),
        }
    }

    pub(crate) fn running(&self) -> bool {
        self.record.outcome == RolloutOutcome::Running
    }

    /// When the step may end at the earliest.
    pub(crate) fn due(&self) -> Option<Duration> {
        let window = self.window.as_ref().filter(|_| self.running())?;
        Some(window.began.saturating_add(self.interval))
    }

    /// The side of the roll-out that gets no requests for now.
    pub(crate) fn missing(&self, route: Option<&ExperimentRoute>) -> Option<&Arc<str>> {
        let live = |name: &Arc<str>| {
            let mut candidates = route.iter().flat_map(|route| &route.candidates);
            candidates.any(|candidate| candidate.name == *name)
        };
        [&self.candidate, &self.default]
            .into_iter()
            .find(|name| !live(name))
    }

    /// Begins to measure when both sides get their shares, and forgets what was measured when one does not any more.
    /// `taken`: Envoys share out by the step's percent; `refused`: one does not.
    pub(crate) fn attend(
        &mut self,
        route: Option<&ExperimentRoute>,
        taken: bool,
        refused: bool,
        now: Now,
    ) {
        let versions = versions(route);
        let window = self.window.as_ref();
        let other = window.is_some_and(|window| window.versions != versions);
        if !self.running() || refused || other || self.missing(route).is_some() {
            self.window = None;
        }
        if self.window.is_none() && self.running() && taken && self.missing(route).is_none() {
            self.window = Some(Window {
                began: now.monotonic,
                readings: 0,
                fresh: false,
                versions,
                default: Counts::default(),
                candidate: Counts::default(),
            });
        }
    }

    pub(crate) fn measured(&mut self, measurement: &Measurement) {
        let window = self.window.as_mut();
        let Some(window) = window.filter(|window| window.readings >= SKIPPED) else {
            return;
        };
        let counts = Counts {
            begun: measurement.begun,
            requests: measurement.requests,
            errors: measurement.errors,
            microseconds: measurement.microseconds,
        };
        if measurement.candidate == self.candidate {
            window.candidate.add(counts);
        } else if measurement.candidate == self.default {
            window.default.add(counts);
        }
    }

    /// Counters were read: what comes from now on belongs to the window.
    pub(crate) fn read(&mut self) {
        self.unread = false;
        if let Some(window) = &mut self.window {
            window.fresh |= window.readings >= SKIPPED;
            window.readings = window.readings.saturating_add(1);
        }
    }

    /// No Envoy could be read.
    pub(crate) fn unread(&mut self) {
        self.unread = true;
    }

    /// Whole intervals since the window began.
    fn intervals(&self, window: &Window, now: Now) -> u32 {
        let since = now.monotonic.saturating_sub(window.began).as_millis();
        let whole = since / self.interval.as_millis().max(1);
        u32::try_from(whole).unwrap_or(u32::MAX)
    }

    /// Whom the candidate is compared with: at 100 % the default has no requests, so it is the step before.
    fn compared(&self, window: &Window) -> Option<Counts> {
        match self.percent() {
            100 => self.record.usual,
            _ => Some(window.default),
        }
    }

    /// Goes on, or back, where it is time to; whether it did.
    pub(crate) fn decide(&mut self, now: Now) -> bool {
        let running = self.running();
        let window = self.window.as_mut().filter(|_| running);
        // Time alone decides nothing: what was read last may be old.
        if !window.is_some_and(|window| std::mem::take(&mut window.fresh)) {
            return false;
        }
        let Some(window) = &self.window else {
            return false;
        };
        let intervals = self.intervals(window, now);
        let due = intervals > 0;
        let default = self.compared(window);
        let reason = match judge(default, window.candidate, &self.guard, intervals) {
            Judgement::Violated(reason) => {
                self.record.outcome = RolloutOutcome::RolledBack;
                reason
            }
            Judgement::Holds(reason) if due => {
                self.record.usual = default;
                if self.step() + 1 < self.steps.len() {
                    self.record.step += 1;
                } else {
                    self.record.outcome = RolloutOutcome::Complete;
                }
                reason
            }
            _ => return false,
        };
        self.window = None;
        self.record.history.push(RolloutEvent {
            at: now.wall,
            percent: self.percent(),
            reason,
        });
        true
    }

    /// The last decision's reason.
    pub(crate) fn reason(&self) -> &str {
        let last = self.record.history.last();
        last.map_or("", |event| event.reason.as_str())
    }

    /// In a word, as it is shown.
    pub(crate) fn state(&self) -> &'static str {
        match (self.record.outcome, &self.window) {
            (RolloutOutcome::Running, Some(_)) => "running",
            (RolloutOutcome::Running, None) => "waiting",
            (RolloutOutcome::Complete, _) => "complete",
            (RolloutOutcome::RolledBack, _) => "rolled back",
        }
    }

    /// What the next decision waits for.
    pub(crate) fn waits_for(&self, route: Option<&ExperimentRoute>, now: Now) -> String {
        let (true, window) = (self.running(), &self.window) else {
            return String::new();
        };
        if let Some(missing) = self.missing(route) {
            return format!("{missing} to be live");
        }
        let Some(window) = window else {
            return "Envoys to take the split".into();
        };
        if self.unread {
            return "the counters of an Envoy to be readable".into();
        }
        let intervals = self.intervals(window, now);
        match judge(
            self.compared(window),
            window.candidate,
            &self.guard,
            intervals,
        ) {
            Judgement::TooFew(count) => format!("more requests: {count}"),
            Judgement::Doubtful(errors) => format!("better figures: {errors}"),
            Judgement::Holds(_) if self.due().is_some_and(|due| due > now.monotonic) => {
                "the interval to end".into()
            }
            Judgement::Holds(_) | Judgement::Violated(_) => "the next reading".into(),
        }
    }
}

fn versions(route: Option<&ExperimentRoute>) -> Vec<(Arc<str>, u32)> {
    let candidates = route.iter().flat_map(|route| &route.candidates);
    let of = candidates.flat_map(|one| {
        let splits = one.splits.iter();
        splits.map(|split| (one.name.clone(), split.version))
    });
    of.collect()
}
