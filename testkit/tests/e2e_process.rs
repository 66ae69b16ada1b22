//! Real agents on loopback, driven over HTTP: what is written on one is on all others that are attached.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::e2e::agent::{Agent, write_target};
use testkit::e2e::http::Connection;
use testkit::e2e::process::{SOON, note, now, stays, until};

/// The table of most tests, with its network.
const TABLE: (&str, &str) = ("net1", "table1");

/// Entries of the tests that measure.
const ENTRIES: usize = 1_000;

/// Keys that two agents create at the same time.
const COLLISIONS: usize = 100;

/// How long nothing must happen in a test that says so.
const CALM: Duration = Duration::from_secs(1);

#[test]
fn thousand_entries_written_through_one_of_three_agents_are_on_all() -> Result<()> {
    thousand_entries_are_on_all(3)
}

#[test]
fn thousand_entries_written_through_one_of_ten_agents_are_on_all() -> Result<()> {
    thousand_entries_are_on_all(10)
}

#[test]
fn update_and_delete_are_on_all_agents() -> Result<()> {
    let agents = attached(3)?;
    agents[0].create(TABLE, "changed", "before")?;
    agents[0].create(TABLE, "deleted", "before")?;
    agents[2].shows(TABLE, &[("changed", "before"), ("deleted", "before")])?;
    agents[0].update(TABLE, "changed", "after")?;
    agents[0].delete(TABLE, "deleted")?;
    for agent in &agents {
        agent.shows(TABLE, &[("changed", "after")])?;
    }
    Ok(())
}

#[test]
fn update_and_delete_may_come_from_another_agent_than_the_create() -> Result<()> {
    let agents = attached(2)?;
    agents[0].create(TABLE, "key", "first")?;
    agents[1].shows(TABLE, &[("key", "first")])?;
    agents[1].update(TABLE, "key", "second")?;
    agents[0].shows(TABLE, &[("key", "second")])?;
    agents[0].delete(TABLE, "key")?;
    agents[1].shows(TABLE, &[])?;
    Ok(())
}

#[test]
fn entries_reach_only_agents_attached_to_their_network() -> Result<()> {
    let agents = Agent::start_chain::<&str>(3, &[])?;
    let [first, second, outsider] = &agents[..] else {
        unreachable!("three were started");
    };
    first.join_network("net1")?;
    second.join_network("net1")?;
    first.create(TABLE, "key", "value")?;
    second.shows(TABLE, &[("key", "value")])?;
    stays("the outsider has no entry", CALM, || {
        Ok(outsider.table(TABLE)?.is_empty())
    })?;
    outsider.join_network("net1")?;
    outsider.shows(TABLE, &[("key", "value")])?;
    Ok(())
}

#[test]
fn agents_that_create_the_same_key_at_once_end_equal() -> Result<()> {
    let agents = attached(3)?;
    let barrier = Barrier::new(2);
    let create_all = |agent: &Agent| -> Result<()> {
        let mut connection = Connection::open(agent.diagnostic)?;
        for index in 0..COLLISIONS {
            let target = write_target("createentry", TABLE, &format!("key{index}"), &agent.id);
            barrier.wait();
            // The later one may find that the key exists; which of the two is not the point.
            connection.get(&target)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| create_all(&agents[1]));
        let this = create_all(&agents[0]);
        this.and(other.join().expect("the thread returns its errors"))
    })?;
    until("equal tables on all agents", SOON, || {
        let tables: Result<Vec<_>> = agents.iter().map(|agent| agent.table(TABLE)).collect();
        let tables = tables?;
        Ok(tables[0].len() == COLLISIONS && tables.iter().all(|table| *table == tables[0]))
    })?;
    let owners = agents[2].table(TABLE)?;
    ensure!(owners.values().all(|(value, owner)| value == owner));
    let won = owners.values().filter(|(value, _)| value == "n1").count();
    note(&format!(
        "{COLLISIONS} keys created twice at once, n1 holds {won} of them"
    ));
    Ok(())
}

