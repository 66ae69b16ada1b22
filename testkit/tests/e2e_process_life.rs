//! Real processes that fail, return, leave, are refused, are shouted at, and are told to change.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use testkit::e2e::agent::Agent;
use testkit::e2e::http;
use testkit::e2e::process::{
    Process, SOON, Signal, binary, note, now, stays, until, write_key_file,
};

/// The table of all tests, with its network.
const TABLE: (&str, &str) = ("net1", "table1");

/// How long nothing must happen in a test that says so.
const CALM: Duration = Duration::from_secs(2);

/// How much memory noise may cost.
const NOISE_BYTES_MAX: u64 = 10 << 20;

#[test]
fn killed_agent_without_state_returns_under_its_node_id_and_its_entries_are_dead() -> Result<()> {
    // At an address of its own: a port of 127.0.0.1 may have a connection of others when it returns.
    kill_and_restart(&["after"], |_| {
        [
            "--node-id",
            "n3",
            "--bind-addr",
            "127.0.89.1",
            "--bind-port",
            "7946",
        ]
        .map(str::to_owned)
        .into()
    })
}

#[test]
fn killed_agent_with_state_resumes_and_its_entries_are_back_without_a_write() -> Result<()> {
    kill_and_restart(&["after", "before"], |dir| {
        let dir = dir.join("state").to_string_lossy().into_owned();
        vec!["--state-dir".to_owned(), dir]
    })
}

#[test]
fn terminated_agent_takes_its_entries_along_at_once() -> Result<()> {
    let mut agents = attached(3, &[])?;
    let mut leaver = agents.pop().context("three were started")?;
    leaver.create(TABLE, "key", "value")?;
    for agent in &agents {
        agent.shows(TABLE, &[("key", "value")])?;
    }
    let start = now();
    leaver.process.signal(Signal::TERM)?;
    for agent in &agents {
        agent.shows(TABLE, &[])?;
        members(agent, &["n1", "n2"])?;
    }
    let gone = start.elapsed();
    ensure!(leaver.process.exit_code()? == Some(0));
    for agent in &agents {
        agent.process.logged("member left", 1)?;
    }
    note(&format!("SIGTERM to entries and member gone: {gone:.0?}"));
    Ok(())
}

#[test]
fn an_agent_that_was_paused_accuses_nobody_and_is_back_at_once() -> Result<()> {
    let agents = attached(5, &[])?;
    let paused = &agents[4];
    paused.create(TABLE, "key", "value")?;
    let ids = ["n1", "n2", "n3", "n4", "n5"];
    for seconds in 1..=3 {
        paused.process.signal(Signal::STOP)?;
        // What is tested is the pause itself; there is nothing to wait for.
        std::thread::sleep(Duration::from_secs(seconds));
        paused.process.signal(Signal::CONT)?;
        let resumed = now();
        for agent in &agents {
            agent.shows(TABLE, &[("key", "value")])?;
        }
        // A suspicion from before may still end in a death, until it is refuted.
        until("all to be alive, as all agree", SOON, || {
            let told = agents.iter().map(alive).collect::<Result<Vec<_>>>()?;
            let are_there = told
                .iter()
                .all(|alive| alive.iter().map(|(id, _)| id).eq(ids));
            let [others @ .., _] = &told[..] else {
                return Ok(false);
            };
            let is_same = others.windows(2).all(|two| two[0].last() == two[1].last());
            Ok(are_there && is_same)
        })?;
        let back = resumed.elapsed();
        note(&format!(
            "paused {seconds} s: all members and entries after {back:.0?}"
        ));
        stays("nobody is accused", CALM, || {
            Ok(agents
                .iter()
                .all(|agent| agent.members().is_ok_and(|members| members == ids)))
        })?;
    }
    let accused = |line: &String| line.contains("member failed");
    let accusations: Vec<_> = paused.process.log().into_iter().filter(accused).collect();
    ensure!(accusations.is_empty(), "{accusations:?}");
    Ok(())
}

