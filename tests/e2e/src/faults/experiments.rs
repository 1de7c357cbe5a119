//! Experiments on the fleet: start, stop, and what the scheduler and the inference servers tell of them.
use anyhow::{Context, Result, ensure};
use seldon_grpc::scheduler::scheduler_client::SchedulerClient;
use seldon_load::ledger::{Asked, Inference};
use seldon_proto::introspect as told;
use seldon_proto::scheduler as pb;

use crate::faults::fleet::Fleet;
use crate::http::Ask;
use crate::running::channel;
use crate::wait::eventually_async;

/// An experiment in few words.
pub type Split<'a> = &'a [(&'a str, u32)];

/// Returns an experiment over these candidates with their weights.
pub fn experiment(name: &str, default: Option<&str>, split: Split<'_>) -> pb::Experiment {
    let candidate = |(name, weight): &(&str, u32)| pb::ExperimentCandidate {
        name: (*name).to_owned(),
        weight: *weight,
    };
    pb::Experiment {
        name: name.to_owned(),
        default: default.map(str::to_owned),
        candidates: split.iter().map(candidate).collect(),
        ..Default::default()
    }
}

/// What a candidate has in force, of a hundred requests.
pub fn percent_of(told: &told::ExplainExperimentResponse, candidate: &str) -> f64 {
    let found = told.candidates.iter().find(|found| found.name == candidate);
    found.map_or(f64::NAN, |found| found.in_force_percent)
}

impl Fleet {
    pub async fn start_experiment(&self, experiment: pb::Experiment) -> Result<()> {
        let request = pb::StartExperimentRequest {
            experiment: Some(experiment),
        };
        self.scheduler.clone().start_experiment(request).await?;
        Ok(())
    }

    /// Starts an experiment and waits until it is in force everywhere.
    pub async fn run_experiment(&self, experiment: pb::Experiment) -> Result<()> {
        let name = experiment.name.clone();
        self.start_experiment(experiment).await?;
        self.active(&name, 15).await
    }

    /// Waits until an experiment is active.
    pub async fn active(&self, name: &str, seconds: u64) -> Result<()> {
        let look = async || {
            let status = self.experiment_status(name).await?;
            ensure!(status.active, "{name}: {}", status.status_description);
            Ok(())
        };
        eventually_async(seconds, look).await
    }

    pub async fn stop_experiment(&self, name: &str) -> Result<()> {
        let request = pb::StopExperimentRequest {
            name: name.to_owned(),
        };
        self.scheduler.clone().stop_experiment(request).await?;
        Ok(())
    }

    pub async fn experiment_status(&self, name: &str) -> Result<pb::ExperimentStatusResponse> {
        let request = pb::ExperimentStatusRequest {
            subscriber_name: "experiments".to_owned(),
            name: Some(name.to_owned()),
        };
        let answers = self.scheduler.clone().experiment_status(request).await?;
        let answer = answers.into_inner().message().await?;
        answer.with_context(|| format!("nothing about {name}"))
    }

    /// Lists the experiments that run.
    pub async fn experiments(&self) -> Result<Vec<pb::ExperimentStatusResponse>> {
        let request = pb::ExperimentStatusRequest {
            subscriber_name: "experiments".to_owned(),
            name: None,
        };
        let answers = self.scheduler.clone().experiment_status(request).await?;
        let mut answers = answers.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.push(answer);
        }
        Ok(all)
    }

    /// Follows the status of every experiment.
    pub async fn experiment_statuses(
        &self,
    ) -> Result<tonic::Streaming<pb::ExperimentStatusResponse>> {
        let request = pb::ExperimentSubscriptionRequest {
            subscriber_name: "experiments".to_owned(),
        };
        // The time limit of the other calls would end the subscription.
        let mut client = SchedulerClient::new(channel(self.system.ports().scheduler.api));
        let answers = client.subscribe_experiment_status(request).await?;
        Ok(answers.into_inner())
    }

    pub async fn explain_experiment(&self, name: &str) -> Result<told::ExplainExperimentResponse> {
        let request = told::ExplainExperimentRequest {
            experiment: name.to_owned(),
        };
        let answer = self.introspect.clone().explain_experiment(request).await?;
        Ok(answer.into_inner())
    }

    /// Where a request of a name and with these headers would go.
    pub async fn explain_route(
        &self,
        name: &str,
        headers: &[(&str, &str)],
    ) -> Result<told::ExplainRouteResponse> {
        let header = |(name, value): &(&str, &str)| told::Header {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
        };
        let request = told::ExplainRouteRequest {
            name: name.to_owned(),
            headers: headers.iter().map(header).collect(),
        };
        let answer = self.introspect.clone().explain_route(request).await?;
        Ok(answer.into_inner())
    }

    /// Waits until every replica and Envoy holds a split of which a test says that it is the one.
    pub async fn in_force(
        &self,
        name: &str,
        seconds: u64,
        fits: impl Fn(&told::ExplainExperimentResponse) -> bool,
    ) -> Result<told::ExplainExperimentResponse> {
        let look = async || {
            let told = self.explain_experiment(name).await?;
            ensure!(
                fits(&told) && told.envoys_acknowledged == told.envoys_connected,
                "{told:?}"
            );
            Ok(told)
        };
        eventually_async(seconds, look).await
    }

    /// What both inference servers were asked, added up.
    pub fn asked(&self) -> Result<Asked> {
        let mut all = Asked::default();
        for replica in &self.system.ports().replicas {
            let answer = Ask::get("/fake/asked").send(replica.server_rest)?;
            let asked: Asked = serde_json::from_value(answer.ok()?)?;
            for (model, count) in asked.counts {
                *all.counts.entry(model).or_default() += count;
            }
            all.recorded.extend(asked.recorded);
        }
        Ok(all)
    }

    /// How often a model was asked.
    pub fn asked_of(&self, model: &str) -> Result<u64> {
        Ok(self.asked()?.counts.get(model).copied().unwrap_or(0))
    }

    /// The requests that a recorded model got.
    pub fn recorded_of(&self, model: &str) -> Result<Vec<Inference>> {
        let all = self.asked()?.recorded.into_iter();
        Ok(all.filter(|inference| inference.model == model).collect())
    }
}
