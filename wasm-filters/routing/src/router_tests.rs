use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

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
    let versions = ["_1", "_2"].map(|v| Version {
        route: format!("{name}{v}"),
        weight: 1,
    });
    Candidate {
        name: name.into(),
        weight,
        versions: versions.into(),
    }
}
fn experiment(candidates: Vec<Candidate>, percent: Option<u32>) -> Config {
    let mirror = percent.map(|percent| Mirror {
        name: "m".into(),
        percent,
        versions: vec![Copy {
            model: "m_7".into(),
            cluster: "shadow".into(),
            grpc_cluster: Some("shadow-grpc".into()),
            weight: 1,
        }],
    });
    let experiment = Experiment {
        candidates,
        mirror,
        cohort: Some("x-user".into()),
    };
    let config = Config {
        experiments: [("x".to_owned(), experiment)].into(),
        endpoints: [("iris".to_owned(), "x".to_owned())].into(),
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
    // The first of two headers is empty: so is the scope key, so there is no name.
    let twice = [("x-seldon-scope", "c:"), ("seldon-model", "b"), path];
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
        router.on_message(&request, &mut Hold::default(), b"\0\0\0", false),
        Decision::AwaitMessage
    );
    assert_eq!(
        router.on_message(&request, &mut Hold::default(), b"\0\0\0", true),
        Decision::Leave
    );
    let decision = router.on_message(
        &request,
        &mut Hold::default(),
        b"\0\0\0\0\x03\x0a\x01a",
        false,
    );
    assert_eq!(written(&decision, "x-seldon-scope"), Some("c:a"));
    assert_eq!(written(&decision, "seldon-model"), Some("a"));

    for (kind, waits) in [
        ("application/grpc+proto", true),
        ("application/grpc+", true),
        ("application/grpc;a=b", false),
        ("application/grpc ", false),
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

/// The candidate and version that a decision leads to.
fn chosen<'a>(decision: &'a Decision<'_>) -> (Rule, &'a str, &'a str) {
    let Decision::Steer(steering) = decision else {
        panic!("not steered: {decision:?}");
    };
    let choice = steering.choice.as_ref().expect("a candidate");
    assert_eq!(choice.experiment, "x");
    let scope = written(decision, "x-seldon-scope").expect("a scope");
    assert_eq!(scope, format!("i:{}", choice.version.route));
    (steering.rule, &choice.candidate.name, &choice.version.route)
}

#[test]
fn an_experiment_is_entered_by_header_path_and_message() {
    let config = experiment(vec![candidate("a", 1)], None);
    let random = Random::default();
    for name in ["c:x.experiment", "c:iris"] {
        let by_header = decide(&config, &random, &[("x-seldon-scope", name)]);
        assert_eq!(
            (chosen(&by_header).0, chosen(&by_header).1),
            (Rule::Split, "a")
        );
        let model = written(&by_header, "seldon-model");
        assert_eq!(model, None, "the client's stays");
    }
    let by_path = decide(&config, &random, &[(":path", "/v2/models/iris/infer")]);
    assert_eq!(chosen(&by_path).1, "a");
    assert_eq!(written(&by_path, "seldon-model"), Some("iris"));
    let router = Router {
        config: &config,
        random: &random,
    };
    let by_message = router.on_message(
        &headers(&[]),
        &mut Hold::default(),
        b"\0\0\0\0\x06\x0a\x04iris",
        true,
    );
    assert_eq!(chosen(&by_message).1, "a");
    // Neither the experiment's bare name nor a candidate's own is one.
    for name in ["c:x", "c:a", "c:a_1", "c:iris.experiment"] {
        let decision = decide(&config, &random, &[("x-seldon-scope", name)]);
        assert_eq!(decision, Decision::Leave, "{name}");
    }
}

#[test]
fn without_a_weight_only_a_route_is_followed() {
    for candidates in [vec![], vec![candidate("a", 0)]] {
        let live = !candidates.is_empty();
        let config = experiment(candidates, Some(100));
        let random = Random::default();
        let by_header = [("x-seldon-scope", "c:iris"), ("x-user", "me")];
        assert_eq!(decide(&config, &random, &by_header), Decision::Leave);
        let by_path = decide(&config, &random, &[(":path", "/v2/models/iris/infer")]);
        assert_eq!(written(&by_path, "x-seldon-scope"), Some("c:iris"));
        assert_eq!(written(&by_path, "x-seldon-mirror-cluster"), None);
        assert!(
            matches!(&by_path, Decision::Steer(s) if s.rule == Rule::Plain && s.choice.is_none())
        );
        let sticky = decide(
            &config,
            &random,
            &[("x-seldon-scope", "c:iris"), ("x-seldon-route", ":a_2:")],
        );
        assert_eq!(sticky != Decision::Leave, live);
        if live {
            assert_eq!(chosen(&sticky), (Rule::Sticky, "a", "a_2"));
            assert!(written(&sticky, "x-seldon-mirror-cluster").is_some());
        }
    }
}

#[test]
fn a_route_beats_the_cohort_and_the_cohort_the_split() {
    let config = experiment(vec![candidate("a", 30), candidate("b", 70)], None);
    let random = Random::from_seed(7);
    let mut seen = BTreeMap::<String, String>::new();
    for round in 0..1_000 {
        let user = format!("u{}", round % 50);
        let pairs = [("x-seldon-scope", "c:iris"), ("x-user", user.as_str())];
        let by_cohort = decide(&config, &random, &pairs);
        let (rule, _, version) = chosen(&by_cohort);
        assert_eq!(rule, Rule::Cohort);
        let before = seen.entry(user.clone()).or_insert(version.to_owned());
        assert_eq!(before, version, "a cohort stays");

        let other = if version == "a_1" { "b_2" } else { "a_1" };
        let route = format!(":{other}:");
        let pairs = [pairs[0], pairs[1], ("x-seldon-route", route.as_str())];
        let sticky = decide(&config, &random, &pairs);
        assert_eq!(chosen(&sticky), (Rule::Sticky, &other[..1], other));
    }
    let versions: std::collections::BTreeSet<_> = seen.values().collect();
    assert_eq!(
        versions.len(),
        4,
        "versions share a candidate's cohorts: {seen:?}"
    );
    for user in [("x-user", ""), ("x-other", "me")] {
        let decision = decide(&config, &random, &[("x-seldon-scope", "c:iris"), user]);
        assert_eq!(chosen(&decision).0, Rule::Split, "{user:?}");
    }
}

#[test]
fn a_route_that_names_a_live_candidate_beats_the_split() {
    let config = experiment(vec![candidate("a", 0), candidate("ab", 1)], None);
    let random = Random::default();
    let oversized = ":a_1:".repeat(MAX_STICKY);
    for (route, expected) in [
        (":a_1:", Some("a_1")),
        (":a_2:", Some("a_2")),
        (":gone_1::a_1:", Some("a_1")),
        (":gone_1:,:a_1:", Some("a_1")),
        (":gone_1:, :a_1:", Some("a_1")),
        ("x:a_1:y", Some("a_1")),
        (":a_1::ab_1:", Some("a_1")),
        (":ab_1::a_1:", Some("ab_1")),
        ("", None),
        (":", None),
        ("::", None),
        ("a_1", None),
        ("a_1:", None),
        (":a_1", None),
        (":a_3:", None),
        (":a_11:", None),
        (":A_1:", None),
        (": a_1 :", None),
        (":m_7:", None),
        (&oversized, None),
    ] {
        for _ in 0..1_000 {
            let pairs = [("x-seldon-scope", "c:iris"), ("x-seldon-route", route)];
            let decision = decide(&config, &random, &pairs);
            let (rule, candidate, version) = chosen(&decision);
            match expected {
                Some(expected) => {
                    assert_eq!((rule, version), (Rule::Sticky, expected), "{route:.20}");
                }
                None => assert_eq!((rule, candidate), (Rule::Split, "ab"), "{route:.20}"),
            }
            if route.len() > MAX_STICKY {
                break;
            }
        }
    }
}

#[test]
fn the_mirror_gets_its_percentage() {
    for (percent, least, most) in [(0, 0, 0), (40, 3_800, 4_200), (100, 10_000, 10_000)] {
        let config = experiment(vec![candidate("a", 1)], Some(percent));
        let random = Random::from_seed(1);
        let copied = (0..10_000).filter(|i| {
            let (kind, cluster) = match i % 2 {
                0 => ("application/grpc+proto", "shadow-grpc"),
                _ => ("application/json", "shadow"),
            };
            let pairs = [("x-seldon-scope", "c:iris"), ("content-type", kind)];
            let decision = decide(&config, &random, &pairs);
            let to = written(&decision, "x-seldon-mirror-cluster");
            let Decision::Steer(steering) = &decision else {
                unreachable!()
            };
            let mirror = steering.choice.and_then(|c| c.mirror);
            assert_eq!(to.is_some(), mirror.is_some());
            if let Some(to) = to {
                assert_eq!(to, cluster);
                assert_eq!(written(&decision, "x-seldon-mirror-model"), Some("m_7"));
            }
            to.is_some()
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
        let (mut seen, mut versions) = (BTreeMap::<String, u32>::new(), BTreeMap::<String, u32>::new());
        for _ in 0..rounds {
            let decision = decide(&config, &random, &[("x-seldon-scope", "c:iris")]);
            *seen.entry(chosen(&decision).1.to_owned()).or_default() += 1;
            *versions.entry(chosen(&decision).2.to_owned()).or_default() += 1;
        }
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        for (i, weight) in weights.iter().enumerate() {
            let share = f64::from(*weight) / total;
            let (expected, deviation) = (share * f64::from(rounds), (f64::from(rounds) * share * (1.0 - share)).sqrt());
            let count = f64::from(seen.get(&format!("c{i}")).copied().unwrap_or(0));
            let first = f64::from(versions.get(&format!("c{i}_1")).copied().unwrap_or(0));
            prop_assert!((first - count / 2.0).abs() <= 3.0 * count.sqrt() + 3.0, "{i}: {first} of {count} for the first version");
            prop_assert!((count - expected).abs() <= 6.0 * deviation + 3.0, "{i}: {count}, expected {expected}");
            prop_assert!(*weight > 0 || count == 0.0);
        }
    }

    /// No header, path or body reaches a scope that is not its name's, nor a mirror outside an experiment.
    #[test]
    fn only_known_scopes_and_own_names_are_written(
        scope in proptest::option::of("(c:|i:|)([a-z./:,-]{0,8}|iris|x.experiment|z_1)"),
        model in proptest::option::of("[a-z./:,-]{0,8}|iris|i:z_1"),
        path in "(/v2/models/|/v2/pipelines/|/)([a-z%0-9/.?-]{0,12}|iris/infer|x%2eexperiment)",
        route in prop_oneof![proptest::collection::vec(any::<u8>(), 0..40), "(:[abmz]_[127]:,?){0,3}".prop_map(String::into_bytes)],
        mirror in "[a-z]{0,3}",
        body in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let config = experiment(vec![candidate("a", 1), candidate("b", 2), candidate("z", 0)], Some(50));
        let mut map = headers(&[GRPC]);
        map.insert(":path", path.into_bytes());
        map.insert("x-seldon-route", route);
        map.insert("x-seldon-mirror-cluster", mirror.into_bytes());
        map.extend(scope.map(|v| ("x-seldon-scope", v.into_bytes())));
        map.extend(model.map(|v| ("seldon-model", v.into_bytes())));
        let random = Random::default();
        let router = Router { config: &config, random: &random };
        for decision in [router.on_headers(&map, false), router.on_message(&map, &mut Hold::default(), &body, false)] {
            let Decision::Steer(steering) = &decision else { continue };
            let scope = written(&decision, "x-seldon-scope").expect("a steered request has a scope");
            if let Some(choice) = &steering.choice {
                let asked = written(&decision, "seldon-model").map(str::to_owned);
                let asked = asked.or_else(|| client_name(&map).and_then(|name| String::from_utf8(name).ok()));
                let asked = asked.and_then(|name| config.experiment_of(&name));
                prop_assert_eq!(asked.map(|(name, _)| name), Some(choice.experiment), "asked for what it got");
                prop_assert!(matches!(scope, "i:a_1" | "i:a_2" | "i:b_1" | "i:b_2" | "i:z_1" | "i:z_2"));
                prop_assert!(steering.rule == Rule::Sticky || !scope.starts_with("i:z"));
                let cluster = written(&decision, "x-seldon-mirror-cluster");
                prop_assert!(cluster.is_none_or(|to| to == "shadow-grpc"), "{cluster:?}");
                prop_assert!(written(&decision, "x-seldon-mirror-model").is_none_or(|to| to == "m_7"));
            } else {
                let name = written(&decision, "seldon-model").expect("a derived name is written");
                prop_assert_eq!(scope, format!("c:{name}"));
                prop_assert!(!name.contains('/'));
                prop_assert!(written(&decision, "x-seldon-mirror-cluster").is_none() && written(&decision, "x-seldon-mirror-model").is_none());
            }
        }
    }
}
