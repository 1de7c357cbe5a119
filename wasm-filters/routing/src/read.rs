//! The configuration from JSON, by the rules that its types' serde attributes state.

use std::{borrow::Cow, collections::BTreeMap};

use crate::{
    Candidate, Config, Copy, Experiment, Mirror, Version,
    json::{Reader, Result},
};

/// Reads a whole document.
pub(crate) fn config(reader: &mut Reader<'_>) -> Result<Config> {
    let (mut version, mut experiments, mut endpoints) = (None, None, None);
    reader.object(|r, key| match key.as_ref() {
        "version" => once(&mut version, r.string()),
        "experiments" => once(&mut experiments, map(r, experiment)),
        "endpoints" => once(&mut endpoints, map(r, text)),
        _ => r.skip(),
    })?;
    reader.end()?;
    Ok(Config {
        version: version.unwrap_or_default().into_owned(),
        experiments: experiments.unwrap_or_default(),
        endpoints: endpoints.unwrap_or_default(),
    })
}

fn experiment(reader: &mut Reader<'_>) -> Result<Experiment> {
    let (mut candidates, mut mirror_of, mut cohort) = (None, None, None);
    reader.object(|r, key| match key.as_ref() {
        "candidates" => once(&mut candidates, r.array(candidate)),
        "mirror" => once(&mut mirror_of, r.option(mirror)),
        "cohort" => once(&mut cohort, r.option(text)),
        _ => r.skip(),
    })?;
    Ok(Experiment {
        candidates: candidates.ok_or("candidates")?,
        mirror: mirror_of.flatten(),
        cohort: cohort.flatten(),
    })
}

fn candidate(reader: &mut Reader<'_>) -> Result<Candidate> {
    let (mut name, mut weight, mut versions) = (None, None, None);
    reader.object(|r, key| match key.as_ref() {
        "name" => once(&mut name, r.string()),
        "weight" => once(&mut weight, r.number()),
        "versions" => once(&mut versions, r.array(version)),
        _ => r.skip(),
    })?;
    Ok(Candidate {
        name: owned(name, "a candidate's name")?,
        weight: weight.ok_or("a candidate's weight")?,
        versions: versions.ok_or("a candidate's versions")?,
    })
}

fn version(reader: &mut Reader<'_>) -> Result<Version> {
    let (mut route, mut weight) = (None, None);
    reader.object(|r, key| match key.as_ref() {
        "route" => once(&mut route, r.string()),
        "weight" => once(&mut weight, r.number()),
        _ => r.skip(),
    })?;
    Ok(Version {
        route: owned(route, "a version's route")?,
        weight: weight.unwrap_or(1),
    })
}

fn mirror(reader: &mut Reader<'_>) -> Result<Mirror> {
    let (mut name, mut percent, mut versions) = (None, None, None);
    reader.object(|r, key| match key.as_ref() {
        "name" => once(&mut name, r.string()),
        "percent" => once(&mut percent, r.number()),
        "versions" => once(&mut versions, r.array(copy)),
        _ => r.skip(),
    })?;
    Ok(Mirror {
        name: owned(name, "a mirror's name")?,
        percent: percent.ok_or("a mirror's percent")?,
        versions: versions.ok_or("a mirror's versions")?,
    })
}

fn copy(reader: &mut Reader<'_>) -> Result<Copy> {
    let (mut model, mut cluster, mut grpc_cluster, mut weight) = (None, None, None, None);
    reader.object(|r, key| match key.as_ref() {
        "model" => once(&mut model, r.string()),
        "cluster" => once(&mut cluster, r.string()),
        "grpc_cluster" => once(&mut grpc_cluster, r.option(text)),
        "weight" => once(&mut weight, r.number()),
        _ => r.skip(),
    })?;
    Ok(Copy {
        model: owned(model, "a copy's model")?,
        cluster: owned(cluster, "a copy's cluster")?,
        grpc_cluster: grpc_cluster.flatten(),
        weight: weight.unwrap_or(1),
    })
}

/// Written in order by us, so that making the map compares each key with its neighbour only.
fn map<'a, T>(
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Reader<'a>) -> Result<T>,
) -> Result<BTreeMap<String, T>> {
    let mut all = Vec::new();
    reader.object(|r, key| {
        all.push((key.into_owned(), read(r)?));
        Ok(())
    })?;
    Ok(all.into_iter().collect())
}

fn text(reader: &mut Reader<'_>) -> Result<String> {
    reader.string().map(Cow::into_owned)
}

fn owned(text: Option<Cow<'_, str>>, what: &'static str) -> Result<String> {
    text.map(Cow::into_owned).ok_or(what)
}

fn once<T>(place: &mut Option<T>, value: Result<T>) -> Result<()> {
    match place.replace(value?) {
        None => Ok(()),
        Some(_) => Err("each field once"),
    }
}
