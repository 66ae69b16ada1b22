//! Agents and hosts that end, restart and return, containers that move, and gossip that is cut off.

use std::collections::BTreeSet;
use std::ops::Range;

use super::*;

/// How often containers are asked while something happens.
const PERIOD: Duration = Duration::from_millis(2);

/// The host of three that runs a task.
fn host_of(round: u8) -> usize {
    usize::from(round % 3) + 1
}

/// The address of a task, which is soon that of another one.
fn address_of(round: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, 100 + round % 5])
}

/// A bed with a container on each host, and an echo in each.
fn populated(name: &str, count: u8, subnet: u8, args: &[&str]) -> Result<Option<Populated>> {
    let mut all = vec!["--network", "ov1"];
    all.extend(args);
    let Some(bed) = up_with(name, count.into(), subnet, CONFIG, &all)? else {
        return Ok(None);
    };
    let mut containers = Vec::new();
    let mut echoes = Vec::new();
    for number in 1..=count {
        let container = bed.container(number.into(), "ov1", 10 + number, &SUBNETS)?;
        echoes.push(Echo::start(&container, 0)?);
        containers.push(container);
    }
    for (from, to) in
        (0..containers.len()).flat_map(|from| (0..containers.len()).map(move |to| (from, to)))
    {
        if from != to {
            reaches(&containers[from], containers[to].ip(0)?)?;
        }
    }
    Ok(Some(Populated {
        bed,
        containers,
        _echoes: echoes,
    }))
}

struct Populated {
    bed: Overlay,
    containers: Vec<Container>,
    _echoes: Vec<Echo>,
}

impl Populated {
    fn pinger(&self, from: usize, to: usize) -> Result<Pinger> {
        let to = self.containers[to].ip(0)?;
        Pinger::start(&self.containers[from], to, PERIOD)
    }

    /// Rows of remote endpoints that the kernel of a host should hold.
    fn rows(&self, host: usize) -> Result<u64> {
        let report = self.bed.report(host, "ov1")?;
        report["segments"][0]["fdb"]
            .as_u64()
            .context("a number of rows")
    }

    /// Addresses of remote endpoints in the kernel of a host.
    fn neighbours(&self, host: usize) -> Result<BTreeSet<IpAddr>> {
        let rows = self
            .bed
            .meddle(host, "ov1", "ip neigh show nud permanent")?;
        rows.lines()
            .map(|row| Ok(row.split(' ').next().unwrap_or_default().parse()?))
            .collect()
    }

    /// Addresses that the kernel of a host should have: those of containers and tasks elsewhere.
    fn remote(&self, host: usize, tasks: Range<u8>) -> Result<BTreeSet<IpAddr>> {
        let mut addresses: BTreeSet<_> = tasks
            .filter(|&round| host_of(round) != host)
            .map(address_of)
            .collect();
        for (other, container) in (1..).zip(&self.containers) {
            if other != host {
                addresses.extend([container.ip(0)?, container.ip(1)?]);
            }
        }
        Ok(addresses)
    }

    fn state(&self, host: usize) -> Result<String> {
        let report = self.bed.report(host, "ov1")?;
        Ok(report["state"].as_str().unwrap_or_default().to_owned())
    }
}

#[test]
fn an_agent_that_is_killed_and_started_again_loses_no_packet() -> Result<()> {
    // However slow the machine is, the agent is back before the others take it for dead.
    let Some(mut net) = populated("kill", 3, 111, &["--preset", "wan"])? else {
        return Ok(());
    };
    for signal in [Signal::KILL, Signal::KILL] {
        let pingers = [net.pinger(0, 1)?, net.pinger(1, 0)?, net.pinger(1, 2)?];
        net.bed.end(1, signal)?;
        net.bed.start(1)?;
        until("the restarted agent to know all records", 3 * SOON, || {
            Ok(net.state(1)? == "synced" && net.rows(1)? == 2)
        })?;
        for pinger in pingers {
            let pinged = pinger.stop()?;
            ensure!(pinged.lost == 0, "{pinged:?}");
            note(&format!("agent killed and started again: {pinged:?}"));
        }
        ensure!(net.bed.differs(1, "ov1")? == 0);
    }
    Ok(())
}

#[test]
fn a_container_that_moves_keeps_answering() -> Result<()> {
    let Some(mut net) = populated("move", 3, 112, &[])? else {
        return Ok(());
    };
    // From host 2 to host 3 and back, asked by containers on host 1 and on the host that it comes to.
    for (from, to) in [(2, 3), (3, 2)] {
        let moved = net.bed.waiting_container(to, "ov1", 12, &SUBNETS)?;
        let _echo = Echo::start(&moved, 0)?;
        let pingers = [net.pinger(0, 1)?, net.pinger(2, 1)?];
        net.bed.register(to, &moved)?;
        net.bed.detach(from, &net.containers[1])?;
        net.containers[1] = moved;
        reaches(&net.containers[0], net.containers[1].ip(0)?)?;
        reaches(&net.containers[2], net.containers[1].ip(0)?)?;
        for pinger in pingers {
            let pinged = pinger.stop()?;
            note(&format!(
                "container moved from host {from} to {to}: {pinged:?}"
            ));
            ensure!(pinged.lost < pinged.sent, "{pinged:?}");
        }
        until("all kernels to agree", SOON, || {
            let mut differ = 0;
            for host in 1..=3 {
                differ += net.bed.differs(host, "ov1")?;
            }
            Ok(differ == 0)
        })?;
        reaches(&net.containers[0], net.containers[1].ip(0)?)?;
    }
    Ok(())
}

