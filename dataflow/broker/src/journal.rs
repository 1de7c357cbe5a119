//! The last value of each key, in a file: what has to outlive the process beside the records.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk::Disk;

/// Entries are appended; the file is written anew once it holds this much that is out of date.
const SLACK: usize = 8 << 20;

/// Without a folder it keeps nothing.
#[derive(Debug, Default)]
pub(crate) struct Journal(Option<Mutex<Open>>);

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    disk: Arc<Disk>,
    values: BTreeMap<String, Vec<u8>>,
    written: usize,
    live: usize,
}

impl Journal {
    /// Opens the journal in a folder. What a crash left half written at its end is cut.
    pub(crate) fn open(folder: &Path, disk: Arc<Disk>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join("journal");
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let mut values = BTreeMap::new();
        let mut rest = &bytes[..];
        while let Some((key, value)) = entry(&mut rest) {
            match value {
                Some(value) => values.insert(key, value),
                None => values.remove(&key),
            };
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut open = Open {
            path,
            file,
            disk,
            values,
            written: 0,
            live: 0,
        };
        open.rewrite()?;
        Ok(Self(Some(Mutex::new(open))))
    }

    pub(crate) fn put(&self, key: &str, value: &impl Serialize) -> io::Result<()> {
        let Some(mut open) = self.lock() else {
            return Ok(());
        };
        let value = serde_json::to_vec(value)?;
        open.append(key, Some(value))
    }

    pub(crate) fn remove(&self, key: &str) -> io::Result<()> {
        let Some(mut open) = self.lock() else {
            return Ok(());
        };
        if open.values.contains_key(key) {
            open.append(key, None)
        } else {
            Ok(())
        }
    }

    /// Removes every key that starts so.
    pub(crate) fn remove_all(&self, prefix: &str) -> io::Result<()> {
        let keys: Vec<String> = match self.lock() {
            Some(open) => open.keys(prefix).cloned().collect(),
            None => return Ok(()),
        };
        keys.iter().try_for_each(|key| self.remove(key))
    }

    /// Returns the keys that start so, without that start, and their values.
    pub(crate) fn all<T: DeserializeOwned>(&self, prefix: &str) -> io::Result<Vec<(String, T)>> {
        let Some(open) = self.lock() else {
            return Ok(Vec::new());
        };
        open.keys(prefix)
            .map(|key| {
                Ok((
                    key[prefix.len()..].to_owned(),
                    serde_json::from_slice(&open.values[key])?,
                ))
            })
            .collect()
    }

    fn lock(&self) -> Option<MutexGuard<'_, Open>> {
        self.0
            .as_ref()
            .map(|open| open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Open {
    fn keys(&self, prefix: &str) -> impl Iterator<Item = &String> {
        let prefix = prefix.to_owned();
        self.values
            .range(prefix.clone()..)
            .map(|(key, _)| key)
            .take_while(move |key| key.starts_with(&prefix))
    }

    fn append(&mut self, key: &str, value: Option<Vec<u8>>) -> io::Result<()> {
        let bytes = encoded(key, value.as_deref());
        self.file.write_all(&bytes)?;
        self.disk.file(&self.file)?;
        self.written += bytes.len();
        let size = |value: &Vec<u8>| 16 + key.len() + value.len();
        self.live += value.as_ref().map_or(0, size);
        let old = match value {
            Some(value) => self.values.insert(key.to_owned(), value),
            None => self.values.remove(key),
        };
        self.live -= old.as_ref().map_or(0, size).min(self.live);
        if self.written > self.live * 2 + SLACK {
            self.rewrite()
        } else {
            Ok(())
        }
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (key, value) in &self.values {
            bytes.extend(encoded(key, Some(value)));
        }
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        // Always: a power cut must not leave a new name without contents, which would be a broker without topics.
        file.sync_data()?;
        fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent() {
            self.disk.folder(folder)?;
        }
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        self.written = bytes.len();
        self.live = bytes.len();
        Ok(())
    }
}

/// Length of the rest, checksum of what follows, length of the key, key, and the value if there is one.
fn encoded(key: &str, value: Option<&[u8]>) -> Vec<u8> {
    let mut body = Vec::with_capacity(5 + key.len() + value.map_or(0, <[u8]>::len));
    body.extend((key.len() as u32).to_le_bytes());
    body.extend(key.as_bytes());
    if let Some(value) = value {
        body.push(1);
        body.extend(value);
    }
    let mut bytes = Vec::with_capacity(8 + body.len());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(crc32c::crc32c(&body).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn entry(rest: &mut &[u8]) -> Option<(String, Option<Vec<u8>>)> {
    let number =
        |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = number(rest, 0)? as usize;
    let sum = number(rest, 4)?;
    let body = rest.get(8..8 + length)?;
    if crc32c::crc32c(body) != sum {
        return None;
    }
    let key_end = 4 + number(body, 0)? as usize;
    let key = String::from_utf8(body.get(4..key_end)?.to_vec()).ok()?;
    let value = body.get(key_end + 1..).map(<[u8]>::to_vec);
    *rest = &rest[8 + length..];
    Some((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_value_of_each_key_and_cuts_a_torn_end() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), Arc::default()).unwrap();
        journal.put("a/1", &1).unwrap();
        journal.put("a/1", &2).unwrap();
        journal.put("a/2", &3).unwrap();
        journal.put("b/1", &4).unwrap();
        journal.remove("a/2").unwrap();
        drop(journal);
        let path = folder.path().join("journal");
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(&encoded("a/3", Some(b"5"))[..9]);
        fs::write(&path, bytes).unwrap();
        let journal = Journal::open(folder.path(), Arc::default()).unwrap();
        assert_eq!(journal.all::<i32>("a/").unwrap(), [("1".to_owned(), 2)]);
        journal.put("a/3", &6).unwrap();
        drop(journal);
        let journal = Journal::open(folder.path(), Arc::default()).unwrap();
        assert_eq!(journal.all::<i32>("a/").unwrap().len(), 2);
        journal.remove_all("a/").unwrap();
        assert!(journal.all::<i32>("a/").unwrap().is_empty());
        assert_eq!(journal.all::<i32>("b/").unwrap().len(), 1);
    }
}