#[test]
fn clusters_with_different_keys_never_merge() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [ours, theirs] = ["ours", "theirs"].map(|name| dir.path().join(name));
    write_key_file(&ours)?;
    write_key_file(&theirs)?;
    let agents = attached(2, &["--key-file", &ours.to_string_lossy()])?;
    refused_stranger(&agents, &["--key-file", &theirs.to_string_lossy()])
}

#[test]
fn agent_without_keys_learns_nothing_from_a_cluster_with_keys() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys");
    write_key_file(&keys)?;
    let agents = attached(2, &["--key-file", &keys.to_string_lossy()])?;
    refused_stranger(&agents, &[])
}

#[test]
fn clusters_with_different_names_never_merge() -> Result<()> {
    let agents = attached(2, &["--cluster", "blue"])?;
    refused_stranger(&agents, &["--cluster", "green"])
}

#[test]
fn random_bytes_change_nothing_with_keys() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys");
    write_key_file(&keys)?;
    random_bytes_change_nothing(&["--key-file", &keys.to_string_lossy()])
}

#[test]
fn random_bytes_change_nothing_without_keys() -> Result<()> {
    random_bytes_change_nothing(&[])
}

#[test]
fn hangup_turns_diagnostics_on_moves_them_and_turns_them_off() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.json");
    let path = config.to_string_lossy();
    fs::write(&config, "{}")?;
    let args = ["agent", "--bind-port", "0", "--config", &path];
    let mut process = Process::start(&args)?;
    process.line("gossip listening on ", 1)?;

    let reload = |process: &Process, text: &str| -> Result<()> {
        fs::write(&config, text)?;
        process.signal(Signal::HUP)
    };
    let listening = |process: &mut Process, count| -> Result<SocketAddr> {
        let addr = process.line("diagnostic server listening on ", count)?;
        Ok(addr.parse()?)
    };
    reload(&process, r#"{"network-diagnostic-port": 0}"#)?;
    let first = listening(&mut process, 1)?;
    process.logged(&starting(first), 1)?;
    ensure!(http::get(first, "/ready")?.body == "OK\nOK");

    reload(
        &process,
        r#"{"network-diagnostic-port": 0, "diagnostic-addr": "127.0.0.2"}"#,
    )?;
    let second = listening(&mut process, 2)?;
    process.logged("Disabling the diagnostic server", 1)?;
    process.logged(&starting(second), 1)?;
    ensure!(second.ip() == Ipv4Addr::new(127, 0, 0, 2));
    ensure!(http::get(second, "/ready")?.body == "OK\nOK");
    until("the old listener to close", SOON, || Ok(is_closed(first)))?;

    reload(&process, r#"{"network-diagnostic-prot": 1}"#)?;
    process.logged("network-diagnostic-prot", 1)?;
    ensure!(http::get(second, "/ready")?.body == "OK\nOK");

    // An address of nobody, on the port that has to be given up for it.
    reload(
        &process,
        r#"{"network-diagnostic-port": 0, "diagnostic-addr": "192.0.2.1", "diagnostic-insecure": true}"#,
    )?;
    process.logged("diagnostic server not changed", 1)?;
    let third = listening(&mut process, 3)?;
    ensure!(third.ip() == second.ip());
    ensure!(http::get(third, "/ready")?.body == "OK\nOK");

    reload(&process, "{}")?;
    process.logged("Disabling the diagnostic server", 3)?;
    until("the listener to close", SOON, || Ok(is_closed(third)))?;
    process.signal(Signal::TERM)?;
    ensure!(process.exit_code()? == Some(0));
    Ok(())
}

#[test]
fn hangup_changes_keys_without_loss() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [keys, new] = ["keys", "new"].map(|name| dir.path().join(name));
    write_key_file(&keys)?;
    write_key_file(&new)?;
    let agents = attached(2, &["--key-file", &keys.to_string_lossy()])?;
    let (old_text, new_text) = (fs::read_to_string(&keys)?, fs::read_to_string(&new)?);
    for (round, text) in [
        old_text.clone() + &new_text,
        new_text.clone() + &old_text,
        new_text,
    ]
    .iter()
    .enumerate()
    {
        fs::write(&keys, text)?;
        for agent in &agents {
            agent.process.signal(Signal::HUP)?;
            agent.process.logged("keys changed", round + 1)?;
        }
        let key = format!("round{round}");
        agents[0].create(TABLE, &key, "value")?;
        until("the write of the round", SOON, || {
            Ok(agents[1].table(TABLE)?.contains_key(&key))
        })?;
    }
    let join = agents[0].gossip.to_string();
    let new = new.to_string_lossy();
    let late = Agent::start(
        "n3",
        &["--network", TABLE.0, "--join", &join, "--key-file", &new],
    )?;
    members(&agents[1], &["n1", "n2", "n3"])?;
    until("all entries", SOON, || Ok(late.table(TABLE)?.len() == 3))?;
    Ok(())
}

