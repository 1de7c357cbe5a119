//! How a step waits for several inputs.
use schemars::JsonSchema;
use seldon_proto::scheduler::{pipeline_input, pipeline_output, pipeline_step};
use serde::{Deserialize, Serialize};

/// Waits for all inputs, for those that come within a window, or for the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum Join {
    #[default]
    Inner,
    Outer,
    Any,
}

macro_rules! into_proto {
    ($($target:ty),*) => {$(
        impl From<Join> for $target {
            fn from(join: Join) -> Self {
                match join {
                    Join::Inner => Self::Inner,
                    Join::Outer => Self::Outer,
                    Join::Any => Self::Any,
                }
            }
        }
    )*};
}
into_proto!(
    pipeline_step::JoinOp,
    pipeline_input::JoinOp,
    pipeline_output::JoinOp
);
