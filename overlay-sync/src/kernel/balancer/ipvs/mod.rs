//! Balancing by IPVS, the kernel's own balancer, in the namespace of a network.
//!
//! A VIP is a service by firewall mark, as Docker has it: its number is the mark, which [`marks`] gives to packets. A
//! published port is a service by address and port. All is read back from the kernel, so that nothing here has a memory:
//! a process that starts again changes only what differs, and connections do not notice.
//!
//! The number of a VIP is in the table of marks, that of a published port in its service, see [`message`]; the lowest that
//! neither has is given next. A VIP is held when both its service and its mark are there. What a crash or somebody else
//! left of one is put right by the next change: a service whose mark no address has is taken over by an address that
//! shares a target with it, so that its connections go on, else removed; a mark without a service is taken away.
//!
//! Nothing is left to forget of a target that is gone: with `expire_nodest_conn` its connections end with it.

mod changes;
mod marks;
mod message;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::Path;

use rustix::io::Errno;

use self::marks::Marks;
use self::message::{Command, Destination, Key, Mode};
use super::genl::{Family, Message};
use super::{Engine, INDEX_MIN, nft};
use crate::kernel::netns;
use crate::kernel::socket::{Refusal, Request, Socket};
use crate::record::Protocol;
use crate::service::plan::ServiceOp;
use crate::service::{Frontend, Published, Service, Target};

/// Where the settings of a namespace are.
const SETTINGS_DIR: &str = "/proc/sys/net/ipv4/vs";

/// What is there once IPVS is loaded.
const LOADED: &str = "/proc/net/ip_vs";

/// What IPVS has to be told in each namespace, as it does not do so by itself.
const SETTINGS: [(&str, &str); 4] = [
    // Connections are tracked, so that nftables can translate their source.
    ("conntrack", "1"),
    // A client that uses a port again stays with its target, rather than wait a second for another one.
    ("conn_reuse_mode", "0"),
    // Connections of a target that is gone end, rather than time out; those of one with weight 0 may be made anew.
    ("expire_nodest_conn", "1"),
    // What remembers clients forgets a target with weight 0.
    ("expire_quiescent_template", "1"),
];

/// The highest weight: the kernel's are signed.
const WEIGHT_MAX: u32 = i32::MAX.unsigned_abs();

/// IPVS in namespaces.
#[derive(Debug, Default)]
pub(super) struct Ipvs;

/// Says why IPVS cannot be used in a namespace, if so. Asking loads its module. None stands for the namespace of the
/// calling thread.
pub(super) fn probe(namespace: Option<&File>) -> Result<(), Refusal> {
    let mut socket = in_namespace(namespace, Socket::open_generic)?;
    find_family(&mut socket)?;
    // The settings come with the module.
    let conntrack = Path::new(SETTINGS_DIR).join(SETTINGS[0].0);
    if !in_namespace(namespace, || Ok(conntrack.exists()))? {
        return Err(Refusal::own(
            "the kernel's IPVS does not track connections (CONFIG_IP_VS_NFCT)",
        ));
    }
    // It gives packets their marks.
    nft::missing(namespace).map_or(Ok(()), |reason| Err(Refusal::own(&reason)))
}

impl Engine for Ipvs {
    fn name(&self) -> &'static str {
        "ipvs"
    }

    fn table(&self) -> &'static str {
        marks::TABLE
    }

    fn holds_idle(&self) -> bool {
        true
    }

    fn refusal(&self, service: &Service) -> Option<&'static str> {
        let is_heavy = |weight: &u32| *weight > WEIGHT_MAX;
        let has_heavy = service.targets.values().any(is_heavy);
        has_heavy.then_some("a weight of IPVS is at most 2147483647")
    }

    fn read(&mut self, namespace: &File) -> Result<BTreeMap<Frontend, (u32, Service)>, Refusal> {
        let mut table = Table::open(namespace)?;
        let known = table.known(namespace)?;
        let read = known.into_iter().map(|(frontend, (key, mode))| {
            let service = held(&mode, &table.destinations(key)?);
            Ok((frontend, (mode.index, service)))
        });
        read.collect()
    }

    fn apply(&mut self, namespace: &File, ops: &[ServiceOp]) -> Vec<(usize, Refusal)> {
        changes::apply(namespace, ops)
    }

    /// Counts those that are established. Of datagrams there are none such, so that those to a published port count all the
    /// exchanges that the kernel remembers (for five minutes unless it is told otherwise); those to a VIP cannot be told
    /// from streams that have ended, and do not count.
    fn connections(
        &mut self,
        namespace: &File,
    ) -> Result<BTreeMap<(Frontend, Target), u64>, Refusal> {
        let mut table = Table::open(namespace)?;
        let known = table.known(namespace)?;
        let mut counts = BTreeMap::new();
        for (frontend, (key, _)) in known {
            let is_of_datagrams = matches!(
                frontend,
                Frontend::Published(Published {
                    protocol: Protocol::Udp,
                    ..
                })
            );
            for destination in table.destinations(key)? {
                let inactive = if is_of_datagrams {
                    destination.inactive
                } else {
                    0
                };
                let count = u64::from(destination.active) + u64::from(inactive);
                counts.insert((frontend, destination.target), count);
            }
        }
        Ok(counts)
    }

    fn clear(&mut self, namespace: &File) -> Result<(), Refusal> {
        // Asking a kernel whether it has IPVS would load it; what is not loaded holds nothing.
        match Path::new(LOADED).exists() {
            true => Table::open(namespace)?.clear(),
            false => Ok(()),
        }
    }
}

