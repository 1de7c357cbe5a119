//! Folders of downloads: their size, copies of them, and which of their files may still be true.
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Storages tell times in seconds: what changed so shortly before it was fetched may have changed once more since.
const RACY: Duration = Duration::from_secs(2);

/// Bytes a folder takes on the disk; nothing there takes none.
pub fn size(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let walked = walk(folder, |_, file| {
        bytes += (file.blocks() * 512).max(file.len());
        Ok(())
    });
    match walked {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        walked => walked.map(|()| bytes),
    }
}

/// Bytes that are free on a folder's disk.
pub fn free(folder: &Path) -> u64 {
    nix::sys::statvfs::statvfs(folder).map_or(u64::MAX, |disk| {
        disk.blocks_available().saturating_mul(disk.fragment_size())
    })
}

/// Makes `to` a copy that shares nothing with `from`; where the file system can, it takes no room until it is changed.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    walk(from, |path, metadata| {
        let target = path.strip_prefix(from).map(|inside| to.join(inside));
        let target = target.map_err(io::Error::other)?;
        if metadata.is_dir() {
            fs::create_dir_all(target)
        } else {
            fs::copy(path, target).map(drop)
        }
    })
}

/// Removes files that a comparison of size and time could take for equal although the storage has others.
pub fn drop_untrusted(folder: &Path) -> io::Result<()> {
    let walked = walk(folder, |path, file| {
        // Written, or found equal, at that time.
        let seconds = u64::try_from(file.ctime()).unwrap_or_default();
        let fetched = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        if !file.is_dir() && !is_trusted(file.modified()?, fetched) {
            fs::remove_file(path)?;
        }
        Ok(())
    });
    match walked {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        walked => walked,
    }
}

/// rclone gives the start of 1970 to what has no time.
fn is_trusted(modified: SystemTime, fetched: SystemTime) -> bool {
    modified > SystemTime::UNIX_EPOCH + RACY && modified + RACY < fetched
}

/// Visits the files and folders below a folder, a folder before what it holds. Links are not followed.
fn walk(
    folder: &Path,
    mut visit: impl FnMut(&Path, &Metadata) -> io::Result<()>,
) -> io::Result<()> {
    let mut waiting: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_symlink() {
                continue;
            }
            visit(&path, &metadata)?;
            if metadata.is_dir() {
                waiting.push(path);
            }
        }
    }
    Ok(())
}

/// Says whether there is no more room.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_shares_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("a"), root.path().join("b"));
        fs::create_dir_all(from.join("1/empty")).unwrap();
        fs::write(from.join("1/file"), vec![1; 5000]).unwrap();
        std::os::unix::fs::symlink("/etc", from.join("link")).unwrap();
        copy(&from, &to).unwrap();
        fs::write(to.join("1/file"), "changed").unwrap();
        assert_eq!(fs::read(from.join("1/file")).unwrap().len(), 5000);
        assert!(to.join("1/empty").is_dir() && !to.join("link").exists());
        assert!(size(&from).unwrap() >= 5000);
        assert_eq!(size(&root.path().join("none")).unwrap(), 0);
        assert!(free(root.path()) > 0);
    }

    #[test]
    fn files_without_a_time_or_with_a_fresh_one_are_not_trusted() {
        let root = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let times = [
            ("old", now - Duration::from_secs(60)),
            ("fresh", now),
            ("timeless", SystemTime::UNIX_EPOCH),
            ("ahead", now + Duration::from_secs(60)),
        ];
        for (name, time) in times {
            let file = fs::File::create(root.path().join(name)).unwrap();
            file.set_modified(time).unwrap();
        }
        drop_untrusted(root.path()).unwrap();
        let left: Vec<_> = fs::read_dir(root.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "old");
        drop_untrusted(&root.path().join("none")).unwrap();
    }
}
