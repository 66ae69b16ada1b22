//! Whether all servers show what they should: how long that takes, and whether it stays so.
//!
//! A table is looked at by its number of entries, which every answer begins with; when that is right, by its keys.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use diagnostic::logfmt::Logger;
use testkit::e2e::process::now;
use tokio::time::sleep;

use crate::answer::{keys, number_after};
use crate::args::Options;
use crate::servers::{Server, join, telling};
use crate::write::Place;

/// First pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause between two looks, unless the servers take longer for their answers.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// By which part of itself a pause grows.
const PAUSE_GROWTH: u32 = 8;

/// Keys that a failure names.
const NAMED_KEYS_MAX: usize = 3;

/// What all servers have to show.
#[derive(Debug)]
pub(crate) struct Goal<'a> {
    pub(crate) servers: &'a [Server],
    pub(crate) place: &'a Place,
    pub(crate) keys: BTreeSet<String>,
    /// What the watchers on the servers were told has to be the same.
    pub(crate) with_watchers: bool,
    /// When the last write was answered.
    pub(crate) since: Instant,
}

/// How long it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Converged {
    pub(crate) tables: Duration,
    /// None when watchers were not looked at.
    pub(crate) watchers: Option<Duration>,
}

/// What is looked at on a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    Table,
    Watcher,
}

/// A server that shows something else.
#[derive(Debug)]
struct Mismatch {
    ip: IpAddr,
    source: Source,
    /// Entries that it shows.
    count: u64,
    answer: String,
}

/// Since when one kind of source has been right on all servers.
type Since = Cell<Option<Instant>>;

impl Source {
    fn path(self) -> &'static str {
        match self {
            Self::Table => "gettable",
            Self::Watcher => "watchedtableentries",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Table => "total entries: ",
            Self::Watcher => "total elements: ",
        }
    }
}

impl fmt::Display for Converged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.tables.as_millis();
        match self.watchers {
            None => write!(f, "{tables} ms"),
            Some(watchers) => {
                let watchers = watchers.as_millis();
                let both = tables.max(watchers);
                write!(f, "{both} ms (tables {tables} ms, watchers {watchers} ms)")
            }
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ip, count, .. } = self;
        match self.source {
            Source::Table => write!(f, "Node {ip} has {count} entries"),
            Source::Watcher => write!(f, "Node {ip} has told its watcher of {count} entries"),
        }
    }
}

