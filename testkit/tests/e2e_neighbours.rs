//! Endpoints where the kernel has no room for further neighbours. A program of its own: the table is one for all network namespaces,
//! and while it is full the hosts of other tests do not find each other.

use std::process::Command;

use anyhow::{Result, ensure};
use testkit::e2e::process::{SOON, until};
use testkit::hosts;
use testkit::overlay::Overlay;

const CONFIG: &str =
    r#"{"overlay-networks": {"ov1": {"segments": [{"vni": 4097, "subnets": ["10.0.1.0/24"]}]}}}"#;

const SUBNETS: [&str; 1] = ["10.0.1.0/24"];

/// Adds more neighbours than the table holds (`net.ipv4.neigh.default.gc_thresh3`).
const FILL: &str = "for i in $(seq 1 2000); do echo neigh add 10.9.$((i / 250)).$((i % 250 + 1)) lladdr 02:00:00:00:00:01 dev br4097 nud stale; done | ip -force -batch -";

#[test]
fn a_full_neighbour_table_keeps_no_endpoint_out() -> Result<()> {
    if hosts::is_skipped()? {
        return Ok(());
    }
    let name = format!("full{}", std::process::id() % 10_000);
    let bed = Overlay::up(&name, 2, 124, CONFIG, &["--network", "ov1"])?;
    until("the network to be settled", SOON, || {
        Ok(bed.report(1, "ov1")?["state"] == "synced")
    })?;
    let mut shell = Command::new("nsenter");
    shell.arg(format!("--net={}", bed.namespace(1, "ov1")?.display()));
    let filled = shell.args(["sh", "-c", FILL]).output()?;
    let said = String::from_utf8_lossy(&filled.stderr);
    ensure!(
        said.contains("No buffer space available"),
        "it has room: {said}"
    );
    let container = bed.container(2, "ov1", 98, &SUBNETS)?;
    until("the endpoint to be a neighbour", SOON, || {
        let ip = container.ip(0)?;
        let shown = bed.meddle(1, "ov1", &format!("ip neigh show {ip}"))?;
        Ok(shown.contains(&container.mac))
    })?;
    Ok(())
}
