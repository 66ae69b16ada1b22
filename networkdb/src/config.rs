//! What can be tuned in the protocol, with presets and one check.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use crate::id::TableName;

/// Settings of the protocol. Start from a preset, change fields, then [`Config::check`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the cluster, authenticated in every datagram and stream. Nodes of clusters with different names refuse
    /// each other. Default `default`.
    pub cluster: String,
    /// How often one random member is probed. Larger detects failures later; smaller costs packets and suspects nodes
    /// that were only slow. Must be larger than `probe_timeout`. Default 600 ms.
    pub probe_period: Duration,
    /// How long a probed member may take to answer before others are asked to probe it. Default 250 ms.
    pub probe_timeout: Duration,
    /// How many others are asked. Default 3.
    pub probe_helpers: NonZeroUsize,
    /// How long a suspected member may take to refute. Multiplied by log10 of the cluster's size above ten members.
    /// Larger forgives longer pauses and detects later. Default 1,800 ms.
    pub suspicion: Duration,
    /// How often membership updates are gossiped while there are some. Default 100 ms.
    pub member_gossip_period: Duration,
    /// How often members that failed are called at least, in case they are back; at first every 300 ms. Default 5 s.
    pub reconnect_period: Duration,
    /// How often the bootstrap list is tried while one of its addresses is no live member. Grows up to tenfold while
    /// other members are alive. Default 1 s.
    pub rejoin_period: Duration,
    /// Largest datagram in bytes, seal included. Larger than the path's MTU fragments; smaller wastes headers. At least
    /// 576. Default 1,400.
    pub datagram_bytes_max: usize,
    /// Writes that follow another within this time leave together. Default 1 ms.
    pub push_window: Duration,
    /// Up to this many attached peers get every push directly; above, each round reaches `push_fanout` random ones and
    /// receivers relay. Default 64.
    pub push_direct_max: usize,
    /// Peers reached by one round of an indirect push. Default 4.
    pub push_fanout: NonZeroUsize,
    /// Rounds of an indirect push on each node at least; more where fan-out times rounds is below ln N + 5, as with the
    /// defaults above 1,096 nodes. Default 3.
    pub push_rounds: NonZeroU32,
    /// Pause between two rounds of an indirect push. Default 3 ms.
    pub push_round_gap: Duration,
    /// Bytes that each peer is sent by push at most, in a second on average; what does not fit waits, and goes by streams
    /// when it is much. Larger overruns the sockets of slow peers, and digests have to repair what was lost. Default 32 MiB.
    pub push_bytes_per_second: NonZeroUsize,
    /// Bytes that each peer may be sent by push at once. The sockets of the peers should have room for it. At least one
    /// datagram. Default 64 KiB.
    pub push_burst_bytes: usize,
    /// Own writes of one network that may wait to be pushed before streams take over, which are held back by the peers that
    /// read them. Default 1,024.
    pub feed_from: usize,
    /// Events of one network or of the cluster that may wait to be pushed. Further ones are left to digests. Default
    /// 65,536.
    pub push_queue_max: usize,
    /// How long after the last push or apply a digest is sent to one random peer. Default 10 ms.
    pub digest_delay: Duration,
    /// How often a digest of every attached network, and of the cluster, goes to one random peer. Default 3 s.
    pub digest_period: Duration,
    /// How long `join_network` may wait for the first sync. Default 5 s.
    pub join_network_timeout: Duration,
    /// Silence after which a stream is given up. Default 5 s.
    pub stream_timeout: Duration,
    /// Streams open at the same time, incoming and outgoing each. Default 64.
    pub streams_max: usize,
    /// How long tombstones and other dead records are kept. Must exceed the longest partition after which a delete
    /// still has to win. Default 30 min.
    pub reap_interval: Duration,
    /// How long failed and left nodes are remembered, with what they hide. Default 24 h.
    pub node_reap_interval: Duration,
    /// How often the log tells the size of every network and the health score. Default 5 min.
    pub stats_period: Duration,
    /// Largest value in bytes; at most 1 MiB. Default 64 KiB.
    pub value_bytes_max: usize,
    /// Entries, tombstones included, in one network. Default 16 Mi.
    pub entries_max: usize,
    /// Tables in one network. Default 1,024.
    pub tables_max: usize,
    /// Networks known in the cluster. Default 16 Ki.
    pub networks_max: usize,
    /// Nodes remembered, dead ones included. Default 16 Ki.
    pub nodes_max: usize,
    /// Tables in which a key is the id of a node and only that node may write it, in every network. Nodes refuse what others
    /// write there, so all of them need the same list. Default none.
    pub owner_only_tables: Vec<TableName>,
    /// Rules that are left out, so that the simulator can show what each of them is for. Never set this elsewhere.
    /// Default none.
    pub left_out: Vec<Rule>,
}

