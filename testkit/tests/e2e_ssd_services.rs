//! `ssd` beside a real kernel: it says what is right, and names what somebody has spoilt.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use overlay_sync::record::{EndpointRecord, PortConfig, Protocol};
use testkit::e2e::process::{SOON, note, ssd_binary, until};
use testkit::hosts;
use testkit::overlay::Overlay;

/// A network of containers, and the one that published ports lead to.
const CONFIG: &str = r#"{"overlay-networks": {
    "ov2": {"segments": [{"vni": 4097, "subnets": ["10.0.2.0/24"]}]},
    "ingress": {"ingress": true, "segments": [{"vni": 4096, "subnets": ["10.0.0.0/24"]}]}}}"#;

/// What is printed while everything is right.
const RIGHT: &str = "\
Verifying LB programming for containers on network ov2
Verifying container /s1.1...
service s1... OK
service s2... OK
Verifying container /s2.1...
service s1... OK
service s2... OK
Verifying LB programming for containers on network ingress
Verifying container Ingress...
service web... OK
";

/// Makes two hosts with two services of two replicas each on ov2, and a published one; none where something is missing.
fn up() -> Result<Option<Overlay>> {
    if let Some(missing) = hosts::missing() {
        ensure!(std::env::var_os("CI").is_none(), "in CI: {missing}");
        note(&format!("SKIPPED, ssd was not tried: {missing}"));
        return Ok(None);
    }
    let name = format!("ssd{}", std::process::id() % 10_000);
    let attached = ["--network", "ov2", "--network", "ingress"];
    let bed = Overlay::up(&name, 2, 149, CONFIG, &attached)?;
    for host in [1_u8, 2] {
        for (number, service) in [(1_u8, "s1"), (2, "s2")] {
            let vip = Ipv4Addr::new(10, 0, 2, 200 + number);
            let ip = Ipv4Addr::new(10, 0, 2, 10 * number + host);
            let replica = record(service, vip, ip, host);
            bed.write_endpoint(host.into(), "ov2", &replica.name, &replica)?;
        }
        let (vip, ip) = ([10, 0, 0, 200].into(), [10, 0, 0, 10 + host].into());
        let mut web = record("web", vip, ip, host);
        web.ingress_ports = vec![PortConfig {
            name: String::new(),
            protocol: Protocol::Udp,
            target_port: 53,
            published_port: 8_053,
        }];
        bed.write_endpoint(host.into(), "ingress", &web.name, &web)?;
    }
    Ok(Some(bed))
}

fn record(service: &str, vip: Ipv4Addr, ip: Ipv4Addr, slot: u8) -> EndpointRecord {
    EndpointRecord {
        name: format!("{service}.{slot}"),
        service_name: service.to_owned(),
        service_id: format!("id-{service}"),
        virtual_ip: Some(IpAddr::V4(vip)),
        endpoint_ip: ip.into(),
        ingress_ports: Vec::new(),
        aliases: Vec::new(),
        task_aliases: Vec::new(),
        is_service_disabled: false,
    }
}

/// Runs `ssd` on the first host; returns its lines and its exit code.
fn ssd(bed: &Overlay, binary: &Path, args: &[&str]) -> Result<(String, Option<i32>)> {
    let output = bed.on(1)?.arg(binary).args(args).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(error.is_empty(), "{error}");
    let said = String::from_utf8(output.stdout)?;
    Ok((said, output.status.code()))
}

/// The number that the kernel of the first host has for a frontend.
fn index(bed: &Overlay, network: &str, frontend: &str) -> Result<u64> {
    let told = bed.get(1, &format!("/v1/services/{network}"))?;
    let mut held = told["held"].as_array().into_iter().flatten();
    let found = held.find(|held| held["frontend"] == frontend);
    found
        .and_then(|held| held["index"].as_u64())
        .context("an index")
}

#[test]
fn what_is_right_is_ok_and_what_others_have_spoilt_is_named_and_repaired() -> Result<()> {
    let binary = ssd_binary()?;
    let Some(bed) = up()? else {
        return Ok(());
    };
    // The look at the end of that sets things right by itself.
    for network in ["ov2", "ingress"] {
        until("the networks to be settled", SOON, || {
            Ok(bed.report(1, network)?["state"] == "synced")
        })?;
    }
    until("everything to be right", SOON, || {
        Ok(ssd(&bed, &binary, &["ov2"])? == (RIGHT.to_owned(), Some(0)))
    })?;
    ensure!(ssd(&bed, &binary, &[])? == (RIGHT.to_owned(), Some(0)));

    // A wrong member, and as many as before.
    let chain = format!(
        "inet networkdb-services s{}",
        index(&bed, "ov2", "10.0.2.202")?
    );
    let script = std::env::temp_dir().join(format!("ssd-{}.nft", std::process::id()));
    let wrong = format!(
        "flush chain {chain}\nadd rule {chain} dnat ip to numgen inc mod 2 map \
         {{ 0 : 10.0.2.21, 1 : 10.0.2.99 }} comment \"rr\"\n"
    );
    std::fs::write(&script, wrong)?;
    bed.look_at_services(1, "ov2")?;
    bed.meddle(1, "ov2", &format!("nft -f {}", script.display()))?;
    std::fs::remove_file(&script)?;
    let (said, code) = ssd(&bed, &binary, &["ov2"])?;
    let told = "\
service s1... OK
Incorrect LB Programming for service s2
control-plane backend tasks:
10.0.2.21
10.0.2.22
kernel nftables backend tasks:
10.0.2.21
10.0.2.99
";
    ensure!(said.contains(told) && code == Some(1), "{code:?}: {said}");
    let (said, code) = ssd(&bed, &binary, &["--repair", "ov2"])?;
    ensure!(
        said.contains("\nrepaired: set service 10.0.2.202 "),
        "{said}"
    );
    ensure!(said.ends_with(RIGHT) && code == Some(0), "{code:?}: {said}");

    bed.look_at_services(1, "ingress")?;
    let meddled = bed
        .on(1)?
        .args(["nft", "delete", "table", "inet", "networkdb-ingress"])
        .output()?;
    ensure!(meddled.status.success(), "{meddled:?}");
    let (said, code) = ssd(&bed, &binary, &["ingress"])?;
    let told = "Service web: host nftables DNAT rule for port 8053/udp -> ingress sandbox \
                169.254.254.2:8053 missing\n";
    ensure!(said.contains(told) && code == Some(1), "{code:?}: {said}");
    let (_, code) = ssd(&bed, &binary, &["--repair", "ingress"])?;
    ensure!(code == Some(0), "{code:?}");
    ensure!(ssd(&bed, &binary, &[])? == (RIGHT.to_owned(), Some(0)));
    Ok(())
}
