//! What is wrong with a manifest, and where.
use std::fmt;

/// One mistake in a manifest file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The name of the file, as the user gave it.
    pub source: String,
    /// The line, counted from 1; 0 when it is not known.
    pub line: u64,
    /// The path of the field, such as `spec.replicas`; empty for the whole document.
    pub path: String,
    /// What is wrong, in words.
    pub reason: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", self.source)?;
        if self.line > 0 {
            write!(out, "{}:", self.line)?;
        }
        if !self.path.is_empty() {
            write!(out, " {}:", self.path)?;
        }
        write!(out, " {}", self.reason)
    }
}

/// Every mistake found in a manifest file; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            write!(out, "{mistake}")?;
        }
        Ok(())
    }
}
