//! Probes through the tunnels: what they tell of the ways between hosts.

use serde_json::Value;
use testkit::e2e::http::encode;

use super::*;

/// What host 1 tells of the tunnel to a host.
fn tunnel(bed: &Overlay, host: usize) -> Result<Value> {
    let addr = bed.hosts.address(host)?.to_string();
    let report = bed.report(1, "ov1")?;
    let tunnels = report["tunnels"].as_array().cloned().unwrap_or_default();
    let found = tunnels.into_iter().find(|tunnel| tunnel["host"] == addr);
    Ok(found.unwrap_or_default())
}

/// Waits until host 1 tells a state of the tunnel to a host, and returns all that it tells.
fn becomes(bed: &Overlay, host: usize, state: &str) -> Result<Value> {
    let what = format!("the tunnel to host {host} to be {state}");
    until(&what, 3 * SOON, || Ok(tunnel(bed, host)?["state"] == state))?;
    tunnel(bed, host)
}

/// A container on each of three hosts.
fn one_each(bed: &Overlay) -> Result<Vec<Container>> {
    let container = |host: u8| bed.container(host.into(), "ov1", 10 + host, &SUBNETS);
    (1..=3).map(container).collect()
}

/// Sets the MTU of the switch's port to host 3, which neither host sees of its own interface.
fn set_port(bed: &Overlay, mtu: u32) -> Result<()> {
    let line = format!(
        "ip netns exec {} ip link set p3 mtu {mtu}",
        bed.hosts.state()?.switch()
    );
    run(&line)
}

/// Looks for every metric of the guide to the data path.
fn check_metrics(metrics: &str) -> Result<()> {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/DATAPATH.md");
    for named in std::fs::read_to_string(guide)?.split("| `").skip(1) {
        let name = named.split('`').next().unwrap_or_default();
        let is_there = metrics.contains(&format!("# TYPE {name} "));
        ensure!(
            !name.starts_with("networkdb_") || is_there,
            "{name} is in the guide"
        );
    }
    Ok(())
}

/// Runs `networkdb support` on a host and returns its summary.
fn supported(bed: &Overlay, host: usize) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let mut command = bed.on(host)?;
    command.arg(binary()?).args(["support", "--output"]);
    let output = command.arg(dir.path().join("case.tar.gz")).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// All rows of a network on a host, page by page.
fn rows(bed: &Overlay, host: usize) -> Result<Vec<Value>> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = bed.get(host, &format!("/v1/datapath/ov1/rows?limit=2{cursor}"))?;
        let rows = page["rows"].as_array().context("rows")?;
        ensure!(rows.len() <= 2, "{page}");
        all.extend(rows.iter().cloned());
        let Some(next) = page["next"].as_str() else {
            return Ok(all);
        };
        cursor = format!("&cursor={}", encode(next));
    }
}

#[test]
fn probes_tell_round_trips_and_the_largest_packets_that_pass() -> Result<()> {
    let Some(bed) = up("tunnel", 3, 121)? else {
        return Ok(());
    };
    let mut containers = Vec::new();
    for host in 1..=3 {
        containers.push(bed.container(host, "ov1", 10 + u8::try_from(host)?, &SUBNETS)?);
    }
    for host in [2, 3] {
        let passing = becomes(&bed, host, "passing")?;
        let trip = passing["round_trip_ms"].as_f64().context("a round trip")?;
        note(&format!(
            "through the tunnel to host {host} and back: {trip:.3} ms"
        ));
        ensure!(
            trip > 0.0 && passing["mtu_passes"] == passing["mtu"],
            "{passing}"
        );
        ensure!(passing["mtu_of_host"] == passing["mtu"], "{passing}");
    }
    set_port(&bed, 1_400)?;
    becomes(&bed, 3, "mtu-mismatch")?;
    until(
        "the largest packet that passes to be found",
        3 * SOON,
        || {
            let told = tunnel(&bed, 3)?;
            let [passes, lost] = ["mtu_passes", "mtu_lost"].map(|name| told[name].as_u64());
            Ok(passes
                .zip(lost)
                .is_some_and(|(passes, lost)| lost == passes + 1))
        },
    )?;
    let told = tunnel(&bed, 3)?;
    // 64 bytes of headers around it, and 18 that a port of 1,400 lets through beyond that.
    ensure!(told["mtu_passes"] == 1_354, "{told}");
    // The other way is as it was; a busy host may have missed a probe.
    becomes(&bed, 2, "passing")?;
    let metrics = bed.send(1, "GET", "/metrics", "")?.body;
    let line = r#"tunnel_hosts{network="ov1",state="mtu-mismatch"} 1"#;
    ensure!(metrics.contains(line), "{metrics}");
    check_metrics(&metrics)?;
    let summary = supported(&bed, 1)?;
    let flagged = format!("do not pass to host {}", bed.hosts.address(3)?);
    ensure!(summary.contains(&flagged), "{summary}");
    set_port(&bed, 1_500)?;
    becomes(&bed, 3, "passing")?;
    Ok(())
}

