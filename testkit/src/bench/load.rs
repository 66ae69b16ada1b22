//! What is written, and what the operating system says about it: keys, values, CPU time, memory.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use networkdb::Key;
use rustix::time::{ClockId, clock_gettime};

/// Bytes of a key, as the peers were measured with.
pub const KEY_BYTES: usize = 25;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 64;

/// Characters of a key, six random bits each.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Makes keys and values that no compressor shortens below their entropy; the same seed gives the same ones.
///
/// Vigna's splitmix64: a cipher would take longer than what is measured.
#[derive(Clone, Debug)]
pub struct Load {
    state: u64,
}

impl Load {
    /// Makes a generator.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Draws a number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Draws a key. Two of a run are equal with a probability of 2^-100.
    pub fn key(&mut self) -> Key {
        let mut name = String::with_capacity(KEY_BYTES);
        let mut bits = 0;
        for place in 0..KEY_BYTES {
            if place % 10 == 0 {
                bits = self.number();
            }
            name.push(ALPHABET[usize::from(bits.to_le_bytes()[0] & 63)].into());
            bits >>= 6;
        }
        Key::new(name).expect("25 characters")
    }

    /// Draws a value.
    pub fn value(&mut self) -> Bytes {
        let words = (0..VALUE_BYTES / 8).flat_map(|_| self.number().to_le_bytes());
        words.collect::<Vec<u8>>().into()
    }

    /// Draws an entry.
    pub fn entry(&mut self) -> (Key, Bytes) {
        (self.key(), self.value())
    }

    /// Draws many entries.
    pub fn entries(&mut self, count: usize) -> Vec<(Key, Bytes)> {
        (0..count).map(|_| self.entry()).collect()
    }

    /// Draws a place below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        let count = count as u64;
        usize::try_from(self.number() % count).expect("below a usize")
    }
}

/// Returns the CPU time of all threads of this process.
#[must_use]
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("CPU time is not negative");
    let nanos = u32::try_from(time.tv_nsec).expect("below a second");
    Duration::new(seconds, nanos)
}

/// Returns the memory that this process holds, in bytes.
pub fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("VmRSS in kB")?.trim().parse()?;
    Ok(kib * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_entries() {
        let (one, other) = (Load::new(1).entries(9), Load::new(1).entries(9));
        assert_eq!(one, other);
        assert_ne!(one, Load::new(2).entries(9));
        assert_eq!(one[0].0.as_str().len(), KEY_BYTES);
        assert_eq!(one[0].1.len(), VALUE_BYTES);
    }
}
