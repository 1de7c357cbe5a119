//! Whether a candidate holds against the default: a pure judgement of two counts.
use seldon_proto::scheduler::ExperimentRollout;

use crate::Counts;

/// The normal distribution's bound for 95 % on two sides.
const Z: f64 = 1.96;

/// What a candidate has to keep within.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Guard {
    pub(crate) min_requests: u64,
    /// Share, not percent.
    pub(crate) increase: f64,
    pub(crate) ratio: f64,
}

/// What the counts say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Judgement {
    /// More requests are needed, of whom.
    TooFew(String),
    /// It is worse beyond doubt.
    Violated(String),
    /// It looks worse, but that may be chance or pass.
    Doubtful(String),
    Holds(String),
}

impl Guard {
    pub(crate) fn of(rollout: &ExperimentRollout) -> Guard {
        Guard {
            min_requests: match rollout.min_requests {
                0 => 100,
                number => u64::from(number),
            },
            increase: rollout.max_error_rate_increase.unwrap_or(1.0) / 100.0,
            ratio: rollout.max_latency_ratio.unwrap_or(1.5),
        }
    }
}

#[allow(clippy::cast_precision_loss)] // exact up to 2^53 requests
fn float(number: u64) -> f64 {
    number as f64
}

impl Counts {
    pub(crate) fn add(&mut self, other: Counts) {
        self.begun = self.begun.saturating_add(other.begun);
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        self.microseconds = self.microseconds.saturating_add(other.microseconds);
    }

    fn error_rate(&self) -> f64 {
        // An error may be counted in a later reading than its request.
        float(self.errors.min(self.requests)) / float(self.requests.max(1))
    }

    /// Requests that have no end yet.
    fn pending(&self) -> u64 {
        self.begun.saturating_sub(self.requests)
    }

    fn pending_rate(&self) -> f64 {
        float(self.pending()) / float(self.begun.max(1))
    }

    fn mean_ms(&self) -> f64 {
        float(self.microseconds) / float(self.requests.max(1)) / 1000.0
    }
}

/// The bounds of the share that `errors` of `requests` stand for, at 95 % (Wilson's interval).
fn bounds(errors: u64, requests: u64) -> (f64, f64) {
    if requests == 0 {
        return (0.0, 1.0);
    }
    let n = float(requests);
    let share = float(errors.min(requests)) / n;
    let centre = share + Z * Z / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let whole = 1.0 + Z * Z / n;
    (
        ((centre - spread) / whole).max(0.0),
        ((centre + spread) / whole).min(1.0),
    )
}

/// Whether the candidate leaves more requests without an end than the default. Some are always under way, so this is
/// asked when the step is due, and it takes another interval until it is held against the candidate.
fn hangs(
    default: Option<Counts>,
    candidate: Counts,
    guard: &Guard,
    intervals: u32,
) -> Option<Judgement> {
    if intervals == 0 || candidate.begun < guard.min_requests {
        return None;
    }
    let usual = default.map_or(0.0, |counts| counts.pending_rate());
    let (least, _) = bounds(candidate.pending(), candidate.begun);
    let reason = format!(
        "{} of {} requests have no end yet",
        candidate.pending(),
        candidate.begun
    );
    match least > usual + guard.increase {
        true if intervals > 1 => Some(Judgement::Violated(reason)),
        true => Some(Judgement::Doubtful(reason)),
        false => None,
    }
}