impl Goal<'_> {
    /// Waits until all servers show it, and then sees that they go on to.
    pub(crate) async fn reach(&self, options: &Options, log: &Logger) -> Result<Converged> {
        let expected = self.keys.len();
        let table = &self.place.table;
        log.info(&format!("Checking table {table} expected {expected}"));
        let last = RefCell::new(String::from("no answer yet"));
        let tell = || format!("{}, expected {expected}", last.borrow());
        let wait = self.wait(options.timeout, &last);
        let converged = telling(log, wait, tell).await?;
        log.info(&format!("converged in {converged}"));
        let hold = options.hold;
        let tell = || format!("converged, watching for {hold:?} that it stays so");
        telling(log, self.hold(hold), tell).await?;
        log.info(&format!(
            "Check table passed, the cluster converged in {converged} and stayed so for {hold:?}"
        ));
        Ok(converged)
    }

    async fn wait(&self, limit: Duration, last: &RefCell<String>) -> Result<Converged> {
        let (tables, watchers) = (Since::new(None), Since::new(None));
        let mut pause = PAUSE_MIN;
        let deadline = now() + limit;
        loop {
            let asked = now();
            let wrong = self.look().await?;
            let seen = now();
            for (since, source) in [(&tables, Source::Table), (&watchers, Source::Watcher)] {
                let is_right = wrong.iter().all(|wrong| wrong.source != source);
                since.set(is_right.then(|| since.get().unwrap_or(seen)));
            }
            if wrong.is_empty() {
                let took = |since: &Since| {
                    since
                        .get()
                        .unwrap_or(seen)
                        .saturating_duration_since(self.since)
                };
                return Ok(Converged {
                    tables: took(&tables),
                    watchers: self.with_watchers.then(|| took(&watchers)),
                });
            }
            if seen >= deadline {
                bail!(
                    "Test failed, not converged within {limit:?}: {}",
                    self.describe(&wrong)
                );
            }
            let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            *last.borrow_mut() = all.join(", ");
            // Servers that take long for their answers are left in peace as long.
            sleep(pause.max(seen - asked)).await;
            pause = PAUSE_MAX.min(pause + pause / PAUSE_GROWTH);
        }
    }

    async fn hold(&self, time: Duration) -> Result<()> {
        let start = now();
        loop {
            let asked = now();
            let left = (start + time).saturating_duration_since(asked);
            let wrong = self.look().await?;
            let seen = now();
            if !wrong.is_empty() {
                let after = seen.saturating_duration_since(start);
                bail!(
                    "Test failed, diverged {} ms after all was well: {}",
                    after.as_millis(),
                    self.describe(&wrong)
                );
            }
            if left.is_zero() {
                return Ok(());
            }
            sleep(left.min(PAUSE_MAX.max(seen - asked))).await;
        }
    }

    /// Looks at all servers and returns those that show something else.
    async fn look(&self) -> Result<Vec<Mismatch>> {
        let sources = match self.with_watchers {
            true => &[Source::Table, Source::Watcher][..],
            false => &[Source::Table],
        };
        let query = self.place.query();
        let looks = self.servers.iter().flat_map(|server| {
            sources.iter().map(|source| {
                let (server, source) = (server.clone(), *source);
                let target = format!("/{}?{query}", source.path());
                async move {
                    let answer = server.ask(&target).await?;
                    let count = number_after(&answer, source.words());
                    let count = count.with_context(|| server.unexpected(&target, &answer))?;
                    let ip = server.ip;
                    Ok(Mismatch {
                        ip,
                        source,
                        count,
                        answer,
                    })
                }
            })
        });
        let mut shown = join(looks).await?;
        shown.retain(|shown| !self.is_shown(shown));
        Ok(shown)
    }

    fn is_shown(&self, Mismatch { count, answer, .. }: &Mismatch) -> bool {
        *count == self.keys.len() as u64 && self.keys.iter().map(String::as_str).eq(keys(answer))
    }

    /// Says what is wrong and names some keys of the first server that is.
    fn describe(&self, wrong: &[Mismatch]) -> String {
        let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        let mut text = format!("{}, expected {}", all.join(", "), self.keys.len());
        if let Some(first) = wrong.first() {
            let shown = keys(&first.answer);
            let missing = self
                .keys
                .iter()
                .map(String::as_str)
                .filter(|key| !shown.contains(key));
            let extra = shown
                .iter()
                .copied()
                .filter(|key| !self.keys.contains(*key));
            for (what, keys) in [
                ("lacks", missing.collect::<Vec<_>>()),
                ("has besides", extra.collect()),
            ] {
                if let Some(names) = named(&keys) {
                    text.push_str(&format!("; {} {what} {names}", first.ip));
                }
            }
        }
        text
    }
}

/// Names the first few of some keys; none of none.
fn named(keys: &[&str]) -> Option<String> {
    if keys.is_empty() {
        return None;
    }
    let first = &keys[..keys.len().min(NAMED_KEYS_MAX)];
    let more = match keys.len() - first.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{}{more}", first.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goal<'a>(place: &'a Place, keys: &[&str]) -> Goal<'a> {
        Goal {
            servers: &[],
            place,
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            with_watchers: true,
            since: now(),
        }
    }

    fn shown(keys: &[&str]) -> Mismatch {
        let lines = keys.iter().enumerate();
        let lines = lines.map(|(index, key)| format!("{index}) k:`{key}` -> v:`dg==` owner:`n`\n"));
        Mismatch {
            ip: "127.0.0.2".parse().unwrap(),
            source: Source::Table,
            count: keys.len() as u64,
            answer: format!(
                "OK\ntotal entries: {}\n{}",
                keys.len(),
                lines.collect::<String>()
            ),
        }
    }

    #[test]
    fn number_and_keys_have_to_be_right() {
        let place = Place {
            network: "n".into(),
            table: "t".into(),
        };
        let goal = goal(&place, &["a", "b"]);
        assert!(goal.is_shown(&shown(&["b", "a"])));
        for keys in [&[][..], &["a"], &["a", "c"], &["a", "b", "c"]] {
            assert!(!goal.is_shown(&shown(keys)), "{keys:?}");
        }
    }

    #[test]
    fn failures_name_the_first_keys() {
        let place = Place {
            network: "n".into(),
            table: "t".into(),
        };
        let goal = goal(&place, &["a", "b", "c", "d", "e"]);
        assert_eq!(
            goal.describe(&[shown(&["e", "x"])]),
            "Node 127.0.0.2 has 2 entries, expected 5; 127.0.0.2 lacks a b c and 1 more; 127.0.0.2 has besides x"
        );
    }

    #[test]
    fn the_later_of_two_times_is_the_one_that_counts() {
        let converged = Converged {
            tables: Duration::from_millis(7),
            watchers: Some(Duration::from_millis(9)),
        };
        assert_eq!(converged.to_string(), "9 ms (tables 7 ms, watchers 9 ms)");
        let converged = Converged {
            watchers: None,
            ..converged
        };
        assert_eq!(converged.to_string(), "7 ms");
    }
}
