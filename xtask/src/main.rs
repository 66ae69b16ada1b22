//! `cargo xtask tidy`: the source rules of the style guide that clippy cannot check.
//!
//! A file is at most 600 lines long before its tests, `engine/mod.rs` at most 500. A note on work to do names its issue. Nothing in
//! `networkdb/src/engine` names the shell below it, only one file names `foca`, and only those below
//! `overlay-sync/src/kernel` name netlink. Exit codes: 0 clean, 1 findings or failed, 2 wrong usage.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Lines of a file before its tests.
const LINES_MAX: usize = 600;

/// Lines of the file that routes between the parts of the engine.
const ENGINE_LINES_MAX: usize = 500;

/// What the engine may not name.
const BELOW_THE_LINE: [&str; 6] = [
    "tokio",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "Instant::now",
    "crate::node",
];

/// The file that may name the membership library.
const FOCA_FILES: [&str; 1] = ["networkdb/src/engine/membership.rs"];

/// The netlink libraries, split so that this file passes its own check.
const NETLINK: [&str; 3] = [
    concat!("netlink", "_sys"),
    concat!("netlink", "_packet_core"),
    concat!("netlink", "_packet_route"),
];

/// Where they may be named.
const NETLINK_DIR: &str = "overlay-sync/src/kernel/";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if (args.next().as_deref(), args.next()) != (Some("tidy"), None) {
        return finish(2, "usage: cargo xtask tidy");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match tidy(&root) {
        Ok(findings) if findings.is_empty() => finish(0, "tidy: clean"),
        Ok(findings) => finish(1, &findings.join("\n")),
        Err(error) => finish(1, &format!("tidy: {error}")),
    }
}

/// Prints the outcome and makes it an exit code.
fn finish(code: u8, text: &str) -> ExitCode {
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => ExitCode::from(code),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Checks every Rust file of the workspace, in order of their paths.
fn tidy(root: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    for member in fs::read_dir(root)? {
        let member = member?.path();
        if member.join("Cargo.toml").is_file() {
            collect(&member, &mut files)?;
        }
    }
    files.sort();
    let mut findings = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let name = file.strip_prefix(root).unwrap_or(&file);
        findings.extend(check(&name.to_string_lossy(), &text));
    }
    Ok(findings)
}

/// Adds the Rust files under a directory.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Returns what is wrong with one file.
fn check(name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let mut find =
        |line: usize, message: String| findings.push(format!("{name}:{line}: {message}"));
    let is_tests = |line: &str| line.trim_start().starts_with("#[cfg(test)]");
    let lines = text.lines().take_while(|line| !is_tests(line)).count();
    let limit = if name.ends_with("engine/mod.rs") {
        ENGINE_LINES_MAX
    } else {
        LINES_MAX
    };
    if lines > limit && !is_test_file(name) {
        find(
            limit + 1,
            format!("{lines} lines before the tests, the limit is {limit}"),
        );
    }
    let in_engine = name.starts_with("networkdb/src/engine/");
    let in_source = name.starts_with("networkdb/") && name.contains("/src/");
    for (number, line) in (1..).zip(text.lines()) {
        // Split, so that this file passes its own check.
        if let Some((_, rest)) = line.split_once(concat!("TO", "DO"))
            && !names_issue(rest)
        {
            find(
                number,
                concat!("TO", "DO without an issue, write it as TO", "DO(#123)").into(),
            );
        }
        let code = line.split("//").next().unwrap_or_default();
        let in_tests = number > lines || is_test_file(name);
        for word in BELOW_THE_LINE {
            // Tests have no other way to get an instant to begin with.
            let excused = in_tests && word == "Instant::now";
            if in_engine && !excused && names(code, word) {
                find(number, format!("the engine names {word}"));
            }
        }
        if in_source && !FOCA_FILES.contains(&name) && names(code, "foca") {
            find(
                number,
                format!("only {} may name foca", FOCA_FILES.join(" and ")),
            );
        }
        if !name.starts_with(NETLINK_DIR) && NETLINK.iter().any(|word| names(code, word)) {
            find(number, format!("only {NETLINK_DIR} may name netlink"));
        }
    }
    findings
}

