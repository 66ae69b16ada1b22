//! The guides say what the program does: every name that an operator can meet is in them, and they name no other.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testkit::e2e::agent::Agent;
use testkit::e2e::process::binary;

/// Ends of the names of samples that belong to a family of another name.
const SAMPLE_ENDS: [&str; 3] = ["_bucket", "_sum", "_count"];

#[test]
fn metrics_in_the_guide_and_in_the_alerts_are_those_of_a_node() -> Result<()> {
    let agent = Agent::start("node", &["--network", "net"])?;
    agent.wait_attached("net")?;
    let text = agent.get("/metrics")?;
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families = families.filter_map(|line| line.split(' ').next());
    let told: BTreeSet<&str> = families.collect();
    let ours: BTreeSet<&str> = words(&text, "networkdb_").collect();
    let ours = ours.into_iter().map(|name| family(name, &told)).collect();
    let reasons = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("networkdb_dropped_total{reason=\"")?;
        rest.split('"').next()
    });
    let reasons: BTreeSet<&str> = reasons.collect();
    ensure!(!reasons.is_empty(), "no reasons in {text}");

    let guide = read("docs/OPERATORS.md")?;
    let named: BTreeSet<&str> = words(&guide, "networkdb_")
        .map(|name| family(name, &told))
        .collect();
    same("docs/OPERATORS.md", &named, "/metrics", &ours);
    let rows = guide
        .split_once("\n### What was dropped")
        .context("the table of reasons")?;
    let rows = rows.1.split("\n#").next().unwrap_or_default();
    let rows = rows.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows: BTreeSet<&str> = rows.filter_map(|line| line.split('`').next()).collect();
    let rows = rows.into_iter().filter(|row| *row != "reason").collect();
    same("the table of reasons", &rows, "/metrics", &reasons);

    let alerts = read("docs/alerts.yml")?;
    let scraped = ["networkdb_", "process_"].map(|start| words(&alerts, start));
    let data_path = read("docs/DATAPATH.md")?;
    for name in scraped.into_iter().flatten() {
        let name = family(name, &told);
        // Only some agents have these; a test with a data path holds its guide to them.
        let starts = ["networkdb_datapath_", "networkdb_service"];
        if starts.iter().any(|start| name.starts_with(start)) {
            assert!(
                data_path.contains(&format!("| `{name}` |")),
                "docs/DATAPATH.md: {name}"
            );
            continue;
        }
        assert!(
            told.contains(name),
            "docs/alerts.yml: no metric is called {name}"
        );
    }
    for reason in alerts
        .split("reason=~\"")
        .skip(1)
        .filter_map(|it| it.split('"').next())
    {
        for reason in reason.split('|') {
            assert!(
                reasons.contains(reason),
                "docs/alerts.yml: reason {reason:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_path_of_a_node_is_in_a_guide() -> Result<()> {
    let agent = Agent::start("node", &["--network", "net"])?;
    let (guide, reference) = (read("docs/OPERATORS.md")?, read("docs/API.md")?);
    let help = agent.get("/help")?;
    let paths: Vec<&str> = help.lines().filter(|line| line.len() > 1).skip(1).collect();
    ensure!(paths.len() > 10, "{help}");
    for path in paths {
        let asked = [' ', '?', '\'', ',', '`', '\n'].map(|end| format!("{path}{end}"));
        assert!(
            asked.iter().any(|it| guide.contains(it)),
            "docs/OPERATORS.md: no {path}"
        );
    }
    let document: Value = serde_json::from_str(&agent.get("/v1/openapi.json")?)?;
    let paths = document["paths"].as_object().context("paths")?;
    ensure!(paths.len() > 10, "{document}");
    for (path, methods) in paths {
        for method in methods.as_object().context("methods")?.keys() {
            let row = format!("`{} {path}`", method.to_uppercase());
            assert!(reference.contains(&row), "docs/API.md: no {row}");
        }
    }
    for code in reference.split('`') {
        let Some((method, path)) = code.split_once(" /v1/") else {
            continue;
        };
        if ["GET", "PUT", "POST", "DELETE"].contains(&method) {
            let (method, path) = (method.to_lowercase(), format!("/v1/{path}"));
            let found = document["paths"][&path].get(&method);
            assert!(found.is_some(), "docs/API.md: there is no {method} {path}");
        }
    }
    Ok(())
}

#[test]
fn every_problem_is_in_the_reference() -> Result<()> {
    let source = read("diagnostic/src/v1/problem.rs")?;
    let kinds = source
        .split_once("kinds! {")
        .context("the list of problems")?;
    let kinds = kinds.1.split_once("\n    }").context("its end")?.0;
    // `name, STATUS, "urn", "title";`
    let urns = kinds
        .lines()
        .filter(|line| line.trim_end().ends_with(';'))
        .filter_map(|line| line.split('"').nth(1));
    let urns: BTreeSet<String> = urns
        .map(|urn| format!("urn:networkdb:problem:{urn}"))
        .collect();
    ensure!(urns.len() > 10, "{kinds}");
    let reference = read("docs/API.md")?;
    let named: BTreeSet<&str> = words(&reference, "urn:networkdb:problem:").collect();
    same(
        "docs/API.md",
        &named,
        "problem.rs",
        &urns.iter().map(String::as_str).collect(),
    );
    Ok(())
}

#[test]
fn every_flag_of_the_diagnostic_server_is_in_the_guide() -> Result<()> {
    let help = Command::new(binary()?).args(["agent", "--help"]).output()?;
    let help = String::from_utf8(help.stdout)?;
    let guide = read("docs/OPERATORS.md")?;
    let wanted: BTreeSet<&str> = words(&help, "--")
        .filter(|flag| flag.starts_with("--diagnostic") || flag.starts_with("--network-diagnostic"))
        .collect();
    ensure!(wanted.len() > 5, "{help}");
    let named: BTreeSet<&str> = words(&guide, "--").collect();
    let missing: Vec<_> = wanted.difference(&named).collect();
    assert!(missing.is_empty(), "docs/OPERATORS.md: no {missing:?}");
    Ok(())
}

#[test]
fn promtool_takes_the_alert_rules() -> Result<()> {
    let rules = workspace().join("docs/alerts.yml");
    let promtool = Command::new("promtool")
        .args(["check", "rules"])
        .arg(rules)
        .output();
    let Ok(said) = promtool else {
        ensure!(
            std::env::var_os("CI").is_none(),
            "promtool is missing in CI"
        );
        writeln!(
            std::io::stderr(),
            "SKIPPED: promtool is not installed (Debian: prometheus)"
        )?;
        return Ok(());
    };
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{text}");
    Ok(())
}

#[test]
fn links_between_the_guides_lead_somewhere() -> Result<()> {
    for guide in ["README.md", "docs/OPERATORS.md", "docs/API.md"] {
        let text = read(guide)?;
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|it| it.split(')').next());
        for link in links.filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = workspace().join(guide);
            let path = match file {
                "" => path,
                file => path.with_file_name(file),
            };
            let target =
                std::fs::read_to_string(&path).with_context(|| format!("{guide}: {link}"))?;
            let mut titles = target.lines().filter(|line| line.starts_with('#'));
            assert!(
                anchor.is_empty() || titles.any(|title| anchor_of(title) == anchor),
                "{guide}: no section for {link}"
            );
        }
    }
    Ok(())
}

