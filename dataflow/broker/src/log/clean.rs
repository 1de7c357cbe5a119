//! Cleaning of a compacted topic: only the newest record of each key stays.

use std::collections::{HashMap, VecDeque};
use std::io;

use bytes::Bytes;

use super::Log;
use crate::batch::{self, Header};

/// Less than this is not worth the work.
const LEAST: u64 = 64 << 10;
/// The memory that the keys of one cleaning may take; a partition with more of them is left as it is.
const KEYS: usize = 64 << 20;

impl Log {
    /// Cleans what is before the first open transaction, once there is as much new as there is old.
    ///
    /// Control batches, batches of aborted transactions and compressed ones stay whole.
    pub(crate) fn clean(&mut self) -> io::Result<()> {
        if self.dirty < LEAST || self.dirty * 2 < self.size() {
            return Ok(());
        }
        let end = self.ends().stable;
        let Some(newest) = self.newest_of_keys(end)? else {
            return Ok(());
        };
        let keep = |log: &Self, header: &Header, bytes: &[u8]| -> Option<Bytes> {
            let whole = || Some(Bytes::copy_from_slice(bytes));
            if !log.cleanable(header, end) {
                return whole();
            }
            let Some(mut records) = batch::records(header, bytes) else {
                return whole();
            };
            let all = records.len();
            records.retain(|record| {
                let newer = record.key.and_then(|key| newest.get(key));
                newer.is_none_or(|newer| *newer <= record.offset)
            });
            match records.len() {
                0 => None,
                left if left == all => whole(),
                _ => Some(batch::with_records(header, bytes, &records)),
            }
        };
        let mut files = self.files.take();
        let done = files.as_mut().map_or(Ok(()), |files| {
            files.roll(self.next)?;
            files.rewrite(|header, bytes| keep(self, header, bytes))
        });
        self.files = files;
        done?;
        let mut tail = VecDeque::with_capacity(self.tail.len());
        for mut entry in std::mem::take(&mut self.tail) {
            let header = Header::read(&entry.bytes);
            let kept = header.and_then(|header| keep(self, &header, &entry.bytes));
            self.memory.give_back(entry.bytes.len());
            if let Some(bytes) = kept {
                self.memory.take(bytes.len());
                entry.bytes = bytes;
                tail.push_back(entry);
            }
        }
        self.tail = tail;
        self.dirty = 0;
        Ok(())
    }

    fn cleanable(&self, header: &Header, end: i64) -> bool {
        !header.control()
            && header.last() < end
            && !(header.transactional() && self.producers.any_aborted(header.base, header.last()))
    }

    /// The last offset of each key; nothing if there are too many.
    fn newest_of_keys(&self, end: i64) -> io::Result<Option<HashMap<Vec<u8>, i64>>> {
        let mut newest = HashMap::new();
        let mut size = 0;
        let mut offset = self.start;
        while offset < end {
            let bytes = self.bytes(offset, end, 1 << 20).map_err(io::Error::other)?;
            let mut rest = &bytes[..];
            if rest.is_empty() {
                break;
            }
            while let Some(header) = Header::read(rest) {
                offset = header.last() + 1;
                if self.cleanable(&header, end) {
                    for record in batch::records(&header, rest).unwrap_or_default() {
                        let Some(key) = record.key else { continue };
                        if let Some(known) = newest.get_mut(key) {
                            *known = record.offset;
                        } else {
                            size += key.len() + 64;
                            newest.insert(key.to_vec(), record.offset);
                        }
                    }
                }
                rest = &rest[header.size..];
            }
            if size > KEYS {
                return Ok(None);
            }
        }
        Ok(Some(newest))
    }
}
