//! Overlay networks on many hosts of one machine: real agents with their data path, and containers behind them.
//!
//! The hosts are those of [`crate::hosts`]. All agents of one bed are in one mount namespace of their own, which outlives
//! each of them, so that a restarted agent finds what it made, and nothing stays when the test is killed. A container is
//! a process that sleeps in a network namespace, joined to the bridge of its network by a veth, as a runtime would do it.

mod probe;
mod service;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use overlay_sync::record::{ENDPOINT_TABLE, EndpointRecord};
use serde_json::Value;
use tempfile::TempDir;

pub use probe::{Echo, Pinged, Pinger};
pub use service::{Server, Talk, ask_udp, count_tcp, count_udp};

use crate::e2e::http::{self, Reply};
use crate::e2e::process::{Process, SOON, Signal, binary, until};
use crate::hosts::{Hosts, Options, enter_file};

/// The port of the agents' diagnostic servers, each on the loopback device of its host.
const PORT: u16 = 2_000;

/// Hosts with agents that have their data path on.
#[derive(Debug)]
pub struct Overlay {
    /// The hosts.
    pub hosts: Hosts,
    dir: TempDir,
    /// Holds the mount namespace of the agents.
    mounts: Process,
    agents: BTreeMap<usize, Process>,
    /// Arguments of every agent.
    args: Vec<String>,
}

/// A container: a namespace with an interface in an overlay network.
#[derive(Debug)]
pub struct Container {
    process: Process,
    /// Its key in the table of endpoints; one more for each address.
    pub endpoint: String,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<String>,
    /// Its hardware address.
    pub mac: String,
    /// The network.
    pub network: String,
    veth: String,
}

