//! A balancer in memory that fails on request, for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use networkdb::NetworkId;

use super::{Balancer, Held, INDEX_MIN};
use crate::kernel::memory::Trouble;
use crate::kernel::{Failure, KernelError};
use crate::service::plan::ServiceOp;
use crate::service::{Balancing, Frontend, Service, Target};

/// A balancer in memory. Clones are the same balancer, so that a test keeps one while the reconciler has another.
#[derive(Clone, Debug, Default)]
pub struct MemoryBalancer(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    networks: BTreeMap<NetworkId, Balancing>,
    connections: BTreeMap<(Frontend, Target), u64>,
    applied: Vec<ServiceOp>,
    is_refusing: bool,
}

impl MemoryBalancer {
    /// Returns what is held of a network.
    #[must_use]
    pub fn held(&self, network: &NetworkId) -> Balancing {
        let state = self.state();
        state.networks.get(network).cloned().unwrap_or_default()
    }

    /// Changes what is held of a network behind the reconciler's back.
    pub fn sabotage(&self, network: &NetworkId, change: impl FnOnce(&mut Balancing)) {
        change(self.state().networks.entry(network.clone()).or_default());
    }

    /// Returns what was applied since this was last asked.
    pub fn take_applied(&self) -> Vec<ServiceOp> {
        std::mem::take(&mut self.state().applied)
    }

    /// Says how many connections are open.
    pub fn set_connections(&self, connections: BTreeMap<(Frontend, Target), u64>) {
        self.state().connections = connections;
    }

    /// Makes everything fail from here on, or nothing.
    pub fn refuse(&self, is_refusing: bool) {
        self.state().is_refusing = is_refusing;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it is held")
    }
}

impl Balancer for MemoryBalancer {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn holds_idle(&self) -> bool {
        true
    }

    fn refusal(&self, _: &Service) -> Option<&'static str> {
        None
    }

    fn read(&mut self, network: &NetworkId) -> Result<Held, KernelError> {
        if self.state().is_refusing {
            return Err(Trouble::NoBuffers.of("read"));
        }
        let balancing = self.held(network);
        let indices = balancing.services.keys().copied().zip(INDEX_MIN..);
        Ok(Held {
            indices: indices.collect(),
            balancing,
            unreached: BTreeSet::new(),
        })
    }

    fn apply(&mut self, network: &NetworkId, ops: &[ServiceOp]) -> Vec<Failure> {
        let mut state = self.state();
        let mut failures = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            if state.is_refusing {
                let error = Trouble::NoBuffers.of(op);
                failures.push(Failure { index, error });
                continue;
            }
            state.applied.push(op.clone());
            state.networks.entry(network.clone()).or_default().apply(op);
        }
        failures
    }

    fn connections(
        &mut self,
        _: &NetworkId,
    ) -> Result<BTreeMap<(Frontend, Target), u64>, KernelError> {
        Ok(self.state().connections.clone())
    }

    fn clear(&mut self, network: &NetworkId) -> Result<(), KernelError> {
        self.state().networks.remove(network);
        Ok(())
    }
}