/// A rule of the data model that can be left out; see [`Config::left_out`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Rule {
    /// Versions are totally ordered: of two writes with equal times one wins, the same on every node.
    TotalOrder,
    /// A time far ahead of the local clock is refused.
    AheadLimit,
    /// A restart with state starts its clocks at the ceilings stored.
    StoredCeilings,
    /// Of a join and a leave of one stamp the leave wins, whichever arrives last.
    LeaveOrder,
    /// What a failed node wrote is hidden, not dropped.
    Hiding,
    /// A new node on the address of another means that the other has left.
    TakenAddress,
    /// How long a dead record is still to be kept travels with it.
    Residual,
    /// A timer of the failure detector that is late is not handled.
    LateTimers,
    /// What an ended attachment wrote stays as stubs until it expires.
    Stubs,
    /// Live entries of this node that it does not hold are answered with a tombstone.
    Veto,
    /// A refutation keeps the time of what it refutes.
    RefuteAtOwnTime,
    /// Live entries beaten by a record of an earlier run of this node are written anew.
    Reissue,
    /// Records about this node that are above its own are answered.
    SelfRefutation,
    /// A dead record in the last sixth of its life is neither sent nor accepted.
    LastSixth,
    /// A dead record in its last sixth that meets an older live one is renewed.
    Renewal,
    /// What belongs to unknown nodes expires.
    UnknownExpires,
    /// A restart with state goes on under the same stamps, and takes its own entries as found for a while.
    TakeAsFound,
    /// Join answers carry the clocks.
    JoinClocks,
    /// A live entry with a higher stamp proves the attachment.
    ProvenAttachment,
    /// A suspicion that lasts too long is voiced again.
    VoicedAgain,
}

/// Why a [`Config`] was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field} is {value}, it must be {rule}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What it must be.
    pub rule: &'static str,
}

/// A [`Config`] that passed [`Config::check`].
#[derive(Clone, Debug)]
pub struct CheckedConfig(Config);

impl std::ops::Deref for CheckedConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

impl CheckedConfig {
    /// Whether a rule is kept, as all are but in simulations that show what it is for.
    #[must_use]
    pub fn keeps(&self, rule: Rule) -> bool {
        !self.0.left_out.contains(&rule)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::lan()
    }
}

/// Makes a constant of a literal that is not zero.
const fn nonzero(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).expect("a literal above zero")
}

