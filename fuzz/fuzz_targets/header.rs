//! Whatever a client sends, it reaches versions of the experiment that it asked for, or its own name's scope. Parts are
//! divided by line ends: `x-seldon-route`, `seldon-model`, the path, the cohort's header, and the first body bytes.
//! Corpus: `wasm-filters/routing/corpus/header`.
#![no_main]
use libfuzzer_sys::fuzz_target;

use seldon_routing::{Config, Decision, Headers, Hold, Random, Router, header};

struct Sent<'a>([&'a [u8]; 5]);
impl Headers for Sent<'_> {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        let [route, model, path, user, _] = self.0;
        match name {
            header::SCOPE => Some([b"c:", model].concat()),
            header::MODEL => Some(model.to_vec()),
            header::ROUTE => Some(route.to_vec()),
            ":path" => Some(path.to_vec()),
            "x-user" => Some(user.to_vec()),
            "content-type" => Some(b"application/grpc".to_vec()),
            _ => None,
        }
    }
}

const CONFIG: &str = r#"{"experiments":{
    "x":{"cohort":"x-user","candidates":[{"name":"a","weight":1,"versions":[{"route":"a_1"},{"route":"a_2"}]},
        {"name":"b","weight":0,"versions":[{"route":"b_1"}]}],
        "mirror":{"name":"m","percent":50,"versions":[{"model":"m_1","cluster":"shadow"}]}},
    "y":{"candidates":[{"name":"c","weight":1,"versions":[{"route":"c_1"}]}]}},
    "endpoints":{"iris":"x","p.pipeline":"y"}}"#;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(5, |b| *b == b'\n');
    let sent = Sent(std::array::from_fn(|_| parts.next().unwrap_or_default()));
    let config = Config::from_json(CONFIG.as_bytes()).unwrap();
    let random = Random::from_seed(bytes.len() as u64);
    let router = Router { config: &config, random: &random };
    let by_headers = router.on_headers(&sent, false);
    for decision in [&by_headers, &router.on_message(&sent, &mut Hold::default(), sent.0[4], true)] {
        let Decision::Steer(steering) = decision else { continue };
        let written = |name| steering.writes.iter().find(|w| w.name == name).map(|w| w.value.as_ref());
        let scope = written(header::SCOPE).unwrap();
        let model = written(header::MODEL).map_or(sent.0[1], str::as_bytes);
        let named = match model {
            b"x.experiment" | b"iris" => "x",
            b"y.experiment" | b"p.pipeline" => "y",
            _ => "",
        };
        let allowed: &[&str] = match named {
            "x" => &["i:a_1", "i:a_2", "i:b_1"],
            "y" => &["i:c_1"],
            _ => &[],
        };
        match &steering.choice {
            Some(choice) => assert!(choice.experiment == named && allowed.contains(&scope)),
            None => assert_eq!(scope.as_bytes(), [b"c:", model].concat()),
        }
        let mirrored = written(header::MIRROR_MODEL).is_some();
        assert_eq!(mirrored, written(header::MIRROR_CLUSTER).is_some());
        assert!(!mirrored || named == "x");
    }
});
