//! What makes a pipeline unacceptable: all of it at once.
use std::collections::{BTreeMap, BTreeSet};

use seldon_proto::scheduler::{Batch, Pipeline, PipelineInput, PipelineOutput, PipelineStep};

use super::refs::{Reference, Side, Source};
use crate::model::is_name;

const MOST_BATCH: u32 = 65_536;
const LONGEST_WINDOW_MS: u32 = 3_600_000;
/// A join's sides are kept in memory for as long.
const LONGEST_JOIN_MS: u32 = 86_400_000;

/// What is wrong with a pipeline taken by itself, each with the way out.
pub(crate) fn mistakes(spec: &Pipeline) -> Vec<String> {
    let mut found = Vec::new();
    let name = &spec.name;
    if !is_name(name) {
        found.push(format!(
            "the name {name:?} is not valid: use lower-case letters, digits and inner hyphens, 253 at most"
        ));
    }
    if spec.steps.is_empty() {
        found.push("there are no steps: give it at least one".to_owned());
    }
    let mut steps = BTreeSet::new();
    for step in &spec.steps {
        if step.name == *name {
            found.push(format!(
                "step {} has the name of the pipeline: call one of them otherwise",
                step.name
            ));
        } else if !is_name(&step.name) {
            found.push(format!(
                "step {:?} has no valid name: use the name of a model",
                step.name
            ));
        }
        if !steps.insert(step.name.as_str()) {
            found.push(format!(
                "step {} is there twice: a pipeline runs each model once, give the second a model of its own",
                step.name
            ));
        }
    }
    let context = Context {
        pipeline: name,
        steps: &steps,
    };
    for step in &spec.steps {
        context.step(step, &mut found);
    }
    if let Some(input) = &spec.input {
        context.input(input, &mut found);
    }
    if let Some(output) = &spec.output {
        context.output(output, &mut found);
    }
    match cycle(spec) {
        Some(path) if !spec.allow_cycles => found.push(format!(
            "steps form a cycle, {}: take one of these references out, or set allowCycles and maxStepRevisits",
            path.join(" -> ")
        )),
        Some(path) if spec.max_step_revisits == 0 => found.push(format!(
            "steps form a cycle, {}, and maxStepRevisits is 0: set how often a step may be visited again",
            path.join(" -> ")
        )),
        _ => {}
    }
    found
}

/// One text with everything that is wrong.
pub(crate) fn refusal(name: &str, mistakes: &[String]) -> String {
    match mistakes {
        [one] => format!("pipeline {name} is not valid: {one}"),
        all => {
            let listed: Vec<String> = (1..)
                .zip(all)
                .map(|(number, mistake)| format!("({number}) {mistake}"))
                .collect();
            format!(
                "pipeline {name} is not valid, {} mistakes: {}",
                all.len(),
                listed.join("; ")
            )
        }
    }
}

struct Context<'a> {
    pipeline: &'a str,
    steps: &'a BTreeSet<&'a str>,
}

