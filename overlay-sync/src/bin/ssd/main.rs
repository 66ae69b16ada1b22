//! `ssd`, the Swarm service driller: compares what the tables say of services with what the kernel balances by, or what the
//! nodes of a network hold. After Docker's script of that name, whose lines it prints.
//!
//! It asks the agent of this host and needs no rights of its own. What was answered becomes facts (`facts`), those are judged
//! (`verify`, `gossip`) and printed (`print`) without asking anybody.

mod args;
mod ask;
mod facts;
mod gossip;
mod print;
mod verify;

#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::time::sleep;

use self::args::{Args, Command};
use self::ask::Agent;
use self::facts::{About, Balanced, Consistency, Services};
use self::gossip::Gossip;
use self::verify::NetworkCheck;

/// How often what differs is looked at.
const LOOKS: usize = 3;
/// Between two looks: longer than a change is on its way from the tables to the kernel, or between nodes.
const PAUSE: Duration = Duration::from_millis(300);

/// What came of a run, as its exit code.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Verdict {
    /// Nothing differs.
    Right,
    /// Something differs.
    Wrong,
    /// Something could not be checked.
    Unknown,
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        Self::from(match verdict {
            Verdict::Right => 0,
            Verdict::Wrong => 1,
            // 2 is for wrong usage.
            Verdict::Unknown => 3,
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::read();
    match run(&args).await {
        Ok(verdict) => verdict.into(),
        Err(error) => {
            complain(&format!("agent at {}: {error:#}", args.server.addr()));
            Verdict::Unknown.into()
        }
    }
}

async fn run(args: &Args) -> Result<Verdict> {
    let agent = Agent::new(args.server.client()?);
    match (args.command, &args.network) {
        (Some(Command::GossipConsistency), Some(network)) => {
            compare_nodes(&agent, network, args.json).await
        }
        (Some(Command::GossipConsistency), None) | (None, _) => check_services(&agent, args).await,
    }
}

async fn check_services(agent: &Agent, args: &Args) -> Result<Verdict> {
    let services: Services = agent.services().await?;
    let chosen = verify::choose(&services, args.network.as_deref());
    let mut verdict = Verdict::Right;
    let mut told = Vec::new();
    let mut say = |line: &str| {
        if !args.json {
            print_line(line);
        }
    };
    if chosen.is_empty() {
        say("No network of this node has its services balanced");
    }
    for network in chosen {
        match check_network(agent, &services.node, &network, args.repair, &mut say).await {
            Ok((check, json)) => {
                verdict = verdict.max(check.verdict());
                told.push(json);
            }
            Err(error) => {
                verdict = Verdict::Unknown;
                complain(&format!("network {network}: {error:#}"));
                told.push(json!({"network": network, "error": format!("{error:#}")}));
            }
        }
    }
    if args.json {
        let is_ok = verdict == Verdict::Right;
        let document = json!({"node": services.node, "ok": is_ok, "networks": told});
        print_line(&serde_json::to_string_pretty(&document).context("answers are JSON")?);
    }
    Ok(verdict)
}

/// Checks a network and, if asked to, sets right what differs and checks again; returns what the last check has shown.
async fn check_network(
    agent: &Agent,
    node: &str,
    network: &str,
    repair: bool,
    say: &mut impl FnMut(&str),
) -> Result<(NetworkCheck, serde_json::Value)> {
    let found = look(agent, node, network).await?;
    print::network(&found).iter().for_each(|line| say(line));
    let json = |check: &NetworkCheck| serde_json::to_value(check).context("facts are JSON");
    if !repair || found.ok {
        let told = json(&found)?;
        return Ok((found, told));
    }
    let done = match agent.repair(network).await {
        Ok(repaired) => repaired.done,
        Err(error) => {
            complain(&format!("network {network}: repair: {error:#}"));
            Vec::new()
        }
    };
    done.iter()
        .for_each(|operation| say(&format!("repaired: {operation}")));
    let after = look(agent, node, network).await?;
    print::network(&after).iter().for_each(|line| say(line));
    if !after.ok && after.settling {
        complain(&format!(
            "network {network}: the agent has just started and does not know all records; what is not wanted goes when it does, \
             a minute after its start at the latest"
        ));
    }
    let mut told = json(&after)?;
    told["before"] = json(&found)?;
    told["repaired"] = json!(done);
    Ok((after, told))
}

/// Asks for a network until nothing differs, or has done so for some time.
async fn look(agent: &Agent, node: &str, network: &str) -> Result<NetworkCheck> {
    let mut look = 1;
    loop {
        let balanced: Balanced = agent.balanced(network).await?;
        let check = NetworkCheck::new(node, &balanced);
        if check.ok || look == LOOKS {
            return Ok(check);
        }
        look += 1;
        sleep(PAUSE).await;
    }
}

async fn compare_nodes(agent: &Agent, network: &str, as_json: bool) -> Result<Verdict> {
    let About { id } = agent.about().await?;
    let mut silent = Vec::new();
    let mut look = 1;
    let gossip = loop {
        let found: Consistency = agent.consistency(network).await?;
        let gossip = Gossip::new(&id, found, &silent);
        if !gossip.differs() || look == LOOKS {
            break gossip;
        }
        // Somebody who has not answered is down by the next look, and not asked again.
        silent = gossip.silent();
        look += 1;
        sleep(PAUSE).await;
    };
    if as_json {
        print_line(&serde_json::to_string_pretty(&gossip).context("facts are JSON")?);
    } else {
        print::gossip(&gossip)
            .iter()
            .for_each(|line| print_line(line));
    }
    Ok(gossip.verdict())
}

/// Prints a line on stderr.
fn complain(line: &str) {
    // Without a reader of stderr the exit code has to do.
    drop(writeln!(std::io::stderr(), "ssd: {line}"));
}

/// Prints a line on stdout.
fn print_line(line: &str) {
    // Without a reader of stdout the exit code has to do.
    drop(writeln!(std::io::stdout(), "{line}"));
}
