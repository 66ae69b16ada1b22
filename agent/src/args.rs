//! What can be asked for: commands, flags and config file keys, with defaults and units.
//!
//! [`AgentArgs`] is both the flags of `networkdb agent` and the keys of its config file, so the two cannot drift apart.
//! A field that was not given is empty; `config` decides what that means.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use diagnostic::flags::ServerArgs;
use networkdb::{NetworkId, NodeId};
use overlay_sync::NetworkConfig;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// An eventually consistent, gossip-replicated state database. Without a command it runs the demo.
#[derive(Debug, Parser)]
#[command(name = "networkdb", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) demo: DemoArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a few real nodes in one process on loopback and shows them agree
    Demo(DemoArgs),
    /// Runs a node of a cluster until SIGTERM or Ctrl-C, and then leaves the cluster
    ///
    /// Prints one line per listener on stdout; logs go to stderr. SIGHUP reads the config file and the key file again:
    /// the diagnostic server goes on, off or moves, keys and log level change; everything else waits for a restart. A
    /// second SIGTERM or Ctrl-C exits at once.
    Agent(Box<AgentArgs>),
    /// Prints a key file with a fresh random key of 32 bytes
    ///
    /// The agent refuses a key file that others may read, so write it like this: (umask 077; networkdb keygen > FILE)
    Keygen,
    /// Collects what somebody who looks for a fault needs, in one archive, and flags what looks wrong
    ///
    /// The archive holds what the agent on this machine tells (node, members, networks, tables and their digests, counters,
    /// settings, last log lines) and what the kernel does (links, addresses, routes, neighbours, FDB, nftables, iptables,
    /// IPVS, IPsec, sockets) on the machine and in each of its named network namespaces, each as a file with its command.
    /// Keys and tokens are in none of them. The summary, which is printed too, flags addresses that two have, peers whose
    /// digest differs, members that are not well, entries without owner, losses, and commands that are missing. Run it as
    /// root, or much of the kernel's state is missing.
    ///
    /// Exit codes: 0 archive written; 1 archive written and an address overlaps or a digest differs, or the archive could
    /// not be written; 2 wrong usage; 3 archive written, but the agent did not answer, or a peer did not when it was asked
    /// what it holds.
    Support(Box<SupportArgs>),
    /// Shows, checks, repairs or removes the VXLAN data path of this host
    ///
    /// Needs an agent with --data-path on, except for cleanup.
    Datapath(DatapathArgs),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DatapathArgs {
    #[command(subcommand)]
    pub(crate) action: DatapathAction,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DatapathAction {
    /// Prints what would have to be done to make the kernel hold what the tables say; changes nothing
    ///
    /// Exit codes: 0 printed; 2 wrong usage; 3 could not be asked.
    Plan(AskArgs),
    /// Compares the kernel with the tables
    ///
    /// Exit codes: 0 nothing differs; 1 something differs, and is printed; 2 wrong usage; 3 could not be asked.
    Verify(AskArgs),
    /// Compares the kernel with the tables and sets right what differs
    ///
    /// Exit codes: 0 nothing differs any more, what was done is printed; 1 the kernel refused something; 2 wrong usage; 3
    /// could not be asked.
    Repair(AskArgs),
    /// Removes every namespace that an agent made on this host, with the devices and rows in it, and nothing else
    ///
    /// Needs root and no agent. Endpoints that are still attached lose their network. Exit codes: 0 removed, or nothing
    /// was there; 1 something could not be removed; 2 wrong usage.
    Cleanup(CleanupArgs),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Only this network
    #[arg(long, value_name = "NID")]
    pub(crate) network: Option<NetworkId>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CleanupArgs {
    /// Directory of the namespaces, as --data-path-dir of the agent
    #[arg(long, value_name = "DIR", default_value = overlay_sync::kernel::netns::DIR)]
    pub(crate) data_path_dir: PathBuf,
    /// Only this network
    #[arg(long, value_name = "NID")]
    pub(crate) network: Option<NetworkId>,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SupportArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The archive, a new file; - for stdout [default: networkdb-support-HOST-TIME.tar.gz in the current directory]
    #[arg(short, long, value_name = "FILE.tar.gz")]
    pub(crate) output: Option<PathBuf>,
    /// Leave the values of all tables out, and addresses that the summary would take from them
    #[arg(long)]
    pub(crate) redact: bool,
    /// Config file of the agent, to include its settings; files that it names are not read
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// How many nodes to run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub(crate) nodes: u16,
    /// Diagnostic port of the first node, the others count up from it; 0 picks free ones
    #[arg(long, value_name = "PORT", default_value_t = 2000)]
    pub(crate) network_diagnostic_port: u16,
}

/// Flags of `networkdb agent` and, `config` aside, keys of its config file.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct AgentArgs {
    /// JSON file with the names of these flags as keys, as in {"network-diagnostic-port": 2000}; a flag beats the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// Directory that keeps node id, generation and clocks over restarts [default: none, the node is a new one each time]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Name of this node, unique in the cluster [default: the one in the state directory, else random]
    #[arg(long, value_name = "ID")]
    pub(crate) node_id: Option<NodeId>,
    /// Name of this machine [default: the system's]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Cluster to belong to; nodes of different clusters refuse each other [default: default]
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<String>,
    /// Address to listen on for gossip [default: 0.0.0.0 with keys or --insecure-gossip, else 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) bind_addr: Option<IpAddr>,
    /// UDP and TCP port for gossip; 0 picks a free one [default: 7946]
    #[arg(long, value_name = "PORT")]
    pub(crate) bind_port: Option<u16>,
    /// Address that others reach this node at [default: the bound one; for 0.0.0.0 the default route's]
    #[arg(long, value_name = "IP")]
    pub(crate) advertise_addr: Option<IpAddr>,
    /// Members to join through, one that answers is enough; tried again until then [default port: 7946]
    #[arg(long, value_name = "HOST[:PORT],...", value_delimiter = ',')]
    #[serde(deserialize_with = "join_list")]
    pub(crate) join: Vec<String>,
    /// Network to attach to at start; may be given more than once
    #[arg(long, value_name = "NID")]
    #[serde(deserialize_with = "network_list")]
    pub(crate) network: Vec<NetworkId>,
    /// File with a base64 key of 16, 24 or 32 bytes a line, the first seals and all open; see `networkdb keygen`
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Allow gossip in the open on addresses that are not loopback
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) insecure_gossip: Option<bool>,
    /// Timing: silent deaths are seen within 4 s (default), 2 s (fast), or later on slow links (wan) [default: default]
    #[arg(long)]
    pub(crate) preset: Option<Preset>,
    /// Address of the diagnostic server [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) diagnostic_addr: Option<IpAddr>,
    /// Port of the diagnostic server; 0 picks a free one [default: none, the server is off]
    #[arg(long, value_name = "PORT")]
    pub(crate) network_diagnostic_port: Option<u16>,
    /// File with tokens, one a line, of which every diagnostic request has to bring one
    #[arg(long, value_name = "FILE")]
    pub(crate) diagnostic_token_file: Option<PathBuf>,
    /// Certificate of the diagnostic server, PEM; it then speaks TLS
    #[arg(long, value_name = "FILE")]
    pub(crate) diagnostic_tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) diagnostic_tls_key: Option<PathBuf>,
    /// Roots of the certificates that diagnostic clients have to bring, PEM
    #[arg(long, value_name = "FILE")]
    pub(crate) diagnostic_tls_client_ca: Option<PathBuf>,
    /// Name by which diagnostic requests may call this node, beside its addresses; may be given more than once
    #[arg(long, value_name = "NAME")]
    #[serde(deserialize_with = "text_list")]
    pub(crate) diagnostic_host: Vec<String>,
    /// Refuse diagnostic requests that change something
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) diagnostic_read_only: Option<bool>,
    /// Allow a diagnostic server without tokens and client certificates on addresses that are not loopback
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) diagnostic_insecure: Option<bool>,
    /// Program what the tables say into the kernel: VXLAN devices, forwarding rows, neighbours. Needs root [default: off]
    #[arg(long)]
    pub(crate) data_path: Option<Switch>,
    /// Address of this host that other hosts send packets of containers to [default: the advertised one]
    #[arg(long, value_name = "IP")]
    pub(crate) data_path_addr: Option<IpAddr>,
    /// UDP port of all VXLAN devices, the same on all hosts [default: 4789]
    #[arg(long, value_name = "PORT")]
    pub(crate) data_path_port: Option<NonZeroU16>,
    /// Whether the ways to other hosts are probed through the tunnels, which takes CAP_NET_RAW [default: on]
    #[arg(long)]
    pub(crate) data_path_probe: Option<Switch>,
    /// How long rows are kept when hosts fail together and the gossip is suspected, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) data_path_hold: Option<u32>,
    /// Directory of the networks' namespaces [default: /run/networkdb/netns]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_path_dir: Option<PathBuf>,
    /// What balances connections to services: IPVS of the kernel, nftables, or nothing; auto takes the first of the two that
    /// is there [default: auto]
    #[arg(long)]
    pub(crate) load_balancer: Option<LoadBalancer>,
    /// How long connections to an endpoint that is about to end are kept at most, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) drain_time: Option<u32>,
    /// Make devices as this system does: they learn, and report what they miss
    #[arg(long, value_name = "SYSTEM")]
    pub(crate) compat: Option<Compat>,
    /// Layouts of networks, by their ids; in the file only, as in {"overlay-networks": {"NID": {"segments":
    /// [{"vni": 4097, "subnets": ["10.0.1.0/24"]}]}}}
    #[arg(skip)]
    pub(crate) overlay_networks: BTreeMap<NetworkId, NetworkConfig>,
    /// Least level that is logged [default: info]
    #[arg(long)]
    pub(crate) log_level: Option<LogLevel>,
    /// Form of the log lines [default: text]
    #[arg(long)]
    pub(crate) log_format: Option<LogFormat>,
}

