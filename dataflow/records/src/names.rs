//! Names of topics and consumer groups, as documented.

/// How topics and groups are called in one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    prefix: String,
    namespace: String,
    group_prefix: String,
}

/// A prefix that Kafka would not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "topicPrefix {0:?} is not valid: use letters, digits, '.', '_' and '-', at least one of them"
)]
pub struct PrefixError(pub String);

/// What a topic holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Requests to a model.
    ModelInputs(String),
    /// Answers of a model.
    ModelOutputs(String),
    /// Requests to a pipeline.
    PipelineInputs(String),
    /// Answers of a pipeline.
    PipelineOutputs(String),
    /// Failures of all steps.
    Errors,
}

impl Topic {
    /// The model or pipeline whose topic it is.
    pub fn owner(&self) -> Option<&str> {
        match self {
            Self::ModelInputs(name)
            | Self::ModelOutputs(name)
            | Self::PipelineInputs(name)
            | Self::PipelineOutputs(name) => Some(name),
            Self::Errors => None,
        }
    }
}

impl Names {
    /// `prefix` and `group_prefix` as in `kafka.json` (`None`: the default), `namespace` may be empty.
    pub fn new(
        prefix: Option<&str>,
        namespace: &str,
        group_prefix: Option<&str>,
    ) -> Result<Self, PrefixError> {
        let prefix = prefix
            .filter(|prefix| !prefix.is_empty())
            .unwrap_or("seldon");
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !prefix.bytes().all(legal) {
            return Err(PrefixError(prefix.to_owned()));
        }
        let namespace = if namespace.is_empty() {
            "default"
        } else {
            namespace
        };
        Ok(Self {
            prefix: prefix.to_owned(),
            namespace: namespace.to_owned(),
            group_prefix: group_prefix.unwrap_or_default().to_owned(),
        })
    }

    /// The namespace, `default` where none was given.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The topic's name.
    pub fn topic(&self, topic: &Topic) -> String {
        let Self {
            prefix, namespace, ..
        } = self;
        match topic {
            Topic::ModelInputs(model) => format!("{prefix}.{namespace}.model.{model}.inputs"),
            Topic::ModelOutputs(model) => format!("{prefix}.{namespace}.model.{model}.outputs"),
            Topic::PipelineInputs(name) => format!("{prefix}.{namespace}.pipeline.{name}.inputs"),
            Topic::PipelineOutputs(name) => format!("{prefix}.{namespace}.pipeline.{name}.outputs"),
            Topic::Errors => format!("{prefix}.{namespace}.errors.errors"),
        }
    }

    /// Requests to a model.
    pub fn model_inputs(&self, model: &str) -> String {
        self.topic(&Topic::ModelInputs(model.to_owned()))
    }

    /// Answers of a model.
    pub fn model_outputs(&self, model: &str) -> String {
        self.topic(&Topic::ModelOutputs(model.to_owned()))
    }

    /// Requests to a pipeline.
    pub fn pipeline_inputs(&self, pipeline: &str) -> String {
        self.topic(&Topic::PipelineInputs(pipeline.to_owned()))
    }

    /// Answers of a pipeline.
    pub fn pipeline_outputs(&self, pipeline: &str) -> String {
        self.topic(&Topic::PipelineOutputs(pipeline.to_owned()))
    }

    /// Failures of all steps.
    pub fn errors(&self) -> String {
        self.topic(&Topic::Errors)
    }

    /// Ours: how far engines have come, one compacted topic.
    pub fn progress(&self) -> String {
        format!("{}.{}.dataflow.progress", self.prefix, self.namespace)
    }

    /// What a topic of this installation holds; `None` for any other.
    pub fn parse(&self, topic: &str) -> Option<Topic> {
        let rest = topic.strip_prefix(&self.prefix)?.strip_prefix('.')?;
        let rest = rest.strip_prefix(&self.namespace)?.strip_prefix('.')?;
        let (kind, rest) = rest.split_once('.')?;
        let (name, end) = rest.rsplit_once('.').unwrap_or(("", rest));
        match (kind, name, end) {
            ("errors", "", "errors") => Some(Topic::Errors),
            (_, "", _) => None,
            ("model", name, "inputs") => Some(Topic::ModelInputs(name.to_owned())),
            ("model", name, "outputs") => Some(Topic::ModelOutputs(name.to_owned())),
            ("pipeline", name, "inputs") => Some(Topic::PipelineInputs(name.to_owned())),
            ("pipeline", name, "outputs") => Some(Topic::PipelineOutputs(name.to_owned())),
            _ => None,
        }
    }

    /// The group that holds a model gateway's offsets for one of its buckets of models.
    pub fn model_gateway_group(&self, bucket: u32) -> String {
        self.group(&format!("seldon-modelgateway-{bucket}"))
    }

    /// A group's name: `[prefix-]namespace-name`.
    pub fn group(&self, name: &str) -> String {
        let Self {
            group_prefix,
            namespace,
            ..
        } = self;
        if group_prefix.is_empty() {
            format!("{namespace}-{name}")
        } else {
            format!("{group_prefix}-{namespace}-{name}")
        }
    }
}

/// FNV-1a of 32 bits.
pub fn fnv32a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// The bucket of a model or pipeline among `buckets` (0 counts as 1).
pub fn bucket(name: &str, buckets: u32) -> u32 {
    fnv32a(name) % buckets.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_buckets() {
        assert_eq!(bucket("tfsimple1", 100), 60);
        assert_eq!(bucket("tfsimple2", 100), 17);
    }

    #[test]
    fn topics_read_back() {
        let names = Names::new(Some("a.b"), "", None).expect("a valid prefix");
        for topic in [
            Topic::ModelInputs("iris".to_owned()),
            Topic::ModelOutputs("iris".to_owned()),
            Topic::PipelineInputs("p".to_owned()),
            Topic::PipelineOutputs("p".to_owned()),
            Topic::Errors,
        ] {
            assert_eq!(names.parse(&names.topic(&topic)), Some(topic));
        }
        for foreign in [
            "seldon.default.model.m.inputs",
            "a.b.default.model..inputs",
            "a.b.default.errors.m.errors",
            "a.b.default.model.m.other",
            "a.b.other.model.m.inputs",
        ] {
            assert_eq!(names.parse(foreign), None, "{foreign}");
        }
        assert!(Names::new(Some("a b"), "", None).is_err());
    }
}
