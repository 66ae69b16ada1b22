//! What a node answers when others hold something of its own that it did not write, or no longer holds.
//!
//! * An attachment or node record of this node that is above its own: it takes a stamp, if need be a generation, above and
//!   writes its live entries anew under it. When it is not attached, it answers with the LEAVE of that stamp.
//! * A live entry with this node's id and current stamp that it does not hold is answered with a tombstone (*owner veto*),
//!   except in the first 5/6 of a reap interval after the first sync of a resumed run, where it is taken as found.
//! * A live entry of this run that is beaten by a record of an earlier run of this node is written anew.
//!
//! * Another process under this node's id: of the two, the lower run stops. Records alone cannot tell it from an earlier run
//!   of this node, so a node that hears of a later run elsewhere asks there before it puts itself above.
//!
//! A refutation keeps the Lamport time of what it refutes and wins by stamp or tombstone: it beats exactly that, and never
//! what another node wrote since. Implements `docs/ALGORITHM.md`, section "Self-refutation".

use std::net::SocketAddr;
use std::time::Instant;

use super::event::{AttachmentRecord, Body, NodeRecord, TableRecord, WriteKind};
use super::membership::Member;
use super::table::{Holding, Standing};
use super::{Engine, Output, Rule, Source};
use crate::id::{Generation, Key, LamportTime, NetworkId, Stamp, TableName, Version};

/// What to do with a record that bears this node's id.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// Treat it like any other.
    Take,
    /// Write this instead.
    Write(Box<TableRecord>),
}

/// The search for another process under this node's id.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    /// Where it is said to run, and which run it is.
    asking: Option<(SocketAddr, Generation)>,
    /// Where this was said last and nobody of that id answered.
    absent: Option<(SocketAddr, Generation)>,
}

impl Engine {
    /// Decides about a record of this node that another node sent.
    pub(crate) fn answer_to_own(&self, record: &TableRecord, now: Instant) -> Answer {
        let version = &record.version;
        let Some(current) = self.own_stamp(&record.network) else {
            return Answer::Take;
        };
        let held = self.networks.get(&record.network).and_then(|local| {
            let table = local.tables.table(&record.table)?;
            table.holding(&record.key)
        });
        let is_newer = held.as_ref().is_none_or(|held| held.version < *version);
        if !is_newer {
            return Answer::Take;
        }
        if version.stamp < current && self.keeps(Rule::Reissue) {
            return match held {
                Some(Holding {
                    version: held,
                    value: Some(value),
                }) if held.owner == self.me && held.stamp == current => {
                    self.reissued(record, current, Body::Value(value))
                }
                Some(_) | None => Answer::Take,
            };
        }
        let is_live = matches!(record.body, Body::Value(_)) && record.residual.is_none();
        if version.stamp == current && is_live && !self.takes_as_found(&record.network, now) {
            return self.vetoed(record);
        }
        Answer::Take
    }

    /// The same entry under the current stamp, at the time of the record that beats it.
    fn reissued(&self, record: &TableRecord, stamp: Stamp, body: Body) -> Answer {
        let value_hash = match &body {
            Body::Value(value) => super::value_hash(value),
            Body::Stub | Body::Tombstone => 0,
        };
        Answer::Write(Box::new(TableRecord {
            version: Version {
                stamp,
                tombstone: false,
                value_hash,
                ..record.version.clone()
            },
            kind: WriteKind::Update,
            body,
            residual: None,
            ..record.clone()
        }))
    }

    /// A tombstone that beats exactly the record.
    fn vetoed(&self, record: &TableRecord) -> Answer {
        if !self.keeps(Rule::Veto) {
            return Answer::Take;
        }
        let mut version = Version {
            tombstone: true,
            value_hash: 0,
            ..record.version.clone()
        };
        if !self.keeps(Rule::RefuteAtOwnTime) {
            version.time = LamportTime(self.table_clock.now().0.max(version.time.0) + 1);
        }
        Answer::Write(Box::new(TableRecord {
            version,
            kind: WriteKind::Delete,
            body: Body::Tombstone,
            residual: Some(self.config.reap_interval),
            ..record.clone()
        }))
    }

    /// Whether own live records are taken as found, because this run was resumed a short while ago.
    fn takes_as_found(&self, network: &NetworkId, now: Instant) -> bool {
        let Some(local) = self.networks.get(network).filter(|local| local.is_resumed) else {
            return false;
        };
        let window = self.config.reap_interval * 5 / 6;
        local
            .sync
            .first_synced()
            .is_none_or(|synced| now.saturating_duration_since(synced) < window)
    }

    /// This node's stamp in a network that it is attached to.
    pub(crate) fn own_stamp(&self, network: &NetworkId) -> Option<Stamp> {
        let known = self.attachments.get(network, &self.me)?;
        (!known.left).then_some(known.stamp)
    }

