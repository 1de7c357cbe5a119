//! Where the last answer came from, kept between commands.
use std::{fs, path::PathBuf};

use anyhow::Result;

use crate::config;

/// A file that holds more was not written here, and Envoy would refuse a request with so large headers.
const MOST: usize = 16 * 1024;

/// The saved routes.
pub(crate) struct Routes {
    path: Option<PathBuf>,
    routes: Vec<String>,
}

impl Routes {
    /// Reads the file; without a home nothing is kept. A file that cannot be used is one without routes: the next
    /// answer replaces it.
    pub(crate) fn load() -> Self {
        let Ok(folder) = config::folder() else {
            return Self {
                path: None,
                routes: Vec::new(),
            };
        };
        let path = folder.join("session");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let text = if text.len() > MOST { "" } else { text.as_str() };
        Self {
            path: Some(path),
            routes: super::routes(text.lines()),
        }
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
