//! Reading manifests: what is accepted, how mistakes are told, and what becomes of a model.
use std::fs;

use proptest::prelude::*;
use seldon_proto::scheduler as proto;
use seldon_resources::{Manifest, read};

const IRIS: &str = "# Samples of models
apiVersion: mlops.seldon.io/v1alpha1
kind: Model
metadata:
  name: iris
spec:
  storageUri: \"gs://seldon-models/scv2/samples/mlserver_1.3.5/iris-sklearn\"
  requirements:
  - sklearn
  memory: 100Ki
";

fn mistakes(text: &str) -> String {
    read("sklearn.yaml", text)
        .expect_err("the manifest is wrong")
        .to_string()
}

fn model(text: &str) -> proto::Model {
    let documents = read("sklearn.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    match &documents[0].manifest {
        Manifest::Model(model) => model.to_proto(),
        other => panic!("a {} came out", other.kind()),
    }
}

#[test]
fn the_documented_model_becomes_the_documented_message() {
    let message = model(IRIS);
    assert_eq!(
        message,
        proto::Model {
            meta: Some(proto::MetaData {
                name: "iris".to_owned(),
                kubernetes_meta: Some(proto::KubernetesMeta::default()),
                ..Default::default()
            }),
            model_spec: Some(proto::ModelSpec {
                uri: "gs://seldon-models/scv2/samples/mlserver_1.3.5/iris-sklearn".to_owned(),
                requirements: vec!["sklearn".to_owned()],
                memory_bytes: Some(102_400),
                ..Default::default()
            }),
            deployment_spec: Some(proto::DeploymentSpec {
                replicas: 1,
                ..Default::default()
            }),
            stream_spec: None,
            dataflow_spec: None,
        }
    );
}

