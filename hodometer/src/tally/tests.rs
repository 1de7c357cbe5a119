use std::collections::BTreeMap;

use seldon_proto::scheduler::{
    KubernetesMeta, PipelineVersionState, PipelineWithState, ServerReplicaResources,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    event,
    usage::{Installation, Level, Usage},
};

fn server(name: &str, expected: i32, replicas: &[(u64, u32)]) -> ServerStatusResponse {
    let resources = replicas
        .iter()
        .map(|(memory, over_commit)| ServerReplicaResources {
            total_memory_bytes: *memory,
            over_commit_percentage: *over_commit,
            ..Default::default()
        });
    ServerStatusResponse {
        server_name: name.to_owned(),
        expected_replicas: expected,
        resources: resources.collect(),
        ..Default::default()
    }
}

fn pipeline(state: PipelineStatus) -> PipelineStatusResponse {
    let state = PipelineVersionState {
        status: state.into(),
        ..Default::default()
    };
    PipelineStatusResponse {
        pipeline_name: "p".to_owned(),
        versions: vec![PipelineWithState {
            pipeline: None,
            state: Some(state),
        }],
        ..Default::default()
    }
}

fn busy() -> Tally {
    let mut tally = Tally::default();
    for _ in 0..3 {
        tally.model(&ModelStatusResponse::default());
    }
    for state in [
        PipelineStatus::PipelineReady,
        PipelineStatus::PipelineFailed,
    ] {
        tally.pipeline(&pipeline(state));
    }
    tally.experiment(&ExperimentStatusResponse::default());
    tally.server(&server(
        "mlserver-of-somebody",
        -1,
        &[(1 << 30, 0), (1 << 29, 10)],
    ));
    tally.server(&server("triton", 4, &[(1 << 30, 0)]));
    tally
}

fn usage(level: Level, tally: &Tally, limits: Limits) -> Usage {
    Usage {
        installation: Installation {
            cluster_id: "id".to_owned(),
            seldon_core_version: "1.2.3".to_owned(),
            is_global_installation: Some(false),
            is_kubernetes: true,
            kubernetes_version: Some("v1.36.3".to_owned()),
            node_count: Some(5),
        },
        resources: (level >= Level::Resource).then(|| tally.resources()),
        features: (level >= Level::Feature).then(|| tally.features(limits)),
    }
}

const LIMITS: Limits = Limits {
    cpu_cores: Some(2.5),
    gpu_servers: Some(1),
};

/// Names, types and levels of the documentation, which has seventeen.
const CLUSTER: [(&str, &str); 6] = [
    ("cluster_id", "String"),
    ("seldon_core_version", "String"),
    ("is_global_installation", "Boolean"),
    ("is_kubernetes", "Boolean"),
    ("kubernetes_version", "String"),
    ("node_count", "Integer"),
];
const RESOURCE: [(&str, &str); 5] = [
    ("model_count", "Integer"),
    ("pipeline_count", "Integer"),
    ("experiment_count", "Integer"),
    ("server_count", "Integer"),
    ("server_replica_count", "Integer"),
];
const FEATURE: [(&str, &str); 6] = [
    ("multimodel_enabled_count", "Integer"),
    ("overcommit_enabled_count", "Integer"),
    ("gpu_enabled_count", "Integer"),
    ("inference_server_name", "String"),
    ("server_cpu_cores_sum", "Float"),
    ("server_memory_gb_sum", "Float"),
];

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "String",
        Value::Bool(_) => "Boolean",
        Value::Number(number) if number.is_f64() => "Float",
        Value::Number(_) => "Integer",
        _ => "undocumented",
    }
}

#[test]
fn each_level_tells_the_documented_fields_and_no_others() {
    for (level, parts) in [
        (Level::Cluster, vec![&CLUSTER[..]]),
        (Level::Resource, vec![&CLUSTER, &RESOURCE]),
        (Level::Feature, vec![&CLUSTER, &RESOURCE, &FEATURE]),
    ] {
        let told = serde_json::to_value(usage(level, &busy(), LIMITS)).unwrap();
        let told = told.as_object().unwrap();
        let told: BTreeMap<_, _> = told.iter().map(|(k, v)| (k.as_str(), kind(v))).collect();
        let documented: BTreeMap<_, _> = parts.concat().into_iter().collect();
        assert_eq!(told, documented, "{level:?}");
    }
}

