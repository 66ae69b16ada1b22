//! Runs a program as root in a virtual machine that is gone afterwards, for what the kernel of this machine lacks: IPVS,
//! IPsec, netem and so on.
//!
//! The kernel is Debian's for clouds, downloaded once and never installed. It boots from memory in a few seconds, emulated,
//! so that nothing of the machine is needed; and as emulation is some twelve times slower, no figure taken there tells
//! anything. There is no network device but `lo` and what the program makes: nothing gets out, and what would be many
//! hosts are network namespaces. Standard output, standard error and the exit status come out over lines of their own,
//! byte for byte.

mod archive;
mod boot;
mod image;
mod kernel;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// What runs the machine.
const EMULATOR: &str = "qemu-system-x86_64";

/// Programs that making and running a machine takes, and their packages of Debian.
const NEEDED: [(&str, &str); 5] = [
    (EMULATOR, "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("dash", "dash"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
];

/// What is run, and in what kind of machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// The program of this machine; it may be dynamic.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment beside `PATH` and `HOME`.
    pub env: Vec<(String, String)>,
    /// Files and directories of this machine, with their paths there.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Modules to load before, which the kernel does not load by itself when they are needed.
    pub modules: Vec<String>,
    /// Whether it has `ip`, `nft`, `ipvsadm` and the like, as far as this machine has them.
    pub has_tools: bool,
    /// How many processors it has.
    pub cpus: u32,
    /// How much memory it has, in MiB; files take of it.
    pub memory_mib: u32,
    /// How long it may take.
    pub limit: Duration,
    /// Whether what the kernel says goes to standard error as well.
    pub is_verbose: bool,
}

/// How the run ended, if the machine did not fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The program ended with this status; after a signal it is 128 and the signal's number.
    Status(u8),
    /// The time was up.
    TimeLimit,
}

impl Vm {
    /// Describes a machine for a program.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            files: Vec::new(),
            modules: Vec::new(),
            has_tools: false,
            cpus: 2,
            memory_mib: 768,
            limit: Duration::from_secs(300),
            is_verbose: false,
        }
    }

    /// Runs the program, and passes on what it writes.
    pub fn run(
        &self,
        stdout: &mut (impl Write + Send),
        stderr: &mut (impl Write + Send),
    ) -> Result<Ended> {
        let cache = cache()?;
        let kernel = kernel::fetch(&cache)?;
        let base = image::base(&cache, &kernel)?;
        let dir = tempfile::tempdir()?;
        let initrd = dir.path().join("initrd");
        image::write(self, &base, &initrd).context("make the image")?;
        boot::boot(self, &kernel.image, dir.path(), stdout, stderr)
    }
}

/// Says what is missing for such machines, if anything; gets the kernel if it is not there.
#[must_use]
pub fn missing() -> Option<String> {
    let tried = check().and_then(|()| kernel::fetch(&cache()?));
    tried.err().map(|error| format!("{error:#}"))
}

fn check() -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the virtual machine is x86_64, as this machine is not"
    );
    for (program, package) in NEEDED {
        let found = Command::new("which")
            .arg(program)
            .stdout(Stdio::null())
            .status()?;
        ensure!(
            found.success(),
            "{program} is not installed (Debian: {package})"
        );
    }
    Ok(())
}

/// Returns the directory of what is made once: `$TESTKIT_VM_CACHE`, or one of the user's.
fn cache() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("TESTKIT_VM_CACHE") {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("neither TESTKIT_VM_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/networkdb-vm"))
}

/// Runs a program of this machine and returns what it prints.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {name}; is it installed?"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
