//! Rules that the types alone do not hold. Each gives the path of the field and what is wrong with it.
use crate::{API_VERSION, Explainer, Llm, Manifest, Model, ModelSpec, ObjectMeta};

/// A path of keys inside the document, and what is wrong there.
pub(crate) type Finding = (&'static [&'static str], String);

/// Kubernetes takes no longer name of an object.
const LONGEST_NAME: usize = 253;

/// A name has the letters of a DNS label and the length that Kubernetes allows for an object.
pub fn is_valid_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            bytes.len() <= LONGEST_NAME
                && inner(*first)
                && inner(*last)
                && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        }
        _ => false,
    }
}

/// All that is wrong with a manifest.
pub(crate) fn findings(manifest: &Manifest) -> Vec<Finding> {
    let mut found = Vec::new();
    if manifest.api_version() != API_VERSION {
        let reason = format!(
            "\"{}\" is not known, expected {API_VERSION}",
            manifest.api_version()
        );
        found.push((&["apiVersion"][..], reason));
    }
    // Others become parts of topics and headers, where a dot separates; an experiment's name has an end of its own.
    let dots = matches!(manifest, Manifest::Experiment(_));
    name(manifest.metadata(), dots, &mut found);
    match manifest {
        Manifest::Model(model) => check_model(model, &mut found),
        Manifest::Server(server) => {
            let spec = &server.spec;
            scaling(
                spec.replicas,
                spec.min_replicas,
                spec.max_replicas,
                &mut found,
            );
            if spec.server_config.trim().is_empty() {
                found.push((&["spec", "serverConfig"], "must not be empty".to_owned()));
            }
        }
        Manifest::Pipeline(pipeline) if pipeline.spec.steps.is_empty() => {
            found.push((&["spec", "steps"], "must name at least one step".to_owned()));
        }
        Manifest::Experiment(experiment)
            if experiment.spec.candidates.is_empty() && experiment.spec.mirror.is_none() =>
        {
            found.push((
                &["spec", "candidates"],
                "must name at least one candidate, where there is no mirror".to_owned(),
            ));
        }
        Manifest::Pipeline(_) | Manifest::Experiment(_) => {}
    }
    found
}

fn name(metadata: &ObjectMeta, dots: bool, found: &mut Vec<Finding>) {
    let length = metadata.name.len();
    if length > LONGEST_NAME {
        let reason = format!("a name of {length} bytes is too long, use {LONGEST_NAME} at most");
        found.push((&["metadata", "name"], reason));
        return;
    }
    let valid = match dots {
        true => metadata.name.split('.').all(is_valid_name),
        false => is_valid_name(&metadata.name),
    };
    if !valid {
        found.push((
            &["metadata", "name"],
            format!(
                "\"{}\" is not a valid name, use lower case letters, digits and \"-\", with a letter or digit at both ends",
                metadata.name.escape_debug()
            ),
        ));
    }
}

fn check_model(model: &Model, found: &mut Vec<Finding>) {
    let spec: &ModelSpec = &model.spec;
    scaling(spec.replicas, spec.min_replicas, spec.max_replicas, found);
    if spec.storage_uri.trim().is_empty() {
        found.push((&["spec", "storageUri"], "must not be empty".to_owned()));
    }
    if spec.explainer.is_some() && spec.llm.is_some() {
        found.push((
            &["spec", "llm"],
            "a model cannot have both explainer and llm".to_owned(),
        ));
    }
    if let Some(Explainer {
        model_ref: Some(_),
        pipeline_ref: Some(_),
        ..
    }) = spec.explainer
    {
        found.push((&["spec", "explainer"], one_reference()));
    }
    if let Some(Llm {
        model_ref: Some(_),
        pipeline_ref: Some(_),
    }) = spec.llm
    {
        found.push((&["spec", "llm"], one_reference()));
    }
}

fn one_reference() -> String {
    "modelRef and pipelineRef exclude each other".to_owned()
}

/// Replicas must lie between the minimum and the maximum.
fn scaling(replicas: Option<u32>, min: Option<u32>, max: Option<u32>, found: &mut Vec<Finding>) {
    let (low, high) = (min.unwrap_or(0), max.unwrap_or(u32::MAX));
    if low > high {
        found.push((
            &["spec", "minReplicas"],
            format!("{low} is more than maxReplicas {high}"),
        ));
        return;
    }
    // Without `replicas` the minimum is the number wanted, else one.
    let wanted = crate::model::wanted_replicas(replicas, min);
    if wanted < low {
        found.push((
            &["spec", "replicas"],
            format!("{wanted} is less than minReplicas {low}"),
        ));
    }
    if wanted > high {
        found.push((
            &["spec", "replicas"],
            format!("{wanted} is more than maxReplicas {high}"),
        ));
    }
}
