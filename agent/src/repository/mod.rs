//! The folder an inference server reads its models from, one layout for each kind of server.
mod files;
mod folders;
mod mlserver;
mod pbtxt;
mod settings;
mod triton;

use std::path::{Path, PathBuf};

use seldon_proto::scheduler::{ModelRuntimeInfo, ModelSpec};

pub use files::{RECORD, remove_folder};
pub use folders::Folders;
pub use mlserver::{Mlserver, artefact_root};
pub use settings::{InferUri, SETTINGS};
pub use triton::{Triton, renamed};

/// The folder of the models, within the agent's.
pub(crate) const MODELS: &str = "models";

/// Puts artefacts where an inference server finds them. All calls block on the disk.
pub trait Repository: Send + Sync + 'static {
    /// Installs the artefact in `folder` under the name `internal`, replacing what was there. `record` is kept beside
    /// it so that a restarted agent knows the model again.
    fn install(
        &self,
        folder: &Path,
        spec: &ModelSpec,
        internal: &str,
        record: &[u8],
    ) -> Result<(), RepositoryError>;

    /// What the scheduler needs to know to count an installed model's memory; the default for one that is not here.
    fn runtime_info(&self, internal: &str) -> ModelRuntimeInfo;

    /// Where the models are.
    fn folders(&self) -> &Folders;

    /// Removes a model's folder; nothing there is fine.
    fn remove(&self, internal: &str) -> Result<(), RepositoryError> {
        self.folders().remove(internal)
    }

    /// Makes a restarted agent forget this model, while its files stay.
    fn forget(&self, internal: &str) -> Result<(), RepositoryError> {
        self.folders().forget(internal)
    }

    /// Internal names and records of the models a former agent left.
    fn records(&self) -> Result<Vec<(String, Vec<u8>)>, RepositoryError> {
        self.folders().records()
    }
}

/// Why an artefact cannot be installed. Texts name the folder inside the artefact and what is missing.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("the artefact is empty")]
    Empty,
    #[error("no version {version} in the artefact: no folder of that name holds a {SETTINGS}")]
    NoVersion { version: u32 },
    #[error("several folders are called {version} and hold a {SETTINGS}: {found}")]
    SeveralVersions { version: u32, found: String },
    #[error(
        "no version folder (1, 2, …) in the artefact, and no model of Triton's own file names (model.onnx, …) either"
    )]
    NoVersionFolder,
    #[error("no version {version} in the artefact: no folder of that name")]
    NoSuchVersionFolder { version: u32 },
    #[error("several folders are called {version}: {found}")]
    SeveralVersionFolders { version: u32, found: String },
    #[error("{file} cannot be used: {reason}")]
    Settings { file: String, reason: String },
    #[error("no {patterns} in {folder}, and no {SETTINGS} either")]
    NoModelFile {
        patterns: &'static str,
        folder: String,
    },
    #[error("no class that extends MLModel in any *.py of {folder}, and no {SETTINGS} either")]
    NoModelClass { folder: String },
    #[error(
        "no {SETTINGS} in {folder}, and it is made for none of the requirements {requirements}: add one that names the \
         implementation, or a requirement of {known}"
    )]
    NoSettings {
        folder: String,
        requirements: String,
        known: &'static str,
    },
    #[error("{path}: {reason}")]
    Disk { path: PathBuf, reason: String },
}

impl RepositoryError {
    fn disk(path: &Path, error: &std::io::Error) -> Self {
        Self::Disk {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }
}
