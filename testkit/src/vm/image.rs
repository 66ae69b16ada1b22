//! What the machine has in its memory: a base of busybox and modules, made once, and behind it the program of a run with its
//! files.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::archive::Archive;
use super::kernel::Kernel;
use super::{Vm, run};

/// The first process.
const INIT: &str = include_str!("init.sh");

/// Directories of modules, and single ones, that networks need.
const MODULES: [&str; 20] = [
    "arch/x86/crypto",
    "crypto",
    "drivers/char",
    "drivers/net/bonding",
    "drivers/net/dummy.ko",
    "drivers/net/geneve.ko",
    "drivers/net/ifb.ko",
    "drivers/net/ipvlan",
    "drivers/net/macvlan.ko",
    "drivers/net/nlmon.ko",
    "drivers/net/tap.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/vrf.ko",
    "drivers/net/vxlan",
    "drivers/net/wireguard",
    "drivers/virtio",
    "lib",
    "net",
    "fs/nls",
];

/// Those of them that nobody here needs, and that are large.
const NOT_MODULES: [&str; 20] = [
    "net/6lowpan",
    "net/9p",
    "net/appletalk",
    "net/atm",
    "net/ax25",
    "net/batman-adv",
    "net/bluetooth",
    "net/can",
    "net/ceph",
    "net/dccp",
    "net/ieee802154",
    "net/mac80211",
    "net/mac802154",
    "net/nfc",
    "net/rds",
    "net/rxrpc",
    "net/smc",
    "net/sunrpc",
    "net/tipc",
    "net/wireless",
];

/// Programs of busybox that are worse than what this machine may have.
const NOT_APPLETS: [&str; 4] = ["busybox", "ip", "tc", "sh"];

/// Programs that come with [`Vm::has_tools`].
const TOOLS: [&str; 12] = [
    "ip",
    "bridge",
    "tc",
    "ss",
    "nft",
    "ipvsadm",
    "conntrack",
    "nsenter",
    "setpriv",
    "unshare",
    "wg",
    "ethtool",
];

/// Where programs of this machine are.
const PROGRAM_DIRS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// Small files of every machine.
const FILES: [(&str, &str); 4] = [
    ("/etc/nsswitch.conf", "hosts: files dns\n"),
    ("/etc/hosts", "127.0.0.1 localhost vm\n::1 localhost\n"),
    ("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("/etc/group", "root:x:0:\n"),
];

/// Returns the base image, and makes it if it is not there.
pub(super) fn base(cache: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (INIT, MODULES, NOT_MODULES, FILES, NOT_APPLETS).hash(&mut hasher);
    let name = format!("base-{}-{:016x}.cpio", kernel.release, hasher.finish());
    let path = cache.join(name);
    if !path.exists() {
        let dir = tempfile::tempdir_in(cache)?;
        let unfinished = dir.path().join("base.cpio");
        let staged = stage(dir.path(), kernel).context("choose modules")?;
        make_base(&unfinished, &staged).context("make the base image")?;
        fs::rename(unfinished, &path)?;
    }
    Ok(path)
}

/// Puts the modules that are shipped into a tree of their own, with tables of their dependencies.
fn stage(dir: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let root = dir.join("root");
    let modules = root.join("lib/modules").join(&kernel.release);
    for part in MODULES {
        let part = Path::new("kernel").join(part);
        link_modules(&kernel.modules, &modules, &part)?;
    }
    for table in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        let from = kernel.modules.join(table);
        if from.exists() {
            fs::copy(from, modules.join(table))?;
        }
    }
    let mut depmod = Command::new("busybox");
    depmod
        .arg("depmod")
        .arg("-b")
        .args([&root])
        .arg(&kernel.release);
    run(&mut depmod)?;
    Ok(root)
}

/// Links a module, or those of a directory, from one tree into another.
fn link_modules(from: &Path, to: &Path, part: &Path) -> Result<()> {
    let is_left_out = |left_out: &&str| part == Path::new("kernel").join(left_out);
    if NOT_MODULES.iter().any(is_left_out) {
        return Ok(());
    }
    let source = from.join(part);
    if source.is_dir() {
        fs::create_dir_all(to.join(part))?;
        for entry in fs::read_dir(source)? {
            link_modules(from, to, &part.join(entry?.file_name()))?;
        }
    } else if source.is_file() {
        let target = to.join(part);
        fs::create_dir_all(target.parent().context("it is in a directory")?)?;
        fs::hard_link(source, target)?;
    }
    Ok(())
}

