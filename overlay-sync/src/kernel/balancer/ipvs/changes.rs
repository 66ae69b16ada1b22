//! What operations come to: messages to IPVS, and then other marks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;

use rustix::io::Errno;

use super::super::genl::{Family, Message};
use super::marks::Marks;
use super::message::{self, Command, Destination, Key, Mode};
use super::{Free, Table, indices, is_ours, key_of, mark_key, mark_of, request, set_up};
use crate::kernel::netns;
use crate::kernel::socket::{Refusal, Request, Socket};
use crate::service::plan::ServiceOp;
use crate::service::{Frontend, Service, Target};

/// Applies operations in a namespace and tells which were not done.
pub(super) fn apply(namespace: &File, ops: &[ServiceOp]) -> Vec<(usize, Refusal)> {
    let mut changes = Changes::new(ops);
    if changes.ops.is_empty() {
        return Vec::new();
    }
    match Table::open(namespace).and_then(|mut table| changes.make(namespace, &mut table)) {
        Ok(()) => changes.refused.into_iter().collect(),
        Err(refusal) => {
            let all = changes.ops.values();
            all.map(|(at, _)| (*at, refusal.clone())).collect()
        }
    }
}

/// What operations come to in a namespace. Of those on one frontend the last counts.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    /// What to do with each frontend, and which of the operations says so.
    pub(super) ops: BTreeMap<Frontend, (usize, Option<&'a Service>)>,
    /// What the kernel is asked, and for which operation, if any.
    requests: Vec<(Option<usize>, Request<Message>)>,
    /// Operations that were not done.
    refused: BTreeMap<usize, Refusal>,
}

impl<'a> Changes<'a> {
    /// Sorts out what is to be done.
    pub(super) fn new(ops: &'a [ServiceOp]) -> Self {
        let ops = ops.iter().enumerate();
        let meant = ops.filter_map(|(at, op)| match op {
            ServiceOp::Set(frontend, service) => Some((*frontend, (at, Some(service)))),
            ServiceOp::Remove(frontend) => Some((*frontend, (at, None))),
            ServiceOp::AddAddress(..)
            | ServiceOp::RemoveAddress(..)
            | ServiceOp::SetSource(..)
            | ServiceOp::RemoveSource(_)
            | ServiceOp::Forget(..) => None,
        });
        Self {
            ops: meant.collect(),
            requests: Vec::new(),
            refused: BTreeMap::new(),
        }
    }

    fn make(&mut self, namespace: &File, table: &mut Table) -> Result<(), Refusal> {
        if self.ops.values().any(|(_, service)| service.is_some()) {
            netns::inside(namespace, || Ok(set_up()))??;
        }
        let marks = Marks::read(namespace)?;
        let services = table.services()?;
        let mut orphans = Orphans::find(&marks, &services, table)?;
        let numbers = indices(&marks, &services);
        let taken = services.keys().filter_map(|key| mark_of(*key));
        let taken = taken.chain(marks.of.values().copied());
        let mut free = Free::new(taken.chain(numbers.values().copied()));
        let mut wanted = marks.of.clone();
        wanted.retain(|ip, mark| services.contains_key(&mark_key(*ip, *mark)));
        for (frontend, (at, service)) in self.ops.clone() {
            let index = match frontend {
                Frontend::Address(ip) => marks.of.get(&ip).copied(),
                Frontend::Published(published) => numbers.get(&published).copied(),
            };
            let Some(service) = service else {
                self.remove(at, frontend, index, table.family);
                continue;
            };
            let index = index.or_else(|| orphans.adopt(frontend, service));
            let index = index.unwrap_or_else(|| free.take());
            if let Frontend::Address(ip) = frontend {
                wanted.insert(ip, index);
            }
            self.set(at, (frontend, index), service, &services, table)?;
        }
        for key in orphans.0.into_keys() {
            let message = message::of_service(table.family, Command::DeleteService, key);
            self.ask(None, message);
        }
        self.send(&mut table.socket);
        self.mark(namespace, &marks, wanted);
        Ok(())
    }

    fn remove(&mut self, at: usize, frontend: Frontend, index: Option<u32>, family: Family) {
        if let Some(index) = index {
            let key = key_of(frontend, index);
            self.ask(
                Some(at),
                message::of_service(family, Command::DeleteService, key),
            );
        }
    }

