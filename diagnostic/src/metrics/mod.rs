//! `/metrics`: what a node counts, in the text format of Prometheus (version 0.0.4).
//!
//! Names and units follow its conventions: base units, `_total` for what only grows, one name for one thing whatever the
//! label. Everything is read when it is asked for; entries are counted by walking the tables, so a scrape of a million of them
//! takes some tens of milliseconds of one thread, in which nobody waits.

mod family;

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use networkdb::node::{Closed, MemberState, NetworkDb, TableStats, Timings};
use networkdb::{NetworkId, Stats};
use prometheus::core::Collector as _;
use prometheus::process_collector::ProcessCollector;
use prometheus::{TEXT_FORMAT, TextEncoder};

use crate::v1::{Problem, walking};
pub use family::{Families, Labels};

use crate::extras::Extras;

/// What is read of one network.
#[derive(Debug)]
struct Network {
    id: NetworkId,
    counts: TableStats,
    records: usize,
    queue: usize,
    peers: usize,
    is_synced: bool,
    differs_for: Duration,
}

/// Whose metrics are read.
#[derive(Clone, Debug)]
struct Sources {
    db: NetworkDb,
    extras: Extras,
}

/// Makes the router of a node.
pub(crate) fn router(db: &NetworkDb, extras: &Extras) -> Router {
    let only_get = async || Problem::method("/metrics is only read, with GET");
    Router::new()
        .route("/metrics", get(metrics).fallback(only_get))
        .with_state(Sources {
            db: db.clone(),
            extras: extras.clone(),
        })
}

