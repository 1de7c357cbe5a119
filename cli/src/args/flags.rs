//! Flags that several commands share.
use std::path::PathBuf;

use clap::{Arg, ArgAction, Args, ValueEnum};

use crate::output::Format;

/// Where the scheduler is and how to speak with it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Host {
    /// Address of the scheduler [env: SELDON_SCHEDULE_HOST] [default: 0.0.0.0:9004]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) scheduler_host: Option<String>,
    /// Name to put into :authority or Host
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) authority: String,
}

/// Flags of every command to the scheduler.
#[derive(Debug, Clone, Args)]
pub(crate) struct Control {
    #[command(flatten)]
    pub(crate) host: Host,
    /// Print requests and answers
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

/// How an answer is written.
#[derive(Debug, Clone, Args)]
pub(crate) struct Display {
    /// Form of the answer
    #[arg(long, short, value_name = "FORM")]
    pub(crate) output: Option<Format>,
}

/// What a change is read from, or which object it names.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Target {
    /// Name of the resource
    pub(crate) name: Option<String>,
    /// Manifest file; `-` reads standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file_path: Option<PathBuf>,
}

/// Accepted so that documented command lines run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Force {
    /// Accepted, without effect: commands always act
    #[arg(long)]
    #[allow(dead_code)]
    pub(crate) force: bool,
}

/// How long to wait.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wait {
    /// Seconds to wait at most
    #[arg(long, short, value_name = "SECONDS", default_value_t = 5)]
    pub(crate) timeout_secs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum InferenceMode {
    Rest,
    Grpc,
}

/// Flags of an inference.
#[derive(Debug, Clone, Args)]
pub(crate) struct InferFlags {
    /// File with the request
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file_path: Option<PathBuf>,
    /// Address of Envoy's data port, or a whole URL [env: SELDON_INFER_HOST] [default: 0.0.0.0:9000]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) inference_host: Option<String>,
    /// Protocol to ask by
    #[arg(long, value_enum, value_name = "MODE", default_value = "rest")]
    pub(crate) inference_mode: InferenceMode,
    /// Name to put into :authority or Host
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) authority: String,
    /// Header of the request
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) header: Vec<String>,
    /// Requests to send
    #[arg(long, short, value_name = "N", default_value_t = 1)]
    pub(crate) iterations: u64,
    /// Sends requests for so long
    #[arg(long, short = 't', value_name = "SECONDS", default_value_t = 0)]
    pub(crate) seconds: u64,
    /// Print headers of request and answer
    #[arg(long)]
    pub(crate) show_headers: bool,
    /// Print the request
    #[arg(long, short = 'r')]
    pub(crate) show_request: bool,
    /// Print the answer
    #[arg(long, short = 'o', default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = go_bool, value_name = "BOOL")]
    pub(crate) show_response: bool,
    /// Go where the last answer came from
    #[arg(long, short)]
    pub(crate) sticky_session: bool,
}

/// Lets a switch be written with a value as well.
pub(crate) fn switch_with_value(arg: Arg) -> Arg {
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        return arg;
    }
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .default_value("false")
        .hide_default_value(true)
        .hide_possible_values(true)
        .value_name("BOOL")
        .value_parser(go_bool)
}

/// The spellings that Go's flags accept.
pub(crate) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}
