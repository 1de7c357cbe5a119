//! Asking the scheduler, by its documented calls.
use std::time::Duration;

use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_proto::scheduler::{
    ExperimentStatusRequest, ModelStatusRequest, PipelineStatusRequest, SchedulerStatusRequest,
    ServerStatusRequest,
};
use tokio::time::timeout;
use tonic::{Status, Streaming, transport::Channel};

use crate::{Tally, usage::Level};

/// As subscriptions call their subscribers.
const NAME: &str = "hodometer";
/// For all answers together; ten thousand models take far less.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the scheduler said.
pub(crate) struct Told {
    pub(crate) version: String,
    pub(crate) tally: Tally,
}

/// Asks for what a level needs, and for no more.
pub(crate) async fn ask(channel: &Channel, level: Level) -> Result<Told, Status> {
    let told = async {
        let client = SchedulerClient::new(channel.clone());
        let mut client = client.max_decoding_message_size(usize::MAX);
        let request = SchedulerStatusRequest {
            subscriber_name: NAME.to_owned(),
        };
        let status = client.scheduler_status(request).await?.into_inner();
        let mut tally = Tally::default();
        if level >= Level::Resource {
            count(&mut client, &mut tally).await?;
        }
        Ok(Told {
            version: status.application_version,
            tally,
        })
    };
    let late = |_| Status::deadline_exceeded(format!("no answer within {} s", PATIENCE.as_secs()));
    timeout(PATIENCE, told).await.map_err(late)?
}

async fn count(client: &mut SchedulerClient<Channel>, tally: &mut Tally) -> Result<(), Status> {
    let subscriber_name = NAME.to_owned();
    let servers = client.server_status(ServerStatusRequest {
        subscriber_name: subscriber_name.clone(),
        name: None,
    });
    each(servers.await?.into_inner(), |status| tally.server(&status)).await?;
    let models = client.model_status(ModelStatusRequest {
        subscriber_name: subscriber_name.clone(),
        model: None,
        all_versions: false,
    });
    each(models.await?.into_inner(), |status| tally.model(&status)).await?;
    let pipelines = client.pipeline_status(PipelineStatusRequest {
        subscriber_name: subscriber_name.clone(),
        name: None,
        all_versions: false,
    });
    each(pipelines.await?.into_inner(), |status| {
        tally.pipeline(&status)
    })
    .await?;
    let experiments = client.experiment_status(ExperimentStatusRequest {
        subscriber_name,
        name: None,
    });
    each(experiments.await?.into_inner(), |status| {
        tally.experiment(&status)
    })
    .await
}

async fn each<T>(mut answers: Streaming<T>, mut count: impl FnMut(T)) -> Result<(), Status> {
    while let Some(answer) = answers.message().await? {
        count(answer);
    }
    Ok(())
}
