//! What goes into the engine and what comes out: plain data, nothing that calls back.
//!
//! Outputs are ordered. A timer is opaque to the driver and may be late, doubled or stale: the engine looks at its state
//! when one fires.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::inspect::{InspectToken, Inspected};
use super::membership::SwimTimer;
use super::progress::JoinProgress;
use super::stream::{JoinToken, StreamId};
use crate::id::{Key, NetworkId, NodeId, TableName};

/// What the engine is told.
#[derive(Debug)]
pub enum Input {
    /// A datagram whose seal was good.
    Datagram {
        /// Its payload.
        payload: Bytes,
    },
    /// A timer is due. Late, doubled and stale ones do no harm.
    Timer(Timer),
    /// Another node opened a stream.
    StreamAccepted {
        /// The driver's name for it.
        stream: StreamId,
        /// Where it comes from.
        peer: SocketAddr,
    },
    /// A frame of a stream whose seal was good.
    StreamFrame {
        /// The stream.
        stream: StreamId,
        /// Its payload.
        payload: Bytes,
    },
    /// A frame has been handed to the kernel.
    FrameSent {
        /// The stream.
        stream: StreamId,
    },
    /// A stream is gone.
    StreamClosed {
        /// The stream.
        stream: StreamId,
        /// Why, unless one side closed it in good order.
        error: Option<String>,
    },
}

/// What the engine wants done. Outputs are ordered.
#[derive(Debug)]
pub enum Output {
    /// Seal the payload and send it.
    SendDatagram {
        /// To this address.
        to: SocketAddr,
        /// What to seal.
        payload: Bytes,
    },
    /// Give the timer back after a while.
    SetTimer {
        /// How long.
        after: Duration,
        /// The timer.
        timer: Timer,
    },
    /// Connect to an address. Frames may follow at once and wait for the connection.
    OpenStream {
        /// The engine's name for it.
        stream: StreamId,
        /// To this address.
        to: SocketAddr,
    },
    /// Seal the payload, send it and answer [`Input::FrameSent`].
    SendFrame {
        /// The stream.
        stream: StreamId,
        /// What to seal.
        payload: Bytes,
    },
    /// Close a stream after its frames have left.
    CloseStream {
        /// The stream.
        stream: StreamId,
    },
    /// What readers see has changed.
    Notify(TableChange),
    /// A join through one address has ended.
    Joined {
        /// Which one.
        join: JoinToken,
        /// What came of it, or why nothing did.
        result: Result<(), String>,
    },
    /// A network joined by this node can be used.
    NetworkReady {
        /// The network.
        network: NetworkId,
        /// False when the first sync took too long and goes on in the background.
        is_synced: bool,
    },
    /// A comparison has ended.
    Inspected {
        /// Which one.
        token: InspectToken,
        /// What it has shown, or why it has not come to an end.
        result: Result<Inspected, String>,
    },
    /// The first sync of a network takes long, or is done after that was said.
    JoinProgress {
        /// The network.
        network: NetworkId,
        /// How far it is.
        progress: JoinProgress,
    },
    /// A member has come up.
    MemberUp {
        /// The node.
        node: NodeId,
        /// Where it is.
        addr: SocketAddr,
    },
    /// A member is gone.
    MemberDown {
        /// The node.
        node: NodeId,
        /// True when it said so itself.
        left: bool,
    },
    /// Another node has taken a key over that this node's entry was visible under.
    Lost(LostEntry),
    /// Another process runs under this node's id, in a later run: this one has to stop.
    Twin {
        /// Where the other one is.
        addr: SocketAddr,
    },
    /// [`super::Engine::persistent`] has changed and should be stored.
    Persist,
}

/// A timer of the engine, opaque to the driver.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Timer(pub(super) TimerKind);

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum TimerKind {
    /// With the time at which it is due.
    Swim(SwimTimer, Instant),
    /// A suspicion of the failure detector has lasted almost long enough.
    AskSuspect(SwimTimer),
    Push,
    Digest(NetworkId),
    DigestAgain(NetworkId),
    DigestRound,
    Compare,
    FirstSync(NetworkId),
    StreamIdle(StreamId),
    Rejoin,
    Reconnect,
    Reap,
}

/// A change of what readers see under a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableChange {
    /// The network.
    pub network: NetworkId,
    /// The table.
    pub table: TableName,
    /// The key.
    pub key: Key,
    /// What was seen before, `None` when the entry was created.
    pub previous: Option<Bytes>,
    /// What is seen from here on, `None` when the entry was deleted or hidden.
    pub value: Option<Bytes>,
}

/// An entry of this node that another node has replaced or deleted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LostEntry {
    /// The network.
    pub network: NetworkId,
    /// The table.
    pub table: TableName,
    /// The key.
    pub key: Key,
    /// The node that wrote since.
    pub by: NodeId,
}
