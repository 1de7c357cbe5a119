//! Tells the scheduler how this replica and its models are used.
use std::time::{Duration, Instant};

use seldon_proto::agent::{
    ModelEventMessage, ModelScalingTriggerMessage, ReplicaUsage, model_event_message::Event,
    model_scaling_trigger_message::Trigger,
};
use tokio::time::MissedTickBehavior;
use tonic::{Code, Request};

use super::Control;
use crate::scaling::{Analyst, Crossed, Kind, Thresholds};

/// How often the use of the replica is told, if it changed.
const USAGE_EVERY: Duration = Duration::from_secs(1);
/// Time for one message.
const LIMIT: Duration = Duration::from_secs(5);

impl Control {
    /// Tells how the replica is used, for ever. A scheduler that does not listen loses nothing by it.
    pub async fn tell_usage(&self) {
        let mut told = None;
        let mut every = tokio::time::interval(USAGE_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            if !*self.0.connected.borrow() {
                told = None;
                continue;
            }
            let usage = self.0.registry.usage();
            if told != Some(usage) && self.send_usage(usage).await {
                told = Some(usage);
            }
        }
    }

    async fn send_usage(&self, usage: ReplicaUsage) -> bool {
        let identity = &self.0.identity;
        let mut request = Request::new(ModelEventMessage {
            server_name: identity.server_name.clone(),
            replica_idx: identity.replica_idx,
            event: Event::Rsync.into(),
            available_memory_bytes: self.0.registry.available(),
            usage: Some(usage),
            ..Default::default()
        });
        request.set_timeout(LIMIT);
        self.0.client.clone().agent_event(request).await.is_ok()
    }

    /// Looks at the models' requests once in each period, and tells which thresholds they have crossed, for ever.
    pub async fn watch_models(&self, thresholds: Thresholds, period: Duration) {
        let mut analyst = Analyst::default();
        let mut every = tokio::time::interval(period.max(Duration::from_secs(1)));
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refused = false;
        loop {
            every.tick().await;
            let draining = self.0.phase.borrow().draining;
            if !*self.0.connected.borrow() {
                continue;
            }
            let models = self.0.registry.watched();
            let mut crossed = analyst.look(models, &thresholds, Instant::now());
            // What leaves is not scaled; but it is not to move as one that nobody asks for.
            crossed.retain(|crossed| !draining || matches!(crossed.kind, Kind::Woken(_)));
            if crossed.is_empty() {
                continue;
            }
            let triggers: Vec<_> = crossed
                .into_iter()
                .map(|crossed| self.trigger(crossed))
                .collect();
            let mut request = Request::new(tokio_stream::iter(triggers));
            request.set_timeout(LIMIT);
            let answer = self.0.client.clone().model_scaling_trigger(request).await;
            match answer {
                Err(status) if status.code() == Code::Unimplemented && !refused => {
                    tracing::info!("the scheduler does not scale models");
                    refused = true;
                }
                Err(status) => {
                    tracing::debug!(message = status.message(), "a scaling trigger is lost");
                }
                Ok(_) => refused = false,
            }
        }
    }

    fn trigger(&self, crossed: Crossed) -> ModelScalingTriggerMessage {
        let identity = &self.0.identity;
        let (trigger, metric, value) = match crossed.kind {
            Kind::TooMany(requests) => (Trigger::ScaleUp, "lag", requests),
            Kind::Woken(requests) => (Trigger::ScaleUp, "woken", requests),
            Kind::Inactive(idle) => {
                let seconds = idle.as_secs().try_into().unwrap_or(u32::MAX);
                (Trigger::ScaleDown, "inactive_seconds", seconds)
            }
        };
        tracing::debug!(
            model = crossed.name,
            version = crossed.version,
            metric,
            value,
            "a threshold of scaling is crossed"
        );
        ModelScalingTriggerMessage {
            server_name: identity.server_name.clone(),
            replica_idx: identity.replica_idx,
            model_name: crossed.name,
            model_version: crossed.version,
            trigger: trigger.into(),
            amount: 1,
            metrics: [(metric.to_owned(), value)].into(),
        }
    }
}
