//! Named configuration files of several installations, and the one in use.
use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    args::ConfigCommand,
    output::{self, row},
};

/// `configs.json`: files by name.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Configs {
    configs: BTreeMap<String, PathBuf>,
    active: String,
}

/// A configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    pub(crate) dataplane: DataPlane,
    pub(crate) controlplane: ControlPlane,
    pub(crate) kafka: Kafka,
}

/// Where records are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Kafka {
    pub(crate) bootstrap: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) topic_prefix: Option<String>,
}

/// Where inference goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DataPlane {
    pub(crate) infer_host: Option<String>,
    pub(crate) tls: bool,
    #[serde(rename = "skipSSLVerify")]
    pub(crate) skip_ssl_verify: bool,
    #[serde(flatten)]
    pub(crate) files: TlsFiles,
}

/// Where the scheduler is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ControlPlane {
    pub(crate) scheduler_host: Option<String>,
    pub(crate) tls: bool,
    #[serde(flatten)]
    pub(crate) files: TlsFiles,
}

/// Certificates and keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct TlsFiles {
    pub(crate) key_path: Option<PathBuf>,
    pub(crate) crt_path: Option<PathBuf>,
    pub(crate) ca_path: Option<PathBuf>,
}

/// The folder of configurations and the saved session.
pub(crate) fn folder() -> Result<PathBuf> {
    let home = env::var_os("HOME").filter(|home| !home.is_empty());
    let home = home.context("HOME is not set, so there is no place for ~/.config/seldon/cli")?;
    Ok(Path::new(&home).join(".config/seldon/cli"))
}

fn configs_path() -> Result<PathBuf> {
    Ok(folder()?.join("configs.json"))
}

/// The settings in use; none without an active configuration.
pub(crate) fn active() -> Result<Settings> {
    // Without a home there is no configuration either, and none is needed.
    let Ok(path) = configs_path() else {
        return Ok(Settings::default());
    };
    let configs: Configs = read(&path)?.unwrap_or_default();
    if configs.active.is_empty() {
        return Ok(Settings::default());
    }
    let name = &configs.active;
    let Some(file) = configs.configs.get(name) else {
        bail!(
            "the active configuration {name} is not among those of {}",
            path.display()
        );
    };
    settings(file).with_context(|| {
        format!(
            "configuration {name} cannot be used, `seldon config deactivate {name}` turns it off"
        )
    })
}

fn settings(file: &Path) -> Result<Settings> {
    read(file)?.with_context(|| format!("{} does not exist", file.display()))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .with_context(|| path.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Replaces a file of the folder in one step, so that another command never sees half of it.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let replace = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let new = path.with_extension(format!("{}.new", std::process::id()));
        fs::write(&new, text)?;
        fs::rename(&new, path)
    };
    replace().with_context(|| format!("cannot write {}", path.display()))
}

/// Runs a `config` command.
pub(crate) fn run(command: ConfigCommand) -> Result<()> {
    let path = configs_path()?;
    let mut configs: Configs = read(&path)?.unwrap_or_default();
    if !configs.apply(&command)? {
        return output::line(configs.table().trim_end_matches('\n'));
    }
    write(&path, &format!("{}\n", serde_json::to_string(&configs)?))
}

impl Configs {
    /// Changes what a command changes; false where it only asks.
    fn apply(&mut self, command: &ConfigCommand) -> Result<bool> {
        match command {
            ConfigCommand::List => return Ok(false),
            ConfigCommand::Add { key, path } => {
                self.configs.insert(key.clone(), std::path::absolute(path)?);
            }
            ConfigCommand::Activate { key } => {
                settings(self.known(key)?)?;
                self.active.clone_from(key);
            }
            ConfigCommand::Deactivate { key } => {
                self.known(key)?;
                if self.active == *key {
                    self.active.clear();
                }
            }
            ConfigCommand::Remove { key } => {
                self.known(key)?;
                self.configs.remove(key);
                if self.active == *key {
                    self.active.clear();
                }
            }
        }
        Ok(true)
    }

    fn known(&self, key: &str) -> Result<&Path> {
        match self.configs.get(key) {
            Some(path) => Ok(path),
            None => bail!("no configuration named {key}, `seldon config list` shows them"),
        }
    }

    fn table(&self) -> String {
        let mut rows = vec![
            row([&"config", &"path", &"active"]),
            row([&"------", &"----", &"------"]),
        ];
        for (key, path) in &self.configs {
            let active = if *key == self.active { "*" } else { "" };
            rows.push(row([key, &path.display(), &active]));
        }
        output::table(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_file_is_understood() {
        let text = r#"{"dataplane":{"inferHost":"h:80","tls":true,"skipSSLVerify":true,"keyPath":"/k","crtPath":"/c","caPath":"/a"},
            "controlplane":{"schedulerHost":"s:9044","tls":true,"keyPath":"/k"},
            "kafka":{"bootstrap":"k:9092","namespace":"n","topicPrefix":"p"}}"#;
        let settings: Settings = serde_json::from_str(text).expect("documented");
        assert_eq!(settings.dataplane.infer_host.as_deref(), Some("h:80"));
        assert!(settings.dataplane.skip_ssl_verify);
        assert_eq!(
            settings.dataplane.files.ca_path.as_deref(),
            Some(Path::new("/a"))
        );
        assert_eq!(
            settings.controlplane.scheduler_host.as_deref(),
            Some("s:9044")
        );
        assert_eq!(settings.controlplane.files.crt_path, None);
        assert_eq!(settings.kafka.topic_prefix.as_deref(), Some("p"));
    }

    #[test]
    fn a_name_is_added_used_and_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.json");
        fs::write(&file, "{}").expect("written");
        let key = "a".to_owned();
        let mut configs = Configs::default();
        assert!(
            configs
                .apply(&ConfigCommand::Activate { key: key.clone() })
                .is_err()
        );
        configs
            .apply(&ConfigCommand::Add {
                key: key.clone(),
                path: file.clone(),
            })
            .expect("added");
        configs
            .apply(&ConfigCommand::Activate { key: key.clone() })
            .expect("used");
        assert_eq!(configs.active, "a");
        assert!(configs.table().ends_with("\t*\n"));
        configs
            .apply(&ConfigCommand::Remove { key })
            .expect("forgotten");
        assert_eq!(configs, Configs::default());
    }
}
