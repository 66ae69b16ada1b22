//! Hosts on one machine: that they reach each other, that faults do what they say, and that nothing stays behind.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use testkit::e2e::agent::Agent;
use testkit::e2e::process::{Process, SOON, Signal, binary, note, now, testkit_binary, until};
use testkit::hosts::fault::{Action, Fault, Request};
use testkit::hosts::relay::stay_on_one_processor;
use testkit::hosts::state::{ProcessId, RUN, State};
use testkit::hosts::{self, Clocks, Hosts, Options, Program};

/// Where the tests' own datagrams go.
const PORT: u16 = 4_000;

/// Datagrams that chance decides about.
const DATAGRAMS: u16 = 2_000;

/// How long a datagram that nothing holds back may take.
const PROMPT: Duration = Duration::from_millis(200);

/// The table of the tests with agents.
const TABLE: (&str, &str) = ("net1", "table1");

#[test]
fn hosts_have_addresses_names_and_each_other() -> Result<()> {
    let Some(hosts) = up("reach", 3)? else {
        return Ok(());
    };
    let sockets = sockets(&hosts)?;
    for from in 1..=3 {
        for to in 1..=3 {
            ensure!(sockets.passes(from, to)?, "from {from} to {to}");
        }
    }
    let v6 = |host| Ok::<_, anyhow::Error>(SocketAddr::new(hosts.address_v6(host)?.into(), PORT));
    let (one, three) = (v6(1)?, v6(3)?);
    let bind = |host, addr: SocketAddr| {
        hosts
            .enter(host, move || UdpSocket::bind(addr))?
            .context("bind")
    };
    let (sender, receiver) = (bind(1, one)?, bind(3, three)?);
    sender.send_to(b"six", three)?;
    receiver.set_read_timeout(Some(SOON))?;
    let (_, from) = receiver.recv_from(&mut [0; 8])?;
    ensure!(from == one, "{from}");
    let lookup = Program::new("getent", &["ahostsv4", "tasks.testdb"]);
    let mut lookup = hosts.spawn(2, &lookup)?;
    for host in 1..=3 {
        let address = hosts.address(host)?.to_string();
        lookup.process.line(&address, 1)?;
    }
    ensure!(lookup.process.exit_code()? == Some(0));
    hosts.down()
}

#[test]
fn relay_delays_as_told_and_costs_little() -> Result<()> {
    let Some(hosts) = up("delay", 2)? else {
        return Ok(());
    };
    let sockets = sockets(&hosts)?;
    let direct = sockets.round_trip(200)?;
    let direct_rate = stream(&hosts, 8 << 20)?;
    add(&hosts, "delay=0ms hosts=2")?;
    let relayed = sockets.round_trip(200)?;
    let relayed_rate = stream(&hosts, 8 << 20)?;
    note(&format!(
        "a relay: round trip {direct:?} without, {relayed:?} with; a stream {direct_rate:.0} and {relayed_rate:.0} Mbit/s"
    ));
    ensure!(relayed < direct + Duration::from_millis(2), "{relayed:?}");
    until("a relayed stream to be fast", SOON, || {
        Ok(stream(&hosts, 8 << 20)? > 50.0)
    })?;
    hosts.clear(&[])?;
    add(&hosts, "delay=20ms hosts=2")?;
    let both = sockets.round_trip(5)?;
    ensure!((40..150).contains(&both.as_millis()), "{both:?}");
    hosts.clear(&[])?;
    add(&hosts, "delay=30ms jitter=5ms way=to hosts=1 seed=3")?;
    let one = sockets.round_trip(5)?;
    ensure!((30..100).contains(&one.as_millis()), "{one:?}");
    hosts.clear(&[])?;
    ensure!(hosts.counts(1)?.is_none());
    let after = sockets.round_trip(5)?;
    ensure!(after < Duration::from_millis(20), "{after:?}");
    Ok(())
}

