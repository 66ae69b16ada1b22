//! Watches what others do to our devices: one thread over a socket in each namespace and one on the host.
//!
//! The kernel sends a message for each change to whoever has joined the group of its kind. What is done here comes back,
//! too, and nothing in it tells it apart. When the kernel has more to tell than a socket holds, or we more than the queue
//! of notices, what is lost becomes one notice that only a dump tells; none is dropped without that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::{self, JoinHandle};

use netlink_sys::protocols::NETLINK_ROUTE;
use networkdb::NetworkId;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::sync::mpsc::{Sender, error::TrySendError};

use super::links::{
    Link, RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK, number, parse_address,
};
use super::netns;
use super::rows::{RTM_DELNEIGH, RTM_NEWNEIGH, Row};
use super::socket::{Frames, enlarge};
use super::{Notice, Vni};

/// The groups of links, rows and addresses (`enum rtnetlink_groups` in linux/rtnetlink.h).
const GROUPS: [u32; 4] = [1, 3, 5, 9];

/// Room for one message; those of changes are small.
const RECEIVE_BYTES: usize = 16 * 1_024;

/// How long until a queue that was full is tried again.
const FULL_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// A thread that watches; it ends when this handle goes, or nobody takes its notices.
#[derive(Debug)]
pub(super) struct Monitor {
    commands: Option<std_mpsc::Sender<Command>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Add(Box<Watch>),
    Remove(NetworkId),
}

/// What is watched in one namespace.
#[derive(Debug)]
struct Watch {
    /// None is the host.
    network: Option<NetworkId>,
    socket: netlink_sys::Socket,
    /// What is known of the links of interest.
    links: BTreeMap<u32, Link>,
    /// Something was not told.
    is_lost: bool,
}

/// Nobody takes notices any more.
#[derive(Debug)]
struct Closed;

impl Monitor {
    /// Starts the thread, which watches the links of the calling thread's namespace, which is the host's.
    pub(super) fn start(notices: Sender<Notice>) -> io::Result<Self> {
        let host = Watch::new(None, join()?, Vec::new());
        let (commands, asked) = std_mpsc::channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let mut watcher = Watcher {
            asked,
            wake: Arc::clone(&wake),
            watches: vec![host],
            notices,
            buffer: vec![0; RECEIVE_BYTES],
        };
        let thread = thread::Builder::new().name("netlink-watch".to_owned());
        // It ends for no other reason than that it has nobody to talk to.
        let thread = thread.spawn(move || drop(watcher.run()))?;
        Ok(Self {
            commands: Some(commands),
            wake,
            thread: Some(thread),
        })
    }

    /// Joins the groups in a namespace: from then on nothing is missed that happens in it.
    pub(super) fn join(namespace: &File) -> io::Result<netlink_sys::Socket> {
        netns::inside(namespace, join)
    }

    /// Watches the namespace of a network, whose links are given as they were after its socket had joined.
    pub(super) fn add(&self, network: NetworkId, socket: netlink_sys::Socket, links: Vec<Link>) {
        let watch = Watch::new(Some(network), socket, links);
        self.command(Command::Add(Box::new(watch)));
    }

    /// Watches the namespace of a network no more.
    pub(super) fn remove(&self, network: &NetworkId) {
        self.command(Command::Remove(network.clone()));
    }

    fn command(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // A thread that has ended has nobody to tell anything.
            drop(commands.send(command));
            self.wake();
        }
    }

    fn wake(&self) {
        // It fails only when so many wait already that it will wake up anyway.
        rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()).ok();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.commands = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It does not panic, and if it did, it has ended, too.
            drop(thread.join());
        }
    }
}

/// Opens a socket in the calling thread's namespace and joins the groups.
fn join() -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    enlarge(&socket)?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    Ok(socket)
}

/// The thread.
#[derive(Debug)]
struct Watcher {
    asked: std_mpsc::Receiver<Command>,
    wake: Arc<OwnedFd>,
    watches: Vec<Watch>,
    notices: Sender<Notice>,
    buffer: Vec<u8>,
}

impl Watcher {
    fn run(&mut self) -> Result<(), Closed> {
        loop {
            self.wait();
            let mut counter = [0; 8];
            // Nothing to read is as good.
            rustix::io::read(&*self.wake, &mut counter).ok();
            loop {
                match self.asked.try_recv() {
                    Ok(Command::Add(watch)) => self.watches.push(*watch),
                    Ok(Command::Remove(network)) => {
                        let is_other = |watch: &Watch| watch.network.as_ref() != Some(&network);
                        self.watches.retain(is_other);
                    }
                    Err(std_mpsc::TryRecvError::Empty) => break,
                    Err(std_mpsc::TryRecvError::Disconnected) => return Ok(()),
                }
            }
            for watch in &mut self.watches {
                watch.drain(&mut self.buffer, &self.notices)?;
            }
        }
    }

