//! An agent that takes what balances here by itself: from records of the table to the kernel, and back again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use overlay_sync::kernel::balancer::Kind;
use overlay_sync::record::{ENDPOINT_TABLE, EndpointRecord};
use serde_json::Value;

use crate::e2e::http;
use crate::e2e::process::{Process, SOON, until};

/// The address of the host.
const HOST: &str = "10.9.0.1";

/// The layout of its only network.
const LAYOUT: &str =
    r#"{"overlay-networks": {"ov1": {"segments": [{"vni": 4500, "subnets": ["10.8.0.0/24"]}]}}}"#;

/// The VIP of its only service.
const VIP: &str = "10.8.0.200";

/// A running agent.
struct Agent {
    port: u16,
    _process: Process,
}

/// Tries an agent. The calling process must be alone in its network namespace.
pub fn run(program: &Path, kind: Kind) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let agent = Agent::start(program, dir.path(), 2_000)?;
    for last in [11, 12] {
        agent.write("createentry", last, false)?;
    }
    agent.holds(&[(11, 1), (12, 1)])?;
    let told = agent.told()?;
    let name = match kind {
        Kind::Ipvs => "ipvs",
        Kind::Nftables => "nftables",
    };
    ensure!(told["balancer"] == name, "{told}");
    agent.write("updateentry", 12, true)?;
    // Nobody is connected, so that the drain ends with the first look.
    agent.holds(&[(11, 1)])?;
    agent.write("updateentry", 12, false)?;
    agent.holds(&[(11, 1), (12, 1)])?;
    // What somebody else changes is found by whoever asks.
    let [file] = namespaces(dir.path())?;
    agent.repair()?;
    let line = match kind {
        Kind::Ipvs => "ipvsadm -d -f 256 -r 10.8.0.12:0",
        Kind::Nftables => "nft flush chain inet networkdb-services s256",
    };
    inside(&file, line)?;
    ensure!(agent.told()?["operations"] != 0, "not found");
    agent.repair()?;
    agent.holds(&[(11, 1), (12, 1)])?;
    // The next one takes it up as it is, and removes nothing while it is told who is there.
    drop(agent);
    let agent = Agent::start(program, dir.path(), 2_001)?;
    for last in [11, 12] {
        agent.write("createentry", last, false)?;
    }
    agent.holds(&[(11, 1), (12, 1)])
}

impl Agent {
    fn start(program: &Path, dir: &Path, port: u16) -> Result<Self> {
        let link = "ip link add net0 type bridge; ip addr replace 10.9.0.1/24 dev net0; ip link set net0 up";
        // It is there already when an agent starts again.
        drop(Command::new("sh").args(["-c", link]).output()?);
        let config = dir.join("config.json");
        std::fs::write(&config, LAYOUT)?;
        let mut command = Command::new(program);
        command.arg("agent").arg("--config").arg(config);
        command.args(["--node-id", "n1", "--insecure-gossip", "--bind-addr", HOST]);
        command.args(["--bind-port", &(port + 5_000).to_string()]);
        command.args(["--network", "ov1", "--data-path", "on"]);
        command.args(["--network-diagnostic-port", &port.to_string()]);
        command.args(["--data-path-hold", "1", "--data-path-dir"]);
        command.arg(dir.join("netns"));
        let process = Process::start_command(command)?;
        process.line("diagnostic server listening on ", 1)?;
        Ok(Self {
            port,
            _process: process,
        })
    }

    fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Lets it look and set right what differs, so that it does not by itself in the next seconds.
    fn repair(&self) -> Result<()> {
        let target = "/v1/services/ov1/repair";
        let repaired = http::Connection::open(self.addr())?.send("POST", target, "")?;
        ensure!(repaired.status == 200, "{}", repaired.body);
        Ok(())
    }

    fn told(&self) -> Result<Value> {
        let answer = http::get(self.addr(), "/v1/services/ov1")?;
        serde_json::from_str(&answer.body).context(answer.body)
    }

    /// Writes the record of an endpoint.
    fn write(&self, how: &str, last: u8, is_service_disabled: bool) -> Result<()> {
        let record = EndpointRecord {
            name: format!("web.{last}"),
            service_name: "web".to_owned(),
            service_id: "web".to_owned(),
            virtual_ip: Some(VIP.parse()?),
            endpoint_ip: IpAddr::from([10, 8, 0, last]),
            ingress_ports: Vec::new(),
            aliases: Vec::new(),
            task_aliases: Vec::new(),
            is_service_disabled,
        };
        let value = http::encode(&STANDARD.encode(record.encode()));
        let target = format!("/{how}?nid=ov1&tname={ENDPOINT_TABLE}&key=e{last}&value={value}");
        let answer = http::get(self.addr(), &target)?.body;
        ensure!(answer == "OK", "{how} of {last}: {answer}");
        Ok(())
    }

    /// Waits until the kernel holds these targets with their weights, and nothing differs.
    fn holds(&self, targets: &[(u8, u64)]) -> Result<()> {
        let wanted: BTreeMap<String, u64> = targets
            .iter()
            .map(|(last, weight)| (format!("10.8.0.{last}"), *weight))
            .collect();
        until(&format!("{wanted:?}"), SOON, || {
            let told = self.told()?;
            let held = told["held"].as_array().into_iter().flatten();
            let vip = held.filter(|held| held["frontend"] == VIP);
            let targets = vip.filter_map(|held| held["targets"].as_object()).flatten();
            let targets = targets.map(|(target, weight)| (target.clone(), weight.as_u64()));
            let found: BTreeMap<String, u64> = targets
                .filter_map(|(target, weight)| Some((target, weight?)))
                .collect();
            Ok(told["operations"] == 0 && found == wanted)
        })?;
        Ok(())
    }
}

/// Returns the file of the only namespace.
fn namespaces(dir: &Path) -> Result<[std::path::PathBuf; 1]> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join("netns"))? {
        let path = entry?.path();
        found.extend(path.extension().is_none().then_some(path));
    }
    let count = found.len();
    found
        .try_into()
        .ok()
        .with_context(|| format!("{count} namespaces"))
}

fn inside(namespace: &Path, line: &str) -> Result<()> {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", namespace.display()));
    let output = nsenter.args(line.split_whitespace()).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}", error.trim());
    Ok(())
}
