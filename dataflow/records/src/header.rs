//! Names of record headers.

/// The pipeline a record belongs to, documented.
pub const PIPELINE: &str = "pipeline";
/// The version of that pipeline, documented.
pub const PIPELINE_VERSION: &str = "x-pipeline-version";
/// What the caller calls its request, documented; also the record's key.
pub const REQUEST_ID: &str = "x-request-id";
/// Routes taken inside experiments, documented; grows with each step.
pub const ROUTE: &str = "x-seldon-route";
/// Marks an error, documented: the step (or the pipeline) that failed.
pub const ERROR: &str = "seldon-pipeline-errors";
/// How the value is encoded, documented and optional.
pub const INFER_TYPE: &str = "seldon-infer-type";
/// Documented headers that end with the pipeline's first step.
pub const NOT_PASSED_ON: [&str; 2] = ["x-seldon-alibi-type", "x-seldon-alibi-method"];

/// Ours: unique to one request's way through one pipeline, made where it enters.
pub const ID: &str = "seldon-id";
/// Ours: how often steps of a cyclic pipeline were reached, see [`crate::Visits`].
pub const VISITS: &str = "seldon-visits";
/// Ours: present on what may have been written before, by a process that died.
pub const REPEAT: &str = "seldon-repeat";
/// Ours: when nobody waits for the answer any more, in milliseconds since 1970.
pub const DEADLINE: &str = "seldon-deadline";
/// Ours: the HTTP status of an error record.
pub const STATUS: &str = "seldon-status";
/// Ours: the gRPC status code of an error record.
pub const GRPC_STATUS: &str = "seldon-grpc-status";
/// Ours: the members of a batch.
pub const BATCH: &str = "seldon-batch";
