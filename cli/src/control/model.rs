//! `seldon model …`.
use anyhow::{Context as _, Result};
use seldon_inference::{to_protojson, to_protojson_value};
use seldon_proto::scheduler::{
    LoadModelRequest, Model, ModelReference, ModelStatusRequest, ModelStatusResponse,
    ModelVersionStatus, UnloadModelRequest, model_status::ModelState,
};

use super::session::{SUBSCRIBER, Seen, Session};
use crate::{
    args::{Control, Display, ModelCommand, StateWait, Target},
    infer, manifests,
    output::{self, Format, row},
};

/// Runs a `model` command.
pub(crate) async fn run(command: ModelCommand) -> Result<()> {
    match command {
        ModelCommand::Load(args) => {
            let models = manifests::models(&args.file_path)?;
            let session = Session::open(&args.control).await?;
            for model in models {
                load(&session, model.to_proto()).await?;
            }
            Ok(())
        }
        ModelCommand::Unload(args) => {
            let names = names(args.target)?;
            let session = Session::open(&args.control).await?;
            for name in names {
                unload(&session, name).await?;
            }
            Ok(())
        }
        ModelCommand::Status(args) => {
            // A state that does not exist would be waited for in vain.
            if !args.state.is_empty() {
                ModelState::from_str_name(&args.state).with_context(|| {
                    format!(
                        "\"{}\" is not a state of a model, such as ModelAvailable or ModelFailed",
                        args.state
                    )
                })?;
            }
            let session = Session::open(&args.control).await?;
            status(&session, &args).await
        }
        ModelCommand::List(args) => list(&args.control, &args.display).await,
        ModelCommand::Infer(args) => infer::model(args).await,
        ModelCommand::Metadata(args) => infer::metadata(args).await,
    }
}

fn names(target: Target) -> Result<Vec<String>> {
    match (target.name, target.file_path) {
        (Some(name), _) => Ok(vec![name]),
        (None, Some(path)) => Ok(manifests::models(&path)?
            .into_iter()
            .map(|model| model.metadata.name)
            .collect()),
        (None, None) => Ok(Vec::new()),
    }
}

/// Loads a model; the empty answer is printed, as documented.
pub(crate) async fn load(session: &Session, model: Model) -> Result<()> {
    let request = LoadModelRequest { model: Some(model) };
    session.show(&request)?;
    session.answer(session.client.clone().load_model(request).await, true)
}

/// Unloads a model.
pub(crate) async fn unload(session: &Session, name: String) -> Result<()> {
    let request = UnloadModelRequest {
        model: Some(ModelReference {
            name,
            version: None,
        }),
        kubernetes_meta: None,
    };
    session.show(&request)?;
    session.answer(session.client.clone().unload_model(request).await, false)
}

/// Prints the status of a model, or waits for a state and prints `{}`.
pub(crate) async fn status(session: &Session, args: &StateWait) -> Result<()> {
    let request = ModelStatusRequest {
        subscriber_name: SUBSCRIBER.to_owned(),
        model: Some(ModelReference {
            name: args.name.clone(),
            version: None,
        }),
        all_versions: false,
    };
    session.show(&request)?;
    let ask = async || {
        session
            .first(
                session.client.clone().model_status(request.clone()).await,
                &args.name,
            )
            .await
    };
    if args.state.is_empty() {
        let status = session.within(args.wait.timeout_secs, ask()).await?;
        return print(&status, args.display.output);
    }
    let look = async || {
        let status = ask().await?;
        let version = latest(&status);
        Ok(if version.state == args.state {
            Seen::Done(())
        } else {
            Seen::NotYet(version.sentence(&args.name))
        })
    };
    session.wait("Model", args.wait.timeout_secs, look).await?;
    output::line("{}")
}

fn print(status: &ModelStatusResponse, format: Option<Format>) -> Result<()> {
    if format.is_none() {
        return output::line(to_protojson(status)?);
    }
    let table = || {
        let mut rows = vec![row([
            &"version",
            &"server",
            &"state",
            &"available",
            &"reason",
        ])];
        for version in &status.versions {
            let latest = Latest::of(version);
            rows.push(row([
                &version.version,
                &version.server_name,
                &latest.state,
                &version
                    .state
                    .as_ref()
                    .map_or(0, |state| state.available_replicas),
                &latest.reason,
            ]));
        }
        output::table(&rows)
    };
    output::answer(&to_protojson_value(status)?, table, format, Format::Json)
}

/// State and reason of the newest version.
struct Latest {
    state: &'static str,
    reason: String,
}

impl Latest {
    fn of(version: &ModelVersionStatus) -> Self {
        match &version.state {
            Some(state) => Self {
                state: state.state().as_str_name(),
                reason: state.reason.clone(),
            },
            None => Self {
                state: ModelState::Unknown.as_str_name(),
                reason: String::new(),
            },
        }
    }

    fn sentence(&self, name: &str) -> String {
        let reason = if self.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", self.reason)
        };
        format!(
            "{name} is {}{reason}; `seldon explain model {name}` tells more",
            self.state
        )
    }
}

fn latest(status: &ModelStatusResponse) -> Latest {
    status.versions.last().map_or_else(
        || Latest {
            state: ModelState::Unknown.as_str_name(),
            reason: String::new(),
        },
        Latest::of,
    )
}

async fn list(control: &Control, display: &Display) -> Result<()> {
    let session = Session::open(control).await?;
    let request = ModelStatusRequest {
        subscriber_name: SUBSCRIBER.to_owned(),
        ..Default::default()
    };
    session.show(&request)?;
    let mut models = session
        .collect(session.client.clone().model_status(request).await)
        .await?;
    models.retain(|model| latest(model).state != ModelState::ModelTerminated.as_str_name());
    models.sort_by(|left, right| left.model_name.cmp(&right.model_name));
    let values: Result<Vec<_>, _> = models.iter().map(to_protojson_value).collect();
    let table = || {
        let mut rows = vec![
            row([&"model", &"state", &"reason"]),
            row([&"-----", &"-----", &"------"]),
        ];
        for model in &models {
            let Latest { state, reason } = latest(model);
            rows.push(row([&model.model_name, &state, &reason]));
        }
        output::table(&rows)
    };
    output::answer(&values?.into(), table, display.output, Format::Table)
}
