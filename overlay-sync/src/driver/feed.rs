//! What the reconciler is told: records as they are now, networks that come and go, failures with what speaks for them.
//!
//! A change in a watch says only where to look: the record is read again, so that neither the order of events nor one that
//! was folded into another matters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use networkdb::node::{
    Closed, Entry, MemberState, NetworkDb, ReadError, Watch, WatchEvent, WatchFilter,
};
use networkdb::{Key, NetworkId, TableName, WriteError};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, info, warn};

use super::{CONFIG_TABLE, clock, peer_table};
use crate::desired::Claim;
use crate::guard::Evidence;
use crate::kernel::Kernel;
use crate::network::NetworkConfig;
use crate::reconcile::network::Record;
use crate::reconcile::{Clock, Reconciler};
use crate::record::{ENDPOINT_TABLE, EndpointRecord, PeerRecord};
use crate::service::table::ServiceClaim;

/// How often networks that come and go, and what is heard, are looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// How old evidence may be.
const EVIDENCE_AGE_MAX: Duration = Duration::from_millis(20);

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    Watch(WatchEvent),
    /// Time has passed.
    Look,
    /// The reconciler has something to do.
    Due,
}

/// Where the reconciler's news come from.
#[derive(Debug)]
pub(super) struct Feed {
    db: NetworkDb,
    clock: Clock,
    watches: Option<Watches>,
    configs: BTreeMap<NetworkId, NetworkConfig>,
    attached: BTreeSet<NetworkId>,
    /// Networks of which not all records are known, with when their first sync was seen to be done.
    unsettled: BTreeMap<NetworkId, Option<Instant>>,
    detection: Duration,
    heard: Heard,
    evidence_at: Option<Instant>,
}

#[derive(Debug)]
struct Watches {
    peers: Watch,
    endpoints: Watch,
    configs: Watch,
    look: Interval,
}

/// When something was last received from another node.
#[derive(Debug)]
struct Heard {
    count: u64,
    at: Instant,
}

impl Feed {
    pub(super) fn new(
        db: NetworkDb,
        configs: BTreeMap<NetworkId, NetworkConfig>,
        detection: Duration,
    ) -> Self {
        let clock = clock();
        Self {
            heard: Heard {
                count: 0,
                at: clock.now(),
            },
            db,
            clock,
            watches: None,
            configs,
            attached: BTreeSet::new(),
            unsettled: BTreeMap::new(),
            detection,
            evidence_at: None,
        }
    }

    /// Starts to watch.
    pub(super) async fn open(&mut self) -> Result<(), Closed> {
        let filter = |table: TableName| WatchFilter {
            network: None,
            table: Some(table),
            members: false,
        };
        let mut look = interval(LOOK_PERIOD);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.watches = Some(Watches {
            peers: self.db.watch(filter(peer_table())).await?,
            endpoints: self.db.watch(filter(endpoint_table())).await?,
            configs: self.db.watch(filter(config_table())).await?,
            look,
        });
        Ok(())
    }

