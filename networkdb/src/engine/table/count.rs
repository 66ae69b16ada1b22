//! How much a [`super::Table`] holds of what.

use super::{Kind, Standing, Table};

/// What a table holds, by what readers see of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TableStats {
    /// Visible entries.
    pub entries: usize,
    /// Bytes of their values.
    pub value_bytes: usize,
    /// Entries whose owner failed.
    pub hidden: usize,
    /// Deletes that are still remembered.
    pub tombstones: usize,
    /// Entries of attachments that are over.
    pub stubs: usize,
}

impl Table {
    /// Counts what the table holds, by walking it.
    #[must_use]
    pub fn stats(&self) -> TableStats {
        let mut stats = TableStats::default();
        self.walk(
            |record| match (record.slot.kind, record.owner().standing()) {
                (Kind::Value, Standing::Live) => {
                    stats.entries += 1;
                    stats.value_bytes += record.slot.value().len();
                }
                (Kind::Value, Standing::Hidden) => stats.hidden += 1,
                (Kind::Tombstone, _) => stats.tombstones += 1,
                (Kind::Stub, _) | (Kind::Value, Standing::Over) => stats.stubs += 1,
            },
        );
        stats
    }
}
