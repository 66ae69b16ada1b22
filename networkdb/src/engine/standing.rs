//! Standing: what readers see of all that a node wrote under one attachment.
//!
//! Whether a record is visible is never stored with it: it follows from the owner's attachment and from which run of the
//! owner is up, and is decided here, in [`Engine::standing`]. When that changes, all records of the owner change at once:
//! one atomic, and what watchers are told.
//!
//! Invariant: the standing that readers see is the one that attachments and nodes give. Implements `docs/ALGORITHM.md`,
//! section "Versions".

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::Body;
use super::table::{Change, Owner, Standing};
use super::{Engine, Rule};
use crate::id::{Key, NetworkId, NodeId, Stamp};

impl Engine {
    /// How long records are kept that are not live.
    pub(crate) fn keep_of(&self, standing: Standing) -> Option<Duration> {
        match standing {
            Standing::Live => None,
            Standing::Hidden => Some(self.config.node_reap_interval),
            Standing::Over if !self.keeps(Rule::Stubs) => Some(Duration::ZERO),
            Standing::Over => Some(self.config.reap_interval),
        }
    }

    /// When that expires which makes a stamp's records dead, if it expires at all.
    pub(crate) fn cause_expires(
        &self,
        network: &NetworkId,
        node: &NodeId,
        stamp: Stamp,
    ) -> Option<u64> {
        let attachment = self.attachments.get(network, node);
        let ended = attachment.filter(|known| known.stamp == stamp && known.left);
        let node = self.cluster.get(node);
        let gone = node.filter(|node| node.generation == stamp.generation);
        ended
            .and_then(|known| known.expires)
            .or_else(|| gone.and_then(|node| node.expires))
    }

    /// Decides what readers see of the entries that `node` wrote under `stamp`.
    pub(crate) fn standing(&self, network: &NetworkId, node: &NodeId, stamp: Stamp) -> Standing {
        let Some(attachment) = self.attachments.get(network, node) else {
            return Standing::Hidden;
        };
        if stamp != attachment.stamp || attachment.left {
            // A stamp above the recorded one is of a tombstone only, which nobody sees anyway.
            return Standing::Over;
        }
        let standing = self.cluster.standing(node, stamp.generation);
        if standing == Standing::Hidden && !self.keeps(Rule::Hiding) {
            return Standing::Over;
        }
        standing
    }

    /// Recomputes what readers see of all entries of a node in a network and tells watchers what changed.
    pub(crate) fn refresh(&mut self, network: &NetworkId, node: &NodeId, now: Instant) {
        self.refresh_roster(network, node);
        let Some(local) = self.networks.get(network) else {
            return;
        };
        let first = (node.clone(), Stamp::default());
        let stamps: Vec<Stamp> = local
            .owners
            .range(first..)
            .take_while(|((owner, _), _)| owner == node)
            .map(|((_, stamp), _)| *stamp)
            .collect();
        for stamp in stamps {
            let standing = self.standing(network, node, stamp);
            self.set_standing(network, &(node.clone(), stamp), standing, now);
        }
    }

    fn set_standing(
        &mut self,
        network: &NetworkId,
        name: &(NodeId, Stamp),
        standing: Standing,
        now: Instant,
    ) {
        let expires = self.keep_of(standing).map(|keep| {
            let cause = self.cause_expires(network, &name.0, name.1);
            let own = self.expires_at(None, keep, now);
            cause.map_or(own, |cause| cause.min(own))
        });
        let owner = self
            .networks
            .get_mut(network)
            .and_then(|local| local.owners.get_mut(name));
        let Some(owner) = owner else {
            return;
        };
        let before = owner.shared.set_standing(standing);
        if before == standing {
            return;
        }
        owner.expires = expires;
        let was_faded = std::mem::take(&mut owner.is_faded);
        let shared = Arc::clone(&owner.shared);
        if (before == Standing::Live) != (standing == Standing::Live) {
            self.notify_all_of(network, &shared, standing == Standing::Live);
        }
        for table in self.tables_of(network) {
            if was_faded {
                table.count_all_of(&shared, true);
            }
            if standing == Standing::Over {
                table.drop_values_of(&shared);
            }
        }
    }

    /// Tells watchers that all entries of an owner have become visible, or are no longer.
    pub(crate) fn notify_all_of(&mut self, network: &NetworkId, owner: &Arc<Owner>, visible: bool) {
        if !self.watching {
            return;
        }
        for table in self.tables_of(network) {
            let mut changed = Vec::new();
            table.walk(|record| {
                if Arc::ptr_eq(record.owner(), owner)
                    && let (Body::Value(value), _) = record.body()
                {
                    changed.push((record.key().to_owned(), value));
                }
            });
            for (key, value) in changed {
                let key = Key::new(key).expect("written from a key");
                let (before, after) = if visible {
                    (None, Some(value))
                } else {
                    (Some(value), None)
                };
                let change = Change {
                    before,
                    after,
                    ..Change::default()
                };
                self.notify(network, table.name(), &key, &change);
            }
        }
    }
}
