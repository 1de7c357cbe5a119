//! The pipelines (and models) that this gateway writes to.
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI32, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use seldon_kafka::Admin;
use seldon_proto::scheduler::Pipeline;
use seldon_records::Names;
use tokio_util::task::TaskTracker;

use crate::{replies::Replies, target::Target};

/// How long the broker's list of topics counts, when it is asked for models nobody has asked for yet.
const TOPICS_FOR: Duration = Duration::from_secs(2);

/// Where requests to one target go, and where its answers come from.
pub(crate) struct Route {
    pub(crate) target: Target,
    pub(crate) name: Arc<str>,
    pub(crate) inputs: Arc<str>,
    /// Where the answer is awaited; the first is the outputs topic.
    pub(crate) answers: Arc<[Arc<str>]>,
    /// Requests go to partitions below this: those of the inputs whose answers are read for sure.
    partitions: AtomicI32,
    next: AtomicU32,
    /// Those in flight.
    pub(crate) flights: TaskTracker,
    versions: RwLock<Vec<Arc<Pipeline>>>,
}

impl Route {
    fn new(target: Target, inputs: String, answers: &[Arc<str>], partitions: i32) -> Self {
        Self {
            name: target.name().into(),
            target,
            inputs: inputs.into(),
            answers: answers.into(),
            partitions: AtomicI32::new(partitions),
            next: AtomicU32::new(0),
            flights: TaskTracker::new(),
            versions: RwLock::default(),
        }
    }

    /// The partition of the next request: each in turn.
    pub(crate) fn partition(&self) -> i32 {
        let partitions = self.partitions.load(Ordering::Relaxed).max(1);
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        i32::try_from(next % partitions.unsigned_abs()).unwrap_or(0)
    }

    /// All versions that are served, the newest last.
    pub(crate) fn versions(&self) -> Vec<Arc<Pipeline>> {
        read(&self.versions).clone()
    }

    /// It takes the place of those before: our scheduler takes only the newest back.
    fn put(&self, version: Arc<Pipeline>) {
        *write(&self.versions) = vec![version];
    }

    /// That version leaves, and what there still is of those before: they are not ordered to leave one by one. Says whether
    /// none is left.
    fn remove(&self, version: u32) -> bool {
        let mut versions = write(&self.versions);
        versions.retain(|known| known.version > version);
        versions.is_empty()
    }
}

/// All of them.
pub(crate) struct Routes {
    names: Names,
    admin: Arc<Admin>,
    replies: Arc<Replies>,
    routes: RwLock<HashMap<Target, Arc<Route>>>,
    /// The broker's topics and when they were asked for; held while a route to a model is made.
    topics: tokio::sync::Mutex<Option<(Instant, HashSet<String>)>>,
}