    /// Waits for what happens next, or until the reconciler has something to do. Safe to cancel.
    pub(super) async fn next(&mut self, due: Option<Instant>) -> Result<Event, Closed> {
        let Some(watches) = &mut self.watches else {
            return Err(Closed);
        };
        let due = async {
            match due {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = watches.peers.next() => event.map(Event::Watch).ok_or(Closed),
            event = watches.endpoints.next() => event.map(Event::Watch).ok_or(Closed),
            event = watches.configs.next() => event.map(Event::Watch).ok_or(Closed),
            _ = watches.look.tick() => Ok(Event::Look),
            () = due => Ok(Event::Due),
        }
    }

    /// Tells the reconciler.
    pub(super) async fn tell<K: Kernel>(&mut self, event: Event, to: &mut Reconciler<K>) {
        match event {
            Event::Watch(WatchEvent::Change(change)) => {
                let record = if change.table == peer_table() {
                    Record::Peer(change.key)
                } else if change.table == endpoint_table() {
                    Record::Endpoint(change.key)
                } else {
                    return self.configure(&change.network, to);
                };
                if !self.attached.contains(&change.network) {
                    self.look(to).await;
                }
                self.record(&change.network, record, to).await;
            }
            Event::Watch(WatchEvent::Resync) => self.tell_anew(to).await,
            Event::Watch(
                WatchEvent::Lost(_) | WatchEvent::MemberUp { .. } | WatchEvent::MemberDown { .. },
            )
            | Event::Due => {}
            Event::Look => self.look(to).await,
        }
    }

    /// Replaces the configurations that this node has by itself.
    pub(super) fn set_configs(&mut self, configs: BTreeMap<NetworkId, NetworkConfig>) {
        self.configs = configs;
        // Looked at with the next tick, as if they were new.
        self.attached.clear();
    }

    /// Looks which networks this node is attached to, and which of them are complete.
    async fn look<K: Kernel>(&mut self, to: &mut Reconciler<K>) {
        let attached: BTreeSet<NetworkId> = self.db.networks().into_iter().collect();
        let known = std::mem::replace(&mut self.attached, attached.clone());
        for network in known.difference(&attached) {
            self.unsettled.remove(network);
            to.detach(network);
        }
        for network in attached.difference(&known) {
            self.publish(network).await;
            self.configure(network, to);
        }
        self.settle(to).await;
        self.listen().await;
        if to.wants_evidence() {
            self.gather_evidence(to).await;
        }
    }

    /// Takes the configuration of a network: this node's own goes before the one in the table.
    fn configure<K: Kernel>(&mut self, network: &NetworkId, to: &mut Reconciler<K>) {
        let told = self.told_config(network);
        let own = self.configs.get(network);
        if let (Some(own), Some(told)) = (own, &told)
            && own != told
        {
            warn!(%network, "the configuration of the network on this node is not the one in its table; this node's own counts here");
        }
        if to.attach(network, own.cloned().or(told)) {
            self.unsettled.insert(network.clone(), None);
            self.tell_network(network, to);
        }
    }

    fn told_config(&self, network: &NetworkId) -> Option<NetworkConfig> {
        let key = Key::new(network.as_str()).ok()?;
        let entry = self.db.entry(network, &config_table(), &key).ok()?;
        match NetworkConfig::from_json(&entry.value) {
            Ok(config) => Some(config),
            Err(error) => {
                warn!(%network, owner = %entry.owner, %error, "configuration in the table refused");
                None
            }
        }
    }

    /// Tells the others what this node knows of a network, if nobody has.
    async fn publish(&self, network: &NetworkId) {
        let (Some(config), Ok(key)) = (self.configs.get(network), Key::new(network.as_str()))
        else {
            return;
        };
        let value = config.to_json();
        let table = config_table();
        match self.db.create_entry(network, &table, &key, value).await {
            Ok(()) => info!(%network, "configuration of the network told to the cluster"),
            Err(WriteError::Exists { .. }) => {}
            Err(error) => debug!(%network, %error, "configuration of the network not told"),
        }
    }

    /// Tells all records of a network.
    fn tell_network<K: Kernel>(&self, network: &NetworkId, to: &mut Reconciler<K>) {
        for entry in self.db.table(network, &peer_table()) {
            let key = entry.key.clone();
            to.set(network, key, claim(entry));
        }
        for entry in self.db.table(network, &endpoint_table()) {
            let key = entry.key.clone();
            to.set_endpoint(network, key, service_claim(entry));
        }
    }

    /// The watch has lost events: everything is told, and what is told no more is gone.
    async fn tell_anew<K: Kernel>(&mut self, to: &mut Reconciler<K>) {
        for network in self.attached.clone() {
            self.configure(&network, to);
            for record in to.records(&network) {
                self.record(&network, record, to).await;
            }
            self.tell_network(&network, to);
        }
    }

    /// Tells how a record is now.
    async fn record<K: Kernel>(
        &mut self,
        network: &NetworkId,
        record: Record,
        to: &mut Reconciler<K>,
    ) {
        let (table, key) = match &record {
            Record::Peer(key) => (peer_table(), key),
            Record::Endpoint(key) => (endpoint_table(), key),
        };
        match (self.db.entry(network, &table, key), record) {
            (Ok(entry), Record::Peer(key)) => to.set(network, key, claim(entry)),
            (Ok(entry), Record::Endpoint(key)) => {
                to.set_endpoint(network, key, service_claim(entry));
            }
            (Err(ReadError::Hidden), record) => {
                self.gather_evidence(to).await;
                to.hide_record(network, &record);
            }
            (Err(ReadError::Absent | ReadError::Deleted | _), record) => {
                to.remove_record(network, &record);
            }
        }
    }

    /// Looks which networks are complete: their first sync was done a moment ago and another host has them.
    async fn settle<K: Kernel>(&mut self, to: &mut Reconciler<K>) {
        let now = self.clock.now();
        let mut settled = Vec::new();
        for (network, done) in &mut self.unsettled {
            let has_peers = self
                .db
                .peers(network)
                .iter()
                .any(|peer| peer.id != *self.db.id());
            let progress = self.db.join_progress(network).await;
            if !has_peers || !progress.is_some_and(|progress| progress.is_done) {
                *done = None;
                continue;
            }
            // Hosts that the first one told of are met within this time.
            if now >= *done.get_or_insert(now) + self.detection / 2 {
                settled.push(network.clone());
            }
        }
        for network in settled {
            self.unsettled.remove(&network);
            to.settle(&network);
        }
    }

    /// Looks whether anything has been received.
    async fn listen(&mut self) {
        if let Ok(stats) = self.db.stats().await {
            let refused = stats.refused_seal + stats.refused_malformed;
            let count = (stats.datagrams_received + stats.frames_received).saturating_sub(refused);
            if count != self.heard.count {
                self.heard = Heard {
                    count,
                    at: self.clock.now(),
                };
            }
        }
    }

    /// Tells what speaks for and against a failure.
    async fn gather_evidence<K: Kernel>(&mut self, to: &mut Reconciler<K>) {
        let now = self.clock.now();
        if self
            .evidence_at
            .is_some_and(|at| now < at + EVIDENCE_AGE_MAX)
        {
            return;
        }
        self.listen().await;
        let Ok(members) = self.db.members().await else {
            return;
        };
        self.evidence_at = Some(self.clock.now());
        let suspects = members.into_iter();
        let suspects = suspects.filter(|member| member.state == MemberState::Suspect);
        to.set_evidence(Evidence {
            suspects: suspects.map(|member| member.id).collect(),
            is_isolated: self.clock.now() >= self.heard.at + self.detection / 2,
        });
    }
}

fn config_table() -> TableName {
    TableName::new(CONFIG_TABLE).expect("a short name")
}

fn endpoint_table() -> TableName {
    TableName::new(ENDPOINT_TABLE).expect("a short name")
}

fn service_claim(entry: Entry) -> ServiceClaim {
    ServiceClaim {
        record: EndpointRecord::decode(&entry.value),
        version: entry.version(),
        owner: entry.owner,
    }
}

fn claim(entry: Entry) -> Claim {
    Claim {
        record: PeerRecord::decode(&entry.value),
        version: entry.version(),
        owner: entry.owner,
    }
}
