//! Simulations of very many nodes: all of them know each other from the start, and share what they know.
//!
//! The failure detector looks through its members for each update, and ten thousand nodes that each remember ten thousand
//! need more memory than a machine has. So what a node knows of the others can be shared until one of them learns more.
//! Nobody probes anybody then. Nothing outside of simulations calls this; see `docs/ALGORITHM.md`, section "Scale".

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use super::Engine;

/// A part of a node that others may share until one of them changes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared<T>(Arc<T>);

impl<T> From<T> for Shared<T> {
    fn from(part: T) -> Self {
        Self(Arc::new(part))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl Engine {
    /// Makes all of these nodes members of one cluster that know each other and each other's attachments, without the
    /// failure detector: for simulations that are too large for it.
    pub fn acquaint(engines: &mut [&mut Self], now: Instant) {
        let Some((first, others)) = engines.split_first_mut() else {
            return;
        };
        for other in others.iter() {
            let member = other.membership.me();
            first.cluster.set_up(member);
            first.roster.set_member(&member.node, Some(member.addr));
        }
        for other in others.iter() {
            for record in other.attachments.export_of(&other.me, other.millis(now)) {
                first.apply_attachment(&record, now);
            }
        }
        for other in others {
            other.cluster = first.cluster.clone();
            other.attachments = first.attachments.clone();
            other.roster = Arc::clone(&first.roster);
        }
    }
}
