//! When a network is synced, and with whom.
//!
//! A node sends its digest of a network to one random attached peer shortly after the last push or apply, and every few
//! seconds. A peer whose digest differs opens a stream and syncs (`session`), unless something is under way that may make
//! the difference go away. Equality costs one small datagram. What is learned by a sync is never relayed: others find it by
//! digests of their own.
//!
//! The first sync of a network that was just joined goes to one attached peer and, when that fails, to another.
//! Implements `docs/ALGORITHM.md`, section "Anti-entropy".

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::broadcast::Scope;
use super::event::Digest;
use super::progress::Progress;
use super::session::Sync;
use super::stream::{Purpose, Stream};
use super::{Engine, Output, TimerKind};
use crate::histogram::Histogram;
use crate::id::{NetworkId, NodeId};
use crate::wire::Message;

/// How long a node that was alone on a network leaves the first sync to the one that has just joined it: with both of them
/// opening one, everything would travel twice.
const FIRST_SYNC_LEFT: Duration = Duration::from_millis(50);
/// How long a difference is left to an open feed that stands still.
const FEED_HOLDS: Duration = Duration::from_secs(3);
/// How long it is left to one that gets on: a sync beside it would send what it is about to send.
const ACTIVE_FEED_HOLDS: Duration = Duration::from_secs(10);
/// A feed that has carried nothing for so long stands still.
const FEED_STILL: Duration = Duration::from_secs(1);

/// How soon after the last change a peer's digest tells how long it took until the peer had it.
const CONFIRMED_SOON: Duration = Duration::from_millis(100);

/// What a network keeps to decide when to sync.
#[derive(Debug, Default)]
pub(crate) struct NetworkSync {
    /// When a record was last pushed or applied.
    touched: Option<Instant>,
    digest_timer_set: bool,
    /// The digest will be sent once more.
    again_timer_set: bool,
    /// The first sync is still to be done, by this time.
    first_until: Option<Instant>,
    /// With whom the first sync was tried last.
    first_tried: Option<SocketAddr>,
    /// When the first sync was done.
    first_synced: Option<Instant>,
    /// A difference was left to a sync that was under way.
    looks_again: bool,
    /// Since when a difference is left to feeds.
    differs_since: Option<Instant>,
    /// When the first change was made that no peer is known to have.
    unconfirmed_since: Option<Instant>,
    /// Since when a peer is known to hold something else.
    different_since: Option<Instant>,
    /// How far the first sync is.
    pub progress: Progress,
}

impl NetworkSync {
    pub(crate) fn first_synced(&self) -> Option<Instant> {
        self.first_synced
    }
}

impl Engine {
    /// Returns how long changes took until a peer was known to hold them, and everything else of their network.
    ///
    /// Counted from the first change that no peer had confirmed, when a digest or a sync confirms it: digests follow a change
    /// after `digest_delay`, so this is an upper bound. What is confirmed much later by chance is not counted.
    #[must_use]
    pub fn convergence(&self) -> &Histogram {
        &self.convergence
    }

    /// Tells for each network for how long a peer has been known to hold something else; zero when none is.
    pub fn differing(&self, now: Instant) -> impl Iterator<Item = (&NetworkId, Duration)> {
        self.networks.iter().map(move |(network, local)| {
            // Nobody is left who could confirm.
            let is_alone = self.roster.attached(network).len() < 2;
            let since = local.sync.different_since.filter(|_| !is_alone);
            let differs_for = since.map(|since| now.saturating_duration_since(since));
            (network, differs_for.unwrap_or_default())
        })
    }

    /// Notes that a network has changed, so that its digest goes out when it is quiet.
    pub(crate) fn touch(&mut self, network: &NetworkId, now: Instant) {
        let after = self.config.digest_delay;
        let Some(local) = self.networks.get_mut(network) else {
            return;
        };
        local.sync.touched = Some(now);
        local.sync.unconfirmed_since.get_or_insert(now);
        if !local.sync.digest_timer_set {
            local.sync.digest_timer_set = true;
            self.set_timer(after, TimerKind::Digest(network.clone()));
        }
    }

    pub(crate) fn digest_timer(&mut self, network: &NetworkId, now: Instant) {
        let delay = self.config.digest_delay;
        let Some(local) = self.networks.get_mut(network) else {
            return;
        };
        let quiet = local
            .sync
            .touched
            .map(|touched| now.saturating_duration_since(touched));
        if let Some(quiet) = quiet.filter(|quiet| *quiet < delay) {
            self.set_timer(delay - quiet, TimerKind::Digest(network.clone()));
            return;
        }
        local.sync.digest_timer_set = false;
        let is_again_set = std::mem::replace(&mut local.sync.again_timer_set, true);
        self.send_network_digest(network);
        if !is_again_set {
            self.schedule_digest_again(network);
        }
    }

