//! Lines of `seldon pipeline inspect`: `topic⇥key⇥json`, with `--verbose` and `⇥name=[values]` for each header.
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::json::{Rule, differences};

/// Compares what was printed with the documented lines: the same records in the same order. Of headers ours may have more.
pub fn records(expected: &str, printed: &str) -> Result<()> {
    let (wanted, given): (Vec<&str>, Vec<&str>) = (lines(expected), lines(printed));
    ensure!(
        wanted.len() == given.len(),
        "{} records, documented are {}",
        given.len(),
        wanted.len()
    );
    for (wanted, given) in wanted.into_iter().zip(given) {
        record(wanted, given).with_context(|| format!("documented is {wanted}"))?;
    }
    Ok(())
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.is_empty()).collect()
}

struct Record<'a> {
    topic: &'a str,
    key: &'a str,
    value: Value,
    headers: Vec<&'a str>,
}

impl<'a> Record<'a> {
    fn parse(line: &'a str) -> Result<Self> {
        let mut fields = line.split('\t');
        let mut field = |what| fields.next().with_context(|| format!("no {what}: {line}"));
        let (topic, key, value) = (field("topic")?, field("key")?, field("value")?);
        let value = serde_json::from_str(value).with_context(|| format!("no JSON: {value}"))?;
        Ok(Self {
            topic,
            key,
            value,
            headers: fields.collect(),
        })
    }
}

fn record(wanted: &str, given: &str) -> Result<()> {
    let (wanted, given) = (Record::parse(wanted)?, Record::parse(given)?);
    ensure!(wanted.topic == given.topic, "the topic is {}", given.topic);
    if is_xid(wanted.key) {
        ensure!(is_xid(given.key), "the key {} is no xid", given.key);
    } else {
        ensure!(wanted.key == given.key, "the key is {}", given.key);
    }
    let found = differences(Rule::Same, &wanted.value, &given.value);
    ensure!(found.is_empty(), "{}", found.join("\n"));
    for header in wanted.headers {
        let (name, value) = header.split_once('=').context("no header")?;
        let ours = given.headers.iter().filter_map(|line| line.split_once('='));
        let mut ours = ours
            .filter(|(known, _)| *known == name)
            .map(|(_, value)| value);
        let (first, more) = (ours.next(), ours.next());
        let first = first.with_context(|| format!("header {name} is missing"))?;
        ensure!(more.is_none(), "header {name} is there twice");
        let same = match name {
            // The id itself is another in each run, and is the key.
            "x-request-id" => inner(first) == Some(given.key),
            "x-envoy-upstream-service-time" => {
                inner(first).is_some_and(|time| time.parse::<u64>().is_ok())
            }
            _ => first == value,
        };
        ensure!(same, "header {name} is {first}");
    }
    Ok(())
}

fn inner(list: &str) -> Option<&str> {
    list.strip_prefix('[')?.strip_suffix(']')
}

/// A request's id where its caller gave none: 20 digits of base 32.
fn is_xid(text: &str) -> bool {
    text.len() == 20 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'v'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_nothing_else() {
        let documented = "t\tcg5g6ogfh5ss73a44vvg\t{\"a\":1}\tx-request-id=[cg5g6ogfh5ss73a44vvg]\tpipeline=[p]\n";
        let ours = "t\tdc300e29djq04ilpiqh0\t{\"a\": 1}\tpipeline=[p]\tx-request-id=[dc300e29djq04ilpiqh0]\tmore=[1]";
        records(documented, ours).unwrap();
        for (from, to) in [
            ("t\t", "u\t"),
            ("\tdc300e29djq04ilpiqh0", "\ttest-id"),
            ("{\"a\": 1}", "{\"a\": 2}"),
            ("=[dc300e29djq04ilpiqh0]", "=[dc300e29djq04ilpiqh1]"),
            ("\tpipeline=[p]", ""),
            ("=[p]", "=[q]"),
            ("=[p]", "=[p]\tpipeline=[p]"),
            ("\tmore=[1]", "\nt\tx\t{}"),
        ] {
            let other = ours.replacen(from, to, 1);
            assert_ne!(other, ours);
            assert!(records(documented, &other).is_err(), "{other}");
        }
        assert!(records("t\ttest-id\t{}", "t\ttest-id2\t{}").is_err());
    }
}
