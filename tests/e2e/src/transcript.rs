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
//! occurs, in this order; `split`: answers counted by route, each about as often as any other; `records`: as
//! [`records`]; `empty`: nothing is printed; `quiet`: nothing or `{}`, which pages of different age show; `any`: the
//! command succeeds; `fails`: it does not, and says each line on either output, in this order. `soon:` before one of
//! them: the command is given again until it prints that.
use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use crate::inspected::records;
use crate::json::{Rule, differences};
use crate::running::Running;
use crate::wait::eventually;

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
        match self.compare.strip_prefix("soon:") {
            Some(compare) => eventually(30, || self.once(running, compare)),
            None => self.once(running, &self.compare),
        }
    }

    fn once(&self, running: &Running, compare: &str) -> Result<()> {
        let done = running.shell(&self.folder, &self.command)?;
        if compare == "fails" {
            let said = format!("{}{}", done.stdout, done.stderr);
            ensure!(
                done.code != 0,
                "it should have failed, and printed:\n{said}"
            );
            return in_order(&self.expected, &said).with_context(|| format!("printed:\n{said}"));
        }
        let stderr = done.stderr.clone();
        let printed = done.ok()?;
        self.check(compare, &printed)
            .with_context(|| format!("printed:\n{printed}{stderr}"))
    }

    fn check(&self, compare: &str, printed: &str) -> Result<()> {
        let rule = match compare {
            "same" => Rule::Same,
            "subset" => Rule::Subset,
            "outputs" => Rule::Outputs,
            "any" => return Ok(()),
            "empty" => {
                ensure!(printed.is_empty(), "nothing should be printed");
                return Ok(());
            }
            "quiet" => {
                let nothing = ["", "{}"].contains(&printed.trim());
                ensure!(nothing, "nothing or {{}} should be printed");
                return Ok(());
            }
            "split" => return split(&self.expected, printed),
            "text" => {
                ensure!(
                    trimmed(printed) == trimmed(&self.expected),
                    "expected:\n{}",
                    self.expected
                );
                return Ok(());
            }
            "lines" => return in_order(&self.expected, printed),
            "records" => return records(&self.expected, printed),
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

/// Compares `Success: map[:iris_1::48 :iris2_1::52]`: the same routes and sum, and an even share of it for each.
fn split(expected: &str, printed: &str) -> Result<()> {
    let (wanted, given) = (counts(expected)?, counts(printed)?);
    let sum: u32 = wanted.values().sum();
    ensure!(
        wanted.keys().eq(given.keys()) && given.values().sum::<u32>() == sum,
        "documented is {expected}"
    );
    let share = 1.0 / wanted.len() as f64;
    let mean = f64::from(sum) * share;
    // Of the binomial distribution: exceeded once in a thousand million times.
    let bound = 6.1 * (mean * (1.0 - share)).sqrt();
    let far = |count: &u32| (f64::from(*count) - mean).abs() > bound;
    ensure!(!given.values().any(far), "not even, within {bound:.0}");
    Ok(())
}

fn counts(text: &str) -> Result<BTreeMap<String, u32>> {
    let inner = text.trim().strip_prefix("Success: map[");
    let inner = inner.and_then(|rest| rest.strip_suffix(']'));
    let inner = inner.with_context(|| format!("no map of successes: {text}"))?;
    let pair = |pair: &str| {
        let (route, count) = pair.rsplit_once(':').context("no count")?;
        Ok((route.to_owned(), count.parse()?))
    };
    inner.split_whitespace().map(pair).collect()
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
    fn a_split_is_even_and_complete() {
        let documented = "Success: map[:iris2_1::57 :iris_1::43]\n";
        assert!(split(documented, "Success: map[:iris2_1::40 :iris_1::60]\n").is_ok());
        for other in [
            "Success: map[:iris_1::100]",
            "Success: map[:iris2_1::10 :iris_1::90]",
            "Success: map[:iris2_1::50 :iris_1::51]",
            "Success: map[:iris2_1::50 :iris3_1::50]",
            "Success: map[:iris2_1::50 :iris_1::50]\nErrors: map[:iris_1::map[503:2]]",
        ] {
            assert!(split(documented, other).is_err(), "{other}");
        }
    }

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
        assert!(first.check("same", "{ }").is_ok() && first.check("same", "{\"a\": 1}").is_err());
        assert!(second.check("empty", "").is_ok() && second.check("empty", "{}").is_err());
        assert!(second.check("quiet", "{}\n").is_ok() && second.check("quiet", "ok").is_err());
        assert!(in_order("a\nb", "xax\nxb").is_ok() && in_order("b\na", "a b").is_err());
    }
}
