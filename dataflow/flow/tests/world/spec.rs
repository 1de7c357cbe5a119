//! Pipelines as their manifests say, and what the scheduler makes of them.
use seldon_proto::chainer::{
    self, PipelineStepUpdate, PipelineTensorMapping, PipelineTopic, PipelineUpdateMessage,
    pipeline_step_update::PipelineJoinType,
};

use super::names;

#[derive(Clone, Copy, Debug, Default)]
pub struct Batch {
    pub size: Option<u32>,
    pub window_ms: Option<u32>,
}

#[derive(Clone, Debug, Default)]
pub struct Step {
    pub name: String,
    pub inputs: Vec<String>,
    pub triggers: Vec<String>,
    pub map: Vec<(String, String)>,
    pub join: PipelineJoinType,
    pub triggers_join: PipelineJoinType,
    pub window_ms: Option<u32>,
    pub batch: Option<Batch>,
}

#[derive(Clone, Debug, Default)]
pub struct Spec {
    pub name: String,
    pub external: Option<Step>,
    pub steps: Vec<Step>,
    pub output: Option<Step>,
    pub max_revisits: Option<u32>,
}

fn owned(list: &[&str]) -> Vec<String> {
    list.iter().map(|item| (*item).to_owned()).collect()
}

impl Step {
    pub fn new(name: &str, inputs: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            inputs: owned(inputs),
            ..Self::default()
        }
    }
    pub fn triggers(mut self, triggers: &[&str]) -> Self {
        self.triggers = owned(triggers);
        self
    }
    pub fn map(mut self, from: &str, to: &str) -> Self {
        self.map.push((from.to_owned(), to.to_owned()));
        self
    }
    pub fn join(mut self, join: PipelineJoinType) -> Self {
        self.join = join;
        self
    }
    pub fn triggers_join(mut self, join: PipelineJoinType) -> Self {
        self.triggers_join = join;
        self
    }
    pub fn window(mut self, window_ms: u32) -> Self {
        self.window_ms = Some(window_ms);
        self
    }
    pub fn batch(mut self, size: Option<u32>, window_ms: Option<u32>) -> Self {
        self.batch = Some(Batch { size, window_ms });
        self
    }
}

impl Spec {
    pub fn new(name: &str, steps: Vec<Step>, output: &[&str]) -> Self {
        let output = (!output.is_empty()).then(|| Step::new("", output));
        Self {
            name: name.to_owned(),
            steps,
            output,
            ..Self::default()
        }
    }
    pub fn external(mut self, external: Step) -> Self {
        self.external = Some(external);
        self
    }
    pub fn output_join(mut self, join: PipelineJoinType) -> Self {
        self.output.as_mut().unwrap().join = join;
        self
    }
    pub fn cycles(mut self, max: u32) -> Self {
        self.max_revisits = Some(max);
        self
    }
}

/// A reference: topic, pipeline, tensor.
fn refer(pipeline: &str, reference: &str, external: bool) -> PipelineTopic {
    let names = names();
    let mut parts: Vec<&str> = reference.split('.').collect();
    let mut owner = pipeline;
    let mut model = parts[0] != pipeline;
    if external {
        owner = parts[0];
        model = parts.get(1) == Some(&"step");
        if model {
            parts.drain(..2);
        }
    }
    let default = if model || external {
        "outputs"
    } else {
        "inputs"
    };
    let kind = parts.get(1).copied().unwrap_or(default);
    let topic = match (model, kind) {
        (true, "inputs") => names.model_inputs(parts[0]),
        (true, _) => names.model_outputs(parts[0]),
        (false, "inputs") => names.pipeline_inputs(parts[0]),
        (false, _) => names.pipeline_outputs(parts[0]),
    };
    PipelineTopic {
        pipeline_name: owner.to_owned(),
        topic_name: topic,
        tensor: parts.get(2).map(|tensor| (*tensor).to_owned()),
    }
}

fn step(pipeline: &str, step: &Step, sink: String, external: bool) -> PipelineStepUpdate {
    let refers = |list: &[String]| {
        list.iter()
            .map(|item| refer(pipeline, item, external))
            .collect()
    };
    let map = step.map.iter().map(|(from, to)| {
        let topic = refer(pipeline, from, external);
        PipelineTensorMapping {
            pipeline_name: topic.pipeline_name,
            topic_and_tensor: format!("{}.{}", topic.topic_name, topic.tensor.unwrap()),
            tensor_name: to.clone(),
        }
    });
    PipelineStepUpdate {
        sources: refers(&step.inputs),
        triggers: refers(&step.triggers),
        sink: Some(PipelineTopic {
            pipeline_name: pipeline.to_owned(),
            topic_name: sink,
            tensor: None,
        }),
        input_join_ty: step.join.into(),
        triggers_join_ty: step.triggers_join.into(),
        join_window_ms: step.window_ms,
        tensor_map: map.collect(),
        batch: step.batch.map(|batch| chainer::Batch {
            size: batch.size,
            window_ms: batch.window_ms,
            rolling: false,
        }),
        ..Default::default()
    }
}

/// What the scheduler sends.
pub fn update(spec: &Spec, version: u32) -> PipelineUpdateMessage {
    let names = names();
    let name = &spec.name;
    let mut updates = Vec::new();
    for part in &spec.steps {
        let mut part = part.clone();
        if part.inputs.is_empty() {
            part.inputs.push(format!("{name}.inputs"));
        }
        updates.push(step(name, &part, names.model_inputs(&part.name), false));
    }
    if let Some(part) = &spec.external {
        updates.push(step(name, part, names.pipeline_inputs(name), true));
    }
    let outputs = names.pipeline_outputs(name);
    if let Some(part) = &spec.output {
        updates.push(step(name, part, outputs.clone(), false));
    }
    let mut errors = step(name, &Step::default(), outputs.clone(), false);
    errors.sources.push(PipelineTopic {
        pipeline_name: name.clone(),
        topic_name: names.errors(),
        tensor: None,
    });
    updates.push(errors);
    PipelineUpdateMessage {
        pipeline: name.clone(),
        version,
        updates,
        pipeline_output_topic: outputs,
        pipeline_error_topic: names.errors(),
        allow_cycles: spec.max_revisits.is_some(),
        max_step_revisits: spec.max_revisits.unwrap_or(0),
        ..Default::default()
    }
}
