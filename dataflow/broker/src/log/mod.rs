//! A partition: batches in order, the newest in memory, all of them in files where there is a folder.

mod clean;
mod files;
mod memory;
mod producers;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use tokio::sync::Notify;

use self::files::Files;
pub(crate) use self::memory::Memory;
pub(crate) use self::producers::Aborted;
use self::producers::Producers;
use crate::batch::{self, Header};
use crate::disk::Disk;

/// A file that nobody writes to is closed after this time.
const IDLE: Duration = Duration::from_secs(30);
/// A producer that has not been heard of for this long may be forgotten.
const PRODUCER_MS: i64 = 24 * 60 * 60 * 1000;

/// One partition; its lock is its own.
#[derive(Debug)]
pub(crate) struct Partition(Mutex<Log>);

#[derive(Debug)]
pub(crate) struct Log {
    memory: Arc<Memory>,
    /// The newest batches; the last one ends at `next`.
    tail: VecDeque<Entry>,
    start: i64,
    next: i64,
    files: Option<Files>,
    producers: Producers,
    /// Readers that wait for the next batch.
    waiters: Vec<Arc<Notify>>,
    /// Bytes appended since the last cleaning.
    dirty: u64,
    /// The topic is gone.
    deleted: bool,
}

#[derive(Debug)]
struct Entry {
    base: i64,
    last: i64,
    first_ms: i64,
    max_ms: i64,
    age: u64,
    bytes: Bytes,
}

/// What a reader may see, and from where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) start: i64,
    pub(crate) stable: i64,
    pub(crate) next: i64,
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) records: Bytes,
    pub(crate) aborted: Vec<Aborted>,
}