impl Config {
    /// Returns the default preset: one data centre, a silent death is detected within 4 s.
    #[must_use]
    pub fn lan() -> Self {
        Self {
            cluster: "default".into(),
            probe_period: Duration::from_millis(600),
            probe_timeout: Duration::from_millis(250),
            probe_helpers: nonzero(3),
            suspicion: Duration::from_millis(1_800),
            member_gossip_period: Duration::from_millis(100),
            reconnect_period: Duration::from_secs(5),
            rejoin_period: Duration::from_secs(1),
            datagram_bytes_max: 1_400,
            push_window: Duration::from_millis(1),
            push_direct_max: 64,
            push_fanout: nonzero(4),
            push_rounds: NonZeroU32::new(3).expect("a literal above zero"),
            push_round_gap: Duration::from_millis(3),
            push_bytes_per_second: nonzero(32 << 20),
            push_burst_bytes: 64 << 10,
            feed_from: 1_024,
            push_queue_max: 65_536,
            digest_delay: Duration::from_millis(10),
            digest_period: Duration::from_secs(3),
            join_network_timeout: Duration::from_secs(5),
            stream_timeout: Duration::from_secs(5),
            streams_max: 64,
            reap_interval: Duration::from_secs(30 * 60),
            node_reap_interval: Duration::from_secs(24 * 3_600),
            stats_period: Duration::from_secs(5 * 60),
            value_bytes_max: 64 * 1_024,
            entries_max: 16 << 20,
            tables_max: 1_024,
            networks_max: 16 << 10,
            nodes_max: 16 << 10,
            owner_only_tables: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Returns a preset that detects a silent death within 2 s and costs twice the probes.
    #[must_use]
    pub fn fast() -> Self {
        Self {
            probe_period: Duration::from_millis(300),
            probe_timeout: Duration::from_millis(120),
            suspicion: Duration::from_millis(750),
            member_gossip_period: Duration::from_millis(50),
            ..Self::lan()
        }
    }

    /// Returns a preset for links with round trips of up to a second.
    #[must_use]
    pub fn wan() -> Self {
        Self {
            probe_period: Duration::from_secs(3),
            probe_timeout: Duration::from_millis(1_500),
            suspicion: Duration::from_secs(9),
            member_gossip_period: Duration::from_millis(300),
            digest_delay: Duration::from_millis(200),
            digest_period: Duration::from_secs(10),
            stream_timeout: Duration::from_secs(20),
            ..Self::lan()
        }
    }

    /// Checks the limits and relations that the fields' docs state.
    pub fn check(self) -> Result<CheckedConfig, ConfigError> {
        let refuse = |field, value: String, rule| Err(ConfigError { field, value, rule });
        if self.probe_timeout >= self.probe_period {
            let value = format!("{:?}", self.probe_timeout);
            return refuse("probe_timeout", value, "shorter than probe_period");
        }
        if self.cluster.is_empty() || self.cluster.len() > crate::id::NAME_BYTES_MAX {
            let value = format!("{} bytes long", self.cluster.len());
            return refuse("cluster", value, "1 to 255 bytes long");
        }
        if !(576..=65_000).contains(&self.datagram_bytes_max) {
            let value = self.datagram_bytes_max.to_string();
            return refuse("datagram_bytes_max", value, "between 576 and 65000");
        }
        if self.push_burst_bytes < self.datagram_bytes_max {
            let value = self.push_burst_bytes.to_string();
            return refuse("push_burst_bytes", value, "at least datagram_bytes_max");
        }
        if self.value_bytes_max > 1 << 20 {
            let value = self.value_bytes_max.to_string();
            return refuse("value_bytes_max", value, "at most 1048576");
        }
        if self.node_reap_interval < self.reap_interval {
            let value = format!("{:?}", self.node_reap_interval);
            return refuse("node_reap_interval", value, "no shorter than reap_interval");
        }
        for (field, period) in [
            ("probe_timeout", self.probe_timeout),
            ("suspicion", self.suspicion),
            ("member_gossip_period", self.member_gossip_period),
            ("reconnect_period", self.reconnect_period),
            ("rejoin_period", self.rejoin_period),
            ("digest_period", self.digest_period),
            ("stream_timeout", self.stream_timeout),
            ("reap_interval", self.reap_interval),
            ("stats_period", self.stats_period),
        ] {
            if period < Duration::from_millis(1) {
                return refuse(field, format!("{period:?}"), "at least 1ms");
            }
        }
        Ok(CheckedConfig(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid() {
        for preset in [Config::lan(), Config::fast(), Config::wan()] {
            assert!(preset.check().is_ok());
        }
    }

    #[test]
    fn nonsense_is_refused_with_field_value_and_rule() {
        let config = Config {
            probe_timeout: Duration::from_secs(2),
            ..Config::lan()
        };
        assert_eq!(
            config.check().unwrap_err().to_string(),
            "probe_timeout is 2s, it must be shorter than probe_period"
        );
    }
}