impl Routes {
    pub(crate) fn new(names: Names, admin: Arc<Admin>, replies: Arc<Replies>) -> Self {
        Self {
            names,
            admin,
            replies,
            routes: RwLock::default(),
            topics: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn get(&self, target: &Target) -> Option<Arc<Route>> {
        read(&self.routes).get(target).cloned()
    }

    /// Serves a version of a pipeline; returns when its topics exist and its answers are read.
    pub(crate) async fn add(&self, version: Arc<Pipeline>) -> anyhow::Result<()> {
        let target = Target::Pipeline(version.name.clone());
        if let Some(route) = self.get(&target) {
            route.put(version);
            return Ok(());
        }
        let inputs = self.names.pipeline_inputs(&version.name);
        let outputs = self.names.pipeline_outputs(&version.name);
        let topics = [inputs.clone(), outputs.clone()];
        self.admin.create(&topics, false).await?;
        let route = self.read(target, inputs, &[outputs]).await?;
        route.put(version);
        write(&self.routes).insert(route.target.clone(), route);
        Ok(())
    }

    /// Serves a version of a pipeline, and those before it, no more. After the last, returns when its requests have ended,
    /// `limit` at most.
    pub(crate) async fn remove(&self, pipeline: &str, version: Option<u32>, limit: Duration) {
        let target = Target::Pipeline(pipeline.to_owned());
        let Some(route) = self.get(&target) else {
            return;
        };
        if version.is_some_and(|version| !route.remove(version)) {
            return;
        }
        write(&self.routes).remove(&target);
        route.flights.close();
        if tokio::time::timeout(limit, route.flights.wait())
            .await
            .is_err()
        {
            let left = route.flights.len();
            tracing::warn!(pipeline, left, "a pipeline leaves with requests in flight");
        }
        for topic in route.answers.iter() {
            self.replies.leave(topic).await;
        }
    }

    /// The route to a model, whose topics must exist.
    pub(crate) async fn model(&self, model: &str) -> anyhow::Result<Option<Arc<Route>>> {
        let target = Target::Model(model.to_owned());
        if let Some(route) = self.get(&target) {
            return Ok(Some(route));
        }
        let mut topics = self.topics.lock().await;
        if let Some(route) = self.get(&target) {
            return Ok(Some(route));
        }
        let inputs = self.names.model_inputs(model);
        let outputs = self.names.model_outputs(model);
        if topics
            .as_ref()
            .is_none_or(|(asked, _)| asked.elapsed() > TOPICS_FOR)
        {
            let all = self.admin.topics().await?.into_iter().collect();
            *topics = Some((Instant::now(), all));
        }
        let exist = topics
            .as_ref()
            .is_some_and(|(_, all)| all.contains(&inputs) && all.contains(&outputs));
        if !exist {
            return Ok(None);
        }
        let errors = self.names.errors();
        self.admin
            .create(std::slice::from_ref(&errors), false)
            .await?;
        let route = self.read(target, inputs, &[outputs, errors]).await?;
        write(&self.routes).insert(route.target.clone(), route.clone());
        Ok(Some(route))
    }

    /// Begins to read a route's answers.
    async fn read(
        &self,
        target: Target,
        inputs: String,
        answers: &[String],
    ) -> anyhow::Result<Arc<Route>> {
        let answers: Vec<Arc<str>> = answers.iter().map(|topic| topic.as_str().into()).collect();
        let into = self.admin.partitions(&inputs).await?;
        let into = into.ok_or_else(|| anyhow::anyhow!("topic {inputs} does not exist"))?;
        let mut from = i32::MAX;
        let mut done = Vec::new();
        for topic in &answers {
            match self.replies.read(topic).await {
                Ok(partitions) => from = if done.is_empty() { partitions } else { from },
                Err(error) => {
                    for topic in &done {
                        self.replies.leave(topic).await;
                    }
                    return Err(error);
                }
            }
            done.push(topic.clone());
        }
        Ok(Arc::new(Route::new(
            target,
            inputs,
            &answers,
            into.min(from),
        )))
    }

    /// Follows the numbers of partitions, and forgets models whose topics are gone.
    pub(crate) async fn refresh(&self) -> anyhow::Result<()> {
        let routes: Vec<Arc<Route>> = read(&self.routes).values().cloned().collect();
        if routes.is_empty() {
            return Ok(());
        }
        let topics = |route: &Arc<Route>| {
            let answers = route.answers.iter().map(|topic| topic.to_string());
            answers
                .chain([route.inputs.to_string()])
                .collect::<Vec<_>>()
        };
        let all: HashSet<String> = routes.iter().flat_map(topics).collect();
        let all: Vec<String> = all.into_iter().collect();
        let found = self.admin.all_partitions(&all).await?;
        for route in routes {
            self.follow(&route, &found).await?;
        }
        Ok(())
    }

    async fn follow(&self, route: &Route, found: &HashMap<String, i32>) -> anyhow::Result<()> {
        let Some(into) = found.get(&*route.inputs) else {
            let model = matches!(route.target, Target::Model(_));
            if model && write(&self.routes).remove(&route.target).is_some() {
                for topic in route.answers.iter() {
                    self.replies.leave(topic).await;
                }
            }
            return Ok(());
        };
        let mut from = i32::MAX;
        for (at, topic) in route.answers.iter().enumerate() {
            let count = found.get(&**topic).copied().unwrap_or(0);
            let read = self.replies.grow(topic, count).await?;
            from = if at == 0 { read } else { from };
        }
        route.partitions.store((*into).min(from), Ordering::Relaxed);
        Ok(())
    }
}

// Nothing is half done while one of these locks is held.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
