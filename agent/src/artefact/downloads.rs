//! Copies of artefacts, kept for a while.
//!
//! Each source has a folder. Whoever asks for it makes rclone bring the folder up to date, which transfers what
//! changed and what is missing, and takes a copy of its own: so an artefact is downloaded once however many models
//! name it, what has arrived before a break is not fetched again, and no two models share a file. A kept folder is
//! never used unasked: without the storage there is no artefact.
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use backon::Retryable;
use serde_json::Value;
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};

use super::disk;
use super::fetch::{FetchError, Settings, Source};
use super::keep::{Held, Load, victims};
use super::names::Names;
use super::rclone::{Rclone, RcloneError};
use crate::permits::Permits;
use crate::repository::remove_folder;

/// Inside a source's folder: the files, and a note that tells people what they are, written at each use.
const FILES: &str = "files";
const NOTE: &str = "source";
/// Folders of models' own, and folders on their way out.
const COPY: &str = "copy-";
const GONE: &str = "gone-";
/// Downloads that take long count in a bound of their own, this many times the other.
const LONG: usize = 4;
/// How often rclone is told to stop before the connection is simply cut.
const STOPS: usize = 20;

/// A folder of a model's own with its artefact; removed at the end.
#[derive(Debug)]
pub struct Fetched {
    pub folder: PathBuf,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        let folder = std::mem::take(&mut self.folder);
        let remove = move || drop(remove_folder(&folder));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// A source's folder.
struct Slot {
    key: String,
    folder: PathBuf,
    /// Held by the one who changes the files or reads them.
    work: Arc<tokio::sync::Mutex<Work>>,
    /// How many wait for it or use it.
    wanted: watch::Sender<usize>,
    held: Mutex<Held>,
}

/// How the last download ended, for those who asked before it did.
#[derive(Default)]
struct Work {
    last: Option<(Instant, Result<(), FetchError>)>,
}

impl Slot {
    fn new(root: &Path, key: String, bytes: u64, used: SystemTime) -> Arc<Self> {
        // Whether what a former agent left is whole shows at its next use.
        let whole = false;
        Arc::new(Self {
            folder: root.join(&key),
            key,
            work: Arc::default(),
            wanted: watch::Sender::new(0),
            held: Mutex::new(Held { bytes, used, whole }),
        })
    }

    fn files(&self) -> PathBuf {
        self.folder.join(FILES)
    }

    /// Resolves when nobody waits any more.
    async fn unwanted(&self) {
        let mut wanted = self.wanted.subscribe();
        // The slot holds the sender.
        let _ = wanted.wait_for(|count| *count == 0).await;
    }

