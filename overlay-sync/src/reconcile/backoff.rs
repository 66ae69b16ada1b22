//! How long to wait after the kernel has refused something, and what is told of it.

use std::time::Duration;

use networkdb::NetworkId;
use tracing::warn;

use crate::kernel::{Failure, KernelError};

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LAST: Duration = Duration::from_secs(30);

/// What the kernel has refused of a network.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    backoff: Backoff,
    /// The last, until nothing is refused any more.
    pub(super) last_error: Option<String>,
    /// Operations.
    pub(super) failures: u64,
    /// Looks and changes in which there was any.
    pub(super) failed_syncs: u64,
}

/// Pauses that double from one failure to the next.
#[derive(Clone, Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Refusals {
    /// Takes what came of a change; returns the pause after which everything is looked at, as what the kernel holds is no
    /// longer certain, and none when nothing was refused.
    pub(super) fn of_change(
        &mut self,
        network: &NetworkId,
        failures: &[Failure],
    ) -> Option<Duration> {
        let Some(first) = failures.first() else {
            self.backoff = Backoff::default();
            self.last_error = None;
            return None;
        };
        let more = failures.len() - 1;
        self.failures += failures.len() as u64;
        self.tell(
            network,
            match more {
                0 => first.error.to_string(),
                _ => format!("{} (and {more} more)", first.error),
            },
        );
        Some(self.backoff.next())
    }

    /// Takes that the kernel could not be read; returns the pause before it is tried again.
    pub(super) fn of_look(&mut self, network: &NetworkId, error: &KernelError) -> Duration {
        self.tell(network, error.to_string());
        self.backoff.next()
    }

    fn tell(&mut self, network: &NetworkId, error: String) {
        if self.last_error.as_ref() != Some(&error) {
            warn!(%network, error, "the kernel did not do what was asked, trying again");
        }
        self.last_error = Some(error);
        self.failed_syncs += 1;
    }
}

impl Backoff {
    /// Returns the pause after one more failure.
    fn next(&mut self) -> Duration {
        let doubled = FIRST.saturating_mul(2u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        doubled.min(LAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..10).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[9], 30_000);
        for _ in 0..100 {
            assert_eq!(backoff.next().max(LAST), LAST);
        }
    }
}
