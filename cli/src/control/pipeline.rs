//! `seldon pipeline …`.
use anyhow::{Context as _, Result};
use seldon_inference::{to_protojson, to_protojson_value};
use seldon_proto::scheduler::{
    LoadPipelineRequest, Pipeline, PipelineStatusRequest, PipelineStatusResponse,
    UnloadPipelineRequest, pipeline_version_state::PipelineStatus,
};

use super::{
    inspect,
    session::{SUBSCRIBER, Seen, Session},
};
use crate::{
    args::{Control, Display, PipelineCommand, StateWait, Target},
    infer, manifests,
    output::{self, Format, row},
};

/// Runs a `pipeline` command.
pub(crate) async fn run(command: PipelineCommand) -> Result<()> {
    match command {
        PipelineCommand::Load(args) => {
            let pipelines = manifests::pipelines(&args.file_path)?;
            let session = Session::open(&args.control).await?;
            for pipeline in pipelines {
                load(&session, pipeline.to_proto()).await?;
            }
            Ok(())
        }
        PipelineCommand::Unload(args) => {
            let names = names(args.target)?;
            let session = Session::open(&args.control).await?;
            for name in names {
                unload(&session, name).await?;
            }
            Ok(())
        }
        PipelineCommand::Status(args) => {
            if !args.state.is_empty() {
                PipelineStatus::from_str_name(&args.state).with_context(|| {
                    format!(
                        "\"{}\" is not a state of a pipeline, such as PipelineReady",
                        args.state
                    )
                })?;
            }
            let session = Session::open(&args.control).await?;
            status(&session, &args).await
        }
        PipelineCommand::List(args) => list(&args.control, &args.display).await,
        PipelineCommand::Infer(args) => infer::pipeline(args).await,
        PipelineCommand::Inspect(args) => inspect::run(args).await,
    }
}

fn names(target: Target) -> Result<Vec<String>> {
    match (target.name, target.file_path) {
        (Some(name), _) => Ok(vec![name]),
        (None, Some(path)) => Ok(manifests::pipelines(&path)?
            .into_iter()
            .map(|p| p.metadata.name)
            .collect()),
        (None, None) => Ok(Vec::new()),
    }
}

/// Loads a pipeline.
pub(crate) async fn load(session: &Session, pipeline: Pipeline) -> Result<()> {
    let request = LoadPipelineRequest {
        pipeline: Some(pipeline),
    };
    session.show(&request)?;
    session.answer(session.client.clone().load_pipeline(request).await, false)
}

/// Unloads a pipeline.
pub(crate) async fn unload(session: &Session, name: String) -> Result<()> {
    let request = UnloadPipelineRequest { name };
    session.show(&request)?;
    session.answer(session.client.clone().unload_pipeline(request).await, false)
}

/// Prints the status of a pipeline, once it has the state waited for. Ready is one that can be asked: at its gateways and
/// Envoys as well as at its engine.
pub(crate) async fn status(session: &Session, args: &StateWait) -> Result<()> {
    let request = PipelineStatusRequest {
        subscriber_name: SUBSCRIBER.to_owned(),
        name: Some(args.name.clone()),
        all_versions: false,
    };
    session.show(&request)?;
    let look = async || {
        let status = session
            .first(
                session
                    .client
                    .clone()
                    .pipeline_status(request.clone())
                    .await,
                &args.name,
            )
            .await?;
        Ok(match awaited(&status, &args.state) {
            None => Seen::Done(status),
            Some(seen) => Seen::NotYet(format!("{} is {seen}", args.name)),
        })
    };
    let status = session
        .wait("Pipeline", args.wait.timeout_secs, look)
        .await?;
    match args.display.output {
        None => output::line(to_protojson(&status)?),
        format => {
            let table = || table(std::slice::from_ref(&status));
            output::answer(&to_protojson_value(&status)?, table, format, Format::Json)
        }
    }
}

