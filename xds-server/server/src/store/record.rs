//! Records as bytes. Field numbers are for ever.
use std::{sync::Arc, time::Duration};

use prost::Message;
use seldon_core::{Counts, Record, RolloutEvent, RolloutOutcome, RolloutRecord};
use seldon_proto::scheduler::{Experiment, Model, Pipeline};

use super::{StoreError, Write};

#[derive(Clone, PartialEq, Message)]
struct ModelRecord {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(message, optional, tag = "2")]
    spec: Option<Model>,
    #[prost(bool, tag = "3")]
    deleted: bool,
    #[prost(uint32, tag = "4")]
    born: u32,
    #[prost(uint32, optional, tag = "5")]
    scaled: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ServerRecord {
    #[prost(uint32, tag = "1")]
    expected_replicas: u32,
    #[prost(uint32, tag = "2")]
    min_replicas: u32,
    #[prost(uint32, tag = "3")]
    max_replicas: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PipelineRecord {
    #[prost(message, repeated, tag = "1")]
    versions: Vec<Pipeline>,
    #[prost(bool, tag = "2")]
    deleted: bool,
    #[prost(message, repeated, tag = "3")]
    former: Vec<Pipeline>,
}

#[derive(Clone, PartialEq, Message)]
struct ExperimentRecord {
    #[prost(message, optional, tag = "1")]
    spec: Option<Experiment>,
    #[prost(message, optional, tag = "2")]
    last_good: Option<Experiment>,
    #[prost(message, optional, tag = "3")]
    rollout: Option<Rollout>,
}

#[derive(Clone, PartialEq, Message)]
struct Rollout {
    #[prost(uint32, tag = "1")]
    step: u32,
    #[prost(enumeration = "Outcome", tag = "2")]
    outcome: i32,
    #[prost(message, repeated, tag = "3")]
    history: Vec<Decision>,
    #[prost(message, optional, tag = "4")]
    usual: Option<Counted>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Counted {
    #[prost(uint64, tag = "1")]
    begun: u64,
    #[prost(uint64, tag = "2")]
    requests: u64,
    #[prost(uint64, tag = "3")]
    errors: u64,
    #[prost(uint64, tag = "4")]
    microseconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Outcome {
    Running = 0,
    Complete = 1,
    RolledBack = 2,
}

#[derive(Clone, PartialEq, Message)]
struct Decision {
    #[prost(uint64, tag = "1")]
    at_ms: u64,
    #[prost(uint32, tag = "2")]
    percent: u32,
    #[prost(string, tag = "3")]
    reason: String,
}

/// Kinds of records, each with a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    Model,
    Pipeline,
    Experiment,
}

impl Kind {
    /// In the order in which they are restored.
    pub(super) const ALL: [Kind; 4] = [Kind::Server, Kind::Model, Kind::Pipeline, Kind::Experiment];

    /// In words; part of each record's check sum, so it is for ever.
    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Server => "server",
            Kind::Model => "model",
            Kind::Pipeline => "pipeline",
            Kind::Experiment => "experiment",
        }
    }

    pub(super) fn decode(self, name: &str, bytes: &[u8]) -> Result<Record, StoreError> {
        match self {
            Kind::Server => server(name, bytes),
            Kind::Model => model(name, bytes),
            Kind::Pipeline => pipeline(name, bytes),
            Kind::Experiment => experiment(name, bytes),
        }
    }
}

impl Write {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Write::Put(Record::Server { .. }) | Write::ForgetServer(_) => Kind::Server,
            Write::Put(Record::Model { .. }) | Write::ForgetModel(_) => Kind::Model,
            Write::Put(Record::Pipeline { .. }) | Write::ForgetPipeline(_) => Kind::Pipeline,
            Write::Put(Record::Experiment { .. }) | Write::ForgetExperiment(_) => Kind::Experiment,
        }
    }
}

