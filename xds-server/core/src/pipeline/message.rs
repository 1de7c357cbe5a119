//! What an engine is told of a pipeline.
use std::collections::BTreeMap;

use seldon_proto::{
    chainer::{
        Batch, PipelineStepUpdate, PipelineTensorMapping, PipelineTopic, PipelineUpdateMessage,
        pipeline_step_update::PipelineJoinType, pipeline_update_message::PipelineOperation,
    },
    scheduler::{Pipeline, pipeline_input, pipeline_output, pipeline_step},
};
use seldon_records::Names;

use super::refs::Reference;

/// The order to run a version, and with it those `others` that its engine may not run yet.
pub(crate) fn create_with<'a>(
    spec: &Pipeline,
    others: impl Iterator<Item = &'a Pipeline>,
    names: &Names,
) -> PipelineUpdateMessage {
    PipelineUpdateMessage {
        others: others.map(|other| create(other, names)).collect(),
        ..create(spec, names)
    }
}

fn create(spec: &Pipeline, names: &Names) -> PipelineUpdateMessage {
    let mut updates = step_updates(spec, names);
    updates.extend(input_update(spec, names));
    updates.extend(output_update(spec, names));
    updates.push(PipelineStepUpdate {
        sources: vec![topic(&spec.name, names.errors())],
        sink: Some(topic(&spec.name, names.pipeline_outputs(&spec.name))),
        input_join_ty: PipelineJoinType::Inner.into(),
        triggers_join_ty: PipelineJoinType::Inner.into(),
        ..Default::default()
    });
    PipelineUpdateMessage {
        op: PipelineOperation::Create.into(),
        updates,
        allow_cycles: spec.allow_cycles,
        max_step_revisits: spec.max_step_revisits,
        ..about(spec, names)
    }
}

/// The order to stop a version; `clean`: its topics are to be deleted.
pub(crate) fn delete(spec: &Pipeline, names: &Names, clean: bool) -> PipelineUpdateMessage {
    let update = PipelineStepUpdate {
        sources: vec![topic(&spec.name, names.pipeline_inputs(&spec.name))],
        sink: Some(topic(&spec.name, names.pipeline_outputs(&spec.name))),
        ..Default::default()
    };
    PipelineUpdateMessage {
        op: PipelineOperation::Delete.into(),
        updates: clean.then_some(update).into_iter().collect(),
        ..about(spec, names)
    }
}

/// The order to let a version go at once: another engine goes on with it. Answered as an order to stop it.
pub(crate) fn hand_over(spec: &Pipeline, names: &Names) -> PipelineUpdateMessage {
    PipelineUpdateMessage {
        op: PipelineOperation::Rebalance.into(),
        ..about(spec, names)
    }
}

fn about(spec: &Pipeline, names: &Names) -> PipelineUpdateMessage {
    PipelineUpdateMessage {
        pipeline: spec.name.clone(),
        version: spec.version,
        uid: spec.uid.clone(),
        pipeline_output_topic: names.pipeline_outputs(&spec.name),
        pipeline_error_topic: names.errors(),
        ..Default::default()
    }
}

fn topic(pipeline: &str, topic_name: String) -> PipelineTopic {
    PipelineTopic {
        pipeline_name: pipeline.to_owned(),
        topic_name,
        tensor: None,
    }
}

/// Reads references; those that cannot be read were refused, or come of another's store.
struct Reader<'a> {
    pipeline: &'a str,
    names: &'a Names,
    external: bool,
}

impl Reader<'_> {
    fn read<'t>(&self, text: &'t str) -> Option<Reference<'t>> {
        match self.external {
            true => Reference::external(text).ok(),
            false => Reference::local(text, self.pipeline).ok(),
        }
    }

    /// The pipeline whose records are meant.
    fn owner(&self, reference: &Reference<'_>) -> String {
        let other = reference.pipeline().filter(|_| self.external);
        other.unwrap_or(self.pipeline).to_owned()
    }

    fn topics(&self, texts: &[String]) -> Vec<PipelineTopic> {
        let references = texts.iter().filter_map(|text| self.read(text));
        references
            .map(|reference| PipelineTopic {
                pipeline_name: self.owner(&reference),
                topic_name: reference.topic(self.names),
                tensor: reference.tensor.map(str::to_owned),
            })
            .collect()
    }

    fn tensors<'t>(
        &self,
        map: impl Iterator<Item = (&'t String, &'t String)>,
    ) -> Vec<PipelineTensorMapping> {
        let sorted: BTreeMap<&String, &String> = map.collect();
        let mappings = sorted.into_iter().filter_map(|(key, name)| {
            let reference = self.read(key)?;
            let tensor = reference.tensor?;
            Some(PipelineTensorMapping {
                pipeline_name: self.owner(&reference),
                topic_and_tensor: format!("{}.{tensor}", reference.topic(self.names)),
                tensor_name: name.clone(),
            })
        });
        mappings.collect()
    }
}