/// Compares the candidate with the default. Where the default was never measured, errors must keep within the increase
/// by themselves.
/// `intervals`: how many the step has lasted.
pub(crate) fn judge(
    default: Option<Counts>,
    candidate: Counts,
    guard: &Guard,
    intervals: u32,
) -> Judgement {
    if let Some(judgement) = hangs(default, candidate, guard, intervals) {
        return judgement;
    }
    for (side, counts) in [("candidate", Some(candidate)), ("default", default)] {
        if let Some(counts) = counts.filter(|counts| counts.requests < guard.min_requests) {
            return Judgement::TooFew(format!(
                "{} of {} requests of the {side}",
                counts.requests, guard.min_requests
            ));
        }
    }
    let theirs = default.map_or(0.0, |counts| counts.error_rate());
    let ours = candidate.error_rate();
    let against = match default {
        Some(counts) => format!(
            "{:.2} % of the default's {}",
            theirs * 100.0,
            counts.requests
        ),
        None => "a default that was not measured".to_owned(),
    };
    let errors = format!(
        "{:.2} % errors of {} requests against {against}",
        ours * 100.0,
        candidate.requests
    );
    let usual = default.map_or(0.0, |counts| counts.mean_ms());
    let mean = candidate.mean_ms();
    let latency = format!("{mean:.1} ms on average against {usual:.1} ms");
    let most = theirs + guard.increase;
    let (least, _) = bounds(candidate.errors, candidate.requests);
    let (_, theirs_at_most) =
        default.map_or((0.0, 0.0), |counts| bounds(counts.errors, counts.requests));
    if least > theirs_at_most + guard.increase {
        return Judgement::Violated(errors);
    }
    if usual > 0.0 && mean > guard.ratio * usual {
        return Judgement::Violated(latency);
    }
    if ours > most {
        return Judgement::Doubtful(errors);
    }
    Judgement::Holds(format!("{errors}, {latency}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUARD: Guard = Guard {
        min_requests: 100,
        increase: 0.01,
        ratio: 1.5,
    };

    fn counts(requests: u64, errors: u64, mean_ms: u64) -> Counts {
        Counts {
            begun: requests,
            requests,
            errors,
            microseconds: requests * mean_ms * 1000,
        }
    }

    #[test]
    fn the_bound_is_wilsons() {
        // Known values: 10 of 100 is 5.52 to 17.44 %, 0 of 100 at most 3.70 %, 100 of 100 at least 96.3 %.
        let near = |(low, high): (f64, f64), wanted: (f64, f64)| {
            assert!((low - wanted.0).abs() < 0.0001 && (high - wanted.1).abs() < 0.0001);
        };
        near(bounds(10, 100), (0.0552, 0.1744));
        near(bounds(0, 100), (0.0, 0.0370));
        near(bounds(100, 100), (0.9630, 1.0));
        near(bounds(0, 0), (0.0, 1.0));
    }

    #[test]
    fn a_judgement_needs_enough_requests_of_both_sides() {
        let few = |default, candidate| judge(Some(default), candidate, &GUARD, 0);
        assert_eq!(
            few(counts(500, 0, 10), counts(99, 99, 10)),
            Judgement::TooFew("99 of 100 requests of the candidate".into())
        );
        assert_eq!(
            few(counts(3, 0, 10), counts(100, 0, 10)),
            Judgement::TooFew("3 of 100 requests of the default".into())
        );
    }

    #[test]
    fn what_may_be_chance_is_no_violation() {
        let default = counts(1000, 10, 10);
        let with = |errors, ms| judge(Some(default), counts(200, errors, ms), &GUARD, 0);
        assert!(matches!(with(4, 10), Judgement::Holds(_)));
        assert!(matches!(with(6, 10), Judgement::Doubtful(_)));
        assert_eq!(
            with(20, 10),
            Judgement::Violated(
                "10.00 % errors of 200 requests against 1.00 % of the default's 1000".into()
            )
        );
        assert!(matches!(with(0, 15), Judgement::Holds(_)));
        assert_eq!(
            with(0, 16),
            Judgement::Violated("16.0 ms on average against 10.0 ms".into())
        );
    }

    #[test]
    fn requests_without_an_end_count_against_the_candidate_in_the_end() {
        let default = Some(counts(1000, 0, 10));
        let hanging = Counts {
            begun: 300,
            ..counts(200, 0, 10)
        };
        let after = |intervals| judge(default, hanging, &GUARD, intervals);
        assert!(matches!(after(0), Judgement::Holds(_)));
        assert!(matches!(after(1), Judgement::Doubtful(_)));
        assert_eq!(
            after(2),
            Judgement::Violated("100 of 300 requests have no end yet".into())
        );
        let all = Counts {
            begun: 300,
            ..Counts::default()
        };
        assert!(matches!(
            judge(default, all, &GUARD, 2),
            Judgement::Violated(_)
        ));
        // A few are under way at any time.
        let usual = Counts {
            begun: 203,
            ..counts(200, 0, 10)
        };
        assert!(matches!(
            judge(default, usual, &GUARD, 5),
            Judgement::Holds(_)
        ));
    }

    #[test]
    fn a_default_without_a_latency_is_not_compared_with() {
        let judged = judge(Some(counts(100, 0, 0)), counts(100, 0, 50), &GUARD, 0);
        assert!(matches!(judged, Judgement::Holds(_)));
        let alone = |errors| judge(None, counts(200, errors, 50), &GUARD, 0);
        assert!(matches!(alone(1), Judgement::Holds(_)));
        assert!(matches!(alone(20), Judgement::Violated(_)));
    }
}
