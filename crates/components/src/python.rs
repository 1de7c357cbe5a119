//! Python packages: unpacked wheels and virtual environments. pip finds its index as the user configured it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{all_on_path, on_path, output, quote, run};
use crate::pins::Wheel;

/// A Python interpreter of the machine.
pub(crate) struct Python {
    path: PathBuf,
    minor: u32,
}

/// What a program that embeds a Python needs to know of it.
pub(crate) struct Interpreter {
    pub(crate) version: String,
    pub(crate) libraries: String,
}

/// MLServer's pins were seen to work together on 3.11 and need it or newer.
const PINNED_FROM: u32 = 11;

/// In the order in which they are tried where no other is called for.
const ANY: [&str; 6] = [
    "python3.11",
    "python3",
    "python3.12",
    "python3.13",
    "python3.10",
    "python3.9",
];

impl Python {
    /// Finds one that can fetch and unpack a wheel.
    pub(crate) fn for_wheels() -> Result<Self> {
        Self::find(&ANY, 9..=99)
    }

    /// Finds one that all test clients run on.
    pub(crate) fn for_clients() -> Result<Self> {
        Self::find(&ANY, 10..=99)
    }

    /// Finds one that the S3 server runs on.
    pub(crate) fn for_s3_server() -> Result<Self> {
        Self::find(&ANY, 11..=99)
    }

    /// Finds one that MLServer runs on.
    pub(crate) fn for_mlserver() -> Result<Self> {
        Self::find(
            &[
                "python3.11",
                "python3.12",
                "python3",
                "python3.10",
                "python3.9",
            ],
            9..=12,
        )
    }

    /// Lists those that may run Triton's Python models, best first.
    pub(crate) fn for_triton() -> Vec<Self> {
        // The same name may lie on PATH twice: a pyenv's before the system's.
        let paths = ANY.iter().flat_map(|name| all_on_path(name));
        paths
            .filter_map(|path| {
                let minor = minor_version(&path).ok()?;
                (9..=12).contains(&minor).then_some(Self { path, minor })
            })
            .collect()
    }

    /// Takes the interpreter of an environment.
    pub(crate) fn at(path: PathBuf) -> Result<Self> {
        let minor = minor_version(&path)?;
        Ok(Self { path, minor })
    }

    /// Tells `11` of 3.11.
    pub(crate) fn minor(&self) -> u32 {
        self.minor
    }

    /// Tells its version and the folder of its library.
    pub(crate) fn interpreter(&self) -> Result<Interpreter> {
        let print = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))";
        let libraries = output(Command::new(&self.path).args(["-c", print]))?;
        Ok(Interpreter {
            version: format!("3.{}", self.minor),
            libraries: libraries.trim().to_owned(),
        })
    }

    /// A shell program that runs a module of a folder of packages.
    pub(crate) fn start_of(&self, module: &str, packages: &Path) -> String {
        let [packages, python] = [packages, &self.path].map(|path| quote(&path.to_string_lossy()));
        format!("#!/bin/sh\nPYTHONPATH={packages} exec {python} -m {module} \"$@\"\n")
    }

    /// Installs packages, pinned by hashes, into a folder of their own.
    pub(crate) fn install_to(&self, folder: &Path, pins: &str) -> Result<()> {
        self.has("pip", "python3-pip")?;
        let requirements = folder.join("requirements.txt");
        fs::write(&requirements, pins)?;
        run(self
            .pip()
            .args([
                "install",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--require-hashes",
                "--target",
            ])
            .arg(folder)
            .arg("--requirement")
            .arg(&requirements))
    }

    fn find(names: &[&str], minors: std::ops::RangeInclusive<u32>) -> Result<Self> {
        let mut seen = Vec::new();
        for path in names.iter().filter_map(|name| on_path(name)) {
            // A pyenv shim of a version that is not installed is on PATH and fails.
            let Ok(minor) = minor_version(&path) else {
                continue;
            };
            if minors.contains(&minor) {
                return Ok(Self { path, minor });
            }
            seen.push(format!("{} is 3.{minor}", path.display()));
        }
        let (first, last) = minors.into_inner();
        let range = if last == 99 {
            format!("3.{first} or newer")
        } else {
            format!("3.{first} to 3.{last}")
        };
        let found = if seen.is_empty() {
            "no python3 is on PATH".to_owned()
        } else {
            seen.join(", ")
        };
        bail!(
            "python {range} is needed, but {found}: install python3.11 (Debian: apt-get install python3 python3-pip python3-venv)"
        )
    }

    /// Fetches a wheel, checks it against its pinned hashes and unpacks it, without its dependencies.
    pub(crate) fn unpack(&self, wheel: &Wheel, folder: &Path) -> Result<()> {
        self.has("pip", "python3-pip")?;
        let wheels = folder.join(".wheel");
        fs::create_dir_all(&wheels)?;
        let requirements = wheels.join("requirements.txt");
        fs::write(&requirements, wheel.pin)?;
        run(self
            .pip()
            .args([
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--require-hashes",
                "--dest",
            ])
            .arg(&wheels)
            .arg("--requirement")
            .arg(&requirements))?;
        let file = fs::read_dir(&wheels)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .with_context(|| format!("pip fetched no wheel of {}", wheel.version))?;
        run(Command::new(&self.path)
            .args(["-m", "zipfile", "-e"])
            .arg(file)
            .arg(folder))?;
        Ok(fs::remove_dir_all(&wheels)?)
    }

    /// Makes a virtual environment with packages.
    pub(crate) fn environment(
        &self,
        folder: &Path,
        packages: &[String],
        constraints: &str,
    ) -> Result<()> {
        self.has("venv", "python3-venv")?;
        self.has("ensurepip", "python3-venv")?;
        run(Command::new(&self.path).args(["-m", "venv"]).arg(folder))?;
        let mut pip = Command::new(folder.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet"]).envs(QUIET);
        if self.minor >= PINNED_FROM {
            let file = folder.join("constraints.txt");
            fs::write(&file, constraints)?;
            pip.arg("--constraint").arg(file);
        }
        run(pip.args(packages))
    }

    fn pip(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(["-m", "pip"]).envs(QUIET);
        command
    }

    fn has(&self, module: &str, package: &str) -> Result<()> {
        let import = format!("import {module}");
        run(Command::new(&self.path).args(["-c", &import])).with_context(|| {
            let path = self.path.display();
            format!("{path} has no module {module}: install it (Debian: apt-get install {package})")
        })
    }
}

const QUIET: [(&str, &str); 2] = [
    ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
    ("PIP_ROOT_USER_ACTION", "ignore"),
];

fn minor_version(path: &Path) -> Result<u32> {
    let print = "import sys; print(sys.version_info[1] if sys.version_info[0] == 3 else 0)";
    Ok(output(Command::new(path).args(["-c", print]))?
        .trim()
        .parse()?)
}
