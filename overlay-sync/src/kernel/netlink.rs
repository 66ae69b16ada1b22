//! The kernel of this host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use networkdb::NetworkId;
use rustix::io::Errno;
use tokio::sync::mpsc::Sender;

use super::devices::{DeviceError, Open};
use super::links::{self, Link};
use super::monitor::Monitor;
use super::netns::Namespaces;
use super::rows;
use super::socket::{Refusal, Socket};
use super::{
    Actual, ActualSegment, Device, DeviceFault, Failure, FdbRow, Kernel, KernelError, Notice, Vni,
};
use crate::plan::Op;

/// The kernel, over netlink. The host is the namespace of the thread that opened it.
///
/// Needs `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`, see [`check`](super::check::check).
#[derive(Debug)]
pub struct NetlinkKernel {
    host: Socket,
    namespaces: Namespaces,
    /// Networks that were asked about in this run: what they have is in use.
    open: BTreeMap<NetworkId, Open>,
    monitor: Option<Monitor>,
}

impl NetlinkKernel {
    /// Opens the kernel. Namespaces of networks are below a directory, [`DIR`](super::netns::DIR) by default, which is made
    /// when it is needed.
    pub fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            host: Socket::open()?,
            namespaces: Namespaces::new(dir),
            open: BTreeMap::new(),
            monitor: None,
        })
    }

    /// Opens the kernel and watches it: what happens to the devices and rows of the networks that are asked about is told,
    /// what is done here as well. When the queue is full, what is not told becomes a [`Notice::Network`].
    pub fn watching(dir: &Path, notices: Sender<Notice>) -> io::Result<Self> {
        Ok(Self {
            monitor: Some(Monitor::start(notices)?),
            ..Self::new(dir)?
        })
    }

    /// Returns the file of a network's namespace, whether or not it is there, for programs such as `nsenter --net=FILE`.
    #[must_use]
    pub fn namespace_path(&self, network: &NetworkId) -> PathBuf {
        self.namespaces.path(network)
    }

    /// Returns a network's namespace; none if it has none.
    fn open(&mut self, network: &NetworkId) -> Result<Option<&mut Open>, KernelError> {
        let what = || format!("open the namespace of network {network}");
        let identity = self.namespaces.identity(network);
        let identity = identity.map_err(|error| refused(what(), error.into()))?;
        let is_stale = |open: &Open| Some(open.identity) != identity;
        if self.open.get(network).is_some_and(is_stale)
            && let Some(mut old) = self.open.remove(network)
        {
            // Somebody unmounted it. If it is gone already, there is nothing to clear.
            drop(old.clear());
            self.unwatch(network);
        }
        if identity.is_some() && !self.open.contains_key(network) {
            let opened = Open::new(&self.namespaces, network);
            if let Some(mut opened) = opened.map_err(|error| refused(what(), error.into()))? {
                let is_up = opened.set_up_loopback();
                let is_watched = is_up.and_then(|()| self.watch(network, &mut opened));
                is_watched.map_err(|refusal| refused(what(), refusal))?;
                self.open.insert(network.clone(), opened);
            }
        }
        Ok(self.open.get_mut(network))
    }

    /// Watches a namespace before anything in it is read.
    fn watch(&self, network: &NetworkId, open: &mut Open) -> Result<(), Refusal> {
        if let Some(monitor) = &self.monitor {
            let socket = Monitor::join(open.file())?;
            let links = open.vxlans(network)?.into_values();
            let links = links.chain(open.bridges(network)?.into_values());
            monitor.add(network.clone(), socket, links.collect());
        }
        Ok(())
    }

    fn unwatch(&self, network: &NetworkId) {
        if let Some(monitor) = &self.monitor {
            monitor.remove(network);
        }
    }

    /// Applies an operation on anything but rows.
    fn apply_one(&mut self, network: &NetworkId, op: &Op) -> Result<(), KernelError> {
        let refused = |refusal| refused(of(network, op), refusal);
        match op {
            Op::MakeNamespace => {
                let made = self.namespaces.make(network);
                made.map_err(|error| refused(error.into()))?;
                self.open(network)?;
                Ok(())
            }
            Op::RemoveNamespace => {
                if let Some(open) = self.open(network)? {
                    open.clear().map_err(refused)?;
                }
                self.open.remove(network);
                self.unwatch(network);
                let removed = self.namespaces.remove(network);
                removed.map_err(|error| refused(error.into()))
            }
            Op::SetDevice(device) => self.set_device(network, device),
            Op::RemoveDevice(vni) => {
                let Some(open) = self.open(network)? else {
                    return Ok(());
                };
                open.remove(network, *vni).map_err(refused)
            }
            Op::SetFdb { .. }
            | Op::RemoveFdb { .. }
            | Op::SetNeighbour { .. }
            | Op::RemoveNeighbour { .. }
            | Op::Unlearn { .. } => Ok(()),
        }
    }

    fn set_device(&mut self, network: &NetworkId, device: &Device) -> Result<(), KernelError> {
        self.open(network)?;
        let Some(mut open) = self.open.remove(network) else {
            return Err(KernelError::NoNamespace(network.clone()));
        };
        let make_room = || remove_leftover(&self.namespaces, &self.open, network, device);
        let outcome = open.set(&mut self.host, network, device, make_room);
        self.open.insert(network.clone(), open);
        outcome.map_err(|error| match error {
            DeviceError::Taken => KernelError::VniTaken(device.vni),
            DeviceError::Refused(refusal) => {
                refused(of(network, &Op::SetDevice(device.clone())), refusal)
            }
        })
    }

    /// Applies operations on rows; `first` is the place of the first in the batch that the caller knows.
    fn apply_rows(
        &mut self,
        network: &NetworkId,
        ops: &[Op],
        first: usize,
    ) -> Result<Vec<Failure>, KernelError> {
        let Some(open) = self.open(network)? else {
            return Err(KernelError::NoNamespace(network.clone()));
        };
        let vxlans = open.vxlans(network);
        let vxlans = vxlans.map_err(|refusal| refused(of(network, &ops[0]), refusal))?;
        let mut failures = BTreeMap::new();
        let mut asked = Vec::with_capacity(ops.len());
        for (at, op) in ops.iter().enumerate() {
            match rows::segment(op).and_then(|vni| vxlans.get(&vni)) {
                Some(link) => {
                    if let Op::SetFdb { vni, mac, .. } = op
                        && open.groups.remove(&(*vni, *mac))
                    {
                        asked.push((at, link.index, Some(*mac)));
                    }
                    asked.push((at, link.index, None));
                }
                None if removes(op) => {}
                None => {
                    failures.insert(at, Errno::NODEV.into());
                }
            }
        }
        let requests = asked.iter();
        let requests = requests.filter_map(|(at, link, group)| match group {
            Some(mac) => Some(rows::remove_fdb(*link, *mac)),
            None => rows::request(*link, &ops[*at]),
        });
        open.socket.batch(requests, |nth, refusal| {
            failures.insert(asked[nth].0, refusal);
        });
        let failures = failures.into_iter().map(|(at, refusal)| Failure {
            index: first + at,
            error: refused(of(network, &ops[at]), refusal),
        });
        Ok(failures.collect())
    }

    fn read(&mut self, network: &NetworkId) -> Result<Actual, KernelError> {
        let what = || format!("read the devices of network {network}");
        let Some(open) = self.open(network)? else {
            return Ok(Actual::default());
        };
        let segments = read_segments(open, network);
        Ok(Actual {
            has_namespace: true,
            segments: segments.map_err(|refusal| refused(what(), refusal))?,
        })
    }
}