    /// Asks for what a service lacks, and takes away what it has beyond that last, so that there is always a target.
    fn set(
        &mut self,
        at: usize,
        (frontend, index): (Frontend, u32),
        service: &Service,
        services: &BTreeMap<Key, Mode>,
        table: &mut Table,
    ) -> Result<(), Refusal> {
        let (key, family) = (key_of(frontend, index), table.family);
        let mode = Mode {
            scheduler: Some(service.scheduler),
            forwarding: service.forwarding,
            index,
        };
        let command = match services.get(&key) {
            None => Some(Command::NewService),
            Some(held) if *held == mode => None,
            Some(_) => Some(Command::SetService),
        };
        if let Some(command) = command {
            self.ask(Some(at), message::with_mode(family, command, key, &mode));
        }
        let held = match services.contains_key(&key) {
            true => table.destinations(key)?,
            false => Vec::new(),
        };
        let held: BTreeMap<_, _> = held.iter().map(|held| (held.target, held)).collect();
        for (target, weight) in &service.targets {
            let command = match held.get(target) {
                None => Command::NewDestination,
                // Adding it again would leave its weight as it is.
                Some(held) if !is_like(held, service, *weight) => Command::SetDestination,
                Some(_) => continue,
            };
            let kind = Some((service.forwarding, *weight));
            let message = message::of_destination(family, command, key, *target, kind);
            self.ask(Some(at), message);
        }
        let gone = held.keys();
        for target in gone.filter(|target| !service.targets.contains_key(target)) {
            let command = Command::DeleteDestination;
            let message = message::of_destination(family, command, key, *target, None);
            self.ask(Some(at), message);
        }
        Ok(())
    }

    fn ask(&mut self, at: Option<usize>, message: Message) {
        self.requests.push((at, request(message)));
    }

    fn send(&mut self, socket: &mut Socket) {
        let requests = std::mem::take(&mut self.requests);
        let (asked_by, requests): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let is_of_service: Vec<_> = requests
            .iter()
            .map(|request| is_of_service(&request.message))
            .collect();
        socket.batch(requests, |nth, refusal| {
            // What nobody asked for is tried again with the next change.
            if let Some(at) = asked_by[nth] {
                let explained = explained(refusal, is_of_service[nth]);
                self.refused.entry(at).or_insert(explained);
            }
        });
    }

    /// Marks packets of services that are there, and no others.
    fn mark(&mut self, namespace: &File, marks: &Marks, mut wanted: BTreeMap<IpAddr, u32>) {
        let mut concerned = Vec::new();
        for (frontend, (at, service)) in &self.ops {
            let Frontend::Address(ip) = frontend else {
                continue;
            };
            let is_done = !self.refused.contains_key(at);
            match (service, is_done) {
                (None, true) => drop(wanted.remove(ip)),
                // Its packets would be for a service that may not be there.
                (Some(_), false) if !marks.of.contains_key(ip) => drop(wanted.remove(ip)),
                (None | Some(_), _) => {}
            }
            if !marks.is_whole || wanted.get(ip) != marks.of.get(ip) {
                concerned.push(*at);
            }
        }
        if let Err(refusal) = marks.turn_into(namespace, &wanted) {
            for at in concerned {
                self.refused.entry(at).or_insert(refusal.clone());
            }
        }
    }
}

/// Services by marks that no address has, with their targets.
#[derive(Debug)]
pub(super) struct Orphans(pub(super) BTreeMap<Key, BTreeSet<Target>>);

impl Orphans {
    fn find(
        marks: &Marks,
        services: &BTreeMap<Key, Mode>,
        table: &mut Table,
    ) -> Result<Self, Refusal> {
        let marked: BTreeSet<_> = marks
            .of
            .iter()
            .map(|(ip, mark)| mark_key(*ip, *mark))
            .collect();
        let ours = services.keys();
        let ours = ours.filter(|key| mark_of(**key).is_some() && is_ours(**key));
        let orphans = ours.filter(|key| !marked.contains(key)).map(|key| {
            let held = table.destinations(*key)?;
            Ok((*key, held.iter().map(|held| held.target).collect()))
        });
        Ok(Self(orphans.collect::<Result<_, Refusal>>()?))
    }

    /// Takes the one that shares a target with a VIP, and returns its mark.
    pub(super) fn adopt(&mut self, frontend: Frontend, service: &Service) -> Option<u32> {
        let Frontend::Address(ip) = frontend else {
            return None;
        };
        let is_its = |key: &Key, targets: &BTreeSet<Target>| {
            key.is_v6() == ip.is_ipv6()
                && targets
                    .iter()
                    .any(|target| service.targets.contains_key(target))
        };
        let mut all = self.0.iter();
        let key = *all.find(|(key, targets)| is_its(key, targets))?.0;
        self.0.remove(&key);
        mark_of(key)
    }
}

fn is_like(held: &Destination, service: &Service, weight: u32) -> bool {
    (held.forwarding, held.weight) == (Some(service.forwarding), weight)
}

fn is_of_service(message: &Message) -> bool {
    let all = [Command::NewService, Command::SetService];
    all.iter()
        .any(|command| *command as u8 == message.command())
}

/// Says what the kernel lacks where its errors mean just that.
fn explained(refusal: Refusal, is_of_service: bool) -> Refusal {
    if is_of_service && refusal.is(Errno::NOENT) {
        return Refusal::own(
            "the kernel's IPVS does not have the scheduler (CONFIG_IP_VS_RR, _WRR, _SH or _LC)",
        );
    }
    if refusal.is(Errno::AFNOSUPPORT) {
        return Refusal::own("the kernel's IPVS does not have IPv6 (CONFIG_IP_VS_IPV6)");
    }
    refusal
}
