//! Pipelines: what is acceptable, who runs them, and which gateways answer for them.
mod check;
mod engines;
mod explain;
mod fleet;
mod message;
mod readers;
mod reconcile;
mod refs;
mod route;
mod status;
mod task;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seldon_proto::scheduler::{Pipeline, pipeline_version_state::PipelineStatus};

pub use explain::{PipelineExplanation, StepVerdict, WorkerVerdict};

pub(crate) use check::{cycle_across, externals, mistakes, refusal};
pub(crate) use explain::explain;
pub(crate) use fleet::{Fleets, Member};
pub(crate) use readers::{Readers, settle_reader};
pub(crate) use reconcile::{reconcile, record};
pub(crate) use refs::in_full;
pub(crate) use status::pipeline_status;
pub(crate) use task::{Doing, Taken, Task, Tasks};

use crate::{Generation, PIPELINE_SUFFIX, Split, Worker};

/// What is shown of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) status: PipelineStatus,
    pub(crate) reason: String,
    pub(crate) gateway_status: PipelineStatus,
    pub(crate) gateway_reason: String,
    pub(crate) models_ready: bool,
}

/// One version of a pipeline.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    /// Its number and uid are in force.
    pub(crate) spec: Arc<Pipeline>,
    /// At engines.
    pub(crate) engines: Tasks,
    /// Replaced by a newer one: it ends, its topics stay.
    pub(crate) leaving: bool,
    /// The engine that had it says that nothing of it is in flight any more.
    pub(crate) drained: bool,
    /// When it had ended.
    pub(crate) ended: Option<Duration>,
    /// Whether it was ready once.
    pub(crate) was_ready: bool,
    pub(crate) shown: Shown,
    /// Wall clock of the last change of what is shown.
    pub(crate) since: Duration,
}

/// A pipeline by name.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Arc<str>,
    /// The name in requests and routes.
    pub(crate) endpoint: Arc<str>,
    /// By number; at least one.
    pub(crate) versions: Vec<Version>,
    /// Of a life before, with other numbers than those: engines that are away may run them. They are to end.
    pub(crate) strays: Vec<Version>,
    pub(crate) deleted: bool,
    /// What is to begin when the deleted one has ended.
    pub(crate) next: Option<Arc<Pipeline>>,
    /// At pipeline gateways, which have all versions at once.
    pub(crate) gateways: Tasks,
    /// The route in force; of one split at most.
    pub(crate) splits: Vec<Split>,
    pub(crate) route_generation: Generation,
    /// Whether Envoys have taken a route since there is one.
    pub(crate) taken: bool,
    /// Why an Envoy refused the route.
    pub(crate) rejected: Option<Arc<str>>,
    /// Until when a former owner is waited for.
    pub(crate) handover: Option<Duration>,
    /// Whom that wait is for.
    pub(crate) heir: Option<Arc<str>>,
    /// Until when an engine does not begin because its models' topics are not read yet.
    pub(crate) begin_by: Option<Duration>,
    /// Its topics went with it.
    pub(crate) cleaned: bool,
    /// Read back from the store: workers may have it.
    pub(crate) restored: bool,
    /// A worker that went away may still have it.
    pub(crate) unconfirmed: bool,
    /// When one that has ended is no longer shown.
    pub(crate) gone_at: Option<Duration>,
    /// Whether the store does not have it any more.
    pub(crate) forgotten: bool,
    /// Workers that have something to do with it, as they know.
    pub(crate) on: BTreeSet<(Worker, Arc<str>)>,
    /// Models of its steps, as they are indexed.
    pub(crate) uses: BTreeSet<Arc<str>>,
    pub(crate) timer: Option<Duration>,
}

/// All pipelines.
#[derive(Debug, Default)]
pub(crate) struct Pipelines {
    pub(crate) entries: BTreeMap<Arc<str>, Entry>,
    /// Pipelines that have a model as a step.
    pub(crate) users: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Who reads models' topics.
    pub(crate) readers: Readers,
    /// Those that have ended and are in the store until their models' topics are not read any more.
    pub(crate) ended: BTreeSet<Arc<str>>,
    /// To be looked at in the step at hand.
    pub(crate) dirty: BTreeSet<Arc<str>>,
    /// Those that wait for Envoys to have taken, or left, a generation.
    pub(crate) awaiting: BTreeSet<(Generation, Arc<str>)>,
}

impl Version {
    pub(crate) fn new(spec: Arc<Pipeline>) -> Version {
        Version {
            spec,
            engines: Tasks::default(),
            leaving: false,
            drained: false,
            ended: None,
            was_ready: false,
            shown: Shown {
                status: PipelineStatus::PipelineCreate,
                reason: String::new(),
                gateway_status: PipelineStatus::PipelineCreate,
                gateway_reason: String::new(),
                models_ready: false,
            },
            since: Duration::ZERO,
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.spec.version
    }

    /// Whether it is to run.
    pub(crate) fn lives(&self) -> bool {
        !self.leaving && self.ended.is_none()
    }

    /// Whether it was replaced and requests may still be in flight in it.
    pub(crate) fn drains(&self) -> bool {
        self.leaving && self.ended.is_none() && self.was_ready && !self.drained
    }

    /// Whether an engine runs it.
    pub(crate) fn engine_ready(&self) -> bool {
        self.lives() && self.engines.0.values().any(Task::ready)
    }
}

impl Entry {
    pub(crate) fn new(spec: Arc<Pipeline>) -> Entry {
        Entry {
            name: spec.name.as_str().into(),
            endpoint: endpoint(&spec.name),
            versions: vec![Version::new(spec)],
            strays: Vec::new(),
            deleted: false,
            next: None,
            gateways: Tasks::default(),
            splits: Vec::new(),
            route_generation: 0,
            taken: false,
            rejected: None,
            handover: None,
            heir: None,
            begin_by: None,
            cleaned: false,
            restored: false,
            unconfirmed: false,
            gone_at: None,
            forgotten: false,
            on: BTreeSet::new(),
            uses: BTreeSet::new(),
            timer: None,
        }
    }