    /// Waits until there is something to read, or to be told again.
    fn wait(&self) {
        let sockets = self.watches.iter().map(|watch| &watch.socket);
        let mut fds: Vec<_> = sockets.map(|s| PollFd::new(s, PollFlags::IN)).collect();
        fds.push(PollFd::new(&*self.wake, PollFlags::IN));
        let is_lost = self.watches.iter().any(|watch| watch.is_lost);
        // An error is the end of a wait like any other: all sockets are read then.
        poll(&mut fds, is_lost.then_some(&FULL_PAUSE)).ok();
    }
}

impl Watch {
    fn new(network: Option<NetworkId>, socket: netlink_sys::Socket, links: Vec<Link>) -> Self {
        Self {
            network,
            socket,
            links: links.into_iter().map(|link| (link.index, link)).collect(),
            is_lost: false,
        }
    }

    /// Reads and tells all that there is.
    fn drain(&mut self, buffer: &mut [u8], notices: &Sender<Notice>) -> Result<(), Closed> {
        loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match recv(&self.socket, &mut *buffer, flags) {
                Ok((_, bytes)) if bytes > buffer.len() => self.is_lost = true,
                Ok((received, _)) => {
                    for frame in Frames(&buffer[..received]) {
                        if let Some(notice) = self.read(frame.kind, frame.payload) {
                            self.tell(notice, notices)?;
                        }
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The kernel had no room for more (ENOBUFS).
                Err(_) => self.is_lost = true,
            }
        }
        if self.is_lost {
            self.is_lost = false;
            self.tell(self.all(), notices)?;
        }
        Ok(())
    }

    /// Says that anything may have changed.
    fn all(&self) -> Notice {
        let network = self.network.clone();
        network.map_or(Notice::Underlay, Notice::Network)
    }

    fn tell(&mut self, notice: Notice, notices: &Sender<Notice>) -> Result<(), Closed> {
        if self.is_lost {
            // A dump will tell this, too.
            return Ok(());
        }
        match notices.try_send(notice) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.is_lost = true,
            Err(TrySendError::Closed(_)) => return Err(Closed),
        }
        Ok(())
    }

    /// Reads one message; none if it is of no interest.
    fn read(&mut self, kind: u16, payload: &[u8]) -> Option<Notice> {
        match kind {
            RTM_NEWLINK => {
                let link = Link::parse(kind, payload)?;
                let known = self.links.get(&link.index);
                if known.is_some_and(|known| *known == link) || !self.concerns(&link) {
                    return None;
                }
                self.links.insert(link.index, link);
                Some(self.all())
            }
            RTM_DELLINK => {
                let index = number(payload.get(4..)?)?;
                // A bridge says so of a port that only leaves it (AF_BRIDGE).
                let is_gone = payload.first() == Some(&0) && self.links.remove(&index).is_some();
                is_gone.then(|| self.all())
            }
            RTM_NEWADDR | RTM_DELADDR => {
                let (index, net) = parse_address(payload)?;
                let link = self.links.get(&index)?;
                let is_news = self.network.is_none() || !link.is_own_link_local(net.addr());
                is_news.then(|| self.all())
            }
            RTM_NEWNEIGH | RTM_DELNEIGH => self.read_row(kind, payload),
            _ => None,
        }
    }

    /// Tells whether a link is ours, or was, or is on the host.
    fn concerns(&self, link: &Link) -> bool {
        let Some(network) = &self.network else {
            return true;
        };
        let is_ours = link
            .vni(network)
            .or_else(|| link.bridge_vni(network))
            .is_some();
        is_ours || self.links.contains_key(&link.index)
    }

    fn read_row(&self, kind: u16, payload: &[u8]) -> Option<Notice> {
        let network = self.network.clone()?;
        let (index, row) = Row::parse(payload)?;
        let vni: Vni = self.links.get(&index)?.vni(&network)?;
        let is_there = kind == RTM_NEWNEIGH;
        match row {
            Row::Fdb(mac, row) => Some(Notice::Fdb {
                network,
                vni,
                mac,
                row: is_there.then_some(row),
            }),
            Row::Neighbour(ip, row) => Some(Notice::Neighbour {
                network,
                vni,
                ip,
                row: is_there.then_some(row),
            }),
            Row::Learned(_) => None,
        }
    }
}
