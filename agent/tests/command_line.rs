//! What the command line refuses, and how it says so.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// How one command ended.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// Checks exit code and that stderr has each of the words and no trace of a panic.
    fn failed_with(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
        for word in ["panicked", "backtrace"] {
            assert!(!self.stderr.contains(word), "{self:?}");
        }
    }
}

/// An agent with a diagnostic server, all ports free ones.
const AGENT: [&str; 5] = [
    "agent",
    "--bind-port",
    "0",
    "--network-diagnostic-port",
    "0",
];

#[test]
fn wrong_flags_are_wrong_usage() {
    run(&["agent", "--nosuch"]).failed_with(2, &["--nosuch"]);
    run(&["nosuch"]).failed_with(2, &["nosuch"]);
    run(&["agent", "--bind-port", "70000"]).failed_with(2, &["--bind-port", "70000"]);
    run(&["agent", "--preset", "slow"]).failed_with(2, &["--preset", "default, fast, wan"]);
    run(&["agent", "--node-id", ""]).failed_with(2, &["--node-id", "node id is empty"]);
    run(&["demo", "--nodes", "0"]).failed_with(2, &["--nodes"]);
    run(&["support", "--agent", "127.0.0.1"]).failed_with(2, &["--agent", "no port"]);
    run(&["support", "--cert", "x"]).failed_with(2, &["--key", "--cacert"]);
}

#[test]
fn support_replaces_no_file_and_names_those_that_are_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "x.tar.gz", "mine", 0o644);
    let outcome = run(&["support", "--output", &path]);
    outcome.failed_with(1, &[&path, "exists already", "--output"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    let outcome = run(&["support", "--output", "/nonexistent/x.tar.gz"]);
    outcome.failed_with(1, &["/nonexistent/x.tar.gz", "No such file"]);
    for flag in ["--token-file", "--cacert"] {
        let outcome = run(&["support", flag, "/nonexistent/file"]);
        outcome.failed_with(1, &["/nonexistent/file"]);
    }
}

#[test]
fn help_and_version_are_answers() {
    for args in [
        &["--help"][..],
        &["--version"],
        &["demo", "--help"],
        &["agent", "--help"],
        &["keygen", "--help"],
        &["support", "--help"],
    ] {
        let outcome = run(args);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(!outcome.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn unknown_config_key_is_named_with_file_line_and_known_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "config.json", "{\n  \"bind-prot\": 1\n}", 0o644);
    let outcome = run(&["agent", "--config", &path]);
    outcome.failed_with(
        1,
        &[&path, "`bind-prot`", "line 2", "`bind-port`", "`join`"],
    );
}

#[test]
fn wrong_config_value_is_named_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "config.json", "{\"preset\": \"slow\"}", 0o644);
    let outcome = run(&["agent", "--config", &path]);
    outcome.failed_with(1, &[&path, "\"preset\"", "`slow`", "line 1"]);
}

#[test]
fn missing_files_are_named() {
    for flag in ["--config", "--key-file"] {
        let outcome = run(&["agent", flag, "/nonexistent/file"]);
        outcome.failed_with(1, &["/nonexistent/file", "No such file"]);
    }
}

#[test]
fn unreadable_key_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let path = dir.path().to_string_lossy().into_owned();
    run(&["agent", "--key-file", &path]).failed_with(1, &[&path, "key file"]);
}

#[test]
fn key_file_that_others_may_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let keys = run(&["keygen"]).stdout;
    let path = write(dir.path(), "keys", &keys, 0o644);
    run(&["agent", "--key-file", &path]).failed_with(1, &[&path, "mode 0644", "chmod 600"]);
}

#[test]
fn malformed_key_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "keys", "# keys\n\nnot base64\n", 0o600);
    run(&["agent", "--key-file", &path]).failed_with(1, &[&path, "line 3"]);
}

#[test]
fn unresolvable_join_address_is_named() {
    let outcome = run(&[
        "agent",
        "--bind-port",
        "0",
        "--join",
        "127.0.0.1,nosuch.invalid",
    ]);
    outcome.failed_with(1, &["--join", "nosuch.invalid"]);
}

#[test]
fn gossip_in_the_open_is_refused_outside_loopback() {
    let outcome = run(&["agent", "--bind-addr", "0.0.0.0", "--bind-port", "0"]);
    outcome.failed_with(1, &["0.0.0.0", "--key-file", "--insecure-gossip"]);
}

#[test]
fn a_diagnostic_server_is_not_opened_to_the_network_by_mistake() {
    let with = |more: &[&str]| run(&[&AGENT[..], more].concat());
    with(&["--diagnostic-addr", "0.0.0.0"]).failed_with(
        1,
        &[
            "--diagnostic-addr 0.0.0.0",
            "--diagnostic-token-file",
            "--diagnostic-tls-client-ca",
            "--diagnostic-insecure",
        ],
    );
    with(&["--diagnostic-tls-cert", "/nonexistent"])
        .failed_with(1, &["--diagnostic-tls-cert", "--diagnostic-tls-key"]);
    let tls = [
        "--diagnostic-tls-cert",
        "/nonexistent",
        "--diagnostic-tls-key",
        "/nonexistent",
    ];
    with(&tls).failed_with(1, &["/nonexistent", "No such file"]);
}

#[test]
fn token_files_that_are_open_or_malformed_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let with = |path: &str| run(&[&AGENT[..], &["--diagnostic-token-file", path]].concat());
    let open = write(dir.path(), "open", "0123456789abcdef\n", 0o644);
    with(&open).failed_with(1, &[&open, "mode 0644", "chmod 600"]);
    let short = write(dir.path(), "short", "# ours\nshort\n", 0o600);
    with(&short).failed_with(1, &[&short, "line 2"]);
    with("/nonexistent/tokens").failed_with(1, &["token file /nonexistent/tokens"]);
}

#[test]
fn ports_in_use_are_named_with_their_flags() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let diagnostic = ["--network-diagnostic-port", &port];
    run(&[&["demo"], &diagnostic[..]].concat()).failed_with(1, &diagnostic);
    run(&diagnostic).failed_with(1, &diagnostic);
    let outcome = run(&[&["agent", "--bind-port", "0"], &diagnostic[..]].concat());
    outcome.failed_with(1, &diagnostic);
    run(&["agent", "--bind-port", &port]).failed_with(1, &["--bind-port", &port]);
}

#[test]
fn demo_needs_ports_for_all_nodes() {
    let outcome = run(&["demo", "--network-diagnostic-port", "65535"]);
    outcome.failed_with(1, &["--network-diagnostic-port", "65535"]);
}

#[test]
fn keys_differ_and_the_agent_takes_them() {
    let [first, second] = [(); 2].map(|()| run(&["keygen"]));
    assert_eq!(first.code, Some(0));
    assert_ne!(first.stdout, second.stdout);
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "keys", &first.stdout, 0o600);
    // It gets as far as the next mistake.
    let outcome = run(&["agent", "--key-file", &path, "--join", "nosuch.invalid"]);
    outcome.failed_with(1, &["nosuch.invalid"]);
}

/// Runs a command to its end; each of these ends by itself.
fn run(args: &[&str]) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_networkdb"))
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .output()
        .expect("cargo built the binary for this test");
    let text = |bytes| String::from_utf8(bytes).expect("it writes text");
    Outcome {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Writes a file and returns its path.
fn write(dir: &Path, name: &str, text: &str, mode: u32) -> String {
    let path = dir.join(name);
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
        .expect("a temporary directory takes files");
    path.to_string_lossy().into_owned()
}