#[test]
fn every_field_of_a_model_is_carried() {
    let message = model(
        "apiVersion: mlops.seldon.io/v1alpha1
kind: Model
metadata: {name: m, namespace: ns, generation: 3, labels: {a: b}, annotations: {c: \"1\"}}
spec:
  storageUri: s3://bucket/m
  modelType: sklearn
  artifactVersion: 2
  schemaUri: x
  secretName: minio
  requirements: [mlserver]
  memory: 1M
  minReplicas: 2
  maxReplicas: 4
  server: mlserver
  preloaded: false
  dedicated: true
  logger: {percent: 100}
  explainer: {type: anchor_tabular, modelRef: income}
  parameters: [{name: a, value: \"1\"}, {name: b, value: 2}]
  dataflow: {cleanTopicsOnDelete: true}
status: {}
",
    );
    let meta = message
        .meta
        .expect("metadata")
        .kubernetes_meta
        .expect("always sent");
    assert_eq!((meta.namespace.as_str(), meta.generation), ("ns", 3));
    let deployment = message.deployment_spec.expect("always sent");
    assert_eq!(
        (
            deployment.replicas,
            deployment.min_replicas,
            deployment.max_replicas
        ),
        (2, 2, 4)
    );
    assert!(deployment.log_payloads);
    let spec = message.model_spec.expect("always sent");
    assert_eq!(spec.requirements, ["mlserver", "sklearn"]);
    assert_eq!(
        (spec.memory_bytes, spec.artifact_version),
        (Some(1_000_000), Some(2))
    );
    assert_eq!(spec.parameters[1].value, "2");
    assert!(matches!(
        spec.model_spec,
        Some(proto::model_spec::ModelSpec::Explainer(_))
    ));
    assert!(message.dataflow_spec.expect("given").clean_topics_on_delete);
}

#[test]
fn mistakes_name_the_line_and_the_field() {
    let table = [
        (
            IRIS.replace("  memory: 100Ki", "  replicas: \"two\""),
            "sklearn.yaml:10: spec.replicas: invalid type: string \"two\", expected u32",
        ),
        (
            IRIS.replace("memory: 100Ki", "replicas: -1"),
            "sklearn.yaml:10: spec.replicas: invalid value: integer `-1`, expected u32",
        ),
        (
            IRIS.replace("memory: 100Ki", "memory: 100Kb"),
            "sklearn.yaml:10: spec.memory: invalid quantity \"100Kb\", expected a number with an optional suffix such as 100Ki, 1.5Gi or 1M",
        ),
        (
            IRIS.replace("  - sklearn", "  - [sklearn]"),
            "sklearn.yaml:9: spec.requirements[0]: invalid type: sequence, expected a string",
        ),
        (
            IRIS.replace("name: iris", "name: Iris_"),
            "sklearn.yaml:5: metadata.name: \"Iris_\" is not a valid name, use lower case letters, digits and \"-\", with a letter or digit at both ends",
        ),
        (
            IRIS.replace("kind: Model", "kind: Modle"),
            "sklearn.yaml:3: kind: \"Modle\" is not known, expected Model, Server, Pipeline or Experiment",
        ),
        (
            IRIS.replace("v1alpha1", "v2"),
            "sklearn.yaml:2: apiVersion: \"mlops.seldon.io/v2\" is not known, expected mlops.seldon.io/v1alpha1",
        ),
        (
            IRIS.replace("memory: 100Ki", "minReplicas: 3\n  maxReplicas: 2"),
            "sklearn.yaml:10: spec.minReplicas: 3 is more than maxReplicas 2",
        ),
        (
            IRIS.replace("memory: 100Ki", "explainer: {modelRef: a, pipelineRef: b}"),
            "sklearn.yaml:10: spec.explainer: modelRef and pipelineRef exclude each other",
        ),
        (
            IRIS.replace("memory: 100Ki", "llm: {modelRef: a, pipelineRef: b}"),
            "sklearn.yaml:10: spec.llm: modelRef and pipelineRef exclude each other",
        ),
        (
            IRIS.replace(
                "memory: 100Ki",
                "explainer: {modelRef: a}\n  llm: {modelRef: b}",
            ),
            "sklearn.yaml:11: spec.llm: a model cannot have both explainer and llm",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(mistakes(&text), expected);
    }
    let unknown = mistakes(&IRIS.replace("requirements:", "requirement:"));
    assert!(
        unknown.starts_with("sklearn.yaml:8: spec.requirement: unknown field `requirement`, expected one of `storageUri`"),
        "{unknown}"
    );
    let missing = mistakes(&IRIS.replace("storageUri", "schemaUri"));
    assert_eq!(missing, "sklearn.yaml:6: spec: missing field `storageUri`");
    let broken = mistakes(&IRIS.replace("  name: iris", "  name: [iris"));
    assert!(broken.starts_with("sklearn.yaml:"), "{broken}");
    assert!(mistakes("# nothing\n---\n").contains("no manifest in it"));
}

#[test]
fn documents_are_told_apart_and_all_mistakes_are_told() {
    let two = format!("{IRIS}---\n{}", IRIS.replace("iris", "iris2"));
    let documents = read("two.yaml", &two).unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<_> = documents
        .iter()
        .map(|d| (d.line, d.manifest.metadata().name.as_str()))
        .collect();
    assert_eq!(names, [(2, "iris"), (13, "iris2")]);
    let wrong = mistakes(
        &two.replace("100Ki", "x")
            .replace("Model\n", "Model\nfoo: 1\n"),
    );
    let lines: Vec<_> = wrong
        .lines()
        .map(|line| line.split(": ").next().unwrap_or_default())
        .collect();
    assert_eq!(lines, ["sklearn.yaml:4", "sklearn.yaml:16"]);
}

#[test]
fn the_corpus_never_panics() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("the corpus is part of the crate") {
        let path = entry.expect("readable").path();
        let text = fs::read(&path).expect("readable");
        let accepted = read("x", &String::from_utf8_lossy(&text)).is_ok();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        assert_eq!(accepted, name.starts_with("ok-"), "{name}");
        count += 1;
    }
    assert!(count >= 10);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
        let _ = read("x", &text);
    }

    #[test]
    fn damaged_manifests_are_read_or_refused(at in 0..IRIS.len(), what in "[-:\\[\\]{}\"'&*!|>%@` \n\t#?a0]{0,6}", cut in 0usize..12) {
        let end = (at + cut).min(IRIS.len());
        let text = format!("{}{what}{}", &IRIS[..at], &IRIS[end..]);
        if let Err(mistakes) = read("x", &text) {
            prop_assert!(!mistakes.0.is_empty());
            for mistake in mistakes.0 {
                prop_assert!(mistake.line <= text.lines().count() as u64 + 1);
            }
        }
    }
}

#[test]
fn a_name_has_at_most_253_bytes() {
    let named =
        |length: usize| IRIS.replace("name: iris", &format!("name: {}", "a".repeat(length)));
    assert_eq!(model(&named(253)).meta.unwrap().name.len(), 253);
    let told = mistakes(&named(254));
    assert!(
        told.contains("a name of 254 bytes is too long, use 253 at most"),
        "{told}"
    );
}

const SPLIT: &str = "apiVersion: mlops.seldon.io/v1alpha1
kind: Experiment
metadata:
  name: experiment-sample
spec:
  default: iris
  candidates:
  - name: iris
    weight: 50
  - name: iris2
    weight: 50
  mirror:
    name: iris3
    percent: 10
";

fn experiment(text: &str) -> proto::Experiment {
    let documents = read("e.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    match &documents[0].manifest {
        Manifest::Experiment(experiment) => experiment.to_proto(),
        other => panic!("a {} came out", other.kind()),
    }
}

#[test]
fn cohort_and_rollout_are_carried_and_a_plain_experiment_has_none() {
    let plain = experiment(SPLIT);
    assert_eq!((&plain.cohort, &plain.rollout), (&None, &None));
    let full = experiment(&format!(
        "{SPLIT}  cohort: {{header: X-User}}
  rollout: {{steps: [5, 100], intervalSeconds: 30, minRequests: 20, maxErrorRateIncrease: 0.5, maxLatencyRatio: 2}}
"
    ));
    assert_eq!(full.cohort.expect("given").header, "x-user");
    assert_eq!(
        full.rollout,
        Some(proto::ExperimentRollout {
            steps: vec![5, 100],
            interval_seconds: 30,
            min_requests: 20,
            max_error_rate_increase: Some(0.5),
            max_latency_ratio: Some(2.0),
        })
    );
    let bare = experiment(&format!("{SPLIT}  rollout: {{}}\n"));
    assert_eq!(bare.rollout, Some(proto::ExperimentRollout::default()));
}

#[test]
fn wrong_numbers_of_an_experiment_name_the_object_and_the_range() {
    let table = [
        (
            SPLIT.replace("iris2\n    weight: 50", "iris2\n    weight: -5"),
            "sklearn.yaml:11: spec.candidates[1].weight: the weight of iris2 is -5, use a whole number from 0 to 4294967295",
        ),
        (
            SPLIT.replace("iris2\n    weight: 50", "iris2\n    weight: 0.5"),
            "sklearn.yaml:11: spec.candidates[1].weight: the weight of iris2 is 0.5, use a whole number from 0 to 4294967295",
        ),
        (
            SPLIT.replace("percent: 10", "percent: -1"),
            "sklearn.yaml:14: spec.mirror.percent: the percent of iris3 is -1, use a whole number from 0 to 100",
        ),
        (
            format!("{SPLIT}  rollout: {{step: [1]}}\n"),
            "sklearn.yaml:15: spec.rollout.step: unknown field `step`, expected one of `steps`, `intervalSeconds`, `minRequests`, `maxErrorRateIncrease`, `maxLatencyRatio`",
        ),
        (
            format!("{SPLIT}  cohort: {{}}\n"),
            "sklearn.yaml:15: spec.cohort: missing field `header`",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(mistakes(&text), expected);
    }
}

#[test]
fn every_sample_is_a_manifest() {
    let mut folders = vec![concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples").into()];
    let (mut samples, mut experiments) = (0, 0);
    while let Some(folder) = folders.pop() {
        let folder: std::path::PathBuf = folder;
        for entry in fs::read_dir(&folder).expect("samples are part of the repository") {
            let path = entry.expect("readable").path();
            if path.ends_with("samples/envoy") {
                continue; // Envoy's configuration
            }
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "yaml")
            {
                let text = fs::read_to_string(&path).expect("readable");
                let documents = read(&path.display().to_string(), &text)
                    .unwrap_or_else(|error| panic!("{error}"));
                samples += documents.len();
                experiments += documents
                    .iter()
                    .filter(|document| document.manifest.kind() == "Experiment")
                    .count();
            }
        }
    }
    assert!(
        samples >= 18 && experiments >= 10,
        "{samples}, {experiments}"
    );
}
