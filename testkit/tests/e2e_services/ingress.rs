//! Published ports: every host leads to every replica, from outside and from itself.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use super::*;

/// The port that is published.
const PUBLISHED: u16 = 8_080;

fn publish(record: &mut EndpointRecord) {
    record.ingress_ports = vec![
        published(Protocol::Tcp, PUBLISHED),
        published(Protocol::Udp, PUBLISHED),
    ];
}

/// Runs a command on a host.
fn on(bed: &Overlay, host: usize, line: &str) -> Result<String> {
    let mut command = bed.on(host)?;
    let output = command.args(line.split_whitespace()).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {error}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks a port of a host until every one of two replicas has answered in turn.
fn answers(to: SocketAddr) -> Result<()> {
    let tcp = count_tcp(to, 10, WITHIN).with_context(|| format!("{to}/tcp"))?;
    let udp = count_udp(to, 10, WITHIN).with_context(|| format!("{to}/udp"))?;
    for counts in [tcp, udp] {
        ensure!(is_fair(&counts, 2), "{to}: {counts:?}");
    }
    Ok(())
}

#[test]
fn every_host_leads_a_published_port_to_every_replica() -> Result<()> {
    let Some(bed) = up("ingress", 3, 137, &[])? else {
        return Ok(());
    };
    for host in 1..=3 {
        // Which it is on a host that forwards IPv6 at all.
        on(&bed, host, "sysctl -qw net.ipv6.conf.all.forwarding=1")?;
    }
    let [one, _two] = replicas(&bed, publish)?;
    balanced(&bed, &[1, 2, 3], 1, 2)?;
    // One that has no replica, too, and from one that is not the client's.
    for host in 1..=3 {
        let from = host % 3 + 1;
        for ip in [
            IpAddr::from(bed.hosts.address(host)?),
            IpAddr::from(bed.hosts.address_v6(host)?),
        ] {
            let to = SocketAddr::new(ip, PUBLISHED);
            until("the way back to be known", SOON, || {
                Ok(bed.hosts.enter(from, || count_udp(to, 2, WITHIN))?.is_ok())
            })?;
            bed.hosts.enter(from, || answers(to))??;
        }
        // From the host itself, by its own address and by that of its loopback device.
        for ip in [bed.hosts.address(host)?, Ipv4Addr::LOCALHOST] {
            let to = SocketAddr::from((ip, PUBLISHED));
            bed.hosts.enter(host, || answers(to))??;
        }
    }
    // From a container whose packets leave by its host.
    let client = &one.container;
    let route = format!("nsenter --net={}", client.path().display());
    on(
        &bed,
        1,
        &format!("{route} ip route add default via 10.0.1.1"),
    )?;
    let to = SocketAddr::from((bed.hosts.address(1)?, PUBLISHED));
    client.enter(|| answers(to))??;
    // And nothing else of the host.
    let own = bed
        .hosts
        .enter(1, || TcpListener::bind(("0.0.0.0", 9_999)))??;
    let forbidden = SocketAddr::from((bed.hosts.address(1)?, 9_999));
    bed.hosts.enter(2, || {
        std::net::TcpStream::connect_timeout(&forbidden, WITHIN)
    })??;
    let short = Duration::from_millis(300);
    let reached = client.enter(|| std::net::TcpStream::connect_timeout(&forbidden, short))?;
    ensure!(reached.is_err(), "a container reached the host");
    drop(own);

    Ok(())
}

#[test]
fn nothing_of_a_published_port_stays() -> Result<()> {
    let Some(mut bed) = up("gone", 2, 144, &[])? else {
        return Ok(());
    };
    let [one] = replicas(&bed, publish)?;
    balanced(&bed, &[1, 2], 1, 1)?;
    let to = SocketAddr::from((bed.hosts.address(1)?, PUBLISHED));
    let is_open = |bed: &Overlay| -> Result<bool> {
        Ok(bed.hosts.enter(2, || Talk::start(to, WITHIN))?.is_ok())
    };
    until("the port to be open", SOON, || is_open(&bed))?;
    one.enlist(&bed, 1, |record| record.ingress_ports.clear())?;
    until("the port to be closed", SOON, || {
        let tried = bed.hosts.enter(2, || Talk::start(to, WITHIN))?;
        Ok(tried.is_err_and(|error| format!("{error:#}").contains("refused")))
    })?;
    until("the port to be free", SOON, || {
        let tried = bed
            .hosts
            .enter(1, || TcpListener::bind(("0.0.0.0", PUBLISHED)))?;
        Ok(tried.is_ok())
    })?;
    one.enlist(&bed, 1, publish)?;
    until("the port to be open again", SOON, || is_open(&bed))?;
    // Nothing stays on the host when it leaves the network.
    let left = bed.send(1, "GET", "/leavenetwork?nid=ov1", "")?;
    ensure!(left.body == "OK", "{}", left.body);
    until("the rules to be gone", SOON, || {
        let rules = on(&bed, 1, "nft list ruleset")?;
        let links = on(&bed, 1, "ip -o link")?;
        Ok(!rules.contains("networkdb") && !links.contains("networkdb0"))
    })?;
    // Nor when what an agent has left is taken away.
    ensure!(on(&bed, 2, "nft list ruleset")?.contains("networkdb-ingress"));
    bed.end(2, Signal::KILL)?;
    let program = testkit::e2e::process::binary()?;
    let dir = bed.namespaces(2);
    let cleanup = format!(
        "{} datapath cleanup --data-path-dir {}",
        program.display(),
        dir.display()
    );
    ensure!(on(&bed, 2, &cleanup)?.contains("network ov1: removed"));
    ensure!(!on(&bed, 2, "nft list ruleset")?.contains("networkdb"));
    ensure!(!on(&bed, 2, "ip -o link")?.contains("networkdb0"));
    Ok(())
}

#[test]
fn a_port_that_is_in_use_is_reported_and_taken_when_it_is_free() -> Result<()> {
    let Some(bed) = up("inuse", 2, 138, &[])? else {
        return Ok(());
    };
    let other = bed
        .hosts
        .enter(2, || TcpListener::bind(("0.0.0.0", PUBLISHED)))??;
    let [_one] = replicas(&bed, publish)?;
    let error = |host: usize| -> Result<String> {
        let told = bed.get(host, "/v1/services")?;
        let error = &told["networks"][0]["syncs"]["last_error"];
        Ok(error.as_str().unwrap_or_default().to_owned())
    };
    until("the port to be reported", SOON, || {
        Ok(error(2)?.contains("port 8080/tcp of this host is in use by another program"))
    })?;
    ensure!(error(1)?.is_empty(), "{}", error(1)?);
    // Whoever has the port is reached, not the service; its other port and its VIP are not affected.
    let taken = SocketAddr::from((bed.hosts.address(2)?, PUBLISHED));
    let reached = bed
        .hosts
        .enter(1, || std::net::TcpStream::connect_timeout(&taken, WITHIN))?;
    ensure!(reached.is_ok(), "{reached:?}");
    other.accept()?;
    until("the port for datagrams to answer", SOON, || {
        Ok(bed.hosts.enter(1, || ask_udp(taken, WITHIN))?.is_ok())
    })?;
    drop((reached, other));
    until("the port to be taken", SOON, || Ok(error(2)?.is_empty()))?;
    bed.hosts.enter(1, || Talk::start(taken, WITHIN))??;
    Ok(())
}

#[test]
fn one_host_has_one_ingress_network() -> Result<()> {
    if hosts::is_skipped()? {
        return Ok(());
    }
    let config = r#"{"overlay-networks": {
        "ov1": {"ingress": true, "segments": [{"vni": 4097, "subnets": ["10.0.1.0/24"]}]},
        "ov2": {"ingress": true, "segments": [{"vni": 4098, "subnets": ["10.0.2.0/24"]}]}}}"#;
    let name = format!("svtwo{}", std::process::id() % 10_000);
    let networks = ["--network", "ov1", "--network", "ov2"];
    let bed = Overlay::up(&name, 1, 139, config, &networks)?;
    until("the second to be refused", SOON, || {
        let report = bed.report(1, "ov2")?;
        let reason = report["reason"].as_str().unwrap_or_default().to_owned();
        Ok(report["state"] == "refused" && reason.contains("ov1 is the ingress network"))
    })?;
    Ok(())
}

#[test]
fn a_kind_of_balancing_that_is_not_there_is_said_at_start() -> Result<()> {
    let agent = testkit::e2e::process::binary()?;
    let mut command = Command::new(agent);
    let flags = [
        "agent",
        "--data-path",
        "on",
        "--bind-port",
        "0",
        "--load-balancer",
    ];
    command.args(flags).arg("magic");
    let said = command.output()?;
    ensure!(said.status.code() == Some(2), "{said:?}");
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(text.contains("auto, ipvs, nftables, off"), "{text}");
    if hosts::check_root().is_err() {
        note("SKIPPED, without root: that a balancer that is not there is said");
        return Ok(());
    }
    let mut command = Command::new(testkit::e2e::process::binary()?);
    command.args(flags).arg("nftables").env("PATH", "/nowhere");
    let said = command.output()?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.code() == Some(1), "{text}");
    ensure!(
        text.contains("--load-balancer nftables: the program nft is not installed"),
        "{text}"
    );
    Ok(())
}
