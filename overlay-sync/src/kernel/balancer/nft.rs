//! Runs `nft` in a namespace: a script is one transaction, done as a whole or not at all, and tables are read as JSON.
//!
//! The program is the interface that nftables keeps stable; its netlink messages are expressions on registers, and the
//! libraries for them are either copyleft or run the same program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::process::{Command, Stdio};
use std::thread;

use serde_json::Value;

use super::super::netns;
use super::super::socket::Refusal;
use crate::record::Protocol;

/// What is said when there is no such program.
const MISSING: &str = "the program nft is not installed (Debian: nftables), or not in PATH";

/// How much of what the program complains about is told, in characters.
const COMPLAINT_MAX: usize = 300;

/// Applies a script in a namespace; nothing is done on an error. None stands for the namespace of the calling thread.
pub(super) fn apply(namespace: Option<&File>, script: &str) -> Result<(), Refusal> {
    if script.is_empty() {
        return Ok(());
    }
    run(namespace, &["-f", "-"], script).map(drop)
}

/// Lists a table of the family `inet`; none when it is not there.
pub(super) fn list(namespace: Option<&File>, table: &str) -> Result<Option<Vec<Value>>, Refusal> {
    let told = run(namespace, &["-j", "list", "table", "inet", table], "");
    let told = match told {
        Err(refusal) if refusal.to_string().contains("No such file or directory") => {
            return Ok(None);
        }
        told => told?,
    };
    let mut read: Value = serde_json::from_slice(&told)
        .map_err(|error| Refusal::own(&format!("nft told no JSON: {error}")))?;
    let Value::Array(objects) = read["nftables"].take() else {
        return Err(Refusal::own("nft told no list of objects"));
    };
    Ok(Some(objects))
}

/// Counts the rules of a table's chains, of what [`list`] has told.
pub(super) fn rules(objects: &[Value]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    let rules = objects.iter().filter_map(|object| object.get("rule"));
    for chain in rules.filter_map(|rule| rule["chain"].as_str()) {
        *counts.entry(chain).or_default() += 1;
    }
    counts
}

/// Tells whether chains have so many rules each: a table of which somebody has flushed one is made anew.
pub(super) fn has_rules(objects: &[Value], wanted: &[(&str, usize)]) -> bool {
    let counts = rules(objects);
    let mut wanted = wanted.iter();
    wanted.all(|(chain, count)| counts.get(chain) == Some(count))
}

/// Reads the elements of a set or a map.
pub(super) fn elements(set: &Value) -> impl Iterator<Item = &Value> {
    set["elem"].as_array().into_iter().flatten()
}

/// Reads what stands for a port: a protocol and a number.
pub(super) fn port(value: &Value) -> Option<(Protocol, u16)> {
    let [protocol, port] = value["concat"].as_array()?.as_slice() else {
        return None;
    };
    let port = u16::try_from(port.as_u64()?).ok()?;
    Some((Protocol::named(protocol.as_str()?)?, port))
}

/// Removes tables of the family `inet`, those of them that are there.
pub(super) fn remove(namespace: Option<&File>, tables: &[&str]) -> Result<(), Refusal> {
    // Adding what is there changes nothing, and what is not there cannot be deleted.
    let lines = tables
        .iter()
        .map(|table| format!("table inet {table}\ndelete table inet {table}\n"));
    let script: String = lines.collect();
    match apply(namespace, &script) {
        // What cannot be removed for lack of the program has not been made either.
        Err(refusal) if refusal.to_string() == MISSING => Ok(()),
        outcome => outcome,
    }
}

/// Says why the program cannot be used here, if so.
pub(super) fn missing(namespace: Option<&File>) -> Option<String> {
    let tried = run(namespace, &["list", "tables"], "");
    tried.err().map(|refusal| refusal.to_string())
}

fn run(namespace: Option<&File>, args: &[&str], script: &str) -> Result<Vec<u8>, Refusal> {
    let work = || -> io::Result<_> {
        let mut command = Command::new("nft");
        command.args(args).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // A child is in the namespace of the thread that starts it.
        let mut child = command.spawn()?;
        let mut input = child.stdin.take();
        thread::scope(|scope| {
            // It may tell before it has read everything.
            scope.spawn(move || {
                // What it did not read, it complains about itself.
                input.as_mut().map(|to| to.write_all(script.as_bytes()))
            });
            child.wait_with_output()
        })
    };
    let output = match namespace {
        Some(namespace) => netns::inside(namespace, work),
        None => work(),
    };
    let output = output.map_err(|error| match error.kind() == ErrorKind::NotFound {
        true => Refusal::own("the program nft is not installed (Debian: nftables), or not in PATH"),
        false => error.into(),
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.split_whitespace().collect::<Vec<_>>().join(" ");
    let complaint: String = complaint.chars().take(COMPLAINT_MAX).collect();
    Err(Refusal::own(&format!("nft: {complaint}")))
}
