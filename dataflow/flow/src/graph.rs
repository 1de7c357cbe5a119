//! One version of a pipeline, made ready: which steps a record feeds, and how.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use seldon_proto::chainer::{
    PipelineStepUpdate, PipelineTopic, PipelineUpdateMessage,
    pipeline_step_update::PipelineJoinType,
};
use seldon_records::{Names, Topic};

use crate::{BadPipeline, rounds, tensors::Selection};

const DEFAULT_WINDOW_MS: i64 = 60_000;
/// A batch that only has a size waits this long at most: callers wait for it, and most give up after some seconds.
const DEFAULT_BATCH_WINDOW_MS: i64 = 1_000;
const MOST_MEMBERS: usize = 1_000;

/// How sides come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    Inner,
    Outer,
    Any,
}

/// Where a step's records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// To a model.
    Model,
    /// From other pipelines to this one's inputs.
    Entry,
    /// To this one's outputs.
    Output,
}

/// The records of one topic that feed a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub topic: Arc<str>,
    pub pipeline: String,
    /// The model whose topic it is, or the pipeline.
    pub source: String,
    /// What of them is data; `None`: they only trigger.
    pub data: Option<Selection>,
    pub renames: Vec<(String, String)>,
    /// It comes once for each run at most, so one without the wanted tensors means that none will come.
    pub once: bool,
    /// In a cyclic pipeline: it comes once, while other sides of the step come in each round.
    pub constant: bool,
}

/// A trigger: of which port, and which tensor must be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Trigger {
    pub port: usize,
    pub tensor: Selection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    pub size: usize,
    pub window_ms: i64,
}

/// What leads to one sink.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub name: String,
    pub sink: Arc<str>,
    pub kind: Sink,
    pub to_outputs: bool,
    pub ports: Vec<Port>,
    pub join: Join,
    pub triggers: Vec<Trigger>,
    pub triggers_join: Join,
    pub window_ms: i64,
    pub batch: Option<Batch>,
    /// In a cyclic pipeline: the steps whose visits tell rounds apart; `None`: the greatest number of visits does.
    pub round: Option<Vec<String>>,
}

impl Step {
    pub fn data_ports(&self) -> impl Iterator<Item = usize> {
        (0..self.ports.len()).filter(|port| self.ports[*port].data.is_some())
    }

    /// Each side goes on alone.
    pub fn is_any(&self) -> bool {
        self.join == Join::Any && self.data_ports().count() > 1
    }
}

/// One version.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    pub version: u32,
    pub steps: Vec<Step>,
    /// Steps and their ports, by topic.
    pub readers: HashMap<Arc<str>, Vec<(usize, usize)>>,
    pub cyclic: bool,
    pub max_revisits: u32,
    /// Where errors go to; `None`: nobody waits for an answer.
    pub answers: Option<Arc<str>>,
    /// Records come after the answer too: of steps that do not lead to the output, or further outputs.
    pub outlasts_answer: bool,
    /// Which steps do not lead to the output, if there is one.
    pub beside: Vec<bool>,
}

impl Graph {
    pub fn compile(update: &PipelineUpdateMessage, names: &Names) -> Result<Self, BadPipeline> {
        let bad = |reason: String| BadPipeline {
            pipeline: update.pipeline.clone(),
            version: update.version,
            reason,
        };
        let errors = names.errors();
        let mut answers = None;
        let mut steps = Vec::new();
        for part in &update.updates {
            let Some(sink) = &part.sink else {
                return Err(bad("an update has no sink".to_owned()));
            };
            if part
                .sources
                .iter()
                .any(|source| source.topic_name == errors)
            {
                answers = Some(sink.topic_name.as_str().into());
            } else if !part.sources.is_empty() {
                steps.push(step(part, sink, &update.pipeline, names).map_err(&bad)?);
            }
        }
        // The scheduler sends them in any order.
        steps.sort_by(|one, other| one.sink.cmp(&other.sink));
        if let Some(twice) = steps.windows(2).find(|pair| pair[0].sink == pair[1].sink) {
            return Err(bad(format!(
                "two updates write to topic {:?}",
                twice[0].sink
            )));
        }
        let cyclic = rounds::find(&mut steps, &update.pipeline);
        if cyclic && !update.allow_cycles {
            return Err(bad(
                "its steps form a cycle: set allowCycles or remove one of the inputs".to_owned(),
            ));
        }
        let mut readers: HashMap<Arc<str>, Vec<(usize, usize)>> = HashMap::new();
        for (index, step) in steps.iter().enumerate() {
            for (port, reads) in step.ports.iter().enumerate() {
                readers
                    .entry(reads.topic.clone())
                    .or_default()
                    .push((index, port));
            }
        }
        let mut beside = side_steps(&steps);
        let mut outputs = steps.iter().filter(|step| step.kind == Sink::Output);
        let outlasts_answer = beside.contains(&true) || outputs.any(Step::is_any);
        if !steps.iter().any(|step| step.kind == Sink::Output) {
            beside.fill(false);
        }
        Ok(Self {
            version: update.version,
            steps,
            readers,
            cyclic,
            max_revisits: update.max_step_revisits,
            answers,
            outlasts_answer,
            beside,
        })
    }