#[test]
fn seed_decides_which_datagrams_are_lost() -> Result<()> {
    let Some(hosts) = up("loss", 2)? else {
        return Ok(());
    };
    let sockets = sockets(&hosts)?;
    ensure!(sockets.passes(1, 2)?);
    let mut came = Vec::new();
    for (round, seed) in [(1, 7), (2, 7), (3, 8)] {
        add(&hosts, &format!("loss=10% way=to hosts=2 seed={seed}"))?;
        came.push(sockets.burst(round)?);
        hosts.clear(&[])?;
    }
    ensure!(came[0] == came[1], "the same seed lost others");
    ensure!(came[0] != came[2], "another seed lost the same");
    for came in &came {
        let lost = usize::from(DATAGRAMS) - came.len();
        // Ten percent, and five standard deviations of 13.
        ensure!((133..=267).contains(&lost), "{lost} lost");
        ensure!(came.is_sorted(), "loss changed the order");
    }
    Ok(())
}

#[test]
fn datagrams_are_doubled_and_overtaken() -> Result<()> {
    let Some(hosts) = up("order", 2)? else {
        return Ok(());
    };
    let sockets = sockets(&hosts)?;
    ensure!(sockets.passes(1, 2)?);
    add(&hosts, "duplicate=5% reorder=5% way=from hosts=1 seed=7")?;
    let came = sockets.burst(1)?;
    let told = hosts.counts(1)?.context("a relay")?.from;
    let mut distinct = came.clone();
    distinct.sort_unstable();
    distinct.dedup();
    ensure!(
        distinct.len() == usize::from(DATAGRAMS),
        "{}",
        distinct.len()
    );
    let doubled = came.len() - distinct.len();
    ensure!((50..=150).contains(&doubled), "{doubled} doubled, {told:?}");
    ensure!(!came.is_sorted(), "none was overtaken, {told:?}");
    ensure!(told.overtaken > 50, "{told:?}");
    Ok(())
}

#[test]
fn partitions_hold_exactly_what_they_name() -> Result<()> {
    let Some(hosts) = up("parts", 3)? else {
        return Ok(());
    };
    let sockets = sockets(&hosts)?;
    let reach = |sockets: &Sockets| -> Result<Vec<(usize, usize)>> {
        let pairs = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)];
        let mut open = Vec::new();
        for (from, to) in pairs {
            if sockets.passes(from, to)? {
                open.push((from, to));
            }
        }
        Ok(open)
    };
    // So that no address has to be resolved against a partition.
    let all = reach(&sockets)?;
    ensure!(all.len() == 6, "{all:?}");
    for (fault, open) in [
        ("partition=1|2,3", &[(2, 3), (3, 2)][..]),
        ("partition=1|2", &[(1, 3), (3, 1), (2, 3), (3, 2)]),
        ("one-way=1>2", &[(2, 1), (1, 3), (3, 1), (2, 3), (3, 2)]),
        ("block=udp:4000 hosts=1", &[(2, 3), (3, 2)]),
        ("block=tcp:4000 hosts=1", &all[..]),
        ("pause=1", &all[..]),
    ] {
        add(&hosts, fault)?;
        let found = reach(&sockets)?;
        ensure!(found == open, "{fault} leaves {found:?} open");
        hosts.clear(&[])?;
        let found = reach(&sockets)?;
        ensure!(found == all, "{fault} cleared leaves {found:?} open");
    }
    // Through a relay, the port of host 1 has another name.
    add(&hosts, "delay=1ms hosts=1")?;
    add(&hosts, "partition=1|2,3")?;
    let found = reach(&sockets)?;
    ensure!(found == [(2, 3), (3, 2)], "{found:?}");
    Ok(())
}

#[test]
fn flapping_partition_comes_and_goes_until_cleared() -> Result<()> {
    let Some(hosts) = up("flap", 2)? else {
        return Ok(());
    };
    let sockets = sockets(&hosts)?;
    ensure!(sockets.passes(1, 2)?);
    add(&hosts, "flap=1|2:600ms seed=5")?;
    for is_open in [false, true, false, true] {
        until("the partition to change", SOON, || {
            Ok(sockets.passes(1, 2)? == is_open)
        })?;
    }
    hosts.clear(&[])?;
    ensure!(sockets.passes(1, 2)?);
    ensure!(hosts.state()?.flaps.is_empty());
    Ok(())
}

#[test]
fn rate_is_a_limit() -> Result<()> {
    let Some(hosts) = up("rate", 2)? else {
        return Ok(());
    };
    add(&hosts, "rate=4mbit hosts=1 way=from")?;
    let rate = stream(&hosts, 1 << 20)?;
    ensure!((1.0..4.6).contains(&rate), "{rate} Mbit/s");
    hosts.clear(&[])?;
    until("a stream without a limit", SOON, || {
        Ok(stream(&hosts, 1 << 20)? > 20.0)
    })?;
    Ok(())
}

