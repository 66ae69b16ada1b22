//! `testkit containers`: the images, and three replicas of the test service with their client as real containers.
//!
//! Everything it makes bears its name and process id, and is removed in the end, also after Ctrl-C or an error.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

/// The programs of the images.
const PROGRAMS: [&str; 4] = ["networkdb", "networkdb-test", "diagnosticClient", "ssd"];

/// The images that take nothing but those; `support` needs one of a distribution.
const TARGETS: [&str; 4] = ["networkdb", "client", "ssd", "e2e"];

/// For whom the programs are built.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Servers of the service.
const REPLICAS: usize = 3;

/// What the client does, one after the other.
const COMMANDS: [&str; 5] = [
    "ready testdb 8000",
    "join testdb 8000",
    "join-network testdb 8000 test",
    "network-peers testdb 8000 test 3 10",
    "write-delete-unique-keys testdb 8000 test tableBla 3 10",
];

/// How often it is looked whether a command has ended.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The docker command; its daemon is what DOCKER_HOST names.
    #[arg(long, value_name = "PATH", default_value = "docker")]
    docker: PathBuf,
    /// Directory with the static programs networkdb, networkdb-test, diagnosticClient and ssd; without it they are built.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let bed = Bed {
        docker: args.docker,
        name: format!("testkit-{}", std::process::id()),
        is_over: Arc::default(),
    };
    bed.listen_to_signals()?;
    let version = bed.output(&["version", "--format", "{{.Server.Version}}"]);
    let version = version.with_context(|| {
        format!(
            "{} has no daemon that answers: start dockerd, or name one in DOCKER_HOST",
            bed.docker.display()
        )
    })?;
    super::say(&format!("docker {}", version.trim()))?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let programs = match args.programs {
        Some(dir) => dir,
        None => bed.build_programs(&source)?,
    };
    let done = bed.play(&source, &programs);
    let removed = bed.remove();
    done.and(removed)
}

struct Bed {
    docker: PathBuf,
    name: String,
    is_over: Arc<AtomicBool>,
}

impl Bed {
    /// Takes SIGINT and SIGTERM for the wish to stop and clean up.
    fn listen_to_signals(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let is_over = Arc::clone(&self.is_over);
        let (mut interrupt, mut terminate) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            )
        };
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            });
            is_over.store(true, Ordering::Relaxed);
        });
        Ok(())
    }

    /// Builds the static programs; returns where they are.
    fn build_programs(&self, source: &Path) -> Result<PathBuf> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--release", "--locked", "--target", TRIPLE])
            .args(PROGRAMS.iter().flat_map(|program| ["--bin", program]))
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
            .current_dir(source);
        self.finish(cargo).context("build the static programs")?;
        Ok(source.join("target").join(TRIPLE).join("release"))
    }

    fn play(&self, source: &Path, programs: &Path) -> Result<()> {
        self.build_images(source, programs)?;
        let (name, image) = (&self.name, self.image("e2e"));
        self.run(&["network", "create", name])?;
        for replica in 1..=REPLICAS {
            let (server, task) = (self.server(replica), format!("TASK_ID=task{replica}"));
            let args = ["run", "--detach", "--name", &server, "--env", &task];
            let on = ["--network", name, "--network-alias", "tasks.testdb"];
            self.run(&[&args[..], &on, &[&image, "server", "8000"]].concat())?;
        }
        for command in COMMANDS {
            super::say(&format!("client {command}"))?;
            let client = format!("{name}-client");
            let args = [
                "run",
                "--rm",
                "--name",
                &client,
                "--network",
                name,
                &image,
                "client",
            ];
            let words: Vec<&str> = command.split(' ').collect();
            self.run(&[&args[..], &words].concat())?;
        }
        for replica in 1..=REPLICAS {
            let server = self.server(replica);
            self.run(&["stop", &server])?;
            let code = self.output(&["inspect", "--format", "{{.State.ExitCode}}", &server])?;
            ensure!(code.trim() == "0", "{server} ended with {}", code.trim());
        }
        super::say("all servers ended with 0")
    }

    /// Makes the images of the given programs.
    fn build_images(&self, source: &Path, programs: &Path) -> Result<()> {
        let context = tempfile::tempdir()?;
        fs::copy(source.join("Dockerfile"), context.path().join("Dockerfile"))?;
        fs::create_dir(context.path().join("programs"))?;
        for program in PROGRAMS {
            let from = programs.join(program);
            fs::copy(&from, context.path().join("programs").join(program))
                .with_context(|| format!("take {}", from.display()))?;
        }
        let dir = context.path().to_string_lossy();
        for target in TARGETS {
            let image = self.image(target);
            let args = [
                "build",
                "--quiet",
                "--build-arg",
                "PROGRAMS=given",
                "--target",
                target,
            ];
            self.run(&[&args[..], &["--tag", &image, &dir]].concat())?;
            let bytes = self.output(&["image", "inspect", "--format", "{{.Size}}", &image])?;
            super::say(&format!("{image}: {} bytes", bytes.trim()))?;
        }
        Ok(())
    }

    /// Removes what was made; what was not made is no error.
    fn remove(&self) -> Result<()> {
        // Also after a signal, so without looking at it.
        let quietly = |args: &[&str]| {
            let mut command = self.command(args);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
                .status()
                .with_context(|| format!("start {}", self.docker.display()))
        };
        for replica in 1..=REPLICAS {
            quietly(&["rm", "--force", &self.server(replica)])?;
        }
        quietly(&["rm", "--force", &format!("{}-client", self.name)])?;
        quietly(&["network", "rm", &self.name])?;
        for target in TARGETS {
            quietly(&["image", "rm", "--force", &self.image(target)])?;
        }
        let mut left = self.command(&[
            "ps",
            "--all",
            "--quiet",
            "--filter",
            &format!("name={}", self.name),
        ]);
        let left = left.output()?.stdout;
        ensure!(
            left.is_empty(),
            "containers are left: {}",
            String::from_utf8_lossy(&left)
        );
        Ok(())
    }

    fn image(&self, target: &str) -> String {
        format!("{}-{target}", self.name)
    }

    fn server(&self, replica: usize) -> String {
        format!("{}-server{replica}", self.name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.docker);
        command
            .args(args)
            .env("DOCKER_BUILDKIT", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs docker, whose output people see.
    fn run(&self, args: &[&str]) -> Result<()> {
        self.finish(self.command(args))
            .with_context(|| format!("docker {}", args.join(" ")))
    }

    /// Runs docker and returns what it prints.
    fn output(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("start {}", self.docker.display()))?;
        ensure!(
            output.status.success(),
            "docker {}: {}",
            args.join(" "),
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits for a command to end well, or for a signal.
    fn finish(&self, mut command: Command) -> Result<()> {
        let name = command.get_program().to_owned();
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", name.display()))?;
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "{} ended with {status}", name.display());
                return Ok(());
            }
            if self.is_over.load(Ordering::Relaxed) {
                child.kill()?;
                child.wait()?;
                bail!("interrupted");
            }
            thread::sleep(LOOK_PERIOD);
        }
    }
}