impl Overlay {
    /// Makes hosts with addresses 10.77.`subnet`.2 and so on, and starts an agent on each with a config file. `HOST_V6` in the arguments
    /// stands for the IPv6 address of the host.
    pub fn up(name: &str, count: usize, subnet: u8, config: &str, args: &[&str]) -> Result<Self> {
        let options = Options {
            subnet,
            ..Options::default()
        };
        let hosts = Hosts::up(name, count, &options)?;
        let mut sleep = Command::new("setpriv");
        sleep.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--propagation",
            "private",
        ]);
        sleep.args(["sh", "-c", "echo ready; exec sleep infinity"]);
        let mounts = Process::start_command(sleep)?;
        mounts.line("ready", 1)?;
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("config.json"), config)?;
        let mut bed = Self {
            hosts,
            dir,
            mounts,
            agents: BTreeMap::new(),
            args: args.iter().map(ToString::to_string).collect(),
        };
        for host in 1..=count {
            bed.start(host)?;
        }
        let ids: Vec<String> = (1..=count).map(|host| format!("n{host}")).collect();
        for host in 1..=count {
            until("all agents to know each other", SOON, || {
                let members = bed.get(host, "/v1/members")?;
                let members = members["members"].as_array().cloned().unwrap_or_default();
                let alive = members.iter().filter(|member| member["state"] == "alive");
                Ok(alive.count() == ids.len())
            })?;
        }
        Ok(bed)
    }

    /// Starts the agent of a host, with the state directory of the one before it.
    pub fn start(&mut self, host: usize) -> Result<()> {
        self.start_with(host, &[])
    }

    /// Starts the agent of a host with arguments beyond those of all.
    pub fn start_with(&mut self, host: usize, more: &[&str]) -> Result<()> {
        let state = self.dir.path().join(format!("state{host}"));
        let namespaces = self.namespaces(host);
        std::fs::create_dir_all(&namespaces)?;
        let seeds = [
            self.hosts.address(1)?,
            self.hosts.address(2.min(self.hosts.state()?.count))?,
        ];
        let mut command = self.on(host)?;
        command.arg(binary()?).arg("agent");
        command
            .arg("--config")
            .arg(self.dir.path().join("config.json"));
        command.args(["--node-id", &format!("n{host}"), "--insecure-gossip"]);
        command.args([
            "--network-diagnostic-port",
            &PORT.to_string(),
            "--data-path",
            "on",
        ]);
        command.args(["--join", &seeds.map(|seed| seed.to_string()).join(",")]);
        command.arg("--state-dir").arg(state);
        command.arg("--data-path-dir").arg(namespaces);
        let v6 = self.hosts.address_v6(host)?.to_string();
        command.args(self.args.iter().map(|arg| arg.replace("HOST_V6", &v6)));
        command.args(more);
        let process = Process::start_command(command)?;
        process.line("diagnostic server listening on ", 1)?;
        self.agents.insert(host, process);
        Ok(())
    }

    /// Returns the beginning of a command on a host, in the mount namespace of the agents.
    pub fn on(&self, host: usize) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.mounts.id()));
        let namespace = self.hosts.state()?.namespace(host);
        command.arg(format!("--net=/run/netns/{namespace}"));
        Ok(command)
    }

    /// Returns the agent of a host.
    pub fn agent(&self, host: usize) -> Result<&Process> {
        self.agents
            .get(&host)
            .with_context(|| format!("host {host} has no agent"))
    }

    /// Ends the agent of a host by a signal.
    pub fn end(&mut self, host: usize, signal: Signal) -> Result<()> {
        let mut agent = self
            .agents
            .remove(&host)
            .with_context(|| format!("host {host} has no agent"))?;
        agent.signal(signal)?;
        agent.exit_code()?;
        Ok(())
    }

    /// Asks the agent of a host.
    pub fn send(&self, host: usize, method: &str, target: &str, body: &str) -> Result<Reply> {
        self.hosts.enter(host, || {
            let addr = (Ipv4Addr::LOCALHOST, PORT).into();
            http::Connection::open(addr)?.send(method, target, body)
        })?
    }

    /// Asks the agent of a host for JSON.
    pub fn get(&self, host: usize, target: &str) -> Result<Value> {
        let reply = self.send(host, "GET", target, "")?;
        ensure!(
            reply.status == 200,
            "{target} answered {}: {}",
            reply.status,
            reply.body
        );
        serde_json::from_str(&reply.body).with_context(|| reply.body.clone())
    }

    /// Returns what the agent of a host tells of the data path of a network, which an agent that has just started takes up
    /// a moment later.
    pub fn report(&self, host: usize, network: &str) -> Result<Value> {
        let mut told = Value::Null;
        until("the network to be told of", SOON, || {
            let mut all = self.get(host, "/v1/datapath")?;
            let networks = all["networks"].as_array_mut().map(std::mem::take);
            let mut networks = networks.into_iter().flatten();
            if let Some(report) = networks.find(|report| report["network"] == network) {
                told = report;
            }
            Ok(!told.is_null())
        })
        .with_context(|| format!("host {host} knows no network {network}"))?;
        Ok(told)
    }

    /// Returns how many operations the kernel of a host is away from what it should hold of a network.
    pub fn differs(&self, host: usize, network: &str) -> Result<u64> {
        let plan = self.get(host, &format!("/v1/datapath/{network}/plan"))?;
        plan["operations"]
            .as_u64()
            .context("a number of operations")
    }

    /// Returns the directory of the networks' namespaces on a host.
    #[must_use]
    pub fn namespaces(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("netns{host}"))
    }

    /// Returns the file of a network's namespace on a host, as seen from outside of the agents' mount namespace.
    pub fn namespace(&self, host: usize, network: &str) -> Result<PathBuf> {
        let dir = self.namespaces(host);
        for entry in std::fs::read_dir(&dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{network}-")) && !name.ends_with(".id") {
                let root = PathBuf::from(format!("/proc/{}/root", self.mounts.id()));
                let below = dir.strip_prefix("/").unwrap_or(&dir);
                return Ok(root.join(below).join(name));
            }
        }
        bail!("network {network} has no namespace on host {host}")
    }

    /// Runs a command of iproute2 in the namespace of a network on a host, as somebody who meddles would.
    pub fn meddle(&self, host: usize, network: &str, line: &str) -> Result<String> {
        run_in(&self.namespace(host, network)?, line)
    }

    /// Starts a container on a host and tells the cluster. `number` is the last byte of its addresses.
    pub fn container(
        &self,
        host: usize,
        network: &str,
        number: u8,
        subnets: &[&str],
    ) -> Result<Container> {
        let container = Container::new(network, number, subnets)?;
        self.attach(host, &container)?;
        self.register(host, &container)?;
        Ok(container)
    }

    /// Starts a container on a host and tells nobody: what will take over from another one.
    pub fn waiting_container(
        &self,
        host: usize,
        network: &str,
        number: u8,
        subnets: &[&str],
    ) -> Result<Container> {
        let container = Container::new(network, number, subnets)?;
        self.attach(host, &container)?;
        Ok(container)
    }

    /// Puts the interface of a container on a host.
    fn attach(&self, host: usize, container: &Container) -> Result<()> {
        let network = &container.network;
        until("the network to be there", SOON, || {
            Ok(self
                .namespace(host, network)
                .is_ok_and(|path| bridge(&path).is_ok()))
        })?;
        let report = self.report(host, network)?;
        let mtu = &report["segments"][0]["mtu"];
        container.join(&self.namespace(host, network)?, &mtu.to_string())
    }

    /// Tells the cluster that a container is on a host.
    pub fn register(&self, host: usize, container: &Container) -> Result<()> {
        for (index, address) in container.addresses.iter().enumerate() {
            let (network, endpoint) = (&container.network, &container.endpoint);
            let target = format!("/v1/datapath/{network}/endpoints/{endpoint}-{index}");
            let body = format!(
                "{{\"address\":\"{address}\",\"mac\":\"{}\"}}",
                container.mac
            );
            let reply = self.send(host, "PUT", &target, &body)?;
            ensure!(
                reply.status == 204,
                "{target} answered {}: {}",
                reply.status,
                reply.body
            );
        }
        Ok(())
    }

    /// Writes a record of an endpoint through the agent of a host, in place of what was under its key.
    pub fn write_endpoint(
        &self,
        host: usize,
        network: &str,
        key: &str,
        record: &EndpointRecord,
    ) -> Result<()> {
        let value = http::encode(&STANDARD.encode(record.encode()));
        let query = format!("nid={network}&tname={ENDPOINT_TABLE}&key={key}&value={value}");
        let mut answer = self
            .send(host, "GET", &format!("/createentry?{query}"), "")?
            .body;
        if answer.contains("already exists") {
            answer = self
                .send(host, "GET", &format!("/updateentry?{query}"), "")?
                .body;
        }
        ensure!(answer == "OK", "record {key} was not written: {answer}");
        Ok(())
    }

    /// Deletes a record of an endpoint through the agent of a host.
    pub fn delete_endpoint(&self, host: usize, network: &str, key: &str) -> Result<()> {
        let target = format!("/deleteentry?nid={network}&tname={ENDPOINT_TABLE}&key={key}");
        let answer = self.send(host, "GET", &target, "")?.body;
        ensure!(answer == "OK", "record {key} was not deleted: {answer}");
        Ok(())
    }

    /// Lets the agent of a host look at the services of a network now, so that it does not by itself in the next seconds.
    pub fn look_at_services(&self, host: usize, network: &str) -> Result<()> {
        let target = format!("/v1/services/{network}/repair");
        let reply = self.send(host, "POST", &target, "")?;
        ensure!(reply.status == 200, "{target}: {}", reply.body);
        Ok(())
    }

    /// Takes the interface of a container away from a host, and tells nobody.
    pub fn detach(&self, host: usize, container: &Container) -> Result<()> {
        let line = format!("ip link del {}", container.veth);
        self.meddle(host, &container.network, &line)?;
        Ok(())
    }
}

