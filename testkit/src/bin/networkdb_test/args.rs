//! What can be asked for: the commands of Docker's program with their arguments, and a few flags of ours.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Parser, Subcommand, ValueEnum, value_parser};
use networkdb::node::GOSSIP_PORT;

/// Longest time that can be asked for: a day.
const SECONDS_MAX: u64 = 86_400;

/// Tests a cluster of network databases through their diagnostic servers, as Docker's program of that name does.
///
/// Log lines go to stderr. Exit codes: 0 done, 1 failed or wrong usage.
#[derive(Debug, Parser)]
#[command(name = "networkdb-test", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) mode: Mode,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Mode {
    /// Runs a node of the cluster under test until SIGTERM or Ctrl-C, and then leaves the cluster
    ///
    /// TASK_ID in the environment names the node. Gossip is not encrypted and the diagnostic server lets everybody in: run
    /// it on networks for tests. Prints one line per listener on stdout.
    Server(ServerArgs),
    /// Drives the servers of a service, which are all addresses of the name tasks.SERVICE
    Client(ClientArgs),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServerArgs {
    /// Port of the diagnostic server, which listens on all addresses; 0 for a free one
    pub(crate) port: u16,
    /// Address of the gossip sockets, instead of the first IPv4 address of eth0. The diagnostic server listens nowhere else
    /// either if it is a loopback address
    #[arg(long, value_name = "IP")]
    pub(crate) bind_addr: Option<IpAddr>,
    /// Port of the gossip sockets; 0 for a free one
    #[arg(long, value_name = "PORT", default_value_t = GOSSIP_PORT)]
    pub(crate) bind_port: u16,
    /// Directory that keeps the node's state, so that it resumes after a crash instead of coming back as a new one
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClientArgs {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// Flags that stand before the command or behind its arguments.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How long the tables have to stay as they are once they have converged: 500ms, 10s, 2m
    #[arg(long, global = true, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(crate) hold: Duration,
    /// How long to wait for the tables to converge, for a server to become ready and for any answer
    #[arg(long, global = true, value_name = "TIME", default_value = "3m", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// File to look tasks.SERVICE up in before the system is asked, as /etc/hosts is written: IP NAME...
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) hosts: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Waits until all servers are ready
    Ready(Service),
    /// Joins each server to all others
    Join(Service),
    /// Takes all servers out of the cluster; their processes stay
    Leave(Service),
    /// Checks that every server lists so many members of the cluster
    ClusterPeers(ClusterPeers),
    /// Attaches all servers to a network
    JoinNetwork(OnNetwork),
    /// Detaches all servers from a network
    LeaveNetwork(OnNetwork),
    /// Checks that every server lists so many nodes of a network
    NetworkPeers(NetworkPeers),
    /// Checks the number of events that wait to be sent, on every server
    NetworkStatsQueue(Queue),
    #[command(flatten)]
    Write(WriteCommand),
    /// Sleeps for an hour
    Debug(Ignored),
    /// Fails
    Fail(Ignored),
}

/// The commands that write, and then wait until all servers show the same.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum WriteCommand {
    /// Writes keys on some servers at once; all servers must show all of them
    WriteKeys(Keys),
    /// Deletes what write-keys wrote; no server may show a key
    DeleteKeys(Keys),
    /// Writes a key each 100 ms on some servers; tables and watchers of all must show all of them
    WriteUniqueKeys(Timed),
    /// Writes a key and deletes it 100 ms later, again and again; tables and watchers must be empty in the end
    WriteDeleteUniqueKeys(Timed),
    /// As write-delete-unique-keys, and leaves the network and joins it again after each key
    WriteDeleteLeaveJoin(Timed),
    /// As write-delete-unique-keys; then the writers leave the network and join it again
    WriteDeleteWaitLeaveJoin(Timed),
    /// As write-unique-keys; then the writers leave the network, and with them their keys
    WriteWaitLeave(Timed),
    /// As write-unique-keys; then some writers leave the network and join it again, without their keys
    WriteWaitLeaveJoin(Leavers),
}

/// Where the servers are.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Service {
    /// Name of the service: its servers are what tasks.SERVICE resolves to
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) service: String,
    /// Port of their diagnostic servers
    #[arg(value_parser = value_parser!(u16).range(1..))]
    pub(crate) port: u16,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ClusterPeers {
    #[command(flatten)]
    pub(crate) service: Service,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NetworkPeers {
    #[command(flatten)]
    pub(crate) at: OnNetwork,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// What every server has to list, and how often it is asked.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Patience {
    /// Nodes that every server has to list
    pub(crate) expected: u64,
    /// How often to ask, a second apart
    #[arg(value_parser = value_parser!(u32).range(1..))]
    pub(crate) retries: u32,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OnNetwork {
    #[command(flatten)]
    pub(crate) service: Service,
    /// The network
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) network: String,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Queue {
    #[command(flatten)]
    pub(crate) at: OnNetwork,
    /// Which side of the limit the lengths have to be on; the limit itself will do
    pub(crate) side: Side,
    /// The limit
    #[arg(value_name = "N")]
    pub(crate) limit: u64,
}

/// A side of a limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Side {
    Lt,
    Gt,
}

/// A table, and how many servers write to it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Writers {
    #[command(flatten)]
    pub(crate) at: OnNetwork,
    /// The table
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) table: String,
    /// How many servers write
    #[arg(value_parser = value_parser!(u32).range(1..))]
    pub(crate) writers: u32,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Keys {
    #[command(flatten)]
    pub(crate) writers: Writers,
    /// How many keys each writes
    #[arg(value_parser = value_parser!(u64).range(1..=10_000_000))]
    pub(crate) keys: u64,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Timed {
    #[command(flatten)]
    pub(crate) writers: Writers,
    /// How long they write
    #[arg(value_parser = value_parser!(u64).range(1..=SECONDS_MAX))]
    pub(crate) seconds: u64,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Leavers {
    #[command(flatten)]
    pub(crate) timed: Timed,
    /// How many of the servers leave
    pub(crate) leavers: u32,
}

/// Arguments that Docker's program takes and does not look at.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Ignored {
    #[arg(hide = true)]
    pub(crate) ignored: Vec<String>,
}

/// Reads `500ms`, `10s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number with ms, s or m behind it".to_owned())?;
    let millis = match &text[digits.len()..] {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        _ => return Err("the unit is not ms, s or m".to_owned()),
    };
    millis
        .filter(|millis| *millis <= SECONDS_MAX * 1_000)
        .map(Duration::from_millis)
        .ok_or_else(|| "longer than a day".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn times_have_a_unit() {
        for (text, millis) in [("500ms", 500), ("10s", 10_000), ("2m", 120_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        }
        for text in [
            "",
            "10",
            "s",
            "1h",
            "-1s",
            "1.5s",
            "99999999999999999999s",
            "1441m",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_stand_before_the_command_or_behind_its_arguments() {
        for line in [
            "networkdb-test client --hold 2m --hosts f ready testdb 8000",
            "networkdb-test client ready testdb 8000 --hosts=f --hold=2m",
        ] {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            let Mode::Client(args) = args.mode else {
                panic!("{line} is the client");
            };
            assert_eq!(args.options.hold, Duration::from_secs(120));
            assert_eq!(args.options.timeout, Duration::from_secs(180));
            assert_eq!(args.options.hosts, Some("f".into()));
        }
    }
}
