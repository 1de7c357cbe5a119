//! What becomes of a store that cannot be read: it is left as it is, and a copy is kept that no later attempt changes.
use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

use super::StoreError;

/// Bytes of a file that are in memory at a time.
const PIECE: usize = 1 << 20;
/// Copies of damaged files that are kept; whoever mends it takes them away.
const COPIES: usize = 3;

/// Runs what reads a store. A damaged file may make the database panic; that is an error like others.
pub(super) fn guarded<T>(
    file: &Path,
    read: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Err(StoreError::Damaged { cause, .. })) => Err(damaged(file, cause)),
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(damaged(file, text.unwrap_or("the database gave up").into()))
        }
    }
}

fn damaged(file: &Path, cause: String) -> StoreError {
    let copy = match copy_of(file) {
        Ok(copy) => format!("a copy is kept as {}", copy.display()),
        Err(error) => format!("no copy could be made: {error}"),
    };
    StoreError::Damaged {
        path: file.display().to_string(),
        cause,
        copy,
    }
}

/// Copies a file beside itself. The name is of the content, and there are `COPIES` at most: a process that is started again
/// and again does not fill the disk.
fn copy_of(file: &Path) -> io::Result<PathBuf> {
    let mut start = file.as_os_str().to_owned();
    start.push(".damaged-");
    let mut name = start.clone();
    name.push(format!("{:016x}", fingerprint(file)?));
    let copy = PathBuf::from(name);
    if copy.exists() {
        return Ok(copy);
    }
    let mut copies = Vec::new();
    for entry in fs::read_dir(file.parent().unwrap_or(Path::new(".")))? {
        let path = entry?.path();
        let is_copy = path
            .as_os_str()
            .as_encoded_bytes()
            .starts_with(start.as_encoded_bytes());
        copies.extend(is_copy.then_some(path));
    }
    copies.sort();
    if copies.len() >= COPIES
        && let Some(known) = copies.into_iter().next()
    {
        return Ok(known);
    }
    keep(file, &copy)?;
    Ok(copy)
}

/// Copies a file so that a copy is whole or not there; the copy has the file's permissions.
pub(super) fn keep(file: &Path, copy: &Path) -> io::Result<()> {
    let mut part = copy.as_os_str().to_owned();
    part.push(".part");
    fs::copy(file, &part)?;
    fs::File::open(&part)?.sync_all()?;
    fs::rename(&part, copy)
}

fn fingerprint(file: &Path) -> io::Result<u64> {
    let mut source = fs::File::open(file)?;
    let (mut hash, mut piece) = (Xxh3::new(), vec![0; PIECE]);
    loop {
        match io::Read::read(&mut source, &mut piece)? {
            0 => return Ok(hash.digest()),
            read => hash.update(&piece[..read]),
        }
    }
}