    fn schedule_digest_again(&mut self, network: &NetworkId) {
        let jitter = self.rng.random_range(0.8..1.2);
        let after = (self.config.digest_period / 3).mul_f64(jitter);
        self.set_timer(after, TimerKind::DigestAgain(network.clone()));
    }

    /// Sends the digest once more some time after the last change, in case the first one was lost too.
    pub(crate) fn digest_again(&mut self, network: &NetworkId, now: Instant) {
        let soon = self.config.digest_period / 6;
        let Some(local) = self.networks.get_mut(network) else {
            return;
        };
        let touched = local.sync.touched;
        if touched.is_some_and(|touched| now.saturating_duration_since(touched) < soon) {
            self.schedule_digest_again(network);
            return;
        }
        local.sync.again_timer_set = false;
        self.send_network_digest(network);
    }

    fn send_network_digest(&mut self, network: &NetworkId) {
        let peer = self.random_peer_of(&Scope::Network(network.clone()));
        if let Some((_, peer)) = peer {
            self.announce_digest(network, &[peer]);
        }
    }

    /// Tells peers what this node holds of a network, so that those who hold something else fetch it.
    pub(crate) fn announce_digest(&mut self, network: &NetworkId, peers: &[SocketAddr]) {
        let Some(local) = self.networks.get(network) else {
            return;
        };
        let message = Message::NetworkDigest {
            network: network.clone(),
            node: self.me.clone(),
            digest: local.tables.digest(),
        };
        let message = message.encode();
        for peer in peers {
            self.send_gossip(*peer, &message);
        }
    }

    pub(crate) fn receive_network_digest(
        &mut self,
        network: &NetworkId,
        node: &NodeId,
        digest: Digest,
        now: Instant,
    ) {
        let Some(local) = self.networks.get_mut(network) else {
            self.stats.refused_network += 1;
            return;
        };
        if local.tables.digest() == digest {
            local.sync.differs_since = None;
            self.stats.digests_equal += 1;
            self.confirmed(network, false, now);
            return;
        }
        self.stats.digests_different += 1;
        local.sync.different_since.get_or_insert(now);
        let addr = self.roster.addr(node);
        if let Some(addr) = addr.filter(|_| self.attachments.is_attached(network, node))
            && !self.will_be_equal(network, now)
        {
            self.start_sync(network, addr, now);
        }
    }

    /// Notes that a peer holds what this node does. How long that took is known when the peer says so soon after the last
    /// change, or when it held something else just before; otherwise it may have been equal for long.
    fn confirmed(&mut self, network: &NetworkId, did_differ: bool, now: Instant) {
        let Some(local) = self.networks.get_mut(network) else {
            return;
        };
        let was_different = local.sync.different_since.take().is_some() || did_differ;
        let Some(since) = local.sync.unconfirmed_since.take() else {
            return;
        };
        let quiet = local
            .sync
            .touched
            .map(|touched| now.saturating_duration_since(touched));
        if was_different || quiet.is_some_and(|quiet| quiet <= CONFIRMED_SOON) {
            let lag = now.saturating_duration_since(since);
            self.convergence.observe(lag);
        }
    }

    /// Whether something is under way that may make the difference go away by itself: a sync with anybody, or a feed,
    /// though no feed keeps syncs away for long.
    fn will_be_equal(&mut self, network: &NetworkId, now: Instant) -> bool {
        if self.is_in_sync(network) {
            if let Some(local) = self.networks.get_mut(network) {
                local.sync.looks_again = true;
            }
            return true;
        }
        let is_feed =
            |stream: &Stream| matches!(&stream.purpose, Purpose::Feed(fed) if fed == network);
        let feeds = self.streams.all().filter(|stream| is_feed(stream));
        let still = feeds.map(|feed| feed.silence(now)).min();
        let holds = match still {
            None => return false,
            Some(still) if still < FEED_STILL => ACTIVE_FEED_HOLDS,
            Some(_) => FEED_HOLDS,
        };
        let local = self.networks.get_mut(network);
        local.is_some_and(|local| {
            let since = *local.sync.differs_since.get_or_insert(now);
            now.saturating_duration_since(since) < holds
        })
    }

    /// Whether this node has opened a sync that is under way.
    fn is_syncing(&self, network: &NetworkId) -> bool {
        self.streams
            .outgoing()
            .any(|(_, stream)| syncs(stream, network))
    }

