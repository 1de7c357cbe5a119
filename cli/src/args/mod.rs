//! The command line: what can be said.
mod flags;
mod groups;

use clap::{CommandFactory as _, Parser, Subcommand};
pub(crate) use flags::{Control, Display, Host, InferFlags, InferenceMode, Target};
pub(crate) use groups::{
    ConfigCommand, Each, EachStatus, ExperimentCommand, ExplainCommand, Infer, Inspect,
    InspectFormat, Introspection, Metadata, ModelCommand, PipelineCommand, ServerCommand,
    StateWait, XdsCommand,
};

/// Loads models, pipelines and experiments, asks them, and tells how they are
#[derive(Debug, Parser)]
#[command(
    name = "seldon",
    version,
    propagate_version = false,
    max_term_width = 110
)]
pub(crate) struct Root {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Load, unload, list, inspect and ask models
    Model {
        #[command(subcommand)]
        command: ModelCommand,
    },
    /// Show servers and what they hold
    Server {
        #[command(subcommand)]
        command: ServerCommand,
    },
    /// Load, unload, list and ask pipelines
    Pipeline {
        #[command(subcommand)]
        command: PipelineCommand,
    },
    /// Start, stop and list experiments
    Experiment {
        #[command(subcommand)]
        command: ExperimentCommand,
    },
    /// Load every resource of a file
    Load(Each),
    /// Unload every resource of a file
    Unload(Each),
    /// Show the status of every resource of a file
    Status(EachStatus),
    /// Keep addresses and certificates of several installations
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Show what each Envoy has been told
    Xds {
        #[command(subcommand)]
        command: XdsCommand,
    },
    /// Tell why something is as it is
    Explain {
        #[command(subcommand)]
        command: ExplainCommand,
    },
    /// Run the whole system on this machine
    Local(seldon_local::cli::Args),
    /// Print completions for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The command with switches that also take a value: `--verbose`, `--verbose=false`.
pub(crate) fn command() -> clap::Command {
    with_values(Root::command())
}

fn with_values(command: clap::Command) -> clap::Command {
    command
        .mut_args(flags::switch_with_value)
        .mut_subcommands(|inner| {
            if inner.get_name() == "local" {
                inner
            } else {
                with_values(inner)
            }
        })
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;

    fn parse(line: &str) -> Result<Root, clap::Error> {
        let words = std::iter::once("seldon").chain(line.split(' '));
        command()
            .try_get_matches_from(words)
            .and_then(|matches| Root::from_arg_matches(&matches))
    }

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn documented_lines_are_understood() {
        for line in [
            "model load -f ./models/tfsimple1.yaml",
            "model load --file-path=x.yaml --force --scheduler-host h:1 -v",
            "model status tfsimple1 -w ModelAvailable",
            "model status tfsimple1 -w ModelAvailable -t 60",
            "model unload iris",
            "model unload -f x.yaml",
            "model list --verbose=false",
            "model infer iris -i 50 {}",
            "model infer --inference-host 1.2.3.4:80 -i 10 iris {}",
            "model infer iris --inference-mode grpc -s -i 50 {}",
            "model infer iris -s=true -r -o=false --header a=b --header c=d -t 5 {}",
            "model infer iris --show-headers --show-response=false -f data.json",
            "model metadata tfsimple1 --inference-host h:1",
            "server status mlserver -o=false -r",
            "server list",
            "experiment status experiment-sample -w -o table",
            "explain route iris -H x-user=a --header x-seldon-route=:iris_1: -o json",
            "pipeline infer tfsimple --header x-request-id=test-id {}",
            "pipeline status tfsimple -w PipelineReady",
            "experiment status e -w",
            "experiment status e -w=false",
            "experiment start -f x",
            "experiment stop e",
            "load -f x.yaml",
            "status -f x.yaml -w -t 30",
            "config add a /b",
            "config list",
            "xds status -o json",
            "explain model iris",
            "completion bash",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_is_incomplete_or_unknown_is_refused() {
        for line in [
            "model",
            "model load",
            "model infer",
            "model status",
            "config",
            "model infer iris {} --inference-mode soap",
            "model list --verbose=perhaps",
            "experiment start",
            "config add a",
            "nothing",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn switches_take_values_as_go_reads_them() {
        for (line, shown, sticky) in [
            ("model infer iris {}", true, false),
            ("model infer iris {} -o=F -s", false, true),
            (
                "model infer iris {} --show-response=0 --sticky-session=TRUE",
                false,
                true,
            ),
            ("model infer iris {} --show-response", true, false),
        ] {
            match parse(line).map(|root| root.command) {
                Ok(Command::Model {
                    command: ModelCommand::Infer(infer),
                }) => {
                    assert_eq!(
                        (infer.flags.show_response, infer.flags.sticky_session),
                        (shown, sticky),
                        "{line}"
                    );
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn help_stays_as_it_is() {
        let mut text = String::new();
        for path in [
            &[][..],
            &["model"],
            &["model", "load"],
            &["model", "status"],
            &["model", "infer"],
        ] {
            let words = std::iter::once("seldon")
                .chain(path.iter().copied())
                .chain(["--help"]);
            let help = command()
                .term_width(100)
                .try_get_matches_from(words)
                .expect_err("help is told as an error");
            text.push_str(&help.to_string());
            text.push_str("\n----\n");
        }
        insta::assert_snapshot!(text);
    }
}
