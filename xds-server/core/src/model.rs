//! A model: its versions, and the replicas of each.
use std::{collections::BTreeSet, sync::Arc, time::Duration};

use seldon_proto::scheduler::{
    Model, ModelRuntimeInfo, ModelSpec, model_runtime_info, model_spec, model_status::ModelState,
};

use crate::{
    Generation, Split,
    replica_state::{ReplicaState, is_loaded, is_loading, is_loading_or_loaded},
    scaling::ModelScaling,
};

/// A parameter of this name with the value `false` or `off` has requests run at most once.
pub const RETRY_PARAMETER: &str = "seldon-retry";

/// One version of a model on one replica of its server.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) index: u32,
    pub(crate) state: ReplicaState,
    pub(crate) reason: Option<Arc<str>>,
    /// Wall clock of the last change.
    pub(crate) since: Duration,
    pub(crate) deadline: Option<Duration>,
    /// The generation that Envoys must have taken (loaded) or left behind (to be unloaded).
    pub(crate) gate: Option<Generation>,
    /// Whether an Envoy may have been told of it.
    pub(crate) routed: bool,
    /// Failed unloads in a row.
    pub(crate) failures: u32,
    /// It takes memory there that others have been given.
    pub(crate) crowded: bool,
}

/// One version of a model; it lives on one server.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) number: u32,
    pub(crate) server: Option<Arc<str>>,
    pub(crate) spec: Arc<Model>,
    /// Found on an agent, but of an earlier life of the model: never routed, only unloaded.
    pub(crate) stray: bool,
    /// Kept out of memory until it is asked for; it takes none.
    pub(crate) resting: bool,
    /// By index.
    pub(crate) replicas: Vec<Replica>,
    /// The set that was counted in the server's index of sets.
    pub(crate) counted: Option<Arc<[u32]>>,
    /// Rounds of failed loads in a row, when to try again, and the world in which the last one failed.
    pub(crate) failures: u32,
    /// Why the last of them failed.
    pub(crate) last_failure: Option<Arc<str>>,
    pub(crate) retry_at: Option<Duration>,
    pub(crate) failed_epoch: u64,
    /// Where loads failed lately: another try goes elsewhere, if it can.
    pub(crate) avoided: BTreeSet<(Arc<str>, u32)>,
}

/// The state of a model as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) state: ModelState,
    pub(crate) reason: Option<Arc<str>>,
    pub(crate) available: u32,
    pub(crate) unavailable: u32,
}

/// A model by name.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    pub(crate) deleted: bool,
    /// The number with which its present life began; versions of an older number are of a life before.
    pub(crate) born: u32,
    /// Desired state came from a client or the store, so agents cannot overrule it.
    pub(crate) authoritative: bool,
    /// By number; the latest is the last that is not stray.
    pub(crate) versions: Vec<Version>,
    /// The route in force.
    pub(crate) splits: Vec<Split>,
    pub(crate) route_generation: Generation,
    /// Why an Envoy refused the route.
    pub(crate) rejected: Option<Arc<str>>,
    /// Why it cannot be placed as wanted.
    pub(crate) unplaced: Option<Arc<str>>,
    pub(crate) shown: Shown,
    /// Wall clock of the last change of what is shown.
    pub(crate) since: Duration,
    pub(crate) changed: bool,
    /// The deadline that is set for this model.
    pub(crate) timer: Option<Duration>,
    /// An agent that went away may still have it, or did before a restart.
    pub(crate) unconfirmed: bool,
    /// When a model that is gone is no longer shown.
    pub(crate) gone_at: Option<Duration>,
    /// Whether the store does not have it any more.
    pub(crate) forgotten: bool,
    pub(crate) scaling: ModelScaling,
    /// When what is shown changed last; monotonic.
    pub(crate) settled_at: Duration,
    /// Since when it cannot be placed as wanted; monotonic.
    pub(crate) short_since: Option<Duration>,
    /// The server that was asked to grow for it.
    pub(crate) needs: Option<Arc<str>>,
}

impl Replica {
    pub(crate) fn new(index: u32) -> Replica {
        Replica {
            index,
            state: ReplicaState::Unknown,
            reason: None,
            since: Duration::ZERO,
            deadline: None,
            gate: None,
            routed: false,
            failures: 0,
            crowded: false,
        }
    }
}

impl Version {
    pub(crate) fn new(number: u32, spec: Arc<Model>) -> Version {
        Version {
            number,
            server: None,
            spec,
            stray: false,
            resting: false,
            replicas: Vec::new(),
            counted: None,
            failures: 0,
            last_failure: None,
            retry_at: None,
            failed_epoch: 0,
            avoided: BTreeSet::new(),
        }
    }

    pub(crate) fn is_on(&self, server: &str) -> bool {
        self.server.as_deref() == Some(server)
    }

    pub(crate) fn position(&self, index: u32) -> Option<usize> {
        self.replicas
            .binary_search_by_key(&index, |replica| replica.index)
            .ok()
    }

    pub(crate) fn ready(&self) -> usize {
        self.replicas
            .iter()
            .filter(|replica| is_loaded(replica.state))
            .count()
    }

    pub(crate) fn has_failed(&self) -> bool {
        let mut states = self.replicas.iter().map(|replica| replica.state);
        states.any(|state| state == ReplicaState::LoadFailed)
    }

