//! Commands of the system, run without a shell.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Runs a command with an input and returns what it prints.
pub(super) fn run(program: &str, args: &[&str], input: &str) -> Result<String> {
    run_marked(program, args, input, None)
}

/// Runs a command that finishes even if its caller is killed, and is found by a variable in its environment then.
pub(super) fn run_marked(
    program: &str,
    args: &[&str],
    input: &str,
    mark: Option<(&str, String)>,
) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .envs(mark)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}; is it installed?"))?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    // A command that ends early says why by its status.
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {}: {}\n{input}",
        args.join(" "),
        error.trim()
    );
    written.with_context(|| format!("write to {program}"))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs lines of `ip` in a namespace, or in that of the caller.
pub(super) fn ip(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut args = Vec::new();
    if let Some(namespace) = namespace {
        args.extend(["-n", namespace]);
    }
    args.extend(["-batch", "-"]);
    let mut input = lines.join("\n");
    input.push('\n');
    run("ip", &args, &input).map(drop)
}
