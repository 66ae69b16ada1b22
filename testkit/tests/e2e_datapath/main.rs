//! The data path on real kernels: containers on hosts that reach each other over VXLAN, and stay so whatever happens.
//!
//! Each test has hosts of its own as network namespaces, with real agents; see `testkit::overlay`.

mod life;
mod repair;
mod tunnels;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testkit::e2e::process::{SOON, Signal, binary, note, now, stays, until};
use testkit::hosts::fault::{Fault, Request};
use testkit::hosts::{self, Hosts};
use testkit::overlay::{Container, Echo, Overlay, Pinged, Pinger};

/// A network of IPv4 and IPv6.
const CONFIG: &str = r#"{"overlay-networks": {"ov1": {"segments":
    [{"vni": 4097, "subnets": ["10.0.1.0/24", "fd00:1::/64"]}]}}}"#;

/// Its subnets.
const SUBNETS: [&str; 2] = ["10.0.1.0/24", "fd00:1::/64"];

/// Bytes that a stream between containers carries; `TESTKIT_STREAM_BYTES` asks for another number.
const STREAM_BYTES: usize = 64 << 20;

/// Makes a bed with one network that all hosts are attached to; none where something is missing, which is said.
fn up(name: &str, count: usize, subnet: u8) -> Result<Option<Overlay>> {
    up_with(name, count, subnet, CONFIG, &["--network", "ov1"])
}

fn up_with(
    name: &str,
    count: usize,
    subnet: u8,
    config: &str,
    args: &[&str],
) -> Result<Option<Overlay>> {
    if hosts::is_skipped()? {
        return Ok(None);
    }
    let name = format!("dp{name}{}", std::process::id() % 10_000);
    Overlay::up(&name, count, subnet, config, args).map(Some)
}

/// Adds a fault between hosts; see `testkit hosts fault --help`.
fn fault(hosts: &Hosts, line: &str) -> Result<()> {
    let words: Vec<_> = line.split_whitespace().collect();
    let faults: Vec<Fault> = Request::parse(&words, &hosts.state()?.hosts())?.faults;
    for fault in faults {
        hosts.add(fault)?;
    }
    Ok(())
}

/// Waits until one container reaches an address of another.
fn reaches(from: &Container, to: IpAddr) -> Result<()> {
    until(&format!("{to} to answer"), SOON, || {
        let pinger = Pinger::start(from, to, Duration::from_millis(20))?;
        thread::sleep(Duration::from_millis(50));
        let pinged = pinger.stop()?;
        Ok(pinged.lost < pinged.sent)
    })?;
    Ok(())
}

/// Asks an address for a while.
fn pinged(from: &Container, to: IpAddr, time: Duration) -> Result<Pinged> {
    let pinger = Pinger::start(from, to, Duration::from_millis(5))?;
    thread::sleep(time);
    pinger.stop()
}

/// Sends a stream from one container to another and returns its rate in Mbit/s.
fn stream(from: &Container, to: &Container, index: usize, bytes: usize) -> Result<f64> {
    let addr = SocketAddr::new(to.ip(index)?, 5_001);
    let listener = to.enter(|| TcpListener::bind(addr))??;
    let mut sender = from.enter(|| TcpStream::connect_timeout(&addr, SOON))??;
    let (mut receiver, _) = listener.accept()?;
    let start = now();
    let sent = thread::spawn(move || {
        let block = vec![7; 1 << 20];
        for _ in 0..bytes >> 20 {
            sender.write_all(&block)?;
        }
        sender.shutdown(Shutdown::Write)
    });
    let (mut buffer, mut got) = (vec![0; 1 << 20], 0);
    receiver.set_read_timeout(Some(SOON))?;
    loop {
        match receiver.read(&mut buffer)? {
            0 => break,
            length => {
                ensure!(
                    buffer[..length].iter().all(|byte| *byte == 7),
                    "bytes changed"
                );
                got += length;
            }
        }
    }
    let took = start.elapsed().as_secs_f64();
    sent.join().ok().context("the sender panicked")??;
    ensure!(got == bytes, "{got} of {bytes} bytes");
    Ok(f64::from(u32::try_from(got >> 17)?) / took)
}

#[test]
fn containers_reach_each_other_over_ipv4_and_ipv6() -> Result<()> {
    let Some(bed) = up("reach", 3, 101)? else {
        return Ok(());
    };
    let mut containers = Vec::new();
    let mut echoes = Vec::new();
    for number in 0..6_u8 {
        let host = usize::from(number / 2) + 1;
        let container = bed.container(host, "ov1", 10 + number, &SUBNETS)?;
        for index in 0..2 {
            echoes.push(Echo::start(&container, index)?);
        }
        containers.push(container);
    }
    for from in &containers {
        for to in &containers {
            for index in 0..2 {
                reaches(from, to.ip(index)?)?;
            }
        }
    }
    let bytes = std::env::var("TESTKIT_STREAM_BYTES").ok();
    let bytes = bytes.map_or(Ok(STREAM_BYTES), |bytes| bytes.parse())?;
    for index in 0..2 {
        let rate = stream(&containers[0], &containers[4], index, bytes)?;
        let ip = containers[4].ip(index)?;
        note(&format!(
            "{} MiB over VXLAN to {ip}: {rate:.0} Mbit/s",
            bytes >> 20
        ));
    }
    Ok(())
}

