//! The writers: each has a server of its own and writes keys that no other writes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use diagnostic::logfmt::Logger;
use testkit::e2e::http::encode;
use testkit::e2e::process::now;
use tokio::time::sleep;

use crate::servers::{Server, all_ok, join, telling};

/// Pause after a write, and after a delete before the network is left.
const WRITE_PAUSE: Duration = Duration::from_millis(100);

/// A table of a network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) network: String,
    pub(crate) table: String,
}

/// What each writer does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Work {
    /// Writes so many keys.
    Write(u64),
    /// Deletes so many keys.
    Delete(u64),
    /// Writes keys for a while.
    WriteFor(Duration),
    /// Writes and deletes a key at a time for a while.
    WriteDeleteFor(Duration),
    /// Writes and deletes a key, leaves the network and joins it again, for a while.
    WriteDeleteLeaveJoinFor(Duration),
}

/// What all writers have done.
#[derive(Debug)]
pub(crate) struct Written {
    /// Keys of each writer.
    pub(crate) counts: Vec<u64>,
    /// When the last request was answered.
    pub(crate) end: Instant,
}

/// One writer.
#[derive(Clone, Debug)]
struct Writer {
    server: Server,
    index: usize,
    place: Place,
    /// Keys of all writers so far.
    total: Arc<AtomicU64>,
}

impl Place {
    /// Returns the parameters that name it.
    pub(crate) fn query(&self) -> String {
        let Self { network, table } = self;
        format!("nid={}&tname={}", encode(network), encode(table))
    }
}

impl Written {
    /// Returns the keys of all writers but the first few.
    pub(crate) fn keys(&self, without: usize) -> BTreeSet<String> {
        let writers = self.counts.iter().enumerate().skip(without);
        writers
            .flat_map(|(writer, count)| (0..*count).map(move |number| key(writer, number)))
            .collect()
    }
}

impl Writer {
    async fn run(self, work: Work) -> Result<(u64, Instant)> {
        let mut number = 0;
        let start = now();
        loop {
            let key = key(self.index, number);
            match work {
                Work::Write(_) | Work::WriteFor(_) => self.write(&key).await?,
                Work::Delete(_) => self.delete(&key).await?,
                Work::WriteDeleteFor(_) => self.write_delete(&key).await?,
                Work::WriteDeleteLeaveJoinFor(_) => {
                    self.write_delete(&key).await?;
                    sleep(WRITE_PAUSE).await;
                    self.attach("leavenetwork").await?;
                    self.attach("joinnetwork").await?;
                }
            }
            let end = now();
            number += 1;
            self.total.fetch_add(1, Ordering::Relaxed);
            match work {
                Work::Write(count) | Work::Delete(count) if number >= count => {
                    break Ok((number, end));
                }
                Work::Write(_) | Work::Delete(_) => {}
                // A pause after the last key would be taken for a part of the convergence.
                Work::WriteFor(time) if end + WRITE_PAUSE >= start + time => {
                    break Ok((number, end));
                }
                Work::WriteFor(_) => sleep(WRITE_PAUSE).await,
                Work::WriteDeleteFor(time) | Work::WriteDeleteLeaveJoinFor(time) => {
                    if end >= start + time {
                        break Ok((number, end));
                    }
                }
            }
        }
    }

    async fn write(&self, key: &str) -> Result<()> {
        let place = self.place.query();
        let target = format!("/createentry?unsafe&{place}&value=v&key={}", encode(key));
        self.server.expect_ok(&target).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let target = format!("/deleteentry?{}&key={}", self.place.query(), encode(key));
        self.server.expect_ok(&target).await
    }

    async fn write_delete(&self, key: &str) -> Result<()> {
        self.write(key).await?;
        sleep(WRITE_PAUSE).await;
        self.delete(key).await
    }

    /// Leaves the network or joins it.
    async fn attach(&self, command: &str) -> Result<()> {
        let target = format!("/{command}?nid={}", encode(&self.place.network));
        self.server.expect_ok(&target).await
    }
}

/// Makes all servers watch a table.
pub(crate) async fn watch(servers: &[Server], place: &Place) -> Result<()> {
    all_ok(servers, &format!("/watchtable?{}", place.query())).await
}

/// Lets each server be written to by a writer; done when all are, or one has failed.
pub(crate) async fn write(
    servers: &[Server],
    place: &Place,
    work: Work,
    log: &Logger,
) -> Result<Written> {
    let total = Arc::new(AtomicU64::new(0));
    let writers = servers.iter().enumerate().map(|(index, server)| {
        log.info(&format!("Spawn worker: {index} on IP:{}", server.ip));
        let writer = Writer {
            server: server.clone(),
            index,
            place: place.clone(),
            total: Arc::clone(&total),
        };
        writer.run(work)
    });
    let count = servers.len();
    let tell = || {
        let keys = total.load(Ordering::Relaxed);
        format!("Waiting for {count} workers, {keys} keys so far")
    };
    let done = telling(log, join(writers), tell).await?;
    for (server, (keys, _)) in servers.iter().zip(&done) {
        log.info(&format!("The worker {} wrote {keys} keys", server.ip));
    }
    let keys = total.load(Ordering::Relaxed);
    log.info(&format!("Written a total of {keys} keys on the cluster"));
    let ends = done.iter().map(|(_, end)| *end);
    Ok(Written {
        end: ends.max().unwrap_or_else(now),
        counts: done.into_iter().map(|(count, _)| count).collect(),
    })
}

/// Returns a key of a writer, as Docker's client names it.
fn key(writer: usize, number: u64) -> String {
    format!("key-{writer}-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_stay_are_those_of_the_writers_that_stay() {
        let written = Written {
            counts: vec![1, 2, 1],
            end: now(),
        };
        let keys: Vec<String> = written.keys(1).into_iter().collect();
        assert_eq!(keys, ["key-1-0", "key-1-1", "key-2-0"]);
        assert_eq!(written.keys(0).len(), 4);
        assert!(written.keys(3).is_empty());
    }

    #[test]
    fn names_are_values_of_a_query() {
        let place = Place {
            network: "a b".into(),
            table: "c&d".into(),
        };
        assert_eq!(place.query(), "nid=a%20b&tname=c%26d");
    }
}
