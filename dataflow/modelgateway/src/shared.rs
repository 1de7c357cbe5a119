//! What all parts of the process share.
use std::sync::{Mutex, PoisonError};

use seldon_kafka::{Admin, Producer, Settings};
use seldon_records::Names;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Options, ask::Asker, metrics::Metrics, model::Target, options::Guarantee, recent::Recent,
};

pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) settings: Settings,
    pub(crate) names: Names,
    pub(crate) admin: Admin,
    pub(crate) producer: Producer,
    pub(crate) asker: Asker,
    pub(crate) metrics: Metrics,
    pub(crate) errors: Target,
    pub(crate) recent: Mutex<Recent>,
    /// Something is odd about a topic: it is to be looked at.
    pub(crate) look: Notify,
    /// Ends the reading.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    failed: Mutex<Option<String>>,
}

impl Shared {
    #[expect(clippy::too_many_arguments, reason = "made in one place")]
    pub(crate) fn new(
        options: Options,
        settings: Settings,
        names: Names,
        admin: Admin,
        producer: Producer,
        asker: Asker,
        metrics: Metrics,
        errors: Target,
    ) -> Self {
        Self {
            options,
            settings,
            names,
            admin,
            producer,
            asker,
            metrics,
            errors,
            recent: Mutex::default(),
            look: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            failed: Mutex::default(),
        }
    }

    pub(crate) fn exactly_once(&self) -> bool {
        self.options.processing_guarantee == Guarantee::ExactlyOnce
    }

    /// The process cannot go on: it ends, and is to be started again.
    pub(crate) fn fail(&self, reason: String) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        tracing::error!("{reason}");
        failed.get_or_insert(reason);
        self.stop.cancel();
    }

    pub(crate) fn failure(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone()
    }
}
