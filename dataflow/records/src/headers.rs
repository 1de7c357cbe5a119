//! Headers of a record.
use std::borrow::Cow;

use bytes::Bytes;

use crate::header;

/// Headers in their order; a name may come several times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Name, Bytes)>);

/// Names that almost every record has are not allocated for each.
type Name = Cow<'static, str>;

/// Those.
const COMMON: [&str; 13] = [
    header::PIPELINE,
    header::PIPELINE_VERSION,
    header::REQUEST_ID,
    header::ROUTE,
    header::ID,
    header::VISITS,
    header::DEADLINE,
    header::REPEAT,
    header::BATCH,
    "x-forwarded-proto",
    "x-envoy-expected-rq-timeout-ms",
    "traceparent",
    "tracestate",
];

fn name(text: &str) -> Name {
    match COMMON.iter().find(|common| **common == text) {
        Some(common) => Cow::Borrowed(common),
        None => Cow::Owned(text.to_owned()),
    }
}

impl Headers {
    /// Without any.
    pub fn new() -> Self {
        Self::default()
    }

    /// The last value of a name.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        let mut from_last = self.0.iter().rev();
        from_last
            .find(|(found, _)| found == name)
            .map(|(_, value)| value)
    }

    /// The last value of a name, if it is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// Whether there is such a header.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Replaces all values of a name by one.
    pub fn set(&mut self, name: &str, value: impl Into<Bytes>) {
        self.remove(name);
        self.push(name, value);
    }

    /// Adds a value.
    pub fn push(&mut self, name: &str, value: impl Into<Bytes>) {
        self.0.push((self::name(name), value.into()));
    }

    /// Removes all values of a name.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(found, _)| found != name);
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: AsRef<str>, V: Into<Bytes>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter();
        Self(
            pairs
                .map(|(name, value)| (self::name(name.as_ref()), value.into()))
                .collect(),
        )
    }
}