/// Returns the anchor that a title gets.
fn anchor_of(title: &str) -> String {
    let title = title.trim_start_matches('#').trim().to_lowercase();
    let kept = title
        .chars()
        .filter(|it| it.is_alphanumeric() || " -_".contains(*it));
    kept.map(|it| if it == ' ' { '-' } else { it }).collect()
}

/// Returns the words that start so; a word ends where no name goes on.
fn words<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(start).filter_map(move |(at, _)| {
        let is_part = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == '-';
        let is_whole = !text[..at].ends_with(is_part);
        let rest = &text[at..];
        let length = rest[start.len()..].find(|it| !is_part(it));
        let end = length.map_or(rest.len(), |length| start.len() + length);
        (is_whole && end > start.len()).then_some(&rest[..end])
    })
}

/// Returns the family that a sample belongs to.
fn family<'a>(name: &'a str, told: &BTreeSet<&str>) -> &'a str {
    let bases = SAMPLE_ENDS.iter().filter_map(|end| name.strip_suffix(end));
    let mut bases = bases.filter(|base| told.contains(base));
    bases.next().unwrap_or(name)
}

fn same(here: &str, named: &BTreeSet<&str>, there: &str, told: &BTreeSet<&str>) {
    let missing: Vec<_> = told.difference(named).collect();
    assert!(missing.is_empty(), "{here} does not name {missing:?}");
    let unknown: Vec<_> = named.difference(told).collect();
    assert!(unknown.is_empty(), "{there} has no {unknown:?}");
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(workspace().join(path)).with_context(|| path.to_owned())
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