impl Context<'_> {
    fn step(&self, step: &PipelineStep, found: &mut Vec<String>) {
        let name = &step.name;
        let inputs = self.references(name, "input", &step.inputs, found);
        let triggers = self.references(name, "trigger", &step.triggers, found);
        for both in inputs.iter().filter(|input| triggers.contains(input)) {
            found.push(format!(
                "step {name} has {both} as an input and as a trigger: an input triggers by itself, take the trigger out"
            ));
        }
        let own = Reference {
            source: Source::Pipeline(self.pipeline),
            side: Side::Inputs,
            tensor: None,
        };
        let sources = match step.inputs.is_empty() {
            true => vec![own],
            false => inputs,
        };
        let complete = step.inputs.is_empty() || sources.len() == step.inputs.len();
        let map = step.tensor_map.iter();
        let map = map.map(|(key, tensor)| (key.as_str(), tensor.as_str()));
        let read = |key| Reference::local(key, self.pipeline);
        tensor_map(
            &format!("step {name}"),
            map,
            complete.then_some(&sources),
            read,
            found,
        );
        if let Some(batch) = &step.batch {
            check_batch(name, batch, found);
        }
        check_join(&format!("step {name}"), step.join_window_ms, found);
    }

    /// The references of a step that can be read and lead somewhere.
    fn references<'t>(
        &self,
        step: &str,
        kind: &str,
        texts: &'t [String],
        found: &mut Vec<String>,
    ) -> Vec<Reference<'t>> {
        let mut known = Vec::new();
        for text in texts {
            match Reference::local(text, self.pipeline) {
                Err(fault) => found.push(format!("step {step}: {kind} {text:?} {fault}")),
                Ok(reference) => match self.fault(step, &reference) {
                    Some(fault) => found.push(format!("step {step}: {kind} {text:?} {fault}")),
                    None if known.contains(&reference) => found.push(format!(
                        "step {step}: {kind} {text:?} is there twice: name it once"
                    )),
                    None => known.push(reference),
                },
            }
        }
        known
    }

    fn fault(&self, step: &str, reference: &Reference<'_>) -> Option<String> {
        match (reference.step(), reference.side) {
            (Some(name), _) if !self.steps.contains(name) => Some(format!(
                "names a step that is not there: add step {name}, or name one of {}",
                self.known()
            )),
            (Some(name), Side::Inputs) if name == step => {
                Some("is what the step itself is given: name another step".to_owned())
            }
            (None, Side::Outputs) => Some(format!(
                "is the pipeline's own answer: name {}.inputs or a step",
                self.pipeline
            )),
            _ => None,
        }
    }

    fn known(&self) -> String {
        let names: Vec<&str> = self.steps.iter().copied().collect();
        match names.is_empty() {
            true => "its steps".to_owned(),
            false => names.join(", "),
        }
    }

    fn input(&self, input: &PipelineInput, found: &mut Vec<String>) {
        if input.external_inputs.is_empty() {
            found.push(
                "input has no externalInputs: name at least one other pipeline, or take input out"
                    .to_owned(),
            );
        }
        let inputs = self.externals("externalInputs", &input.external_inputs, found);
        let triggers = self.externals("externalTriggers", &input.external_triggers, found);
        for both in inputs.iter().filter(|input| triggers.contains(input)) {
            found.push(format!(
                "input has {both} in externalInputs and in externalTriggers: an input triggers by itself, take the trigger out"
            ));
        }
        check_join("input", input.join_window_ms, found);
        let complete = inputs.len() == input.external_inputs.len();
        let map = input.tensor_map.iter();
        let map = map.map(|(key, tensor)| (key.as_str(), tensor.as_str()));
        tensor_map(
            "input",
            map,
            complete.then_some(&inputs),
            Reference::external,
            found,
        );
    }

    fn externals<'t>(
        &self,
        field: &str,
        texts: &'t [String],
        found: &mut Vec<String>,
    ) -> Vec<Reference<'t>> {
        let mut known = Vec::new();
        for text in texts {
            match Reference::external(text) {
                Err(fault) => found.push(format!("input: {text:?} in {field} {fault}")),
                Ok(reference) if reference.pipeline() == Some(self.pipeline) => {
                    found.push(format!(
                        "input: {text:?} in {field} is of this pipeline itself: name another one"
                    ));
                }
                Ok(reference) if known.contains(&reference) => {
                    found.push(format!("input: {text:?} is in {field} twice: name it once"))
                }
                Ok(reference) => known.push(reference),
            }
        }
        known
    }

    fn output(&self, output: &PipelineOutput, found: &mut Vec<String>) {
        let mut known = Vec::new();
        for text in &output.steps {
            match Reference::local(text, self.pipeline) {
                Err(fault) => found.push(format!("output: {text:?} {fault}")),
                Ok(reference) => match reference.step() {
                    None => found.push(format!(
                        "output: {text:?} is the pipeline itself: name one of {}",
                        self.known()
                    )),
                    Some(step) if !self.steps.contains(step) => found.push(format!(
                        "output: {text:?} names a step that is not there: add step {step}, or name one of {}",
                        self.known()
                    )),
                    Some(_) if known.contains(&reference) => {
                        found.push(format!("output: {text:?} is there twice: name it once"));
                    }
                    Some(_) => known.push(reference),
                },
            }
        }
        check_join("output", Some(output.join_window_ms), found);
        let complete = known.len() == output.steps.len();
        let map = output.tensor_map.iter();
        let map = map.map(|(key, tensor)| (key.as_str(), tensor.as_str()));
        let read = |key| Reference::local(key, self.pipeline);
        tensor_map("output", map, complete.then_some(&known), read, found);
    }
}