#[test]
fn everything_is_counted() {
    let told = serde_json::to_value(usage(Level::Feature, &busy(), LIMITS)).unwrap();
    let wanted = json!({
        "cluster_id": "id",
        "seldon_core_version": "1.2.3",
        "is_global_installation": false,
        "is_kubernetes": true,
        "kubernetes_version": "v1.36.3",
        "node_count": 5,
        "model_count": 3,
        "pipeline_count": 2,
        "experiment_count": 1,
        "server_count": 2,
        // Two that are there, and four that an operator wants.
        "server_replica_count": 6,
        "multimodel_enabled_count": 2,
        "overcommit_enabled_count": 1,
        "gpu_enabled_count": 1,
        "inference_server_name": "MLServer,Triton",
        "server_cpu_cores_sum": 2.5,
        "server_memory_gb_sum": 2.5,
    });
    assert_eq!(told, wanted);
}

#[test]
fn what_is_not_known_is_left_out() {
    let mut usage = usage(Level::Feature, &Tally::default(), Limits::default());
    usage.installation.is_global_installation = None;
    usage.installation.kubernetes_version = None;
    usage.installation.node_count = None;
    let told = serde_json::to_value(usage).unwrap();
    for field in [
        "is_global_installation",
        "kubernetes_version",
        "node_count",
        "gpu_enabled_count",
        "inference_server_name",
        "server_cpu_cores_sum",
    ] {
        assert_eq!(told.get(field), None, "{field}");
    }
    assert_eq!(told["model_count"], 0);
    assert_eq!(told["server_memory_gb_sum"], json!(0.0));
}

#[test]
fn what_is_on_its_way_out_does_not_count() {
    let mut tally = Tally::default();
    tally.model(&ModelStatusResponse {
        deleted: true,
        ..Default::default()
    });
    for state in [
        PipelineStatus::PipelineTerminate,
        PipelineStatus::PipelineTerminating,
        PipelineStatus::PipelineTerminated,
        PipelineStatus::PipelineFailedTerminating,
    ] {
        tally.pipeline(&pipeline(state));
    }
    assert_eq!(tally.resources(), Resources::default());
    // A new version on its way counts as the pipeline that it is.
    tally.pipeline(&pipeline(PipelineStatus::PipelineCreating));
    assert_eq!(tally.resources().pipeline_count, 1);
}

#[test]
fn no_name_that_a_user_gave_leaves() {
    let mut tally = Tally::default();
    let meta = KubernetesMeta {
        namespace: "acme".to_owned(),
        generation: 1,
    };
    tally.server(&ServerStatusResponse {
        kubernetes_meta: Some(meta),
        ..server("acme-secret", -1, &[])
    });
    tally.server(&server("triton-for-acme", -1, &[]));
    tally.model(&ModelStatusResponse {
        model_name: "acme-model".to_owned(),
        ..Default::default()
    });
    let usage = usage(Level::Feature, &tally, Limits::NONE);
    let body = event::body(&usage, "insert", 7).unwrap();
    assert!(!body.contains("acme"), "{body}");
    assert!(
        body.contains(r#""inference_server_name":"Triton,other""#),
        "{body}"
    );
    // The limits of a Server are looked up by what is not told.
    let wanted = (Some("acme".to_owned()), "acme-secret".to_owned());
    assert_eq!(tally.servers()[0], wanted);
}

#[test]
fn an_event_has_the_form_that_mixpanel_takes() {
    let usage = usage(Level::Cluster, &Tally::default(), Limits::NONE);
    let body = event::body(&usage, "insert", 7).unwrap();
    let body: Value = serde_json::from_str(&body).unwrap();
    let wanted = json!([{
        "event": "usage_metrics",
        "properties": {
            "time": 7,
            "distinct_id": "id",
            "$insert_id": "insert",
            "cluster_id": "id",
            "seldon_core_version": "1.2.3",
            "is_global_installation": false,
            "is_kubernetes": true,
            "kubernetes_version": "v1.36.3",
            "node_count": 5,
        },
    }]);
    assert_eq!(body, wanted);
}
