//! Every command of `networkdb-test client`, on three hosts and on ten.

use anyhow::{Context as _, Result, ensure};
use testkit::e2e::process::note;
use testkit::hosts;
use testkit::scenario::{Cluster, DEADLINE};

use super::{name, settings};

/// The commands that write, with their arguments behind the network, `N` for the number of hosts.
const WRITES: [&str; 8] = [
    "write-keys keys N 10",
    "delete-keys keys N 10",
    "write-unique-keys unique N 1",
    "write-delete-unique-keys tableBla N 1",
    "write-delete-leave-join rounds N 1",
    "write-delete-wait-leave-join later N 1",
    "write-wait-leave-join some N 1 2",
    "write-wait-leave gone 2 1",
];

#[test]
fn every_command_of_the_client_does_its_work_on_three_hosts() -> Result<()> {
    every_command(3)
}

#[test]
fn every_command_of_the_client_does_its_work_on_ten_hosts() -> Result<()> {
    every_command(10)
}

fn every_command(hosts: usize) -> Result<()> {
    if hosts::is_skipped()? {
        return Ok(());
    }
    let cluster = Cluster::apart(&name(&format!("client{hosts}")), &settings(hosts)?)?;
    let count = hosts.to_string();
    cluster.client(1, "ready", &[])?;
    cluster.client(2, "join", &[])?;
    cluster.client(1, "cluster-peers", &[&count, "20"])?;
    cluster.client(3, "join-network", &["test"])?;
    cluster.client(1, "network-peers", &["test", &count, "20"])?;
    let mut times = Vec::new();
    for (number, write) in WRITES.iter().enumerate() {
        let mut words = write.split(' ');
        let command = words.next().context("a command")?;
        let args = words.map(|word| if word == "N" { &count } else { word });
        let args: Vec<&str> = ["--hold", "200ms", "test"]
            .into_iter()
            .chain(args)
            .collect();
        let log = cluster.client(1 + number % hosts, command, &args)?;
        let time = log
            .iter()
            .find_map(|line| line.split_once("msg=\"converged in "));
        let (_, time) = time.with_context(|| format!("{command} tells no time: {log:?}"))?;
        times.push(format!("{command} {}", time.trim_end_matches('"')));
    }
    note(&format!("{hosts} hosts: {}", times.join(", ")));
    // Two have left the network with their keys.
    let left = (hosts - 2).to_string();
    cluster.client(1, "network-peers", &["test", &left, "20"])?;
    cluster
        .client(1, "join-network", &["test"])
        .err()
        .context("some are attached already")?;
    for host in cluster.all() {
        cluster.join(host)?;
    }
    cluster.agree(DEADLINE)?;
    cluster.client(2, "network-stats-queue", &["test", "lt", "1000"])?;
    cluster.client(1, "leave-network", &["test"])?;
    cluster.client(1, "leave", &[])?;
    cluster.client(1, "cluster-peers", &["1", "20"])?;
    ensure!(cluster.client(1, "fail", &[]).is_err());
    Ok(())
}
