//! The client: which servers there are, and what each command asks of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use diagnostic::logfmt::Logger;
use testkit::e2e::http::encode;
use testkit::e2e::process::now;
use tokio::time::{sleep, timeout};

use crate::answer::is_ok;
use crate::args::{
    ClientArgs, Command, Keys, Leavers, OnNetwork, Options, Service, Timed, WriteCommand, Writers,
};
use crate::converge::Goal;
use crate::peers;
use crate::resolve::resolve;
use crate::servers::{Server, each, telling};
use crate::write::{Place, Work, Written, watch, write};

/// How long `debug` sleeps.
const DEBUG_TIME: Duration = Duration::from_secs(3_600);

/// How long a name may be unknown to a command that waits for servers.
const RESOLVE_WAIT: Duration = Duration::from_secs(10);
/// First and longest pause between two questions whether a server is ready, or what its name means.
const READY_PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];

/// Pause between leaving a network and joining it again.
const REJOIN_PAUSE: Duration = Duration::from_millis(100);

/// What a run of writers is to come to.
struct Run<'a> {
    args: &'a Writers,
    work: Work,
    watchers: Watchers,
    /// What the first few servers do when all is written.
    departure: Option<Departure>,
    /// How many of the first writers have keys that go in the end; all when none is given.
    without: Option<usize>,
}

/// What the watchers on the servers have to do with it.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Watchers {
    None,
    /// They begin to watch, as in the original, and are not looked at.
    Start,
    /// They have to be told of the same as the tables hold.
    Check,
}

/// The first few servers leave a network.
#[derive(Clone, Copy)]
struct Departure {
    leavers: usize,
    return_after: Option<Duration>,
}

/// Runs a command.
pub(crate) async fn run(args: &ClientArgs, log: &Logger) -> Result<()> {
    let given: Vec<_> = std::env::args_os().skip(2).collect();
    log.info(&format!("[CLIENT] Starting with arguments {given:?}"));
    let client = Client {
        options: &args.options,
        log,
    };
    match &args.command {
        Command::Ready(service) => client.ready(service).await,
        Command::Join(service) => peers::join(&client.servers(service).await?).await,
        Command::Leave(service) => peers::leave(&client.servers(service).await?, log).await,
        Command::ClusterPeers(args) => {
            let servers = client.servers(&args.service).await?;
            peers::check(&servers, "/clusterpeers", args.patience, log).await
        }
        Command::JoinNetwork(OnNetwork { service, network }) => {
            peers::join_network(&client.servers(service).await?, network).await
        }
        Command::LeaveNetwork(OnNetwork { service, network }) => {
            peers::leave_network(&client.servers(service).await?, network).await
        }
        Command::NetworkPeers(args) => {
            let servers = client.servers(&args.at.service).await?;
            let target = format!("/networkpeers?nid={}", encode(&args.at.network));
            peers::check(&servers, &target, args.patience, log).await
        }
        Command::NetworkStatsQueue(args) => {
            let servers = client.servers(&args.at.service).await?;
            let limit = (args.side, args.limit);
            peers::check_queues(&servers, &args.at.network, limit, log).await
        }
        Command::Write(command) => client.write(&plan(command)).await,
        Command::Debug(_) => {
            sleep(DEBUG_TIME).await;
            Ok(())
        }
        Command::Fail(_) => bail!("Test error condition with message: error error error"),
    }
}

/// What all commands need.
struct Client<'a> {
    options: &'a Options,
    log: &'a Logger,
}