    /// One replica has loaded it, or begins anew; failures count on for as long as another has failed.
    pub(crate) fn forgive(&mut self, index: u32) {
        if let Some(server) = &self.server {
            self.avoided.remove(&(server.clone(), index));
        }
        if !self.has_failed() {
            (self.failures, self.retry_at, self.last_failure) = (0, None, None);
            self.avoided.clear();
        }
    }

    pub(crate) fn is_loading(&self) -> bool {
        let mut states = self.replicas.iter().map(|replica| replica.state);
        states.any(is_loading)
    }

    /// The server that it does not leave while any replica is there.
    pub(crate) fn home(&self) -> Option<&Arc<str>> {
        self.server.as_ref().filter(|_| !self.replicas.is_empty())
    }

    /// The replicas that are placed, ready or not.
    pub(crate) fn placed(&self) -> impl Iterator<Item = u32> {
        self.replicas
            .iter()
            .filter(|replica| is_loading_or_loaded(replica.state))
            .map(|replica| replica.index)
    }

    /// The bytes that each replica takes now.
    pub(crate) fn required(&self) -> u64 {
        match self.resting {
            true => 0,
            false => required_memory(&self.spec),
        }
    }
}

impl Entry {
    pub(crate) fn new(name: Arc<str>, version: Version, authoritative: bool) -> Entry {
        Entry {
            name,
            deleted: false,
            born: 0,
            authoritative,
            versions: vec![version],
            splits: Vec::new(),
            route_generation: 0,
            rejected: None,
            unplaced: None,
            shown: Shown {
                state: ModelState::Unknown,
                reason: None,
                available: 0,
                unavailable: 0,
            },
            since: Duration::ZERO,
            changed: true,
            timer: None,
            unconfirmed: false,
            gone_at: None,
            forgotten: false,
            scaling: ModelScaling::default(),
            settled_at: Duration::ZERO,
            short_since: None,
            needs: None,
        }
    }

    /// The position of the newest version that is wanted, or was when the model was deleted.
    pub(crate) fn latest_position(&self) -> usize {
        self.versions
            .iter()
            .rposition(|version| !version.stray)
            .expect("a model has a version that is not stray")
    }

    pub(crate) fn latest(&self) -> &Version {
        &self.versions[self.latest_position()]
    }

    /// Finds a version's replica by what an agent calls it.
    pub(crate) fn find(&self, number: u32, server: &str, index: u32) -> Option<(usize, usize)> {
        self.versions.iter().enumerate().find_map(|(at, version)| {
            let named = version.number == number && version.is_on(server);
            Some((at, version.position(index).filter(|_| named)?))
        })
    }

    pub(crate) fn next_number(&self) -> u32 {
        self.versions
            .iter()
            .map(|version| version.number)
            .max()
            .unwrap_or(0)
            .saturating_add(1)
    }
}

/// Replicas that a model wants.
pub(crate) fn wanted(spec: &Model) -> usize {
    spec.deployment_spec.as_ref().map_or(1, |deployment| {
        deployment.replicas.max(deployment.min_replicas)
    }) as usize
}

/// Replicas that are enough for a start; 0 when only all are.
pub(crate) fn minimum(spec: &Model) -> usize {
    spec.deployment_spec
        .as_ref()
        .map_or(0, |deployment| deployment.min_replicas) as usize
}

/// The bytes one replica of the model needs: `memoryBytes` for each instance that the runtime starts.
pub(crate) fn required_memory(spec: &Model) -> u64 {
    let Some(model) = &spec.model_spec else {
        return 0;
    };
    model
        .memory_bytes
        .unwrap_or(0)
        .saturating_mul(instances(model.model_runtime_info.as_ref()))
}

fn instances(runtime: Option<&ModelRuntimeInfo>) -> u64 {
    use model_runtime_info::ModelRuntimeInfo::{Mlserver, Triton};
    let count = match runtime.and_then(|info| info.model_runtime_info.as_ref()) {
        Some(Mlserver(settings)) => settings.parallel_workers,
        Some(Triton(config)) => config.cpu.first().map_or(1, |cpu| cpu.instance_count),
        None => 1,
    };
    u64::from(count.max(1))
}

pub(crate) fn is_explainer(spec: &Model) -> bool {
    let special = spec
        .model_spec
        .as_ref()
        .and_then(|model| model.model_spec.as_ref());
    matches!(special, Some(model_spec::ModelSpec::Explainer(_)))
}

/// The server a model is pinned to.
pub(crate) fn pinned(spec: &Model) -> Option<&str> {
    spec.model_spec
        .as_ref()?
        .server
        .as_deref()
        .filter(|server| !server.is_empty())
}

pub(crate) fn retries(spec: &Model) -> bool {
    let parameters = spec.model_spec.iter().flat_map(|model| &model.parameters);
    !parameters
        .filter(|parameter| parameter.name == RETRY_PARAMETER)
        .any(|parameter| matches!(parameter.value.trim(), "false" | "off" | "0"))
}

pub(crate) fn logs_payloads(spec: &Model) -> bool {
    spec.deployment_spec
        .as_ref()
        .is_some_and(|deployment| deployment.log_payloads)
}

/// Whether both describe one artefact, run in one way; what a runtime told of itself does not count.
pub(crate) fn same_artefact(left: &Model, right: &Model) -> bool {
    let bare = |spec: &Model| {
        spec.model_spec.clone().map(|model| ModelSpec {
            model_runtime_info: None,
            ..model
        })
    };
    bare(left) == bare(right)
}

/// `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, no longer than Kubernetes and agents take.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= 253
        && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        && bytes.first().copied().is_some_and(plain)
        && bytes.last().copied().is_some_and(plain)
}
