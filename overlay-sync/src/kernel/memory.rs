//! A kernel in memory that fails on request, for tests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use networkdb::NetworkId;

use super::{Actual, Failure, Kernel, KernelError};
use crate::plan::Op;

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
    refusing: Option<Refusing>,
}

impl Default for MemoryKernel {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            networks: BTreeMap::new(),
            underlay_mtu: 1_500,
            applied: Vec::new(),
            dump_errors: VecDeque::new(),
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

    /// Changes what is held of a network behind the reconciler's back.
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

    /// Makes operations fail from here on, until told otherwise.
    pub fn refuse(&self, is_refused: impl Fn(&Op) -> bool + Send + 'static) {
        self.state().refusing = Some(Box::new(is_refused));
    }

    /// Makes nothing fail from here on.
    pub fn refuse_nothing(&self) {
        let mut state = self.state();
        state.refusing = None;
        state.dump_errors.clear();
    }

    /// Changes what the hosts' network carries, in bytes.
    pub fn set_underlay_mtu(&self, mtu: u32) {
        self.state().underlay_mtu = mtu;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it is held")
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
        let mut failures = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            if state.refusing.as_ref().is_some_and(|refused| refused(op)) {
                let error = KernelError::Refused {
                    what: op.to_string(),
                    reason: "no buffer space available".to_owned(),
                    errno: 105,
                };
                failures.push(Failure { index, error });
                continue;
            }
            state.applied.push(op.clone());
            let actual = state.networks.entry(network.clone()).or_default();
            actual.apply(op);
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
        Ok(self.state().underlay_mtu)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("networks", &self.networks)
            .finish_non_exhaustive()
    }
}
