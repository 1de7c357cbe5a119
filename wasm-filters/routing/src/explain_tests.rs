use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{Decision, Random, Router};

type Sent = BTreeMap<&'static str, Vec<u8>>;
struct Of(Sent);
impl Headers for Of {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.0.get(name).cloned()
    }
}

fn config(weights: [u32; 3], percent: u32) -> Config {
    let [a, b, a_2] = weights;
    let text = format!(
        r#"{{"experiments":{{"x":{{"cohort":"x-user","candidates":[
            {{"name":"a","weight":{a},"versions":[{{"route":"a_1"}},{{"route":"a_2","weight":{a_2}}}]}},
            {{"name":"b","weight":{b},"versions":[{{"route":"b_7","weight":0}}]}}],
            "mirror":{{"name":"m","percent":{percent},"versions":[{{"model":"m_1","cluster":"s"}},{{"model":"m_2","cluster":"s","weight":3}}]}}}}}},
        "endpoints":{{"iris":"x"}}}}"#
    );
    Config::from_json(text.as_bytes()).expect("test configuration")
}
fn percents(of: &[Chance<'_>]) -> Vec<(String, f64)> {
    of.iter().map(|c| (c.route.to_owned(), c.percent)).collect()
}
fn named(pairs: &[(&str, f64)]) -> Vec<(String, f64)> {
    pairs.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect()
}

#[test]
fn says_what_each_version_may_get() {
    let config = config([25, 75, 3], 40);
    let plain = explain(&config, "other", &Of(Sent::new()));
    assert_eq!((plain.experiment, plain.rule), (None, Rule::Plain));
    for name in ["iris", "x.experiment"] {
        let split = explain(&config, name, &Of(Sent::new()));
        assert_eq!((split.experiment, split.rule), (Some("x"), Rule::Split));
        let expected = [("a_1", 6.25), ("a_2", 18.75), ("b_7", 75.0)];
        assert_eq!(percents(&split.versions), named(&expected));
        assert_eq!(
            percents(&split.mirrors),
            named(&[("m_1", 10.0), ("m_2", 30.0)])
        );
    }
    let sticky = explain(
        &config,
        "iris",
        &Of([("x-seldon-route", b":a_2:".to_vec())].into()),
    );
    assert_eq!(sticky.rule, Rule::Sticky);
    let expected = [("a_1", 0.0), ("a_2", 100.0), ("b_7", 0.0)];
    assert_eq!(percents(&sticky.versions), named(&expected));
    let dark = self::config([0, 0, 1], 40);
    let dark = explain(&dark, "iris", &Of(Sent::new()));
    assert_eq!((dark.experiment, dark.rule), (Some("x"), Rule::Plain));
    assert!(
        dark.versions
            .iter()
            .chain(&dark.mirrors)
            .all(|c| c.percent == 0.0)
    );
}

proptest! {
    /// What cannot be never happens, what must be always does, and the rule is the same.
    #[test]
    fn agrees_with_the_router(weights in proptest::array::uniform3(0..3u32), percent in prop_oneof![Just(0u32), Just(100)], user in proptest::option::of("[a-z]{0,3}"), route in "(:[ab]_[127]:)?", seed: u64) {
        let config = config(weights, percent);
        let mut sent = Sent::from([("x-seldon-scope", b"c:iris".to_vec()), ("x-seldon-route", route.into_bytes())]);
        sent.extend(user.map(|user| ("x-user", user.into_bytes())));
        let sent = Of(sent);
        let told = explain(&config, "iris", &sent);
        let sum: f64 = told.versions.iter().map(|c| c.percent).sum();
        let random = Random::from_seed(seed);
        for _ in 0..20 {
            match (Router { config: &config, random: &random }).on_headers(&sent, true) {
                Decision::Steer(steering) => {
                    let choice = steering.choice.expect("named by header");
                    prop_assert_eq!(steering.rule, told.rule);
                    prop_assert!((sum - 100.0).abs() < 1e-9);
                    let chance = told.versions.iter().find(|c| c.route == choice.version.route).expect("listed");
                    prop_assert!(chance.percent > 0.0);
                    prop_assert_eq!(choice.mirror.is_some(), percent == 100);
                }
                _ => prop_assert_eq!((told.rule, sum), (Rule::Plain, 0.0)),
            }
        }
    }
}