#[test]
fn agent_outlives_the_readers_of_its_output() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.json");
    fs::write(&config, "{}")?;
    let mut child = Command::new(binary()?)
        .args([
            "agent",
            "--bind-port",
            "0",
            "--network-diagnostic-port",
            "0",
        ])
        .arg("--config")
        .arg(&config)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stderr.take());
    let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
    let addr = lines
        .find_map(|line| {
            let addr = line
                .ok()?
                .strip_prefix("diagnostic server listening on ")?
                .parse();
            addr.ok()
        })
        .context("a listener line")?;
    drop(lines);
    let outcome = (|| {
        // The move says so on both of the closed pipes.
        fs::write(&config, r#"{"diagnostic-addr": "127.0.0.2"}"#)?;
        kill(child.id(), Signal::HUP)?;
        until("the old listener to close", SOON, || Ok(is_closed(addr)))?;
        ensure!(child.try_wait()?.is_none(), "the agent ended");
        kill(child.id(), Signal::TERM)?;
        until("the agent to end", SOON, || Ok(child.try_wait()?.is_some()))
    })();
    // Fails only when it has ended.
    drop(child.kill());
    outcome?;
    ensure!(child.wait()?.code() == Some(0));
    Ok(())
}

#[test]
fn demo_shows_entries_on_all_nodes_and_ends_on_interrupt() -> Result<()> {
    let mut demo = Process::start(&["demo", "--network-diagnostic-port", "0"])?;
    let mut addrs: Vec<SocketAddr> = Vec::new();
    for count in 1..=3 {
        demo.line("gossip listening on ", count)?;
        addrs.push(
            demo.line("diagnostic server listening on ", count)?
                .parse()?,
        );
    }
    let target = "/gettable?nid=demo&tname=greetings&unsafe";
    let mut ready = Duration::ZERO;
    for addr in &addrs {
        ready += until("three entries on each node", SOON, || {
            let table = http::get(*addr, target)?.body;
            Ok(table.starts_with("OK\ntotal entries: 3\n"))
        })?;
        let members = http::get(*addr, "/clusterpeers")?.body;
        ensure!(members.starts_with("OK\ntotal entries: 3\n"), "{members}");
    }
    note(&format!(
        "demo: last listener line to entries on all nodes: {ready:.0?}"
    ));

    let created = "/createentry?nid=demo&tname=greetings&unsafe&key=mine&value=written+on+one";
    ensure!(http::get(addrs[0], created)?.body == "OK");
    until("the entry on the second node", SOON, || {
        let table = http::get(addrs[1], target)?.body;
        Ok(table.contains("k:`mine` -> v:`written on one`"))
    })?;
    demo.line("members 3 3 3, entries 4 4 4: all equal", 1)?;

    let start = now();
    demo.signal(Signal::INT)?;
    ensure!(demo.exit_code()? == Some(0));
    note(&format!("demo: Ctrl-C to exit: {:.0?}", start.elapsed()));
    Ok(())
}

