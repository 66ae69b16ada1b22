//! Eventually consistent, gossip-replicated tables for overlay networks.
//!
//! Every host runs a node. Nodes find and watch each other by SWIM; each attaches itself to the networks it takes part in.
//! A network has named tables of `key -> bytes`. A write is applied locally, stamped with a Lamport time and this node's
//! id, and spread to the other nodes attached to that network; digests find and repair what was lost on the way. Reads
//! and watches are always local. When a node leaves, its entries go; when it fails, they are hidden and come back with it.
//!
//! * [`node`] is what programs embed: sockets, the clock and the handle [`node::NetworkDb`] (feature `node`).
//! * [`engine`] is the protocol without any I/O: plain inputs and outputs, time as an argument.
//! * [`wire`] turns bytes into checked types and seals datagrams and streams.
//! * [`id`], [`config`], [`keyring`], [`stats`] and [`histogram`] are what their names say.
//!
//! `docs/ALGORITHM.md` states the rules, `docs/ARCHITECTURE.md` says where to change what.

pub mod config;
pub mod engine;
pub mod histogram;
pub mod id;
pub mod keyring;
#[cfg(feature = "node")]
pub mod node;
pub mod stats;
mod sync;
pub mod wire;

pub use config::{CheckedConfig, Config, ConfigError};
pub use engine::{NetworkError, WriteError};
pub use histogram::Histogram;
pub use id::{
    Generation, Key, LamportTime, NameError, NetworkId, NodeId, Stamp, TableName, Version,
    VersionTag,
};
pub use keyring::{GossipKey, KeyFileError, Keyring};
#[cfg(feature = "node")]
pub use node::{NetworkDb, NodeConfig};
pub use stats::Stats;
