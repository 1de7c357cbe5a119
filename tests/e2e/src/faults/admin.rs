//! What an Envoy holds, by its admin interface.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// The admin interface of one Envoy.
#[derive(Clone, Copy, Debug)]
pub struct Envoy(pub u16);

impl Envoy {
    /// Asks one path.
    pub async fn get(&self, path: &str) -> Result<Vec<u8>> {
        let stream = TcpStream::connect(("127.0.0.1", self.0)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = http::Request::get(path)
            .header("host", "admin")
            .body(Empty::<bytes::Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        ensure!(answer.status() == 200, "{path}: {}", answer.status());
        Ok(answer.into_body().collect().await?.to_bytes().to_vec())
    }

    async fn dump(&self, resource: &str) -> Result<Vec<Value>> {
        let text = self
            .get(&format!("/config_dump?resource={resource}"))
            .await?;
        let json: Value = serde_json::from_slice(&text)?;
        Ok(json["configs"].as_array().cloned().unwrap_or_default())
    }

    /// Returns the scopes with the clusters that each names.
    pub async fn scopes(&self) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let mut found = BTreeMap::new();
        for set in self.dump("dynamic_scoped_route_configs").await? {
            for scope in set["scoped_route_configs"].as_array().into_iter().flatten() {
                let name = scope["name"].as_str().context("a scope has a name")?;
                let mut clusters = BTreeSet::new();
                collect_clusters(scope, &mut clusters);
                found.insert(name.to_owned(), clusters);
            }
        }
        Ok(found)
    }

    /// Returns the clusters that came by discovery, each with its endpoints' addresses.
    pub async fn clusters(&self) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let json: Value = serde_json::from_slice(&self.get("/clusters?format=json").await?)?;
        let mut found = BTreeMap::new();
        for cluster in json["cluster_statuses"].as_array().into_iter().flatten() {
            if cluster["added_via_api"] != true {
                continue;
            }
            let name = cluster["name"].as_str().context("a cluster has a name")?;
            let hosts = cluster["host_statuses"].as_array().into_iter().flatten();
            let addresses = hosts.map(|host| {
                let socket = &host["address"]["socket_address"];
                let address = socket["address"].as_str().unwrap_or_default();
                format!("{address}:{}", socket["port_value"])
            });
            found.insert(name.to_owned(), addresses.collect());
        }
        Ok(found)
    }

    /// Returns the addresses that it does not use for a while, because they failed.
    pub async fn ejected(&self) -> Result<Vec<String>> {
        let answer = self.get("/clusters?format=json").await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let clusters = answer["cluster_statuses"].as_array().into_iter().flatten();
        let hosts = clusters.flat_map(|cluster| cluster["host_statuses"].as_array());
        let ejected = hosts
            .flatten()
            .filter(|host| host["health_status"]["failed_outlier_check"] == true);
        Ok(ejected.map(|host| host["address"].to_string()).collect())
    }
}

/// Asks a model for an inference on a connection of its own, and returns the status.
pub async fn ask_once(target: &str, model: &str) -> Result<u16> {
    Ok(answer_once(target, model).await?.0)
}

/// Asks a model for an inference on a connection of its own, and returns status and body.
pub async fn answer_once(target: &str, model: &str) -> Result<(u16, String)> {
    let stream = TcpStream::connect(target).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("/v2/models/{model}/infer"))
        .header("host", target)
        .header("seldon-model", model)
        .header("content-type", "application/json")
        .body(Full::<bytes::Bytes>::from(r#"{"inputs":[]}"#))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn collect_clusters(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value) {
                    ("cluster", Value::String(name)) => drop(found.insert(name.clone())),
                    ("clusters", Value::Array(shares)) => {
                        found.extend(
                            shares
                                .iter()
                                .filter_map(|share| share["name"].as_str())
                                .map(str::to_owned),
                        );
                    }
                    _ => collect_clusters(value, found),
                }
            }
        }
        Value::Array(values) => values
            .iter()
            .for_each(|value| collect_clusters(value, found)),
        _ => {}
    }
}