#[test]
fn a_host_that_is_lost_goes_and_comes_back() -> Result<()> {
    let Some(net) = populated("lost", 4, 113, &["--preset", "fast"])? else {
        return Ok(());
    };
    let start = now();
    fault(&net.bed.hosts, "partition=1,2,3|4")?;
    for host in 1..=3 {
        until("the rows of the lost host to go", SOON, || {
            Ok(net.rows(host)? == 2 && net.bed.differs(host, "ov1")? == 0)
        })?;
    }
    note(&format!(
        "rows of a lost host gone after {:?}",
        start.elapsed()
    ));
    ensure!(
        net.state(1)? == "synced",
        "one of three is no reason to freeze"
    );
    until(
        "the lost host to freeze, as all others are gone",
        SOON,
        || Ok(net.state(4)? == "frozen"),
    )?;
    ensure!(net.rows(4)? == 3);
    let start = now();
    net.bed.hosts.clear(&[])?;
    for host in 1..=4 {
        until("all rows to be back", SOON, || {
            Ok(net.rows(host)? == 3 && net.bed.differs(host, "ov1")? == 0)
        })?;
    }
    note(&format!("rows back {:?} after the link", start.elapsed()));
    reaches(&net.containers[0], net.containers[3].ip(0)?)
}

#[test]
fn traffic_goes_on_while_the_gossip_is_cut_off_everywhere() -> Result<()> {
    let hold = ["--preset", "fast", "--data-path-hold", "12"];
    let Some(net) = populated("static", 3, 114, &hold)? else {
        return Ok(());
    };
    let pingers = [net.pinger(0, 1)?, net.pinger(1, 2)?, net.pinger(2, 0)?];
    fault(&net.bed.hosts, "block=udp:7946")?;
    fault(&net.bed.hosts, "block=tcp:7946")?;
    for host in 1..=3 {
        until("the network to freeze", SOON, || {
            Ok(net.state(host)? == "frozen")
        })?;
        ensure!(net.rows(host)? == 2);
    }
    for pinger in pingers {
        let pinged = pinger.stop()?;
        note(&format!("gossip cut off everywhere: {pinged:?}"));
        ensure!(pinged.lost == 0, "{pinged:?}");
    }
    for host in 1..=3 {
        until("the hold to end", SOON, || Ok(net.rows(host)? == 0))?;
        ensure!(net.state(host)? == "synced");
    }
    net.bed.hosts.clear(&[])?;
    for host in 1..=3 {
        until("all rows to be back", SOON, || Ok(net.rows(host)? == 2))?;
    }
    reaches(&net.containers[0], net.containers[1].ip(0)?)
}

#[test]
fn links_that_flap_leave_no_address_behind() -> Result<()> {
    // The scenario of moby#50551: delay 100 ms, jitter 200 ms, loss 1 %, while endpoints come and go.
    let Some(net) = populated("flap", 3, 115, &["--preset", "fast"])? else {
        return Ok(());
    };
    fault(&net.bed.hosts, "delay=50ms jitter=100ms loss=1% seed=50551")?;
    for round in 0..20_u8 {
        let host = host_of(round);
        let target = format!("/v1/datapath/ov1/endpoints/task-{round}");
        let address = address_of(round);
        let body =
            format!("{{\"address\":\"{address}/24\",\"mac\":\"02:42:0a:00:01:{round:02x}\"}}");
        ensure!(net.bed.send(host, "PUT", &target, &body)?.status == 204);
        if let Some(old) = round.checked_sub(3) {
            // The host that wrote it, as a scheduler replaces a task.
            let host = host_of(old);
            let target = format!("/v1/datapath/ov1/endpoints/task-{old}");
            ensure!(net.bed.send(host, "DELETE", &target, "")?.status == 204);
        }
        thread::sleep(Duration::from_millis(100));
    }
    for host in 1..=3 {
        let expected = net.remote(host, 17..20)?;
        let mut found = BTreeSet::new();
        // Hosts suspect each other all the while.
        until(
            "the last tasks and the containers to be left",
            3 * SOON,
            || {
                found = net.neighbours(host)?;
                Ok(found == expected && net.bed.differs(host, "ov1")? == 0)
            },
        )
        .with_context(|| format!("host {host} has {found:?} in place of {expected:?}"))?;
    }
    Ok(())
}