/// IPVS of one namespace. It is opened anew for each call, as its socket would keep the namespace of a removed network.
#[derive(Debug)]
struct Table {
    socket: Socket,
    family: Family,
}

impl Table {
    fn open(namespace: &File) -> Result<Self, Refusal> {
        let mut socket = netns::inside(namespace, Socket::open_generic)?;
        let family = find_family(&mut socket)?;
        Ok(Self { socket, family })
    }

    fn services(&mut self) -> Result<BTreeMap<Key, Mode>, Refusal> {
        let family = self.family;
        let message = family.message(Command::GetService as u8, Vec::new());
        let parse = |kind, payload: &[u8]| message::read_service(family, kind, payload);
        Ok(self.socket.dump(message, parse)?.into_iter().collect())
    }

    fn destinations(&mut self, key: Key) -> Result<Vec<Destination>, Refusal> {
        let family = self.family;
        let message = message::of_service(family, Command::GetDestination, key);
        let parse = |kind, payload: &[u8]| message::read_destination(family, key, kind, payload);
        self.socket.dump(message, parse)
    }

    /// Removes all that is ours.
    fn clear(&mut self) -> Result<(), Refusal> {
        let services = self.services()?.into_keys();
        let ours = services.filter(|key| is_ours(*key));
        let requests: Vec<_> = ours
            .map(|key| message::of_service(self.family, Command::DeleteService, key))
            .map(request)
            .collect();
        let mut refused = None;
        self.socket
            .batch(requests, |_, refusal| refused = Some(refusal));
        refused.map_or(Ok(()), Err)
    }

    /// Reads the services of ours that are held, each with its number.
    fn known(&mut self, namespace: &File) -> Result<BTreeMap<Frontend, (Key, Mode)>, Refusal> {
        let services = self.services()?;
        let is_marked = |key: &Key| matches!(key, Key::Mark { .. });
        let marks = match services.keys().any(is_marked) {
            true => Marks::read(namespace)?,
            // It would take longer than all else.
            false => Marks::default(),
        };
        Ok(known(&marks, &services))
    }
}

/// Joins services with marks.
fn known(marks: &Marks, services: &BTreeMap<Key, Mode>) -> BTreeMap<Frontend, (Key, Mode)> {
    let mut known = BTreeMap::new();
    let marked = marks.of.iter().filter(|_| marks.is_whole);
    for (ip, mark) in marked {
        let key = mark_key(*ip, *mark);
        if let Some(mode) = services.get(&key) {
            let mode = Mode {
                index: *mark,
                ..*mode
            };
            known.insert(Frontend::Address(*ip), (key, mode));
        }
    }
    for (published, index) in indices(marks, services) {
        let key = port_key(published);
        let mode = Mode {
            index,
            ..services[&key]
        };
        known.insert(Frontend::Published(published), (key, mode));
    }
    known
}

/// Numbers published ports: as their services say, and where two say the same, or one nothing, by the lowest that is free.
fn indices(marks: &Marks, services: &BTreeMap<Key, Mode>) -> BTreeMap<Published, u32> {
    let ports = services.iter();
    let ports = ports.filter_map(|(key, mode)| Some((published(*key)?, mode.index)));
    let mut free = Free::new(marks.of.values().copied());
    let (kept, lacking): (Vec<_>, Vec<_>) =
        ports.partition(|(_, index)| *index >= INDEX_MIN && free.taken.insert(*index));
    let given = lacking.into_iter().map(|(port, _)| (port, free.take()));
    kept.into_iter().chain(given).collect()
}

