//! Request ids of 20 characters in the form clients know: time, machine, process and a counter in base 32.
use std::{
    hash::{BuildHasher, RandomState},
    process,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Seeded at random: the machine's three bytes in the high word, the first counter in the low one.
static SEED: LazyLock<(u32, AtomicU32)> = LazyLock::new(|| {
    let random = RandomState::new().hash_one(process::id());
    ((random >> 32) as u32, AtomicU32::new(random as u32))
});

/// A new request id; ids of one process sort by time.
pub fn request_id() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |t| t.as_secs() as u32);
    let (machine, counter) = &*SEED;
    encode(
        seconds,
        *machine,
        process::id(),
        counter.fetch_add(1, Ordering::Relaxed),
    )
}

/// 4 bytes of time, 3 of machine, 2 of process and 3 of counter, five bits a character, padded on the right.
fn encode(seconds: u32, machine: u32, process: u32, counter: u32) -> String {
    let id = u128::from(seconds) << 64
        | u128::from(machine & 0x00ff_ffff) << 40
        | u128::from(process & 0xffff) << 24
        | u128::from(counter & 0x00ff_ffff);
    let padded = id << 4;
    (0..20u32)
        .rev()
        .map(|place| char::from(ALPHABET[(padded >> (place * 5)) as usize & 31]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_id_is_encoded() {
        // The worked example of the id format's own description.
        assert_eq!(
            encode(0x4d88_e15b, 0x0060_f486, 0xe428, 0x0041_2dc9),
            "9m4e2mr0ui3e8a215n4g"
        );
    }

    #[test]
    fn ids_differ() {
        let (first, second) = (request_id(), request_id());
        assert_eq!(first.len(), 20);
        assert_ne!(first, second);
    }
}
