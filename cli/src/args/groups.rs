//! The commands of each group.
use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use super::flags::{Control, Display, Force, Host, InferFlags, Target, Wait, go_bool};
use crate::output::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Load the models of a file
    Load(FileOnly),
    /// Unload a model
    Unload(NameOrFile),
    /// Show the status of a model, or wait for it
    Status(StateWait),
    /// List models
    List(List),
    /// Ask a model
    Infer(Infer),
    /// Show what a model takes and gives
    Metadata(Metadata),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PipelineCommand {
    /// Load the pipelines of a file
    Load(FileOnly),
    /// Unload a pipeline
    Unload(NameOrFile),
    /// Show the status of a pipeline, or wait for it
    Status(StateWait),
    /// List pipelines
    List(List),
    /// Ask a pipeline
    Infer(Infer),
    /// Show the last records of a pipeline's steps, as they are in Kafka
    Inspect(Inspect),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExperimentCommand {
    /// Start the experiments of a file
    Start(FileOnly),
    /// Stop an experiment
    Stop(NameOrFile),
    /// Show the status of an experiment, or wait until it is active
    Status(ExperimentStatus),
    /// List experiments
    List(List),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Show the status of a server
    Status(ServerStatus),
    /// List servers
    List(List),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Give a configuration file a name
    Add {
        /// Name to give
        key: String,
        /// The file
        path: PathBuf,
    },
    /// Use a configuration
    Activate {
        /// Its name
        key: String,
    },
    /// Use no configuration
    Deactivate {
        /// Its name
        key: String,
    },
    /// Forget a configuration; its file stays
    Remove {
        /// Its name
        key: String,
    },
    /// List configurations
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum XdsCommand {
    /// Show each Envoy: connected, acknowledged, waiting, refused and why
    Status(Introspection),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExplainCommand {
    /// Tell why a model is, or is not, served where it is
    Model {
        /// Name of the model
        name: String,
        #[command(flatten)]
        common: Introspection,
    },
    /// Tell why a pipeline is, or is not, ready: its steps, who works for it, and what it waits for
    Pipeline {
        /// Name of the pipeline
        name: String,
        #[command(flatten)]
        common: Introspection,
    },
    /// Tell where a request would go: who may answer, with what chance, and by which rule
    Route {
        /// What the request would put into seldon-model: a model, `<pipeline>.pipeline` or `<experiment>.experiment`
        name: String,
        /// Header of the request, `name=value` or `name: value`; may be repeated
        #[arg(long, short = 'H', value_name = "NAME=VALUE")]
        header: Vec<String>,
        #[command(flatten)]
        common: Introspection,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Introspection {
    #[command(flatten)]
    pub(crate) host: Host,
    #[command(flatten)]
    pub(crate) display: Display,
}

#[derive(Debug, Args)]
pub(crate) struct FileOnly {
    /// Manifest file; `-` reads standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file_path: PathBuf,
    #[command(flatten)]
    pub(crate) control: Control,
    #[command(flatten)]
    pub(crate) force: Force,
}

#[derive(Debug, Args)]
pub(crate) struct NameOrFile {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) control: Control,
    #[command(flatten)]
    pub(crate) force: Force,
}

#[derive(Debug, Args)]
pub(crate) struct StateWait {
    /// Name of the resource
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) control: Control,
    #[command(flatten)]
    pub(crate) display: Display,
    #[command(flatten)]
    pub(crate) wait: Wait,
    /// State to wait for, such as ModelAvailable or PipelineReady
    #[arg(
        long = "wait",
        short = 'w',
        value_name = "STATE",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) state: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExperimentStatus {
    /// Name of the experiment
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) control: Control,
    #[command(flatten)]
    pub(crate) display: Display,
    #[command(flatten)]
    pub(crate) wait: Wait,
    /// Wait until the experiment is active
    #[arg(long = "wait", short = 'w')]
    pub(crate) active: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ServerStatus {
    /// Name of the server
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) host: Host,
    /// Print the request
    #[arg(long, short = 'r', alias = "verbose", short_alias = 'v')]
    pub(crate) show_request: bool,
    /// Print the whole answer; false: one line of figures
    #[arg(long, short = 'o', default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = go_bool, value_name = "BOOL")]
    pub(crate) show_response: bool,
    /// Form of the answer
    #[arg(long, value_name = "FORM")]
    pub(crate) output: Option<Format>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) control: Control,
    #[command(flatten)]
    pub(crate) display: Display,
}

#[derive(Debug, Args)]
pub(crate) struct Infer {
    /// Name of the resource
    #[arg(required = true)]
    pub(crate) name: String,
    /// The request: JSON of the inference protocol, for gRPC protobuf's JSON form or the same
    pub(crate) data: Option<String>,
    #[command(flatten)]
    pub(crate) flags: InferFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InspectFormat {
    /// A line a record: topic, key and value
    Raw,
    /// One line of JSON
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// `<pipeline>`, `<pipeline>.inputs`, `<pipeline>.<step>`, `<pipeline>.<step>.outputs` or
    /// `<pipeline>.<step>.outputs.<tensor>`
    pub(crate) expression: String,
    #[command(flatten)]
    pub(crate) control: Control,
    /// Address of a Kafka broker [env: SELDON_KAFKA_BROKER] [default: 0.0.0.0:9092]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) kafka_broker: Option<String>,
    /// Settings of Kafka, in place of --kafka-broker [env: SELDON_KAFKA_CONFIG_PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) kafka_config_path: Option<PathBuf>,
    /// Namespace in the names of topics [env: POD_NAMESPACE] [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Records to show of each partition, or to look through for --request-id, from the newest back
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) offset: i64,
    /// Only records of this request
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub(crate) request_id: String,
    /// Form of the answer
    #[arg(long, value_enum, value_name = "FORM", default_value = "raw")]
    pub(crate) format: InspectFormat,
    /// Cut long values
    #[arg(long, short)]
    pub(crate) truncate: bool,
    /// Seconds to wait at most
    #[arg(long, short = 'd', value_name = "SECONDS", default_value_t = 5)]
    pub(crate) timeout_secs: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Metadata {
    /// Name of the model
    pub(crate) name: String,
    /// Address of Envoy's data port, or a whole URL [env: SELDON_INFER_HOST] [default: 0.0.0.0:9000]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) inference_host: Option<String>,
    /// Name to put into Host
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) authority: String,
}

#[derive(Debug, Args)]
pub(crate) struct Each {
    /// File with manifests of models, pipelines and experiments; `-` reads standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file_path: PathBuf,
    #[command(flatten)]
    pub(crate) control: Control,
    #[command(flatten)]
    pub(crate) force: Force,
}

#[derive(Debug, Args)]
pub(crate) struct EachStatus {
    /// File with manifests of models, pipelines and experiments; `-` reads standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file_path: PathBuf,
    #[command(flatten)]
    pub(crate) control: Control,
    #[command(flatten)]
    pub(crate) display: Display,
    #[command(flatten)]
    pub(crate) timeout: Wait,
    /// Wait until each is available, ready or active
    #[arg(long, short)]
    pub(crate) wait: bool,
}
