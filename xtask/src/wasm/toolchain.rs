//! A compiler for wasm where the active toolchain has none and rustup's server cannot be asked: Debian's `rustc-web`
//! with its library source, from which the target's standard library is compiled once. Nothing is installed; all of it
//! lies in the per-user cache.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use super::{TARGET, cargo, run};

/// The version that was tried; if it is gone, whatever is current.
const VERSION: &str = "1.96.0+dfsg1-1~deb12u2";
/// Finds the toolchain's own folder, so that it can be moved into place when it is whole.
const RUSTC: &str = "#!/bin/sh
D=$(cd \"$(dirname \"$0\")/..\" && pwd)
LD_LIBRARY_PATH=$D/lib exec \"$D/libexec/rustc\" --sysroot \"$D\" \"$@\"
";
const WAY_OUT: &str =
    "install the target with `rustup target add wasm32-unknown-unknown`, or build on Debian 12";

/// The private toolchain's compiler; makes the toolchain if it is not there.
pub(super) fn private_rustc() -> Result<PathBuf> {
    let cache = cache_folder()?;
    let folder = cache.join("rust-wasm");
    let rustc = folder.join("bin/rustc");
    if rustc.exists() {
        return Ok(rustc);
    }
    fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("rust-wasm.lock"))?;
    if lock.try_lock().is_err() {
        say("waiting for another process that makes it");
        lock.lock()?;
    }
    if rustc.exists() {
        return Ok(rustc);
    }
    let started = Instant::now();
    say(
        "the active toolchain has no wasm32 target: making a private one, once, in about 3 minutes",
    );
    let new = cache.join("rust-wasm.new");
    let made = make(&new, &cache.join("rust-wasm.work"));
    let _ = fs::remove_dir_all(cache.join("rust-wasm.work"));
    made.with_context(|| format!("cannot make a wasm toolchain; {WAY_OUT}"))?;
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&new, &folder)?;
    say(&format!(
        "ready after {} s in {}",
        started.elapsed().as_secs(),
        folder.display()
    ));
    Ok(rustc)
}

fn say(text: &str) {
    eprintln!("wasm toolchain: {text}");
}

fn cache_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("SELDON_CACHE").filter(|f| !f.is_empty()) {
        return std::path::absolute(folder).context("SELDON_CACHE is no usable path");
    }
    let home = std::env::var_os("HOME").context("set HOME or SELDON_CACHE")?;
    Ok(PathBuf::from(home).join(".cache/seldon"))
}

fn make(new: &Path, work: &Path) -> Result<()> {
    for folder in [new, work] {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
    }
    let packages = download(work)?;
    say("unpacking");
    unpack(&packages, work)?;
    assemble(&work.join("files"), new)?;
    say("compiling the standard library for wasm32");
    compile_std(new, &work.join("std"))
}

/// Packages in the order they are needed: the compiler names its library's version, the library names its LLVM's.
fn download(work: &Path) -> Result<Vec<PathBuf>> {
    let system = Apt::default();
    match system.download(work) {
        Ok(packages) => Ok(packages),
        Err(first) => {
            say("the package lists are missing or old: fetching new ones");
            let fresh = Apt::with_own_lists(work).with_context(|| format!("{first:#}"))?;
            fresh.download(work)
        }
    }
}