#[test]
fn what_has_no_row_is_sent_to_nobody() -> Result<()> {
    // Probes are sent by the device whose packets are counted.
    let args = ["--network", "ov1", "--data-path-probe", "off"];
    let Some(bed) = up_with("flood", 3, 102, CONFIG, &args)? else {
        return Ok(());
    };
    let one = bed.container(1, "ov1", 11, &SUBNETS)?;
    let other = bed.container(2, "ov1", 12, &SUBNETS)?;
    let _echo = Echo::start(&other, 0)?;
    reaches(&one, other.ip(0)?)?;
    let before = sent(&bed)?;
    // ARP for somebody who is not there, and a neighbour without a host: unknown unicast.
    pinged(&one, "10.0.1.200".parse()?, Duration::from_millis(300))?;
    let inside = format!("nsenter --net={}", one.path().display());
    let neighbour =
        format!("{inside} ip neigh replace 10.0.1.201 lladdr 02:00:00:00:99:99 dev eth0");
    run(&neighbour)?;
    pinged(&one, "10.0.1.201".parse()?, Duration::from_millis(300))?;
    let flooded = sent(&bed)? - before;
    note(&format!(
        "{flooded} packets went out for addresses that nobody has"
    ));
    // Late answers of the echo and multicast of the containers' own kernels aside, nothing is sent.
    ensure!(flooded <= 2, "{flooded} packets were sent for nobody");
    Ok(())
}

/// Frames that the VXLAN device of host 1 has sent.
fn sent(bed: &Overlay) -> Result<u64> {
    let text = bed.meddle(1, "ov1", "cat /proc/net/dev")?;
    let line = text
        .lines()
        .find(|line| line.trim_start().starts_with("vx"));
    let counts = line
        .and_then(|line| line.split_once(':'))
        .context("a VXLAN device")?
        .1;
    let sent = counts.split_whitespace().nth(9).context("counts")?;
    Ok(sent.parse()?)
}

fn run(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let program = words.next().context("a program")?;
    let status = Command::new(program).args(words).status()?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

#[test]
fn networks_with_equal_subnets_are_apart() -> Result<()> {
    let config = r#"{"overlay-networks": {
        "ov1": {"segments": [{"vni": 4097, "subnets": ["10.0.1.0/24"]}]},
        "ov2": {"segments": [{"vni": 4098, "subnets": ["10.0.1.0/24"]}]}}}"#;
    let networks = ["--network", "ov1", "--network", "ov2"];
    let Some(bed) = up_with("apart", 2, 103, config, &networks)? else {
        return Ok(());
    };
    let subnet = ["10.0.1.0/24"];
    let from = bed.container(1, "ov1", 11, &subnet)?;
    let same = bed.container(2, "ov1", 12, &subnet)?;
    // The address of one network's container in the other, and one that only the other has.
    let twin = bed.container(2, "ov2", 12, &subnet)?;
    let alone = bed.container(2, "ov2", 13, &subnet)?;
    let other = bed.container(1, "ov2", 11, &subnet)?;
    let echo = Echo::start(&same, 0)?;
    let _echo = Echo::start(&alone, 0)?;
    reaches(&from, same.ip(0)?)?;
    reaches(&other, alone.ip(0)?)?;
    let stray = pinged(&from, alone.ip(0)?, Duration::from_millis(300))?;
    ensure!(stray.lost == stray.sent, "{stray:?}");
    drop(echo);
    let _twin = Echo::start(&twin, 0)?;
    reaches(&other, twin.ip(0)?)?;
    until("the other network's echo to end", SOON, || {
        let stray = pinged(&from, twin.ip(0)?, Duration::from_millis(100))?;
        Ok(stray.lost == stray.sent)
    })?;
    Ok(())
}

#[test]
fn without_rights_the_agent_says_what_is_missing() -> Result<()> {
    let agent = binary()?;
    let mut command = if hosts::check_root().is_ok() {
        // Not as another user, who might not reach the binary.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-all", "--inh-caps", "-all", "--"]);
        command.arg(agent);
        command
    } else {
        Command::new(agent)
    };
    command.args(["agent", "--data-path", "on", "--bind-port", "0"]);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("CAP_NET_ADMIN"), "{said}");
    Ok(())
}
