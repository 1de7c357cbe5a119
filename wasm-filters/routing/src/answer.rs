//! What an answer says of whoever gave it.

/// An answer that is over. What costs a host call is asked only where it matters.
pub trait Answer {
    /// Its `:status`; none where no answer began.
    fn status(&self) -> Option<Vec<u8>>;
    /// Its `grpc-status`, in trailers, or in headers where it has no messages.
    fn grpc_status(&self) -> Option<Vec<u8>>;
    /// Whether it says who gave it, by [`crate::header::ROUTE`].
    fn is_routed(&self) -> bool;
    /// Whether whoever gave it broke it off after its headers.
    fn is_cut(&self) -> bool;
}

/// Whether an answer tells of a fault or an overload of its candidate, not of its client.
pub fn is_failure(answer: &impl Answer, grpc: bool) -> bool {
    let number = |bytes: Vec<u8>| std::str::from_utf8(&bytes).ok()?.trim().parse::<u32>().ok();
    let Some(status) = answer.status().and_then(number) else {
        return true;
    };
    if status >= 500 || matches!(status, 408 | 429) {
        return true;
    }
    if status == 404 {
        // The candidate's scope was not there, if nobody says that it answered.
        return !answer.is_routed();
    }
    if !grpc {
        return answer.is_cut();
    }
    match answer.grpc_status().and_then(number) {
        // A gRPC call that is refused before it gets to a server may be answered without one, as 401.
        None => status == 200,
        // Unknown, deadline exceeded, resource exhausted, internal, unavailable, data loss.
        Some(2 | 4 | 8 | 13 | 14 | 15) => true,
        // Not found, and unimplemented, which is what Envoy makes of its own 404.
        Some(5 | 12) => !answer.is_routed(),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Given {
        status: Option<&'static str>,
        grpc: Option<String>,
        routed: bool,
        cut: bool,
    }
    impl Answer for Given {
        fn status(&self) -> Option<Vec<u8>> {
            self.status.map(Into::into)
        }
        fn grpc_status(&self) -> Option<Vec<u8>> {
            self.grpc.clone().map(Into::into)
        }
        fn is_routed(&self) -> bool {
            self.routed
        }
        fn is_cut(&self) -> bool {
            self.cut
        }
    }

    fn given(status: &'static str) -> Given {
        Given {
            status: Some(status),
            routed: true,
            ..Given::default()
        }
    }

    #[test]
    fn faults_and_overload_count_and_what_the_client_did_wrong_does_not() {
        let grpc = |code: u32| Given {
            grpc: Some(code.to_string()),
            ..given("200")
        };
        for status in ["500", "503", "599", "429", "408", "", "x"] {
            assert!(is_failure(&given(status), false), "{status}");
        }
        for status in ["200", "204", "302", "400", "404", "422"] {
            assert!(!is_failure(&given(status), false), "{status}");
        }
        for code in 0..=16 {
            let expected = [2, 4, 8, 13, 14, 15].contains(&code);
            assert_eq!(is_failure(&grpc(code), true), expected, "{code}");
            let unrouted = Given {
                routed: false,
                ..grpc(code)
            };
            let expected = expected || [5, 12].contains(&code);
            assert_eq!(is_failure(&unrouted, true), expected, "unrouted {code}");
        }
        // No answer, one without its end, one that is cut off.
        let none = Given::default();
        assert!(is_failure(&none, false) && is_failure(&none, true));
        assert!(is_failure(&given("200"), true) && !is_failure(&given("401"), true));
        let cut = Given {
            cut: true,
            ..given("200")
        };
        assert!(is_failure(&cut, false));
        // Nobody's answer.
        for grpc in [false, true] {
            let unrouted = Given {
                routed: false,
                ..given("404")
            };
            assert!(is_failure(&unrouted, grpc) && !is_failure(&given("404"), grpc));
        }
    }
}
