//! Counters of one sender: which were seen.

/// The highest counter seen and which of the [`Self::BITS`] below it were.
#[derive(Debug)]
pub(super) struct ReplayWindow {
    next: u64,
    seen: [u64; 16],
}

impl ReplayWindow {
    const BITS: u64 = 1_024;

    /// Returns a window that takes no counter below `floor`.
    pub(super) fn starting_at(floor: u64) -> Self {
        Self {
            next: floor,
            seen: [u64::MAX; 16],
        }
    }

    /// Marks the counter and says whether it was new.
    pub(super) fn accept(&mut self, counter: u64) -> bool {
        if counter.saturating_add(Self::BITS) < self.next {
            return false;
        }
        if counter >= self.next {
            let from = self.next.max(counter.saturating_sub(Self::BITS - 1));
            for skipped in from..=counter {
                self.set(skipped, false);
            }
            self.next = counter + 1;
        }
        let was_new = !self.is_set(counter);
        self.set(counter, true);
        was_new
    }

    fn place(counter: u64) -> (usize, u64) {
        let word = usize::try_from(counter % Self::BITS / 64).expect("below 16");
        (word, 1 << (counter % 64))
    }

    fn is_set(&self, counter: u64) -> bool {
        let (word, bit) = Self::place(counter);
        self.seen[word] & bit != 0
    }

    fn set(&mut self, counter: u64, to: bool) {
        let (word, bit) = Self::place(counter);
        if to {
            self.seen[word] |= bit;
        } else {
            self.seen[word] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reordered_counters_are_taken_once() {
        let mut window = ReplayWindow::starting_at(0);
        assert!(window.accept(5));
        assert!(window.accept(3));
        assert!(!window.accept(3));
        assert!(window.accept(5_000));
        assert!(!window.accept(3_000));
        assert!(window.accept(4_500));
        assert!(!window.accept(4_500));
    }

    #[test]
    fn nothing_below_the_floor_is_taken() {
        for floor in [1, 63, 64, 1_023, 1_024, 1_025, 9_999] {
            let mut window = ReplayWindow::starting_at(floor);
            for counter in (0..floor).rev() {
                assert!(!window.accept(counter), "{counter} of {floor}");
            }
            assert!(window.accept(floor + 7));
            assert!(!window.accept(floor - 1));
            for counter in floor..floor + 7 {
                assert!(window.accept(counter), "{counter} of {floor}");
                assert!(!window.accept(counter), "{counter} of {floor}");
            }
        }
    }
}
