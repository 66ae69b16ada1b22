//! The report of a soak: a page with tables, and two plots.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::chart::{Chart, Line};
use super::{Kind, Round, Soak};
use crate::scenario::Tally;

/// How many of the slowest rounds are listed.
const SLOWEST: usize = 10;

/// Returns the files of a report by name.
pub(super) fn files(
    soak: &Soak,
    rounds: &[Round],
    failure: Option<&str>,
) -> Vec<(&'static str, String)> {
    let resources = |title, unit, what: &dyn Fn(u64, usize) -> f64| Chart {
        title,
        unit,
        lines: (1..=soak.settings.hosts)
            .map(|host| Line {
                name: format!("host {host}"),
                points: rounds
                    .iter()
                    .filter_map(|round| {
                        let (memory, open) = round.resources.get(&host)?;
                        Some((minutes(round.at), what(*memory, *open)))
                    })
                    .collect(),
            })
            .collect(),
    };
    let memory = resources("Resident memory of each server", "MB", &|memory, _| {
        memory as f64 / 1e6
    });
    let open = resources("Open descriptors of each server", "", &|_, open| {
        open as f64
    });
    vec![
        ("soak.md", page(soak, rounds, failure)),
        ("soak-memory.svg", memory.draw()),
        ("soak-descriptors.svg", open.draw()),
    ]
}

/// The most memory that a server held at the end of a round.
pub(super) fn memory(round: &Round) -> u64 {
    round
        .resources
        .values()
        .map(|(memory, _)| *memory)
        .max()
        .unwrap_or(0)
}

/// The most descriptors that a server had open at the end of a round.
pub(super) fn open(round: &Round) -> usize {
    round
        .resources
        .values()
        .map(|(_, open)| *open)
        .max()
        .unwrap_or(0)
}

/// The share of writes that were answered in time.
pub(super) fn available(tally: Tally) -> String {
    let answered = tally.acknowledged + tally.refused;
    let asked = answered + tally.unanswered + tally.unreachable;
    match asked {
        0 => "nothing asked".to_owned(),
        _ => format!("{:.3} %", 100.0 * answered as f64 / asked as f64),
    }
}

fn minutes(time: Duration) -> f64 {
    time.as_secs_f64() / 60.0
}

/// The share of sorted times that are at most the returned one.
fn at(times: &[Duration], percent: usize) -> Duration {
    let last = times.len().saturating_sub(1);
    times.get(last * percent / 100).copied().unwrap_or_default()
}

fn page(soak: &Soak, rounds: &[Round], failure: Option<&str>) -> String {
    let sum = |of: fn(&Round) -> Tally| rounds.iter().map(of).fold(Tally::default(), Tally::and);
    let (running, struck) = (sum(|round| round.running), sum(|round| round.struck));
    let time = rounds
        .last()
        .map_or(Duration::ZERO, |round| round.at + round.lasted + round.lag);
    let mut page = format!(
        "{} hosts, seed {}, {:.1} minutes, {} rounds: {}.\n\n",
        soak.settings.hosts,
        soak.seed,
        minutes(time),
        rounds.len(),
        if failure.is_none() {
            "passed"
        } else {
            "failed"
        },
    );
    if let Some(failure) = failure {
        write!(page, "```\n{failure}\n```\n\n").expect("a string takes every write");
    }
    let tally = |page: &mut String, name: &str, tally: Tally| {
        writeln!(
            page,
            "| {name} | {} | {} | {} | {} | {} | {:.1?} |",
            tally.acknowledged,
            tally.refused,
            tally.unanswered,
            tally.unreachable,
            available(tally),
            tally.slowest,
        )
        .expect("a string takes every write");
    };
    page += "| local writes on hosts whose server | confirmed | refused | unanswered | not reached | available | slowest |\n";
    page += "|---|---|---|---|---|---|---|\n";
    tally(&mut page, "ran all the time", running);
    tally(&mut page, "was stopped, killed or left", struck);
    page += "\nUntil all hosts agreed, after the fault had gone and the last write was done:\n\n";
    page += &lags(rounds);
    page += "\nThe slowest rounds:\n\n| round | minute | what | until all agreed |\n|---|---|---|---|\n";
    let mut slowest: Vec<(usize, &Round)> = rounds.iter().enumerate().collect();
    slowest.sort_by_key(|(_, round)| std::cmp::Reverse(round.lag));
    for (number, round) in slowest.into_iter().take(SLOWEST) {
        let minute = minutes(round.at);
        let number = number + 1;
        // A table takes it for the end of a cell.
        let trouble = round.trouble.to_string().replace('|', "\\|");
        writeln!(
            page,
            "| {number} | {minute:.1} | {trouble} | {:.2?} |",
            round.lag
        )
        .expect("a string takes every write");
    }
    page += "\n![memory](soak-memory.svg)\n\n![descriptors](soak-descriptors.svg)\n";
    page
}