async fn metrics(State(Sources { db, extras }): State<Sources>) -> Result<Response, Problem> {
    let mut families = Families::default();
    node(&mut families, &db).await?;
    let timings = db.timings().await?;
    networks(&mut families, &networks_of(&db, &timings).await);
    let stats = db.stats().await?;
    events(&mut families, &stats);
    syncs(&mut families, &stats);
    traffic(&mut families, &stats);
    failures(&mut families, &stats);
    families.histogram(
        "apply_seconds",
        "From the receipt of records at a socket until they are readable on this node, once for a datagram or frame.",
        &timings.applying,
    );
    families.histogram(
        "convergence_lag_seconds",
        "From a change of a network until a peer was known to hold the same, the pause before digests included.",
        &timings.convergence,
    );
    for layer in extras.families().await {
        families.extend(layer.into_inner());
    }
    families.extend(ProcessCollector::for_self().collect());
    let text = TextEncoder::new()
        .encode_to_string(&families.into_inner())
        .expect("every family has a name and samples");
    Ok(([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}

/// This node, and whom it knows.
async fn node(families: &mut Families, db: &NetworkDb) -> Result<(), Closed> {
    let status = db.status().await?;
    families.info(
        "node_info",
        "This node; the value is always 1.",
        &[
            ("version", env!("CARGO_PKG_VERSION")),
            ("node", db.id().as_str()),
            ("cluster", &status.cluster),
            ("hostname", &status.hostname),
        ],
    );
    families.gauge(
        "uptime_seconds",
        "Time since the node started.",
        status.uptime.as_secs_f64(),
    );
    families.gauge(
        "health_score",
        "0 is healthy; higher means that the node runs late and probes more patiently, up to 8.",
        f64::from(status.health_score),
    );
    families.gauge(
        "in_cluster",
        "1; 0 after the node has left the cluster, until it joins one.",
        f64::from(u8::from(!status.has_left)),
    );
    let members = db.members().await?;
    let states = [
        ("alive", MemberState::Alive),
        ("suspect", MemberState::Suspect),
        ("down", MemberState::Down),
        ("left", MemberState::Left),
        ("heard", MemberState::Heard),
    ];
    let counted = states.map(|(name, state)| {
        let count = members.iter().filter(|member| member.state == state);
        (name, count.count() as f64)
    });
    families.gauges(
        "members",
        "Nodes that this node knows, itself included, by state.",
        "state",
        counted,
    );
    Ok(())
}

/// Reads the networks that this node is attached to; one that it leaves meanwhile is left out.
async fn networks_of(db: &NetworkDb, timings: &Timings) -> Vec<Network> {
    let mut networks = Vec::new();
    for (id, differs_for) in &timings.differing {
        let stats = db.network_stats(id).await;
        let (Some(stats), Some(progress)) = (stats, db.join_progress(id).await) else {
            continue;
        };
        networks.push(Network {
            id: id.clone(),
            counts: TableStats::default(),
            records: stats.entries,
            queue: stats.queue,
            peers: db.peers(id).len(),
            is_synced: progress.is_done,
            differs_for: *differs_for,
        });
    }
    let db = db.clone();
    walking(move || {
        for network in &mut networks {
            let tables = db.tables(&network.id).into_iter();
            let counts = tables.filter_map(|table| db.table_stats(&network.id, &table));
            network.counts = counts.fold(TableStats::default(), |sum, table| TableStats {
                entries: sum.entries + table.entries,
                value_bytes: sum.value_bytes + table.value_bytes,
                hidden: sum.hidden + table.hidden,
                tombstones: sum.tombstones + table.tombstones,
                stubs: sum.stubs + table.stubs,
            });
        }
        networks
    })
    .await
}

/// What this node holds of each network.
fn networks(families: &mut Families, networks: &[Network]) {
    let mut gauge = |name, help, read: fn(&Network) -> f64| {
        let samples = networks.iter().map(|it| (it.id.as_str(), read(it)));
        families.gauges(name, help, "network", samples);
    };
    gauge("entries", "Visible entries.", |it| it.counts.entries as f64);
    gauge(
        "value_bytes",
        "Bytes of the values of visible entries.",
        |it| it.counts.value_bytes as f64,
    );
    gauge("hidden_entries", "Entries whose owner failed.", |it| {
        it.counts.hidden as f64
    });
    gauge("tombstones", "Deletes that are still remembered.", |it| {
        it.counts.tombstones as f64
    });
    gauge("records", "All records held, dead ones included.", |it| {
        it.records as f64
    });
    gauge("queue_length", "Events that wait to be sent.", |it| {
        it.queue as f64
    });
    gauge(
        "attached_nodes",
        "Nodes attached that are up, this one included.",
        |it| it.peers as f64,
    );
    gauge(
        "first_sync_done",
        "1 when the first sync is done, else 0.",
        |it| f64::from(u8::from(it.is_synced)),
    );
    gauge(
        "divergence_seconds",
        "For how long a peer has been known to hold something else; 0 when none is.",
        |it| it.differs_for.as_secs_f64(),
    );
}

/// Events about entries: what they changed here, how they came and went.
fn events(families: &mut Families, stats: &Stats) {
    let changes = [
        ("local", "create", stats.local_creates),
        ("local", "update", stats.local_updates),
        ("local", "delete", stats.local_deletes),
        ("push", "create", stats.pushed_creates),
        ("push", "update", stats.pushed_updates),
        ("push", "delete", stats.pushed_deletes),
        ("sync", "create", stats.synced_creates),
        ("sync", "update", stats.synced_updates),
        ("sync", "delete", stats.synced_deletes),
    ];
    let labels = changes.map(|(source, kind, _)| [("source", source), ("kind", kind)]);
    families.labelled(
        "changes_total",
        "Writes that changed what is held, by kind and by how they came: written here, pushed or synced.",
        labels.iter().zip(changes).map(|(labels, it)| (&labels[..], it.2)),
    );
    families.counter(
        "events_received_total",
        "Table events received by push.",
        stats.events_received,
    );
    families.counter(
        "events_redundant_total",
        "Table events received by push that changed nothing; their share is the redundancy of push.",
        stats.events_stale,
    );
    families.counters(
        "events_sent_total",
        "Table events pushed, counted once a peer, by role: as their owner or as a relay.",
        "role",
        [
            ("owner", stats.events_pushed),
            ("relay", stats.events_relayed),
        ],
    );
    families.counter(
        "cluster_events_redundant_total",
        "Events about nodes and attachments that were received again within a second.",
        stats.events_repeated,
    );
    families.counter(
        "feeds_opened_total",
        "Streams opened because own writes came faster than push may send.",
        stats.feeds_opened,
    );
    families.counter("reaped_total", "Dead records that expired.", stats.reaped);
}

/// Anti-entropy.
fn syncs(families: &mut Families, stats: &Stats) {
    families.counters(
        "digests_received_total",
        "Digests received, by whether they equalled this node's.",
        "result",
        [
            ("equal", stats.digests_equal),
            ("different", stats.digests_different),
        ],
    );
    families.counters(
        "syncs_total",
        "Syncs of networks, by how they ended.",
        "result",
        [
            ("completed", stats.syncs_completed),
            ("failed", stats.syncs_failed),
        ],
    );
    families.counters(
        "push_pulls_total",
        "Push-pulls of the cluster's state, by how they ended.",
        "result",
        [
            ("completed", stats.push_pulls_completed),
            ("failed", stats.push_pulls_failed),
        ],
    );
    families.counter(
        "sync_records_sent_total",
        "Records sent in syncs.",
        stats.sync_records_sent,
    );
    families.counter(
        "sync_records_received_total",
        "Records received in syncs.",
        stats.sync_records_received,
    );
    families.counter(
        "sync_records_redundant_total",
        "Records received in syncs that changed nothing.",
        stats.sync_records_stale,
    );
}

/// What went over the network, by channel.
fn traffic(families: &mut Families, stats: &Stats) {
    families.counters(
        "sent_bytes_total",
        "Bytes sent, seals included, by channel.",
        "channel",
        [
            ("datagram", stats.datagram_bytes_sent),
            ("stream", stats.frame_bytes_sent),
        ],
    );
    families.counters(
        "received_bytes_total",
        "Bytes received that passed the seal, by channel.",
        "channel",
        [
            ("datagram", stats.datagram_bytes_received),
            ("stream", stats.frame_bytes_received),
        ],
    );
    families.counters(
        "sent_packets_total",
        "Datagrams and stream frames sent.",
        "channel",
        [
            ("datagram", stats.datagrams_sent),
            ("stream", stats.frames_sent),
        ],
    );
    families.counters(
        "received_packets_total",
        "Datagrams and stream frames received that passed the seal.",
        "channel",
        [
            ("datagram", stats.datagrams_received),
            ("stream", stats.frames_received),
        ],
    );
}

/// What was refused, dropped or late.
fn failures(families: &mut Families, stats: &Stats) {
    families.counters(
        "dropped_total",
        "What was not taken or not sent, by reason.",
        "reason",
        [
            ("seal", stats.refused_seal),
            ("malformed", stats.refused_malformed),
            ("unknown_kind", stats.skipped_unknown),
            ("clock_ahead", stats.refused_clock),
            ("not_attached", stats.refused_network),
            ("not_owner", stats.refused_owner),
            ("limit", stats.refused_limit),
            ("streams", stats.refused_streams),
            ("inbox_full", stats.dropped_inbox),
            ("push_queue_full", stats.dropped_push),
            ("socket", stats.datagrams_unsent),
        ],
    );
    families.counter(
        "members_failed_total",
        "Members that this node has seen fail.",
        stats.members_failed,
    );
    families.counter(
        "late_probes_total",
        "Probes that this node began late because it was not running.",
        stats.timers_late,
    );
    families.counter(
        "failure_detector_errors_total",
        "Errors of the failure detector that are no failure of a member.",
        stats.swim_errors,
    );
}