#[test]
fn a_host_that_is_not_reached_is_told_while_the_gossip_is_well() -> Result<()> {
    let Some(bed) = up("blocked", 3, 124)? else {
        return Ok(());
    };
    let _containers = one_each(&bed)?;
    becomes(&bed, 2, "passing")?;
    fault(&bed.hosts, "block=udp:4789 hosts=2")?;
    becomes(&bed, 2, "unreachable")?;
    // A busy agent may be suspected for a moment.
    until("the gossip to be well, and that alone", SOON, || {
        let members = bed.get(1, "/v1/members")?;
        let members = members["members"].as_array().context("members")?;
        let is_well = members.iter().all(|member| member["state"] == "alive");
        Ok(is_well && tunnel(&bed, 2)?["state"] == "unreachable")
    })?;
    bed.hosts.clear(&[])?;
    becomes(&bed, 2, "passing")?;
    for host in 1..=3 {
        ensure!(bed.differs(host, "ov1")? == 0, "host {host}");
        let drift = &bed.report(host, "ov1")?["counts"]["drift"];
        let all: u64 = drift
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(_, n)| n.as_u64())
            .sum();
        ensure!(all == 0, "probes are nobody's drift: {drift}");
    }
    Ok(())
}

#[test]
fn hosts_without_endpoints_probe_nobody_and_devices_made_anew_are_probed_again() -> Result<()> {
    let Some(bed) = up("idle", 2, 122)? else {
        return Ok(());
    };
    let _one = bed.container(1, "ov1", 11, &SUBNETS)?;
    until("the other host to know the endpoint", SOON, || {
        Ok(bed.report(2, "ov1")?["segments"][0]["neighbours"] == 2)
    })?;
    stays("nobody is probed", Duration::from_secs(3), || {
        Ok([1, 2].iter().all(|host| {
            let report = bed.report(*host, "ov1").unwrap_or_default();
            report["tunnels"].as_array().is_some_and(Vec::is_empty)
        }))
    })?;
    let _other = bed.container(2, "ov1", 12, &SUBNETS)?;
    becomes(&bed, 2, "passing")?;
    until("all rows to be as they should", SOON, || {
        let rows = rows(&bed, 1)?;
        let right = rows
            .iter()
            .filter(|row| row["desired"] == row["actual"] && row["is_ours"] == true);
        // A forwarding row of the endpoint and one of the host's bridge, and a neighbour for each address.
        Ok((rows.len(), right.count()) == (4, 4))
    })?;
    let told = rows(&bed, 1)?;
    let of_records = told.iter().filter(|row| row["owner"] == "n2");
    ensure!(of_records.count() == 3, "{told:?}");
    bed.meddle(1, "ov1", "ip link del vxlan4097")?;
    until("the devices to be there again", SOON, || {
        Ok(bed.differs(1, "ov1")? == 0)
    })?;
    let before = tunnel(&bed, 2)?["sent"].as_u64();
    until("probes of the new devices to be answered", 3 * SOON, || {
        let told = tunnel(&bed, 2)?;
        Ok(told["state"] == "passing" && told["sent"].as_u64() > before.map(|sent| sent + 2))
    })?;
    Ok(())
}

#[test]
fn the_hosts_network_may_be_one_of_ipv6() -> Result<()> {
    let args = ["--network", "ov1", "--data-path-addr", "HOST_V6"];
    let Some(bed) = up_with("six", 3, 123, CONFIG, &args)? else {
        return Ok(());
    };
    let mut containers = Vec::new();
    let mut echoes = Vec::new();
    for host in 1..=3 {
        let container = bed.container(host, "ov1", 10 + u8::try_from(host)?, &SUBNETS)?;
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
    let report = bed.report(1, "ov1")?;
    // 1,500 less 70 of headers.
    ensure!(report["segments"][0]["mtu"] == 1_430, "{report}");
    let addr = bed.hosts.address_v6(2)?.to_string();
    until("the tunnel over IPv6 to be probed", 3 * SOON, || {
        let report = bed.report(1, "ov1")?;
        let tunnels = report["tunnels"].as_array().cloned().unwrap_or_default();
        let mut tunnels = tunnels.iter();
        Ok(tunnels.any(|it| it["host"] == addr && it["state"] == "passing"))
    })?;
    for index in 0..2 {
        let rate = stream(&containers[0], &containers[2], index, STREAM_BYTES)?;
        note(&format!("a stream over an IPv6 underlay: {rate:.0} Mbit/s"));
    }
    Ok(())
}