#[test]
fn names_of_any_characters_work_end_to_end() -> Result<()> {
    let agents = Agent::start_chain::<&str>(2, &[])?;
    let table = ("net/1 'ü' \"q\"", "ta ble/\"é\"/ß");
    for agent in &agents {
        agent.join_network(table.0)?;
    }
    let keys = [
        "a/b/c",
        "/",
        " leads and ends ",
        "q\"u'o`t\\e",
        "日本語🦀",
        "p;q&r=s%2F+#?",
        "line\nbreak\ttab",
        "<b>&amp;</b>",
        "..",
    ];
    for key in keys {
        agents[0].create(table, key, key)?;
    }
    agents[1].shows(table, &keys.map(|key| (key, key)))?;
    for key in &keys[1..] {
        agents[1].delete(table, key)?;
    }
    agents[0].shows(table, &[("a/b/c", "a/b/c")])?;
    Ok(())
}

#[test]
fn networks_whose_names_begin_alike_do_not_touch_each_other() -> Result<()> {
    let agents = attached(2)?;
    for agent in &agents {
        agent.join_network("net10")?;
    }
    let [glued, other] = [("net1", "0table1"), ("net10", "table1")];
    agents[0].create(TABLE, "key", "in net1")?;
    agents[0].create(glued, "key", "in the glued name")?;
    agents[0].create(other, "key", "in net10")?;
    agents[1].shows(TABLE, &[("key", "in net1")])?;
    agents[1].shows(glued, &[("key", "in the glued name")])?;
    agents[1].shows(other, &[("key", "in net10")])?;
    agents[0].ok("/leavenetwork?nid=net1")?;
    agents[1].shows(TABLE, &[])?;
    agents[1].shows(glued, &[])?;
    stays("net10 is untouched", CALM, || {
        let entries = agents[1].table(other)?.len();
        Ok(entries == 1 && agents[1].peers("net10")?.len() == 2)
    })
}

/// Starts agents that are attached to `net1` and know that of each other.
fn attached(count: usize) -> Result<Vec<Agent>> {
    let agents = Agent::start_chain(count, &["--network", "net1"])?;
    for agent in &agents {
        until("all agents to be attached", SOON, || {
            Ok(agent.peers("net1")?.len() == count)
        })?;
    }
    Ok(agents)
}

/// Writes through the first of `count` agents and measures until the others have it.
fn thousand_entries_are_on_all(count: usize) -> Result<()> {
    let agents = attached(count)?;
    let (writer, others) = agents.split_first().context("at least one agent")?;
    let mut connection = Connection::open(writer.diagnostic)?;
    let start = now();
    for index in 0..ENTRIES {
        let target = write_target("createentry", TABLE, &format!("key{index}"), "value");
        let reply = connection.get(&target)?;
        ensure!(reply.body == "OK", "{target} answered {}", reply.body);
    }
    let written = start.elapsed();
    let expected = writer.table(TABLE)?;
    ensure!(expected.len() == ENTRIES, "{} entries", expected.len());
    for agent in others {
        until("all entries", SOON, || Ok(agent.table(TABLE)? == expected))?;
    }
    let everywhere = start.elapsed();
    note(&format!(
        "{count} agents: {ENTRIES} creates over HTTP in {written:.0?}, on all after {everywhere:.0?}"
    ));
    let single = single_write(writer, others)?;
    note(&format!(
        "{count} agents: one create on all others after {single:.1?} (median of 21, seen over HTTP)"
    ));
    Ok(())
}

/// Returns the median time from a create to the answers of all others that show it.
fn single_write(writer: &Agent, others: &[Agent]) -> Result<Duration> {
    let table = ("net1", "single");
    let mut times = Vec::new();
    for index in 1..=21 {
        let start = now();
        writer.create(table, &format!("key{index}"), "value")?;
        for agent in others {
            until("the entry", SOON, || Ok(agent.table(table)?.len() == index))?;
        }
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}
