//! Models, asked through Envoy: whether they are ready, and what their tensors are.
use std::{collections::BTreeMap, error::Error as _, time::Duration};

use futures_util::future::join_all;
use seldon_grpc::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use seldon_proto::{
    inference::{
        ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
        model_metadata_response::TensorMetadata,
    },
    scheduler::{Pipeline, PipelineStep},
};
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};

use crate::{failure::Failure, routes::Route};

/// How long a model may take to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client of Envoy.
#[derive(Clone)]
pub(crate) struct Models(GrpcInferenceServiceClient<Channel>);

impl Models {
    /// `envoy` connects when it is used.
    pub(crate) fn new(envoy: Channel) -> Self {
        Self(GrpcInferenceServiceClient::new(envoy))
    }

    /// Succeeds when all models of a pipeline's newest version are ready; fails naming those that are not.
    pub(crate) async fn ready(&self, route: &Route) -> Result<(), Failure> {
        let newest = route.versions().pop();
        let steps: Vec<String> = newest
            .iter()
            .flat_map(|pipeline| pipeline.steps.iter().map(|step| step.name.clone()))
            .collect();
        let asked = steps.iter().map(|model| self.model_ready(model));
        let mut waiting = Vec::new();
        for (model, ready) in steps.iter().zip(join_all(asked).await) {
            let name = &route.name;
            match ready {
                Ok(true) => {}
                Ok(false) => waiting.push(model.as_str()),
                Err(status) if status.source().is_some() => {
                    let cause = status.message();
                    let message = format!("pipeline {name}: Envoy cannot be asked: {cause}");
                    return Err(Failure::unasked(message));
                }
                Err(_) => waiting.push(model),
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let list = waiting.join(", ");
        let message = format!("pipeline {}: models that are not ready: {list}", route.name);
        Err(Failure::unready(message))
    }

    async fn model_ready(&self, model: &str) -> Result<bool, Status> {
        let request = addressed(
            model,
            ModelReadyRequest {
                name: model.to_owned(),
                ..Default::default()
            },
        )?;
        let answer = self.0.clone().model_ready(request).await?;
        Ok(answer.into_inner().ready)
    }

    /// What a pipeline takes and gives, as far as its models say so without contradiction.
    pub(crate) async fn metadata(&self, route: &Route) -> ModelMetadataResponse {
        let versions = route.versions();
        let mut metadata = ModelMetadataResponse {
            name: route.name.to_string(),
            versions: versions.iter().map(|one| one.version.to_string()).collect(),
            platform: "seldon-pipeline".to_owned(),
            ..Default::default()
        };
        let Some(newest) = versions.last() else {
            return metadata;
        };
        let ends = ends(newest);
        let steps = ends.iter().map(|model| self.model_metadata(model));
        let answers = join_all(steps).await;
        let known: BTreeMap<&str, ModelMetadataResponse> = ends
            .iter()
            .zip(answers)
            .filter_map(|(model, answer)| Some((model.as_str(), answer.ok()?)))
            .collect();
        metadata.inputs = inputs(newest, &known);
        metadata.outputs = outputs(newest, &known);
        metadata
    }

    async fn model_metadata(&self, model: &str) -> Result<ModelMetadataResponse, Status> {
        let request = addressed(
            model,
            ModelMetadataRequest {
                name: model.to_owned(),
                ..Default::default()
            },
        )?;
        let answer = self.0.clone().model_metadata(request).await?;
        Ok(answer.into_inner())
    }
}

fn addressed<T>(model: &str, message: T) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let name = MetadataValue::try_from(model)
        .map_err(|_| Status::invalid_argument(format!("{model:?} is no name of a model")))?;
    request.metadata_mut().insert("seldon-model", name);
    request.set_timeout(PATIENCE);
    Ok(request)
}

/// A reference such as `step.outputs.tensor`: its step, side and tensor.
fn reference(text: &str) -> (&str, Option<&str>, Option<&str>) {
    for side in [".outputs", ".inputs"] {
        if let Some((step, rest)) = text.split_once(side)
            && (rest.is_empty() || rest.starts_with('.'))
        {
            let tensor = rest.strip_prefix('.').filter(|tensor| !tensor.is_empty());
            return (step, Some(&side[1..]), tensor);
        }
    }
    (text, None, None)
}

/// Whether a step reads the pipeline's own input through this reference.
fn of_pipeline(pipeline: &Pipeline, input: &str) -> bool {
    let (step, side, _) = reference(input);
    step == pipeline.name && side != Some("outputs")
}

fn is_first(pipeline: &Pipeline, step: &PipelineStep) -> bool {
    step.inputs.is_empty() || step.inputs.iter().any(|input| of_pipeline(pipeline, input))
}

/// The models at the pipeline's ends.
fn ends(pipeline: &Pipeline) -> Vec<String> {
    let first = pipeline
        .steps
        .iter()
        .filter(|step| is_first(pipeline, step));
    let output = pipeline.output.iter().flat_map(|output| &output.steps);
    let mut ends: Vec<String> = first
        .map(|step| step.name.clone())
        .chain(output.map(|step| reference(step).0.to_owned()))
        .collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

type Known<'a> = BTreeMap<&'a str, ModelMetadataResponse>;

fn inputs(pipeline: &Pipeline, known: &Known<'_>) -> Vec<TensorMetadata> {
    let mut all = Gathered::default();
    for step in pipeline
        .steps
        .iter()
        .filter(|step| is_first(pipeline, step))
    {
        let Some(metadata) = known.get(step.name.as_str()) else {
            return Vec::new();
        };
        // Where a step also reads others, which tensors come from the caller is not known unless they are named.
        let own: Vec<_> = step
            .inputs
            .iter()
            .filter(|input| of_pipeline(pipeline, input))
            .map(|input| reference(input).2)
            .collect();
        let whole = own.contains(&None) || step.inputs.is_empty();
        let mixed = own.len() < step.inputs.len();
        for tensor in &metadata.inputs {
            let name = before(step, &pipeline.name, &tensor.name);
            if own.contains(&Some(name)) || (whole && !mixed) {
                all.add(name, tensor);
            }
        }
    }
    all.0.into_values().flatten().collect()
}

/// A tensor's name before the step's `tensorMap` renames it.
fn before<'a>(step: &'a PipelineStep, pipeline: &str, tensor: &'a str) -> &'a str {
    let mut renamed = step.tensor_map.iter().filter_map(|(from, to)| {
        let (source, side, name) = reference(from);
        let own = source == pipeline && side != Some("outputs") && to == tensor;
        own.then_some(name).flatten()
    });
    renamed.next().unwrap_or(tensor)
}

fn outputs(pipeline: &Pipeline, known: &Known<'_>) -> Vec<TensorMetadata> {
    let mut all = Gathered::default();
    let Some(output) = &pipeline.output else {
        return Vec::new();
    };
    for text in &output.steps {
        let (step, side, wanted) = reference(text);
        let Some(metadata) = known.get(step) else {
            return Vec::new();
        };
        let (side, tensors) = match side {
            Some("inputs") => ("inputs", &metadata.inputs),
            _ => ("outputs", &metadata.outputs),
        };
        for tensor in tensors {
            if wanted.is_none_or(|wanted| wanted == tensor.name) {
                let key = format!("{step}.{side}.{}", tensor.name);
                let name = output.tensor_map.get(&key).unwrap_or(&tensor.name);
                all.add(name, tensor);
            }
        }
    }
    all.0.into_values().flatten().collect()
}

/// Tensors by name; `None` where two models disagree.
#[derive(Default)]
struct Gathered(BTreeMap<String, Option<TensorMetadata>>);

impl Gathered {
    fn add(&mut self, name: &str, tensor: &TensorMetadata) {
        let tensor = TensorMetadata {
            name: name.to_owned(),
            ..tensor.clone()
        };
        let known = self.0.entry(name.to_owned());
        known
            .and_modify(|known| {
                if known.as_ref() != Some(&tensor) {
                    *known = None;
                }
            })
            .or_insert_with(|| Some(tensor.clone()));
    }
}

#[cfg(test)]
mod tests {
    use seldon_proto::scheduler::PipelineOutput;

    use super::*;

    fn tensor(name: &str, datatype: &str) -> TensorMetadata {
        TensorMetadata {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: vec![-1, 4],
            ..Default::default()
        }
    }

    fn names(tensors: &[TensorMetadata]) -> Vec<&str> {
        tensors.iter().map(|tensor| tensor.name.as_str()).collect()
    }

    #[test]
    fn the_ends_describe_the_pipeline() {
        let step = |name: &str, inputs: &[&str]| PipelineStep {
            name: name.to_owned(),
            inputs: inputs.iter().map(|text| text.to_string()).collect(),
            ..Default::default()
        };
        let mut first = step("a", &["p.inputs.x"]);
        first.tensor_map.insert("p.inputs.x".into(), "in".into());
        let mut output = PipelineOutput {
            steps: vec!["b.outputs.out".into(), "a".into()],
            ..Default::default()
        };
        output.tensor_map.insert("b.outputs.out".into(), "y".into());
        let pipeline = Pipeline {
            name: "p".into(),
            steps: vec![first, step("b", &["a"]), step("c", &[])],
            output: Some(output),
            ..Default::default()
        };
        assert_eq!(ends(&pipeline), ["a", "b", "c"]);
        let model = |inputs: &[TensorMetadata], outputs: &[TensorMetadata]| ModelMetadataResponse {
            inputs: inputs.to_vec(),
            outputs: outputs.to_vec(),
            ..Default::default()
        };
        let mut known = Known::new();
        known.insert("a", model(&[tensor("in", "FP32")], &[tensor("z", "INT8")]));
        known.insert(
            "b",
            model(&[], &[tensor("out", "FP32"), tensor("other", "FP32")]),
        );
        known.insert("c", model(&[tensor("w", "FP32")], &[]));
        assert_eq!(names(&inputs(&pipeline, &known)), ["w", "x"]);
        assert_eq!(names(&outputs(&pipeline, &known)), ["y", "z"]);
        // Two models that disagree about a tensor: it is left out.
        known.insert("c", model(&[tensor("x", "INT64")], &[]));
        assert!(inputs(&pipeline, &known).is_empty());
        known.remove("b");
        assert!(outputs(&pipeline, &known).is_empty());
    }
}
