//! `ssd NETWORK gossip-consistency` beside real nodes: equal ones, one that is stopped, and one that holds something else.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use diagnostic::Server;
use networkdb::node::{NetworkDb, NodeConfig, Write, WriteAction};
use networkdb::{Config, Key, NetworkId, NodeId, TableName};
use serde_json::Value;
use testkit::e2e::agent::Agent;
use testkit::e2e::process::{SOON, Signal, ssd_binary, until};

/// The network, and the table of which hashes are made.
const TABLE: (&str, &str) = ("ov2", "endpoint_table");

/// How long nodes that are to differ may take until they do.
const ROUNDS: usize = 100;

fn ssd(binary: &Path, agent: SocketAddr, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary);
    command.arg("--agent").arg(agent.to_string()).args(args);
    command.output().context("run ssd")
}

/// Compares the nodes as `agent` sees them; returns the lines and the exit code.
fn compare(binary: &Path, agent: SocketAddr) -> Result<(Vec<String>, Option<i32>)> {
    let output = ssd(binary, agent, &[TABLE.0, "gossip-consistency"])?;
    let lines = String::from_utf8(output.stdout)?;
    let lines = lines.lines().map(str::to_owned).collect();
    Ok((lines, output.status.code()))
}

#[test]
fn equal_nodes_have_equal_hashes_and_one_that_is_stopped_has_none() -> Result<()> {
    let binary = ssd_binary()?;
    // One that is stopped is found dead late enough to be asked before.
    let agents = Agent::start_chain(3, &["--network", TABLE.0, "--preset", "wan"])?;
    for number in 0..20 {
        let of = &agents[number % 3];
        of.create(TABLE, &format!("key{number}"), "value")?;
    }
    until("all entries on all nodes", SOON, || {
        let mut tables = agents.iter().map(|agent| agent.table(TABLE));
        tables.try_fold(true, |all, table| Ok(all && table?.len() == 20))
    })?;
    let mut seen = Vec::new();
    for agent in &agents {
        let (lines, code) = compare(&binary, agent.diagnostic)?;
        ensure!(code == Some(0), "{lines:?}");
        seen.push(lines);
    }
    let hash = |line: &str| line.rsplit_once(' ').map(|(_, hash)| hash.to_owned());
    let first = hash(&seen[0][0]).context("a hash")?;
    ensure!(first.len() == 64, "{first}");
    let expected: Vec<String> = ["n1", "n2", "n3"]
        .map(|id| format!("Node id: {id} gossip hash {first}"))
        .join("\n\n")
        .lines()
        .map(str::to_owned)
        .collect();
    ensure!(seen.iter().all(|lines| *lines == expected), "{seen:?}");

    agents[2].process.signal(Signal::STOP)?;
    let (lines, code) = compare(&binary, agents[0].diagnostic)?;
    agents[2].process.signal(Signal::CONT)?;
    // What the stopped one wrote may be hidden by then.
    ensure!(
        lines[0].starts_with("Node id: n1 gossip hash "),
        "{lines:?}"
    );
    ensure!(hash(&lines[0]) == hash(&lines[2]), "{lines:?}");
    let last = lines.last().context("a line for the stopped one")?;
    ensure!(last.starts_with("Node id: n3 did not answer: "), "{last}");
    ensure!(code == Some(3), "{code:?}");
    Ok(())
}

#[test]
fn what_is_asked_of_no_agent_or_of_one_that_is_not_attached_cannot_be_told() -> Result<()> {
    let binary = ssd_binary()?;
    let agent = Agent::start::<&str>("n1", &[])?;
    let output = ssd(&binary, agent.diagnostic, &["ov2", "gossip-consistency"])?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(said.contains("not attached to network"), "{said}");
    ensure!(output.status.code() == Some(3));
    let output = ssd(&binary, agent.diagnostic, &["ov2"])?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(said.contains("the agent has no data path"), "{said}");
    ensure!(output.status.code() == Some(3));
    Ok(())
}

/// A node that tells others next to nothing of what is written to it, with a diagnostic server.
async fn silent_node(id: &str) -> Result<(NetworkDb, diagnostic::Running)> {
    let hour = Duration::from_secs(3_600);
    let protocol = Config {
        digest_delay: hour,
        digest_period: hour,
        push_queue_max: 1,
        feed_from: usize::MAX,
        ..Config::lan()
    };
    let db = NetworkDb::start(NodeConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        node_id: Some(NodeId::new(id)?),
        protocol,
        ..NodeConfig::default()
    });
    let db = db.await?;
    let server = Server::bind(([127, 0, 0, 1], 0).into()).await?;
    let running = server.serve(db.clone());
    Ok((db, running))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_differs_is_named_with_the_keys() -> Result<()> {
    let binary = tokio::task::spawn_blocking(ssd_binary).await??;
    let (network, table) = (NetworkId::new(TABLE.0)?, TableName::new(TABLE.1)?);
    let mut nodes: Vec<(NetworkDb, diagnostic::Running)> = Vec::new();
    for id in ["n1", "n2", "n3"] {
        let (db, server) = silent_node(id).await?;
        if let Some((first, _)) = nodes.first() {
            db.join(&[first.gossip_addr().to_string()]).await?;
        }
        nodes.push((db, server));
    }
    for (db, _) in &nodes {
        db.join_network(&network).await?;
    }
    let agent = nodes[1].1.local_addr();
    for round in 0..ROUNDS {
        // Two are pushed; further ones are left to digests, which do not come.
        let writes = ["a", "b", "c", "d", "e"].map(|name| Write {
            network: network.clone(),
            table: table.clone(),
            key: Key::new(format!("{name}{round}")).expect("a valid name"),
            action: WriteAction::Create("v".into()),
        });
        let written = nodes[0].0.write_batch(writes.to_vec()).await?;
        ensure!(written.iter().all(Result::is_ok));
        let asked = binary.clone();
        let (lines, code) = tokio::task::spawn_blocking(move || compare(&asked, agent)).await??;
        ensure!([Some(0), Some(1)].contains(&code), "{code:?}: {lines:?}");
        // The first syncs may still have been under way, and have made n2 the same as n1, whatever n3 is.
        let named = lines
            .iter()
            .position(|line| line.starts_with("Node n1 differs from n2: "));
        let Some(named) = named else {
            continue;
        };
        ensure!(code == Some(1), "{lines:?}");
        let hash = |at: usize| lines[at].rsplit_once(' ').map(|(_, hash)| hash);
        ensure!(hash(0) != hash(2), "{lines:?}");
        let keys = lines[named + 1..].iter();
        let keys: Vec<&String> = keys.take_while(|line| !line.is_empty()).collect();
        ensure!(!keys.is_empty(), "{lines:?}");
        for key in &keys {
            let is_named = key.starts_with("  endpoint_table ");
            let versions = ": here nothing, there n1 time ";
            ensure!(is_named && key.contains(versions), "{key}");
        }
        let args = [TABLE.0, "gossip-consistency", "--json"];
        let output = tokio::task::spawn_blocking(move || ssd(&binary, agent, &args)).await??;
        let told: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(told["nodes"][0]["differs"] == true, "{told}");
        ensure!(told["nodes"][0]["differences"].as_array().map(Vec::len) == Some(keys.len()));
        return Ok(());
    }
    anyhow::bail!("n1 was never named")
}
