//! A kernel in memory that fails on request, for tests.
//!
//! It refuses what the real one refuses: devices without a namespace, rows without a device, and a VNI that a device of
//! another network has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use networkdb::NetworkId;

use super::{Actual, Device, Failure, Kernel, KernelError};
use crate::plan::Op;

/// Errors of Linux as `errno.h` numbers them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trouble {
    /// A signal came between, or the tables changed while they were read.
    Interrupted,
    /// The memory is full.
    NoMemory,
    /// What is to be made is there.
    Exists,
    /// There is no such device.
    NoDevice,
    /// A table or a socket's buffer is full.
    NoBuffers,
}

impl Trouble {
    /// Makes it the error of something that was asked.
    #[must_use]
    pub fn of(self, what: impl fmt::Display) -> KernelError {
        let (errno, reason) = match self {
            Self::Interrupted => (4, "interrupted system call"),
            Self::NoMemory => (12, "cannot allocate memory"),
            Self::Exists => (17, "file exists"),
            Self::NoDevice => (19, "no such device"),
            Self::NoBuffers => (105, "no buffer space available"),
        };
        KernelError::Refused {
            what: what.to_string(),
            reason: reason.to_owned(),
            errno,
        }
    }
}

/// Says which operations fail.
type Refusing = Box<dyn Fn(&Op) -> bool + Send>;

/// A kernel in memory. Clones are the same kernel, so that a test keeps one while the reconciler has another.
#[derive(Clone, Debug)]
pub struct MemoryKernel(Arc<Mutex<State>>);

struct State {
    networks: BTreeMap<NetworkId, Actual>,
    underlay_mtu: u32,
    /// Everything that was applied, in its order.
    applied: Vec<Op>,
    /// Errors of the next dumps.
    dump_errors: VecDeque<KernelError>,
    /// Errors of the next questions for the underlay's MTU.
    underlay_errors: VecDeque<KernelError>,
    /// Errors of the next calls of `apply`, each of the whole call.
    call_errors: VecDeque<Trouble>,
    /// Errors of the next operations.
    op_errors: VecDeque<Trouble>,
    refusing: Option<(Trouble, Refusing)>,
}

impl Default for MemoryKernel {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            networks: BTreeMap::new(),
            underlay_mtu: 1_500,
            applied: Vec::new(),
            dump_errors: VecDeque::new(),
            underlay_errors: VecDeque::new(),
            call_errors: VecDeque::new(),
            op_errors: VecDeque::new(),
            refusing: None,
        })))
    }
}

impl MemoryKernel {
    /// Returns what is held of a network.
    #[must_use]
    pub fn actual(&self, network: &NetworkId) -> Actual {
        let state = self.state();
        state.networks.get(network).cloned().unwrap_or_default()
    }

    /// Changes what is held of a network behind the reconciler's back: rows, devices, and what others put there.
    pub fn sabotage(&self, network: &NetworkId, change: impl FnOnce(&mut Actual)) {
        change(self.state().networks.entry(network.clone()).or_default());
    }

    /// Returns what was applied since this was last asked.
    pub fn take_applied(&self) -> Vec<Op> {
        std::mem::take(&mut self.state().applied)
    }

    /// Makes the next dump fail; several wait for their turn.
    pub fn fail_dump(&self, error: KernelError) {
        self.state().dump_errors.push_back(error);
    }

    /// Makes the next question for the underlay's MTU fail; several wait for their turn.
    pub fn fail_underlay_mtu(&self, error: KernelError) {
        self.state().underlay_errors.push_back(error);
    }

    /// Makes the next calls that apply operations fail as a whole.
    pub fn fail_calls(&self, count: usize, trouble: Trouble) {
        let mut state = self.state();
        state.call_errors.extend([trouble].repeat(count));
    }

    /// Makes the next operations fail, whatever they are.
    pub fn fail_ops(&self, count: usize, trouble: Trouble) {
        let mut state = self.state();
        state.op_errors.extend([trouble].repeat(count));
    }

