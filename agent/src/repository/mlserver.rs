//! MLServer's layout: `<models>/<name>_<version>/1/model-settings.json` and the artefact beside it.
use std::path::{Path, PathBuf};

use seldon_proto::scheduler::{
    MlServerModelSettings, ModelRuntimeInfo, ModelSpec, model_runtime_info,
};

use super::files;
use super::folders::{Folders, VERSION};
use super::settings::{InferUri, SETTINGS, settings};
use super::{Repository, RepositoryError};

/// A repository that an MLServer reads.
pub struct Mlserver {
    folders: Folders,
    envoy: InferUri,
    parallel_workers: u32,
}

impl Mlserver {
    /// `models` is MLServer's folder; half-made folders of a former agent are removed from it.
    pub fn open(
        models: PathBuf,
        envoy: InferUri,
        parallel_workers: u32,
    ) -> Result<Self, RepositoryError> {
        Ok(Self {
            folders: Folders::open(models, &format!("{VERSION}/{SETTINGS}"))?,
            envoy,
            parallel_workers,
        })
    }

    fn fill(
        &self,
        staging: &Path,
        root: &Path,
        spec: &ModelSpec,
        internal: &str,
    ) -> Result<(), RepositoryError> {
        let existing = existing_settings(root)?;
        let settings = settings(existing.as_deref(), root, spec, internal, &self.envoy)?;
        let version = staging.join(VERSION);
        files::link_tree(root, &version)?;
        let text =
            serde_json::to_vec_pretty(&settings).map_err(|error| RepositoryError::Settings {
                file: SETTINGS.to_owned(),
                reason: error.to_string(),
            })?;
        files::replace_file(&version.join(SETTINGS), &text)
    }
}

impl Repository for Mlserver {
    fn install(
        &self,
        folder: &Path,
        spec: &ModelSpec,
        internal: &str,
        record: &[u8],
    ) -> Result<(), RepositoryError> {
        let root = artefact_root(folder, spec.artifact_version)?;
        self.folders.replace(internal, record, |staging| {
            self.fill(staging, &root, spec, internal)
        })
    }

    fn runtime_info(&self, _: &str) -> ModelRuntimeInfo {
        let settings = MlServerModelSettings {
            parallel_workers: self.parallel_workers,
        };
        ModelRuntimeInfo {
            model_runtime_info: Some(model_runtime_info::ModelRuntimeInfo::Mlserver(settings)),
        }
    }

    fn folders(&self) -> &Folders {
        &self.folders
    }
}

fn existing_settings(root: &Path) -> Result<Option<String>, RepositoryError> {
    let path = root.join(SETTINGS);
    if !files::is_real(&path, std::fs::Metadata::is_file) {
        return Ok(None);
    }
    std::fs::read_to_string(&path)
        .map(Some)
        .map_err(|error| RepositoryError::Settings {
            file: SETTINGS.to_owned(),
            reason: error.to_string(),
        })
}

