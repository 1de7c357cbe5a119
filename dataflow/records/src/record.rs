//! Records, read and to be written, and who they are.
use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use crate::{Headers, header};

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it was read.
    pub topic: Arc<str>,
    /// Of the topic.
    pub partition: i32,
    /// In the partition.
    pub offset: i64,
    /// The request's id, as its caller calls it; need not be unique.
    pub key: Option<Bytes>,
    /// The message.
    pub value: Option<Bytes>,
    /// All of them.
    pub headers: Headers,
    /// Milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub topic: Arc<str>,
    /// `None`: by the key.
    pub partition: Option<i32>,
    /// The request's id, as its caller calls it.
    pub key: Option<Bytes>,
    /// The message.
    pub value: Option<Bytes>,
    /// All of them.
    pub headers: Headers,
}

/// Unique to one request's way through one pipeline. Text, in the header [`header::ID`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(Arc<str>);

impl Identity {
    /// Of a random number, for a request that enters at a gateway.
    pub fn of_number(number: u128) -> Self {
        Self(format!("{number:032x}").into())
    }

    /// Derived from other facts, the same each time: for what enters otherwise.
    pub fn derived(parts: &[&[u8]]) -> Self {
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        Self::of_number(xxh3_128(&bytes))
    }

    /// A record's identity: its header, else derived from its place.
    pub fn of(record: &Record) -> Self {
        match record.headers.text(header::ID).filter(|id| !id.is_empty()) {
            Some(id) => Self(id.into()),
            None => Self::derived(&[
                record.topic.as_bytes(),
                &record.partition.to_le_bytes(),
                &record.offset.to_le_bytes(),
            ]),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

/// No name of a step: stands for the number of a request that was sent again.
const AGAIN: &str = "@";

/// How often the steps of a cyclic pipeline were reached before; travels with the record as `step=2,other=1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Visits(BTreeMap<String, u32>);

impl Visits {
    /// What the header says; what cannot be read counts as none.
    pub fn of(headers: &Headers) -> Self {
        let text = headers.text(header::VISITS).unwrap_or_default();
        let pairs = text.split(',').filter_map(|pair| {
            let (step, count) = pair.split_once('=')?;
            Some((step.to_owned(), count.parse().ok()?))
        });
        Self(pairs.collect())
    }

    /// Tells a request that its producer sent again, in the record at this place, from the first.
    pub fn again(&mut self, partition: i32, offset: i64) {
        let place = [&partition.to_le_bytes()[..], &offset.to_le_bytes()[..]].concat();
        let number = u32::try_from(xxh3_128(&place) & 0xffff_ffff).unwrap_or(u32::MAX);
        self.0.insert(AGAIN.to_owned(), number.max(1));
    }

    /// Which of the requests of one identity it is; 0: the first.
    pub fn which(&self) -> u32 {
        self.count(AGAIN)
    }

    /// How often a step was reached.
    pub fn count(&self, step: &str) -> u32 {
        self.0.get(step).copied().unwrap_or(0)
    }

    /// The greatest of all counts of steps.
    pub fn greatest(&self) -> u32 {
        let steps = self.0.iter().filter(|(step, _)| *step != AGAIN);
        steps.map(|(_, count)| *count).max().unwrap_or(0)
    }

    /// Counts one more, and returns the number with it.
    pub fn add(&mut self, step: &str) -> u32 {
        let count = self.0.entry(step.to_owned()).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// The greater of each count.
    pub fn merge(&mut self, other: &Self) {
        for (step, count) in &other.0 {
            let known = self.0.entry(step.clone()).or_default();
            *known = (*known).max(*count);
        }
    }

    /// Sets the header, or removes it where nothing was visited.
    pub fn write(&self, headers: &mut Headers) {
        if self.0.is_empty() {
            headers.remove(header::VISITS);
        } else {
            let pairs: Vec<String> = self
                .0
                .iter()
                .map(|(step, count)| format!("{step}={count}"))
                .collect();
            headers.set(header::VISITS, pairs.join(","));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_travel() {
        let mut visits = Visits::default();
        visits.add("a");
        visits.add("b");
        assert_eq!(visits.add("a"), 2);
        let mut headers = Headers::new();
        visits.write(&mut headers);
        assert_eq!(headers.text(header::VISITS), Some("a=2,b=1"));
        assert_eq!(Visits::of(&headers), visits);
        visits.again(0, 7);
        visits.write(&mut headers);
        assert_eq!(Visits::of(&headers).which(), visits.which());
        assert!(visits.which() > 0 && visits.greatest() == 2);
    }
}
