//! What clients ask of pipelines, and what the store remembers of them.
use std::{collections::BTreeSet, sync::Arc};

use seldon_proto::scheduler::{KubernetesMeta, Pipeline};

use crate::{
    Effect, Refusal, State, Worker,
    pipeline::{self, Entry, Task, Version, cycle_across, externals, in_full, mistakes, record},
};

pub(crate) fn load(state: &mut State, mut spec: Pipeline) -> Result<(), Refusal> {
    let mut found = mistakes(&spec);
    let known = |name: &str| {
        let entry = state.pipelines.entries.get(name);
        let entry = entry.filter(|entry| !entry.ending());
        entry.map_or(Vec::new(), |entry| {
            let wanted = entry.next.as_ref().unwrap_or(&entry.latest().spec);
            externals(wanted).into_iter().collect()
        })
    };
    found.extend(cycle_across(&spec, known));
    if !found.is_empty() {
        let text = pipeline::refusal(&spec.name, &found);
        return Err(Refusal::Precondition(text));
    }
    in_full(&mut spec);
    let former = state.pipelines.entries.get(spec.name.as_str());
    if let Some(wanted) = former.filter(|entry| !entry.ending()) {
        let wanted = wanted.next.as_ref().unwrap_or(&wanted.latest().spec);
        let new = generation(&spec.kubernetes_meta);
        let same = new.is_some() && new == generation(&wanted.kubernetes_meta);
        // Generations count from one in each object of the name.
        if same && (spec.uid.is_empty() || spec.uid == wanted.uid) {
            return Ok(());
        }
    }
    spec.version = match former {
        Some(entry) if !entry.deleted => entry.latest().number() + 1,
        _ => 1,
    };
    if spec.uid.is_empty() {
        spec.uid = uid(&spec.name, spec.version, state.world.now.wall.as_nanos());
    }
    let name: Arc<str> = spec.name.as_str().into();
    let spec = Arc::new(spec);
    let entries = &mut state.pipelines.entries;
    let entry = match entries.get_mut(&name) {
        None => entries
            .entry(name.clone())
            .or_insert_with(|| Entry::new(spec)),
        Some(entry) if entry.deleted => {
            (entry.next, entry.gone_at) = (Some(spec), None);
            entry
        }
        Some(entry) => {
            entry.add(Version::new(spec));
            entry
        }
    };
    state.world.effects.push(Effect::Persist(record(entry)));
    state.pipelines.touch(&name);
    Ok(())
}

fn generation(meta: &Option<KubernetesMeta>) -> Option<i64> {
    let generation = meta.as_ref()?.generation;
    (generation > 0).then_some(generation)
}

/// Twenty letters and digits, of the name, the version and the time: another life of the pipeline has others.
fn uid(name: &str, version: u32, wall: u128) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let seed = format!("{name}\0{version}\0{wall}");
    let mut hash = seed.bytes().fold(
        0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128,
        |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b),
    );
    let mut text = String::with_capacity(20);
    for _ in 0..20 {
        text.push(char::from(DIGITS[(hash & 31) as usize]));
        hash >>= 5;
    }
    text
}

pub(crate) fn unload(state: &mut State, name: &str) -> Result<(), Refusal> {
    let entry = state.pipelines.entries.get_mut(name);
    let Some(entry) = entry.filter(|entry| entry.gone_at.is_none()) else {
        return Err(Refusal::Precondition(format!(
            "pipeline {name} is not known: see the names by pipeline list"
        )));
    };
    if entry.ending() {
        return Err(Refusal::Precondition(format!(
            "pipeline {name} is being removed already: see its state by pipeline status"
        )));
    }
    (entry.deleted, entry.next) = (true, None);
    state.world.effects.push(Effect::Persist(record(entry)));
    let name = entry.name.clone();
    state.fleets.unrouted.remove(&name);
    state.pipelines.touch(&name);
    Ok(())
}

pub(crate) fn restored(
    state: &mut State,
    name: Arc<str>,
    mut versions: Vec<Arc<Pipeline>>,
    (deleted, former): (bool, Vec<Arc<Pipeline>>),
) {
    let rises = versions.is_sorted_by(|one, next| one.version < next.version);
    let next = match deleted && !rises {
        true => versions.pop(),
        false => None,
    };
    let mut versions = versions.into_iter().map(|spec| Version {
        was_ready: true,
        ..Version::new(spec)
    });
    let Some(first) = versions.next() else {
        return;
    };
    let mut entry = Entry::new(first.spec.clone());
    entry.versions = std::iter::once(first).chain(versions).collect();
    (entry.deleted, entry.next) = (deleted, next);
    let stray = |spec| Version {
        leaving: true,
        ..Version::new(spec)
    };
    entry.strays = former.into_iter().map(stray).collect();
    (entry.restored, entry.unconfirmed) = (true, true);
    if !deleted {
        state.fleets.unrouted.insert(name.clone());
    }
    state.pipelines.touch(&name);
    state.pipelines.entries.insert(name, entry);
}

/// A worker came that may have pipelines or models of before a restart.
pub(super) fn doubt(state: &mut State, worker: Worker, name: &Arc<str>) {
    if worker == Worker::ModelGateway {
        let known = state.pipelines.entries.values();
        let specs = known.flat_map(|entry| entry.all_versions().map(|version| &version.spec));
        let steps = specs.flat_map(|spec| &spec.steps);
        let steps: BTreeSet<Arc<str>> = steps.map(|step| step.name.as_str().into()).collect();
        let pipelines = &mut state.pipelines;
        pipelines.readers.doubt(name, steps, &state.fleets);
        return;
    }
    let entries = state.pipelines.entries.values_mut();
    for entry in entries.filter(|entry| entry.restored) {
        match worker {
            Worker::Engine => {
                for version in entry.all_versions_mut() {
                    let tasks = &mut version.engines.0;
                    tasks.entry(name.clone()).or_insert_with(Task::doubtful);
                }
            }
            _ => {
                let tasks = &mut entry.gateways.0;
                tasks.entry(name.clone()).or_insert_with(Task::doubtful);
            }
        }
    }
}

/// A pipeline that is gone is no longer shown.
pub(crate) fn forget_pipeline(state: &mut State, entry: &Entry) {
    for (worker, name) in &entry.on {
        state.fleets.note(*worker, name, &entry.name, false);
    }
    if let Some(at) = entry.timer {
        let timer = (at, crate::world::Timer::Pipeline(entry.name.clone()));
        state.world.timers.remove(&timer);
    }
    state.pipelines.ended.remove(&entry.name);
    if !entry.forgotten {
        let forget = Effect::ForgetPipeline(entry.name.clone());
        state.world.effects.push(forget);
    }
}
