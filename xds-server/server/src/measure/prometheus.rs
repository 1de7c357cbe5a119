//! The part of Prometheus' text format that Envoy writes counters in.
use super::{Counts, Table};

/// Reads the counters of experiments; all else is left out.
pub(super) fn parse(text: &str) -> Table {
    let mut table = Table::new();
    for (metric, labels, value) in text.lines().filter_map(sample) {
        let (Some(experiment), Some(candidate)) =
            (label(labels, "experiment"), label(labels, "candidate"))
        else {
            continue;
        };
        let counts: &mut Counts = table.entry((experiment, candidate)).or_default();
        match metric {
            "seldon_experiment_begun_total" => counts.begun = value,
            "seldon_experiment_requests_total" => counts.requests = value,
            "seldon_experiment_errors_total" => counts.errors = value,
            "seldon_experiment_microseconds_total" => counts.microseconds = value,
            "seldon_experiment_mirrored_total" => counts.mirrored = value,
            _ => {}
        }
    }
    table
}

/// `name{labels} value`.
fn sample(line: &str) -> Option<(&str, &str, u64)> {
    let (metric, rest) = line.split_once('{')?;
    if !metric.starts_with("seldon_experiment_") {
        return None;
    }
    let (labels, value) = rest.rsplit_once('}')?;
    let value = value.split_whitespace().next()?;
    Some((metric, labels, value.parse().ok()?))
}

/// Names of experiments and models hold neither quotes nor backslashes, so nothing is escaped.
fn label(labels: &str, name: &str) -> Option<String> {
    let mut rest = labels;
    while let Some((key, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"')?;
        if key.trim_start_matches(',').trim() == name {
            return Some(value.to_owned());
        }
        rest = after;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_labels() {
        let text = "# TYPE seldon_experiment_requests_total counter\n\
            seldon_experiment_requests_total{experiment=\"a.b\",candidate=\"iris\"} 5\n\
            seldon_experiment_errors_total{candidate=\"iris\",experiment=\"a.b\"} 2\n\
            seldon_experiment_microseconds_total{experiment=\"a.b\",candidate=\"iris\"} 12345 1700000000\n\
            seldon_experiment_mirrored_total{experiment=\"a.b\",candidate=\"p.pipeline\"} 3\n\
            seldon_experiment_requests_total{experiment=\"e\"} 1\n\
            seldon_experiment_requests_total{experiment=\"e\",candidate=\"x\"} many\n\
            envoy_cluster_upstream_rq_total{envoy_cluster_name=\"mlserver_0\"} 9\n{";
        let table = parse(text);
        let key = |candidate: &str| ("a.b".to_owned(), candidate.to_owned());
        assert_eq!(table.len(), 2);
        let iris = table[&key("iris")];
        assert_eq!(
            (iris.requests, iris.errors, iris.microseconds),
            (5, 2, 12_345)
        );
        assert_eq!(table[&key("p.pipeline")].mirrored, 3);
    }
}
