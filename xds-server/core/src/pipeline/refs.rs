//! References of manifests to steps and to other pipelines, in their full form.
use std::fmt;

use seldon_proto::scheduler::Pipeline;
use seldon_records::Names;

/// Which of a step's or pipeline's topics is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Inputs,
    Outputs,
}

/// Whose topic is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source<'a> {
    /// A step of the pipeline itself, or (`of`) of another.
    Step { of: Option<&'a str>, step: &'a str },
    /// A pipeline as a whole.
    Pipeline(&'a str),
}

/// A reference in its full form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reference<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) side: Side,
    pub(crate) tensor: Option<&'a str>,
}

/// Writes every reference of a pipeline without mistakes in its full form.
pub(crate) fn in_full(spec: &mut Pipeline) {
    let name = spec.name.clone();
    let local = |text: &mut String| {
        if let Ok(reference) = Reference::local(text, &name) {
            *text = reference.text();
        }
    };
    for step in &mut spec.steps {
        step.inputs.iter_mut().for_each(local);
        step.triggers.iter_mut().for_each(local);
    }
    if let Some(output) = &mut spec.output {
        output.steps.iter_mut().for_each(local);
    }
    let external = |text: &mut String| {
        if let Ok(reference) = Reference::external(text) {
            *text = reference.text();
        }
    };
    if let Some(input) = &mut spec.input {
        input.external_inputs.iter_mut().for_each(external);
        input.external_triggers.iter_mut().for_each(external);
    }
}

/// The forms that a reference within a pipeline may have.
const LOCAL: &str =
    "write <step>, <step>.inputs or <step>.outputs, with .<tensor> behind it for a single tensor";
/// The forms that a reference to another pipeline may have.
const EXTERNAL: &str = "write <pipeline>.inputs, <pipeline>.outputs, <pipeline>.step.<step>.inputs or \
     <pipeline>.step.<step>.outputs, with .<tensor> behind it for a single tensor";

impl Side {
    fn parse(word: &str) -> Option<Side> {
        match word {
            "inputs" => Some(Side::Inputs),
            "outputs" => Some(Side::Outputs),
            _ => None,
        }
    }
}

impl<'a> Reference<'a> {
    /// Reads a reference within `pipeline`; what is wrong with it, in words.
    pub(crate) fn local(text: &'a str, pipeline: &str) -> Result<Reference<'a>, String> {
        blank(text, LOCAL)?;
        let mut parts = text.split('.');
        let name = parts.next().unwrap_or_default();
        let own = name == pipeline;
        let side = match parts.next() {
            None if own => Side::Inputs,
            None => Side::Outputs,
            Some(word) => Side::parse(word)
                .ok_or_else(|| format!("has {word:?} where inputs or outputs belongs: {LOCAL}"))?,
        };
        let tensor = tensor(parts, LOCAL)?;
        let source = match own {
            true => Source::Pipeline(name),
            false => Source::Step {
                of: None,
                step: name,
            },
        };
        Ok(Reference {
            source,
            side,
            tensor,
        })
    }

    /// Reads a reference to another pipeline; what is wrong with it, in words.
    pub(crate) fn external(text: &'a str) -> Result<Reference<'a>, String> {
        blank(text, EXTERNAL)?;
        let mut parts = text.split('.');
        let name = parts.next().unwrap_or_default();
        let (source, side, tensor) = match parts.next() {
            None => (Source::Pipeline(name), Side::Outputs, None),
            Some("step") => {
                let step = parts.next().filter(|step| !step.is_empty());
                let Some(step) = step else {
                    return Err(format!("names no step: {EXTERNAL}"));
                };
                let source = Source::Step {
                    of: Some(name),
                    step,
                };
                match parts.next() {
                    None => (source, Side::Outputs, None),
                    Some(word @ ("input" | "output" | "")) => {
                        return Err(format!(
                            "has {word:?} where inputs or outputs belongs: {EXTERNAL}"
                        ));
                    }
                    Some(word) => match Side::parse(word) {
                        Some(side) => (source, side, tensor(parts, EXTERNAL)?),
                        // The documented short form: a tensor of the step's outputs.
                        None if parts.next().is_none() => (source, Side::Outputs, Some(word)),
                        None => {
                            return Err(format!(
                                "has {word:?} where inputs or outputs belongs: {EXTERNAL}"
                            ));
                        }
                    },
                }
            }
            Some(word) => {
                let side = Side::parse(word).ok_or_else(|| {
                    format!("has {word:?} where inputs, outputs or step belongs: {EXTERNAL}")
                })?;
                (Source::Pipeline(name), side, tensor(parts, EXTERNAL)?)
            }
        };
        Ok(Reference {
            source,
            side,
            tensor,
        })
    }

    /// In its full form, as status shows it.
    fn text(&self) -> String {
        let side = match self.side {
            Side::Inputs => "inputs",
            Side::Outputs => "outputs",
        };
        let mut text = match self.source {
            Source::Step { of: None, step } => format!("{step}.{side}"),
            Source::Step { of: Some(of), step } => format!("{of}.step.{step}.{side}"),
            Source::Pipeline(name) => format!("{name}.{side}"),
        };
        if let Some(tensor) = self.tensor {
            text.push('.');
            text.push_str(tensor);
        }
        text
    }

    /// The topic that is read.
    pub(crate) fn topic(&self, names: &Names) -> String {
        match (self.source, self.side) {
            (Source::Step { step, .. }, Side::Inputs) => names.model_inputs(step),
            (Source::Step { step, .. }, Side::Outputs) => names.model_outputs(step),
            (Source::Pipeline(name), Side::Inputs) => names.pipeline_inputs(name),
            (Source::Pipeline(name), Side::Outputs) => names.pipeline_outputs(name),
        }
    }

    /// The other pipeline that is meant.
    pub(crate) fn pipeline(&self) -> Option<&'a str> {
        match self.source {
            Source::Step { of, .. } => of,
            Source::Pipeline(name) => Some(name),
        }
    }

    /// The own step that is meant.
    pub(crate) fn step(&self) -> Option<&'a str> {
        match self.source {
            Source::Step { of: None, step } => Some(step),
            _ => None,
        }
    }

    /// Whether what this reads has the tensor that `other` names.
    pub(crate) fn covers(&self, other: &Reference<'_>) -> bool {
        (self.source, self.side) == (other.source, other.side)
            && (self.tensor.is_none() || self.tensor == other.tensor)
    }
}

fn blank(text: &str, forms: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err(format!("is empty: {forms}"));
    }
    if text.starts_with('.') {
        return Err(format!("begins with a dot: {forms}"));
    }
    Ok(())
}

fn tensor<'a>(
    mut rest: impl Iterator<Item = &'a str>,
    forms: &str,
) -> Result<Option<&'a str>, String> {
    let tensor = rest.next();
    if rest.next().is_some() {
        return Err(format!("has too many parts: {forms}"));
    }
    match tensor {
        Some("") => Err(format!("ends with a dot: {forms}")),
        tensor => Ok(tensor),
    }
}

impl fmt::Display for Reference<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Source::Step { of: None, step } => write!(formatter, "{step}")?,
            Source::Step { of: Some(of), step } => write!(formatter, "{of}.step.{step}")?,
            Source::Pipeline(name) => write!(formatter, "{name}")?,
        }
        let side = match self.side {
            Side::Inputs => "inputs",
            Side::Outputs => "outputs",
        };
        write!(formatter, ".{side}")?;
        match self.tensor {
            Some(tensor) => write!(formatter, ".{tensor}"),
            None => Ok(()),
        }
    }
}
