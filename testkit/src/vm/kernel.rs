//! The kernel: Debian's for clouds, which has nearly all modules of networking. It is downloaded once and unpacked, never
//! installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::run;

/// The package that depends on the current kernel.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// What the name of a kernel's image begins with.
const PREFIX: &str = "vmlinuz-";

/// A kernel that is unpacked.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// Its image.
    pub(super) image: PathBuf,
    /// Its release, as `uname -r` says it.
    pub(super) release: String,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
}

/// Returns the kernel, and gets it if it is not there.
pub(super) fn fetch(cache: &Path) -> Result<Kernel> {
    let dir = cache.join("kernel");
    if let Some(kernel) = find(&dir)? {
        return Ok(kernel);
    }
    fs::create_dir_all(cache)?;
    let fresh = tempfile::tempdir_in(cache)?;
    let package = download(fresh.path())?;
    let unpacked = fresh.path().join("kernel");
    run(Command::new("dpkg-deb")
        .arg("-x")
        .args([&package, &unpacked]))?;
    // Another may have been faster; then that is the one.
    fs::rename(&unpacked, &dir).ok();
    find(&dir)?.with_context(|| format!("{} has no kernel", package.display()))
}

fn find(dir: &Path) -> Result<Option<Kernel>> {
    let Ok(entries) = fs::read_dir(dir.join("boot")) else {
        return Ok(None);
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(release) = name.strip_prefix(PREFIX) {
            return Ok(Some(Kernel {
                image: dir.join("boot").join(&name),
                release: release.to_owned(),
                modules: dir.join("lib/modules").join(release),
            }));
        }
    }
    Ok(None)
}

fn download(into: &Path) -> Result<PathBuf> {
    let mut name = current();
    if name.is_none() {
        // Images of machines come without the lists of packages.
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        name = current();
    }
    let name = name.with_context(|| format!("apt knows no kernel behind {PACKAGE}"))?;
    let mut get = Command::new("apt-get");
    get.args(["download", "-qq", &name]).current_dir(into);
    run(&mut get).with_context(|| format!("download {name}"))?;
    for entry in fs::read_dir(into)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(path);
        }
    }
    anyhow::bail!("apt-get downloaded nothing")
}

/// Returns the package of the current kernel, if the lists of packages have it.
fn current() -> Option<String> {
    let told = run(Command::new("apt-cache").args(["depends", PACKAGE])).ok()?;
    told.lines().find_map(|line| {
        let name = line.trim().strip_prefix("Depends: ")?;
        name.starts_with("linux-image").then(|| name.to_owned())
    })
}