fn step_updates(spec: &Pipeline, names: &Names) -> Vec<PipelineStepUpdate> {
    let reader = Reader {
        pipeline: &spec.name,
        names,
        external: false,
    };
    let mut steps: Vec<_> = spec.steps.iter().collect();
    steps.sort_by(|one, other| one.name.cmp(&other.name));
    let update = |step: &seldon_proto::scheduler::PipelineStep| {
        let sources = match step.inputs.is_empty() {
            true => vec![topic(&spec.name, names.pipeline_inputs(&spec.name))],
            false => reader.topics(&step.inputs),
        };
        PipelineStepUpdate {
            sources,
            triggers: reader.topics(&step.triggers),
            sink: Some(topic(&spec.name, names.model_inputs(&step.name))),
            input_join_ty: step_join(step.inputs_join()).into(),
            triggers_join_ty: step_join(step.triggers_join()).into(),
            pass_empty_responses: false,
            join_window_ms: step.join_window_ms.filter(|window| *window > 0),
            tensor_map: reader.tensors(step.tensor_map.iter()),
            batch: step.batch.as_ref().map(|batch| Batch {
                size: batch.size,
                window_ms: batch.window_ms,
                rolling: false,
            }),
        }
    };
    steps.into_iter().map(update).collect()
}

fn input_update(spec: &Pipeline, names: &Names) -> Option<PipelineStepUpdate> {
    let input = spec.input.as_ref()?;
    let reader = Reader {
        pipeline: &spec.name,
        names,
        external: true,
    };
    Some(PipelineStepUpdate {
        sources: reader.topics(&input.external_inputs),
        triggers: reader.topics(&input.external_triggers),
        sink: Some(topic(&spec.name, names.pipeline_inputs(&spec.name))),
        input_join_ty: input_join(input.join_type()).into(),
        triggers_join_ty: input_join(input.triggers_join()).into(),
        join_window_ms: input.join_window_ms.filter(|window| *window > 0),
        tensor_map: reader.tensors(input.tensor_map.iter()),
        ..Default::default()
    })
}

fn output_update(spec: &Pipeline, names: &Names) -> Option<PipelineStepUpdate> {
    let output = spec
        .output
        .as_ref()
        .filter(|output| !output.steps.is_empty())?;
    let reader = Reader {
        pipeline: &spec.name,
        names,
        external: false,
    };
    let join = match output.steps_join() {
        pipeline_output::JoinOp::Inner => PipelineJoinType::Inner,
        pipeline_output::JoinOp::Outer => PipelineJoinType::Outer,
        pipeline_output::JoinOp::Any => PipelineJoinType::Any,
    };
    Some(PipelineStepUpdate {
        sources: reader.topics(&output.steps),
        sink: Some(topic(&spec.name, names.pipeline_outputs(&spec.name))),
        input_join_ty: join.into(),
        triggers_join_ty: PipelineJoinType::Inner.into(),
        join_window_ms: (output.join_window_ms > 0).then_some(output.join_window_ms),
        tensor_map: reader.tensors(output.tensor_map.iter()),
        ..Default::default()
    })
}

fn step_join(join: pipeline_step::JoinOp) -> PipelineJoinType {
    match join {
        pipeline_step::JoinOp::Inner => PipelineJoinType::Inner,
        pipeline_step::JoinOp::Outer => PipelineJoinType::Outer,
        pipeline_step::JoinOp::Any => PipelineJoinType::Any,
    }
}

fn input_join(join: pipeline_input::JoinOp) -> PipelineJoinType {
    match join {
        pipeline_input::JoinOp::Inner => PipelineJoinType::Inner,
        pipeline_input::JoinOp::Outer => PipelineJoinType::Outer,
        pipeline_input::JoinOp::Any => PipelineJoinType::Any,
    }
}
