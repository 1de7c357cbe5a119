//! What the scheduler needs to know of Kafka and of scaling: names of topics, and how many may own a pipeline.
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use seldon_core::Event;
use seldon_records::Names;
use serde::Deserialize;

use crate::writer::Handle;

/// A changed file is seen within this.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The part of `kafka.json` that names depend on.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct KafkaFile {
    topic_prefix: Option<String>,
    consumer_group_id_prefix: Option<String>,
}

/// Names as `kafka.json` wants them; the defaults where there is no such file.
pub fn names(path: &str, namespace: &str) -> anyhow::Result<Names> {
    let file = match fs::read_to_string(path) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("{path} of --kafka-config-path"))?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => KafkaFile::default(),
        Err(error) => return Err(error).with_context(|| format!("{path} of --kafka-config-path")),
    };
    let (prefix, group) = (
        file.topic_prefix.as_deref(),
        file.consumer_group_id_prefix.as_deref(),
    );
    Names::new(prefix, namespace, group).with_context(|| format!("{path} of --kafka-config-path"))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ScalingFile {
    pipelines: PipelineScaling,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PipelineScaling {
    max_shard_count_multiplier: Option<i64>,
}

/// `maxShardCountMultiplier` of a scaling configuration, YAML or JSON; 1 where none is given, or one below 1.
fn shards(text: &str) -> anyhow::Result<u32> {
    let file: ScalingFile = serde_saphyr::from_str(text)?;
    let wanted = file.pipelines.max_shard_count_multiplier.unwrap_or(1);
    Ok(u32::try_from(wanted.max(1)).unwrap_or(u32::MAX))
}

/// Tells the rules each change of the file of `--scaling-config-path`.
pub async fn follow_scaling(path: PathBuf, writer: Handle) {
    let mut seen: Option<(SystemTime, u64)> = None;
    loop {
        let now = fs::metadata(&path).ok();
        let now = now.and_then(|about| Some((about.modified().ok()?, about.len())));
        if now != seen {
            match read(&path) {
                Ok(shards) => writer.happened(Event::Shards(shards)),
                Err(error) => {
                    tracing::warn!("the scaling configuration stays as it was: {error:#}")
                }
            }
            seen = now;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn read(path: &Path) -> anyhow::Result<u32> {
    let shown = || format!("{} of --scaling-config-path", path.display());
    match fs::read_to_string(path) {
        Ok(text) => shards(&text).with_context(shown),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error).with_context(shown),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test may
mod tests {
    use super::*;

    #[test]
    fn documented_files_are_understood() {
        assert_eq!(
            shards("pipelines:\n  maxShardCountMultiplier: 3\nservers:\n  enabled: true\n")
                .unwrap(),
            3
        );
        assert_eq!(
            shards(r#"{"pipelines":{"maxShardCountMultiplier":0}}"#).unwrap(),
            1
        );
        assert_eq!(shards("models:\n  enabled: true\n").unwrap(), 1);
        assert!(shards("pipelines: 3").is_err());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kafka.json");
        let path = file.to_str().unwrap();
        assert_eq!(
            names(path, "").unwrap().errors(),
            "seldon.default.errors.errors"
        );
        fs::write(
            &file,
            r#"{"bootstrap.servers":"k","topicPrefix":"p","consumer":{}}"#,
        )
        .unwrap();
        assert_eq!(names(path, "n").unwrap().errors(), "p.n.errors.errors");
        fs::write(&file, r#"{"topicPrefix":"a b"}"#).unwrap();
        assert!(names(path, "n").is_err());
    }
}
