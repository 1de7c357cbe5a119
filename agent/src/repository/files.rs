//! Walking, linking and replacing folders.
use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::RepositoryError;

/// Holds the model as the scheduler sent it, for a restarted agent.
pub const RECORD: &str = "agent-model.pb";
/// Beside it in the folder of a model at rest.
pub const RESTS: &str = "agent-rests";

/// Folders deeper than this are not searched and not installed.
const MAX_DEPTH: usize = 32;

/// Every folder below `root` (itself first), parents before children, by name.
pub fn folders(root: &Path) -> Result<Vec<PathBuf>, RepositoryError> {
    let mut found = Vec::new();
    let mut waiting = VecDeque::from([(root.to_owned(), 0)]);
    while let Some((folder, depth)) = waiting.pop_front() {
        if depth < MAX_DEPTH {
            let mut inner: Vec<_> = entries(&folder)?
                .into_iter()
                .filter(|path| is_real(path, fs::Metadata::is_dir))
                .collect();
            inner.sort();
            waiting.extend(inner.into_iter().map(|path| (path, depth + 1)));
        }
        found.push(folder);
    }
    Ok(found)
}

/// Regular files directly in a folder, by name.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, RepositoryError> {
    let mut found: Vec<_> = entries(folder)?
        .into_iter()
        .filter(|path| is_real(path, fs::Metadata::is_file))
        .collect();
    found.sort();
    Ok(found)
}

pub fn entries(folder: &Path) -> Result<Vec<PathBuf>, RepositoryError> {
    let read = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    read().map_err(|error| RepositoryError::disk(folder, &error))
}

/// Symbolic links are never followed: an artefact must not reach outside itself.
pub fn is_real(path: &Path, kind: fn(&fs::Metadata) -> bool) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| kind(&metadata))
}

/// Makes `to` a copy of `from` by hard links, or by copying where the file system has none.
pub fn link_tree(from: &Path, to: &Path) -> Result<(), RepositoryError> {
    for folder in folders(from)? {
        let inside = folder
            .strip_prefix(from)
            .map(|path| to.join(path))
            .unwrap_or_else(|_| to.to_owned());
        fs::create_dir_all(&inside).map_err(|error| RepositoryError::disk(&inside, &error))?;
        for file in files(&folder)? {
            let Some(name) = file.file_name() else {
                continue;
            };
            link_file(&file, &inside.join(name))?;
        }
    }
    Ok(())
}

/// Makes `to` a hard link of `from`, or a copy where the file system has none.
pub fn link_file(from: &Path, to: &Path) -> Result<(), RepositoryError> {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).map_err(|error| RepositoryError::disk(to, &error))?;
    }
    Ok(())
}

/// The paths inside a folder, for a message.
pub fn inner_names(folder: &Path, found: &[PathBuf]) -> String {
    let names = found
        .iter()
        .filter_map(|path| path.strip_prefix(folder).ok());
    names
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Replaces a file as a whole: the old one may be a hard link that others share.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), RepositoryError> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        drop(file);
        fs::rename(&temporary, path)
    };
    write().map_err(|error| RepositoryError::disk(path, &error))
}

/// Removes a file; nothing there is fine.
pub fn remove_file(path: &Path) -> Result<(), RepositoryError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RepositoryError::disk(path, &error))
        }
        _ => Ok(()),
    }
}

/// Removes a folder with all it holds; nothing there is fine.
pub fn remove_folder(path: &Path) -> Result<(), RepositoryError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RepositoryError::disk(path, &error))
        }
        _ => Ok(()),
    }
}
