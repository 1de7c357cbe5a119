//! Builds the Envoy filter for `wasm32-unknown-unknown`.

mod toolchain;

use std::{
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

const TARGET: &str = "wasm32-unknown-unknown";
/// What every Envoy worker compiles when it starts; more would be a mistake in the build.
const MAX_SIZE: u64 = 250_000;

/// Builds `target/wasm/seldon-filter.wasm` if its sources changed, and returns its path.
///
/// Uses the active toolchain where it has the target, else a private one in the per-user cache, made once.
pub fn build(workspace_root: &Path) -> Result<PathBuf> {
    build_as(workspace_root, &[], "seldon-filter.wasm")
}

/// Builds `target/wasm/seldon-filter-panicking.wasm`, which takes its VM down at every hundredth request: tests only.
pub fn build_panicking(workspace_root: &Path) -> Result<PathBuf> {
    let features = ["--features", "panic-for-tests"];
    build_as(workspace_root, &features, "seldon-filter-panicking.wasm")
}

fn build_as(workspace_root: &Path, features: &[&str], name: &str) -> Result<PathBuf> {
    let rustc = match active_rustc(workspace_root) {
        Some(rustc) => rustc,
        None => toolchain::private_rustc()?.into(),
    };
    let target_dir = workspace_root.join("target/wasm-build");
    fs::create_dir_all(workspace_root.join("target"))?;
    let alone = File::create(workspace_root.join("target/wasm-build.lock"))?;
    alone.lock().context("cannot lock the wasm build")?;
    forget_other_toolchain(&target_dir, &rustc)?;
    let mut cargo = cargo(&rustc);
    cargo
        .current_dir(workspace_root)
        .args(["build", "--quiet", "--profile", "wasm", "--target", TARGET])
        .args(["-p", "seldon-filter", "--target-dir"])
        .arg(&target_dir)
        .args(features);
    run(&mut cargo).context("cannot build the filter for wasm")?;

    let built = target_dir.join(TARGET).join("wasm/seldon_filter.wasm");
    let module = workspace_root.join("target/wasm").join(name);
    replace(&built, &module)?;
    let size = fs::metadata(&module)?.len();
    ensure!(
        size <= MAX_SIZE,
        "{} has {size} bytes, more than {MAX_SIZE}: look for a new dependency of seldon-filter",
        module.display()
    );
    eprintln!("wasm: {} ({} KB)", module.display(), size / 1000);
    Ok(module)
}

/// The active toolchain's compiler, if the target is installed for it.
fn active_rustc(workspace_root: &Path) -> Option<OsString> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(&rustc)
        .current_dir(workspace_root)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .ok()?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    let has_std = fs::read_dir(folder)
        .ok()?
        .flatten()
        .any(|file| file.file_name().to_string_lossy().starts_with("libstd-"));
    has_std.then_some(rustc)
}

/// Cargo tells compilers apart by their version, but a private toolchain made anew has the same version and another
/// standard library, which what is built there does not fit.
fn forget_other_toolchain(target_dir: &Path, rustc: &OsString) -> Result<()> {
    let made = fs::metadata(rustc).and_then(|file| file.modified()).ok();
    let identity = format!("{} {made:?}\n", rustc.display());
    let record = target_dir.join("toolchain");
    if fs::read_to_string(&record).is_ok_and(|there| there == identity) {
        return Ok(());
    }
    if target_dir.exists() {
        fs::remove_dir_all(target_dir)
            .with_context(|| format!("cannot clear {}", target_dir.display()))?;
    }
    fs::create_dir_all(target_dir)?;
    fs::write(record, identity).context("cannot record the toolchain")
}

/// Cargo with this compiler, and without what the environment or an outer cargo would add for the host's target.
fn cargo(rustc: &OsString) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.env("RUSTC", rustc);
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_RUSTC",
        "CARGO_TARGET_DIR",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_MAKEFLAGS",
    ] {
        cargo.env_remove(variable);
    }
    cargo
}

/// Puts the file in place at once, so that an Envoy that starts meanwhile never reads half of it; one that is equal
/// keeps its time.
fn replace(built: &Path, module: &Path) -> Result<()> {
    let bytes = fs::read(built).with_context(|| format!("no module at {}", built.display()))?;
    if fs::read(module).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(folder) = module.parent() {
        fs::create_dir_all(folder)?;
    }
    let beside = module.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&beside, bytes)?;
    fs::rename(&beside, module)
        .with_context(|| format!("cannot put the module at {}", module.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    ensure!(
        status.success(),
        "{} failed: {status}",
        command.get_program().to_string_lossy()
    );
    Ok(())
}