    /// Whether a sync is under way, whoever has opened it.
    fn is_in_sync(&self, network: &NetworkId) -> bool {
        self.streams.all().any(|stream| syncs(stream, network))
    }

    /// Opens a sync of a network with a peer, unless one is under way.
    fn start_sync(&mut self, network: &NetworkId, peer: SocketAddr, now: Instant) -> bool {
        if self.is_syncing(network) {
            return true;
        }
        if let Some(local) = self.networks.get_mut(network) {
            local.sync.progress.begin(now);
        }
        let outbox = self.offer_frames(network, None, now);
        let purpose = Purpose::Sync(Box::new(Sync::new(network.clone())));
        self.open_stream(peer, purpose, outbox, now).is_some()
    }

    /// Starts the first sync of a network that this node has just joined.
    pub(crate) fn start_first_sync(&mut self, network: &NetworkId, now: Instant) {
        let until = now + self.config.join_network_timeout;
        if let Some(local) = self.networks.get_mut(network) {
            local.sync.first_until = Some(until);
        }
        self.try_first_sync(network, now);
    }

    /// Tries the first sync with a random attached peer; without any there is nothing to wait for.
    pub(crate) fn try_first_sync(&mut self, network: &NetworkId, now: Instant) {
        let first_until = self
            .networks
            .get(network)
            .and_then(|local| local.sync.first_until);
        let Some(until) = first_until else {
            return;
        };
        let Some(peer) = self.first_sync_peer(network) else {
            self.first_sync_done(network, true);
            return;
        };
        if now >= until {
            self.first_sync_done(network, false);
            return;
        }
        if !self.is_in_sync(network) {
            if let Some(local) = self.networks.get_mut(network) {
                local.sync.first_tried = Some(peer);
            }
            self.start_sync(network, peer, now);
        }
        self.tell_progress(network, now);
        // Looks again whether the sync has failed, or the time is up.
        let again = Duration::from_millis(200).min(until - now);
        self.set_timer(again, TimerKind::FirstSync(network.clone()));
    }

    /// Draws an attached peer, another one than last time when there is one: that one may be dead.
    fn first_sync_peer(&mut self, network: &NetworkId) -> Option<SocketAddr> {
        let scope = Scope::Network(network.clone());
        let tried = self.networks.get(network)?.sync.first_tried;
        let mut peers = self.roster.some(&scope, 2, &self.me, &mut self.rng);
        if peers.len() > 1 {
            peers.retain(|(_, peer)| Some(*peer) != tried);
        }
        peers.pop().map(|(_, peer)| peer)
    }

    /// A network that has never been synced is, once somebody else is attached to it.
    pub(crate) fn sync_if_never(&mut self, network: &NetworkId, peer: &NodeId, now: Instant) {
        let until = now + self.config.join_network_timeout;
        let local = self
            .networks
            .get_mut(network)
            .filter(|local| local.sync.first_synced.is_none() && local.sync.first_until.is_none());
        if let Some(local) = local.filter(|_| *peer != self.me) {
            local.sync.first_until = Some(until);
            self.set_timer(FIRST_SYNC_LEFT, TimerKind::FirstSync(network.clone()));
        }
    }

    fn first_sync_done(&mut self, network: &NetworkId, is_synced: bool) {
        if let Some(local) = self.networks.get_mut(network) {
            local.sync.first_until = None;
            self.outputs.push_back(Output::NetworkReady {
                network: network.clone(),
                is_synced,
            });
        }
    }

    pub(crate) fn sync_ended(&mut self, sync: &Sync, is_done: bool, now: Instant) {
        if is_done {
            self.stats.syncs_completed += 1;
            self.confirmed(&sync.network, true, now);
            if let Some(local) = self.networks.get_mut(&sync.network) {
                local.sync.differs_since = None;
                local.sync.first_synced.get_or_insert(now);
            }
            self.first_sync_ended(&sync.network, now);
        } else {
            self.stats.syncs_failed += 1;
        }
        let local = self.networks.get_mut(&sync.network);
        if local.is_some_and(|local| std::mem::take(&mut local.sync.looks_again)) {
            // Whoever was left waiting for this sync is told by the digest that follows.
            self.touch(&sync.network, now);
        }
        let first_is_due = self
            .networks
            .get(&sync.network)
            .is_some_and(|local| local.sync.first_until.is_some());
        if first_is_due && is_done {
            self.first_sync_done(&sync.network, true);
        }
    }
}

fn syncs(stream: &Stream, network: &NetworkId) -> bool {
    matches!(&stream.purpose, Purpose::Sync(sync) if sync.network == *network)
}