    /// Makes operations fail with [`Trouble::NoBuffers`] from here on, until told otherwise.
    pub fn refuse(&self, is_refused: impl Fn(&Op) -> bool + Send + 'static) {
        self.refuse_with(Trouble::NoBuffers, is_refused);
    }

    /// Makes operations fail from here on, until told otherwise.
    pub fn refuse_with(&self, trouble: Trouble, is_refused: impl Fn(&Op) -> bool + Send + 'static) {
        self.state().refusing = Some((trouble, Box::new(is_refused)));
    }

    /// Makes nothing fail from here on that the kernel would do.
    pub fn refuse_nothing(&self) {
        let mut state = self.state();
        state.refusing = None;
        state.dump_errors.clear();
        state.underlay_errors.clear();
        state.call_errors.clear();
        state.op_errors.clear();
    }

    /// Changes what the hosts' network carries, in bytes.
    pub fn set_underlay_mtu(&self, mtu: u32) {
        self.state().underlay_mtu = mtu;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it is held")
    }
}

impl State {
    fn apply(&mut self, network: &NetworkId, op: &Op) -> Result<(), KernelError> {
        if let Some(trouble) = self.op_errors.pop_front() {
            return Err(trouble.of(op));
        }
        if let Some((trouble, is_refused)) = &self.refusing
            && is_refused(op)
        {
            return Err(trouble.of(op));
        }
        self.check(network, op)?;
        self.applied.push(op.clone());
        let actual = self.networks.entry(network.clone()).or_default();
        actual.apply(op);
        Ok(())
    }

    /// Refuses what the kernel cannot do. Removing what is not there is no error.
    fn check(&self, network: &NetworkId, op: &Op) -> Result<(), KernelError> {
        let actual = self.networks.get(network);
        let has_namespace = actual.is_some_and(|actual| actual.has_namespace);
        match op {
            Op::SetDevice(_) if !has_namespace => Err(KernelError::NoNamespace(network.clone())),
            Op::SetDevice(device) if self.is_taken(network, device) => {
                Err(KernelError::VniTaken(device.vni))
            }
            Op::SetFdb { vni, .. } | Op::SetNeighbour { vni, .. } => {
                let segment = actual.and_then(|actual| actual.segments.get(vni));
                match segment.and_then(|segment| segment.device.as_ref()) {
                    Some(_) => Ok(()),
                    None => Err(Trouble::NoDevice.of(op)),
                }
            }
            Op::MakeNamespace
            | Op::RemoveNamespace
            | Op::SetDevice(_)
            | Op::RemoveDevice(_)
            | Op::RemoveFdb { .. }
            | Op::RemoveNeighbour { .. }
            | Op::Unlearn { .. } => Ok(()),
        }
    }

    /// The sockets of all VXLAN devices are in the host's namespace, so that networks share their numbers.
    fn is_taken(&self, network: &NetworkId, device: &Device) -> bool {
        let others = self.networks.iter().filter(|(id, _)| *id != network);
        let mut segments = others.filter_map(|(_, actual)| actual.segments.get(&device.vni));
        segments.any(|segment| {
            let other = segment.device.as_ref();
            other.is_some_and(|other| {
                (other.port, other.local.is_ipv4()) == (device.port, device.local.is_ipv4())
            })
        })
    }
}

impl Kernel for MemoryKernel {
    fn dump(&mut self, network: &NetworkId) -> Result<Actual, KernelError> {
        let error = self.state().dump_errors.pop_front();
        match error {
            Some(error) => Err(error),
            None => Ok(self.actual(network)),
        }
    }