impl Container {
    /// Starts one that is joined to nothing. `number` is the last byte of its addresses.
    pub(crate) fn new(network: &str, number: u8, subnets: &[&str]) -> Result<Self> {
        let mut sleep = Command::new("setpriv");
        sleep.args(["--pdeathsig", "KILL", "unshare", "--net"]);
        sleep.args([
            "sh",
            "-c",
            "ip link set lo up; echo ready; exec sleep infinity",
        ]);
        let process = Process::start_command(sleep)?;
        process.line("ready", 1)?;
        let address = |subnet: &&str| {
            let (net, prefix) = subnet.split_once('/').context("a subnet with a prefix")?;
            let ip = match net.parse()? {
                IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() + u32::from(number)).into()),
                IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + u128::from(number)).into()),
            };
            Ok(format!("{ip}/{prefix}"))
        };
        Ok(Self {
            endpoint: format!("endpoint{number}"),
            addresses: subnets.iter().map(address).collect::<Result<_>>()?,
            mac: format!("02:42:0a:00:00:{number:02x}"),
            network: network.to_owned(),
            veth: format!("c{}", process.id()),
            process,
        })
    }

    /// Joins it to the bridge in the namespace of its network.
    pub(crate) fn join(&self, namespace: &Path, mtu: &str) -> Result<()> {
        let bridge = bridge(namespace)?;
        let (veth, pid) = (&self.veth, self.process.id());
        run_in(
            namespace,
            &format!("ip link add {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pid}"),
        )?;
        run_in(namespace, &format!("ip link set {veth} master {bridge} up"))?;
        let inside = self.path();
        run_in(
            &inside,
            &format!("ip link set eth0 address {} up", self.mac),
        )?;
        for address in &self.addresses {
            run_in(&inside, &format!("ip addr add {address} dev eth0 nodad"))?;
        }
        Ok(())
    }

    /// Returns the file of its namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.process.id()))
    }

    /// Runs something in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        enter_file(&self.path(), work)
    }

    /// Returns one of its addresses, without the prefix length.
    pub fn ip(&self, index: usize) -> Result<IpAddr> {
        let address = self.addresses.get(index).context("so many addresses")?;
        let bare = address.split('/').next().unwrap_or_default();
        Ok(bare.parse()?)
    }
}

/// Returns the name of the only bridge in a namespace.
fn bridge(namespace: &Path) -> Result<String> {
    let links = run_in(namespace, "ip -o link show type bridge")?;
    let name = links.split(": ").nth(1).context("no bridge")?;
    Ok(name.split('@').next().unwrap_or(name).to_owned())
}

/// Runs a command in the network namespace that a file stands for.
pub(crate) fn run_in(namespace: &Path, line: &str) -> Result<String> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display()));
    let output = command.args(line.split_whitespace()).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}", error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a line of shell in the network namespace that a file stands for.
pub(crate) fn shell_in(namespace: &Path, line: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display()));
    let output = command.args(["sh", "-c", line]).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{line}: {}", error.trim());
    Ok(())
}
