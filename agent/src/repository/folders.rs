//! The models' folders, as every layout has them: made aside, moved into place, with the agent's record inside.
use std::path::{Path, PathBuf};

use super::RepositoryError;
use super::files::{self, RECORD, RESTS};

/// The version folder inside each model's folder.
pub const VERSION: &str = "1";
/// Folders with this prefix are being made; inference servers skip names that begin with a dot.
const STAGING: &str = ".new-";

/// The folder that an inference server reads.
pub struct Folders {
    models: PathBuf,
}

impl Folders {
    /// Opens it and removes what a former agent left half made, or without a record in a folder that holds `mark`.
    pub fn open(models: PathBuf, mark: &str) -> Result<Self, RepositoryError> {
        std::fs::create_dir_all(&models).map_err(|error| RepositoryError::disk(&models, &error))?;
        for path in files::entries(&models)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(STAGING) || is_leftover(&path, &name, mark) {
                files::remove_folder(&path)?;
            }
        }
        Ok(Self { models })
    }

    /// Puts a folder that `fill` makes, with its record, in the place of the one that may be there.
    pub fn replace(
        &self,
        internal: &str,
        record: &[u8],
        fill: impl FnOnce(&Path) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let staging = self.models.join(format!("{STAGING}{internal}"));
        files::remove_folder(&staging)?;
        let filled =
            fill(&staging).and_then(|()| files::replace_file(&staging.join(RECORD), record));
        if filled.is_err() {
            let _ = files::remove_folder(&staging);
            return filled;
        }
        self.remove(internal)?;
        let target = self.of(internal);
        std::fs::rename(&staging, &target).map_err(|error| RepositoryError::disk(&target, &error))
    }

    /// A model's folder.
    pub fn of(&self, internal: &str) -> PathBuf {
        self.models.join(internal)
    }

    pub fn remove(&self, internal: &str) -> Result<(), RepositoryError> {
        files::remove_folder(&self.of(internal))
    }

    pub fn forget(&self, internal: &str) -> Result<(), RepositoryError> {
        files::remove_file(&self.of(internal).join(RECORD))
    }

    /// Keeps that a model rests, with its record as it is now, or that it does not. One without a record is about to go.
    pub fn mark(&self, internal: &str, rests: Option<&[u8]>) -> Result<(), RepositoryError> {
        let folder = self.of(internal);
        let (mark, written) = (folder.join(RESTS), folder.join(RECORD));
        match rests {
            None => files::remove_file(&mark),
            Some(record) if written.exists() => {
                files::replace_file(&written, record)?;
                files::replace_file(&mark, b"")
            }
            Some(_) => Ok(()),
        }
    }

    /// Says whether a model was at rest.
    pub fn rests(&self, internal: &str) -> bool {
        self.of(internal).join(RESTS).exists()
    }

    pub fn records(&self) -> Result<Vec<(String, Vec<u8>)>, RepositoryError> {
        let mut records = Vec::new();
        for folder in files::entries(&self.models)? {
            let name = folder
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            if let (Some(name), Ok(record)) = (name, std::fs::read(folder.join(RECORD))) {
                records.push((name, record));
            }
        }
        records.sort();
        Ok(records)
    }
}

/// A folder this agent made for a model that was unloaded since: `<name>_<version>` with its mark, without a record.
fn is_leftover(path: &Path, name: &str, mark: &str) -> bool {
    let version = name
        .rsplit_once('_')
        .map(|(_, version)| version.parse::<u32>());
    matches!(version, Some(Ok(_))) && path.join(mark).is_file() && !path.join(RECORD).exists()
}
