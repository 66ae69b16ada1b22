//! How long to wait after the kernel has refused something.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LAST: Duration = Duration::from_secs(30);

/// Pauses that double from one failure to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the pause after one more failure.
    pub(super) fn next(&mut self) -> Duration {
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