/// Numbers that nothing has.
#[derive(Debug)]
struct Free {
    taken: BTreeSet<u32>,
    next: u32,
}

impl Free {
    fn new(taken: impl IntoIterator<Item = u32>) -> Self {
        Self {
            taken: taken.into_iter().collect(),
            next: INDEX_MIN,
        }
    }

    /// Takes the lowest.
    fn take(&mut self) -> u32 {
        while !self.taken.insert(self.next) {
            self.next += 1;
        }
        self.next
    }
}

/// Says what a service holds. What is not as anybody here would make it holds nothing, so that it is set again.
fn held(mode: &Mode, destinations: &[Destination]) -> Service {
    let is_ours = |destination: &Destination| destination.forwarding == Some(mode.forwarding);
    let is_whole = mode.scheduler.is_some() && destinations.iter().all(is_ours);
    let targets = destinations.iter().filter(|_| is_whole);
    Service {
        scheduler: mode.scheduler.unwrap_or_default(),
        forwarding: mode.forwarding,
        targets: targets.map(|held| (held.target, held.weight)).collect(),
    }
}

fn key_of(frontend: Frontend, index: u32) -> Key {
    match frontend {
        Frontend::Address(ip) => mark_key(ip, index),
        Frontend::Published(published) => port_key(published),
    }
}

fn mark_key(ip: IpAddr, mark: u32) -> Key {
    Key::Mark {
        is_v6: ip.is_ipv6(),
        mark,
    }
}

fn mark_of(key: Key) -> Option<u32> {
    match key {
        Key::Mark { mark, .. } => Some(mark),
        Key::Port { .. } => None,
    }
}

fn port_key(published: Published) -> Key {
    Key::Port {
        protocol: published.protocol.number(),
        ip: Frontend::Published(published).ip(),
        port: published.port,
    }
}

/// Finds the published port that a service is for; none if it is somebody else's.
fn published(key: Key) -> Option<Published> {
    let Key::Port { protocol, ip, port } = key else {
        return None;
    };
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let published = Published {
        is_v6: ip.is_ipv6(),
        protocol: all.into_iter().find(|known| known.number() == protocol)?,
        port,
    };
    (port_key(published) == key).then_some(published)
}

/// Tells whether a service has a number of ours, or is for a published port.
fn is_ours(key: Key) -> bool {
    match key {
        Key::Mark { mark, .. } => mark >= INDEX_MIN,
        Key::Port { .. } => published(key).is_some(),
    }
}

/// Makes a request of a message. What is to be removed may be gone already.
fn request(message: Message) -> Request<Message> {
    let removals = [Command::DeleteService, Command::DeleteDestination];
    let is_removal = |command: &Command| *command as u8 == message.command();
    let forgives: &[Errno] = match removals.iter().any(is_removal) {
        true => &[Errno::NOENT, Errno::SRCH],
        false => &[],
    };
    Request {
        message,
        flags: 0,
        forgives,
    }
}

fn find_family(socket: &mut Socket) -> Result<Family, Refusal> {
    let found = Family::find(socket, message::FAMILY, message::VERSION)?;
    found.ok_or_else(|| {
        Refusal::own("the kernel has no IPVS, neither built in nor as a module (CONFIG_IP_VS)")
    })
}

/// Sets up IPVS in the namespace of the calling thread. Writing what is there already is left out, as a container may not
/// be allowed to.
fn set_up() -> Result<(), Refusal> {
    for (key, value) in SETTINGS {
        let path = Path::new(SETTINGS_DIR).join(key);
        let is_set = fs::read_to_string(&path).is_ok_and(|held| held.trim() == value);
        if !is_set {
            fs::write(&path, value).map_err(|error| {
                Refusal::own(&format!(
                    "net.ipv4.vs.{key} cannot be set to {value}: {error}"
                ))
            })?;
        }
    }
    Ok(())
}

fn in_namespace<T: Send>(
    namespace: Option<&File>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    match namespace {
        Some(namespace) => netns::inside(namespace, work),
        None => work(),
    }
}

#[cfg(test)]
mod tests;
