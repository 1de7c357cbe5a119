//! `seldon load`, `unload` and `status`: files with several kinds.
use anyhow::{Result, bail};
use seldon_resources::Manifest;

use super::{Session, experiment, model, pipeline};
use crate::{
    args::{Each, EachStatus, StateWait},
    manifests,
};

/// Loads or starts every resource of a file, in its order.
pub(crate) async fn load(args: Each) -> Result<()> {
    let manifests = accepted(manifests::all(&args.file_path)?)?;
    let session = Session::open(&args.control).await?;
    for manifest in manifests {
        match manifest {
            Manifest::Model(model) => model::load(&session, model.to_proto()).await?,
            Manifest::Pipeline(pipeline) => pipeline::load(&session, pipeline.to_proto()).await?,
            Manifest::Experiment(experiment) => {
                experiment::start(&session, experiment.to_proto()).await?
            }
            Manifest::Server(_) => {}
        }
    }
    Ok(())
}

/// Unloads or stops every resource of a file, the last first: what uses others goes before them.
pub(crate) async fn unload(args: Each) -> Result<()> {
    let manifests = accepted(manifests::all(&args.file_path)?)?;
    let session = Session::open(&args.control).await?;
    for manifest in manifests.into_iter().rev() {
        let name = manifest.metadata().name.clone();
        match manifest {
            Manifest::Model(_) => model::unload(&session, name).await?,
            Manifest::Pipeline(_) => pipeline::unload(&session, name).await?,
            Manifest::Experiment(_) => experiment::stop(&session, name).await?,
            Manifest::Server(_) => {}
        }
    }
    Ok(())
}

/// Prints the status of every resource of a file.
pub(crate) async fn status(args: EachStatus) -> Result<()> {
    let manifests = accepted(manifests::all(&args.file_path)?)?;
    let session = Session::open(&args.control).await?;
    for manifest in manifests {
        let name = manifest.metadata().name.clone();
        let wanted = |state: &str| StateWait {
            name: name.clone(),
            control: args.control.clone(),
            display: args.display.clone(),
            wait: args.timeout.clone(),
            state: if args.wait {
                state.to_owned()
            } else {
                String::new()
            },
        };
        match manifest {
            Manifest::Model(_) => model::status(&session, &wanted("ModelAvailable")).await?,
            Manifest::Pipeline(_) => pipeline::status(&session, &wanted("PipelineReady")).await?,
            Manifest::Experiment(_) => {
                let seconds = args.timeout.timeout_secs;
                experiment::status(&session, &name, args.wait, seconds, args.display.output)
                    .await?;
            }
            Manifest::Server(_) => {}
        }
    }
    Ok(())
}

/// Refuses a file before anything is done with part of it.
fn accepted(manifests: Vec<Manifest>) -> Result<Vec<Manifest>> {
    if let Some(server) = manifests
        .iter()
        .find(|manifest| matches!(manifest, Manifest::Server(_)))
    {
        bail!(
            "{} is a Server: apply it to Kubernetes, or start servers here with `seldon local up --servers`",
            server.metadata().name
        );
    }
    Ok(manifests)
}
