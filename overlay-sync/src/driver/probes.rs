//! The thread that probes the tunnels: it asks the data path whom to probe, and tells what came of it.
//!
//! It shares nothing with the thread that keeps the kernel true, so that neither waits for the other. Without the right to
//! open packet sockets it says so once, and goes on without probes.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use networkdb::NetworkId;
use parking_lot::Mutex;
use rand::rngs::{StdRng, SysRng};
use rand::{RngExt as _, SeedableRng as _};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::{Request, clock};
use crate::kernel::Vni;
use crate::kernel::packets::Packets;
use crate::mac::Mac;
use crate::probe::packet::{ETHER_TYPE, HEADER_BYTES, Kind, PAYLOAD_MIN, Packet};
use crate::probe::report::TunnelReport;
use crate::probe::table::Table;
use crate::reconcile::Clock;

/// How often it is asked whom to probe.
const TARGETS_PERIOD: Duration = Duration::from_secs(1);

/// The shortest sleep, so that many hosts are probed in bursts.
const SLEEP_MIN: Duration = Duration::from_millis(50);

/// Probes of all networks in one burst: with the sleep, 640 a second at most, however many hosts there are.
const BURST: usize = 32;

/// Answers to questions of others in one burst.
const ANSWERS: usize = 256;

/// Whom to probe in a network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Targets {
    /// The segment, and the MTU of its devices; none when nobody is to be probed.
    pub segment: Option<(Vni, u32)>,
    /// Hosts with endpoints.
    pub hosts: Vec<IpAddr>,
}

/// What the probes have found, by network. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tunnels(Arc<Mutex<BTreeMap<NetworkId, Vec<TunnelReport>>>>);

impl Tunnels {
    /// What was found of a network.
    pub(crate) fn of(&self, network: &str) -> Vec<TunnelReport> {
        let all = self.0.lock();
        let found = all.iter().find(|(id, _)| id.as_str() == network);
        found
            .map(|(_, reports)| reports.clone())
            .unwrap_or_default()
    }
}

/// The tunnel of one network.
#[derive(Debug)]
struct Tunnel {
    vni: Vni,
    mtu: u32,
    table: Table,
    packets: Option<Packets>,
}

/// What the thread holds.
struct Prober {
    local: IpAddr,
    dir: PathBuf,
    requests: mpsc::Sender<Request>,
    tunnels: BTreeMap<NetworkId, Tunnel>,
    told: Tunnels,
    clock: Clock,
    rng: StdRng,
    has_warned: bool,
}

/// Starts the thread, which ends with the data path.
pub(super) fn start(
    local: IpAddr,
    dir: PathBuf,
    requests: mpsc::Sender<Request>,
) -> io::Result<Tunnels> {
    let told = Tunnels::default();
    let prober = Prober {
        local,
        dir,
        requests,
        tunnels: BTreeMap::new(),
        told: told.clone(),
        clock: clock(),
        rng: StdRng::try_from_rng(&mut SysRng).map_err(io::Error::other)?,
        has_warned: false,
    };
    thread::Builder::new()
        .name("probes".to_owned())
        .spawn(move || prober.run())?;
    Ok(told)
}

impl Prober {
    fn run(mut self) {
        let mut ask_at = self.clock.now();
        loop {
            let now = self.clock.now();
            if now >= ask_at {
                let Some(targets) = self.targets() else {
                    return;
                };
                self.follow(targets, now);
                ask_at = now + TARGETS_PERIOD;
            }
            self.send(now);
            self.tell();
            let open = self.tunnels.values().filter(|it| it.packets.is_some());
            let deadlines = open.filter_map(|tunnel| tunnel.table.deadline());
            let next = deadlines.fold(ask_at, Instant::min);
            self.sleep(
                next.saturating_duration_since(self.clock.now())
                    .max(SLEEP_MIN),
            );
            self.receive();
        }
    }

    /// Asks whom to probe; none when the data path has ended.
    fn targets(&self) -> Option<BTreeMap<NetworkId, Targets>> {
        let (to, answer) = oneshot::channel();
        self.requests.blocking_send(Request::Targets(to)).ok()?;
        answer.blocking_recv().ok()
    }

