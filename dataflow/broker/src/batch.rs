//! Record batches (magic 2) as bytes: their header, checks, control batches, and records of uncompressed ones.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;

/// The bytes before the first record.
pub(crate) const HEADER: usize = 61;
/// The bytes before those that the length counts.
const PREFIX: usize = 12;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// What the broker reads of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Of the whole batch, in bytes.
    pub(crate) size: usize,
    pub(crate) base: i64,
    pub(crate) attributes: i16,
    pub(crate) last_delta: i32,
    pub(crate) first_ms: i64,
    pub(crate) max_ms: i64,
    pub(crate) producer: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
    pub(crate) count: i32,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

impl Header {
    /// Reads the header at the start of `bytes`, which may end after it.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let length = usize::try_from(i32::from_be_bytes(array(bytes, 8)?)).ok()?;
        let header = Self {
            size: PREFIX + length,
            base: i64::from_be_bytes(array(bytes, 0)?),
            attributes: i16::from_be_bytes(array(bytes, 21)?),
            last_delta: i32::from_be_bytes(array(bytes, 23)?),
            first_ms: i64::from_be_bytes(array(bytes, 27)?),
            max_ms: i64::from_be_bytes(array(bytes, 35)?),
            producer: i64::from_be_bytes(array(bytes, 43)?),
            epoch: i16::from_be_bytes(array(bytes, 51)?),
            sequence: i32::from_be_bytes(array(bytes, 53)?),
            count: i32::from_be_bytes(array(bytes, 57)?),
        };
        (header.size >= HEADER && *bytes.get(16)? == 2).then_some(header)
    }

    pub(crate) fn last(&self) -> i64 {
        self.base + i64::from(self.last_delta)
    }

    pub(crate) fn transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub(crate) fn control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    pub(crate) fn compressed(&self) -> bool {
        self.attributes & 7 != 0
    }
}

/// True if the whole batch is there and its checksum holds.
pub(crate) fn intact(header: &Header, bytes: &[u8]) -> bool {
    let stored = array(bytes, 17).map(u32::from_be_bytes);
    let body = bytes.get(21..header.size);
    body.is_some_and(|body| stored == Some(crc32c::crc32c(body)))
}

/// Splits what a producer sent into batches, all of them checked.
pub(crate) fn received(mut bytes: Bytes) -> Result<Vec<(Header, Bytes)>, ResponseError> {
    let mut batches = Vec::new();
    while !bytes.is_empty() {
        if bytes.get(16).is_some_and(|magic| *magic < 2) {
            return Err(ResponseError::UnsupportedForMessageFormat);
        }
        let header = Header::read(&bytes).ok_or(ResponseError::CorruptMessage)?;
        if header.size > bytes.len() || !intact(&header, &bytes) {
            return Err(ResponseError::CorruptMessage);
        }
        let counted = header.count >= 1 && header.last_delta == header.count - 1;
        if !counted || header.control() || (header.transactional() && header.producer < 0) {
            return Err(ResponseError::InvalidRecord);
        }
        batches.push((header, bytes.split_to(header.size)));
    }
    Ok(batches)
}

/// Copies a batch, giving it its place in the log. The checksum does not cover the place.
pub(crate) fn placed(bytes: &[u8], base: i64) -> Bytes {
    let mut copy = BytesMut::with_capacity(bytes.len());
    copy.put_i64(base);
    copy.put_slice(&bytes[8..12]);
    copy.put_i32(0);
    copy.put_slice(&bytes[16..]);
    copy.freeze()
}

/// Makes the control batch that ends a producer's transaction in a partition.
pub(crate) fn marker(producer: i64, epoch: i16, commit: bool, now_ms: i64) -> Bytes {
    // One record: attributes, deltas of time and offset, key (version, type), value (version, coordinator's epoch).
    let mut record = BytesMut::new();
    record.put_slice(&[0, 0, 0, 8]);
    record.put_i16(0);
    record.put_i16(i16::from(commit));
    record.put_u8(12);
    record.put_i16(0);
    record.put_i32(0);
    record.put_u8(0);
    let mut body = BytesMut::new();
    body.put_i16(TRANSACTIONAL | CONTROL);
    body.put_i32(0);
    body.put_i64(now_ms);
    body.put_i64(now_ms);
    body.put_i64(producer);
    body.put_i16(epoch);
    body.put_i32(-1);
    body.put_i32(1);
    body.put_u8((record.len() as u8) << 1);
    body.put_slice(&record);
    sealed(0, &body)
}

/// True if a control batch commits, false if it aborts.
pub(crate) fn commits(bytes: &[u8]) -> bool {
    // Length, attributes, two deltas, the key's length and its version come before the type.
    bytes.get(HEADER + 8) == Some(&1)
}

fn sealed(base: i64, body: &[u8]) -> Bytes {
    let mut batch = BytesMut::with_capacity(21 + body.len());
    batch.put_i64(base);
    batch.put_i32((body.len() + 9) as i32);
    batch.put_i32(0);
    batch.put_u8(2);
    batch.put_u32(crc32c::crc32c(body));
    batch.put_slice(body);
    batch.freeze()
}

/// A record of an uncompressed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) offset: i64,
    pub(crate) timestamp: i64,
    pub(crate) key: Option<&'a [u8]>,
    /// All its bytes, its length included.
    raw: &'a [u8],
}

/// Reads the records of an uncompressed batch; nothing if they are not well formed.
pub(crate) fn records<'a>(header: &Header, bytes: &'a [u8]) -> Option<Vec<Record<'a>>> {
    if header.compressed() {
        return None;
    }
    let mut rest = bytes.get(HEADER..header.size)?;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let start = rest;
        let length = usize::try_from(varint(&mut rest)?).ok()?;
        let mut inside = rest.get(..length)?;
        rest = &rest[length..];
        inside = inside.get(1..)?;
        let timestamp = header.first_ms.wrapping_add(varint(&mut inside)?);
        let offset = header.base.checked_add(varint(&mut inside)?)?;
        let key = match varint(&mut inside)? {
            length if length < 0 => None,
            length => Some(inside.get(..usize::try_from(length).ok()?)?),
        };
        found.push(Record {
            offset,
            timestamp,
            key,
            raw: &start[..start.len() - rest.len()],
        });
    }
    Some(found)
}

/// Makes the batch again with some of its records; its span of offsets stays.
pub(crate) fn with_records(header: &Header, bytes: &[u8], kept: &[Record<'_>]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_slice(&bytes[21..57]);
    body.put_i32(kept.len() as i32);
    for record in kept {
        body.put_slice(record.raw);
    }
    sealed(header.base, &body)
}

fn varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_a_control_batch_that_says_how_the_transaction_ended() {
        for commit in [true, false] {
            let bytes = placed(&marker(7, 3, commit, 1000), 42);
            let header = Header::read(&bytes).unwrap();
            assert!(intact(&header, &bytes));
            assert!(header.control() && header.transactional());
            assert_eq!(
                (header.base, header.last(), header.producer, header.epoch),
                (42, 42, 7, 3)
            );
            assert_eq!(commits(&bytes), commit);
            assert_eq!(records(&header, &bytes).unwrap()[0].key.unwrap().len(), 4);
        }
    }
}