/// Kills one of three agents, looks what the others make of it, and starts it again with the same arguments; in the end
/// the `left` entries are on all.
fn kill_and_restart(left: &[&str], identity: impl Fn(&Path) -> Vec<String>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agents = attached(2, &[])?;
    let join = agents[0].gossip.to_string();
    let start = || -> Result<Agent> {
        let identity = identity(dir.path());
        let mut args: Vec<_> = identity.iter().map(String::as_str).collect();
        args.extend(["--network", "net1", "--join", &join]);
        let agent = Agent::start_unnamed("", &args)?;
        agent.wait_attached("net1")?;
        Ok(agent)
    };
    let killed = start()?;
    killed.create(TABLE, "before", "value")?;
    for agent in &agents {
        agent.shows(TABLE, &[("before", "value")])?;
    }
    let id = agents[0].members()?;
    killed.process.signal(Signal::KILL)?;
    let killing = now();
    for agent in &agents {
        agent.shows(TABLE, &[])?;
        members(agent, &["n1", "n2"])?;
    }
    note(&format!(
        "kill -9 to entries hidden and member dropped: {:.1?}",
        killing.elapsed()
    ));

    let returned = start()?;
    let returning = now();
    for agent in agents.iter().chain([&returned]) {
        until("the member to be back", SOON, || Ok(agent.members()? == id))?;
    }
    note(&format!(
        "restart to member again: {:.1?}",
        returning.elapsed()
    ));
    returned.create(TABLE, "after", "value")?;
    let left: Vec<(&str, &str)> = left.iter().map(|key| (*key, "value")).collect();
    for agent in agents.iter().chain([&returned]) {
        agent.shows(TABLE, &left)?;
    }
    Ok(())
}

/// Starts an agent that the others must not let in, and looks at both sides for a while.
fn refused_stranger(agents: &[Agent], args: &[&str]) -> Result<()> {
    agents[0].create(TABLE, "secret", "value")?;
    let mut args = args.to_vec();
    let join = agents[0].gossip.to_string();
    args.extend(["--network", "net1", "--join", &join]);
    let stranger = Agent::start("stranger", &args)?;
    stranger.wait_attached(TABLE.0)?;
    stranger.create(TABLE, "foreign", "value")?;
    stranger.process.logged("no member answers", 1)?;
    stays("the clusters are apart", CALM, || {
        let apart = stranger.members()? == ["stranger"] && stranger.table(TABLE)?.len() == 1;
        let untouched = agents.iter().all(|agent| {
            let table = agent.table(TABLE);
            agent.members().is_ok_and(|members| members == ["n1", "n2"])
                && table.is_ok_and(|table| !table.contains_key("foreign"))
        });
        Ok(apart && untouched)
    })?;
    agents[0].process.logged("refused", 1)?;
    let log = agents[0].process.log();
    let refusals: Vec<_> = log.iter().filter(|line| line.contains("refused")).collect();
    ensure!(refusals.len() == 1, "logged more than once: {refusals:#?}");
    Ok(())
}

/// Sends random bytes to every listener of an agent and looks at what it remembers and costs.
fn random_bytes_change_nothing(args: &[&str]) -> Result<()> {
    let agents = attached(2, args)?;
    for index in 0..100 {
        agents[1].create(TABLE, &format!("key{index}"), "value")?;
    }
    until("the entries", SOON, || {
        Ok(agents[0].table(TABLE)?.len() == 100)
    })?;
    let table = agents[0].table(TABLE)?;
    let before = agents[0].process.resident_bytes()?;
    let sent = shout(&agents[0])?;
    for agent in &agents {
        until("members and entries to be as before", SOON, || {
            Ok(agent.members()? == ["n1", "n2"] && agent.table(TABLE)? == table)
        })?;
    }
    let grown = agents[0].process.resident_bytes()?.saturating_sub(before);
    note(&format!(
        "{sent} random packets and streams: memory grew by {} kB",
        grown >> 10
    ));
    ensure!(grown < NOISE_BYTES_MAX, "memory grew by {grown} bytes");
    let panics = agents[0].process.log().join("\n").contains("panicked");
    ensure!(!panics, "{:#?}", agents[0].process.log());
    agents[0].create(TABLE, "later", "value")?;
    until("a write after the noise", SOON, || {
        Ok(agents[1].table(TABLE)?.contains_key("later"))
    })?;
    Ok(())
}