/// How apt is called: on the system's package lists, or on lists of our own, which takes no root either.
#[derive(Default)]
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn with_own_lists(work: &Path) -> Result<Self> {
        let state = work.join("apt");
        fs::create_dir_all(state.join("lists/partial"))?;
        fs::create_dir_all(state.join("cache/archives/partial"))?;
        let state = state.display();
        let apt = Self {
            options: vec![
                format!("-oDir::State={state}"),
                format!("-oDir::State::lists={state}/lists"),
                format!("-oDir::Cache={state}/cache"),
                "-oDir::State::status=/var/lib/dpkg/status".into(),
            ],
        };
        run(apt.command("apt-get").args(["-qq", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // The sandbox's user could not read the cache folder.
        command
            .args(&self.options)
            .arg("-oAPT::Sandbox::User=root")
            .env("LC_ALL", "C");
        command
    }

    fn download(&self, work: &Path) -> Result<Vec<PathBuf>> {
        let compiler = self.package("rustc-web")?;
        let minor: Vec<&str> = compiler.version.splitn(3, '.').take(2).collect();
        let library = self.package(&format!("libstd-rust-web-{}", minor.join(".")))?;
        let llvm = library
            .depends
            .split([',', ' ', '|'])
            .find(|p| p.starts_with("libllvm"))
            .context("the library's package names no libllvm")?;
        let linker = format!("lld-{}", llvm.trim_start_matches("libllvm"));
        let others = ["libstd-rust-web-dev", "rust-web-src", llvm, &linker];
        let others: Vec<Package> = others
            .iter()
            .map(|p| self.package(p))
            .collect::<Result<_>>()?;
        let all: Vec<Package> = [compiler, library].into_iter().chain(others).collect();

        let total: u64 = all.iter().map(|p| p.size).sum();
        say(&format!(
            "{} Debian packages, {} MB",
            all.len(),
            total / 1_000_000
        ));
        all.iter().map(|p| self.fetch(p, work)).collect()
    }

    /// The pinned version where the package has it, else the one apt would install.
    fn package(&self, name: &str) -> Result<Package> {
        for query in [format!("{name}={VERSION}"), name.to_owned()] {
            let output = self
                .command("apt-cache")
                .args(["show", "--no-all-versions", &query])
                .output()
                .context("there is no apt-cache here")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let field = |key: &str| {
                let line = text.lines().find_map(|l| l.strip_prefix(key));
                line.unwrap_or_default().trim().to_owned()
            };
            let version = field("Version:");
            if output.status.success() && !version.is_empty() {
                return Ok(Package {
                    name: name.into(),
                    version,
                    depends: field("Depends:"),
                    size: field("Size:").parse().unwrap_or(0),
                });
            }
        }
        bail!("apt knows no package {name}")
    }

    fn fetch(&self, package: &Package, work: &Path) -> Result<PathBuf> {
        let Package {
            name,
            version,
            size,
            ..
        } = package;
        say(&format!(
            "{name} {version}, {} MB",
            size.div_ceil(1_000_000)
        ));
        let folder = work.join(name);
        fs::create_dir_all(&folder)?;
        let mut apt = self.command("apt-get");
        apt.args(["-qq", "download", &format!("{name}={version}")]);
        run(apt.current_dir(&folder)).with_context(|| format!("cannot download {name}"))?;
        one_file(&folder, |file| file.ends_with(".deb"))
    }
}

struct Package {
    name: String,
    version: String,
    depends: String,
    size: u64,
}

/// Everything but the source package whole; of that the library only.
fn unpack(packages: &[PathBuf], work: &Path) -> Result<()> {
    let files = work.join("files");
    fs::create_dir_all(&files)?;
    for package in packages {
        let mut archive = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run dpkg-deb")?;
        let mut tar = Command::new("tar");
        tar.arg("-xC").arg(&files);
        if package.to_string_lossy().contains("rust-web-src") {
            tar.args(["--wildcards", "./usr/src/rustc-*/library"]);
        }
        let stream = archive.stdout.take().context("dpkg-deb has no output")?;
        let unpacked = run(tar.stdin(stream));
        let status = archive.wait()?;
        unpacked?;
        ensure!(status.success(), "{} cannot be read", package.display());
    }
    Ok(())
}

/// Lays the files out as rustup does: `bin`, `lib`, `lib/rustlib`.
fn assemble(files: &Path, new: &Path) -> Result<()> {
    let arch = std::env::consts::ARCH;
    let host = format!("{arch}-unknown-linux-gnu");
    let rustlib = new.join("lib/rustlib");
    for folder in [
        &new.join("bin"),
        &new.join("libexec"),
        &rustlib.join("src/rust"),
    ] {
        fs::create_dir_all(folder)?;
    }
    let from = |path: &str| files.join(path);
    rename(&from("usr/bin/rustc"), &new.join("libexec/rustc"))?;
    let libraries = from(&format!("usr/lib/{arch}-linux-gnu"));
    for file in fs::read_dir(&libraries)? {
        let name = file?.file_name();
        let text = name.to_string_lossy();
        if text.starts_with("librustc_driver-") || text.starts_with("libLLVM") {
            rename(&libraries.join(&name), &new.join("lib").join(&name))?;
        }
    }
    rename(&from("usr/lib/rustlib").join(&host), &rustlib.join(&host))?;
    let source = one_file(&from("usr/src"), |name| name.starts_with("rustc-"))?;
    rename(&source.join("library"), &rustlib.join("src/rust/library"))?;

    // Where the compiler looks for its wasm linker. What the package has there are links into the system.
    let tools = rustlib.join(&host).join("bin");
    let _ = fs::remove_dir_all(&tools);
    fs::create_dir_all(&tools)?;
    let llvm = one_file(&from("usr/lib"), |name| name.starts_with("llvm-"))?;
    rename(&llvm.join("bin/lld"), &tools.join("rust-lld"))?;

    let rustc = new.join("bin/rustc");
    fs::write(&rustc, RUSTC)?;
    fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Builds an empty crate with its standard library and keeps the latter.
fn compile_std(new: &Path, work: &Path) -> Result<()> {
    fs::create_dir_all(work.join("src"))?;
    fs::write(work.join("src/lib.rs"), "")?;
    fs::write(
        work.join("Cargo.toml"),
        "[package]\nname = \"stdbuild\"\nedition = \"2024\"\n[workspace]\n\
         [profile.release]\nopt-level = 3\ncodegen-units = 1\ndebug = false\n",
    )?;
    let mut cargo = cargo(&new.join("bin/rustc").into_os_string());
    cargo
        .current_dir(work)
        .env("RUSTC_BOOTSTRAP", "1")
        // Without the bitcode the filter could not be optimised together with the library.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .args(["-Zbuild-std=std,panic_abort", "-Zbuild-std-features="])
        .arg("--target-dir")
        .arg(work.join("target"));
    run(&mut cargo).context("cannot compile the standard library")?;

    let library = new.join("lib/rustlib").join(TARGET).join("lib");
    fs::create_dir_all(&library)?;
    let built = work.join("target").join(TARGET).join("release/deps");
    for file in fs::read_dir(&built)? {
        let name = file?.file_name();
        let text = name.to_string_lossy();
        if text.ends_with(".rlib") && !text.starts_with("libstdbuild-") {
            fs::copy(built.join(&name), library.join(&name))?;
        }
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("the packages hold no {}", from.display()))
}

fn one_file(folder: &Path, matches: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for file in fs::read_dir(folder)? {
        let file = file?;
        if matches(&file.file_name().to_string_lossy()) {
            return Ok(file.path());
        }
    }
    bail!("nothing expected in {}", folder.display())
}
