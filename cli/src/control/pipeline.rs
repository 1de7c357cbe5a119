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

/// Prints the status of a pipeline, once it has the state waited for.
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
        let (state, reason) = latest(&status);
        let done = args.state.is_empty() || state == args.state;
        Ok(if done {
            Seen::Done(status)
        } else {
            Seen::NotYet(format!("{} is {state}: {reason}", args.name))
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
