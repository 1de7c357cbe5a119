//! What an answer says of whoever gave it.

/// Whether an answer tells of a fault or an overload of its candidate, not of its client: its `:status`, and for
/// gRPC (`Some`) its `grpc-status`. An answer without them did not come to its end.
pub fn is_failure(status: Option<&[u8]>, grpc: Option<Option<&[u8]>>) -> bool {
    let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.trim().parse::<u32>().ok();
    let Some(status) = status.and_then(number) else {
        return true;
    };
    if status >= 500 || matches!(status, 408 | 429) {
        return true;
    }
    match grpc.map(|status| status.and_then(number)) {
        None => false,
        // A gRPC call that is refused before it gets to a server may be answered without one: 404, 401.
        Some(None) => status == 200,
        // Unknown, deadline exceeded, resource exhausted, internal, unavailable, data loss.
        Some(Some(code)) => matches!(code, 2 | 4 | 8 | 13 | 14 | 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_and_overload_count_and_what_the_client_did_wrong_does_not() {
        let rest = |status: &str| is_failure(Some(status.as_bytes()), None);
        let grpc = |code: &str| is_failure(Some(b"200"), Some(Some(code.as_bytes())));
        for status in ["500", "503", "599", "429", "408", "", "x"] {
            assert!(rest(status), "{status}");
        }
        for status in ["200", "204", "302", "400", "404", "422"] {
            assert!(!rest(status), "{status}");
        }
        for code in 0..=16 {
            let expected = [2, 4, 8, 13, 14, 15].contains(&code);
            assert_eq!(grpc(&code.to_string()), expected, "{code}");
        }
        assert!(is_failure(None, None) && is_failure(None, Some(Some(b"0"))));
        assert!(is_failure(Some(b"200"), Some(None)));
        assert!(!is_failure(Some(b"404"), Some(None)));
    }
}