/// What a record is filed under, and its bytes.
pub(super) fn encode(record: &Record) -> (&str, Vec<u8>) {
    match record {
        Record::Pipeline {
            name,
            versions,
            deleted,
            former,
        } => {
            let all = |all: &[Arc<Pipeline>]| all.iter().map(|one| Pipeline::clone(one)).collect();
            let value = PipelineRecord {
                versions: all(versions),
                deleted: *deleted,
                former: all(former),
            };
            (name, value.encode_to_vec())
        }
        Record::Model {
            name,
            version,
            spec,
            deleted,
            born,
            scaled,
        } => {
            let value = ModelRecord {
                born: *born,
                scaled: *scaled,
                version: *version,
                spec: Some(Model::clone(spec)),
                deleted: *deleted,
            };
            (name, value.encode_to_vec())
        }
        Record::Server {
            name,
            expected_replicas,
            min_replicas,
            max_replicas,
        } => {
            let value = ServerRecord {
                expected_replicas: *expected_replicas,
                min_replicas: *min_replicas,
                max_replicas: *max_replicas,
            };
            (name, value.encode_to_vec())
        }
        Record::Experiment {
            name,
            spec,
            last_good,
            rollout,
        } => {
            let value = ExperimentRecord {
                spec: Some(Experiment::clone(spec)),
                last_good: last_good.as_deref().cloned(),
                rollout: rollout.as_ref().map(encode_rollout),
            };
            (name, value.encode_to_vec())
        }
    }
}

fn pipeline(name: &str, bytes: &[u8]) -> Result<Record, StoreError> {
    let value = PipelineRecord::decode(bytes).map_err(unreadable("pipeline", name))?;
    Ok(Record::Pipeline {
        name: name.into(),
        versions: value.versions.into_iter().map(Arc::new).collect(),
        deleted: value.deleted,
        former: value.former.into_iter().map(Arc::new).collect(),
    })
}

fn model(name: &str, bytes: &[u8]) -> Result<Record, StoreError> {
    let value = ModelRecord::decode(bytes).map_err(unreadable("model", name))?;
    Ok(Record::Model {
        name: name.into(),
        version: value.version,
        spec: Arc::new(value.spec.unwrap_or_default()),
        deleted: value.deleted,
        born: value.born,
        scaled: value.scaled,
    })
}

fn server(name: &str, bytes: &[u8]) -> Result<Record, StoreError> {
    let value = ServerRecord::decode(bytes).map_err(unreadable("server", name))?;
    Ok(Record::Server {
        name: name.into(),
        expected_replicas: value.expected_replicas,
        min_replicas: value.min_replicas,
        max_replicas: value.max_replicas,
    })
}

fn experiment(name: &str, bytes: &[u8]) -> Result<Record, StoreError> {
    let value = ExperimentRecord::decode(bytes).map_err(unreadable("experiment", name))?;
    Ok(Record::Experiment {
        name: name.into(),
        spec: Arc::new(value.spec.unwrap_or_default()),
        last_good: value.last_good.map(Arc::new),
        rollout: value.rollout.map(decode_rollout),
    })
}

fn encode_rollout(rollout: &RolloutRecord) -> Rollout {
    let outcome = match rollout.outcome {
        RolloutOutcome::Running => Outcome::Running,
        RolloutOutcome::Complete => Outcome::Complete,
        RolloutOutcome::RolledBack => Outcome::RolledBack,
    };
    let decision = |event: &RolloutEvent| Decision {
        at_ms: u64::try_from(event.at.as_millis()).unwrap_or(u64::MAX),
        percent: event.percent,
        reason: event.reason.clone(),
    };
    Rollout {
        step: rollout.step,
        outcome: outcome.into(),
        history: rollout.history.iter().map(decision).collect(),
        usual: rollout.usual.map(|usual| Counted {
            begun: usual.begun,
            requests: usual.requests,
            errors: usual.errors,
            microseconds: usual.microseconds,
        }),
    }
}

fn decode_rollout(value: Rollout) -> RolloutRecord {
    let outcome = match value.outcome() {
        Outcome::Running => RolloutOutcome::Running,
        Outcome::Complete => RolloutOutcome::Complete,
        Outcome::RolledBack => RolloutOutcome::RolledBack,
    };
    let event = |decision: Decision| RolloutEvent {
        at: Duration::from_millis(decision.at_ms),
        percent: decision.percent,
        reason: decision.reason,
    };
    RolloutRecord {
        step: value.step,
        outcome,
        history: value.history.into_iter().map(event).collect(),
        usual: value.usual.map(|usual| Counts {
            begun: usual.begun,
            requests: usual.requests,
            errors: usual.errors,
            microseconds: usual.microseconds,
        }),
    }
}

fn unreadable(kind: &'static str, name: &str) -> impl FnOnce(prost::DecodeError) -> StoreError {
    move |cause| broken(kind, name, &cause)
}

/// The file's path, and where its copy is, are added by whoever knows them.
pub(super) fn broken(kind: &str, name: &str, cause: &dyn std::fmt::Display) -> StoreError {
    StoreError::Damaged {
        path: String::new(),
        cause: format!("the record of {kind} {name} cannot be read: {cause}"),
        copy: String::new(),
    }
}
