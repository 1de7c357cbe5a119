//! The shape of requests, to walk through one before it is decoded: the codec believes the lengths of arrays.
//!
//! `1 2 4 8` are numbers of so many bytes, `s` a text, `b` bytes, `[…]` an array of structs, `(…)` an array of plain
//! values; `+3` and `-3` before an item: only from, or up to, that version (in hexadecimal).

use kafka_protocol::messages::ApiKey;

/// An API as it is supported: its versions and the shape of its request.
pub(crate) struct Api {
    pub(crate) key: ApiKey,
    pub(crate) min: i16,
    pub(crate) max: i16,
    shape: &'static str,
}

const fn api(key: ApiKey, min: i16, max: i16, shape: &'static str) -> Api {
    Api {
        key,
        min,
        max,
        shape,
    }
}

/// All that is supported.
pub(crate) const APIS: &[Api] = &[
    api(ApiKey::Produce, 3, 9, "s24[s[4b]]"),
    api(
        ApiKey::Fetch,
        4,
        12,
        "44441+74+74[s[4+948+c4+584]]+7[s(4)]+bs",
    ),
    api(ApiKey::ListOffsets, 1, 7, "4+21[s[4+448]]"),
    api(ApiKey::Metadata, 0, 9, "[s]+41+81+81"),
    api(ApiKey::OffsetCommit, 2, 8, "s4s+7s-48[s[48+64s]]"),
    api(ApiKey::OffsetFetch, 1, 7, "s[s(4)]+71"),
    api(ApiKey::FindCoordinator, 0, 4, "-3s+11+4(s)"),
    api(ApiKey::JoinGroup, 0, 7, "s4+14s+5ss[sb]"),
    api(ApiKey::Heartbeat, 0, 4, "s4s+3s"),
    api(ApiKey::LeaveGroup, 0, 5, "s-2s+3[ss+5s]"),
    api(ApiKey::SyncGroup, 0, 5, "s4s+3s+5s+5s[sb]"),
    api(ApiKey::DescribeGroups, 0, 5, "(s)+31"),
    api(ApiKey::ListGroups, 0, 4, "+4(s)"),
    api(ApiKey::ApiVersions, 0, 3, "+3s+3s"),
    api(ApiKey::CreateTopics, 2, 6, "[s42[4(4)][ss]]41"),
    api(ApiKey::DeleteTopics, 1, 5, "(s)4"),
    api(ApiKey::DeleteRecords, 0, 2, "[s[48]]4"),
    api(ApiKey::InitProducerId, 0, 4, "s4+38+32"),
    api(ApiKey::OffsetForLeaderEpoch, 2, 4, "+34[s[444]]"),
    api(ApiKey::AddPartitionsToTxn, 0, 3, "s82[s(4)]"),
    api(ApiKey::AddOffsetsToTxn, 0, 3, "s82s"),
    api(ApiKey::EndTxn, 0, 3, "s821"),
    api(ApiKey::TxnOffsetCommit, 0, 3, "ss82+34+3s+3s[s[48+24s]]"),
    api(ApiKey::DescribeConfigs, 1, 4, "[1s(s)]1+31"),
    api(ApiKey::AlterConfigs, 0, 2, "[1s[ss]]1"),
    api(ApiKey::IncrementalAlterConfigs, 0, 1, "[1s[s1s]]1"),
    api(ApiKey::CreatePartitions, 0, 3, "[s4[(4)]]41"),
    api(ApiKey::DeleteGroups, 0, 2, "(s)"),
    api(ApiKey::OffsetDelete, 0, 0, "s[s[4]]"),
    api(ApiKey::DescribeCluster, 0, 1, "1+11"),
];

/// Elements of all arrays of a request together.
const ELEMENTS: usize = 200_000;

impl Api {
    /// Finds what is supported of an API.
    pub(crate) fn of(key: ApiKey) -> Option<&'static Self> {
        APIS.iter().find(|api| api.key == key)
    }

    pub(crate) fn has(&self, version: i16) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// Checks that the request has the shape of this version, whole and not too large.
    pub(crate) fn fits(&self, version: i16, request: &[u8]) -> bool {
        let flexible = self.key.request_header_version(version) >= 2;
        let mut walk = Walk {
            version,
            flexible,
            rest: request,
            elements: 0,
        };
        walk.structure(self.shape.as_bytes()).is_some()
    }
}

struct Walk<'a> {
    version: i16,
    flexible: bool,
    rest: &'a [u8],
    elements: usize,
}

/// Splits a shape at the end of the array that it is in.
fn inside(shape: &[u8]) -> (&[u8], &[u8]) {
    let mut depth = 1;
    for (at, byte) in shape.iter().enumerate() {
        match byte {
            b'[' | b'(' => depth += 1,
            b']' | b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (&shape[..at], &shape[at + 1..]);
        }
    }
    (shape, &[])
}

/// Tells by a version and a bound whether a field is there.
type Condition = fn(i16, i16) -> bool;

/// Reads a condition on the version off a shape.
fn condition(shape: &[u8]) -> (Condition, i16, &[u8]) {
    let at_least: fn(i16, i16) -> bool = |version, limit| version >= limit;
    let at_most: fn(i16, i16) -> bool = |version, limit| version <= limit;
    let number = |digit: u8| char::from(digit).to_digit(16).unwrap_or(0) as i16;
    match shape {
        [b'+', digit, rest @ ..] => (at_least, number(*digit), rest),
        [b'-', digit, rest @ ..] => (at_most, number(*digit), rest),
        shape => (at_least, 0, shape),
    }
}

impl<'a> Walk<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.take(1)?[0];
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A length as it stands before texts (2 bytes), or bytes and arrays (4 bytes); none of a null one.
    fn length(&mut self, width: usize) -> Option<usize> {
        if self.flexible {
            return Some(self.varint()?.saturating_sub(1));
        }
        let bytes = self.take(width)?;
        let length = match *bytes {
            [a, b] => i64::from(i16::from_be_bytes([a, b])),
            [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
            _ => return None,
        };
        usize::try_from(length.max(0)).ok()
    }

    fn structure(&mut self, shape: &[u8]) -> Option<()> {
        self.values(shape)?;
        if self.flexible {
            for _ in 0..self.varint()? {
                self.varint()?;
                let length = self.varint()?;
                self.take(length)?;
            }
        }
        Some(())
    }

    fn values(&mut self, mut shape: &[u8]) -> Option<()> {
        while !shape.is_empty() {
            let (holds, limit, item) = condition(shape);
            let there = holds(self.version, limit);
            let (kind, after) = item.split_first()?;
            shape = after;
            match kind {
                b'[' | b'(' => {
                    let (element, after) = inside(after);
                    shape = after;
                    if there {
                        self.array(element, *kind == b'[')?;
                    }
                }
                _ if !there => {}
                b's' => {
                    let length = self.length(2)?;
                    self.take(length)?;
                }
                b'b' => {
                    let length = self.length(4)?;
                    self.take(length)?;
                }
                width => {
                    self.take(usize::from(width - b'0'))?;
                }
            }
        }
        Some(())
    }

    fn array(&mut self, element: &[u8], structures: bool) -> Option<()> {
        let count = self.length(4)?;
        self.elements = self.elements.checked_add(count)?;
        if self.elements > ELEMENTS {
            return None;
        }
        for _ in 0..count {
            if structures {
                self.structure(element)?
            } else {
                self.values(element)?
            }
        }
        Some(())
    }
}
