//! Triton's layout: `<models>/<name>_<version>/config.pbtxt` and the artefact's version beside it, as version 1.
use std::fs::Metadata;
use std::path::{Path, PathBuf};

use seldon_proto::scheduler::{
    ModelRuntimeInfo, ModelSpec, TritonCpu, TritonModelConfig, model_runtime_info,
};

use super::files;
use super::folders::{Folders, VERSION};
use super::pbtxt::{self, Field};
use super::{Repository, RepositoryError};

/// Names the model and its tensors.
const CONFIG: &str = "config.pbtxt";

/// A repository that a Triton reads.
pub struct Triton {
    folders: Folders,
}

impl Triton {
    /// `models` is Triton's folder; half-made folders of a former agent are removed from it.
    pub fn open(models: PathBuf) -> Result<Self, RepositoryError> {
        Ok(Self {
            folders: Folders::open(models, CONFIG)?,
        })
    }
}

impl Repository for Triton {
    fn install(
        &self,
        folder: &Path,
        spec: &ModelSpec,
        internal: &str,
        record: &[u8],
    ) -> Result<(), RepositoryError> {
        let version = version_folder(folder, spec.artifact_version)?;
        let root = version.parent().unwrap_or(folder);
        self.folders.replace(internal, record, |staging| {
            fill(staging, root, &version, internal)
        })
    }

    fn runtime_info(&self, internal: &str) -> ModelRuntimeInfo {
        let config = std::fs::read_to_string(self.folders.of(internal).join(CONFIG));
        let instance_count = config.map_or(1, |text| instances(&text));
        let config = TritonModelConfig {
            cpu: vec![TritonCpu { instance_count }],
        };
        ModelRuntimeInfo {
            model_runtime_info: Some(model_runtime_info::ModelRuntimeInfo::Triton(config)),
        }
    }

    fn folders(&self) -> &Folders {
        &self.folders
    }
}

/// Copies the one version and what lies beside it, other versions left out.
fn fill(
    staging: &Path,
    root: &Path,
    version: &Path,
    internal: &str,
) -> Result<(), RepositoryError> {
    files::link_tree(version, &staging.join(VERSION))?;
    for path in files::entries(root)? {
        let Some(name) = path.file_name() else {
            continue;
        };
        if files::is_real(&path, Metadata::is_file) {
            files::link_file(&path, &staging.join(name))?;
        } else if files::is_real(&path, Metadata::is_dir) && number(&path).is_none() {
            files::link_tree(&path, &staging.join(name))?;
        }
    }
    let config = root.join(CONFIG);
    let unusable = |reason: String| RepositoryError::Settings {
        file: CONFIG.to_owned(),
        reason,
    };
    // Triton can make up the rest of most models.
    let text = if files::is_real(&config, Metadata::is_file) {
        std::fs::read_to_string(&config).map_err(|error| unusable(error.to_string()))?
    } else {
        String::new()
    };
    let text = renamed(&text, internal).map_err(unusable)?;
    files::replace_file(&staging.join(CONFIG), text.as_bytes())
}

/// Finds the version folder inside a downloaded artefact.
fn version_folder(folder: &Path, wanted: Option<u32>) -> Result<PathBuf, RepositoryError> {
    if files::entries(folder)?.is_empty() {
        return Err(RepositoryError::Empty);
    }
    // What lies inside a version is the model's own affair, even where it is called by a number.
    let outermost = |path: &PathBuf| {
        let inside = path.strip_prefix(folder).unwrap_or(path);
        !inside
            .ancestors()
            .skip(1)
            .any(|above| number(above).is_some())
    };
    let numbered: Vec<(u32, PathBuf)> = files::folders(folder)?
        .into_iter()
        .filter(|path| path != folder && outermost(path))
        .filter_map(|path| Some((number(&path)?, path)))
        .collect();
    let version = match wanted {
        Some(version) => version,
        None => numbered
            .iter()
            .map(|(number, _)| *number)
            .max()
            .ok_or(RepositoryError::NoVersionFolder)?,
    };
    let mut matching: Vec<PathBuf> = numbered
        .into_iter()
        .filter(|(number, _)| *number == version)
        .map(|(_, path)| path)
        .collect();
    match matching.len() {
        0 => Err(RepositoryError::NoSuchVersionFolder { version }),
        1 => Ok(matching.remove(0)),
        _ => Err(RepositoryError::SeveralVersionFolders {
            version,
            found: files::inner_names(folder, &matching),
        }),
    }
}

/// The number that is a version folder's name.
fn number(path: &Path) -> Option<u32> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    (number > 0).then_some(number)
}

/// The configuration under another name. Only text that must change does: what a newer Triton knows stays.
fn renamed(text: &str, internal: &str) -> Result<String, String> {
    let fields = pbtxt::parse(text)?;
    let mut changed = format!("name: \"{internal}\"\n");
    let mut from = 0;
    // Which version is served was decided already, and it is called 1 now.
    let leaves = |field: &&Field<'_>| matches!(field.name, "name" | "version_policy");
    for field in fields.iter().filter(leaves) {
        changed.push_str(&text[from..field.span.start]);
        let after = &text[field.span.end..];
        let separator = after.trim_start_matches([' ', '\t']);
        let gap = after.len() - separator.len();
        from = field.span.end + gap + usize::from(separator.starts_with([',', ';']));
    }
    changed.push_str(&text[from..]);
    Ok(changed)
}

