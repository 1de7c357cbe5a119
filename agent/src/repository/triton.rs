//! Triton's layout: `<models>/<name>_<version>/config.pbtxt` and the artefact's version beside it, as version 1.
//!
//! The version is a numbered folder. Without any, a model under one of Triton's own file names is taken as it lies there.
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

/// File and folder names by which Triton tells a model's backend.
const MODELS: [&str; 9] = [
    "checkpoint.tl",
    "model.dali",
    "model.graphdef",
    "model.onnx",
    "model.plan",
    "model.pt",
    "model.py",
    "model.savedmodel",
    "model.xml",
];

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
        let layout = layout(folder, spec.artifact_version)?;
        self.folders
            .replace(internal, record, |staging| fill(staging, &layout, internal))
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

/// Where an artefact keeps its model, and the configuration and what else belongs to it: both are one folder where there
/// are no versions.
struct Layout {
    version: PathBuf,
    root: PathBuf,
}

/// Copies the one version and what lies beside it, other versions left out.
fn fill(staging: &Path, layout: &Layout, internal: &str) -> Result<(), RepositoryError> {
    let target = staging.join(VERSION);
    files::link_tree(&layout.version, &target)?;
    let flat = layout.version == layout.root;
    if flat {
        // Triton reads the one outside.
        files::remove_file(&target.join(CONFIG))?;
    }
    for path in files::entries(&layout.root)? {
        let Some(name) = path.file_name().filter(|_| !(flat && is_model(&path))) else {
            continue;
        };
        if files::is_real(&path, Metadata::is_file) {
            files::link_file(&path, &staging.join(name))?;
        } else if files::is_real(&path, Metadata::is_dir) && number(&path).is_none() {
            files::link_tree(&path, &staging.join(name))?;
        }
    }
    let config = layout.root.join(CONFIG);
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

/// Finds the model inside a downloaded artefact.
fn layout(folder: &Path, wanted: Option<u32>) -> Result<Layout, RepositoryError> {
    match version_folder(folder, wanted) {
        Err(RepositoryError::NoVersionFolder)
            if files::entries(folder)?.iter().any(|path| is_model(path)) =>
        {
            Ok(Layout {
                version: folder.to_owned(),
                root: folder.to_owned(),
            })
        }
        found => found.map(|version| Layout {
            root: version.parent().unwrap_or(folder).to_owned(),
            version,
        }),
    }
}

fn is_model(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| MODELS.contains(&name))
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

/// A `config.pbtxt` under another name. Only text that must change does: what a newer Triton knows stays. An error says
/// what is wrong and in which line.
pub fn renamed(text: &str, internal: &str) -> Result<String, String> {
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
    // Text may name a kind by its number.
    let is_cpu = |kind: &str| matches!(kind, "KIND_CPU" | "2");
    let mut on_cpu = groups.filter(|group| named(group, "kind").is_some_and(|kind| is_cpu(&kind)));
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
    use proptest::prelude::*;
    use proptest::sample::select;
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
        let found = layout(folder.path(), version).map_err(|error| error.to_string())?;
        let inside = found.version.strip_prefix(folder.path()).unwrap();
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
        assert_eq!(version_of(&["2/model.py", "model.py"], None), s("2"));
        for flat in ["model.onnx", "model.savedmodel/saved_model.pb"] {
            assert_eq!(version_of(&[flat, "config.pbtxt"], None), s(""));
        }
        let error = |names: &[&str], version| version_of(names, version).unwrap_err();
        assert!(error(&two, Some(4)).contains("no version 4"));
        assert!(error(&["saved.onnx"], None).contains("no version folder"));
        assert!(error(&["model.onnx"], Some(1)).contains("no version 1"));
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
    fn a_model_without_a_version_folder_becomes_version_1() {
        let artefact = tempfile::tempdir().unwrap();
        write(artefact.path(), "model.savedmodel/saved_model.pb", "graph");
        write(artefact.path(), "labels.txt", "x");
        write(artefact.path(), CONFIG, "max_batch_size: 8 # of mine\n");
        let models = tempfile::tempdir().unwrap();
        let repository = Triton::open(models.path().to_owned()).unwrap();
        repository
            .install(artefact.path(), &ModelSpec::default(), "tf_1", b"record")
            .unwrap();
        let read = |name: &str| fs::read_to_string(models.path().join("tf_1").join(name)).ok();
        assert_eq!(
            read("1/model.savedmodel/saved_model.pb").as_deref(),
            Some("graph")
        );
        assert_eq!(read("labels.txt").as_deref(), Some("x"));
        assert!(!models.path().join("tf_1/model.savedmodel").exists());
        assert_eq!(
            read(CONFIG).as_deref(),
            Some("name: \"tf_1\"\nmax_batch_size: 8 # of mine\n")
        );
        assert_eq!(read("1/config.pbtxt"), None);
        assert!(artefact.path().join(CONFIG).is_file());
    }

    #[test]
    fn instances_are_counted_as_documented() {
        for (config, count) in [
            ("", 1),
            ("instance_group { kind: 2 count: 3 }", 3),
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

    /// One field in any way of writing, and what stands behind it.
    fn written() -> impl Strategy<Value = String> {
        let names = vec!["name", "version_policy", "backend", "input", "future"];
        let values = vec![
            "3",
            "\"a\" 'b'",
            "{ name: \"x\" }",
            "[ { dims: [ 1, 2 ] }, < y: 1 > ]",
        ];
        let ends = vec!["\n", " ", ", ", ";\n", " # note\n", " , # note\n"];
        (select(names), select(values), select(ends))
            .prop_map(|(name, value, end)| format!("{name}: {value}{end}"))
    }

    proptest! {
        #[test]
        fn every_other_field_and_comment_stays(fields in proptest::collection::vec(written(), 0..8)) {
            let text = fields.concat();
            let changed = renamed(&text, "m_1").unwrap();
            let shown = |text: &str| -> Vec<String> {
                let fields = pbtxt::parse(text).unwrap();
                fields.iter().map(|field| text[field.span.clone()].to_owned()).collect()
            };
            let mut wanted = vec!["name: \"m_1\"".to_owned()];
            let stays = |field: &String| !field.starts_with("name:") && !field.starts_with("version_policy:");
            wanted.extend(shown(&text).into_iter().filter(stays));
            prop_assert_eq!(shown(&changed), wanted);
            let notes = |text: &str| text.matches("# note").count();
            prop_assert_eq!(notes(&changed), notes(&text));
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
