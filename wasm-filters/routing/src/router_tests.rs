use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::Mirror;

type Map = BTreeMap<&'static str, Vec<u8>>;
impl Headers for Map {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        BTreeMap::get(self, name).cloned()
    }
}
fn headers(pairs: &[(&'static str, &str)]) -> Map {
    let pairs = pairs.iter().map(|(k, v)| (*k, v.as_bytes().to_vec()));
    pairs.collect()
}
fn candidate(name: &str, weight: u32) -> Candidate {
    Candidate {
        scope: name.into(),
        routes: vec![format!("{name}_1"), format!("{name}_2")],
        weight,
    }
}
fn experiment(candidates: Vec<Candidate>, percent: Option<u32>) -> Config {
    let mirror = percent.map(|percent| Mirror {
        cluster: "shadow".into(),
        model: "m_7".into(),
        percent,
    });
    let split = Experiment { candidates, mirror };
    let names = ["x.experiment", "iris"].map(|name| (name.to_owned(), split.clone()));
    let config = Config {
        experiments: BTreeMap::from(names),
        ..Config::default()
    };
    config.validate().expect("test configuration");
    config
}
fn written<'a>(decision: &'a Decision<'_>, name: &str) -> Option<&'a str> {
    let Decision::Steer(steering) = decision else {
        return None;
    };
    let mut values = steering.writes.iter().filter(|w| w.name == name);
    let value = values.next().map(|w| w.value.as_ref());
    assert_eq!(values.next(), None, "{name} is written once");
    value
}
fn decide<'a>(
    config: &'a Config,
    random: &'a Random,
    pairs: &[(&'static str, &str)],
) -> Decision<'a> {
    Router { config, random }.on_headers(&headers(pairs), false)
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const INFER: (&str, &str) = (":path", "/inference.GRPCInferenceService/ModelInfer");

#[test]
fn a_name_from_the_path_goes_into_header_and_scope() {
    let (config, random) = (Config::default(), Random::default());
    let decision = decide(
        &config,
        &random,
        &[("x-seldon-scope", "c:"), (":path", "/v2/pipelines/p?a")],
    );
    assert_eq!(written(&decision, "seldon-model"), Some("p.pipeline"));
    assert_eq!(written(&decision, "x-seldon-scope"), Some("c:p.pipeline"));
    let Decision::Steer(steering) = decision else {
        unreachable!()
    };
    assert_eq!(
        (steering.writes.len(), steering.named_by),
        (2, NamedBy::Path)
    );
}

#[test]
fn the_clients_header_beats_the_path_and_is_left_to_the_router() {
    let (config, random) = (Config::default(), Random::default());
    let path = (":path", "/v2/models/iris/infer");
    for scope in ["c:nope", "c:-", "c:i:iris", "c: "] {
        let decision = decide(&config, &random, &[("x-seldon-scope", scope), path]);
        assert_eq!(decision, Decision::Leave, "{scope}");
    }
    // Two headers, the first empty: the scope key shows the first, so there is no name.
    let twice = [("x-seldon-scope", "c:"), ("seldon-model", ",b"), path];
    assert_eq!(
        written(&decide(&config, &random, &twice), "x-seldon-scope"),
        Some("c:iris")
    );
    // A listener that makes no scope key.
    let foreign = [("seldon-model", "nope"), path];
    assert_eq!(decide(&config, &random, &foreign), Decision::Leave);
    // What is no UTF-8 names nothing, and is not replaced by the path either.
    let mut odd = headers(&[path]);
    odd.insert("x-seldon-scope", b"c:\xff".to_vec());
    let router = Router {
        config: &config,
        random: &random,
    };
    assert_eq!(router.on_headers(&odd, true), Decision::Leave);
}

#[test]
fn a_grpc_request_without_name_awaits_its_message() {
    let (config, random) = (Config::default(), Random::default());
    let router = Router {
        config: &config,
        random: &random,
    };
    let request = headers(&[("x-seldon-scope", "c:"), INFER, GRPC]);
    assert_eq!(router.on_headers(&request, false), Decision::AwaitMessage);
    assert_eq!(router.on_headers(&request, true), Decision::Leave);
    assert_eq!(
        router.on_message(&request, b"\0\0\0", false),
        Decision::AwaitMessage
    );
    assert_eq!(
        router.on_message(&request, b"\0\0\0", true),
        Decision::Leave
    );
    let decision = router.on_message(&request, b"\0\0\0\0\x03\x0a\x01a", false);
    assert_eq!(written(&decision, "x-seldon-scope"), Some("c:a"));
    assert_eq!(written(&decision, "seldon-model"), Some("a"));

    for (kind, waits) in [
        ("application/grpc+proto", true),
        ("application/grpc;a=b", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        let decision = decide(&config, &random, &[INFER, ("content-type", kind)]);
        assert_eq!(decision == Decision::AwaitMessage, waits, "{kind}");
    }
    for path in [
        "/inference.GRPCInferenceService/RepositoryIndex",
        "/seldon.mlops/ModelInfer",
    ] {
        assert_eq!(
            decide(&config, &random, &[(":path", path), GRPC]),
            Decision::Leave
        );
    }
}

#[test]
fn an_experiment_is_entered_by_header_path_and_message() {
    let config = experiment(vec![candidate("a", 1)], None);
    let random = Random::default();
    let by_header = decide(&config, &random, &[("x-seldon-scope", "c:x.experiment")]);
    assert_eq!(written(&by_header, "x-seldon-scope"), Some("i:a"));
    assert_eq!(
        written(&by_header, "seldon-model"),
        None,
        "the client's stays"
    );
    let by_path = decide(&config, &random, &[(":path", "/v2/models/iris/infer")]);
    assert_eq!(written(&by_path, "x-seldon-scope"), Some("i:a"));
    assert_eq!(written(&by_path, "seldon-model"), Some("iris"));
    let router = Router {
        config: &config,
        random: &random,
    };
    let by_message = router.on_message(&headers(&[]), b"\0\0\0\0\x06\x0a\x04iris", true);
    assert_eq!(written(&by_message, "x-seldon-scope"), Some("i:a"));
}

#[test]
fn a_route_that_names_a_live_candidate_beats_the_split() {
    let config = experiment(vec![candidate("a", 0), candidate("ab", 1)], None);
    let random = Random::default();
    let oversized = ":a_1:".repeat(MAX_STICKY);
    for (route, expected, sticky) in [
        (":a_1:", "a", true),
        (":a_2:", "a", true),
        (":gone_1::a_1:", "a", true),
        (":gone_1:,:a_1:", "a", true),
        ("x:a_1:y", "a", true),
        (":a_1::ab_1:", "a", true),
        (":ab_1::a_1:", "ab", true),
        ("", "ab", false),
        (":", "ab", false),
        ("::", "ab", false),
        ("a_1", "ab", false),
        ("a_1:", "ab", false),
        (":a_1", "ab", false),
        (":a_3:", "ab", false),
        (":a_11:", "ab", false),
        (":A_1:", "ab", false),
        (": a_1 :", "ab", false),
        (&oversized, "ab", false),
    ] {
        let decision = decide(
            &config,
            &random,
            &[("x-seldon-scope", "c:iris"), ("x-seldon-route", route)],
        );
        assert_eq!(
            written(&decision, "x-seldon-scope"),
            Some(format!("i:{expected}").as_str()),
            "{route:.20}"
        );
        assert!(
            matches!(decision, Decision::Steer(s) if s.sticky == sticky),
            "{route:.20}"
        );
    }
}

#[test]
fn the_mirror_gets_its_percentage() {
    for (percent, least, most) in [(0, 0, 0), (40, 3_800, 4_200), (100, 10_000, 10_000)] {
        let config = experiment(vec![candidate("a", 1)], Some(percent));
        let random = Random::from_seed(1);
        let copied = (0..10_000).filter(|_| {
            let decision = decide(&config, &random, &[("x-seldon-scope", "c:iris")]);
            let to = written(&decision, "x-seldon-mirror-cluster");
            assert_eq!(
                to.is_some(),
                written(&decision, "x-seldon-mirror-model") == Some("m_7")
            );
            to == Some("shadow")
        });
        let copied = copied.count();
        assert!((least..=most).contains(&copied), "{percent}: {copied}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any weights are met within six standard deviations (and three, where few are expected), those of zero exactly.
    #[test]
    fn the_split_follows_the_weights(
        mut weights in proptest::collection::vec(prop_oneof![Just(0u32), 1..=100u32, Just(u32::MAX)], 1..8),
        seed: u64,
    ) {
        if weights.iter().all(|w| *w == 0) {
            weights.push(7);
        }
        let candidates = weights.iter().enumerate().map(|(i, w)| candidate(&format!("c{i}"), *w));
        let config = experiment(candidates.collect(), None);
        let random = Random::from_seed(seed);
        let rounds = 4_000u32;
        let mut seen = BTreeMap::<String, u32>::new();
        for _ in 0..rounds {
            let decision = decide(&config, &random, &[("x-seldon-scope", "c:iris")]);
            let scope = written(&decision, "x-seldon-scope").expect("always steered").to_owned();
            *seen.entry(scope).or_default() += 1;
        }
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        for (i, weight) in weights.iter().enumerate() {
            let share = f64::from(*weight) / total;
            let (expected, deviation) = (share * f64::from(rounds), (f64::from(rounds) * share * (1.0 - share)).sqrt());
            let count = f64::from(seen.get(&format!("i:c{i}")).copied().unwrap_or(0));
            prop_assert!((count - expected).abs() <= 6.0 * deviation + 3.0, "{i}: {count}, expected {expected}");
            prop_assert!(*weight > 0 || count == 0.0);
        }
    }

    /// No header, path or body reaches a scope that is not its name's, nor a mirror outside an experiment.
    #[test]
    fn only_known_scopes_and_own_names_are_written(
        scope in proptest::option::of("(c:|i:|)[a-z./:,-]{0,8}"),
        model in proptest::option::of("[a-z./:,-]{0,8}"),
        path in "(/v2/models/|/v2/pipelines/|/)[a-z%0-9/.?-]{0,12}",
        route in proptest::collection::vec(any::<u8>(), 0..40),
        mirror in "[a-z]{0,3}",
        body in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let config = experiment(vec![candidate("a", 1), candidate("b/1", 2)], Some(50));
        let mut map = headers(&[GRPC]);
        map.insert(":path", path.into_bytes());
        map.insert("x-seldon-route", route);
        map.insert("x-seldon-mirror-cluster", mirror.into_bytes());
        map.extend(scope.map(|v| ("x-seldon-scope", v.into_bytes())));
        map.extend(model.map(|v| ("seldon-model", v.into_bytes())));
        let random = Random::default();
        let router = Router { config: &config, random: &random };
        for decision in [router.on_headers(&map, false), router.on_message(&map, &body, false)] {
            let Decision::Steer(steering) = &decision else { continue };
            let scope = written(&decision, "x-seldon-scope").expect("a steered request has a scope");
            if steering.experiment {
                prop_assert!(matches!(scope, "i:a" | "i:b/1"));
            } else {
                let name = written(&decision, "seldon-model").expect("a derived name is written");
                prop_assert_eq!(scope, format!("c:{name}"));
                prop_assert!(!name.contains('/'));
                prop_assert!(!steering.mirrored && written(&decision, "x-seldon-mirror-cluster").is_none());
            }
        }
    }
}