/// Timing of the protocol.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preset {
    #[default]
    Default,
    Fast,
    Wan,
}

/// Whether something is done.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Switch {
    #[default]
    Off,
    On,
}

/// What balances connections to services.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LoadBalancer {
    #[default]
    Auto,
    Ipvs,
    Nftables,
    Off,
}

/// A system whose devices are made alike.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Compat {
    Docker,
}

/// Least level that is logged.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

impl AgentArgs {
    /// Fills what was not given with what `file` says.
    pub(crate) fn or(self, file: Self) -> Self {
        fn list<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
            if flags.is_empty() { file } else { flags }
        }
        Self {
            config: self.config,
            state_dir: self.state_dir.or(file.state_dir),
            node_id: self.node_id.or(file.node_id),
            hostname: self.hostname.or(file.hostname),
            cluster: self.cluster.or(file.cluster),
            bind_addr: self.bind_addr.or(file.bind_addr),
            bind_port: self.bind_port.or(file.bind_port),
            advertise_addr: self.advertise_addr.or(file.advertise_addr),
            join: list(self.join, file.join),
            network: list(self.network, file.network),
            key_file: self.key_file.or(file.key_file),
            insecure_gossip: self.insecure_gossip.or(file.insecure_gossip),
            preset: self.preset.or(file.preset),
            diagnostic_addr: self.diagnostic_addr.or(file.diagnostic_addr),
            network_diagnostic_port: self
                .network_diagnostic_port
                .or(file.network_diagnostic_port),
            diagnostic_token_file: self.diagnostic_token_file.or(file.diagnostic_token_file),
            diagnostic_tls_cert: self.diagnostic_tls_cert.or(file.diagnostic_tls_cert),
            diagnostic_tls_key: self.diagnostic_tls_key.or(file.diagnostic_tls_key),
            diagnostic_tls_client_ca: self
                .diagnostic_tls_client_ca
                .or(file.diagnostic_tls_client_ca),
            diagnostic_host: list(self.diagnostic_host, file.diagnostic_host),
            diagnostic_read_only: self.diagnostic_read_only.or(file.diagnostic_read_only),
            diagnostic_insecure: self.diagnostic_insecure.or(file.diagnostic_insecure),
            data_path: self.data_path.or(file.data_path),
            data_path_addr: self.data_path_addr.or(file.data_path_addr),
            data_path_port: self.data_path_port.or(file.data_path_port),
            data_path_hold: self.data_path_hold.or(file.data_path_hold),
            data_path_dir: self.data_path_dir.or(file.data_path_dir),
            data_path_probe: self.data_path_probe.or(file.data_path_probe),
            load_balancer: self.load_balancer.or(file.load_balancer),
            drain_time: self.drain_time.or(file.drain_time),
            compat: self.compat.or(file.compat),
            overlay_networks: file.overlay_networks,
            log_level: self.log_level.or(file.log_level),
            log_format: self.log_format.or(file.log_format),
        }
    }

    /// Returns the address of the diagnostic server, none when it is off.
    pub(crate) fn diagnostic_addr(&self) -> Option<std::net::SocketAddr> {
        let ip = self.diagnostic_addr.unwrap_or(Ipv4Addr::LOCALHOST.into());
        self.network_diagnostic_port.map(|port| (ip, port).into())
    }
}

