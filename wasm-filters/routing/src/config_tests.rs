use proptest::prelude::*;

use super::*;

fn experiment(weights: &[u32]) -> Experiment {
    let candidates = weights.iter().enumerate().map(|(i, weight)| Candidate {
        name: format!("m{i}"),
        weight: *weight,
        versions: vec![Version {
            route: format!("m{i}_1"),
            weight: 1,
        }],
    });
    Experiment {
        candidates: candidates.collect(),
        ..Experiment::default()
    }
}
fn mirror(percent: u32) -> Mirror {
    let copy = |version, grpc_cluster| Copy {
        model: format!("m_{version}"),
        cluster: "c".into(),
        grpc_cluster,
        weight: version,
    };
    Mirror {
        name: "m".into(),
        percent,
        versions: vec![copy(1, None), copy(2, Some("g".into()))],
    }
}
fn refused(change: impl FnOnce(&mut Experiment)) -> &'static str {
    let mut e = experiment(&[30, 70]);
    change(&mut e);
    let config = Config {
        experiments: BTreeMap::from([("x".into(), e)]),
        ..Config::default()
    };
    match Config::from_json(config.to_json().as_bytes()) {
        Err(ConfigError::Experiment { reason, .. }) => reason,
        other => panic!("accepted or refused otherwise: {other:?}"),
    }
}

#[test]
fn reads_what_it_wrote_and_ignores_what_it_does_not_know() {
    let mut e = experiment(&[0, 70]);
    e.mirror = Some(mirror(100));
    e.cohort = Some("x-user".into());
    let config = Config {
        version: "7".into(),
        experiments: BTreeMap::from([
            ("x".into(), e),
            ("dark".into(), experiment(&[0])),
            ("empty".into(), experiment(&[])),
        ]),
        endpoints: BTreeMap::from([("iris".into(), "x".into())]),
    };
    assert_eq!(
        Config::from_json(config.to_json().as_bytes()),
        Ok(config.clone())
    );

    let newer = config.to_json().replacen(
        '{',
        r#"{"cohorts":{"a":[1.5e-3,{"b":[null,true]},"\\ud83d\\ude00"]},"#,
        1,
    );
    assert_eq!(Config::from_json(newer.as_bytes()), Ok(config));
    for empty in ["", "{}"] {
        assert_eq!(Config::from_json(empty.as_bytes()), Ok(Config::default()));
    }
    assert_eq!(Config::default().to_json(), "{}");
}

#[test]
fn refuses_what_it_could_not_act_on() {
    for bad in [
        "[",
        "null",
        "7",
        r#"{"experiments":[]}"#,
        r#"{"experiments":{"x":{}}}"#,
        r#"{"experiments":{"x":{"candidates":[{"name":"a","weight":-1,"versions":[]}]}}}"#,
        r#"{"experiments":{"x":{"candidates":[{"name":"a","weight":4294967296,"versions":[]}]}}}"#,
        r#"{"experiments":{"x":{"candidates":[{"weight":1,"versions":[]}]}}}"#,
        r#"{"experiments":{"x":{"candidates":[{"name":"a","weight":1}]}}}"#,
        r#"{"version":"1","version":"2"}"#,
        r#"{"version":"\ud83d"}"#,
        "{} {}",
        "{\"version\":\"\n\"}",
    ] {
        let read = Config::from_json(bad.as_bytes());
        assert!(matches!(read, Err(ConfigError::Json(_))), "{bad}: {read:?}");
    }
    let route = |route: &'static str| {
        move |e: &mut Experiment| e.candidates[1].versions[0].route = route.into()
    };
    let mirrored =
        |change: fn(&mut Mirror)| move |e: &mut Experiment| change(e.mirror.insert(mirror(1)));
    assert!(refused(|e| e.candidates[0].versions.clear()).contains("no versions"));
    for bad in ["", "a\r\nb: c", "a:b", "a,b", " a"] {
        assert!(refused(route(bad)).contains("route"), "{bad:?}");
    }
    assert!(refused(mirrored(|m| m.percent = 101)).contains("percent"));
    assert!(refused(mirrored(|m| m.versions.clear())).contains("no versions"));
    assert!(refused(mirrored(|m| m.versions[0].model.clear())).contains("model"));
    assert!(
        refused(mirrored(|m| m.versions[1].grpc_cluster = Some("\0".into()))).contains("cluster")
    );
    let ghost = Config::from_json(br#"{"endpoints":{"iris":"x"}}"#);
    assert!(ghost.is_err_and(|e| e.to_string().contains("endpoint")));
}

/// What the derived reader makes of it, validated.
fn derived(bytes: &[u8]) -> Option<Config> {
    let config: Config = serde_json::from_slice(bytes).ok()?;
    config.validate().is_ok().then_some(config)
}

proptest! {
    #[test]
    fn reads_as_the_derived_reader_does(
        versions in proptest::collection::vec((".{0,6}", any::<u32>()), 0..3),
        names in proptest::collection::vec(".{0,6}", 0..4),
        cohort in proptest::option::of(".{0,6}"),
        percent in 0..120u32,
        pretty: bool,
        cut: proptest::sample::Index,
        byte in prop_oneof![any::<u8>(), "[\\[\\]{}:,\"\\\\0-9n.e-]".prop_map(|s| s.as_bytes()[0])],
    ) {
        let versions: Vec<Version> =
            versions.into_iter().map(|(route, weight)| Version { route, weight }).collect();
        let candidate = |name: String| Candidate { name, weight: percent, versions: versions.clone() };
        let whole = Experiment {
            candidates: names.iter().cloned().map(candidate).collect(),
            mirror: Some(mirror(percent)),
            cohort,
        };
        let experiments = names.iter().map(|name| (name.clone(), whole.clone())).collect();
        let endpoints = names.iter().map(|name| (format!("{name}\u{1}"), name.clone())).collect();
        let config = Config { version: "\"é\\".into(), experiments, endpoints };
        let text = if pretty { serde_json::to_string_pretty(&config).unwrap() } else { config.to_json() };
        prop_assert_eq!(Config::from_json(text.as_bytes()).ok(), derived(text.as_bytes()));
        // One byte changed, and cut short.
        let mut bytes = text.into_bytes();
        let at = cut.index(bytes.len());
        bytes[at] = byte;
        prop_assert_eq!(Config::from_json(&bytes).ok(), derived(&bytes), "{:?}", String::from_utf8_lossy(&bytes));
        if at > 0 {
            prop_assert!(Config::from_json(&bytes[..at]).is_err() || derived(&bytes[..at]).is_some());
        }
    }
}
