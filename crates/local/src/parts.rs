//! The programs a local system is made of: ours, found beside the running one, and the fetched ones.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use seldon_components::{Cache, EnvoyVersion};
use serde::{Deserialize, Serialize};

use crate::counts::Counts;

/// Where every program is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Parts {
    pub scheduler: PathBuf,
    pub agent: PathBuf,
    pub cli: PathBuf,
    pub filter_module: PathBuf,
    pub envoy: PathBuf,
    pub mlserver: PathBuf,
    pub rclone: PathBuf,
    /// These are empty where the system has none.
    #[serde(default)]
    pub triton: PathBuf,
    #[serde(default)]
    pub broker: PathBuf,
    #[serde(default)]
    pub model_gateway: PathBuf,
    #[serde(default)]
    pub pipeline_gateway: PathBuf,
    #[serde(default)]
    pub engine: PathBuf,
}

impl Parts {
    /// Finds our programs and fetches the others, all at once.
    pub fn find(cache: &Cache, version: EnvoyVersion, counts: &Counts) -> Result<Self> {
        let folder = beside()?;
        let scheduler = program(&folder, "seldon-scheduler")?;
        let agent = program(&folder, "seldon-agent")?;
        let cli = program(&folder, "seldon")?;
        let filter_module = filter_module(&folder)?;
        let wanted = |count: usize, name| match count {
            0 => Ok(PathBuf::new()),
            _ => program(&folder, name),
        };
        let broker = wanted(counts.brokers, "seldon-broker")?;
        let model_gateway = wanted(counts.model_gateways, "seldon-modelgateway")?;
        let pipeline_gateway = wanted(counts.pipeline_gateways, "seldon-pipelinegateway")?;
        let engine = wanted(counts.engines, "seldon-dataflow-engine")?;
        let (envoy, mlserver, triton, rclone) = std::thread::scope(|scope| {
            let envoy = scope.spawn(|| cache.envoy(version));
            let mlserver = scope.spawn(|| cache.mlserver());
            let triton = scope.spawn(|| match counts.tritons {
                0 => Ok(PathBuf::new()),
                _ => cache.triton(),
            });
            let rclone = cache.rclone();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<PathBuf>>| {
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("a fetching thread panicked"))
            };
            (join(envoy), join(mlserver), join(triton), rclone)
        });
        Ok(Self {
            scheduler,
            agent,
            cli,
            filter_module,
            envoy: envoy?,
            mlserver: mlserver?,
            rclone: rclone?,
            triton: triton?,
            broker,
            model_gateway,
            pipeline_gateway,
            engine,
        })
    }
}

/// The folder of the running program; for a test, the one above `deps`.
fn beside() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let folder = program.parent().context("this program has no folder")?;
    let inner = folder
        .file_name()
        .is_some_and(|name| name == "deps" || name == "examples");
    Ok(if inner {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    }
    .to_owned())
}

fn program(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if path.is_file() {
        return Ok(path);
    }
    bail!(
        "no {name} in {}: build it there (cargo build --package {})",
        folder.display(),
        package(name)
    )
}

fn package(name: &str) -> &str {
    if name == "seldon" { "seldon-cli" } else { name }
}

/// `$SELDON_FILTER_MODULE`, else `wasm/` beside the programs' folder, where `cargo xtask wasm` puts it.
fn filter_module(folder: &Path) -> Result<PathBuf> {
    let path = match std::env::var_os("SELDON_FILTER_MODULE") {
        Some(path) => PathBuf::from(path),
        None => folder
            .parent()
            .unwrap_or(folder)
            .join("wasm/seldon-filter.wasm"),
    };
    path.canonicalize().with_context(|| {
        format!(
            "no filter module {}: build it by `cargo xtask wasm`, or set SELDON_FILTER_MODULE",
            path.display()
        )
    })
}

/// The program tells by its own content whether an artefact is its work, so its parts must be files.
const MAKE: &str = "make.py";
const PROGRAM: [(&str, &str); 3] = [
    (MAKE, include_str!("../../../samples/artefacts/make.py")),
    (
        "kinds.py",
        include_str!("../../../samples/artefacts/kinds.py"),
    ),
    ("zoo.py", include_str!("../../../samples/artefacts/zoo.py")),
];

/// Makes the stand-ins for the documented artefacts below a folder; those that are there are left alone. With `runtimes`
/// those of XGBoost, LightGBM and MLflow are made too, whose packages it fetches.
pub fn make_artefacts(cache: &Cache, folder: &Path, runtimes: bool) -> Result<()> {
    let packages = runtimes.then(|| cache.mlserver_runtimes()).transpose()?;
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, text) in PROGRAM {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut command = Command::new(cache.mlserver_python()?);
    if let Some(packages) = packages {
        command.env("PYTHONPATH", packages);
    }
    let done = command
        .arg(folder.join(MAKE))
        .arg(folder)
        .stdin(Stdio::null())
        .output()
        .context("cannot start python")?;
    if !done.status.success() {
        bail!(
            "cannot make the sample artefacts: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(())
}
