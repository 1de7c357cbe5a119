//! Pipelines: validation, versions, workers that come and go, routes, and a restart; then random histories of all that.
#![allow(clippy::unwrap_used)] // a test may
mod bench;
mod experiments;
mod histories;
mod life;
mod manifests;
mod readers;
mod versions;
mod workers;