    /// Takes whom to probe, and opens sockets where there are none.
    fn follow(&mut self, targets: BTreeMap<NetworkId, Targets>, now: Instant) {
        self.tunnels
            .retain(|network, _| targets.contains_key(network));
        for (network, targets) in targets {
            let Some((vni, mtu)) = targets.segment else {
                self.tunnels.remove(&network);
                continue;
            };
            let tunnel = self
                .tunnels
                .entry(network.clone())
                .or_insert_with(|| Tunnel {
                    vni,
                    mtu,
                    table: Table::new(mtu),
                    packets: None,
                });
            // Of devices that were made anew the old sockets hear nothing.
            if tunnel.vni != vni || tunnel.table.is_silent() {
                tunnel.packets = None;
            }
            (tunnel.vni, tunnel.mtu) = (vni, mtu);
            let others = targets.hosts.into_iter().filter(|host| *host != self.local);
            tunnel.table.set(mtu, others, now);
            if tunnel.packets.is_some() {
                continue;
            }
            match Packets::open(&self.dir, &network, vni, ETHER_TYPE) {
                Ok(packets) => tunnel.packets = packets,
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    if !std::mem::replace(&mut self.has_warned, true) {
                        warn!(%error, "tunnels are not probed, which takes CAP_NET_RAW");
                    }
                }
                Err(error) => debug!(%network, %error, "no sockets for probes"),
            }
        }
    }

    /// Sends what is due, beginning with another network each time, so that none is left out when there is too much.
    fn send(&mut self, now: Instant) {
        let mut left = BURST;
        let first = self.rng.random_range(0..self.tunnels.len().max(1));
        let (before, after): (Vec<_>, Vec<_>) = {
            let numbered = self.tunnels.values_mut().enumerate();
            numbered.partition(|(number, _)| *number < first)
        };
        for (_, tunnel) in after.into_iter().chain(before) {
            let Some(packets) = &tunnel.packets else {
                continue;
            };
            let from = Mac::of_bridge(tunnel.vni, self.local);
            let due = tunnel.table.due(now, left, || self.rng.random());
            left -= due.len();
            for due in due {
                let packet = Packet {
                    kind: Kind::Ask,
                    number: due.number,
                    mtu: tunnel.mtu,
                    host: self.local,
                };
                let to = Mac::of_bridge(tunnel.vni, due.host);
                let frame = packet.encode(
                    [to, from],
                    usize::try_from(due.bytes).unwrap_or(PAYLOAD_MIN),
                );
                // One that could not be sent is lost like any other.
                if let Err(error) = packets.send(&frame) {
                    debug!(host = %due.host, %error, "probe not sent");
                }
            }
        }
    }

    /// Waits until a probe comes, or for some time.
    fn sleep(&self, time: Duration) {
        let sockets = self
            .tunnels
            .values()
            .filter_map(|tunnel| tunnel.packets.as_ref());
        let mut sockets: Vec<PollFd<'_>> = sockets
            .map(|packets| PollFd::new(packets, PollFlags::IN))
            .collect();
        let time = Timespec::try_from(time).ok();
        if let Err(error) = poll(&mut sockets, time.as_ref()) {
            debug!(%error, "probes are not waited for");
        }
    }

    /// Takes the answers, and answers what others ask.
    fn receive(&mut self) {
        for (network, tunnel) in &mut self.tunnels {
            let Some(packets) = &tunnel.packets else {
                continue;
            };
            let mut buffer = [0; HEADER_BYTES + PAYLOAD_MIN];
            for _ in 0..ANSWERS {
                let received = match packets.receive(&mut buffer) {
                    Ok(Some(bytes)) => Packet::decode(&buffer[..bytes]),
                    Ok(None) => break,
                    Err(error) => {
                        debug!(%network, %error, "sockets for probes are opened anew");
                        tunnel.packets = None;
                        break;
                    }
                };
                let Some(packet) = received else {
                    continue;
                };
                let now = self.clock.now();
                match packet.kind {
                    Kind::Answer => {
                        tunnel
                            .table
                            .answered(packet.host, packet.number, packet.mtu, now);
                    }
                    // Only where a row leads: to hosts with endpoints.
                    Kind::Ask if tunnel.table.has(packet.host) => {
                        let macs =
                            [packet.host, self.local].map(|host| Mac::of_bridge(tunnel.vni, host));
                        let answer = Packet {
                            kind: Kind::Answer,
                            mtu: tunnel.mtu,
                            host: self.local,
                            ..packet
                        };
                        if let Err(error) = packets.send(&answer.encode(macs, PAYLOAD_MIN)) {
                            debug!(host = %packet.host, %error, "probe not answered");
                        }
                    }
                    Kind::Ask => {}
                }
            }
        }
    }

    /// Says how it is.
    fn tell(&self) {
        let reports = self.tunnels.iter();
        let reports = reports.map(|(network, tunnel)| (network.clone(), tunnel.table.report()));
        *self.told.0.lock() = reports.collect();
    }
}