    /// All topics it reads, but for the errors.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<str>> {
        self.readers.keys()
    }
}

fn step(
    part: &PipelineStepUpdate,
    sink: &PipelineTopic,
    pipeline: &str,
    names: &Names,
) -> Result<Step, String> {
    let topic = names.parse(&sink.topic_name);
    let (name, kind, to_outputs) = match topic {
        Some(Topic::ModelInputs(model)) => (model, Sink::Model, false),
        Some(Topic::PipelineInputs(to)) if to == pipeline => (to, Sink::Entry, false),
        Some(Topic::PipelineOutputs(to)) if to == pipeline => (to, Sink::Output, true),
        _ => {
            return Err(format!(
                "sink {:?} is neither the inputs topic of a model nor a topic of this pipeline",
                sink.topic_name
            ));
        }
    };
    let mut ports: Vec<Port> = Vec::new();
    for source in &part.sources {
        let port = port_of(&mut ports, source, names)?;
        let nothing = Selection::Named(BTreeSet::new());
        ports[port]
            .data
            .get_or_insert(nothing)
            .add(source.tensor.as_deref());
    }
    for mapping in &part.tensor_map {
        for port in &mut ports {
            let tensor = mapping.topic_and_tensor.strip_prefix(&*port.topic);
            if let Some(tensor) = tensor.and_then(|tensor| tensor.strip_prefix('.'))
                && mapping.pipeline_name == port.pipeline
            {
                port.renames
                    .push((tensor.to_owned(), mapping.tensor_name.clone()));
            }
        }
    }
    let mut triggers = Vec::new();
    for source in &part.triggers {
        let port = port_of(&mut ports, source, names)?;
        let mut tensor = Selection::Named(BTreeSet::new());
        tensor.add(source.tensor.as_deref());
        triggers.push(Trigger { port, tensor });
    }
    Ok(Step {
        name,
        sink: sink.topic_name.as_str().into(),
        kind,
        to_outputs,
        ports,
        join: join(part.input_join_ty()),
        triggers,
        triggers_join: join(part.triggers_join_ty()),
        window_ms: part.join_window_ms.map_or(DEFAULT_WINDOW_MS, i64::from),
        batch: if kind == Sink::Model {
            batch(part)
        } else {
            None
        },
        round: None,
    })
}

fn port_of(ports: &mut Vec<Port>, source: &PipelineTopic, names: &Names) -> Result<usize, String> {
    let topic = names.parse(&source.topic_name);
    let Some(name) = topic.as_ref().and_then(Topic::owner) else {
        return Err(format!(
            "source {:?} is no topic of a model or a pipeline",
            source.topic_name
        ));
    };
    let found = ports.iter().position(|port| {
        *port.topic == *source.topic_name && port.pipeline == source.pipeline_name
    });
    Ok(found.unwrap_or_else(|| {
        ports.push(Port {
            topic: source.topic_name.as_str().into(),
            pipeline: source.pipeline_name.clone(),
            source: name.to_owned(),
            data: None,
            renames: Vec::new(),
            once: false,
            constant: false,
        });
        ports.len() - 1
    }))
}

fn join(join: PipelineJoinType) -> Join {
    match join {
        PipelineJoinType::Outer => Join::Outer,
        PipelineJoinType::Any => Join::Any,
        PipelineJoinType::Inner | PipelineJoinType::Unknown => Join::Inner,
    }
}

fn batch(part: &PipelineStepUpdate) -> Option<Batch> {
    let batch = part.batch.as_ref()?;
    let size = batch.size.filter(|size| *size > 0);
    let window_ms = batch.window_ms.filter(|window| *window > 0);
    if size.is_none() && window_ms.is_none() || size == Some(1) {
        return None;
    }
    let size = size
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(MOST_MEMBERS);
    Some(Batch {
        size: size.min(MOST_MEMBERS),
        window_ms: window_ms.map_or(DEFAULT_BATCH_WINDOW_MS, i64::from),
    })
}

/// For each step whether it is a model whose answers do not lead to the pipeline's output.
fn side_steps(steps: &[Step]) -> Vec<bool> {
    let by_name: BTreeMap<&str, usize> = steps
        .iter()
        .enumerate()
        .filter(|(_, step)| step.kind == Sink::Model)
        .map(|(index, step)| (step.name.as_str(), index))
        .collect();
    let mut reached = BTreeSet::new();
    let mut open: Vec<usize> = (0..steps.len())
        .filter(|step| steps[*step].kind == Sink::Output)
        .collect();
    while let Some(step) = open.pop() {
        if reached.insert(step) {
            let sources = steps[step].ports.iter();
            open.extend(sources.filter_map(|port| by_name.get(port.source.as_str())));
        }
    }
    steps
        .iter()
        .enumerate()
        .map(|(index, step)| step.kind == Sink::Model && !reached.contains(&index))
        .collect()
}