    fn apply(&mut self, network: &NetworkId, ops: &[Op]) -> Vec<Failure> {
        let mut state = self.state();
        let trouble = state.call_errors.pop_front();
        let mut failures = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            let done = match trouble {
                Some(trouble) => Err(trouble.of(op)),
                None => state.apply(network, op),
            };
            if let Err(error) = done {
                failures.push(Failure { index, error });
            }
        }
        failures
    }

    fn networks(&mut self) -> Result<BTreeSet<NetworkId>, KernelError> {
        let state = self.state();
        let networks = state.networks.iter();
        let there = networks.filter(|(_, actual)| actual.has_namespace);
        Ok(there.map(|(id, _)| id.clone()).collect())
    }

    fn underlay_mtu(&mut self, _: IpAddr) -> Result<u32, KernelError> {
        let mut state = self.state();
        match state.underlay_errors.pop_front() {
            Some(error) => Err(error),
            None => Ok(state.underlay_mtu),
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("networks", &self.networks)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;
    use crate::kernel::{Flavour, Vni};
    use crate::mac::Mac;

    fn id(name: &str) -> NetworkId {
        NetworkId::new(name).unwrap()
    }

    fn vni() -> Vni {
        Vni::new(4_097).unwrap()
    }

    fn device() -> Op {
        Op::SetDevice(Device {
            vni: vni(),
            port: 4_789,
            local: IpAddr::from([192, 0, 2, 1]),
            mtu: 1_450,
            flavour: Flavour::Quiet,
            gateways: ["10.0.1.1/24".parse::<IpNet>().unwrap()].into(),
        })
    }

    fn row() -> Op {
        Op::SetFdb {
            vni: vni(),
            mac: Mac::new([2, 0, 0, 0, 0, 5]).unwrap(),
            vtep: IpAddr::from([192, 0, 2, 2]),
        }
    }

    fn failed(failures: &[Failure]) -> Vec<usize> {
        failures.iter().map(|failure| failure.index).collect()
    }

    #[test]
    fn what_the_kernel_cannot_do_is_refused_and_the_rest_is_done() {
        let mut kernel = MemoryKernel::default();
        let batch = [row(), device(), Op::MakeNamespace, device(), row()];
        let failures = kernel.apply(&id("a"), &batch);
        assert_eq!(failed(&failures), [0, 1]);
        assert_eq!(failures[0].error, Trouble::NoDevice.of(row()));
        assert_eq!(failures[1].error, KernelError::NoNamespace(id("a")));
        assert_eq!(kernel.actual(&id("a")).segments[&vni()].fdb.len(), 1);
        assert_eq!(kernel.take_applied(), batch[2..]);
        let failures = kernel.apply(&id("b"), &[Op::MakeNamespace, device()]);
        assert_eq!(failures[0].error, KernelError::VniTaken(vni()));
        assert_eq!(kernel.networks().unwrap(), [id("a"), id("b")].into());
        assert!(kernel.apply(&id("a"), &[Op::RemoveNamespace]).is_empty());
        assert!(kernel.apply(&id("b"), &[device()]).is_empty());
    }

    #[test]
    fn failures_come_as_they_were_asked_for() {
        let mut kernel = MemoryKernel::default();
        let hand = kernel.clone();
        let batch = [Op::MakeNamespace, device(), row()];
        hand.fail_calls(1, Trouble::NoMemory);
        let failures = kernel.apply(&id("a"), &batch);
        assert_eq!(failed(&failures), [0, 1, 2]);
        assert_eq!(failures[2].error, Trouble::NoMemory.of(row()));
        assert_eq!(hand.actual(&id("a")), Actual::default());
        kernel.apply(&id("a"), &batch);
        hand.fail_ops(2, Trouble::Exists);
        assert_eq!(failed(&kernel.apply(&id("a"), &batch)), [0, 1]);
        hand.refuse_with(Trouble::NoMemory, |op| matches!(op, Op::SetFdb { .. }));
        assert_eq!(failed(&kernel.apply(&id("a"), &batch)), [2]);
        hand.fail_dump(Trouble::Interrupted.of("dump"));
        hand.fail_underlay_mtu(Trouble::NoDevice.of("192.0.2.1"));
        assert!(kernel.dump(&id("a")).is_err());
        assert!(kernel.underlay_mtu(IpAddr::from([192, 0, 2, 1])).is_err());
        assert!(kernel.dump(&id("a")).is_ok());
        hand.refuse_nothing();
        assert_eq!(kernel.apply(&id("a"), &batch), []);
    }
}
