//! Documented commands with their documented output, as files.
//!
//! ```text
//! @ samples                          the folder where the following commands run
//! # 7000-7020 same                   the lines of the documentation, and how the output is compared
//! $ curl … \
//!   -d '…'
//! {"model_name": "iris_1", …}
//! ```
//!
//! A command goes on in indented lines.
//!
//! `same`, `subset`, `outputs`: as [`Rule`]; `text`: equal but for white space at the ends of lines; `lines`: each line
//! occurs, in this order; `empty`: nothing is printed; `any`: the command succeeds.
use anyhow::{Context, Result, bail, ensure};

use crate::json::{Rule, differences};
use crate::running::Running;

/// A file of commands and their output.
#[derive(Debug, Default)]
pub struct Transcript {
    steps: Vec<Step>,
}

#[derive(Debug, Default)]
struct Step {
    folder: String,
    /// Lines of the documentation.
    source: String,
    compare: String,
    command: String,
    expected: String,
}

impl Transcript {
    /// Reads a transcript.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut folder, mut heading) = (".".to_owned(), (String::new(), String::new()));
        let mut steps: Vec<Step> = Vec::new();
        let mut in_command = false;
        for line in text.lines() {
            if let Some(path) = line.strip_prefix("@ ") {
                path.clone_into(&mut folder);
            } else if let Some(text) = line.strip_prefix("# ") {
                let (source, compare) = text.rsplit_once(' ').context("no way to compare")?;
                heading = (source.to_owned(), compare.to_owned());
            } else if let Some(command) = line.strip_prefix("$ ") {
                in_command = true;
                steps.push(Step {
                    folder: folder.clone(),
                    source: heading.0.clone(),
                    compare: heading.1.clone(),
                    command: command.to_owned(),
                    expected: String::new(),
                });
            } else if let Some(step) = steps.last_mut() {
                // Right after a command, an indented line goes on with it.
                in_command = in_command && line.starts_with(char::is_whitespace);
                if in_command {
                    step.command.push('\n');
                    step.command.push_str(line);
                } else {
                    step.expected.push_str(line);
                    step.expected.push('\n');
                }
            }
        }
        ensure!(!steps.is_empty(), "no command in it");
        Ok(Self { steps })
    }

    /// Runs every command in order; stops at the first that prints something else.
    pub fn play(&self, running: &Running) -> Result<()> {
        for step in &self.steps {
            step.play(running)
                .with_context(|| format!("documentation, {}: $ {}", step.source, step.command))?;
        }
        Ok(())
    }
}

impl Step {
    fn play(&self, running: &Running) -> Result<()> {
        let done = running.shell(&self.folder, &self.command)?;
        let stderr = done.stderr.clone();
        let printed = done.ok()?;
        self.check(&printed)
            .with_context(|| format!("printed:\n{printed}{stderr}"))
    }

    fn check(&self, printed: &str) -> Result<()> {
        let rule = match self.compare.as_str() {
            "same" => Rule::Same,
            "subset" => Rule::Subset,
            "outputs" => Rule::Outputs,
            "any" => return Ok(()),
            "empty" => {
                ensure!(printed.is_empty(), "nothing should be printed");
                return Ok(());
            }
            "text" => {
                ensure!(
                    trimmed(printed) == trimmed(&self.expected),
                    "expected:\n{}",
                    self.expected
                );
                return Ok(());
            }
            "lines" => return in_order(&self.expected, printed),
            other => bail!("unknown comparison {other}"),
        };
        let expected = serde_json::from_str(&self.expected).context("the expected JSON")?;
        let actual = serde_json::from_str(printed).context("no JSON was printed")?;
        let found = differences(rule, &expected, &actual);
        ensure!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    }
}

fn trimmed(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let end = lines
        .iter()
        .rposition(|line| !line.is_empty())
        .map_or(0, |last| last + 1);
    lines[..end].to_vec()
}

fn in_order(expected: &str, printed: &str) -> Result<()> {
    let mut rest = printed;
    for line in expected
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let at = rest
            .find(line)
            .with_context(|| format!("{line:?} is not there, or not in its place"))?;
        rest = &rest[at + line.len()..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_go_on_in_indented_lines() {
        let text = "@ samples\n# 1-2 same\n$ curl x \\\n  -d y\n{\n}\n# 3 empty\n$ seldon model unload iris\n";
        let transcript = Transcript::parse(text).unwrap();
        let [first, second] = transcript.steps.as_slice() else {
            panic!("two commands")
        };
        assert_eq!(first.command, "curl x \\\n  -d y");
        assert_eq!(
            (first.expected.as_str(), first.folder.as_str()),
            ("{\n}\n", "samples")
        );
        assert!(first.check("{ }").is_ok() && first.check("{\"a\": 1}").is_err());
        assert!(second.check("").is_ok() && second.check("{}").is_err());
        assert!(in_order("a\nb", "xax\nxb").is_ok() && in_order("b\na", "a b").is_err());
    }
}
