//! What a request would get, without sending one.

use crate::{
    Config, Headers, Rule,
    chance::{Weighted, total},
};

/// What a request of a name would get.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation<'a> {
    /// The experiment that decides; none where the name belongs to none.
    pub experiment: Option<&'a str>,
    /// The rule that decides; [`Rule::Plain`] where the scope of the name leads.
    pub rule: Rule,
    /// The versions of its candidates, all of them, with their chance of this request.
    pub versions: Vec<Chance<'a>>,
    /// The versions of its mirror, with their chance of a copy of this request.
    pub mirrors: Vec<Chance<'a>>,
}

/// How likely a version gets a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chance<'a> {
    /// The candidate or mirror.
    pub name: &'a str,
    /// `<name>_<version>`, or `<name>.pipeline`.
    pub route: &'a str,
    /// Of a hundred.
    pub percent: f64,
}

/// Says what a request of this name with these headers would get.
pub fn explain<'a>(config: &'a Config, name: &str, headers: &impl Headers) -> Explanation<'a> {
    let Some((name, experiment)) = config.experiment_of(name) else {
        return Explanation {
            experiment: None,
            rule: Rule::Plain,
            versions: Vec::new(),
            mirrors: Vec::new(),
        };
    };
    let pinned = experiment.pinned(name, headers);
    let weights = total(&experiment.candidates);
    let rule = match pinned {
        Some((rule, ..)) => rule,
        None if weights == 0 => Rule::Plain,
        None => Rule::Split,
    };
    let mut versions = Vec::new();
    for candidate in &experiment.candidates {
        let of_candidate = percent(u64::from(candidate.weight), weights);
        let shares = shares(&candidate.versions, of_candidate);
        for (version, share) in candidate.versions.iter().zip(shares) {
            let percent = match pinned {
                Some((_, _, only)) if only.route == version.route => 100.0,
                Some(_) => 0.0,
                None => share,
            };
            versions.push(Chance {
                name: &candidate.name,
                route: &version.route,
                percent,
            });
        }
    }
    let mut mirrors = Vec::new();
    if let Some(mirror) = &experiment.mirror {
        // Copies are sent by the candidates' scopes.
        let percent = if rule == Rule::Plain {
            0
        } else {
            mirror.percent
        };
        let shares = shares(&mirror.versions, f64::from(percent));
        for (copy, percent) in mirror.versions.iter().zip(shares) {
            mirrors.push(Chance {
                name: &mirror.name,
                route: &copy.model,
                percent,
            });
        }
    }
    Explanation {
        experiment: Some(name),
        rule,
        versions,
        mirrors,
    }
}

/// Each one's part of `whole`; all of it is the first's where none has a weight.
#[allow(clippy::arithmetic_side_effects)] // floats
fn shares(all: &[impl Weighted], whole: f64) -> Vec<f64> {
    let weights = total(all);
    let first = |i| if i == 0 { whole } else { 0.0 };
    let share = |(i, one): (usize, _)| match weights {
        0 => first(i),
        _ => percent(u64::from(Weighted::weight(one)), weights) * whole / 100.0,
    };
    all.iter().enumerate().map(share).collect()
}

#[allow(clippy::cast_precision_loss, clippy::arithmetic_side_effects)] // floats
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    part as f64 * 100.0 / whole as f64
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