/// The table of times by kind of trouble.
fn lags(rounds: &[Round]) -> String {
    let mut kinds: BTreeMap<Option<Kind>, Vec<Duration>> = BTreeMap::new();
    for round in rounds {
        for kind in [Some(round.trouble.kind()), None] {
            kinds.entry(kind).or_default().push(round.lag);
        }
    }
    let mut table =
        "| trouble | rounds | median | p90 | p99 | longest |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for (kind, mut times) in kinds {
        times.sort_unstable();
        let name = kind.map_or("all", Kind::name);
        let [median, most, nearly, longest] = [50, 90, 99, 100].map(|percent| at(&times, percent));
        let count = times.len();
        writeln!(
            table,
            "| {name} | {count} | {median:.2?} | {most:.2?} | {nearly:.2?} | {longest:.2?} |"
        )
        .expect("a string takes every write");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::Trouble;
    use super::*;

    fn soak() -> Soak {
        Soak {
            time: Duration::from_secs(60),
            settings: crate::scenario::Settings {
                hosts: 2,
                subnet: 0,
                program: "networkdb-test".into(),
                keeps_state: true,
            },
            seed: 7,
            kinds: vec![Kind::None],
            report: "report".into(),
        }
    }

    fn round(second: u64, lag: u64) -> Round {
        Round {
            at: Duration::from_secs(second),
            trouble: Trouble::None(Duration::from_secs(1)),
            lasted: Duration::from_secs(2),
            running: Tally {
                acknowledged: 99,
                unanswered: 1,
                ..Tally::default()
            },
            struck: Tally::default(),
            lag: Duration::from_millis(lag),
            resources: [(1, (10_000_000, 20)), (2, (12_000_000, 21))].into(),
        }
    }

    #[test]
    fn a_report_tells_availability_times_and_what_failed() {
        let rounds: Vec<Round> = (0..100).map(|number| round(number * 2, number)).collect();
        let [page, memory, open] = files(&soak(), &rounds, None).try_into().unwrap();
        assert!(
            page.1
                .starts_with("2 hosts, seed 7, 3.3 minutes, 100 rounds: passed."),
            "{}",
            page.1
        );
        assert!(
            page.1
                .contains("| ran all the time | 9900 | 0 | 100 | 0 | 99.000 % |"),
            "{}",
            page.1
        );
        assert!(
            page.1
                .contains("| was stopped, killed or left | 0 | 0 | 0 | 0 | nothing asked |")
        );
        assert!(
            page.1
                .contains("| none | 100 | 49.00ms | 89.00ms | 98.00ms | 99.00ms |"),
            "{}",
            page.1
        );
        assert!(
            page.1
                .contains("| 100 | 3.3 | nothing wrong, 1.0 s | 99.00ms |"),
            "{}",
            page.1
        );
        for plot in [memory.1, open.1] {
            assert_eq!(plot.matches("<polyline").count(), 2);
        }
        let failed = files(&soak(), &rounds, Some("host 1 differs"));
        assert!(
            failed[0]
                .1
                .contains(": failed.\n\n```\nhost 1 differs\n```")
        );
        assert!(files(&soak(), &[], None)[0].1.contains("0 rounds"));
    }
}
