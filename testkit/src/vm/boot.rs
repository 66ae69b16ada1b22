//! Starts the machine, passes on what its program writes, and finds out how that ended.

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{EMULATOR, Ended, Vm};
use crate::e2e::process::now;

/// How often the machine is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// How many lines of what a machine said that failed are told.
const STORY_LINES: usize = 30;

/// What the kernel is told. The clock is that of the emulator, which can be relied on, and nobody attacks.
const KERNEL: &str =
    "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off random.trust_cpu=on";

/// Boots an image, which lies in a directory with the name `initrd`.
pub(super) fn boot(
    vm: &Vm,
    kernel: &Path,
    dir: &Path,
    stdout: &mut (impl Write + Send),
    stderr: &mut (impl Write + Send),
) -> Result<Ended> {
    let lines = ["stdout", "stderr"].map(|name| dir.join(name));
    let [out, err] = [
        UnixListener::bind(&lines[0])?,
        UnixListener::bind(&lines[1])?,
    ];
    let qemu = fs::File::create(dir.join("qemu"))?;
    let mut command = emulator(vm, kernel, dir);
    command
        .stdin(Stdio::null())
        .stderr(qemu.try_clone()?)
        .stdout(qemu);
    let mut child = command.spawn().context("start the emulator")?;
    let (has_ended, passed) = thread::scope(|scope| {
        let out = scope.spawn(|| pass(&out, stdout));
        let err = scope.spawn(|| pass(&err, stderr));
        let has_ended = wait(&mut child, vm.limit);
        // An emulator that has not got so far leaves them waiting for it.
        for line in &lines {
            drop(UnixStream::connect(line));
        }
        let passed = [out, err].map(|thread| thread.join());
        (has_ended, passed)
    });
    for outcome in passed {
        outcome
            .ok()
            .context("a reader panicked")?
            .context("pass on what the program writes")?;
    }
    if vm.is_verbose {
        stderr.write_all(&fs::read(dir.join("console"))?)?;
    }
    if !has_ended? {
        return Ok(Ended::TimeLimit);
    }
    let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
    match status.trim().parse() {
        Ok(status) => Ok(Ended::Status(status)),
        Err(_) => bail!("the machine ended without a status:\n{}", story(dir)),
    }
}

fn emulator(vm: &Vm, kernel: &Path, dir: &Path) -> Command {
    let file = |name: &str| dir.join(name).display().to_string();
    // It goes with this process, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", EMULATOR]);
    // Emulated, as the KVM of a virtual machine may be one that runs only kernels made for it.
    // A plain processor: programs choose long vectors where there are any, and those are the slowest to emulate.
    command.args(["-accel", "tcg,thread=multi", "-cpu", "qemu64"]);
    // Not the faster `microvm`, of which one in ten does not boot for want of a timer.
    command.args(["-M", "pc", "-display", "none", "-nodefaults"]);
    command.args(["-no-user-config", "-no-reboot"]);
    command.args(["-smp", &vm.cpus.to_string()]);
    command.args(["-m", &vm.memory_mib.to_string()]);
    command.arg("-kernel").arg(kernel);
    command.args(["-initrd", &file("initrd"), "-append", KERNEL]);
    let console = format!("file,id=console,path={}", file("console"));
    command.args(["-chardev", &console, "-serial", "chardev:console"]);
    command.args(["-device", "virtio-serial-pci"]);
    for (port, name) in [(1, "stdout"), (2, "stderr"), (3, "status")] {
        let kind = if name == "status" { "file" } else { "socket" };
        let backend = format!("{kind},id={name},path={}", file(name));
        let device = format!("virtserialport,chardev={name},nr={port}");
        command.args(["-chardev", &backend, "-device", &device]);
    }
    command
}

/// Passes on one line until its end.
fn pass(listener: &UnixListener, to: &mut impl Write) -> io::Result<()> {
    let (mut from, _) = listener.accept()?;
    let mut buffer = [0; 16_384];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.flush(),
            Ok(length) => {
                to.write_all(&buffer[..length])?;
                to.flush()?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits for the end, and ends it when the time is up; tells whether it ended by itself.
fn wait(child: &mut Child, limit: Duration) -> Result<bool> {
    let start = now();
    loop {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        if start.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        thread::sleep(LOOK_PERIOD);
    }
}

/// Returns the last of what the emulator and the kernel said.
fn story(dir: &Path) -> String {
    let read = |name| fs::read(dir.join(name)).unwrap_or_default();
    let said = [read("qemu"), read("console")].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(STORY_LINES)..].join("\n")
}
