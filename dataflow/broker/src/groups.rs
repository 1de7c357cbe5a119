//! All groups, and what they have committed.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::group::{Committed, Group, Offsets};
use crate::journal::Journal;

#[derive(Debug, Default)]
pub(crate) struct Groups(Mutex<HashMap<String, Group>>);

/// Parts of a key of the journal; no name holds it.
pub(crate) const SEPARATOR: char = '\0';
const OFFSETS: &str = "offset\0";
const PENDING: &str = "pending\0";

fn key(start: &str, group: &str, topic: &str, partition: i32) -> String {
    format!("{start}{group}{SEPARATOR}{topic}{SEPARATOR}{partition}")
}

fn pending_start(producer: i64) -> String {
    format!("{PENDING}{producer}{SEPARATOR}")
}

impl Groups {
    pub(crate) fn load(journal: &Journal) -> io::Result<Self> {
        let mut groups: HashMap<String, Group> = HashMap::new();
        let place = |topic: Option<&str>, partition: Option<&str>| {
            Some((topic?.to_owned(), partition?.parse::<i32>().ok()?))
        };
        for (key, committed) in journal.all::<Committed>(OFFSETS)? {
            let mut parts = key.split(SEPARATOR);
            let group = groups
                .entry(parts.next().unwrap_or_default().to_owned())
                .or_default();
            if let Some(place) = place(parts.next(), parts.next()) {
                group.offsets.insert(place, committed);
            }
        }
        for (key, committed) in journal.all::<Committed>(PENDING)? {
            let mut parts = key.split(SEPARATOR);
            let producer = parts.next().and_then(|id| id.parse().ok()).unwrap_or(-1);
            let group = groups
                .entry(parts.next().unwrap_or_default().to_owned())
                .or_default();
            if let Some(place) = place(parts.next(), parts.next()) {
                group
                    .pending
                    .entry(producer)
                    .or_default()
                    .insert(place, committed);
            }
        }
        Ok(Self(Mutex::new(groups)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<String, Group>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass; returns when to look again.
    pub(crate) fn tick(&self, now: Instant) -> Option<Instant> {
        let mut groups = self.lock();
        let next = groups
            .values_mut()
            .filter_map(|group| group.tick(now))
            .min();
        groups.retain(|_, group| !group.is_void());
        next
    }

    /// Forgets the offsets of a topic that is deleted.
    pub(crate) fn forget_topic(&self, topic: &str, journal: &Journal) -> io::Result<()> {
        for (name, group) in self.lock().iter_mut() {
            let gone: Vec<(String, i32)> = group
                .offsets
                .keys()
                .filter(|(known, _)| known == topic)
                .cloned()
                .collect();
            for place in gone {
                journal.remove(&key(OFFSETS, name, &place.0, place.1))?;
                group.offsets.remove(&place);
            }
        }
        Ok(())
    }
}

/// Commits an offset; it is kept before this returns.
pub(crate) fn commit(
    group: &mut Group,
    name: &str,
    topic: &str,
    partition: i32,
    offset: Committed,
    journal: &Journal,
) -> io::Result<()> {
    journal.put(&key(OFFSETS, name, topic, partition), &offset)?;
    group.offsets.insert((topic.to_owned(), partition), offset);
    Ok(())
}

pub(crate) fn forget(
    group: &mut Group,
    name: &str,
    topic: &str,
    partition: i32,
    journal: &Journal,
) -> io::Result<()> {
    journal.remove(&key(OFFSETS, name, topic, partition))?;
    group.offsets.remove(&(topic.to_owned(), partition));
    Ok(())
}

/// Forgets all that a group has committed.
pub(crate) fn forget_all(name: &str, journal: &Journal) -> io::Result<()> {
    journal.remove_all(&format!("{OFFSETS}{name}{SEPARATOR}"))
}

/// Commits an offset as part of a producer's open transaction.
pub(crate) fn commit_later(
    group: &mut Group,
    name: &str,
    producer: i64,
    place: (&str, i32),
    offset: Committed,
    journal: &Journal,
) -> io::Result<()> {
    journal.put(
        &key(&pending_start(producer), name, place.0, place.1),
        &offset,
    )?;
    group
        .pending
        .entry(producer)
        .or_default()
        .insert((place.0.to_owned(), place.1), offset);
    Ok(())
}

/// Ends a producer's transaction in a group. May be repeated.
pub(crate) fn end_transaction(
    group: &mut Group,
    name: &str,
    producer: i64,
    commits: bool,
    journal: &Journal,
) -> io::Result<()> {
    let pending: Offsets = group.pending.remove(&producer).unwrap_or_default();
    if commits {
        for ((topic, partition), offset) in pending {
            commit(group, name, &topic, partition, offset, journal)?;
        }
    }
    journal.remove_all(&format!("{}{name}{SEPARATOR}", pending_start(producer)))
}
