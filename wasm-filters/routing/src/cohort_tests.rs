use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn candidates(weights: &[u32]) -> Vec<Candidate> {
    let candidate = |(i, weight): (usize, &u32)| Candidate {
        name: format!("c{i}"),
        weight: *weight,
        versions: Vec::new(),
    };
    weights.iter().enumerate().map(candidate).collect()
}
fn of(key: u32, all: &[Candidate]) -> Option<String> {
    let cohort = Cohort::of(format!("user-{key}").as_bytes(), "x");
    cohort.candidate(all).map(|c| c.name.clone())
}

#[test]
fn each_experiment_shares_out_anew() {
    let all = candidates(&[1, 1]);
    let same = (0..10_000u32).filter(|key| {
        let name = |experiment| {
            let cohort = Cohort::of(format!("user-{key}").as_bytes(), experiment);
            cohort.candidate(&all).map(|c| c.name.clone())
        };
        name("x") == name("y")
    });
    assert!((4_700..5_300).contains(&same.count()));
    assert_eq!(of(1, &candidates(&[0, 0])), None);
    assert_eq!(of(1, &[]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Within six standard deviations.
    #[test]
    fn cohorts_follow_the_weights(weights in proptest::collection::vec(prop_oneof![Just(0), 1..100u32], 1..8), from in 0..1_000_000u32) {
        prop_assume!(weights.iter().any(|w| *w > 0));
        let (all, rounds) = (candidates(&weights), 4_000u32);
        let mut seen = BTreeMap::<String, u32>::new();
        for key in from..from + rounds {
            *seen.entry(of(key, &all).expect("a weight")).or_default() += 1;
        }
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        for (i, weight) in weights.iter().enumerate() {
            let share = f64::from(*weight) / total;
            let (expected, variance) = (share * f64::from(rounds), share * (1.0 - share) * f64::from(rounds));
            let count = f64::from(seen.get(&format!("c{i}")).copied().unwrap_or(0));
            prop_assert!((count - expected).abs() <= 6.0 * variance.sqrt() + 3.0, "{i}: {count}, expected {expected}");
        }
    }

    /// Key by key: with more weight only to the one that grew, with less only away from it, with none at all or gone
    /// only its own.
    #[test]
    fn only_what_must_move_moves(
        weights in proptest::collection::vec(any::<u32>(), 2..6),
        which: proptest::sample::Index,
        new in prop_oneof![Just(0u32), any::<u32>()],
        remove: bool,
    ) {
        let before = candidates(&weights);
        let at = which.index(weights.len());
        let mut after = before.clone();
        let new = if remove { 0 } else { new };
        after[at].weight = new;
        if remove {
            after.remove(at);
        }
        let changed = format!("c{at}");
        for key in 0..300 {
            let (was, is) = (of(key, &before), of(key, &after));
            if was != is {
                let one = if new > weights[at] { &is } else { &was };
                prop_assert_eq!(one.as_ref(), Some(&changed));
            }
        }
    }
}