/// Tells whether a file holds tests only.
fn is_test_file(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.contains("/tests/")
}

/// Tells whether text begins with `(#123)`.
fn names_issue(text: &str) -> bool {
    let number = text
        .strip_prefix("(#")
        .and_then(|rest| rest.split_once(')'));
    number.is_some_and(|(digits, _)| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Tells whether code has `word` as a whole path segment.
fn names(code: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(is_part);
        let after = code[at + word.len()..].chars().next().is_some_and(is_part);
        !before && !after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_file_is_found_and_its_tests_do_not_count() {
        let lines = |count| "x\n".repeat(count);
        assert!(check("a/src/b.rs", &lines(600)).is_empty());
        assert_eq!(
            check("a/src/b.rs", &lines(601)),
            ["a/src/b.rs:601: 601 lines before the tests, the limit is 600"]
        );
        let with_tests = lines(600) + "#[cfg(test)]\n" + &lines(900);
        assert!(check("a/src/b.rs", &with_tests).is_empty());
        assert!(check("a/src/tests.rs", &lines(601)).is_empty());
        assert_eq!(check("networkdb/src/engine/mod.rs", &lines(501)).len(), 1);
    }

    #[test]
    fn reminder_needs_an_issue() {
        let reminder =
            |rest: &str| check("a/src/b.rs", &format!("\n// {}{rest}", concat!("TO", "DO")));
        assert!(reminder("(#12): later").is_empty());
        for rest in [": later", "(me)", "(#)", "(#x)"] {
            assert_eq!(reminder(rest).len(), 1, "{rest}");
            assert!(reminder(rest)[0].starts_with("a/src/b.rs:2: "));
        }
    }

    #[test]
    fn engine_does_not_name_the_shell() {
        let file = "networkdb/src/engine/store.rs";
        for code in [
            "use tokio::sync;",
            "use std::net::UdpSocket;",
            "std::net::TcpStream::connect",
            "let now = Instant::now();",
            "use crate::node::Driver;",
        ] {
            assert_eq!(check(file, code).len(), 1, "{code}");
            assert!(
                check("networkdb/src/node/udp.rs", code).is_empty(),
                "{code}"
            );
        }
        let clock = "let now = Instant::now();";
        assert!(check(file, &format!("#[cfg(test)]\n{clock}")).is_empty());
        for code in ["// like tokio", "crate::nodes", "let tokios = 1;"] {
            assert!(check(file, code).is_empty(), "{code}");
        }
    }

    #[test]
    fn only_two_files_name_foca() {
        let code = "use foca::Foca;";
        assert_eq!(check("networkdb/src/engine/mod.rs", code).len(), 1);
        for file in FOCA_FILES {
            assert!(check(file, code).is_empty(), "{file}");
        }
    }

    #[test]
    fn only_the_kernel_layer_names_netlink() {
        for word in NETLINK {
            let code = format!("use {word}::constants;");
            assert_eq!(check("overlay-sync/src/plan.rs", &code).len(), 1);
            assert_eq!(check("agent/src/main.rs", &code).len(), 1);
            let file = "overlay-sync/src/kernel/rows.rs";
            assert!(check(file, &code).is_empty(), "{word}");
        }
    }

    #[test]
    fn files_of_every_member_are_read() {
        let root = tempfile::tempdir().unwrap();
        for member in ["one", "two"] {
            let source = root.path().join(member).join("src");
            fs::create_dir_all(&source).unwrap();
            fs::write(root.path().join(member).join("Cargo.toml"), "").unwrap();
            fs::write(source.join("lib.rs"), concat!("// TO", "DO")).unwrap();
        }
        let findings = tidy(root.path()).unwrap();
        assert_eq!(findings.len(), 2);
        assert!(findings[0].starts_with("one/src/lib.rs:1: "));
    }
}