/// Instances on the CPU, of the first group that has any.
fn instances(text: &str) -> u32 {
    let fields = pbtxt::parse(text).unwrap_or_default();
    let named = |fields: &[Field<'_>], name: &str| {
        let field = fields.iter().find(|field| field.name == name);
        field
            .and_then(|field| field.value.text())
            .map(str::to_owned)
    };
    let groups = fields
        .iter()
        .filter(|field| field.name == "instance_group")
        .flat_map(|field| field.value.messages());
    let mut on_cpu = groups.filter(|group| named(group, "kind").as_deref() == Some("KIND_CPU"));
    let count = on_cpu
        .next()
        .and_then(|group| named(group, "count")?.parse().ok())
        .unwrap_or(0);
    let framework = named(&fields, "platform").or_else(|| named(&fields, "backend"));
    let framework = framework.unwrap_or_default();
    let by_itself = if framework.starts_with("tensorflow") || framework.starts_with("onnxruntime") {
        2
    } else {
        1
    };
    if count < 1 { by_itself } else { count }
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

    fn version_of(names: &[&str], version: Option<u32>) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            write(folder.path(), name, "");
        }
        let found = version_folder(folder.path(), version).map_err(|error| error.to_string())?;
        let inside = found.strip_prefix(folder.path()).unwrap();
        Ok(inside.display().to_string())
    }

    #[test]
    fn the_version_is_the_one_asked_for_or_the_highest() {
        let two = ["config.pbtxt", "1/model.py", "2/model.py", "10/model.py"];
        let s = |text: &str| Ok(text.to_owned());
        assert_eq!(version_of(&two, None), s("10"));
        assert_eq!(version_of(&two, Some(2)), s("2"));
        assert_eq!(version_of(&["a/3/x", "b/0/x"], None), s("a/3"));
        assert_eq!(version_of(&["1/assets/7/x"], None), s("1"));
        let error = |names: &[&str], version| version_of(names, version).unwrap_err();
        assert!(error(&two, Some(4)).contains("no version 4"));
        assert!(error(&["model.py"], None).contains("no version folder"));
        assert!(error(&["a/1/x", "b/1/x"], None).contains("a/1, b/1"));
        assert_eq!(error(&[], None), "the artefact is empty");
    }

    #[test]
    fn only_the_name_and_the_version_policy_change() {
        let config = "# mine\nname: \"math\", backend: \"python\"\nfuture_field { a: 1 }\n\
                      version_policy: { specific: { versions: [ 2 ] } }\nparameters [ { key: \"name\" } ]\n";
        assert_eq!(
            renamed(config, "math_3").unwrap(),
            "name: \"math_3\"\n# mine\n backend: \"python\"\nfuture_field { a: 1 }\n\n\
             parameters [ { key: \"name\" } ]\n"
        );
        assert_eq!(renamed("", "a_1").unwrap(), "name: \"a_1\"\n");
        assert!(renamed("name {", "a_1").unwrap_err().contains("line 1"));
    }

    #[test]
    fn instances_are_counted_as_documented() {
        for (config, count) in [
            ("", 1),
            ("backend: \"python\"", 1),
            ("platform: \"tensorflow_savedmodel\"", 2),
            ("instance_group [ { count: 3 kind: KIND_CPU } ]", 3),
            (
                "instance_group { kind: KIND_GPU count: 4 } instance_group: [ { kind: KIND_CPU, count: 5 } ]",
                5,
            ),
            ("instance_group [ { count: 3 kind: KIND_GPU } ]", 1),
            ("not {", 1),
        ] {
            assert_eq!(instances(config), count, "{config}");
        }
    }

    #[test]
    fn install_takes_one_version_and_what_lies_beside() {
        let artefact = tempfile::tempdir().unwrap();
        let config = "instance_group [ { count: 2 kind: KIND_CPU } ]";
        for (name, text) in [
            ("config.pbtxt", config),
            ("1/model.py", "one"),
            ("2/model.py", "two"),
            ("labels.txt", "x"),
            ("warmup/data", "y"),
        ] {
            write(artefact.path(), name, text);
        }
        let models = tempfile::tempdir().unwrap();
        write(models.path(), "unloaded_3/config.pbtxt", "");
        let repository = Triton::open(models.path().to_owned()).unwrap();
        let spec = ModelSpec {
            artifact_version: Some(1),
            ..Default::default()
        };
        repository
            .install(artefact.path(), &spec, "math_1", b"record")
            .unwrap();
        let read = |name: &str| fs::read_to_string(models.path().join("math_1").join(name)).ok();
        assert_eq!(read("1/model.py").as_deref(), Some("one"));
        assert_eq!(read("labels.txt").as_deref(), Some("x"));
        assert_eq!(read("warmup/data").as_deref(), Some("y"));
        assert_eq!(read("2/model.py"), None);
        assert!(
            read("config.pbtxt")
                .unwrap()
                .starts_with("name: \"math_1\"\n")
        );
        // Files are shared by hard links, so the artefact's own must be as before.
        assert_eq!(
            fs::read_to_string(artefact.path().join(CONFIG)).unwrap(),
            config
        );
        let info = repository
            .runtime_info("math_1")
            .model_runtime_info
            .unwrap();
        let model_runtime_info::ModelRuntimeInfo::Triton(info) = info else {
            panic!("not Triton's");
        };
        assert_eq!(info.cpu[0].instance_count, 2);
        assert_eq!(fs::read_dir(models.path()).unwrap().count(), 1);
    }
}
