//! The name of a model or pipeline in a request's path.

/// Longest name, in bytes; Kubernetes allows 253, to which `.experiment` may be added.
pub const MAX_NAME: usize = 512;
/// Longest path that is looked at, in bytes, without its query.
pub const MAX_PATH: usize = 8 * 1024;

/// `/v2/models/{name}/…` gives `name`, `/v2/pipelines/{name}/…` gives `name.pipeline`; anything else nothing.
///
/// Empty segments are skipped, as the listener merges slashes. The name is percent-decoded once; a broken escape, or a
/// name that is no name after it, gives nothing.
pub fn model_name_in_path(path: &[u8]) -> Option<String> {
    let path = path.split(|b| matches!(b, b'?' | b'#')).next()?;
    if path.len() > MAX_PATH || path.first() != Some(&b'/') {
        return None;
    }
    let mut segments = path.split(|b| *b == b'/').filter(|s| !s.is_empty());
    if segments.next()? != b"v2" {
        return None;
    }
    let suffix = match segments.next()? {
        b"models" => "",
        b"pipelines" => ".pipeline",
        _ => return None,
    };
    let mut name = percent_decoded(segments.next()?)?;
    if !is_name(&name) {
        return None;
    }
    name.push_str(suffix);
    is_name(&name).then_some(name)
}

/// Whether a derived name may go into headers and scope keys: visible, no slash, no space around it, not too long.
pub(crate) fn is_name(name: &str) -> bool {
    is_header_value(name) && !name.contains('/') && !matches!(name, "." | "..")
}

/// Whether Envoy takes this as a header's value and hands it on unchanged.
pub(crate) fn is_header_value(value: &str) -> bool {
    if value.is_empty() || value.len() > MAX_NAME {
        return false;
    }
    // Nearly all: no need to decode characters.
    value.bytes().all(|b| b.is_ascii_graphic())
        || (value.trim() == value && !value.chars().any(char::is_control))
}

fn percent_decoded(segment: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(segment.len().min(MAX_NAME));
    let mut bytes = segment.iter().copied();
    while let Some(byte) = bytes.next() {
        if decoded.len() > MAX_NAME {
            return None;
        }
        decoded.push(match byte {
            b'%' => (hex(bytes.next()?)? << 4) | hex(bytes.next()?)?,
            plain => plain,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
#[path = "name_tests.rs"]
mod tests;
