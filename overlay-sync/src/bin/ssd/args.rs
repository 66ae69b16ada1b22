//! What can be asked for.

use clap::{Parser, ValueEnum};
use diagnostic::flags::ServerArgs;

/// Checks the services of this host, or whether the nodes of a network hold the same
///
/// Asks the agent of this host, which has to run with --data-path on, to compare what the tables say of services (the
/// control plane) with what the kernel balances by, IPVS or nftables: members and weights of each service, and the rules for
/// published ports on the host. Prints a line a service, OK or what differs, for each container of this host. After a
/// network comes the ingress network, if this host has one.
///
/// With gossip-consistency it asks each node attached to the network that is up for a hash of what its readers see of
/// endpoint_table (SHA-256 over the entries in the order of their keys: length of the key in 8 bytes, big-endian, key, and the
/// same of the value), and names the keys that differ from what this node holds, of all tables. That needs no data path.
///
/// Exit codes: 0 nothing differs; 1 something differs; 2 wrong usage; 3 something could not be checked.
#[derive(Debug, Parser)]
#[command(name = "ssd", version)]
pub(crate) struct Args {
    /// Network to check, by its id; `ingress` is the ingress network whatever its id [default: all networks]
    #[arg(value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    /// What to check instead of the services of this host
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Set right what differs, and check again
    #[arg(long)]
    pub(crate) repair: bool,
    /// Print one JSON document instead of lines
    #[arg(long)]
    pub(crate) json: bool,
}

/// What can be checked beside the services of this host.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Command {
    /// Whether the nodes of the network hold the same
    GossipConsistency,
}

impl Args {
    /// Reads the command line, or says what is wrong with it and ends the process.
    pub(crate) fn read() -> Self {
        let args = Self::parse();
        if let Err(error) = args.check() {
            error.exit();
        }
        args
    }

    /// Refuses what is asked for together and cannot be done so.
    pub(crate) fn check(&self) -> Result<(), clap::Error> {
        let refuse = |why: &str| {
            let kind = clap::error::ErrorKind::ArgumentConflict;
            Err(<Self as clap::CommandFactory>::command().error(kind, why))
        };
        if self.command.is_none() && self.network.as_deref() == Some("gossip-consistency") {
            return refuse("gossip-consistency comes after a network");
        }
        if self.command.is_some() && self.repair {
            return refuse("--repair is for services: nodes repair each other by themselves");
        }
        Ok(())
    }
}