impl Kernel for NetlinkKernel {
    fn dump(&mut self, network: &NetworkId) -> Result<Actual, KernelError> {
        self.read(network)
    }

    fn apply(&mut self, network: &NetworkId, ops: &[Op]) -> Vec<Failure> {
        let mut failures = Vec::new();
        let is_row = |op: &Op| rows::segment(op).is_some();
        let mut first = 0;
        // Rows go together as far as nothing else is between them.
        for run in ops.chunk_by(|a, b| is_row(a) && is_row(b)) {
            match run {
                [op] if !is_row(op) => {
                    let error = self.apply_one(network, op).err();
                    failures.extend(error.map(|error| Failure {
                        index: first,
                        error,
                    }));
                }
                rows => match self.apply_rows(network, rows, first) {
                    Ok(found) => failures.extend(found),
                    Err(error) => {
                        let all = (first..).zip(rows);
                        failures.extend(all.map(|(index, _)| Failure {
                            index,
                            error: error.clone(),
                        }));
                    }
                },
            }
            first += run.len();
        }
        failures
    }

    fn networks(&mut self) -> Result<BTreeSet<NetworkId>, KernelError> {
        let found = self.namespaces.list();
        found.map_err(|error| refused("list namespaces".to_owned(), error.into()))
    }

    fn underlay_mtu(&mut self, local: IpAddr) -> Result<u32, KernelError> {
        let what = format!("read the MTU of the interface with {local}");
        links::mtu_of(&mut self.host, local).map_err(|refusal| refused(what, refusal))
    }
}