impl Partition {
    /// Makes an empty partition, or opens what a folder holds of one.
    pub(crate) fn open(
        memory: Arc<Memory>,
        disk: &Arc<Disk>,
        folder: Option<&Path>,
        start: i64,
    ) -> io::Result<Self> {
        let mut producers = Producers::default();
        let mut next = start;
        let files = folder.map(|folder| {
            Files::open(folder, disk.clone(), |header, bytes| {
                producers.note(&header, batch::commits(bytes));
                next = next.max(header.last() + 1);
            })
        });
        let files = files.transpose()?;
        let base = files.as_ref().and_then(Files::last_base).unwrap_or(0);
        let first = files.as_ref().and_then(Files::first_base).unwrap_or(0);
        Ok(Self(Mutex::new(Log {
            memory,
            tail: VecDeque::new(),
            start: start.max(first),
            next: next.max(base),
            dirty: files.as_ref().map_or(0, Files::size),
            files,
            producers,
            waiters: Vec::new(),
            deleted: false,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    pub(crate) fn ends(&self) -> Ends {
        let stable = self.producers.stable_end(self.next);
        Ends {
            start: self.start,
            stable,
            next: self.next,
        }
    }

    /// Appends what a producer sent; returns the place of its first batch.
    pub(crate) fn append(&mut self, batches: &[(Header, Bytes)]) -> Result<i64, ResponseError> {
        if self.deleted {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        let mut place = None;
        for (header, bytes) in batches {
            let base = match self.producers.check(header)? {
                Some(base) => base,
                None => self.push(*header, bytes).map_err(|error| {
                    tracing::error!(%error, "a batch cannot be written");
                    ResponseError::KafkaStorageError
                })?,
            };
            place.get_or_insert(base);
        }
        self.settle().map_err(|error| {
            tracing::error!(%error, "the disk does not take a batch");
            ResponseError::KafkaStorageError
        })?;
        self.wake();
        Ok(place.unwrap_or(-1))
    }

    /// Ends a producer's transaction here, if it has written anything.
    pub(crate) fn end_transaction(
        &mut self,
        producer: i64,
        epoch: i16,
        commit: bool,
        now_ms: i64,
    ) -> io::Result<()> {
        if self.deleted || !self.producers.has_open(producer) {
            return Ok(());
        }
        let bytes = batch::marker(producer, epoch, commit, now_ms);
        let header = Header::read(&bytes).ok_or_else(|| io::Error::other("a marker is a batch"))?;
        self.push(header, &bytes)?;
        self.settle()?;
        self.wake();
        Ok(())
    }

    /// The file first, so that what a reader sees outlives the process.
    fn push(&mut self, header: Header, bytes: &[u8]) -> io::Result<i64> {
        let base = self.next;
        let header = Header { base, ..header };
        let bytes = batch::placed(bytes, base);
        if let Some(files) = &mut self.files {
            files.append(&header, &bytes)?;
        }
        self.producers.note(&header, batch::commits(&bytes));
        self.next = header.last() + 1;
        self.dirty += bytes.len() as u64;
        let age = self.memory.take(bytes.len());
        let Header {
            first_ms, max_ms, ..
        } = header;
        self.tail.push_back(Entry {
            base,
            last: header.last(),
            first_ms,
            max_ms,
            age,
            bytes,
        });
        Ok(base)
    }

    fn settle(&mut self) -> io::Result<()> {
        self.files.as_mut().map_or(Ok(()), Files::settle)
    }

    fn wake(&mut self) {
        for waiter in self.waiters.drain(..) {
            waiter.notify_one();
        }
    }

    /// True if a read at this offset has something to tell: records, or an error. Else the waiter is noted, if any.
    pub(crate) fn ready(
        &mut self,
        offset: i64,
        committed: bool,
        waiter: Option<&Arc<Notify>>,
    ) -> bool {
        let ends = self.ends();
        let end = if committed { ends.stable } else { ends.next };
        if self.deleted || offset < end || offset < ends.start || offset > ends.next {
            return true;
        }
        if let Some(waiter) = waiter
            && !self.waiters.iter().any(|known| Arc::ptr_eq(known, waiter))
        {
            // Those of connections that are closed would otherwise stay until the next batch.
            self.waiters.retain(|known| Arc::strong_count(known) > 1);
            self.waiters.push(waiter.clone());
        }
        false
    }

    /// Reads batches of some `max` bytes; one at least, if `any`, however large.
    pub(crate) fn read(
        &self,
        offset: i64,
        committed: bool,
        max: usize,
        any: bool,
    ) -> Result<Read, ResponseError> {
        let ends = self.ends();
        if self.deleted {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        if offset < ends.start || offset > ends.next {
            return Err(ResponseError::OffsetOutOfRange);
        }
        let end = if committed { ends.stable } else { ends.next };
        if offset >= end {
            return Ok(Read {
                records: Bytes::new(),
                aborted: Vec::new(),
            });
        }
        let records = self.bytes(offset, end, max)?;
        if !any && records.len() > max {
            return Ok(Read {
                records: Bytes::new(),
                aborted: Vec::new(),
            });
        }
        let aborted = if committed {
            self.producers.aborted(offset, end)
        } else {
            Vec::new()
        };
        Ok(Read { records, aborted })
    }

    fn bytes(&self, offset: i64, end: i64, max: usize) -> Result<Bytes, ResponseError> {
        if let (Some(files), true) = (
            &self.files,
            self.tail.front().is_none_or(|first| offset < first.base),
        ) {
            let read = files.read(offset, end, max).map_err(|error| {
                tracing::error!(%error, "records cannot be read");
                ResponseError::KafkaStorageError
            })?;
            return Ok(read.into());
        }
        let first = self.tail.partition_point(|entry| entry.last < offset);
        let (mut count, mut size) = (0, 0);
        for entry in self.tail.range(first..) {
            if entry.base >= end || (count > 0 && size + entry.bytes.len() > max) {
                break;
            }
            count += 1;
            size += entry.bytes.len();
        }
        let mut entries = self.tail.range(first..first + count);
        if let (1, Some(entry)) = (count, entries.next()) {
            return Ok(entry.bytes.clone());
        }
        let mut bytes = BytesMut::with_capacity(size);
        for entry in self.tail.range(first..first + count) {
            bytes.extend_from_slice(&entry.bytes);
        }
        Ok(bytes.freeze())
    }

    /// The age of the oldest batch in memory.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.tail.front().map(|entry| entry.age)
    }

    /// Drops batches older than that from memory; without files they are gone, and their offsets with them.
    pub(crate) fn evict(&mut self, until: u64) {
        while self.tail.front().is_some_and(|entry| entry.age <= until) && self.memory.tight() {
            let Some(entry) = self.tail.pop_front() else {
                return;
            };
            self.memory.give_back(entry.bytes.len());
            if self.files.is_none() {
                self.start = entry.last + 1;
            }
        }
    }

    /// Removes records by age and size, and what is known of them.
    pub(crate) fn retain(
        &mut self,
        now_ms: i64,
        ms: Option<i64>,
        bytes: Option<u64>,
    ) -> io::Result<()> {
        let deadline = ms.map(|ms| now_ms.saturating_sub(ms));
        let old = |max_ms: i64| deadline.is_some_and(|deadline| max_ms < deadline);
        let mut size = if bytes.is_some() { self.size() } else { 0 };
        if let Some(files) = &mut self.files {
            files.close_idle(IDLE);
            if files.newest_ms().is_some_and(old) {
                files.roll(self.next)?;
            }
            files.trim(|_, segment, max_ms| {
                let gone =
                    old(max_ms) || bytes.is_some_and(|limit| size.saturating_sub(segment) >= limit);
                size = size.saturating_sub(if gone { segment } else { 0 });
                gone
            })?;
            let first = files.first_base().unwrap_or(0);
            self.advance(first);
        } else {
            while let Some(entry) = self.tail.front() {
                let length = entry.bytes.len() as u64;
                if !old(entry.max_ms)
                    && bytes.is_none_or(|limit| size.saturating_sub(length) < limit)
                {
                    break;
                }
                size = size.saturating_sub(length);
                let start = entry.last + 1;
                self.advance(start);
            }
        }
        self.producers.forget(self.start, now_ms - PRODUCER_MS);
        Ok(())
    }

    /// Removes the records before an offset; returns where the log starts now.
    pub(crate) fn delete_before(&mut self, offset: i64) -> Result<i64, ResponseError> {
        if offset > self.next {
            return Err(ResponseError::OffsetOutOfRange);
        }
        self.advance(offset);
        if let Some(files) = &mut self.files {
            let start = self.start;
            files
                .trim(|last, _, _| last < start)
                .map_err(|_| ResponseError::KafkaStorageError)?;
        }
        Ok(self.start)
    }

    fn advance(&mut self, start: i64) {
        self.start = self.start.max(start);
        while self
            .tail
            .front()
            .is_some_and(|entry| entry.last < self.start)
        {
            if let Some(entry) = self.tail.pop_front() {
                self.memory.give_back(entry.bytes.len());
            }
        }
    }

    fn size(&self) -> u64 {
        match &self.files {
            Some(files) => files.size(),
            None => self.tail.iter().map(|entry| entry.bytes.len() as u64).sum(),
        }
    }

    /// The first record at or after a time, as its offset and time. Within a compressed batch: the batch.
    pub(crate) fn at_time(&self, ms: i64) -> Result<Option<(i64, i64)>, ResponseError> {
        let in_memory = self.tail.front().map_or(self.next, |entry| entry.base);
        if let Some(files) = &self.files {
            let mut offset = files.not_before(ms).unwrap_or(in_memory).max(self.start);
            while offset < in_memory {
                let bytes = Bytes::from(
                    files
                        .read(offset, in_memory, 1 << 20)
                        .map_err(|_| ResponseError::KafkaStorageError)?,
                );
                let mut rest = &bytes[..];
                if rest.is_empty() {
                    break;
                }
                while let Some(header) = Header::read(rest) {
                    if header.max_ms >= ms {
                        return Ok(Some(self.record_at(ms, &header, rest)));
                    }
                    offset = header.last() + 1;
                    rest = &rest[header.size..];
                }
            }
        }
        let entry = self
            .tail
            .iter()
            .find(|entry| entry.max_ms >= ms && entry.last >= self.start);
        Ok(entry.and_then(|entry| {
            let header = Header::read(&entry.bytes)?;
            Some(if entry.first_ms >= ms {
                (entry.base.max(self.start), entry.first_ms)
            } else {
                self.record_at(ms, &header, &entry.bytes)
            })
        }))
    }

    fn record_at(&self, ms: i64, header: &Header, bytes: &[u8]) -> (i64, i64) {
        let records = batch::records(header, bytes).unwrap_or_default();
        let wanted =
            |record: &&batch::Record<'_>| record.timestamp >= ms && record.offset >= self.start;
        match records.iter().find(wanted) {
            Some(record) => (record.offset, record.timestamp),
            None => (header.base.max(self.start), header.first_ms),
        }
    }

    /// The offset and time of the newest record by time, of those in memory.
    pub(crate) fn newest(&self) -> Option<(i64, i64)> {
        let entry = self.tail.iter().max_by_key(|entry| entry.max_ms)?;
        Some((entry.last, entry.max_ms))
    }

    /// Ends a partition of a topic that is deleted.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.deleted = true;
        self.wake();
        while let Some(entry) = self.tail.pop_front() {
            self.memory.give_back(entry.bytes.len());
        }
        self.files.take().map_or(Ok(()), |mut files| files.remove())
    }
}