/// Sends random bytes for a few seconds and returns how many packets and streams they made.
///
/// `TESTKIT_NOISE_SECONDS` says for how long.
fn shout(agent: &Agent) -> Result<usize> {
    let seconds = std::env::var("TESTKIT_NOISE_SECONDS").unwrap_or_else(|_| "3".to_owned());
    let time = Duration::from_secs(seconds.parse().context("TESTKIT_NOISE_SECONDS")?);
    let mut rng = StdRng::seed_from_u64(1);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sent = 0;
    let start = now();
    while start.elapsed() < time {
        for _ in 0..50 {
            let packet = noise(&mut rng, 1_500);
            sent += usize::from(socket.send_to(&packet, agent.gossip).is_ok());
        }
        for addr in [agent.gossip, agent.diagnostic] {
            let mut stream = TcpStream::connect(addr)?;
            stream.set_write_timeout(Some(SOON))?;
            // The agent may hang up in the middle, and should.
            sent += usize::from(stream.write_all(&noise(&mut rng, 5_000)).is_ok());
        }
    }
    Ok(sent)
}

/// Makes random bytes; half of them begin like something that is known.
fn noise(rng: &mut StdRng, bytes_max: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..bytes_max)];
    rng.fill_bytes(&mut bytes);
    if let Some(first) = bytes.first_mut()
        && rng.random()
    {
        *first = rng.random_range(0..4);
    }
    bytes
}

/// Starts agents that are attached to the network of the table and know that of each other.
fn attached(count: usize, args: &[&str]) -> Result<Vec<Agent>> {
    let mut args = args.to_vec();
    args.extend(["--network", TABLE.0]);
    let agents = Agent::start_chain(count, &args)?;
    for agent in &agents {
        until("all agents to be attached", SOON, || {
            Ok(agent.peers(TABLE.0)?.len() == count)
        })?;
    }
    Ok(agents)
}

/// Waits until an agent lists exactly these members.
fn members(agent: &Agent, ids: &[&str]) -> Result<Duration> {
    let what = format!("{} to list {ids:?}", agent.id);
    until(&what, SOON, || Ok(agent.members()? == ids))
}

/// Returns the members that an agent takes for alive, in the order of their ids, with what it knows of their incarnations.
fn alive(agent: &Agent) -> Result<Vec<(String, Option<u64>)>> {
    let told: serde_json::Value = serde_json::from_str(&agent.get("/v1/members")?)?;
    let members = told["members"].as_array().context("a list")?.iter();
    let alive = members.filter(|member| member["state"] == "alive");
    let named = alive.map(|member| {
        let id = member["id"].as_str()?.to_owned();
        Some((id, member["incarnation"].as_u64()))
    });
    let mut named: Vec<_> = named.collect::<Option<_>>().context("ids")?;
    named.sort_unstable();
    Ok(named)
}

/// Returns the log line of a diagnostic server that goes on.
fn starting(addr: SocketAddr) -> String {
    let port = addr.port();
    format!("Starting the diagnostic server listening on {port} for commands")
}

/// Tells whether nobody listens.
fn is_closed(addr: SocketAddr) -> bool {
    TcpStream::connect_timeout(&addr, SOON).is_err()
}

/// Sends a signal to a process.
fn kill(id: u32, signal: Signal) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(id)?).context("an id")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}
