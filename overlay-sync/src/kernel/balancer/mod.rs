//! What balances connections in the namespace of a network: IPVS where the kernel has it, else nftables.
//!
//! Both hold the same: every frontend with its targets, marked as ours, so that a process that starts again finds what the
//! one before it made, and changes of it only what differs.

mod genl;
mod ipvs;
mod nft;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;

use networkdb::NetworkId;

use super::socket::Refusal;
use super::{Failure, KernelError};
use crate::service::plan::ServiceOp;
use crate::service::{Balancing, Frontend, Service, Target};

/// What the kernel holds of the services of a network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Held {
    /// What is balanced.
    pub balancing: Balancing,
    /// The number that each frontend has in this namespace: with IPVS the firewall mark of its packets. From
    /// [`INDEX_MIN`] on, the same as long as the frontend is there, another one on another host.
    pub indices: BTreeMap<Frontend, u32>,
}

/// The lowest number of a frontend, as Docker has it.
pub const INDEX_MIN: u32 = 256;

/// Balances connections in the namespaces of networks. All calls block; they are made from the thread of the data path only.
pub trait Balancer: fmt::Debug + Send {
    /// Returns its name: `ipvs` or `nftables`.
    fn name(&self) -> &'static str;

    /// Tells whether targets with weight 0 are in the kernel. Where they are not, their connections go on all the same.
    fn holds_idle(&self) -> bool;

    /// Says why a service cannot be balanced, if so.
    fn refusal(&self, service: &Service) -> Option<&'static str>;

    /// Reads what is ours in the namespace of a network; nothing when there is none.
    fn read(&mut self, network: &NetworkId) -> Result<Held, KernelError>;

    /// Applies operations in their order, each whether or not one before it failed, and tells which were not done.
    /// Adding what is there and removing what is not succeed. An error of the whole call is the failure of each operation.
    fn apply(&mut self, network: &NetworkId, ops: &[ServiceOp]) -> Vec<Failure>;

    /// Counts the connections from frontends to targets that are still open; those without any may lack.
    fn connections(
        &mut self,
        network: &NetworkId,
    ) -> Result<BTreeMap<(Frontend, Target), u64>, KernelError>;
}

/// What chooses the targets of connections in a namespace. Everything else, such as addresses of bridges, sources and the
/// way from the host into the namespace, is the same whatever chooses.
pub(super) trait Engine: fmt::Debug + Send {
    /// Returns its name, see [`Balancer::name`].
    fn name(&self) -> &'static str;

    /// See [`Balancer::holds_idle`].
    fn holds_idle(&self) -> bool;

    /// See [`Balancer::refusal`].
    fn refusal(&self, service: &Service) -> Option<&'static str>;

    /// Reads all services of ours in a namespace, each with its number.
    fn read(&mut self, namespace: &File) -> Result<BTreeMap<Frontend, (u32, Service)>, Refusal>;

    /// Applies operations of the kinds [`ServiceOp::Set`], [`ServiceOp::Remove`] and [`ServiceOp::Forget`] in a namespace,
    /// and tells which were not done.
    fn apply(&mut self, namespace: &File, ops: &[ServiceOp]) -> Vec<(usize, Refusal)>;

    /// See [`Balancer::connections`].
    fn connections(
        &mut self,
        namespace: &File,
    ) -> Result<BTreeMap<(Frontend, Target), u64>, Refusal>;
}