fn make_base(path: &Path, staged: &Path) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(path)?));
    for dir in ["/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/opt"] {
        archive.directory(Path::new(dir))?;
    }
    let busybox = find_program("busybox").context("busybox is not installed")?;
    archive.copy(&busybox, Path::new("/bin/busybox"))?;
    let applets = run(Command::new(&busybox).arg("--list"))?;
    for applet in applets.lines().filter(|name| !NOT_APPLETS.contains(name)) {
        archive.link(&Path::new("/bin").join(applet), "/bin/busybox")?;
    }
    archive.link(Path::new("/sbin/modprobe"), "/bin/busybox")?;
    // The shell of busybox prefers its own programs to those on PATH.
    let shell = find_program("dash").context("dash is not installed")?;
    archive.copy(&shell, Path::new("/bin/sh"))?;
    archive.copy_plainly(&staged.join("lib"), Path::new("/lib"))?;
    for (name, content) in FILES {
        archive.file(Path::new(name), 0o644, content.as_bytes())?;
    }
    archive.file(Path::new("/init"), 0o755, INIT.as_bytes())?;
    archive.finish()
}

/// Writes the whole image of a run.
pub(super) fn write(vm: &Vm, base: &Path, to: &Path) -> Result<()> {
    ensure!(
        vm.program.is_file(),
        "there is no program {}",
        vm.program.display()
    );
    let mut file = File::create(to)?;
    io::copy(&mut File::open(base)?, &mut file)?;
    let mut archive = Archive::new(BufWriter::new(file));
    for (from, path) in &vm.files {
        archive.copy(from, path)?;
    }
    if vm.has_tools {
        for tool in TOOLS {
            if let Some(path) = find_program(tool) {
                archive.copy(&path, &Path::new("/usr/sbin").join(tool))?;
            }
        }
        for name in ["/etc/protocols", "/etc/services", "/etc/ethertypes"] {
            if Path::new(name).exists() {
                archive.copy_plainly(Path::new(name), Path::new(name))?;
            }
        }
    }
    // Where this machine's is not shipped.
    archive.link(Path::new("/usr/sbin/ip"), "/bin/busybox")?;
    // Some programs do what their name says.
    let name = vm.program.file_name().context("a program has a name")?;
    let program = Path::new("/opt").join(name);
    let stripped = to.with_extension("program");
    archive.copy(&strip(&vm.program, stripped), &program)?;
    let command = command(vm, &program);
    archive.file(Path::new("/run.env"), 0o644, environment(vm)?.as_bytes())?;
    archive.file(Path::new("/run.sh"), 0o644, command.as_bytes())?;
    archive.finish()
}

/// Returns a program without what only debuggers read, which is nine tenths of one that cargo has built and would fill the
/// machine's memory.
fn strip(program: &Path, to: PathBuf) -> PathBuf {
    let mut strip = Command::new("strip");
    strip
        .arg("--strip-debug")
        .arg("-o")
        .args([&to])
        .arg(program);
    // It may be a script, and there may be no `strip` and enough memory.
    run(&mut strip).map_or_else(|_| program.to_owned(), |_| to)
}

fn environment(vm: &Vm) -> Result<String> {
    let mut lines = format!("VM_MODULES={}\n", quoted(&vm.modules.join(" ")));
    for (name, value) in &vm.env {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        ensure!(
            !name.is_empty() && name.bytes().all(is_plain),
            "{name:?} is no name of a variable"
        );
        lines.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    Ok(lines)
}

fn command(vm: &Vm, program: &Path) -> String {
    let args = vm.args.iter().map(|arg| format!(" {}", quoted(arg)));
    let program = quoted(&program.to_string_lossy());
    format!("exec {program}{}\n", args.collect::<String>())
}

/// Writes a word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let places = PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join(name));
    places.into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_program_as_they_are() {
        let mut vm = Vm::new(Path::new("/bin/true"));
        vm.args = vec!["a b".to_owned(), "it's $HOME".to_owned(), String::new()];
        let expected = "exec '/opt/true' 'a b' 'it'\\''s $HOME' ''\n";
        assert_eq!(command(&vm, Path::new("/opt/true")), expected);
        vm.env = vec![("A_1".to_owned(), "x'y".to_owned())];
        vm.modules = vec!["dummy".to_owned(), "ifb".to_owned()];
        let expected = "VM_MODULES='dummy ifb'\nexport A_1='x'\\''y'\n";
        assert_eq!(environment(&vm).unwrap(), expected);
        vm.env = vec![("A B".to_owned(), String::new())];
        assert!(environment(&vm).is_err());
    }
}
