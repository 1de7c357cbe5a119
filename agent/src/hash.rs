//! FNV-1a, where names are compatible with the documented ones.

/// The documented hash of download folders and of pods in a Deployment.
pub(crate) fn fnv32a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