    pub(crate) fn latest(&self) -> &Version {
        self.versions.last().expect("a pipeline has a version")
    }

    /// Whether both its engine and its gateways have the newest version, and Envoys a route.
    pub(crate) fn ready(&self) -> bool {
        let shown = &self.latest().shown;
        let ready = PipelineStatus::PipelineReady;
        self.next.is_none() && shown.status == ready && shown.gateway_status == ready
    }

    /// Whether it is being removed, or is gone.
    pub(crate) fn ending(&self) -> bool {
        self.deleted && self.next.is_none()
    }

    /// Whether its topics are yet to go with it. Asked for again meanwhile, it keeps them.
    pub(crate) fn cleans(&self) -> bool {
        let dataflow = self.latest().spec.dataflow_spec;
        let asked = dataflow.is_some_and(|dataflow| dataflow.clean_topics_on_delete);
        self.ending() && asked && !self.cleaned
    }

    /// All versions that engines may have.
    pub(crate) fn all_versions(&self) -> impl Iterator<Item = &Version> {
        self.strays.iter().chain(&self.versions)
    }

    pub(crate) fn all_versions_mut(&mut self) -> impl Iterator<Item = &mut Version> {
        self.strays.iter_mut().chain(&mut self.versions)
    }

    /// Adds a version. What engines may have of that number from a life before is to become it, or to end, there.
    pub(crate) fn add(&mut self, mut version: Version) {
        let number = version.number();
        let stray = self
            .strays
            .iter()
            .position(|stray| stray.number() == number);
        if let Some(at) = stray {
            for (name, mut task) in self.strays.remove(at).engines.0 {
                task.want(Doing::Perhaps, number);
                version.engines.0.insert(name, task);
            }
        }
        self.versions.push(version);
    }
}

impl Pipelines {
    pub(crate) fn touch(&mut self, name: &Arc<str>) {
        if !self.dirty.contains(name) {
            self.dirty.insert(name.clone());
        }
    }

    pub(crate) fn touch_all(&mut self) {
        self.dirty.extend(self.entries.keys().cloned());
    }

    /// A model's topics are read no more: pipelines that were remembered for that may be forgotten.
    pub(crate) fn touch_ended(&mut self) {
        self.dirty.extend(self.ended.iter().cloned());
    }

    /// Something about a model changed.
    pub(crate) fn touch_model(&mut self, model: &str) {
        let users = self.users.get(model).into_iter().flatten();
        self.dirty.extend(users.cloned());
    }

    /// The pipeline that requests call so.
    pub(crate) fn by_endpoint(&self, endpoint: &str) -> Option<&Entry> {
        self.entries.get(endpoint.strip_suffix(PIPELINE_SUFFIX)?)
    }

    pub(crate) fn by_endpoint_mut(&mut self, endpoint: &str) -> Option<&mut Entry> {
        self.entries
            .get_mut(endpoint.strip_suffix(PIPELINE_SUFFIX)?)
    }

    /// Takes note of the models that a pipeline uses now; those whose first or last user it is.
    pub(crate) fn index(&mut self, entry: &mut Entry) -> Vec<Arc<str>> {
        let models = models_of(entry);
        if models == entry.uses {
            return Vec::new();
        }
        let mut changed = Vec::new();
        for model in entry.uses.difference(&models) {
            if let Some(users) = self.users.get_mut(model) {
                users.remove(&entry.name);
                if users.is_empty() {
                    self.users.remove(model);
                    changed.push(model.clone());
                }
            }
        }
        for model in models.difference(&entry.uses) {
            let users = self.users.entry(model.clone()).or_default();
            if users.is_empty() {
                changed.push(model.clone());
            }
            users.insert(entry.name.clone());
        }
        entry.uses = models;
        changed
    }

    /// Envoys have taken, or left behind, everything up to `generation`.
    pub(crate) fn acknowledged(&mut self, generation: Generation) {
        while let Some((gate, _)) = self.awaiting.first()
            && *gate <= generation
            && let Some((_, name)) = self.awaiting.pop_first()
        {
            self.dirty.insert(name);
        }
    }
}

/// The name of a pipeline in requests and routes.
pub(crate) fn endpoint(name: &str) -> Arc<str> {
    format!("{name}{PIPELINE_SUFFIX}").into()
}

/// The models that an entry's versions use.
pub(crate) fn models_of(entry: &Entry) -> BTreeSet<Arc<str>> {
    if entry.gone_at.is_some() {
        return BTreeSet::new();
    }
    // Requests in flight in a version that leaves need its models as well.
    let living = entry
        .versions
        .iter()
        .filter(|version| version.ended.is_none());
    let specs = living.map(|version| &version.spec).chain(&entry.next);
    specs
        .flat_map(|spec| &spec.steps)
        .map(|step| step.name.as_str().into())
        .collect()
}