/// Reads the segments of a network.
fn read_segments(
    open: &mut Open,
    network: &NetworkId,
) -> Result<BTreeMap<Vni, ActualSegment>, Refusal> {
    let [vxlans, mut bridges] = [open.vxlans(network)?, open.bridges(network)?];
    let mut segments = BTreeMap::new();
    open.groups.clear();
    for (vni, link) in vxlans {
        let bridge = bridges.remove(&vni);
        // One that nobody could want is as if it were not there: it will be made anew, and its rows are lost then.
        let Some(mut device) = link.device(vni) else {
            segments.insert(vni, ActualSegment::default());
            continue;
        };
        if let Some(bridge) = &bridge {
            device.gateways = open.gateways(bridge)?.into_iter().collect();
        }
        let (fdb, learned) = rows::fdb(&mut open.socket, link.index)?;
        let is_group = |row: &FdbRow| row.has_more && row.vtep.is_unspecified();
        let groups = fdb.iter().filter(|(_, row)| is_group(row));
        open.groups.extend(groups.map(|(mac, _)| (vni, *mac)));
        let segment = ActualSegment {
            faults: faults(&link, bridge.as_ref(), &device),
            device: Some(device),
            fdb,
            neighbours: rows::neighbours(&mut open.socket, link.index)?,
            learned,
        };
        segments.insert(vni, segment);
    }
    let without_vxlan = bridges.into_keys();
    segments.extend(without_vxlan.map(|vni| (vni, ActualSegment::default())));
    Ok(segments)
}

/// Compares the devices of a segment with what each should be.
fn faults(vxlan: &Link, bridge: Option<&Link>, device: &Device) -> BTreeSet<DeviceFault> {
    let mut faults = BTreeSet::new();
    let mut find = |is_there: bool, fault| {
        if is_there {
            faults.insert(fault);
        }
    };
    find(!vxlan.is_up, DeviceFault::VxlanDown);
    match bridge {
        None => find(true, DeviceFault::NoBridge),
        Some(bridge) => {
            find(!bridge.is_up, DeviceFault::BridgeDown);
            find(vxlan.master != bridge.index, DeviceFault::NotEnslaved);
            find(vxlan.mtu != bridge.mtu, DeviceFault::OtherMtu);
            find(!bridge.has_address_of(device), DeviceFault::OtherAddress);
        }
    }
    faults
}

/// Tells whether an operation only takes something away, which what is not there does not have.
fn removes(op: &Op) -> bool {
    matches!(
        op,
        Op::RemoveFdb { .. } | Op::RemoveNeighbour { .. } | Op::Unlearn { .. }
    )
}

/// Removes the device that holds a VNI and a port if it is one of ours that no network of this run has, and tells whether
/// it was.
fn remove_leftover(
    namespaces: &Namespaces,
    in_use: &BTreeMap<NetworkId, Open>,
    network: &NetworkId,
    device: &Device,
) -> bool {
    let all = namespaces.list().unwrap_or_default();
    let unused = all
        .iter()
        .filter(|other| *other != network && !in_use.contains_key(*other));
    for other in unused {
        let Ok(Some(mut open)) = Open::new(namespaces, other) else {
            continue;
        };
        let vxlans = open.vxlans(other).unwrap_or_default();
        let found = vxlans.get(&device.vni).and_then(Link::port);
        if found == Some(device.port) {
            let removed = open
                .socket
                .request(links::remove(vxlans[&device.vni].index));
            return removed.is_ok();
        }
    }
    false
}

/// Says what was asked, and of which network.
fn of(network: &NetworkId, op: &Op) -> String {
    format!("{op} of network {network}")
}

fn refused(what: String, refusal: Refusal) -> KernelError {
    KernelError::Refused {
        what,
        reason: refusal.to_string(),
        errno: refusal.errno,
    }
}