/// Finds the folder inside a downloaded artefact that holds the model.
pub fn artefact_root(folder: &Path, version: Option<u32>) -> Result<PathBuf, RepositoryError> {
    if files::entries(folder)?.is_empty() {
        return Err(RepositoryError::Empty);
    }
    let has_settings =
        |path: &Path| files::is_real(&path.join(SETTINGS), std::fs::Metadata::is_file);
    if has_settings(folder) {
        return Ok(folder.to_owned());
    }
    let numbered: Vec<(u32, PathBuf)> = files::folders(folder)?
        .into_iter()
        .filter(|path| has_settings(path))
        .filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path)))
        .collect();
    let Some(version) = version else {
        let highest = numbered.into_iter().max_by_key(|(number, _)| *number);
        return Ok(highest.map_or_else(|| folder.to_owned(), |(_, path)| path));
    };
    let mut matching: Vec<PathBuf> = numbered
        .into_iter()
        .filter(|(number, _)| *number == version)
        .map(|(_, path)| path)
        .collect();
    match matching.len() {
        0 => Err(RepositoryError::NoVersion { version }),
        1 => Ok(matching.remove(0)),
        _ => Err(RepositoryError::SeveralVersions {
            version,
            found: files::inner_names(folder, &matching),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn root_of(names: &[&str], version: Option<u32>) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            write(folder.path(), name, "{}");
        }
        let root = artefact_root(folder.path(), version).map_err(|error| error.to_string())?;
        Ok(root
            .strip_prefix(folder.path())
            .unwrap()
            .display()
            .to_string())
    }

    #[test]
    fn root_follows_the_documented_rules() {
        let s = |text: &str| Ok(text.to_owned());
        assert_eq!(
            root_of(&["model-settings.json", "2/model-settings.json"], Some(2)),
            s("")
        );
        assert_eq!(
            root_of(&["1/model-settings.json", "2/model-settings.json"], Some(1)),
            s("1")
        );
        assert_eq!(
            root_of(&["a/3/model-settings.json", "2/model-settings.json"], None),
            s("a/3")
        );
        assert_eq!(
            root_of(
                &[
                    "10/model-settings.json",
                    "9/model-settings.json",
                    "11/other"
                ],
                None
            ),
            s("10")
        );
        assert_eq!(root_of(&["model.joblib"], None), s(""));
        assert_eq!(root_of(&["named/model-settings.json"], None), s(""));
        assert!(
            root_of(&["1/model-settings.json"], Some(4))
                .unwrap_err()
                .contains("no version 4")
        );
        assert!(
            root_of(
                &["a/1/model-settings.json", "b/1/model-settings.json"],
                Some(1)
            )
            .unwrap_err()
            .contains("a/1, b/1")
        );
        assert_eq!(root_of(&[], None), Err("the artefact is empty".to_owned()));
    }

    #[test]
    fn install_links_files_and_leaves_the_artefact_alone() {
        let artefact = tempfile::tempdir().unwrap();
        write(artefact.path(), "model.joblib", "weights");
        write(artefact.path(), "code/helper.py", "x");
        write(
            artefact.path(),
            "model-settings.json",
            r#"{"name":"a","implementation":"b.C"}"#,
        );
        std::os::unix::fs::symlink("/etc/passwd", artefact.path().join("leak")).unwrap();
        let models = tempfile::tempdir().unwrap();
        write(models.path(), ".new-old/1/x", "half made");
        write(models.path(), "unloaded_3/1/model-settings.json", "{}");
        let envoy = InferUri {
            host: "e".into(),
            port: 1,
            tls: false,
        };
        let repository = Mlserver::open(models.path().to_owned(), envoy, 1).unwrap();
        for record in [b"one".as_slice(), b"two".as_slice()] {
            repository
                .install(artefact.path(), &ModelSpec::default(), "iris_1", record)
                .unwrap();
        }
        let installed = models.path().join("iris_1/1");
        assert_eq!(
            fs::read_to_string(installed.join("model.joblib")).unwrap(),
            "weights"
        );
        assert_eq!(
            fs::read_to_string(installed.join("code/helper.py")).unwrap(),
            "x"
        );
        assert!(!installed.join("leak").exists());
        assert!(
            fs::read_to_string(installed.join(SETTINGS))
                .unwrap()
                .contains("iris_1")
        );
        assert_eq!(
            fs::read_to_string(artefact.path().join(SETTINGS)).unwrap(),
            r#"{"name":"a","implementation":"b.C"}"#
        );
        assert_eq!(
            repository.records().unwrap(),
            [("iris_1".to_owned(), b"two".to_vec())]
        );
        assert_eq!(fs::read_dir(models.path()).unwrap().count(), 1);
        repository.forget("iris_1").unwrap();
        assert!(repository.records().unwrap().is_empty());
        repository.remove("iris_1").unwrap();
        repository.remove("iris_1").unwrap();
        assert!(!models.path().join("iris_1").exists());
    }
}
