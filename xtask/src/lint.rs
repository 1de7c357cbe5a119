//! Formatting, lints and documentation, with warnings denied.

use anyhow::Result;

use crate::workspace::{cargo, root, run};

#[derive(clap::Args)]
pub struct Lint {
    /// Also check licences, advisories and duplicate crates; builds cargo-deny into the cache first (minutes)
    #[arg(long)]
    deny: bool,
}

/// Fixed, so that an advisory and not a new release changes the result.
const CARGO_DENY: &str = "0.18.9";

impl Lint {
    pub fn run(&self) -> Result<()> {
        format()?;
        clippy()?;
        documentation()?;
        if self.deny { deny() } else { Ok(()) }
    }
}

pub fn format() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"])?)
}

pub fn clippy() -> Result<()> {
    run(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ])?)
}

pub fn documentation() -> Result<()> {
    let mut command = cargo(&["doc", "--workspace", "--no-deps", "--quiet"])?;
    run(command.env("RUSTDOCFLAGS", "--deny warnings"))
}

fn deny() -> Result<()> {
    let cache = seldon_components::Cache::open()?;
    let folder = cache.install(&format!("cargo-deny-{CARGO_DENY}"), CARGO_DENY, |folder| {
        let mut install = cargo(&[
            "install",
            "cargo-deny",
            "--locked",
            "--quiet",
            "--version",
            CARGO_DENY,
            "--root",
        ])?;
        run(install.arg(folder))
    })?;
    let mut command = std::process::Command::new(folder.join("bin/cargo-deny"));
    // Advisories need their database, which is not a package: checked where it can be reached.
    run(command
        .current_dir(root()?)
        .args(["check", "bans", "licenses", "sources"]))
}
