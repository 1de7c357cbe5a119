//! What "written" means: handed to the system, or on the disk too.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How often the disk was waited for is counted, for tests.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    sync: bool,
    waited: AtomicU64,
}

impl Disk {
    pub(crate) fn new(sync: bool) -> Self {
        Self {
            sync,
            ..Self::default()
        }
    }

    /// Returns once a file's contents are on the disk, if that is asked for.
    pub(crate) fn file(&self, file: &File) -> io::Result<()> {
        if self.sync {
            file.sync_data()?;
            self.waited.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The same of the names in a folder.
    pub(crate) fn folder(&self, folder: &Path) -> io::Result<()> {
        if self.sync {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }
}
