//! `networkdb support` between two hosts whose agents really hold different things while it looks.
//!
//! The fault takes UDP to the gossip port: pushes, digests and probes are lost, while a check, which is a stream, gets
//! through. So the difference can be neither repaired nor mistaken for silence until the peer is taken for dead.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use prost::Message;
use serde_json::Value;
use testkit::e2e::agent::Agent;
use testkit::e2e::process::{SOON, binary, note, now, until};
use testkit::hosts::fault::{Fault, Transport};
use testkit::hosts::{self, Hosts, Options, Program};

const NETWORK: &str = "net1";
const ENDPOINTS: (&str, &str) = (NETWORK, "endpoint_table");
/// Where agents gossip when they are not told otherwise.
const GOSSIP_PORT: u16 = 7946;

/// Docker's `EndpointRecord`, as far as the test needs it.
#[derive(Clone, Eq, PartialEq, Message)]
struct Endpoint {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "5")]
    endpoint_ip: String,
}

/// How `networkdb support` ended.
#[derive(Debug)]
struct Outcome {
    code: Option<i32>,
    /// On stdout, then on stderr.
    said: String,
}

#[test]
fn two_nodes_that_differ_are_flagged_until_the_link_is_back() -> Result<()> {
    let Some(hosts) = up()? else {
        return Ok(());
    };
    let agents = [agent(&hosts, 1)?, agent(&hosts, 2)?];
    let on = |host: usize, work: &(dyn Fn(&Agent) -> Result<()> + Sync)| {
        hosts.enter(host, || work(&agents[host - 1]))?
    };
    for host in [1, 2] {
        on(host, &|agent| {
            let known = || Ok(agent.members()?.len() == 2);
            until("both members to know each other", SOON, known).map(drop)
        })?;
        on(host, &|agent| agent.join_network(NETWORK))?;
    }
    // Two nodes give one address to endpoints of theirs, and that is known everywhere.
    on(1, &|agent| create(agent, "first", "10.99.7.5"))?;
    on(2, &|agent| create(agent, "second", "10.99.7.5"))?;
    for host in [1, 2] {
        on(host, &|agent| holds(agent, &["first", "second"]))?;
    }
    let before = support(&hosts, "before")?;
    ensure!(before.code == Some(1), "{before:?}");
    ensure!(before.said.contains("FLAG overlap: "), "{before:?}");
    ensure!(!before.said.contains("FLAG differs: "), "{before:?}");

    let broken = now();
    let fault = hosts.add(Fault::Block {
        hosts: vec![2],
        transport: Transport::Udp,
        port: GOSSIP_PORT,
    })?;
    on(1, &|agent| create(agent, "third", "10.99.7.6"))?;
    let flagged = support(&hosts, "flagged")?;
    note(&format!(
        "support had looked {:?} after the fault",
        broken.elapsed()
    ));
    on(2, &|agent| {
        let held = agent.table(ENDPOINTS)?;
        ensure!(
            !held.contains_key("third"),
            "the fault lets entries through"
        );
        Ok(())
    })?;
    ensure!(flagged.code == Some(1), "{flagged:?}");
    let address = hosts.address(2)?;
    for flag in [
        r#"FLAG overlap: network "net1": endpoint_table: keys "first", "second" have one endpoint_ip "10.99.7.5""#.to_owned(),
        format!(
            r#"FLAG differs: network "net1": node "n2" at {address}:{GOSSIP_PORT} holds something else: 1 keys in tables "endpoint_table", first "endpoint_table"/"third""#
        ),
    ] {
        ensure!(flagged.said.contains(&flag), "no {flag} in {flagged:?}");
    }

    ensure!(hosts.clear(&[fault])? == 1);
    on(2, &|agent| holds(agent, &["first", "second", "third"]))?;
    on(2, &|agent| agent.delete(ENDPOINTS, "second"))?;
    for host in [1, 2] {
        on(host, &|agent| {
            until("all to be alive and equal", SOON, || is_healed(agent)).map(drop)
        })?;
    }
    let healed = support(&hosts, "healed")?;
    ensure!(healed.code == Some(0), "{healed:?}");
    for kind in ["overlap", "differs", "member", "unanswered", "agent"] {
        let flag = format!("FLAG {kind}: ");
        ensure!(!healed.said.contains(&flag), "{healed:?}");
    }
    drop(agents);
    hosts.down()
}

