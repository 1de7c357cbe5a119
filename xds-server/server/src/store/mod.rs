//! Desired state that survives the process.
mod commit;
mod disk;
mod record;
mod rescue;
mod seal;

use std::sync::Arc;

use seldon_core::Record;

pub use commit::{Committer, Dispatch, Key, Outcome};
pub use disk::Disk;

/// One change of the desired state.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Put(Record),
    ForgetModel(Arc<str>),
    ForgetServer(Arc<str>),
    ForgetExperiment(Arc<str>),
    ForgetPipeline(Arc<str>),
}

/// Why desired state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the store {path}: {cause}; is another scheduler using it?")]
    Open { path: String, cause: String },
    #[error(
        "the store {path} is of format {found}, this scheduler reads {known}: it is left as it is; use the newer scheduler or another --db-path"
    )]
    Format {
        path: String,
        found: u64,
        known: u64,
    },
    #[error(
        "the store {path} is damaged: {cause}; {copy}. Put a backup in its place, or take the file away: models that agents hold come back from them, the rest has to be loaded again"
    )]
    Damaged {
        path: String,
        cause: String,
        copy: String,
    },
    #[error("the store failed: {0}")]
    Failed(String),
}

/// Where desired state is kept.
pub trait Store: Send + 'static {
    /// All that was committed; `None` where nothing is kept.
    fn restore(&self) -> Result<Option<Vec<Record>>, StoreError>;
    /// Makes all of it durable, or nothing.
    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError>;
}

/// Keeps nothing: a restart begins with what agents and operators tell.
#[derive(Debug, Default)]
pub struct Forgetful;

impl Store for Forgetful {
    fn restore(&self) -> Result<Option<Vec<Record>>, StoreError> {
        Ok(None)
    }
    fn commit(&mut self, _: &[Write]) -> Result<(), StoreError> {
        Ok(())
    }
}
