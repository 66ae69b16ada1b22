//! What real agents send each other, read off the wire.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use testkit::e2e::agent::Agent;
use testkit::e2e::capture::Capture;
use testkit::e2e::process::{SOON, note, stays, until};

const TABLE: (&str, &str) = ("secrets", "table1");

/// Longer than two rounds of digests.
const CALM: Duration = Duration::from_secs(8);

#[test]
fn nothing_that_reaches_an_outsider_holds_a_key_or_value_of_the_network() -> Result<()> {
    let Some(capture) = Capture::start()? else {
        if std::env::var_os("CI").is_some() {
            bail!("a packet capture needs root, and CI has to run this test");
        }
        note("SKIPPED: a packet capture needs root");
        return Ok(());
    };
    let agents = agents_on_own_addresses(4)?;
    for agent in &agents[..3] {
        agent.join_network(TABLE.0)?;
    }
    until("the writer to know whom to tell", SOON, || {
        Ok(agents[0].peers(TABLE.0)?.len() == 3)
    })?;
    let names: Vec<(String, String)> = (0..200)
        .map(|number| {
            (
                format!("wire-key-{number:03}"),
                format!("wire-value-{number:03}"),
            )
        })
        .collect();
    for (key, value) in &names {
        agents[0].create(TABLE, key, value)?;
    }
    let expected: Vec<(&str, &str)> = names
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    for agent in &agents[1..3] {
        agent.shows(TABLE, &expected)?;
    }
    stays("the insiders agree", CALM, || {
        Ok(agents[1].table(TABLE)?.len() == names.len())
    })?;
    let packets = capture.stop()?;
    let outsider = address(3);
    let tells = |text: &str| {
        packets
            .iter()
            .any(|packet| packet.to == address(2) && packet.holds(text))
    };
    ensure!(
        tells("wire-key-000") && tells("wire-value-199"),
        "the capture sees nothing"
    );
    let reached = packets.iter().filter(|packet| packet.to == outsider);
    ensure!(
        reached.clone().count() > 20,
        "the outsider takes part in the cluster"
    );
    for packet in reached {
        ensure!(
            !packet.holds("wire-key-") && !packet.holds("wire-value-"),
            "leaked to the outsider: {packet:?}"
        );
    }
    note(&format!("{} packets captured, none leaked", packets.len()));
    Ok(())
}

fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 77, 10 + index)
}

/// Agents on loopback addresses of their own, so that a packet's destination names its receiver.
fn agents_on_own_addresses(count: u8) -> Result<Vec<Agent>> {
    let mut agents: Vec<Agent> = Vec::new();
    for index in 0..count {
        let bind = address(index).to_string();
        let mut args = vec!["--bind-addr".to_owned(), bind];
        if let Some(first) = agents.first() {
            args.extend(["--join".to_owned(), first.gossip.to_string()]);
        }
        agents.push(Agent::start(&format!("w{index}"), &args)?);
    }
    for agent in &agents {
        until("all members to know each other", SOON, || {
            Ok(agent.members()?.len() == usize::from(count))
        })?;
    }
    Ok(agents)
}
