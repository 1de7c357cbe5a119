//! Where a request would go: the filter's own rules over what Envoys were told.
use std::sync::Arc;

use seldon_ads::EnvoyStatus;
use seldon_core::{Route, State};
use seldon_proto::introspect::*;
use seldon_routing::{Chance, Config, EXPERIMENT_SUFFIX, Rule};

use super::experiment::percent;
use crate::resources::{
    experiment,
    names::{FILTER, candidate_scope, client_scope, internal_model, types},
};

/// What the rules know of a name.
pub(super) struct Seen {
    name: String,
    experiment: Option<Arc<str>>,
    /// The status of the experiment, in words.
    description: String,
    /// Whether the experiment has been in force at all, so that its names have scopes.
    in_force: bool,
    /// What the filter is told of the experiment.
    config: Config,
    /// The route of the model of this name.
    route: Option<Route>,
    /// Why the model is where it is; none where there is no such model.
    model: Option<String>,
    /// The newest generation in which any of it changed.
    generation: u64,
}

/// Reads what concerns a name.
pub(super) fn look(state: &State, name: &str) -> Seen {
    let experiment = experiment_of(state, name);
    let shares = experiment
        .as_deref()
        .and_then(|e| state.experiment_route(e));
    let verdict = experiment
        .as_deref()
        .and_then(|e| state.explain_experiment(e));
    let model = state.explain(name);
    let generations = [
        verdict.as_ref().map(|v| v.generation),
        model.as_ref().map(|m| m.route_generation),
    ];
    Seen {
        name: name.to_owned(),
        description: verdict.map(|v| v.description).unwrap_or_default(),
        in_force: shares.is_some(),
        config: shares
            .map(|shares| experiment::alone(state, &shares))
            .unwrap_or_default(),
        route: state.route(name),
        model: model.map(|m| match m.reason.is_empty() {
            true => m.state,
            false => format!("{}: {}", m.state, m.reason),
        }),
        generation: generations.into_iter().flatten().max().unwrap_or_default(),
        experiment,
    }
}

fn experiment_of(state: &State, name: &str) -> Option<Arc<str>> {
    let mut running = state.experiment_names();
    if let Some(bare) = name.strip_suffix(EXPERIMENT_SUFFIX)
        && let Some(found) = running.find(|running| &***running == bare)
    {
        return Some(found.clone());
    }
    if let Some(found) = state.split_by(name) {
        return Some(found);
    }
    let mut running = state.experiment_names();
    let of_pipeline = running.find(|experiment| {
        let shares = state.experiment_route(experiment);
        shares.is_some_and(|shares| shares.endpoint.as_deref() == Some(name))
    });
    of_pipeline.cloned()
}

/// Headers as a client would send them.
struct Sent<'a>(&'a [Header]);

impl Sent<'_> {
    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        let of_name = self
            .0
            .iter()
            .filter(move |h| h.name.eq_ignore_ascii_case(name));
        of_name.map(|h| h.value.as_str())
    }
}

impl seldon_routing::Headers for Sent<'_> {
    /// The first value, as Envoy hands it to the filter.
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.values(name)
            .next()
            .map(|value| value.as_bytes().to_vec())
    }

    fn all(&self, name: &str) -> Vec<u8> {
        self.values(name).collect::<Vec<_>>().join(",").into_bytes()
    }
}

/// The decision, without what only the engine knows.
pub(super) fn explained(request: &ExplainRouteRequest, seen: &Seen) -> ExplainRouteResponse {
    let decided = seldon_routing::explain(&seen.config, &seen.name, &Sent(&request.headers));
    let certain = decided.versions.iter().find(|v| v.percent >= 100.0);
    let chosen = certain.map(|v| v.route).unwrap_or_default();
    let experiment = seen.experiment.as_deref().unwrap_or_default();
    let mut explained = ExplainRouteResponse {
        name: seen.name.clone(),
        experiment: experiment.to_owned(),
        chances: chances(&decided.versions),
        copies: chances(&decided.mirrors),
        ..Default::default()
    };
    let (rule, reason) = match decided.rule {
        Rule::Sticky => (
            "x-seldon-route",
            format!("x-seldon-route names {chosen}, which can answer"),
        ),
        Rule::Cohort => {
            let entry = seen.config.experiments.get(experiment);
            let header = entry.and_then(|e| e.cohort.as_deref()).unwrap_or_default();
            let reason =
                format!("the value of {header} belongs to {chosen} while the split stands");
            ("cohort", reason)
        }
        Rule::Split => (
            "split",
            format!("experiment {experiment} shares the requests out by weight"),
        ),
        Rule::Plain => {
            explained.chances = plain(seen);
            explained.copies.clear();
            unsplit(seen)
        }
    };
    explained.rule = rule.to_owned();
    explained.reason = reason;
    explained
}