impl Client<'_> {
    /// Returns the servers of a service.
    async fn servers(&self, service: &Service) -> Result<Vec<Server>> {
        let ips = resolve(&service.service, self.options.hosts.as_deref()).await?;
        let words: Vec<String> = ips.iter().map(ToString::to_string).collect();
        self.log.info(&format!("got the ips [{}]", words.join(" ")));
        let server = |ip| Server::new(ip, service.port, self.options.timeout);
        Ok(ips.into_iter().map(server).collect())
    }

    /// Waits until there are servers and all are ready.
    async fn ready(&self, service: &Service) -> Result<()> {
        let limit = self.options.timeout;
        let start = now();
        let mut pauses = pauses();
        let servers = loop {
            match self.servers(service).await {
                Err(error) if start.elapsed() >= RESOLVE_WAIT.min(limit) => return Err(error),
                Err(error) => self.log.warn(&format!("{error:#}")),
                Ok(servers) => break servers,
            }
            sleep(pauses.next().unwrap_or_default()).await;
        };
        let waiting: Waiting = Arc::default();
        let all = each(&servers, |server| ready(server, Arc::clone(&waiting)));
        let tell = || format!("Waiting until ready: {}", told(&waiting));
        let left = limit.saturating_sub(start.elapsed());
        match telling(self.log, timeout(left, all), tell).await {
            Ok(all) => all.map(drop),
            Err(_) => bail!("not ready within {limit:?}: {}", told(&waiting)),
        }
    }

    /// Writes, and waits until all servers show what they should.
    async fn write(&self, run: &Run<'_>) -> Result<()> {
        let Writers { at, table, writers } = run.args;
        let servers = self.servers(&at.service).await?;
        let count = servers.len();
        let writers = usize::try_from(*writers)?;
        ensure!(
            writers <= count,
            "{writers} writers, but the service has only {count} servers"
        );
        let leavers = run.departure.map_or(0, |departure| departure.leavers);
        ensure!(
            leavers <= count,
            "{leavers} servers are to leave, but the service has only {count}"
        );
        let place = Place {
            network: at.network.clone(),
            table: table.clone(),
        };
        if run.watchers != Watchers::None {
            watch(&servers, &place).await?;
        }
        let mut written = write(&servers[..writers], &place, run.work, self.log).await?;
        if let Some(departure) = run.departure {
            self.depart(&servers[..leavers], &place, departure, &mut written)
                .await?;
        }
        let goal = Goal {
            servers: &servers,
            place: &place,
            keys: run
                .without
                .map_or_else(Default::default, |without| written.keys(without)),
            with_watchers: run.watchers == Watchers::Check,
            since: written.end,
        };
        goal.reach(self.options, self.log).await?;
        Ok(())
    }

    /// Lets servers leave the network and, maybe, join it again.
    async fn depart(
        &self,
        servers: &[Server],
        place: &Place,
        departure: Departure,
        written: &mut Written,
    ) -> Result<()> {
        for (index, Server { ip, .. }) in servers.iter().enumerate() {
            self.log
                .info(&format!("worker leaveNetwork: {index} on IP:{ip}"));
        }
        peers::leave_network(servers, &place.network).await?;
        written.end = now();
        if let Some(pause) = departure.return_after {
            sleep(pause).await;
            for (index, Server { ip, .. }) in servers.iter().enumerate() {
                self.log
                    .info(&format!("worker joinNetwork: {index} on IP:{ip}"));
            }
            peers::join_network(servers, &place.network).await?;
            written.end = now();
        }
        Ok(())
    }
}

/// Returns what a command writes and comes to.
fn plan(command: &WriteCommand) -> Run<'_> {
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let seconds = |args: &Timed| Duration::from_secs(args.seconds);
    let leave = |leavers: u32, return_after| {
        let leavers = count(leavers);
        Some(Departure {
            leavers,
            return_after,
        })
    };
    let run = |args, work| Run {
        args,
        work,
        watchers: Watchers::None,
        departure: None,
        without: None,
    };
    match command {
        WriteCommand::WriteKeys(Keys { writers, keys }) => Run {
            watchers: Watchers::Start,
            without: Some(0),
            ..run(writers, Work::Write(*keys))
        },
        WriteCommand::DeleteKeys(Keys { writers, keys }) => Run {
            watchers: Watchers::Start,
            ..run(writers, Work::Delete(*keys))
        },
        WriteCommand::WriteUniqueKeys(args) => Run {
            watchers: Watchers::Check,
            without: Some(0),
            ..run(&args.writers, Work::WriteFor(seconds(args)))
        },
        WriteCommand::WriteDeleteUniqueKeys(args) => Run {
            watchers: Watchers::Check,
            ..run(&args.writers, Work::WriteDeleteFor(seconds(args)))
        },
        WriteCommand::WriteDeleteLeaveJoin(args) => {
            run(&args.writers, Work::WriteDeleteLeaveJoinFor(seconds(args)))
        }
        WriteCommand::WriteDeleteWaitLeaveJoin(args) => Run {
            departure: leave(args.writers.writers, Some(REJOIN_PAUSE)),
            ..run(&args.writers, Work::WriteDeleteFor(seconds(args)))
        },
        WriteCommand::WriteWaitLeave(args) => Run {
            departure: leave(args.writers.writers, None),
            ..run(&args.writers, Work::WriteFor(seconds(args)))
        },
        WriteCommand::WriteWaitLeaveJoin(Leavers { timed, leavers }) => Run {
            departure: leave(*leavers, Some(REJOIN_PAUSE)),
            without: Some(count(*leavers)),
            ..run(&timed.writers, Work::WriteFor(seconds(timed)))
        },
    }
}

/// Servers that are not ready, and what they say.
type Waiting = Arc<Mutex<BTreeMap<IpAddr, String>>>;

/// Asks a server until it is ready.
async fn ready(server: Server, waiting: Waiting) -> Result<()> {
    for pause in pauses() {
        let said = match server.ask("/ready").await {
            Ok(text) if is_ok(&text) => break,
            Ok(text) => server.unexpected("/ready", &text),
            Err(error) => format!("{error:#}"),
        };
        lock(&waiting).insert(server.ip, said);
        sleep(pause).await;
    }
    lock(&waiting).remove(&server.ip);
    Ok(())
}

/// Returns pauses that grow, without end.
fn pauses() -> impl Iterator<Item = Duration> {
    let [first, longest] = READY_PAUSES;
    std::iter::successors(Some(first), move |last| Some(longest.min(*last * 2)))
}

fn told(waiting: &Waiting) -> String {
    let said: Vec<String> = lock(waiting).values().cloned().collect();
    said.join(", ")
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, BTreeMap<IpAddr, String>> {
    waiting.lock().expect("no holder panics")
}
