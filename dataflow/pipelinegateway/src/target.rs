//! What a request is addressed to.
use http::HeaderMap;

use crate::headers;

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A pipeline of this gateway.
    Pipeline(String),
    /// A model, asked through its topics without any pipeline.
    Model(String),
}

/// Why nobody does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unnamed {
    /// Neither a header nor anything else names anyone.
    #[error("no pipeline is named: send the header seldon-model: <pipeline>.pipeline")]
    Missing,
    /// A suffix that is not known.
    #[error("{0:?} names neither a pipeline nor a model: use <name>.pipeline or <name>.model")]
    Suffix(String),
}

impl Target {
    /// `a.pipeline` is a pipeline, `a.model` and `a` are a model.
    pub fn parse(name: &str) -> Result<Self, Unnamed> {
        match name.rsplit_once('.') {
            _ if name.is_empty() => Err(Unnamed::Missing),
            None => Ok(Self::Model(name.to_owned())),
            Some((stem, "pipeline")) if !stem.is_empty() => Ok(Self::Pipeline(stem.to_owned())),
            Some((stem, "model")) if !stem.is_empty() => Ok(Self::Model(stem.to_owned())),
            Some(_) => Err(Unnamed::Suffix(name.to_owned())),
        }
    }

    /// The last `seldon-internal-model`, which Envoy adds, else `seldon-model`; `None` where neither is there.
    pub fn of_headers(fields: &HeaderMap) -> Result<Option<Self>, Unnamed> {
        let internal = fields.get_all(&headers::INTERNAL_MODEL).iter().next_back();
        let Some(value) = internal.or_else(|| fields.get(&headers::MODEL)) else {
            return Ok(None);
        };
        let name = String::from_utf8_lossy(value.as_bytes());
        Self::parse(&name).map(Some)
    }

    /// The name without its kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Pipeline(name) | Self::Model(name) => name,
        }
    }

    /// For messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Pipeline(name) => format!("pipeline {name}"),
            Self::Model(name) => format!("model {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_say_the_kind() {
        let pipeline = |name: &str| Ok(Target::Pipeline(name.to_owned()));
        let model = |name: &str| Ok(Target::Model(name.to_owned()));
        assert_eq!(Target::parse("a.pipeline"), pipeline("a"));
        assert_eq!(Target::parse("a.b.pipeline"), pipeline("a.b"));
        assert_eq!(Target::parse("a.model"), model("a"));
        assert_eq!(Target::parse("a"), model("a"));
        assert_eq!(Target::parse(""), Err(Unnamed::Missing));
        for wrong in ["a.experiment", ".pipeline", "a."] {
            assert_eq!(Target::parse(wrong), Err(Unnamed::Suffix(wrong.to_owned())));
        }
    }

    #[test]
    fn the_last_internal_name_beats_the_others() {
        let mut fields = HeaderMap::new();
        assert_eq!(Target::of_headers(&fields), Ok(None));
        fields.insert("seldon-model", "e.experiment".parse().unwrap());
        assert!(Target::of_headers(&fields).is_err());
        fields.append("seldon-internal-model", "a.pipeline".parse().unwrap());
        fields.append("seldon-internal-model", "b.pipeline".parse().unwrap());
        let wanted = Target::Pipeline("b".to_owned());
        assert_eq!(Target::of_headers(&fields), Ok(Some(wanted)));
    }
}