/// Reads `"a,b"` or `["a", "b"]`.
fn join_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let members = deserializer.deserialize_any(Texts)?;
    Ok(members
        .iter()
        .flat_map(|text| text.split(','))
        .map(str::to_owned)
        .collect())
}

/// Reads `"a"` or `["a", "b"]`.
fn text_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_any(Texts)
}

/// Reads `"net1"` or `["net1", "net2"]`; a comma is part of the name.
fn network_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NetworkId>, D::Error> {
    let names = deserializer.deserialize_any(Texts)?;
    names
        .into_iter()
        .map(|name| NetworkId::new(name).map_err(serde::de::Error::custom))
        .collect()
}

/// Takes one text or a list of them.
struct Texts;

impl<'de> Visitor<'de> for Texts {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = items.next_element()? {
            texts.push(text);
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn commands_and_flags_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_command_means_the_demo_with_its_flags() {
        let args = Args::try_parse_from(["networkdb", "--nodes", "5"]).unwrap();
        assert!(args.command.is_none());
        assert_eq!(args.demo.nodes, 5);
        assert_eq!(args.demo.network_diagnostic_port, 2000);
    }

    #[test]
    fn every_flag_of_the_agent_is_a_key_of_the_file() {
        let mut command = Args::command();
        let agent = command.find_subcommand_mut("agent").unwrap();
        for flag in agent.get_arguments().filter_map(|arg| arg.get_long()) {
            let text = format!("{{\"{flag}\": null}}");
            let error = serde_json::from_str::<AgentArgs>(&text).err();
            let unknown = error.is_some_and(|error| error.to_string().contains("unknown field"));
            assert_eq!(unknown, flag == "config", "{flag}");
        }
    }

    #[test]
    fn lists_are_texts_or_lists_and_only_members_split_at_commas() {
        let text = r#"{"join": "a,b:1", "network": "n,1"}"#;
        let args: AgentArgs = serde_json::from_str(text).unwrap();
        assert_eq!(args.join, ["a", "b:1"]);
        assert_eq!(args.network, [NetworkId::new("n,1").unwrap()]);
        let text = r#"{"join": ["a", "b"], "network": []}"#;
        let args: AgentArgs = serde_json::from_str(text).unwrap();
        assert_eq!(args.join, ["a", "b"]);
        assert!(args.network.is_empty());
    }

    #[test]
    fn insecure_gossip_may_be_taken_back_by_a_flag() {
        let parse = |flag| {
            let args = Args::try_parse_from(["networkdb", "agent", flag]).unwrap();
            let Some(Command::Agent(flags)) = args.command else {
                panic!("not the agent");
            };
            let file = AgentArgs {
                insecure_gossip: Some(true),
                ..AgentArgs::default()
            };
            flags.or(file).insecure_gossip
        };
        assert_eq!(parse("--insecure-gossip"), Some(true));
        assert_eq!(parse("--insecure-gossip=false"), Some(false));
    }
}
