//! An S3 server that is not ours and not rclone's, for tests.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{Cache, executable};
use crate::pins;
use crate::python::Python;

impl Cache {
    /// Returns nanio's program: `serve --data-dir=FOLDER` serves the folders in a folder as buckets, to those who sign
    /// with the keys of `NANIO_ACCESS_KEY` and `NANIO_SECRET_KEY`.
    pub fn s3_server(&self) -> Result<PathBuf> {
        let name = format!("nanio-{}", pins::NANIO);
        let folder = self.install(&name, pins::NANIO_PACKAGES, |folder| {
            let (python, packages) = (Python::for_s3_server()?, folder.join("packages"));
            fs::create_dir_all(&packages)?;
            python.install_to(&packages, pins::NANIO_PACKAGES)?;
            let program = folder.join("nanio");
            fs::write(&program, python.start_of("nanio", &packages))?;
            executable(&program)
        })?;
        Ok(folder.join("nanio"))
    }
}
