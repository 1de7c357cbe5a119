use proptest::prelude::*;

use super::*;

fn name(path: &str) -> Option<String> {
    model_name_in_path(path.as_bytes())
}

#[test]
fn finds_the_name_that_each_form_of_path_holds() {
    for (path, expected) in [
        ("/v2/models/iris/infer", "iris"),
        ("/v2/models/iris", "iris"),
        ("/v2/models/iris/", "iris"),
        ("/v2/models/iris?a=/b", "iris"),
        ("/v2/models/iris/infer?x=1#y", "iris"),
        ("/v2/models/iris#y", "iris"),
        ("/v2/models/iris/versions/3/ready", "iris"),
        ("/v2/models/iris/infer/chat/completions", "iris"),
        (
            "/v2/models/e.experiment/infer_stream/models/x",
            "e.experiment",
        ),
        ("//v2//models///iris//infer", "iris"),
        ("/v2/models/p.pipeline/infer", "p.pipeline"),
        ("/v2/models/e.experiment/infer", "e.experiment"),
        ("/v2/pipelines/p/infer", "p.pipeline"),
        ("/v2/pipelines/p", "p.pipeline"),
        ("/v2/pipelines/p?q", "p.pipeline"),
        ("/v2/models/a%2Db%5f%C3%A9/infer", "a-b_é"),
        ("/v2/models/a%20b/infer", "a b"),
        ("/v2/models/a+b/infer", "a+b"),
        ("/v2/models/%2570/infer", "%70"),
        ("/v2/models/-/infer", "-"),
    ] {
        assert_eq!(name(path).as_deref(), Some(expected), "{path}");
    }
}

#[test]
fn finds_nothing_elsewhere() {
    for path in [
        "",
        "*",
        "/",
        "/v2",
        "/v2/models",
        "/v2/models/",
        "/v2/models//",
        "/v2/models/?name=iris",
        "/v2/pipelines/",
        "/v2/health/ready",
        "/v2/repository/models/iris/load",
        "/v1/models/iris",
        "/V2/models/iris",
        "/v2/Models/iris",
        "v2/models/iris",
        "http://h/v2/models/iris",
        "/inference.GRPCInferenceService/ModelInfer",
        "/v2/models/a%2Fb/infer",
        "/v2/models/%2f/infer",
        "/v2/models/..",
        "/v2/models/%2e%2E/infer",
        "/v2/models/a%00b",
        "/v2/models/a%0d%0ax-seldon-scope:%20i:b",
        "/v2/models/a%7Fb",
        "/v2/models/%20a",
        "/v2/models/a%",
        "/v2/models/a%4",
        "/v2/models/a%zz",
        "/v2/models/a%FFb",
    ] {
        assert_eq!(name(path), None, "{path}");
    }
    assert_eq!(
        name(&format!("/v2/models/{}", "a".repeat(MAX_NAME + 1))),
        None
    );
    assert_eq!(
        name(&format!("/v2/models/a/{}", "a".repeat(MAX_PATH))),
        None
    );
    assert_eq!(
        name(&format!("/v2/pipelines/{}", "a".repeat(MAX_NAME))),
        None
    );
    let longest = "a".repeat(MAX_NAME);
    assert_eq!(name(&format!("/v2/models/{longest}")), Some(longest));
}

proptest! {
    #[test]
    fn any_bytes_give_a_usable_name_or_none(mut path in proptest::collection::vec(any::<u8>(), 0..200), front: bool) {
        if front {
            path.splice(0..0, *b"/v2/models/");
        }
        if let Some(name) = model_name_in_path(&path) {
            prop_assert!(is_name(&name));
        }
    }

    #[test]
    fn an_encoded_name_comes_back(name in "[^/\\p{Cc}\\s]{1,40}", pipeline: bool, every: bool) {
        prop_assume!(!matches!(name.as_str(), "." | ".."));
        let encoded: String = name
            .bytes()
            .map(|b| if every || !b.is_ascii_alphanumeric() { format!("%{b:02X}") } else { char::from(b).to_string() })
            .collect();
        let (kind, suffix) = if pipeline { ("pipelines", ".pipeline") } else { ("models", "") };
        let found = model_name_in_path(format!("/v2/{kind}/{encoded}/infer?x={encoded}").as_bytes());
        prop_assert_eq!(found, Some(name + suffix));
    }
}