fn up() -> Result<Option<Hosts>> {
    if hosts::is_skipped()? {
        return Ok(None);
    }
    let name = format!("e2e-support-{}", std::process::id());
    Hosts::up(&name, 2, &Options::default()).map(Some)
}

/// Starts an agent on a host that joins the one on host 1. It takes its time to give a silent peer up, so that a busy
/// machine can look before that.
fn agent(hosts: &Hosts, host: usize) -> Result<Agent> {
    let addr = hosts.address(host)?.to_string();
    let id = format!("n{host}");
    let program = binary()?.to_string_lossy().into_owned();
    let mut args = vec!["agent", "--node-id", &id, "--preset", "wan"];
    args.extend(["--bind-addr", &addr, "--insecure-gossip"]);
    args.extend(["--diagnostic-addr", &addr, "--diagnostic-insecure"]);
    args.extend(["--network-diagnostic-port", "2000"]);
    if host > 1 {
        args.extend(["--join", "host1"]);
    }
    let program = Program::new(&program, &args);
    Agent::started(&id, hosts.spawn(host, &program)?.process)
}

/// Creates an endpoint with an address.
fn create(agent: &Agent, key: &str, endpoint_ip: &str) -> Result<()> {
    let record = Endpoint {
        name: format!("name-of-{key}"),
        endpoint_ip: endpoint_ip.to_owned(),
    };
    let value = String::from_utf8(record.encode_to_vec())?;
    agent.create(ENDPOINTS, key, &value)
}

/// Waits until a node holds exactly these endpoints.
fn holds(agent: &Agent, keys: &[&str]) -> Result<()> {
    until("the endpoints", SOON, || {
        Ok(agent.table(ENDPOINTS)?.keys().eq(keys))
    })
    .map(drop)
}

/// Whether a node knows all to be alive and has found that they hold the same.
fn is_healed(agent: &Agent) -> Result<bool> {
    let ask = |target: &str| -> Result<Value> { Ok(serde_json::from_str(&agent.get(target)?)?) };
    let members = ask("/v1/members")?;
    let members = members["members"].as_array().context("members")?;
    if members.len() != 2 || members.iter().any(|it| it["state"] != "alive") {
        return Ok(false);
    }
    let found = ask(&format!("/v1/networks/{NETWORK}/consistency"))?;
    let peers = found["peers"].as_array().context("peers")?;
    Ok(found["is_consistent"] == true && peers.len() == 1)
}

/// Runs it on host 1, without sight of the namespaces that others have on this machine: their addresses are not ours to
/// judge.
fn support(hosts: &Hosts, name: &str) -> Result<Outcome> {
    const ALONE: &str = r#"mount -t tmpfs none /run/netns && exec "$0" "$@""#;
    let dir = tempfile::tempdir()?;
    let archive = dir.path().join(format!("{name}.tar.gz"));
    let (program, archive) = (binary()?, archive.to_string_lossy().into_owned());
    let agent = format!("{}:2000", hosts.address(1)?);
    let program = program.to_string_lossy();
    let args = ["--mount", "sh", "-c", ALONE, &program];
    let support = ["support", "--agent", &agent, "-o", &archive];
    let program = Program::new("unshare", &[&args[..], &support[..]].concat());
    let mut command = program.on(1, &hosts.state()?)?;
    let output = command.stdin(Stdio::null()).output()?;
    Ok(Outcome {
        code: output.status.code(),
        said: String::from_utf8([output.stdout, output.stderr].concat())?,
    })
}
