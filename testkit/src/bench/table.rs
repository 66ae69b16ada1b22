//! How figures are printed: a line each as soon as it is measured.

use super::figure::{Figure, Recorded, Statistic, Target};

/// The heading of the table.
#[must_use]
pub fn heading() -> String {
    let titles = line(
        ["row", "what", "median", "p99", "n"],
        "target",
        "peer (times better)",
    );
    let rule = "-".repeat(titles.len() + 24);
    format!("{titles}\n{rule}")
}

/// One figure as a line, with its note below.
#[must_use]
pub fn show(figure: &Figure) -> String {
    let what = match &figure.who {
        Some(who) => format!("{} [{who}]", figure.what),
        None => figure.what.clone(),
    };
    let p99 = figure
        .p99
        .map_or(String::new(), |p99| figure.unit.show(p99));
    let target = figure.target.map_or(String::new(), |target| {
        let verdict = match figure.is_met() {
            Some(true) => "ok  ",
            Some(false) | None => "MISS",
        };
        format!("{verdict} {}", show_target(figure, target))
    });
    let peers: Vec<String> = figure.peers.iter().map(|p| show_peer(figure, p)).collect();
    let text = line(
        [
            &figure.row,
            &what,
            &figure.unit.show(figure.median),
            &p99,
            &figure.samples.to_string(),
        ],
        &target,
        &peers.join(", "),
    );
    match &figure.note {
        Some(note) => format!("{text}\n{:11}  {note}", ""),
        None => text,
    }
}

/// How our figure of one process compares with another of the same run.
#[must_use]
pub fn show_beside(ours: &Figure, theirs: &Figure) -> String {
    let theirs = Recorded {
        name: String::new(),
        median: theirs.median,
        p99: theirs.p99,
    };
    let ratio = ours.ratio(&theirs);
    let decimals = if ratio < 9.95 { 1 } else { 0 };
    let median = ours.unit.show(ours.median);
    let p99 = ours.p99.map_or(String::new(), |p99| {
        format!(", p99 {}", ours.unit.show(p99))
    });
    format!(
        "{:11}  networkdb in this run: {median}{p99} ({ratio:.decimals$}x)",
        ""
    )
}

/// A row that did not run.
#[must_use]
pub fn show_failure(row: &str, why: &str) -> String {
    format!("{row:<11}FAILED to run: {why}")
}

fn line([row, what, median, p99, samples]: [&str; 5], target: &str, peers: &str) -> String {
    let text = format!("{row:<11}{what:<52}{median:>11}{p99:>11}{samples:>7}  {target:<24}{peers}");
    text.trim_end().to_owned()
}

fn show_target(figure: &Figure, target: Target) -> String {
    let sign = if target.is_floor { ">=" } else { "<=" };
    let of = match target.of {
        Statistic::Median => "",
        Statistic::P99 => "p99 ",
    };
    format!("{of}{sign} {}", figure.unit.show(target.value))
}

fn show_peer(figure: &Figure, peer: &Recorded) -> String {
    let p99 = peer.p99.filter(|_| figure.p99.is_some());
    let value = figure.unit.show(p99.unwrap_or(peer.median));
    let ratio = figure.ratio(peer);
    let decimals = if ratio < 9.95 { 1 } else { 0 };
    format!("{} {value} ({ratio:.decimals$}x)", peer.name)
}
