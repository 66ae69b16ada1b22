//! A record that is created on one host until it is in the kernel of another, with real agents.
//!
//! The other host's kernel is asked again and again; a question takes a tenth of a millisecond or two, by which the figures
//! are too long at most.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use networkdb::NetworkId;
use overlay_sync::kernel::Kernel as _;
use overlay_sync::kernel::netlink::NetlinkKernel;

use super::figure::Figure;
use super::{Mode, Report};
use crate::e2e::http::Connection;
use crate::e2e::process::{SOON, now, until};
use crate::overlay::Overlay;

/// The network, and how it is laid out.
const NETWORK: &str = "ov1";
const CONFIG: &str =
    r#"{"overlay-networks": {"ov1": {"segments": [{"vni": 4097, "subnets": ["10.0.0.0/16"]}]}}}"#;

/// Between two records, so that none waits for the one before.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest time that the p99 may take.
const GOAL: f64 = 0.005;

pub(super) fn run(mode: Mode, report: &mut Report) -> Result<()> {
    let name = format!("bench{}", std::process::id() % 10_000);
    let bed = Overlay::up(&name, 2, 131, CONFIG, &["--network", NETWORK])?;
    until("the network to be there", SOON, || {
        Ok(bed.namespace(2, NETWORK).is_ok())
    })?;
    let file = bed.namespace(2, NETWORK)?;
    let mut kernel = NetlinkKernel::new(file.parent().context("a directory of namespaces")?)?;
    let network = NetworkId::new(NETWORK)?;
    let mut asked = bed
        .hosts
        .enter(1, || Connection::open((Ipv4Addr::LOCALHOST, 2_000).into()))??;
    let mut times = Vec::new();
    for number in 0..mode.pick(200, 1_000_u16) {
        let [high, low] = (number + 10).to_be_bytes();
        let ip = IpAddr::from([10, 0, high, low]);
        let target = format!("/v1/datapath/{NETWORK}/endpoints/e{number}");
        let body = format!(r#"{{"address":"{ip}/16","mac":"02:42:0a:00:{high:02x}:{low:02x}"}}"#);
        let start = now();
        let reply = asked.send("PUT", &target, &body)?;
        ensure!(
            reply.status == 204,
            "{target} answered {}: {}",
            reply.status,
            reply.body
        );
        loop {
            let actual = kernel.dump(&network)?;
            let mut segments = actual.segments.values();
            if segments.any(|segment| segment.neighbours.contains_key(&ip)) {
                break;
            }
            ensure!(start.elapsed() < SOON, "{ip} does not come into the kernel");
        }
        times.push(start.elapsed());
        thread::sleep(PAUSE);
    }
    let what = "a record created on A until B's kernel has it";
    report.add(Figure::of_times(what, &times).p99_at_most(GOAL));
    Ok(())
}
