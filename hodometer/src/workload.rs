//! Reading Kubernetes' objects: pure.
use serde_json::Value;

/// The CPU limits of all replicas of a StatefulSet or Deployment in cores, and whether they are given GPUs.
pub(crate) fn limits(workload: &Value) -> (f64, bool) {
    let spec = &workload["spec"];
    // Where it says nothing, Kubernetes runs one.
    let replicas = spec["replicas"].as_u64().unwrap_or(1) as f64;
    let (mut cores, mut gpu) = (0.0, false);
    for container in containers(workload) {
        let limits = container["resources"]["limits"].as_object();
        for (resource, quantity) in limits.into_iter().flatten() {
            if resource == "cpu" {
                cores += cpu(quantity).unwrap_or(0.0);
            }
            // nvidia.com/gpu, nvidia.com/mig-1g.5gb, amd.com/gpu, gpu.intel.com/i915
            gpu |= resource.starts_with("nvidia.com/") || resource.contains("gpu");
        }
    }
    (cores * replicas, gpu)
}

/// Whether the operator of this Deployment cares for other namespaces too: the flag `--clusterwide`, which may be given
/// by a variable of the container.
pub(crate) fn clusterwide(operator: &Value) -> bool {
    containers(operator).any(|container| {
        let words = [&container["command"], &container["args"]];
        let words = words.into_iter().filter_map(Value::as_array).flatten();
        words.filter_map(Value::as_str).any(|word| {
            let Some(value) = word.trim_start_matches('-').strip_prefix("clusterwide") else {
                return false;
            };
            match value.strip_prefix('=') {
                Some(value) => expanded(container, value) == Some("true"),
                None => value.is_empty(),
            }
        })
    })
}

/// The number of nodes by a list that was limited to some of them.
pub(crate) fn nodes(list: &Value) -> Option<u64> {
    let items = list["items"].as_array()?.len() as u64;
    let more = list["metadata"]["remainingItemCount"].as_u64();
    Some(items + more.unwrap_or(0))
}

fn containers(workload: &Value) -> impl Iterator<Item = &Value> {
    let containers = &workload["spec"]["template"]["spec"]["containers"];
    containers.as_array().into_iter().flatten()
}

fn expanded<'a>(container: &'a Value, value: &'a str) -> Option<&'a str> {
    let name = value.strip_prefix("$(").and_then(|v| v.strip_suffix(')'));
    let Some(name) = name else { return Some(value) };
    let variables = container["env"].as_array()?;
    let variable = variables.iter().find(|variable| variable["name"] == name)?;
    variable["value"].as_str()
}

/// Cores by a quantity such as `2`, `0.5`, `500m` or `1e3`.
fn cpu(quantity: &Value) -> Option<f64> {
    let text = match quantity {
        Value::Number(number) => return number.as_f64(),
        other => other.as_str()?,
    };
    let suffixes = [
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
    ];
    let found = suffixes
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)));
    let (number, factor) = found.unwrap_or((text, 1.0));
    number.parse::<f64>().ok().map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workload(replicas: Value, limits: &[Value]) -> Value {
        let containers = limits
            .iter()
            .map(|limits| json!({"resources": {"limits": limits}}));
        let containers: Vec<Value> = containers.collect();
        json!({"spec": {"replicas": replicas, "template": {"spec": {"containers": containers}}}})
    }

    #[test]
    fn limits_are_those_of_all_containers_of_all_replicas() {
        let server = workload(
            json!(3),
            &[
                json!({"cpu": "500m", "memory": "1Gi"}),
                json!({"cpu": 2}),
                json!(null),
            ],
        );
        assert_eq!(limits(&server), (7.5, false));
        assert_eq!(
            limits(&workload(json!(null), &[json!({"cpu": "1"})])),
            (1.0, false)
        );
        assert_eq!(limits(&json!({})), (0.0, false));
    }

    #[test]
    fn gpus_are_known_by_every_vendors_name() {
        for name in [
            "nvidia.com/gpu",
            "nvidia.com/mig-1g.5gb",
            "amd.com/gpu",
            "gpu.intel.com/i915",
        ] {
            assert!(
                limits(&workload(json!(1), &[json!({name: "1"})])).1,
                "{name}"
            );
        }
        assert!(!limits(&workload(json!(1), &[json!({"example.com/fpga": 1})])).1);
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, cores) in [
            ("2", 2.0),
            ("0.5", 0.5),
            ("250m", 0.25),
            ("1k", 1000.0),
            ("1e1", 10.0),
        ] {
            assert_eq!(cpu(&json!(text)), Some(cores), "{text}");
        }
        assert_eq!(cpu(&json!("many")), None);
    }

    #[test]
    fn nodes_that_were_left_out_of_a_list_count() {
        let list = json!({"metadata": {"remainingItemCount": 4}, "items": [{}]});
        assert_eq!(nodes(&list), Some(5));
        assert_eq!(nodes(&json!({"metadata": {}, "items": [{}]})), Some(1));
        assert_eq!(nodes(&json!({"message": "no"})), None);
    }

    #[test]
    fn an_operator_says_by_its_flag_what_it_cares_for() {
        let operator = |words: Value| {
            json!({"spec": {"template": {"spec": {"containers": [{
                "args": words,
                "env": [{"name": "WIDE", "value": "true"}, {"name": "OWN", "value": "false"}],
            }]}}}})
        };
        for (words, wide) in [
            (json!(["--clusterwide"]), true),
            (json!(["--leader-elect", "--clusterwide=true"]), true),
            (json!(["--clusterwide=$(WIDE)"]), true),
            (json!(["--clusterwide=$(OWN)"]), false),
            (json!(["--clusterwide=$(UNKNOWN)"]), false),
            (json!(["--clusterwide=false"]), false),
            (json!(["--namespace=clusterwide"]), false),
            (json!([]), false),
        ] {
            assert_eq!(clusterwide(&operator(words.clone())), wide, "{words}");
        }
    }
}