#[test]
fn processes_stop_go_on_end_and_come_back() -> Result<()> {
    let Some(hosts) = up("life", 2)? else {
        return Ok(());
    };
    let sleep = Program::new("sleep", &["1000"]);
    let mut one = hosts.spawn(1, &sleep)?;
    let mut two = hosts.spawn(2, &sleep)?;
    let is = |process: &Process, wanted: &'static str| -> Result<()> {
        let path = format!("/proc/{}/status", process.id());
        until(wanted, SOON, || {
            Ok(fs::read_to_string(&path)?.contains(wanted))
        })
        .map(drop)
    };
    // What puts it on its host sleeps, too.
    is(&one.process, "Name:\tsleep")?;
    is(&one.process, "State:\tS (sleeping)")?;
    add(&hosts, "pause=1")?;
    is(&one.process, "State:\tT (stopped)")?;
    is(&two.process, "State:\tS (sleeping)")?;
    hosts.clear(&[])?;
    is(&one.process, "State:\tS (sleeping)")?;
    hosts.act(&Action::Kill(vec![1]))?;
    ensure!(one.process.exit_code()?.is_none());
    let before = one.process.id();
    one.restart(&hosts)?;
    ensure!(one.process.id() != before);
    is(&one.process, "State:\tS (sleeping)")?;
    hosts.act(&Action::Term(vec![1, 2]))?;
    ensure!(two.process.exit_code()?.is_none());
    ensure!(one.end(Signal::TERM)?.is_none());
    Ok(())
}

#[test]
fn clocks_are_off_as_told() -> Result<()> {
    let Some(hosts) = up("clock", 1)? else {
        return Ok(());
    };
    let reads = |command: &[&str], clocks: Clocks| -> Result<f64> {
        let mut program = Program::new(command[0], &command[1..]);
        program.clocks = clocks;
        let line = hosts.spawn(1, &program)?.process.line("", 1)?;
        Ok(line.split(' ').next().context("a number")?.parse()?)
    };
    let is_ahead = |command: &[&str], clocks: Clocks| -> Result<bool> {
        let ahead = reads(command, clocks)? - reads(command, Clocks::default())?;
        Ok((999_000.0..1_001_000.0).contains(&ahead))
    };
    let boot = Clocks {
        boot: 1_000_000,
        ..Clocks::default()
    };
    ensure!(is_ahead(&["cat", "/proc/uptime"], boot)?);
    let wall = Clocks {
        wall: 1_000_000,
        ..Clocks::default()
    };
    if hosts::fake_time().is_some() {
        ensure!(is_ahead(&["date", "+%s"], wall)?);
    } else {
        ensure!(std::env::var_os("CI").is_none(), "CI has libfaketime");
        note("SKIPPED: wall clocks, as libfaketime is not installed");
        let error = reads(&["date", "+%s"], wall).err().context("no clock")?;
        ensure!(error.to_string().contains("libfaketime"), "{error:#}");
    }
    Ok(())
}

#[test]
fn agents_on_three_hosts_agree_again_after_a_partition() -> Result<()> {
    let Some(hosts) = up("agents", 3)? else {
        return Ok(());
    };
    let mut agents = Vec::new();
    for host in 1..=3 {
        agents.push(agent(&hosts, host)?);
    }
    let on = |host: usize, work: &(dyn Fn(&Agent) -> Result<()> + Sync)| {
        hosts.enter(host, || work(&agents[host - 1]))?
    };
    let all_know = |count: usize| {
        (1..=3).try_for_each(|host| {
            on(host, &|agent| {
                let known = || Ok(agent.members()?.len() == count);
                until("all members to know each other", SOON, known).map(drop)
            })
        })
    };
    all_know(3)?;
    for host in 1..=3 {
        on(host, &|agent| agent.join_network(TABLE.0))?;
    }
    on(1, &|agent| agent.create(TABLE, "key", "before"))?;
    on(3, &|agent| {
        agent.shows(TABLE, &[("key", "before")]).map(drop)
    })?;
    add(&hosts, "partition=1|2,3")?;
    on(1, &|agent| agent.create(TABLE, "left", "1"))?;
    on(3, &|agent| agent.create(TABLE, "right", "3"))?;
    on(2, &|agent| {
        until("the other side of the partition", SOON, || {
            Ok(agent.table(TABLE)?.contains_key("right"))
        })?;
        ensure!(!agent.table(TABLE)?.contains_key("left"));
        Ok(())
    })?;
    hosts.clear(&[])?;
    let whole = [("key", "before"), ("left", "1"), ("right", "3")];
    for host in 1..=3 {
        on(host, &|agent| agent.shows(TABLE, &whole).map(drop))?;
    }
    drop(agents);
    hosts.down()
}