/// What it has instead of the state that is waited for; nothing where it has that, or none is waited for.
fn awaited(status: &PipelineStatusResponse, wanted: &str) -> Option<String> {
    let (state, reason) = latest(status);
    if wanted.is_empty() {
        return None;
    }
    if state != wanted {
        return Some(format!("{state}: {reason}"));
    }
    let newest = status.versions.last()?;
    let known = newest.state.as_ref()?;
    let output = newest.pipeline.as_ref().and_then(|one| one.output.as_ref());
    let gateways = known.pipeline_gw_status();
    // Nobody asks one that answers nobody.
    let asked = state == PipelineStatus::PipelineReady.as_str_name()
        && output.is_some_and(|output| !output.steps.is_empty());
    (asked && gateways != PipelineStatus::PipelineReady).then(|| {
        let (gateways, reason) = (gateways.as_str_name(), &known.pipeline_gw_reason);
        format!("{state}, and at its gateways {gateways}: {reason}")
    })
}

fn latest(status: &PipelineStatusResponse) -> (&'static str, String) {
    match status
        .versions
        .last()
        .and_then(|version| version.state.as_ref())
    {
        Some(state) => (state.status().as_str_name(), state.reason.clone()),
        None => (PipelineStatus::Unknown.as_str_name(), String::new()),
    }
}

fn table(pipelines: &[PipelineStatusResponse]) -> String {
    let mut rows = vec![
        row([&"pipeline", &"state", &"reason"]),
        row([&"--------", &"-----", &"------"]),
    ];
    for pipeline in pipelines {
        let (state, reason) = latest(pipeline);
        rows.push(row([&pipeline.pipeline_name, &state, &reason]));
    }
    output::table(&rows)
}

async fn list(control: &Control, display: &Display) -> Result<()> {
    let session = Session::open(control).await?;
    let request = PipelineStatusRequest {
        subscriber_name: SUBSCRIBER.to_owned(),
        ..Default::default()
    };
    session.show(&request)?;
    let mut pipelines = session
        .collect(session.client.clone().pipeline_status(request).await)
        .await?;
    pipelines
        .retain(|pipeline| latest(pipeline).0 != PipelineStatus::PipelineTerminated.as_str_name());
    pipelines.sort_by(|left, right| left.pipeline_name.cmp(&right.pipeline_name));
    let values: Result<Vec<_>, _> = pipelines.iter().map(to_protojson_value).collect();
    output::answer(
        &values?.into(),
        || table(&pipelines),
        display.output,
        Format::Table,
    )
}

#[cfg(test)]
mod tests {
    use seldon_proto::scheduler::{PipelineOutput, PipelineVersionState, PipelineWithState};

    use super::*;

    #[test]
    fn ready_is_what_can_be_asked() {
        let status = |gateways: PipelineStatus, steps: &[&str]| PipelineStatusResponse {
            versions: vec![PipelineWithState {
                pipeline: Some(Pipeline {
                    output: Some(PipelineOutput {
                        steps: steps.iter().map(|step| (*step).to_owned()).collect(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                state: Some(PipelineVersionState {
                    status: PipelineStatus::PipelineReady.into(),
                    pipeline_gw_status: gateways.into(),
                    pipeline_gw_reason: "waits for Envoys to take the route".to_owned(),
                    ..Default::default()
                }),
            }],
            ..Default::default()
        };
        let (ready, creating) = (
            PipelineStatus::PipelineReady,
            PipelineStatus::PipelineCreating,
        );
        let early = status(creating, &["a"]);
        assert_eq!(
            awaited(&early, "PipelineReady").as_deref(),
            Some(
                "PipelineReady, and at its gateways PipelineCreating: waits for Envoys to take the route"
            )
        );
        assert_eq!(awaited(&early, ""), None);
        assert!(awaited(&early, "PipelineTerminated").is_some());
        assert_eq!(awaited(&status(ready, &["a"]), "PipelineReady"), None);
        assert_eq!(awaited(&status(creating, &[]), "PipelineReady"), None);
    }
}
