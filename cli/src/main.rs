//! The `seldon` command.
mod args;
mod config;
mod connect;
mod control;
mod errors;
mod infer;
mod manifests;
mod output;

use std::{
    ffi::OsString,
    future::Future,
    io::{self, Write as _},
    process,
};

use anyhow::Context as _;
use args::{Command, Root};
use clap::{CommandFactory as _, FromArgMatches as _, error::ErrorKind};

fn main() {
    process::exit(run(std::env::args_os().collect()));
}

/// Runs one command and gives the exit status: 0, or 255 for any error.
fn run(words: Vec<OsString>) -> i32 {
    let parsed = args::command()
        .try_get_matches_from(words)
        .and_then(|matches| Root::from_arg_matches(&matches));
    let root = match parsed {
        Ok(root) => root,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            // Nobody reads on when the pipe is closed.
            let _ = error.print();
            return 0;
        }
        Err(error) => {
            eprint!("{}", errors::usage(&error));
            return 255;
        }
    };
    match dispatch(root.command) {
        Ok(()) => 0,
        Err(error) if is_closed_pipe(&error) => 0,
        Err(error) => {
            eprintln!("Error: {}", errors::display(&error));
            255
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Config { command } => config::run(command),
        Command::Completion { shell } => {
            // It would panic where nobody reads on.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Root::command(), "seldon", &mut script);
            Ok(io::stdout().write_all(&script)?)
        }
        Command::Local(arguments) => block_on(seldon_local::cli::run(arguments)),
        Command::Model { command } => block_on(control::model::run(command)),
        Command::Server { command } => block_on(control::server::run(command)),
        Command::Pipeline { command } => block_on(control::pipeline::run(command)),
        Command::Experiment { command } => block_on(control::experiment::run(command)),
        Command::Load(arguments) => block_on(control::files::load(arguments)),
        Command::Unload(arguments) => block_on(control::files::unload(arguments)),
        Command::Status(arguments) => block_on(control::files::status(arguments)),
        Command::Xds { command } => block_on(control::xds::run(command)),
        Command::Explain { command } => block_on(control::explain::run(command)),
    }
}

/// One thread: a command waits for one answer at a time.
fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.context("cannot start")?;
    let result = runtime.block_on(command);
    // A name still being looked up does not hold the command back.
    runtime.shutdown_background();
    result
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
