//! A check sum with each record: a disk that returns other bytes than were written is found out when they are read.
use xxhash_rust::xxh3::xxh3_64_with_seed;

const LENGTH: usize = size_of::<u64>();

/// The bytes with their check sum, which the record's kind and name are part of.
pub(super) fn sealed(kind: &str, name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(LENGTH + bytes.len());
    sealed.extend_from_slice(&sum(kind, name, bytes).to_le_bytes());
    sealed.extend_from_slice(bytes);
    sealed
}

/// The bytes, if they are those that were sealed under this name.
pub(super) fn opened<'a>(kind: &str, name: &str, sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (told, bytes) = sealed.split_first_chunk::<LENGTH>()?;
    (u64::from_le_bytes(*told) == sum(kind, name, bytes)).then_some(bytes)
}

fn sum(kind: &str, name: &str, bytes: &[u8]) -> u64 {
    let kind = xxh3_64_with_seed(kind.as_bytes(), 0);
    xxh3_64_with_seed(bytes, xxh3_64_with_seed(name.as_bytes(), kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_names_and_kinds_are_found_out() {
        let kept = sealed("model", "iris", b"bytes");
        assert_eq!(opened("model", "iris", &kept), Some(&b"bytes"[..]));
        assert_eq!(opened("server", "iris", &kept), None);
        assert_eq!(opened("model", "wine", &kept), None);
        for at in 0..kept.len() {
            let mut other = kept.clone();
            other[at] ^= 1;
            assert_eq!(opened("model", "iris", &other), None);
        }
        assert_eq!(opened("model", "iris", &kept[..7]), None);
    }
}
