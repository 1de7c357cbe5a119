//! Cycles: how rounds of one run are told apart, so that sides of two rounds are never joined.
use std::collections::{BTreeMap, BTreeSet};

use crate::graph::{Join, Sink, Step};

/// Finds out which sides come once, and in a cyclic pipeline what tells the rounds apart. Returns whether it is one.
pub fn find(steps: &mut [Step], pipeline: &str) -> bool {
    let sources = sources(steps, pipeline);
    let cyclic: Vec<bool> = (0..steps.len())
        .map(|step| reaches(&sources, step))
        .collect();
    // Steps in a cycle and those behind one are visited several times in a run.
    let varying = behind(&sources, &cyclic);
    let several: Vec<bool> = steps
        .iter()
        .zip(&varying)
        .map(|(step, varying)| *varying || step.join == Join::Any && step.data_ports().count() > 1)
        .collect();
    let several = behind(&sources, &several);
    let by_name = by_name(steps);
    let is_cyclic = cyclic.contains(&true);
    let dominators = if is_cyclic {
        dominators(&sources)
    } else {
        Vec::new()
    };
    let names: Vec<String> = steps.iter().map(|step| step.name.clone()).collect();
    for step in steps.iter_mut() {
        let entry = step.kind == Sink::Entry;
        let (join, has_round) = (step.join, is_cyclic && !entry);
        let mut rounds: Option<BTreeSet<usize>> = None;
        let source_of =
            |name: &str, of: &str| by_name.get(name).copied().filter(|_| of == pipeline);
        let comes_again = |port: &crate::graph::Port| {
            source_of(&port.source, &port.pipeline).is_some_and(|source| varying[source])
        };
        let mixed = step.ports.iter().any(comes_again);
        for port in &mut step.ports {
            let source = source_of(&port.source, &port.pipeline);
            port.once =
                !entry && port.pipeline == pipeline && source.is_none_or(|source| !several[source]);
            let again = comes_again(port);
            port.constant =
                has_round && mixed && !again && !(join == Join::Any && port.data.is_some());
            if let (true, true, Some(source)) = (has_round, again, source) {
                let before = &dominators[source];
                rounds = Some(match rounds {
                    None => before.clone(),
                    Some(rounds) => rounds.intersection(before).copied().collect(),
                });
            }
        }
        let steps = rounds.map(|rounds| {
            let visited = rounds.into_iter().filter(|step| varying[*step]);
            visited.map(|step| names[step].clone()).collect::<Vec<_>>()
        });
        step.round = match steps {
            Some(steps) if steps.is_empty() => None,
            Some(steps) => Some(steps),
            None => Some(Vec::new()),
        };
    }
    is_cyclic
}

fn by_name(steps: &[Step]) -> BTreeMap<String, usize> {
    steps
        .iter()
        .enumerate()
        .filter(|(_, step)| step.kind == Sink::Model)
        .map(|(index, step)| (step.name.clone(), index))
        .collect()
}

/// For each step the steps that feed it; what is not there is the pipeline's own input.
fn sources(steps: &[Step], pipeline: &str) -> Vec<BTreeSet<Option<usize>>> {
    let by_name = by_name(steps);
    let feeds = |step: &Step| {
        let ports = step.ports.iter().filter(|port| port.pipeline == pipeline);
        let mut sources: BTreeSet<_> = ports
            .map(|port| by_name.get(&port.source).copied())
            .collect();
        if step.kind == Sink::Entry || sources.is_empty() {
            sources = BTreeSet::from([None]);
        }
        sources
    };
    steps.iter().map(feeds).collect()
}

/// Whether a step can be reached from itself.
fn reaches(sources: &[BTreeSet<Option<usize>>], step: usize) -> bool {
    let mut seen = BTreeSet::new();
    let mut open: Vec<usize> = sources[step].iter().flatten().copied().collect();
    while let Some(source) = open.pop() {
        if source == step {
            return true;
        }
        if seen.insert(source) {
            open.extend(sources[source].iter().flatten());
        }
    }
    false
}

/// Those marked and all that follow from them.
fn behind(sources: &[BTreeSet<Option<usize>>], marked: &[bool]) -> Vec<bool> {
    let mut behind = marked.to_vec();
    loop {
        let more = (0..sources.len()).find(|step| {
            !behind[*step]
                && sources[*step]
                    .iter()
                    .flatten()
                    .any(|source| behind[*source])
        });
        match more {
            Some(step) => behind[step] = true,
            None => return behind,
        }
    }
}

/// For each step the steps that every way to it goes through, itself too.
fn dominators(sources: &[BTreeSet<Option<usize>>]) -> Vec<BTreeSet<usize>> {
    let all: BTreeSet<usize> = (0..sources.len()).collect();
    let mut found = vec![all.clone(); sources.len()];
    loop {
        let mut changed = false;
        for step in 0..sources.len() {
            let mut common = sources[step]
                .iter()
                .map(|source| source.map_or_else(BTreeSet::new, |source| found[source].clone()))
                .reduce(|one, other| one.intersection(&other).copied().collect())
                .unwrap_or_default();
            common.insert(step);
            if common != found[step] {
                found[step] = common;
                changed = true;
            }
        }
        if !changed {
            return found;
        }
    }
}