/// What happens where the filter does not choose: the scope of the name leads.
fn unsplit(seen: &Seen) -> (&'static str, String) {
    let name = &seen.name;
    match (&seen.experiment, &seen.route) {
        (None, Some(_)) => ("model", format!("model {name}: no experiment splits it")),
        (Some(experiment), Some(_)) => (
            "default",
            format!(
                "no candidate of experiment {experiment} has a share ({}): its default answers",
                seen.description
            ),
        ),
        (Some(experiment), None) if seen.in_force => (
            "unavailable",
            format!(
                "no candidate of experiment {experiment} can answer ({}): requests get 503",
                seen.description
            ),
        ),
        (Some(experiment), None) => (
            "unknown",
            format!(
                "experiment {experiment} was never in force ({}): requests get 404",
                seen.description
            ),
        ),
        (None, None) => (
            "unknown",
            match &seen.model {
                Some(state) => format!("model {name} has no route ({state}): requests get 404"),
                None => format!("no model or experiment is named {name}: requests get 404"),
            },
        ),
    }
}

/// The versions of the model itself.
fn plain(seen: &Seen) -> Vec<RouteChance> {
    let splits = seen.route.iter().flat_map(|route| &route.splits);
    let whole: f64 = splits.clone().map(|split| f64::from(split.weight)).sum();
    splits
        .map(|split| RouteChance {
            name: seen.name.clone(),
            version: internal_model(&seen.name, split.version),
            percent: percent(split.weight, whole),
        })
        .collect()
}

fn chances(all: &[Chance<'_>]) -> Vec<RouteChance> {
    let possible = all.iter().filter(|chance| chance.percent > 0.0);
    possible
        .map(|chance| RouteChance {
            name: chance.name.to_owned(),
            version: chance.route.to_owned(),
            percent: chance.percent,
        })
        .collect()
}

/// Whether an Envoy has taken the decision in, and what it goes on with where it has not.
pub(super) fn envoy(status: &EnvoyStatus, seen: &Seen) -> RouteEnvoy {
    let refused = status
        .rejections
        .iter()
        .find(|r| concerns(seen, &r.type_url, &r.resource));
    let behind = status.acknowledged < seen.generation;
    let filter = status.node.metadata["seldon"]["filter_module"].as_str();
    let detail = match refused {
        Some(refused) => {
            let kind = refused.type_url.rsplit('.').next().unwrap_or_default();
            format!(
                "refuses {kind} {} and goes on with the last good one: {}",
                refused.resource, refused.reason
            )
        }
        None if behind => format!(
            "goes on with generation {}, the decision is of {}",
            status.acknowledged, seen.generation
        ),
        None if seen.experiment.is_some() && filter == Some("") => {
            "has no filter: it does not split".to_owned()
        }
        None => String::new(),
    };
    RouteEnvoy {
        stream: status.stream,
        address: status.node.address.clone(),
        connected: status.connected,
        acknowledged: !behind && refused.is_none(),
        detail,
    }
}

/// Whether a resource has a part in where requests of the name go.
fn concerns(seen: &Seen, type_url: &str, resource: &str) -> bool {
    let entry = || seen.config.experiments.values();
    match type_url {
        types::EXTENSION => seen.experiment.is_some() && resource == FILTER,
        types::SCOPE => {
            let mut versions = entry()
                .flat_map(|e| &e.candidates)
                .flat_map(|c| &c.versions);
            resource == client_scope(&seen.name)
                || versions.any(|version| resource == candidate_scope(&version.route))
        }
        types::LISTENER => true,
        _ => false,
    }
}
