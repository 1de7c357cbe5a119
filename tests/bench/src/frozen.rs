//! An Envoy by itself with what another one holds, after changes of the bench's own: the alternative in a comparison.
use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, time::Instant};

use crate::{admin, world::Target};

/// What an Envoy holds, in protobuf's JSON form.
#[derive(Clone)]
pub struct Held {
    listener: Value,
    pub clusters: Vec<Value>,
    /// Route configurations by their scopes' keys.
    pub scopes: BTreeMap<String, Value>,
    /// The wasm filter.
    pub filter: Value,
}

impl Held {
    /// Asks an Envoy that is driven by a scheduler.
    pub async fn of(admin: u16) -> Result<Self> {
        let dump: Value =
            serde_json::from_str(&admin::get(admin, "/config_dump?include_eds").await?)?;
        let configs = dump["configs"].as_array().context("no dump")?;
        let of = |kind: &str, field: &str| -> Vec<Value> {
            let kind = format!("type.googleapis.com/envoy.admin.v3.{kind}ConfigDump");
            let found = configs.iter().filter(|c| c["@type"] == kind);
            found
                .filter_map(|c| c[field].as_array())
                .flatten()
                .cloned()
                .collect()
        };
        let mut endpoints = BTreeMap::new();
        for mut found in of("Endpoints", "dynamic_endpoint_configs") {
            let assignment = found["endpoint_config"].take();
            let name = assignment["cluster_name"].as_str().unwrap_or_default();
            endpoints.insert(name.to_owned(), bare(&assignment));
        }
        let clusters = of("Clusters", "dynamic_active_clusters");
        let sets = of("ScopedRoutes", "dynamic_scoped_route_configs");
        let scopes = sets
            .iter()
            .filter_map(|set| set["scoped_route_configs"].as_array())
            .flatten();
        Ok(Self {
            listener: of("Listeners", "dynamic_listeners")
                .first()
                .map(|l| typeless(l["active_state"]["listener"].clone()))
                .context("no listener")?,
            clusters: clusters
                .into_iter()
                .map(|mut found| fixed(typeless(found["cluster"].take()), &mut endpoints))
                .collect(),
            scopes: scopes
                .filter_map(|s| {
                    Some((
                        s["name"].as_str()?.to_owned(),
                        s["route_configuration"].clone(),
                    ))
                })
                .collect(),
            filter: of("Ecds", "ecds_filters")
                .first()
                .map(|f| f["ecds_filter"]["typed_config"].clone())
                .context("no filter")?,
        })
    }

    /// The filter's configuration as text.
    pub fn configuration(&mut self) -> &mut Value {
        &mut self.filter["config"]["configuration"]["value"]
    }

    /// Gives a name the split of its candidates, each half, by Envoy's own means and without the filter.
    pub fn split_natively(&mut self, name: &str, candidates: &[&str]) -> Result<()> {
        let shares = candidates
            .iter()
            .map(|candidate| {
                let scope = &self.scopes.get(&format!("c:{candidate}"));
                let scope = scope.with_context(|| format!("no scope of {candidate}"))?;
                Ok(json!({
                    "name": scope["virtual_hosts"][0]["routes"][0]["route"]["cluster"],
                    "weight": 1,
                    "request_headers_to_add": scope["request_headers_to_add"],
                    "response_headers_to_add": scope["response_headers_to_add"],
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        // A scope that leaves the filter out, which that of an experiment's default does not.
        let plain = candidates
            .iter()
            .filter_map(|candidate| self.scopes.get(&format!("c:{candidate}")))
            .find(|scope| scope.get("typed_per_filter_config").is_some());
        let mut scope = plain.context("no plain candidate")?.clone();
        for field in ["request_headers_to_add", "response_headers_to_add"] {
            scope.as_object_mut().context("a scope")?.remove(field);
        }
        scope["virtual_hosts"][0]["routes"][0]["route"] =
            json!({"timeout": "0s", "weighted_clusters": {"clusters": shares}});
        self.scopes.insert(format!("c:{name}"), scope);
        Ok(())
    }

    fn bootstrap(&self, data: u16, admin: u16) -> Result<Value> {
        let mut listener = self.listener.clone();
        listener["address"]["socket_address"] = socket(data);
        let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        let scopes = self.scopes.iter().map(|(key, routes)| {
            json!({"name": key, "key": {"fragments": [{"string_key": key}]}, "route_configuration": routes})
        });
        manager["scoped_routes"] = json!({
            "name": manager["scoped_routes"]["name"],
            "scope_key_builder": manager["scoped_routes"]["scope_key_builder"],
            "scoped_route_configurations_list":
                {"scoped_route_configurations": scopes.collect::<Vec<_>>()},
        });
        let filters = manager["http_filters"].as_array_mut();
        for filter in filters.context("no HTTP filters")? {
            if filter.get("config_discovery").is_some() {
                *filter = json!({"name": filter["name"], "typed_config": self.filter});
            }
        }
        Ok(json!({
            "node": {"id": "frozen", "cluster": "bench"},
            "admin": {"address": {"socket_address": socket(admin)}},
            "static_resources": {"listeners": [listener], "clusters": self.clusters},
        }))
    }
}

/// A dump says what each resource is; where it stands in a bootstrap that is known.
fn typeless(mut resource: Value) -> Value {
    if let Some(fields) = resource.as_object_mut() {
        fields.remove("@type");
    }
    resource
}

fn socket(port: u16) -> Value {
    json!({"address": "127.0.0.1", "port_value": port})
}

/// A cluster with the endpoints that came beside it.
fn fixed(mut cluster: Value, endpoints: &mut BTreeMap<String, Value>) -> Value {
    let name = cluster["name"].as_str().unwrap_or_default().to_owned();
    if let (Some(assignment), Some(fields)) = (endpoints.remove(&name), cluster.as_object_mut()) {
        fields.remove("eds_cluster_config");
        fields.insert("type".into(), "STATIC".into());
        fields.insert("load_assignment".into(), assignment);
    }
    cluster
}

/// An assignment's addresses; a dump has more beside them than a configuration may say.
fn bare(assignment: &Value) -> Value {
    let hosts: Vec<Value> = assignment["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|locality| locality["lb_endpoints"].as_array())
        .flatten()
        .map(|host| json!({"endpoint": {"address": host["endpoint"]["address"]}}))
        .collect();
    json!({"cluster_name": assignment["cluster_name"], "endpoints": [{"lb_endpoints": hosts}]})
}

/// An Envoy that no scheduler drives; ends when dropped.
pub struct Frozen {
    process: Child,
    pub target: Target,
    folder: TempDir,
}

impl Frozen {
    /// Starts it and waits until it serves.
    pub async fn start(envoy: &Path, held: &Held, workers: usize) -> Result<Self> {
        let (data, admin) = (free().await?, free().await?);
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("bootstrap.json");
        std::fs::write(&file, held.bootstrap(data, admin)?.to_string())?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let process = Command::new(envoy)
            .args(["--disable-hot-restart", "--log-level", "warn"])
            .args(["--concurrency", &workers.to_string()])
            .arg("--config-path")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut frozen = Self {
            target: Target {
                data: format!("127.0.0.1:{data}"),
                pid: process.id(),
            },
            process,
            folder,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !admin::get(admin, "/ready")
            .await
            .is_ok_and(|t| t.contains("LIVE"))
        {
            if let Some(status) = frozen.process.try_wait()? {
                let text = frozen.log()?;
                bail!("Envoy ended ({status}): {text}");
            }
            ensure!(Instant::now() < deadline, "Envoy does not turn ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(frozen)
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join("log"))?)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn free() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}
