//! Which kept downloads have to go.
use std::time::{Duration, SystemTime};

/// More folders than this are not kept, however small they are.
const MAX_KEPT: usize = 1024;

/// What is kept of one source.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub bytes: u64,
    pub used: SystemTime,
    /// It arrived whole. What did not is needed to go on, however large it is: only time and a full disk end it.
    pub whole: bool,
}

/// What all of them that are whole may take, and how long any is kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub bytes: u64,
    pub age: Duration,
}

/// What all of them take, those in use included, and what the disk lacks.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub count: usize,
    /// Of those that are whole.
    pub bytes: u64,
    pub missing: u64,
}

/// Chooses from those that nobody uses: all that are empty or too old, then those used least recently.
pub fn victims(
    mut idle: Vec<(String, Held)>,
    load: Load,
    bounds: Bounds,
    now: SystemTime,
) -> Vec<String> {
    let is_due = |held: &Held| {
        let age = now.duration_since(held.used).unwrap_or_default();
        held.bytes == 0 || age > bounds.age
    };
    idle.sort_by_key(|(_, held)| (!is_due(held), held.used));
    let (mut count, mut bytes, mut missing) = (load.count, load.bytes, load.missing);
    let mut victims = Vec::new();
    for (key, held) in idle {
        let too_much = held.whole && bytes > bounds.bytes;
        if !is_due(&held) && !too_much && count <= MAX_KEPT && missing == 0 {
            continue;
        }
        count = count.saturating_sub(1);
        if held.whole {
            bytes = bytes.saturating_sub(held.bytes);
        }
        missing = missing.saturating_sub(held.bytes);
        victims.push(key);
    }
    victims
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of those that go from a, b and c, of 10 bytes each, used 30, 20 and 10 seconds ago, an empty one and a
    /// large one that is not whole.
    fn gone(bytes: u64, age: u64, missing: u64, count: usize) -> String {
        let now = SystemTime::now();
        let held = |bytes, age| Held {
            bytes,
            used: now - Duration::from_secs(age),
            whole: bytes < 100,
        };
        let idle = [
            ("c", 10, 10),
            ("a", 10, 30),
            ("e", 0, 5),
            ("L", 100, 15),
            ("b", 10, 20),
        ];
        let idle = idle.map(|(key, bytes, age)| (key.to_owned(), held(bytes, age)));
        let bounds = Bounds {
            bytes,
            age: Duration::from_secs(age),
        };
        // One more of 10 bytes is in use.
        let load = Load {
            count,
            bytes: 40,
            missing,
        };
        victims(idle.to_vec(), load, bounds, now).concat()
    }

    #[test]
    fn those_used_least_recently_go_first() {
        assert_eq!(gone(40, 60, 0, 5), "e", "it is empty");
        assert_eq!(gone(39, 60, 0, 5), "ea");
        assert_eq!(gone(20, 60, 0, 5), "eab");
        assert_eq!(gone(0, 60, 0, 5), "eabc");
        assert_eq!(gone(40, 25, 0, 5), "ae", "it is old");
        assert_eq!(gone(40, 60, 1, 5), "ea");
        assert_eq!(gone(40, 60, 11, 5), "eab");
        assert_eq!(gone(40, 60, 21, 5), "eabL", "the disk is full");
        assert_eq!(gone(40, 12, 0, 5), "abLe", "they are old");
        assert_eq!(gone(40, 60, 0, MAX_KEPT + 2), "ea");
    }
}
