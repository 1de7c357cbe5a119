//! `seldon experiment …`.
use std::io::{self, IsTerminal as _};

use anyhow::Result;
use seldon_inference::{to_protojson, to_protojson_value};
use seldon_proto::{
    introspect::ExplainExperimentRequest,
    scheduler::{
        Experiment, ExperimentStatusRequest, ExperimentStatusResponse, StartExperimentRequest,
        StopExperimentRequest,
    },
};
use tonic::Code;

use super::{
    experiment_page,
    session::{SUBSCRIBER, Seen, Session},
};
use crate::{
    args::{Control, Display, ExperimentCommand, Target},
    manifests,
    output::{self, Format, row},
};

/// Runs an `experiment` command.
pub(crate) async fn run(command: ExperimentCommand) -> Result<()> {
    match command {
        ExperimentCommand::Start(args) => {
            let experiments = manifests::experiments(&args.file_path)?;
            let session = Session::open(&args.control).await?;
            for experiment in experiments {
                start(&session, experiment.to_proto()).await?;
            }
            Ok(())
        }
        ExperimentCommand::Stop(args) => {
            let names = names(args.target)?;
            let session = Session::open(&args.control).await?;
            for name in names {
                stop(&session, name).await?;
            }
            Ok(())
        }
        ExperimentCommand::Status(args) => {
            let session = Session::open(&args.control).await?;
            let seconds = args.wait.timeout_secs;
            // Documented lines pipe the JSON; a person gets the page.
            let page = || io::stdout().is_terminal().then_some(Format::Table);
            let format = args.display.output.or_else(page);
            status(&session, &args.name, args.active, seconds, format).await
        }
        ExperimentCommand::List(args) => list(&args.control, &args.display).await,
    }
}

fn names(target: Target) -> Result<Vec<String>> {
    match (target.name, target.file_path) {
        (Some(name), _) => Ok(vec![name]),
        (None, Some(path)) => Ok(manifests::experiments(&path)?
            .into_iter()
            .map(|e| e.metadata.name)
            .collect()),
        (None, None) => Ok(Vec::new()),
    }
}

/// Starts an experiment.
pub(crate) async fn start(session: &Session, experiment: Experiment) -> Result<()> {
    let request = StartExperimentRequest {
        experiment: Some(experiment),
    };
    session.show(&request)?;
    session.answer(
        session.client.clone().start_experiment(request).await,
        false,
    )
}

/// Stops an experiment.
pub(crate) async fn stop(session: &Session, name: String) -> Result<()> {
    let request = StopExperimentRequest { name };
    session.show(&request)?;
    session.answer(session.client.clone().stop_experiment(request).await, false)
}

/// Prints the status of an experiment, where `active` is wanted once it is.
pub(crate) async fn status(
    session: &Session,
    name: &str,
    active: bool,
    seconds: u64,
    format: Option<Format>,
) -> Result<()> {
    let request = ExperimentStatusRequest {
        subscriber_name: SUBSCRIBER.to_owned(),
        name: Some(name.to_owned()),
    };
    session.show(&request)?;
    let ask = async || {
        session
            .first(
                session
                    .client
                    .clone()
                    .experiment_status(request.clone())
                    .await,
                name,
            )
            .await
    };
    let status = match active {
        false => session.within(seconds, ask()).await?,
        true => {
            let look = async || {
                let status = ask().await?;
                Ok(match status.active {
                    true => Seen::Done(status),
                    false => Seen::NotYet(format!(
                        "{name} is not active: {}",
                        status.status_description
                    )),
                })
            };
            session.wait("Experiment", seconds, look).await?
        }
    };
    match format {
        None => output::line(to_protojson(&status)?),
        Some(Format::Table) => {
            let page = page(session, &status);
            output::line(session.within(seconds, page).await?)
        }
        format => {
            let table = || table(std::slice::from_ref(&status));
            output::answer(&to_protojson_value(&status)?, table, format, Format::Json)
        }
    }
}

/// The page of an experiment; the bare status where the scheduler cannot tell more.
async fn page(session: &Session, status: &ExperimentStatusResponse) -> Result<String> {
    let request = ExplainExperimentRequest {
        experiment: status.experiment_name.clone(),
    };
    let answer = session.introspect.clone().explain_experiment(request).await;
    if let Err(refused) = &answer
        && refused.code() == Code::Unimplemented
    {
        return Ok(format!(
            "{}\n{}",
            table(std::slice::from_ref(status)),
            status.status_description
        ));
    }
    Ok(experiment_page::text(&session.taken(answer)?))
}

fn table(experiments: &[ExperimentStatusResponse]) -> String {
    let mut rows = vec![
        row([&"experiment", &"active"]),
        row([&"----------", &"------"]),
    ];
    for experiment in experiments {
        rows.push(row([&experiment.experiment_name, &experiment.active]));
    }
    output::table(&rows)
}

async fn list(control: &Control, display: &Display) -> Result<()> {
    let session = Session::open(control).await?;
    let request = ExperimentStatusRequest {
        subscriber_name: SUBSCRIBER.to_owned(),
        name: None,
    };
    session.show(&request)?;
    let mut experiments = session
        .collect(session.client.clone().experiment_status(request).await)
        .await?;
    experiments.sort_by(|left, right| left.experiment_name.cmp(&right.experiment_name));
    let values: Result<Vec<_>, _> = experiments.iter().map(to_protojson_value).collect();
    output::answer(
        &values?.into(),
        || table(&experiments),
        display.output,
        Format::Table,
    )
}
