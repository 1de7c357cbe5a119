//! Where the last answer came from, kept between commands.
use std::{fs, io, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::config;

/// The saved routes.
pub(crate) struct Routes {
    path: Option<PathBuf>,
    routes: Vec<String>,
}

impl Routes {
    /// Reads the file; without a home nothing is kept.
    pub(crate) fn load() -> Result<Self> {
        let Ok(folder) = config::folder() else {
            return Ok(Self {
                path: None,
                routes: Vec::new(),
            });
        };
        let path = folder.join("session");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        Ok(Self {
            path: Some(path),
            routes: super::routes(text.lines()),
        })
    }

    /// What a request carries.
    pub(crate) fn sent(&self, sticky: bool) -> &[String] {
        if sticky { &self.routes } else { &[] }
    }

    /// Keeps the routes of an answer, each once: sent back as they came they would grow with every call.
    pub(crate) fn save(&mut self, routes: &[String]) -> Result<()> {
        let mut unique: Vec<String> = Vec::new();
        for route in routes {
            if !unique.contains(route) {
                unique.push(route.clone());
            }
        }
        if unique == self.routes {
            return Ok(());
        }
        self.routes = unique;
        match &self.path {
            Some(path) => config::write(path, &self.routes.join(",")),
            None => Ok(()),
        }
    }
}
