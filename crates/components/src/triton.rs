//! Triton with its Python backend: the server of a wheel, and what its models run on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, executable};
use crate::command::quote;
use crate::pins;
use crate::python::{Interpreter, Python};

/// What runs a model of the Python backend; there is one for each Python in the wheel.
const STUB: &str = "triton_python_backend_stub";

impl Cache {
    /// Returns the program that starts Triton: like `tritonserver`, with its backends found.
    pub fn triton(&self) -> Result<PathBuf> {
        let pin = format!("{}{}", pins::PYTRITON.pin, pins::TRITON_NUMPY);
        let folder = self.install(&format!("triton-{}", pins::TRITON), &pin, install)?;
        Ok(folder.join("tritonserver"))
    }
}

fn install(folder: &Path) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("triton is only packaged for Linux on x86_64: leave it out by --no-triton");
    }
    Python::for_wheels()?.unpack(&pins::PYTRITON, folder)?;
    let server = folder.join("pytriton/tritonserver");
    let (stubs, backend) = (
        server.join("python_backend_stubs"),
        server.join("backends/python"),
    );
    let (python, stub, library) = fitting(&stubs)?;
    fs::rename(stub, backend.join(STUB)).context("the package does not hold the Python backend")?;
    fs::remove_dir_all(&stubs)?;
    // The stub ignores PYTHONPATH and looks in its own folder, so what the models import goes there.
    python.install_to(&backend, pins::TRITON_NUMPY)?;
    executable(&server.join("bin/tritonserver"))?;
    let program = folder.join("tritonserver");
    fs::write(&program, start(&server, &library))?;
    executable(&program)
}

/// Finds a Python whose library the stub for it finds; the machine may have several.
fn fitting(stubs: &Path) -> Result<(Python, PathBuf, String)> {
    let mut seen = Vec::new();
    for python in Python::for_triton() {
        let Interpreter { version, libraries } = python.interpreter()?;
        let stub = stubs.join(&version).join(STUB);
        if !stub.is_file() {
            continue;
        }
        executable(&stub)?;
        // Without arguments it says so and ends with 1; without its library it cannot start.
        let tried = Command::new(&stub)
            .env("LD_LIBRARY_PATH", &libraries)
            .output();
        if tried.is_ok_and(|done| done.status.code() == Some(1)) {
            return Ok((python, stub, libraries));
        }
        seen.push(format!("no libpython{version}.so.1.0"));
    }
    let found = if seen.is_empty() {
        "no such python is on PATH".to_owned()
    } else {
        seen.join(", ")
    };
    bail!(
        "triton needs python 3.9 to 3.12 and its library, but {found}: install both (Debian: apt-get install python3 libpython3.11)"
    )
}

fn start(server: &Path, library: &str) -> String {
    let (bin, backends) = (server.join("bin/tritonserver"), server.join("backends"));
    let libraries = format!("{}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}", quote(library));
    format!(
        "#!/bin/sh\nexport LD_LIBRARY_PATH={libraries}\nexec {} --backend-directory={} \"$@\"\n",
        quote(&bin.display().to_string()),
        quote(&backends.display().to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_program_quotes_its_folders() {
        let text = start(Path::new("/a b/it's"), "/lib");
        assert!(
            text.contains(r"exec '/a b/it'\''s/bin/tritonserver'"),
            "{text}"
        );
        assert!(text.contains("LD_LIBRARY_PATH='/lib'${"), "{text}");
    }
}