    /// Answers what another node says of an attachment of this node.
    pub(crate) fn refute_attachment(&mut self, record: &AttachmentRecord, now: Instant) {
        if !self.keeps(Rule::SelfRefutation) || self.twins.asking.is_some() {
            return;
        }
        let known = self.attachments.get(&record.network, &self.me);
        let known = known.map(|known| (known.stamp, known.left));
        let is_attached = matches!(known, Some((_, false)));
        if !is_attached {
            // A join that nobody took back: end it, or it would stay for ever.
            if !record.left && known < Some((record.stamp, true)) {
                self.write_leave(&record.network, record.stamp, now);
            }
            return;
        }
        if known >= Some((record.stamp, record.left)) {
            return;
        }
        if record.stamp.generation > self.generation {
            self.raise_generation(record.stamp.generation, now);
        } else {
            self.restamp(&record.network, now);
        }
    }

    /// Answers what another node says of this node's run; `left` of the current one is untrue by its own witness.
    pub(crate) fn refute_node(&mut self, record: &NodeRecord, now: Instant) {
        let is_above = (record.generation, record.left) > (self.generation, false);
        // While a twin is looked for, its records are not answered; they come again.
        if is_above && self.keeps(Rule::SelfRefutation) && self.twins.asking.is_none() {
            self.raise_generation(record.generation, now);
        }
    }

    /// Begins a run above another one, taking all live entries along.
    fn raise_generation(&mut self, above: Generation, now: Instant) {
        let random = rand::RngExt::random(&mut self.rng);
        self.generation = Generation::after(above, 0, random);
        tracing::warn!(generation = %self.generation, "another run of this node is known, this one is put above it");
        let me = self.membership.me().in_run(self.generation);
        self.cluster.set_up(&me);
        self.swim(|swim| swim.become_member(me));
        let networks: Vec<NetworkId> = self.networks.keys().cloned().collect();
        for network in networks {
            self.restamp(&network, now);
        }
        self.announce_run(now);
        self.outputs.push_back(Output::Persist);
    }

    /// Takes a new stamp in a network and writes the live entries of the old one anew under it.
    fn restamp(&mut self, network: &NetworkId, now: Instant) {
        let Some(old) = self.own_stamp(network) else {
            return;
        };
        let entries = self.entries_of(network, old);
        let time = self.network_clock.tick();
        let stamp = Stamp {
            generation: self.generation,
            joined: time,
        };
        self.write_attachment(network, stamp, false, now);
        for (table, key, held) in entries {
            let Holding {
                version,
                value: Some(value),
            } = held
            else {
                continue;
            };
            let record = TableRecord {
                network: network.clone(),
                table,
                key,
                version: Version { stamp, ..version },
                kind: WriteKind::Update,
                body: Body::Value(value),
                residual: None,
            };
            self.apply_record(&record, Source::Local, now);
        }
    }

    /// The entries that this node wrote under a stamp.
    fn entries_of(&self, network: &NetworkId, stamp: Stamp) -> Vec<(TableName, Key, Holding)> {
        let mut entries = Vec::new();
        let Some(local) = self.networks.get(network) else {
            return entries;
        };
        for table in local.tables.tables() {
            table.walk(|record| {
                let owner = record.owner();
                if owner.node == self.me
                    && owner.stamp == stamp
                    && owner.standing() == Standing::Live
                    && let Ok(key) = Key::new(record.key())
                {
                    entries.push((table.name().clone(), key, record.holding()));
                }
            });
        }
        entries
    }

    /// Looks whether a message comes from another process that uses this node's id, and says so; the lower run stops.
    pub(crate) fn meet_twin(&mut self, other: &Member) -> bool {
        let me = self.membership.me();
        if other.node != self.me || other.addr == me.addr {
            return false;
        }
        if other.precedence() > me.precedence() {
            self.outputs.push_back(Output::Twin { addr: other.addr });
        }
        true
    }

    /// A process speaks under an id whose later run is up elsewhere, and nobody would ever talk to it: what it hears of
    /// the cluster tells it so.
    pub(crate) fn warn_outdated(&mut self, sender: &Member) {
        let known = self.cluster.get(&sender.node);
        let later = known.and_then(|known| known.member.as_ref());
        let is_outdated = later.is_some_and(|later| {
            later.addr != sender.addr
                && later.precedence() > sender.precedence()
                && self.cluster.at(later.addr) == Some(&sender.node)
        });
        if is_outdated {
            self.send_cluster_digest(sender.addr);
        }
    }

    /// Somebody lists a live member with this node's id, elsewhere and in a later run: a twin, or an earlier run of this
    /// node whose clock was ahead. Asks there, because only a message from the twin itself makes this node stop.
    pub(crate) fn ask_twin(&mut self, claim: Option<Member>, now: Instant) {
        let Some(claim) = claim else {
            return;
        };
        let run = (claim.addr, claim.generation);
        if self.twins.asking.is_none() && self.twins.absent != Some(run) {
            self.twins.asking = Some(run);
            self.start_push_pull(claim.addr, None, now);
            if !self.streams.is_exchanging_with(claim.addr) {
                self.twins.asking = None;
            }
        }
    }

    /// An exchange with an address has ended, and this node still runs: if a twin was looked for there, there is none.
    pub(crate) fn asked_twin(&mut self, peer: SocketAddr) {
        if let Some(run) = self.twins.asking.take_if(|(addr, _)| *addr == peer) {
            self.twins.absent = Some(run);
        }
    }
}
