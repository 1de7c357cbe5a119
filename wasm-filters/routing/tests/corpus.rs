//! Replays the inputs that fuzzing started from or found. A file's name says what must come of it: `iris--twice` the
//! name `iris`, `none--…` nothing, `more--…` more bytes wanted, `split--…` no candidate named.
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
        Peek::More => "more".into(),
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

#[test]
fn routes_in_a_header() {
    let candidates =
        r#"[{"scope":"a","routes":["a_1"],"weight":1},{"scope":"b","routes":["b_1"],"weight":1}]"#;
    let config = format!(r#"{{"experiments":{{"x.experiment":{{"candidates":{candidates}}}}}}}"#);
    let config = Config::from_json(config.as_bytes()).unwrap();
    let random = Random::from_seed(1);
    let router = Router {
        config: &config,
        random: &random,
    };
    replay("header", |bytes| {
        match router.on_headers(&Route(bytes), true) {
            Decision::Steer(steering) if steering.sticky => {
                steering.writes[0].value.trim_start_matches("i:").to_owned()
            }
            Decision::Steer(_) => "split".into(),
            other => panic!("not steered: {other:?}"),
        }
    });
}
