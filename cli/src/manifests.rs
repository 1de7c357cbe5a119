//! Manifests named on the command line.
use std::{fs, io, path::Path};

use anyhow::{Context as _, Result, bail};
use seldon_resources::{Document, Experiment, Manifest, Model, Pipeline, read};

/// Reads every manifest of a file; `-` is standard input.
pub(crate) fn all(path: &Path) -> Result<Vec<Manifest>> {
    Ok(documents(path)?
        .into_iter()
        .map(|document| document.manifest)
        .collect())
}

/// The models of a file, which holds nothing else.
pub(crate) fn models(path: &Path) -> Result<Vec<Model>> {
    only(path, "Model", |manifest| match manifest {
        Manifest::Model(model) => Ok(*model),
        other => Err(other),
    })
}

/// The pipelines of a file, which holds nothing else.
pub(crate) fn pipelines(path: &Path) -> Result<Vec<Pipeline>> {
    only(path, "Pipeline", |manifest| match manifest {
        Manifest::Pipeline(pipeline) => Ok(*pipeline),
        other => Err(other),
    })
}

/// The experiments of a file, which holds nothing else.
pub(crate) fn experiments(path: &Path) -> Result<Vec<Experiment>> {
    only(path, "Experiment", |manifest| match manifest {
        Manifest::Experiment(experiment) => Ok(*experiment),
        other => Err(other),
    })
}

fn only<T>(
    path: &Path,
    kind: &str,
    pick: impl Fn(Manifest) -> Result<T, Manifest>,
) -> Result<Vec<T>> {
    let pick = |document: Document| match pick(document.manifest) {
        Ok(resource) => Ok(resource),
        Err(other) => bail!(
            "{}:{}: this is a {}, expected a {kind}; `seldon load -f` takes files with several kinds",
            path.display(),
            document.line,
            other.kind()
        ),
    };
    documents(path)?.into_iter().map(pick).collect()
}

fn documents(path: &Path) -> Result<Vec<Document>> {
    let text = match path.to_str() {
        Some("-") => io::read_to_string(io::stdin()),
        _ => fs::read_to_string(path),
    };
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(read(&path.display().to_string(), &text)?)
}
