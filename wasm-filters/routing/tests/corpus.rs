//! Replays the inputs that fuzzing started from or found. A file's name says what must come of it: `iris--twice` the
//! name `iris`, `none--…` nothing, `more--…` more bytes wanted, `split--…` no candidate named,
//! `read--…` and `refused--…` configurations.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use seldon_routing::*;

fn replay(kind: &str, outcome: impl Fn(&[u8]) -> String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(kind);
    let mut replayed = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let (expected, _) = file.split_once("--").expect("outcome--what");
        assert_eq!(
            outcome(&fs::read(&path).unwrap()),
            expected,
            "corpus/{kind}/{file}"
        );
        replayed += 1;
    }
    assert!(replayed > 10, "corpus/{kind} is there");
}

#[test]
fn paths() {
    replay("path", |bytes| {
        model_name_in_path(bytes).unwrap_or("none".into())
    });
}

#[test]
fn messages() {
    replay("grpc", |bytes| match model_name_in_message(bytes) {
        Peek::Name(name) => name,
        Peek::Nothing => "none".into(),
        Peek::More(_) => "more".into(),
    });
}

struct Route<'a>(&'a [u8]);
impl Headers for Route<'_> {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        match name {
            header::SCOPE => Some(b"c:x.experiment".to_vec()),
            header::ROUTE => Some(self.0.to_vec()),
            _ => None,
        }
    }
}

const CONFIG: &str = r#"{"experiments":{"x":{"candidates":[
    {"name":"a","weight":1,"versions":[{"route":"a_1"}]},
    {"name":"b","weight":1,"versions":[{"route":"b_1"}]}]}}}"#;

#[test]
fn routes_in_a_header() {
    let config = Config::from_json(CONFIG.as_bytes()).unwrap();
    let random = Random::from_seed(1);
    let router = Router {
        config: &config,
        random: &random,
    };
    replay("header", |bytes| {
        match router.on_headers(&Route(bytes), true) {
            Decision::Steer(steering) => match (steering.rule, steering.choice) {
                (Rule::Sticky, Some(choice)) => choice.candidate.name.clone(),
                (rule, _) => format!("{rule:?}").to_lowercase(),
            },
            other => panic!("not steered: {other:?}"),
        }
    });
}

/// The reader accepts no more than serde does, and makes the same of it.
#[test]
fn configurations() {
    replay("config", |bytes| {
        let read = Config::from_json(bytes);
        if !bytes.is_empty() {
            let derived = serde_json::from_slice::<Config>(bytes);
            let derived = derived.ok().filter(|config| config.validate().is_ok());
            assert_eq!(read.as_ref().ok(), derived.as_ref());
        }
        if read.is_ok() { "read" } else { "refused" }.into()
    });
}
