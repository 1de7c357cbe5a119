use super::*;

fn experiment(weights: &[u32]) -> Experiment {
    let candidates = weights.iter().enumerate().map(|(i, weight)| Candidate {
        scope: format!("m{i}"),
        routes: vec![format!("m{i}_1")],
        weight: *weight,
    });
    Experiment {
        candidates: candidates.collect(),
        mirror: None,
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
    e.mirror = Some(Mirror {
        cluster: "c".into(),
        model: "m_1".into(),
        percent: 100,
    });
    let config = Config {
        version: "7".into(),
        experiments: BTreeMap::from([("x.experiment".into(), e)]),
    };
    assert_eq!(
        Config::from_json(config.to_json().as_bytes()),
        Ok(config.clone())
    );

    let newer = config
        .to_json()
        .replacen('{', r#"{"cohorts":{"a":[1]},"#, 1);
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
        r#"{"experiments":{"x":{"candidates":[{"scope":"a","weight":-1}]}}}"#,
        r#"{"experiments":{"x":{"candidates":[{"scope":"a","weight":4294967296}]}}}"#,
        r#"{"experiments":{"x":{"candidates":[{"weight":1}]}}}"#,
    ] {
        let read = Config::from_json(bad.as_bytes());
        assert!(matches!(read, Err(ConfigError::Json(_))), "{bad}: {read:?}");
    }
    let percent = |percent| {
        move |e: &mut Experiment| {
            e.mirror = Some(Mirror {
                cluster: "c".into(),
                model: "m".into(),
                percent,
            })
        }
    };
    assert!(refused(|e| e.candidates.clear()).contains("no candidates"));
    assert!(refused(|e| e.candidates.iter_mut().for_each(|c| c.weight = 0)).contains("weights"));
    assert!(refused(|e| e.candidates[0].scope = "a\r\nb: c".into()).contains("scope"));
    assert!(refused(|e| e.candidates[1].routes.push("a:b".into())).contains("route"));
    assert!(refused(percent(101)).contains("percent"));
    assert!(
        refused(|e| {
            percent(1)(e);
            e.mirror.as_mut().unwrap().model.clear();
        })
        .contains("model")
    );
}