#[test]
fn nothing_stays_behind() -> Result<()> {
    let Some(hosts) = up("down", 3)? else {
        return Ok(());
    };
    let name = hosts.state()?.name;
    ensure!(!traces(&name)?.is_empty());
    let twice = Hosts::up(&name, 1, &Options::default());
    ensure!(format!("{:#}", twice.err().context("up twice")?).contains("up already"));
    // The shell's child is not ours to wait for and leaves the host, but is ours to end. It goes where this test is: what
    // the first process of the machine runs in may not be looked at at any time.
    let here = format!("/proc/{}/ns/net", std::process::id());
    let script = format!("nsenter --net={here} sleep 1000 & echo $!; wait");
    let shell = Program::new("sh", &["-c", &script]);
    let shell = hosts.spawn(1, &shell)?;
    let grandchild = ProcessId::of(shell.process.line("", 1)?.parse()?)?;
    let detached = hosts.spawn_detached(2, &Program::new("sleep", &["1000"]))?;
    add(&hosts, "delay=5ms rate=1mbit hosts=2")?;
    add(&hosts, "flap=1|2:100ms")?;
    let state = hosts.state()?;
    let helpers: Vec<_> = state
        .relays
        .values()
        .chain(state.flaps.values())
        .copied()
        .collect();
    ensure!(helpers.len() == 2);
    hosts.down()?;
    ensure!(traces(&name)?.is_empty(), "{:?}", traces(&name)?);
    for id in helpers.iter().chain([&grandchild, &detached]) {
        ensure!(!id.is_alive(), "{id:?}");
    }
    drop(shell);
    Ok(())
}

#[test]
fn killed_owner_leaves_nothing() -> Result<()> {
    if hosts::is_skipped()? {
        return Ok(());
    }
    let name = name("killed");
    // Killed anywhere while it makes them; the times only choose where.
    for millis in [5, 20, 40, 80] {
        let args = ["hosts", "up", &name, "--hosts", "40", "--foreground"];
        let owner = Process::start_program(&testkit_binary()?, &args)?;
        thread::sleep(Duration::from_millis(millis));
        owner.signal(Signal::KILL)?;
        drop(owner);
        until("the keeper to take all down", SOON, || {
            Ok(traces(&name)?.is_empty())
        })?;
    }
    let owner = foreground(&name)?;
    add(&Hosts::attach(&name)?, "delay=5ms hosts=1")?;
    owner.signal(Signal::KILL)?;
    until("the keeper to take all down", SOON, || {
        Ok(traces(&name)?.is_empty())
    })?;
    // Without its keeper too: the next one of the name cleans, or whoever asks for it.
    for is_asked in [true, false] {
        let mut owner = foreground(&name)?;
        for keeper in children(owner.id())? {
            keeper.signal(Signal::KILL)?;
        }
        owner.signal(Signal::KILL)?;
        owner.exit_code()?;
        ensure!(State::load(&name)?.context("what was left")?.is_stale());
        if is_asked {
            let mut down =
                Process::start_program(&testkit_binary()?, &["hosts", "down", "--stale"])?;
            ensure!(down.exit_code()? == Some(0));
        } else {
            Hosts::up(&name, 2, &Options::default())?.down()?;
        }
        ensure!(traces(&name)?.is_empty(), "{:?}", traces(&name)?);
    }
    Ok(())
}

