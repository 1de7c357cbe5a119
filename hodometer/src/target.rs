//! Addresses to publish to.
use std::{fmt, str::FromStr};

use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};

/// Where MixPanel takes events; receivers follow it.
const PATH: &str = "/track";

/// One address. It is shown without its query, which may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    uri: Uri,
    encrypted: bool,
}

impl Target {
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn encrypted(&self) -> bool {
        self.encrypted
    }

    pub(crate) fn authority(&self) -> &str {
        self.uri.authority().map_or("", Authority::as_str)
    }

    /// The path with the query, as it is asked for.
    pub(crate) fn path(&self) -> &str {
        self.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        write!(f, "{scheme}://{}{}", self.authority(), self.uri.path())
    }
}

/// Why a text is no address to publish to. It is not repeated: it may hold a secret.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unusable(&'static str);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unusable {}

impl FromStr for Target {
    type Err = Unusable;

    /// A bare address means the path at which MixPanel takes events.
    fn from_str(text: &str) -> Result<Self, Unusable> {
        const NONE: Unusable = Unusable("is no http:// or https:// address");
        let mut parts = text.parse::<Uri>().map_err(|_| NONE)?.into_parts();
        let encrypted = match &parts.scheme {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(NONE),
        };
        match &parts.authority {
            Some(authority) if authority.as_str().contains('@') => {
                return Err(Unusable("holds a user: leave that out"));
            }
            Some(authority) if !authority.host().is_empty() => {}
            _ => return Err(NONE),
        }
        let given = parts.path_and_query.take();
        let query = given.as_ref().and_then(PathAndQuery::query);
        let path = match given.as_ref().map_or("/", PathAndQuery::path) {
            "/" => PATH,
            path => path,
        };
        let whole = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        parts.path_and_query = Some(whole.parse().map_err(|_| NONE)?);
        let uri = Uri::from_parts(parts).map_err(|_| NONE)?;
        Ok(Self { uri, encrypted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> (String, String) {
        let target: Target = text.parse().unwrap();
        (target.to_string(), target.uri().to_string())
    }

    #[test]
    fn a_bare_address_means_the_path_of_mixpanel() {
        for text in ["http://here:8000", "http://here:8000/"] {
            assert_eq!(shown(text).1, "http://here:8000/track");
        }
        assert_eq!(shown("https://here/own").1, "https://here/own");
        assert!("https://here".parse::<Target>().unwrap().encrypted());
        assert!(!"http://here".parse::<Target>().unwrap().encrypted());
    }

    #[test]
    fn a_query_is_sent_and_not_shown() {
        let (told, sent) = shown("https://here?key=secret");
        assert_eq!(sent, "https://here/track?key=secret");
        assert_eq!(told, "https://here/track");
    }

    #[test]
    fn other_texts_are_refused_without_being_repeated() {
        for text in [
            "here:8000",
            "ftp://here",
            "/track",
            "http://",
            "",
            "http://a b",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
        let refused = "http://me:secret@here".parse::<Target>().unwrap_err();
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
}
