//! Programs that a user would run, run to their end.
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// What a program printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Done {
    /// The command, for messages.
    pub line: String,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// No command of these tests takes so long.
const LIMIT: Duration = Duration::from_secs(60);

impl Done {
    /// Runs a command to its end; killed after a minute.
    pub(crate) async fn run(line: String, command: Command) -> Result<Self> {
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, command.output())
            .await
            .with_context(|| format!("`{line}` does not end"))?
            .with_context(|| format!("cannot start `{line}`"))?;
        let Output {
            status,
            stdout,
            stderr,
        } = output;
        Ok(Self {
            line,
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// Returns what it printed, if it succeeded.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!(
                "`{}` ended with {}: {}{}",
                self.line,
                self.code,
                self.stdout,
                self.stderr
            );
        }
        Ok(self.stdout)
    }

    /// Returns what it said of its failure, if it failed with the CLI's exit code.
    pub fn refused(self) -> Result<String> {
        if self.code != 255 {
            bail!(
                "`{}` should have ended with 255, not {}: {}{}",
                self.line,
                self.code,
                self.stdout,
                self.stderr
            );
        }
        Ok(self.stderr)
    }
}
