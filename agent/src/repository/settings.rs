//! MLServer's `model-settings.json`: edited where the artefact brings one, made from the requirements where not.
use std::path::Path;

use seldon_proto::scheduler::{ModelSpec, model_spec};
use serde_json::{Map, Value, json};

use super::{RepositoryError, files};

/// MLServer's file in each model folder.
pub const SETTINGS: &str = "model-settings.json";

const KNOWN: &str = "alibi-detect, alibi-explain, lightgbm, mlflow, python, sklearn, xgboost";

/// Where explainers and language models reach other models: Envoy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferUri {
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

impl InferUri {
    fn of(&self, model: Option<&str>, pipeline: Option<&str>) -> Option<String> {
        let scheme = if self.tls { "https" } else { "http" };
        let (kind, name) = match (model, pipeline) {
            (Some(model), _) if !model.is_empty() => ("models", model),
            (_, Some(pipeline)) if !pipeline.is_empty() => ("pipelines", pipeline),
            _ => return None,
        };
        Some(format!(
            "{scheme}://{}:{}/v2/{kind}/{name}/infer",
            self.host, self.port
        ))
    }
}

/// The settings of one model: `existing` is the text of the artefact's own file, if it has one. Fields that are not
/// ours to set stay as they are, unknown ones too.
pub fn settings(
    existing: Option<&str>,
    root: &Path,
    spec: &ModelSpec,
    internal: &str,
    envoy: &InferUri,
) -> Result<Value, RepositoryError> {
    let mut settings = match existing {
        Some(text) => parse(text)?,
        None => generate(root, spec)?,
    };
    settings.insert("name".to_owned(), json!(internal));
    let parameters = object(&mut settings, "parameters");
    parameters.insert("version".to_owned(), json!("1"));
    let extra = extra(spec, envoy);
    if !extra.is_empty() {
        object(parameters, "extra").extend(extra);
    }
    if spec.model_spec.is_some() {
        settings.insert("parallel_workers".to_owned(), json!(0));
    }
    Ok(Value::Object(settings))
}

fn parse(text: &str) -> Result<Map<String, Value>, RepositoryError> {
    let wrong = |reason: String| RepositoryError::Settings {
        file: SETTINGS.to_owned(),
        reason,
    };
    // Some editors put a byte order mark in front.
    match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Object(settings)) => Ok(settings),
        Ok(_) => Err(wrong("it is not a JSON object".to_owned())),
        Err(error) => Err(wrong(format!("it is not JSON: {error}"))),
    }
}

/// The object under `name`, made when there is none.
fn object<'a>(parent: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(name).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object just above")
}