/// `sources`: what is read, where that is known.
fn tensor_map<'t>(
    place: &str,
    map: impl Iterator<Item = (&'t str, &'t str)>,
    sources: Option<&Vec<Reference<'_>>>,
    read: impl Fn(&'t str) -> Result<Reference<'t>, String>,
    found: &mut Vec<String>,
) {
    let sorted: BTreeMap<&str, &str> = map.collect();
    for (key, tensor) in sorted {
        if tensor.trim().is_empty() {
            found.push(format!(
                "{place}: tensorMap gives {key:?} no name: give the tensor's new name"
            ));
        }
        match read(key) {
            Err(fault) => found.push(format!("{place}: the tensorMap key {key:?} {fault}")),
            Ok(reference) if reference.tensor.is_none() => found.push(format!(
                "{place}: the tensorMap key {key:?} names no tensor: write {reference}.<tensor>"
            )),
            Ok(reference) => {
                let lost = sources
                    .filter(|sources| !sources.iter().any(|source| source.covers(&reference)));
                if let Some(sources) = lost {
                    let sources: Vec<String> = sources.iter().map(ToString::to_string).collect();
                    found.push(format!(
                        "{place}: the tensorMap key {key:?} names nothing that is read there: use a tensor of {}",
                        sources.join(", ")
                    ));
                }
            }
        }
    }
}

fn check_batch(step: &str, batch: &Batch, found: &mut Vec<String>) {
    if batch
        .size
        .is_some_and(|size| !(1..=MOST_BATCH).contains(&size))
    {
        found.push(format!(
            "step {step}: batch.size must be 1 to {MOST_BATCH}, or left out"
        ));
    }
    let window = batch.window_ms;
    if window.is_some_and(|window| !(1..=LONGEST_WINDOW_MS).contains(&window)) {
        found.push(format!(
            "step {step}: batch.windowMs must be 1 to {LONGEST_WINDOW_MS}, or left out"
        ));
    }
}

fn check_join(place: &str, window: Option<u32>, found: &mut Vec<String>) {
    if window.is_some_and(|window| window > LONGEST_JOIN_MS) {
        found.push(format!(
            "{place}: joinWindowMs must be at most {LONGEST_JOIN_MS}, a day: give less, or leave it out for a minute"
        ));
    }
}

/// A cycle of steps through inputs and triggers, its first step at both ends.
fn cycle(spec: &Pipeline) -> Option<Vec<String>> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for step in &spec.steps {
        let texts = step.inputs.iter().chain(&step.triggers);
        let from = texts.filter_map(|text| Reference::local(text, &spec.name).ok()?.step());
        next.entry(&step.name).or_default().extend(from);
    }
    let starts: Vec<&str> = next.keys().copied().collect();
    let path = find_cycle(&starts, |step| next.get(step).cloned().unwrap_or_default())?;
    // Edges lead from a step to what it reads; data flows the other way.
    Some(path.into_iter().rev().map(str::to_owned).collect())
}

/// A cycle that can be reached from `starts`, its first node at both ends.
pub(super) fn find_cycle<'a>(
    starts: &[&'a str],
    next: impl Fn(&'a str) -> Vec<&'a str>,
) -> Option<Vec<&'a str>> {
    let mut done = BTreeSet::new();
    for start in starts {
        let mut path: Vec<(&str, Vec<&str>)> = Vec::new();
        if !done.contains(start) {
            path.push((start, next(start)));
        }
        while let Some((node, rest)) = path.last_mut() {
            let Some(step) = rest.pop() else {
                done.insert(*node);
                path.pop();
                continue;
            };
            if let Some(at) = path.iter().position(|(known, _)| *known == step) {
                let mut cycle: Vec<&str> = path[at..].iter().map(|(node, _)| *node).collect();
                cycle.push(step);
                return Some(cycle);
            }
            if !done.contains(step) {
                path.push((step, next(step)));
            }
        }
    }
    None
}

/// Pipelines that this one reads.
pub(crate) fn externals(spec: &Pipeline) -> BTreeSet<&str> {
    let input = spec.input.iter();
    let texts =
        input.flat_map(|input| input.external_inputs.iter().chain(&input.external_triggers));
    texts
        .filter_map(|text| Reference::external(text).ok()?.pipeline())
        .collect()
}

/// A cycle of pipelines that `spec` would close, in words. `known` gives what a pipeline of that name reads.
pub(crate) fn cycle_across<'a>(
    spec: &'a Pipeline,
    known: impl Fn(&'a str) -> Vec<&'a str>,
) -> Option<String> {
    let mine = externals(spec);
    if mine.is_empty() {
        return None;
    }
    let next = |name: &'a str| match name == spec.name {
        true => mine.iter().copied().filter(|of| *of != name).collect(),
        false => known(name),
    };
    let path = find_cycle(&[&spec.name], next)?;
    let path: Vec<&str> = path.into_iter().rev().collect();
    Some(format!(
        "pipelines feed each other in a cycle, {}: take one of these out of externalInputs or externalTriggers",
        path.join(" -> ")
    ))
}