#[test]
fn command_line_makes_breaks_and_removes() -> Result<()> {
    if hosts::is_skipped()? {
        return Ok(());
    }
    let name = &name("cli");
    let run = |args: &[&str]| -> Result<(Option<i32>, String)> {
        let output = Command::new(testkit_binary()?)
            .arg("hosts")
            .args(args)
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(text)?))
    };
    let expect = |args: &[&str], code: i32, text: &str| -> Result<()> {
        let (status, said) = run(args)?;
        let is_right = status == Some(code) && said.contains(text);
        ensure!(is_right, "{args:?} ended {status:?} and said {said}");
        Ok(())
    };
    let done = || -> Result<()> {
        expect(
            &["up", name, "--hosts", "2", "--program", "sleep 100{host}"],
            0,
            "runs: sleep 1002",
        )?;
        expect(&["up", name], 1, "up already")?;
        expect(
            &["exec", name, "host2", "--", "cat", "/etc/hosts"],
            0,
            "10.77.0.2 host1",
        )?;
        expect(&["exec", name, "1", "--", "sh", "-c", "exit 7"], 7, "")?;
        expect(
            &["exec", name, "3", "--", "true"],
            1,
            "has hosts 1 to 2, not 3",
        )?;
        expect(
            &["fault", "add", name, "loss=1%", "hosts=1"],
            0,
            "1: loss=1% seed=0 hosts=1",
        )?;
        expect(&["fault", "add", name, "restart=2", "kill=1"], 0, "")?;
        expect(
            &["fault", "add", name, "colour=red"],
            1,
            "no fault of this name",
        )?;
        expect(&["fault", "list", name], 0, "relay of host1, to it: Counts")?;
        expect(&["fault", "clear", name, "4"], 1, "has no fault 4")?;
        expect(&["fault", "clear", name], 0, "1 cleared")?;
        expect(&["status", name], 0, "has ended: sleep 1001")?;
        let state = State::load(name)?.context("hosts that are up")?;
        ensure!(!state.is_stale(), "detached hosts are nobody's");
        Ok(())
    };
    let done = done();
    expect(&["down", name], 0, "")?;
    done?;
    expect(&["down", name], 1, "are up")?;
    expect(&["status", name], 1, "are up")?;
    expect(&["down"], 2, "--stale")?;
    ensure!(traces(name)?.is_empty());
    Ok(())
}

fn name(what: &str) -> String {
    format!("e2e-{what}-{}", std::process::id())
}

fn up(what: &str, count: usize) -> Result<Option<Hosts>> {
    if hosts::is_skipped()? {
        return Ok(None);
    }
    let options = Options {
        names_of_all: vec!["tasks.testdb".to_owned()],
        ..Options::default()
    };
    Hosts::up(&name(what), count, &options).map(Some)
}

fn add(hosts: &Hosts, line: &str) -> Result<()> {
    let words: Vec<_> = line.split_whitespace().collect();
    let faults: Vec<Fault> = Request::parse(&words, &hosts.state()?.hosts())?.faults;
    for fault in faults {
        hosts.add(fault)?;
    }
    Ok(())
}

/// Starts a process that makes two hosts and stays.
fn foreground(name: &str) -> Result<Process> {
    let args = ["hosts", "up", name, "--hosts", "2", "--foreground"];
    let owner = Process::start_program(&testkit_binary()?, &args)?;
    owner.line("host2: ", 1)?;
    Ok(owner)
}

fn children(parent: u32) -> Result<Vec<ProcessId>> {
    let line = format!("PPid:\t{parent}\n");
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let pid = process
            .file_name()
            .to_str()
            .and_then(|pid| pid.parse().ok());
        if let (true, Some(pid)) = (status.contains(&line), pid) {
            found.push(ProcessId::of(pid)?);
        }
    }
    ensure!(!found.is_empty(), "no child of {parent}");
    Ok(found)
}

/// Returns what there is of hosts outside of them.
fn traces(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for dir in ["/run/netns", "/etc/netns", RUN] {
        let files = match fs::read_dir(dir) {
            Ok(files) => files,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context(dir),
        };
        for file in files {
            let file = file?.file_name().to_string_lossy().into_owned();
            if file.contains(name) {
                found.push(format!("{dir}/{file}"));
            }
        }
    }
    Ok(found)
}

/// Starts an agent on a host that joins the one on host 1.
fn agent(hosts: &Hosts, host: usize) -> Result<Agent> {
    let addr = hosts.address(host)?.to_string();
    let id = format!("n{host}");
    let program = binary()?.to_string_lossy().into_owned();
    let mut args = vec![
        "agent",
        "--node-id",
        &id,
        "--bind-addr",
        &addr,
        "--insecure-gossip",
    ];
    args.extend([
        "--diagnostic-addr",
        &addr,
        "--network-diagnostic-port",
        "2000",
        "--diagnostic-insecure",
    ]);
    if host > 1 {
        args.extend(["--join", "host1"]);
    }
    Agent::started(
        &id,
        hosts.spawn(host, &Program::new(&program, &args))?.process,
    )
}