/// What the model's code gets: the Model's parameters and, for explainers and language models, whom to ask.
fn extra(spec: &ModelSpec, envoy: &InferUri) -> Map<String, Value> {
    let mut extra = Map::new();
    for parameter in &spec.parameters {
        extra.insert(parameter.name.clone(), json!(parameter.value));
    }
    let infer_uri = match &spec.model_spec {
        Some(model_spec::ModelSpec::Explainer(explainer)) => {
            extra.insert("explainer_type".to_owned(), json!(explainer.r#type));
            envoy.of(
                explainer.model_ref.as_deref(),
                explainer.pipeline_ref.as_deref(),
            )
        }
        Some(model_spec::ModelSpec::Llm(llm)) => {
            envoy.of(llm.model_ref.as_deref(), llm.pipeline_ref.as_deref())
        }
        None => None,
    };
    if let Some(uri) = infer_uri {
        extra.insert("infer_uri".to_owned(), json!(uri));
        if envoy.tls {
            extra.insert("ssl_verify_path".to_owned(), json!("/mnt/certs/ca.crt"));
        }
    }
    extra
}

/// Makes settings for the first requirement that has a rule.
fn generate(root: &Path, spec: &ModelSpec) -> Result<Map<String, Value>, RepositoryError> {
    for requirement in &spec.requirements {
        if let Some(settings) = for_requirement(root, requirement)? {
            return Ok(settings);
        }
    }
    if matches!(spec.model_spec, Some(model_spec::ModelSpec::Explainer(_))) {
        return explainer(root);
    }
    let requirements = spec.requirements.join(", ");
    let requirements = if requirements.is_empty() {
        "(none)".to_owned()
    } else {
        requirements
    };
    Err(RepositoryError::NoSettings {
        folder: shown(root),
        requirements,
        known: KNOWN,
    })
}

fn for_requirement(
    root: &Path,
    requirement: &str,
) -> Result<Option<Map<String, Value>>, RepositoryError> {
    let settings = match requirement {
        "alibi-detect" => runtime("mlserver_alibi_detect.AlibiDetectRuntime", "./"),
        "alibi-explain" => explainer(root)?,
        "lightgbm" => runtime(
            "mlserver_lightgbm.LightGBMModel",
            &model_file(root, &["bst"], "*.bst")?,
        ),
        "mlflow" => runtime("mlserver_mlflow.MLflowRuntime", "./"),
        "python" => custom(root)?,
        "sklearn" => {
            let file = model_file(
                root,
                &["joblib", "pkl", "pickle"],
                "*.joblib, *.pkl or *.pickle",
            )?;
            runtime("mlserver_sklearn.SKLearnModel", &file)
        }
        "xgboost" => runtime(
            "mlserver_xgboost.XGBoostModel",
            &model_file(root, &["json", "bst"], "*.json or *.bst")?,
        ),
        _ => return Ok(None),
    };
    Ok(Some(settings))
}

fn runtime(implementation: &str, uri: &str) -> Map<String, Value> {
    let settings =
        json!({"name": "", "implementation": implementation, "parameters": {"uri": uri}});
    settings.as_object().cloned().unwrap_or_default()
}

/// The explainer's own folder is the first one inside the artefact.
fn explainer(root: &Path) -> Result<Map<String, Value>, RepositoryError> {
    let inner = files::folders(root)?.into_iter().nth(1);
    let name = inner
        .as_deref()
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| RepositoryError::NoModelFile {
        patterns: "sub-folder with the explainer",
        folder: shown(root),
    })?;
    let mut settings = runtime(
        "mlserver_alibi_explain.AlibiExplainRuntime",
        &format!("./{name}"),
    );
    settings.insert("parallel_workers".to_owned(), json!(0));
    Ok(settings)
}

/// The first file by the order of the endings; of one ending, MLServer's own name `model` first, then by name.
fn model_file(
    root: &Path,
    endings: &[&str],
    patterns: &'static str,
) -> Result<String, RepositoryError> {
    let mut files = files::files(root)?;
    files.sort_by_key(|file| file.file_stem().is_none_or(|stem| stem != "model"));
    let found = endings.iter().find_map(|ending| {
        files.iter().find(|file| {
            file.extension()
                .is_some_and(|extension| extension == *ending)
        })
    });
    let name = found
        .and_then(|file| file.file_name())
        .map(|name| format!("./{}", name.to_string_lossy()));
    name.ok_or_else(|| RepositoryError::NoModelFile {
        patterns,
        folder: shown(root),
    })
}

/// `<file>.<Class>` of the first Python file with a class that extends `MLModel`.
fn custom(root: &Path) -> Result<Map<String, Value>, RepositoryError> {
    for file in files::files(root)? {
        if file.extension().is_none_or(|extension| extension != "py") {
            continue;
        }
        let source = std::fs::read_to_string(&file).unwrap_or_default();
        let (Some(class), Some(stem)) = (model_class(&source), file.file_stem()) else {
            continue;
        };
        let stem = stem.to_string_lossy();
        return Ok(runtime(&format!("{stem}.{class}"), &format!("./{stem}.py")));
    }
    Err(RepositoryError::NoModelClass {
        folder: shown(root),
    })
}

/// The name of the first class like `class Name(MLModel):` (also `mlserver.MLModel`, several bases, several lines).
fn model_class(source: &str) -> Option<&str> {
    let mut at = 0;
    source.split_inclusive('\n').find_map(|line| {
        let rest = source[at..].strip_prefix("class ");
        at += line.len();
        let (name, bases) = rest?.split_once('(')?;
        let (bases, _) = bases.split_once(')')?;
        let extends = bases
            .split(',')
            .any(|base| base.trim().rsplit('.').next() == Some("MLModel"));
        let name = name.trim();
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        (extends && is_name).then_some(name)
    })
}

/// A folder as an error shows it: its name inside the artefact, never a path of this machine.
fn shown(root: &Path) -> String {
    let number = root
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|name| name.parse::<u32>().is_ok());
    number.map_or_else(
        || "the artefact".to_owned(),
        |number| format!("the artefact's folder {number}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use seldon_proto::scheduler::{ExplainerSpec, LlmSpec, ParameterSpec};

    fn envoy() -> InferUri {
        InferUri {
            host: "envoy".into(),
            port: 9000,
            tls: false,
        }
    }

    fn spec(requirements: &[&str]) -> ModelSpec {
        ModelSpec {
            requirements: requirements.iter().map(|name| (*name).to_owned()).collect(),
            ..Default::default()
        }
    }

    fn folder(names: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn made(names: &[(&str, &str)], requirements: &[&str]) -> Result<Value, RepositoryError> {
        settings(
            None,
            folder(names).path(),
            &spec(requirements),
            "m_1",
            &envoy(),
        )
    }

    #[test]
    fn requirements_make_settings() {
        let python =
            "import x\nclass Other(Base):\n  pass\nclass Mine(mlserver.MLModel):\n  pass\n";
        for (files, requirement, implementation, uri) in [
            (
                vec![("b.pkl", ""), ("model.joblib", "")],
                "sklearn",
                "mlserver_sklearn.SKLearnModel",
                "./model.joblib",
            ),
            (
                vec![("b.pickle", "")],
                "sklearn",
                "mlserver_sklearn.SKLearnModel",
                "./b.pickle",
            ),
            (
                vec![("m.bst", "")],
                "xgboost",
                "mlserver_xgboost.XGBoostModel",
                "./m.bst",
            ),
            (
                vec![("m.bst", ""), ("m.json", "")],
                "xgboost",
                "mlserver_xgboost.XGBoostModel",
                "./m.json",
            ),
            (
                vec![("m.bst", "")],
                "lightgbm",
                "mlserver_lightgbm.LightGBMModel",
                "./m.bst",
            ),
            (
                vec![("features.json", ""), ("model.json", "")],
                "xgboost",
                "mlserver_xgboost.XGBoostModel",
                "./model.json",
            ),
            (
                vec![("MLmodel", "")],
                "mlflow",
                "mlserver_mlflow.MLflowRuntime",
                "./",
            ),
            (
                vec![("x", "")],
                "alibi-detect",
                "mlserver_alibi_detect.AlibiDetectRuntime",
                "./",
            ),
            (
                vec![("data/explainer.dill", "")],
                "alibi-explain",
                "mlserver_alibi_explain.AlibiExplainRuntime",
                "./data",
            ),
            (
                vec![("a.py", "x=1"), ("mine.py", python)],
                "python",
                "mine.Mine",
                "./mine.py",
            ),
        ] {
            let settings = made(&files, &["unknown", requirement]).unwrap();
            assert_eq!(settings["implementation"], implementation);
            assert_eq!(
                settings["parameters"],
                serde_json::json!({"uri": uri, "version": "1"})
            );
            assert_eq!(settings["name"], "m_1");
            assert_eq!(
                settings.get("parallel_workers").is_some(),
                requirement == "alibi-explain"
            );
        }
    }

    #[test]
    fn classes_are_found_as_python_is_written() {
        for (source, class) in [
            ("class A(MLModel):\n", Some("A")),
            ("class A:\n  x = (MLModel)\n", None),
            (
                "class A(\n    Base,\n    mlserver.MLModel,  \n):\n",
                Some("A"),
            ),
            ("class A(Base): pass\n\nclass B (MLModel) : pass", Some("B")),
            ("  class A(MLModel): pass", None),
            ("class A(MLModel", None),
            ("class É(MLModel):\r\n", Some("É")),
        ] {
            assert_eq!(model_class(source), class, "{source}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = |files: &[(&str, &str)], requirements: &[&str]| {
            made(files, requirements).unwrap_err().to_string()
        };
        assert_eq!(
            text(&[("readme", "")], &["sklearn"]),
            "no *.joblib, *.pkl or *.pickle in the artefact, and no model-settings.json either"
        );
        assert!(
            text(&[("a.py", "class A: pass")], &["python"])
                .starts_with("no class that extends MLModel")
        );
        assert_eq!(
            text(&[("x", "")], &["huggingface"]),
            "no model-settings.json in the artefact, and it is made for none of the requirements huggingface: add one that \
             names the implementation, or a requirement of alibi-detect, alibi-explain, lightgbm, mlflow, python, sklearn, \
             xgboost"
        );
        assert!(text(&[("x", "")], &[]).contains("none of the requirements (none)"));
    }

    #[test]
    fn own_settings_keep_every_field() {
        let text = r#"{"name":"iris","max_batch_size":5,"max_batch_time":0.1,"warm_workers":true,
            "implementation":"a.B","parameters":{"uri":"./m.joblib","extra":{"a":1},"unheard":[1,2]},"inputs":[{"name":"x"}]}"#;
        let mut wanted = spec(&["sklearn"]);
        wanted.parameters = vec![ParameterSpec {
            name: "query".into(),
            value: "choice == 1".into(),
        }];
        let root = folder(&[]);
        let edited = settings(Some(text), root.path(), &wanted, "iris_2", &envoy()).unwrap();
        let mut expected: Value = serde_json::from_str(text).unwrap();
        expected["name"] = json!("iris_2");
        expected["parameters"]["version"] = json!("1");
        expected["parameters"]["extra"]["query"] = json!("choice == 1");
        assert_eq!(edited, expected);
        let keys: Vec<_> = edited.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys[..3], ["name", "max_batch_size", "max_batch_time"]);
        for bad in ["[]", "{", "3"] {
            let error = settings(Some(bad), root.path(), &wanted, "m", &envoy()).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("model-settings.json cannot be used"),
                "{error}"
            );
        }
    }

    #[test]
    fn explainers_learn_whom_to_ask() {
        let mut wanted = spec(&[]);
        wanted.model_spec = Some(model_spec::ModelSpec::Explainer(ExplainerSpec {
            r#type: "anchor_tabular".into(),
            model_ref: Some("income".into()),
            pipeline_ref: None,
        }));
        let root = folder(&[("data/x", "")]);
        let made = settings(None, root.path(), &wanted, "e_1", &envoy()).unwrap();
        assert_eq!(made["parallel_workers"], 0);
        assert_eq!(
            made["parameters"]["extra"]["infer_uri"],
            "http://envoy:9000/v2/models/income/infer"
        );
        assert_eq!(
            made["parameters"]["extra"]["explainer_type"],
            "anchor_tabular"
        );
        wanted.model_spec = Some(model_spec::ModelSpec::Llm(LlmSpec {
            model_ref: None,
            pipeline_ref: Some("chat".into()),
        }));
        let tls = InferUri {
            tls: true,
            ..envoy()
        };
        let made = settings(
            Some("{\"parameters\":null}"),
            root.path(),
            &wanted,
            "l_1",
            &tls,
        )
        .unwrap();
        assert_eq!(
            made["parameters"]["extra"]["infer_uri"],
            "https://envoy:9000/v2/pipelines/chat/infer"
        );
        assert_eq!(
            made["parameters"]["extra"]["ssl_verify_path"],
            "/mnt/certs/ca.crt"
        );
    }
}
