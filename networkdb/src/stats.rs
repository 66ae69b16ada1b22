//! Counters of one node: everything sent, received, refused and dropped.

/// Counters since the node started. All only grow, but for those named `current`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Bytes of the datagrams sent, seals included.
    pub datagram_bytes_sent: u64,
    /// Datagrams received that passed the seal.
    pub datagrams_received: u64,
    /// Bytes of the datagrams received that passed the seal.
    pub datagram_bytes_received: u64,
    /// Datagrams that the socket refused to send.
    pub datagrams_unsent: u64,
    /// Stream frames sent.
    pub frames_sent: u64,
    /// Bytes of the stream frames sent.
    pub frame_bytes_sent: u64,
    /// Stream frames received.
    pub frames_received: u64,
    /// Bytes of the stream frames received.
    pub frame_bytes_received: u64,
    /// Datagrams and streams dropped because their seal, key, cluster name or protocol version was not ours, or because
    /// their sender did not prove that it had sent them just now.
    pub refused_seal: u64,
    /// Messages dropped because they could not be decoded.
    pub refused_malformed: u64,
    /// Messages of a kind this version does not know.
    pub skipped_unknown: u64,
    /// Events dropped because their Lamport time was too far ahead.
    pub refused_clock: u64,
    /// Table events dropped because this node is not attached to their network.
    pub refused_network: u64,
    /// Records dropped because only another node may write their key.
    pub refused_owner: u64,
    /// Records dropped because a limit was reached.
    pub refused_limit: u64,
    /// Incoming datagrams dropped because the engine was behind.
    pub dropped_inbox: u64,
    /// Events left to digests because the push queue was full.
    pub dropped_push: u64,
    /// Streams refused because too many were open.
    pub refused_streams: u64,
    /// Table events received by push.
    pub events_received: u64,
    /// Table events received by push that changed nothing.
    pub events_stale: u64,
    /// Creates written here that changed what is held.
    pub local_creates: u64,
    /// Updates written here that changed what is held.
    pub local_updates: u64,
    /// Deletes written here that changed what is held.
    pub local_deletes: u64,
    /// Creates received by push that changed what is held.
    pub pushed_creates: u64,
    /// Updates received by push that changed what is held.
    pub pushed_updates: u64,
    /// Deletes received by push that changed what is held.
    pub pushed_deletes: u64,
    /// Creates received in syncs that changed what is held.
    pub synced_creates: u64,
    /// Updates received in syncs that changed what is held.
    pub synced_updates: u64,
    /// Deletes received in syncs that changed what is held.
    pub synced_deletes: u64,
    /// Events about nodes and attachments that were received again within a second.
    pub events_repeated: u64,
    /// Table events pushed as their owner, counted once a peer.
    pub events_pushed: u64,
    /// Table events relayed, counted once a peer.
    pub events_relayed: u64,
    /// Streams opened because own writes came faster than push may send.
    pub feeds_opened: u64,
    /// Records received in syncs.
    pub sync_records_received: u64,
    /// Records received in syncs that changed nothing.
    pub sync_records_stale: u64,
    /// Records sent in syncs.
    pub sync_records_sent: u64,
    /// Syncs that ended well.
    pub syncs_completed: u64,
    /// Syncs that were given up.
    pub syncs_failed: u64,
    /// Push-pulls of the cluster's state that ended well.
    pub push_pulls_completed: u64,
    /// Push-pulls of the cluster's state that were given up.
    pub push_pulls_failed: u64,
    /// Digests received that equalled ours.
    pub digests_equal: u64,
    /// Digests received that differed from ours.
    pub digests_different: u64,
    /// Dead records that expired.
    pub reaped: u64,
    /// Members this node has seen fail.
    pub members_failed: u64,
    /// Probes that this node began late because it was not running.
    pub timers_late: u64,
    /// Errors of the failure detector that are no failure of a member.
    pub swim_errors: u64,
}
