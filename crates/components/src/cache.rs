//! The per-user cache: one folder a component, complete or not there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Where components are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// Written last, so that a folder with it is complete; holds the pin it was installed by.
const COMPLETE: &str = ".complete";

impl Cache {
    /// Opens the cache at `$SELDON_CACHE`, else `$XDG_CACHE_HOME/seldon`, else `~/.cache/seldon`.
    pub fn open() -> Result<Self> {
        let variable = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let root = variable("SELDON_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("seldon")))
            .or_else(|| variable("HOME").map(|folder| folder.join(".cache/seldon")))
            .context("no place for the cache: set SELDON_CACHE to a folder")?;
        Self::at(root)
    }

    /// Opens the cache in a folder of the caller's.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot create the cache {}", root.display()))?;
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot open the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// Returns the folder that holds the cache.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the folder of a component, filled by `fill` unless a complete one with this pin is there.
    ///
    /// A lock makes others wait instead of fetching the same. What a crash left half done is removed. The folder is
    /// filled in place, not moved there, because a Python environment holds its own path.
    pub fn install(
        &self,
        name: &str,
        pin: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let folder = self.root.join(name);
        let marker = folder.join(COMPLETE);
        let complete = || fs::read_to_string(&marker).is_ok_and(|found| found == pin);
        if complete() {
            return Ok(folder);
        }
        let path = self.root.join(format!(".{name}.lock"));
        let lock =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        lock.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        if complete() {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove the incomplete {}", folder.display()))?;
        }
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let progress = Progress::start(name);
        let filled = fill(&folder)
            .with_context(|| format!("cannot install {name} into {}", self.root.display()))
            .and_then(|()| Ok(fs::write(&marker, pin)?));
        progress.finish(filled.is_ok());
        filled.map(|()| folder)
    }
}

/// Marks a file as executable.
pub(crate) fn executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the package does not hold {}", path.display()))
}

/// What the user sees meanwhile: a spinner on a terminal, else a line at the start and one at the end.
struct Progress {
    name: String,
    start: Instant,
    bar: ProgressBar,
}

impl Progress {
    fn start(name: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_message(format!("fetching {name}"));
        bar.enable_steady_tick(Duration::from_millis(120));
        if bar.is_hidden() {
            eprintln!("fetching {name}");
        }
        Self {
            name: name.to_owned(),
            start: Instant::now(),
            bar,
        }
    }

    fn finish(self, installed: bool) {
        self.bar.finish_and_clear();
        let word = if installed {
            "fetched"
        } else {
            "could not fetch"
        };
        eprintln!(
            "{word} {} in {:.1} s",
            self.name,
            self.start.elapsed().as_secs_f32()
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn fills_once_for_all_who_ask_at_once() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path()).unwrap();
        let fills = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let fill = |folder: &Path| {
                        fills.fetch_add(1, Ordering::SeqCst);
                        Ok(fs::write(folder.join("binary"), "x")?)
                    };
                    assert!(
                        cache
                            .install("part", "1", fill)
                            .unwrap()
                            .join("binary")
                            .exists()
                    );
                });
            }
        });
        assert_eq!(fills.into_inner(), 1);
    }

    #[test]
    fn what_failed_or_has_another_pin_is_filled_anew() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path()).unwrap();
        let broken = cache.install("part", "1", |folder| {
            fs::write(folder.join("half"), "")?;
            anyhow::bail!("no network")
        });
        assert!(format!("{:#}", broken.unwrap_err()).contains("no network"));
        let folder = cache.install("part", "1", |_| Ok(())).unwrap();
        assert!(!folder.join("half").exists());
        cache.install("part", "1", |_| panic!("complete")).unwrap();
        let mut filled = false;
        let again = |_: &Path| {
            filled = true;
            Ok(())
        };
        cache.install("part", "2", again).unwrap();
        assert!(filled);
    }
}