    fn held(&self) -> Held {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who wants a slot's files.
struct Wanted(Arc<Slot>);

impl Wanted {
    fn is_only_one(&self) -> bool {
        *self.0.wanted.borrow() == 1
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.wanted.send_modify(|count| *count -= 1);
    }
}

/// The folder of downloads; cheap to clone.
#[derive(Clone)]
pub struct Downloads(Arc<Inner>);

struct Inner {
    rclone: Rclone,
    settings: Settings,
    names: Names,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    permits: Permits,
    all: Semaphore,
    number: AtomicU64,
}

impl Downloads {
    /// Takes over what a former agent left; what it had not finished goes on when it is asked for.
    pub fn open(rclone: Rclone, settings: Settings) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&settings.folder)?;
        let names = Names::open(&settings.folder)?;
        let mut slots = HashMap::new();
        for entry in std::fs::read_dir(&settings.folder)? {
            let entry = entry?;
            let note = std::fs::metadata(entry.path().join(NOTE)).and_then(|note| note.modified());
            let key = entry.file_name().to_string_lossy().into_owned();
            match note {
                Ok(used) if Names::is_one(&key) => {
                    let bytes = disk::size(&entry.path().join(FILES))?;
                    let slot = Slot::new(&settings.folder, key.clone(), bytes, used);
                    slots.insert(key, slot);
                }
                _ if entry.file_type()?.is_dir() => remove_folder(&entry.path())?,
                _ => {}
            }
        }
        let inner = Arc::new(Inner {
            rclone,
            names,
            slots: Mutex::new(slots),
            permits: Permits::new(settings.concurrent),
            all: Semaphore::new(settings.concurrent.max(1).saturating_mul(LONG)),
            number: AtomicU64::new(0),
            settings,
        });
        tokio::spawn(tidy(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// Brings an artefact into a folder of the caller's own. Dropping this stops the download, unless others wait too.
    pub async fn fetch(&self, source: Source) -> Result<Fetched, FetchError> {
        let asked = Instant::now();
        let wanted = self.0.want(&source);
        if !wanted.is_only_one() {
            let artefact = source.shown();
            tracing::debug!(
                artefact,
                "another model fetches it: waiting for that download"
            );
        }
        let mut work = wanted.0.work.clone().lock_owned().await;
        let is_current = |(ended, _): &(Instant, _)| *ended >= asked;
        if !work.last.as_ref().is_some_and(is_current) {
            // On its own, so that it outlives this caller until rclone has let go of the folder.
            let (inner, slot) = (self.0.clone(), wanted.0.clone());
            let task = tokio::spawn(async move {
                let result = inner.bring(&slot, &source).await;
                let count = !matches!(result, Err(FetchError::Unwanted));
                work.last = count.then(|| (Instant::now(), result));
                work
            });
            work = task.await.map_err(|_| FetchError::Unwanted)?;
        }
        let last = work.last.as_ref().map(|(_, result)| result.clone());
        last.unwrap_or(Err(FetchError::Unwanted))?;
        let inner = self.0.clone();
        tokio::task::spawn_blocking(move || inner.hand_out(&wanted, work))
            .await
            .unwrap_or(Err(FetchError::Unwanted))
    }
}

impl Inner {
    fn want(&self, source: &Source) -> Wanted {
        let key = self.names.of(&source.identity());
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Slot::new(&self.settings.folder, key.clone(), 0, SystemTime::now());
        let slot = slots.entry(key.clone()).or_insert_with(make).clone();
        // Under the lock: nobody throws it away now.
        slot.wanted.send_modify(|count| *count += 1);
        Wanted(slot)
    }

    async fn bring(self: &Arc<Self>, slot: &Arc<Slot>, source: &Source) -> Result<(), FetchError> {
        let uri = source.shown();
        let note = || {
            std::fs::create_dir_all(&slot.folder)?;
            std::fs::write(slot.folder.join(NOTE), &uri)
        };
        note().map_err(|error| self.disk_error(&slot.folder, &uri, &error))?;
        // The semaphore is never closed.
        let _turn = self.all.acquire().await;
        let mut result = self.permits.run(self.download(slot, source)).await;
        if matches!(result, Err(RcloneError::DiskFull)) && self.free_all().await {
            result = self.permits.run(self.download(slot, source)).await;
        }
        let files = slot.files();
        let bytes = tokio::task::spawn_blocking(move || disk::size(&files)).await;
        let bytes = bytes.ok().and_then(Result::ok).unwrap_or_default();
        self.note(slot, bytes, result.is_ok());
        match result {
            Ok(()) => self.not_empty(slot, source).await,
            Err(error) => {
                if error.is_final() {
                    // Not these files any more, or not for this one.
                    self.clear(slot, &uri).await?;
                }
                Err(self.explain(error, source).await)
            }
        }
    }

    /// Brings the folder up to date, again and again while trying may help.
    async fn download(&self, slot: &Arc<Slot>, source: &Source) -> Result<(), RcloneError> {
        let from = source.fs();
        let deadline = Instant::now() + self.settings.limit;
        let checked = AtomicBool::new(false);
        let attempt = || async {
            if !checked.load(Ordering::Relaxed) {
                self.distrust(slot, &from).await?;
                checked.store(true, Ordering::Relaxed);
            }
            self.transfer(slot, &from, deadline).await
        };
        // From the first failure on: what it took until then may have been a long download.
        let failing = OnceLock::new();
        let try_again = |error: &RcloneError| {
            let since: &Instant = failing.get_or_init(Instant::now);
            error.is_transient() && since.elapsed() < self.settings.retry_for
        };
        let back_off = self.settings.back_off();
        attempt.retry(back_off).when(try_again).await
    }

    /// Removes kept files that rclone could take for equal by mistake.
    async fn distrust(&self, slot: &Arc<Slot>, from: &Value) -> Result<(), RcloneError> {
        let files = slot.files();
        if !files.exists() {
            return Ok(());
        }
        let has_times = self.rclone.info(from.clone()).await?.has_times;
        let removed = tokio::task::spawn_blocking(move || {
            if has_times {
                disk::drop_untrusted(&files)
            } else {
                std::fs::remove_dir_all(&files)
            }
        });
        let call = "removal of kept files";
        let failed = RcloneError::Failed { call, status: 0 };
        removed
            .await
            .map_or(Err(failed.clone()), |done| done.map_err(|_| failed))
    }

    /// One call of rclone. It has ended when this returns, so that no two work on a folder.
    async fn transfer(
        &self,
        slot: &Slot,
        from: &Value,
        deadline: Instant,
    ) -> Result<(), RcloneError> {
        let files = slot.files();
        // Another one each time: rclone deletes nothing in a group that ever failed.
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let group = format!("artefact-{}-{number}", slot.key);
        let mut call = pin!(self.rclone.sync(from.clone(), &files, &group));
        let reason = tokio::select! {
            biased;
            done = &mut call => return done,
            () = slot.unwanted() => RcloneError::Unwanted,
            () = tokio::time::sleep_until(deadline.into()) => {
                RcloneError::TooSlow { limit: self.settings.limit }
            }
        };
        for _ in 0..STOPS {
            // A call that is not known there yet is stopped in the next round.
            let _ = self.rclone.stop(&group).await;
            let ended = tokio::time::timeout(Duration::from_millis(500), &mut call).await;
            if ended.is_ok() {
                break;
            }
        }
        Err(reason)
    }

    /// Buckets have no folders: a path that nothing lies under is copied "successfully".
    async fn not_empty(&self, slot: &Slot, source: &Source) -> Result<(), FetchError> {
        let entry = match tokio::fs::read_dir(slot.files()).await {
            Ok(mut entries) => entries.next_entry().await.ok().flatten(),
            Err(_) => None,
        };
        match entry {
            Some(_) => Ok(()),
            None => Err(self.explain(RcloneError::Empty, source).await),
        }
    }

    /// Says what is wrong, asking rclone once more where it was not clear.
    async fn explain(&self, error: RcloneError, source: &Source) -> FetchError {
        let uri = source.shown();
        let absent = matches!(error, RcloneError::NotFound | RcloneError::Empty);
        let looked = if absent {
            Some(self.rclone.info(source.fs_of_file()).await)
        } else {
            None
        };
        match (error, looked) {
            (_, Some(Err(error @ RcloneError::NotAFolder))) => FetchError::Rclone { uri, error },
            (RcloneError::NotFound, Some(Ok(info))) if info.has_buckets => {
                FetchError::NoBucket(uri)
            }
            (RcloneError::NotFound | RcloneError::Empty, _) => FetchError::Nothing(uri),
            (RcloneError::DiskFull, _) => self.full(uri),
            (RcloneError::Unwanted, _) => FetchError::Unwanted,
            (RcloneError::TooSlow { limit }, _) => FetchError::TooSlow { uri, limit },
            (error, _) => FetchError::Rclone { uri, error },
        }
    }

    /// Makes a copy for one model, or gives away the folder itself where it is not to be kept.
    fn hand_out(
        &self,
        wanted: &Wanted,
        mut work: OwnedMutexGuard<Work>,
    ) -> Result<Fetched, FetchError> {
        let (slot, bytes) = (&wanted.0, wanted.0.held().bytes);
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let own = Fetched {
            folder: self.settings.folder.join(format!("{COPY}{number}")),
        };
        let uri = std::fs::read_to_string(slot.folder.join(NOTE)).unwrap_or_default();
        let failed = |error: std::io::Error| self.disk_error(&slot.folder, &uri, &error);
        let double = bytes.saturating_mul(2);
        self.trim(double);
        let keep = bytes <= self.settings.keep.bytes && disk::free(&self.settings.folder) >= double;
        if keep || !wanted.is_only_one() {
            match disk::copy(&slot.files(), &own.folder) {
                Err(error) if disk::is_full(&error) && wanted.is_only_one() => {
                    remove_folder(&own.folder).ok();
                }
                copied => return copied.map(|()| own).map_err(failed),
            }
        }
        std::fs::rename(slot.files(), &own.folder).map_err(failed)?;
        work.last = None;
        self.note(slot, 0, false);
        Ok(own)
    }

    fn note(&self, slot: &Slot, bytes: u64, whole: bool) {
        let used = SystemTime::now();
        *slot.held.lock().unwrap_or_else(PoisonError::into_inner) = Held { bytes, used, whole };
    }

    async fn clear(&self, slot: &Arc<Slot>, uri: &str) -> Result<(), FetchError> {
        let files = slot.files();
        let cleared = tokio::fs::remove_dir_all(&files).await;
        self.note(slot, 0, false);
        match cleared {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(self.disk_error(&files, uri, &error))
            }
            _ => Ok(()),
        }
    }

    fn disk_error(&self, path: &Path, uri: &str, error: &std::io::Error) -> FetchError {
        if disk::is_full(error) {
            return self.full(uri.to_owned());
        }
        FetchError::Disk {
            path: path.to_owned(),
            reason: error.to_string(),
        }
    }

    fn full(&self, uri: String) -> FetchError {
        FetchError::DiskFull {
            uri,
            folder: self.settings.folder.clone(),
            free: disk::free(&self.settings.folder),
        }
    }

    /// Throws away everything that nobody uses; says whether there was anything.
    async fn free_all(self: &Arc<Self>) -> bool {
        let inner = self.clone();
        let trimmed = tokio::task::spawn_blocking(move || inner.trim(u64::MAX));
        trimmed.await.unwrap_or(false)
    }

    /// Throws away what has grown old, and as much more as the bound or `room` bytes on the disk ask for.
    fn trim(&self, room: u64) -> bool {
        let folder = &self.settings.folder;
        let mut gone = Vec::new();
        {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let (idle, used): (Vec<_>, Vec<_>) =
                slots.values().partition(|slot| *slot.wanted.borrow() == 0);
            let idle: Vec<_> = idle
                .iter()
                .map(|slot| (slot.key.clone(), slot.held()))
                .collect();
            // What is too large to be kept takes no room from others.
            let used = used.iter().map(|slot| slot.held());
            let used = used.filter(|held| held.bytes <= self.settings.keep.bytes);
            let all = idle.iter().map(|(_, held)| *held).chain(used);
            let load = Load {
                count: slots.len(),
                bytes: all.filter(|held| held.whole).map(|held| held.bytes).sum(),
                missing: room.saturating_sub(disk::free(folder)),
            };
            for key in victims(idle, load, self.settings.keep, SystemTime::now()) {
                // A download that nobody wants any more may not have ended yet.
                let free = slots
                    .get(&key)
                    .is_some_and(|slot| slot.work.try_lock().is_ok());
                let Some(slot) = free.then(|| slots.remove(&key)).flatten() else {
                    continue;
                };
                let number = self.number.fetch_add(1, Ordering::Relaxed);
                let out = folder.join(format!("{GONE}{number}"));
                // Whoever asks for it next finds no folder.
                if std::fs::rename(&slot.folder, &out).is_ok() {
                    gone.push(out);
                }
            }
        }
        for folder in &gone {
            if let Err(error) = remove_folder(folder) {
                tracing::warn!(%error, "a download is left behind");
            }
        }
        !gone.is_empty()
    }
}

/// Throws away what has grown old.
async fn tidy(inner: std::sync::Weak<Inner>) {
    loop {
        let Some(pause) = inner.upgrade().map(|inner| inner.settings.keep.age / 4) else {
            return;
        };
        tokio::time::sleep(pause.clamp(Duration::from_secs(1), Duration::from_secs(60))).await;
        let Some(inner) = inner.upgrade() else { return };
        // A panic there must not end this.
        let _ = tokio::task::spawn_blocking(move || inner.trim(0)).await;
    }
}