/// A socket on every host.
struct Sockets(BTreeMap<usize, (SocketAddr, UdpSocket)>);

fn sockets(hosts: &Hosts) -> Result<Sockets> {
    let mut sockets = BTreeMap::new();
    for host in hosts.state()?.hosts() {
        let addr = SocketAddr::new(IpAddr::V4(hosts.address(host)?), PORT);
        let socket = hosts.enter(host, move || UdpSocket::bind(addr))??;
        setsockopt(&socket, RcvBufForce, &(16 << 20))?;
        sockets.insert(host, (addr, socket));
    }
    Ok(Sockets(sockets))
}

impl Sockets {
    fn send(&self, from: usize, to: usize, text: &[u8]) -> Result<()> {
        self.0[&from].1.send_to(text, self.0[&to].0)?;
        Ok(())
    }

    fn receive(&self, host: usize, wait: Duration) -> Result<Option<Vec<u8>>> {
        let (_, socket) = &self.0[&host];
        socket.set_read_timeout(Some(wait))?;
        let mut buffer = [0; 2_048];
        loop {
            match socket.recv(&mut buffer) {
                Ok(bytes) => return Ok(Some(buffer[..bytes].to_vec())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                // The end of a child of another thread may do this to a socket with a timeout (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Tells whether a datagram comes in time.
    fn passes(&self, from: usize, to: usize) -> Result<bool> {
        self.send(from, to, b"probe")?;
        Ok(self.receive(to, PROMPT)?.is_some())
    }

    /// Returns the shortest time to host 2 and back: what else the machine does only adds to it.
    fn round_trip(&self, count: usize) -> Result<Duration> {
        let mut shortest = Duration::MAX;
        for _ in 0..count {
            let start = now();
            self.send(1, 2, b"there")?;
            self.receive(2, SOON)?.context("there")?;
            self.send(2, 1, b"back")?;
            self.receive(1, SOON)?.context("back")?;
            shortest = shortest.min(start.elapsed());
        }
        Ok(shortest)
    }

    /// Sends numbered datagrams from host 1 to host 2 and returns the numbers that come, in order. The address of host
    /// 2 has to be resolved: datagrams that wait for that are overtaken by those sent after it.
    fn burst(&self, round: u8) -> Result<Vec<u16>> {
        let end = [round; 3];
        let send = || {
            stay_on_one_processor()?;
            (0..DATAGRAMS).try_for_each(|number| self.send(1, 2, &number.to_be_bytes()))
        };
        let sent = thread::scope(|scope| scope.spawn(send).join());
        sent.ok().context("the sender panicked")??;
        let mut came = Vec::new();
        let mut has_ended = false;
        loop {
            match self.receive(2, PROMPT)?.as_deref() {
                Some([high, low]) => came.push(u16::from_be_bytes([*high, *low])),
                Some(text) => has_ended |= text == end,
                None if has_ended => return Ok(came),
                // Until one is not lost; those held back come within the wait after it.
                None => self.send(1, 2, &end)?,
            }
        }
    }
}

/// Sends a stream from host 1 to host 2 and returns its rate in Mbit/s.
fn stream(hosts: &Hosts, bytes: usize) -> Result<f64> {
    let addr = SocketAddr::new(IpAddr::V4(hosts.address(2)?), PORT);
    let listener = hosts.enter(2, move || TcpListener::bind(addr))??;
    let mut sender = hosts.enter(1, move || TcpStream::connect(addr))??;
    let (mut receiver, _) = listener.accept()?;
    let start = now();
    let sent = thread::spawn(move || {
        sender.write_all(&vec![7; bytes])?;
        sender.shutdown(Shutdown::Write)
    });
    let mut got = Vec::new();
    receiver.set_read_timeout(Some(SOON))?;
    receiver.read_to_end(&mut got)?;
    let took = start.elapsed().as_secs_f64();
    sent.join().ok().context("the sender panicked")??;
    ensure!(got.len() == bytes && got.iter().all(|byte| *byte == 7));
    let bits = u32::try_from(bytes * 8)?;
    Ok(f64::from(bits) / took / 1e6)
}
