//! Metrics of the data path; names and units by the conventions of Prometheus.

use diagnostic::{Families, Labels};
use overlay_sync::DataPath;
use overlay_sync::reconcile::report::{NetworkReport, State, SyncReport};

/// Reads the families; none when the data path has ended.
pub(super) async fn families(path: DataPath) -> Families {
    let mut families = Families::default();
    let Ok(reports) = path.reports().await else {
        return families;
    };
    states(&mut families, &reports);
    rows(&mut families, &reports);
    drift(&mut families, &reports);
    syncs(&mut families, &reports);
    families
}

fn states(families: &mut Families, reports: &[NetworkReport]) {
    let states = [
        ("synced", State::Synced),
        ("settling", State::Settling),
        ("frozen", State::Frozen),
        ("failing", State::Failing),
        ("unconfigured", State::Unconfigured),
        ("refused", State::Refused),
    ];
    families.gauges(
        "datapath_networks",
        "Networks that this node is attached to, by the state of their data path.",
        "state",
        states.map(|(name, state)| {
            let count = reports.iter().filter(|report| report.state == state);
            (name, count.count() as f64)
        }),
    );
}

fn rows(families: &mut Families, reports: &[NetworkReport]) {
    let mut levels: Vec<([(&str, &str); 2], f64)> = Vec::new();
    for report in reports {
        let [mut fdb, mut neighbours] = [0, 0];
        for segment in &report.segments {
            fdb += segment.fdb;
            neighbours += segment.neighbours;
        }
        let pending = report.syncs.as_ref().map_or(0, |syncs| syncs.pending);
        for (kind, count) in [
            ("fdb", fdb),
            ("neighbour", neighbours),
            ("pending", pending),
            ("conflict", report.conflicts.len()),
            ("rejected", report.rejected.len()),
        ] {
            let labels = [("network", report.network.as_str()), ("kind", kind)];
            levels.push((labels, count as f64));
        }
    }
    families.levels(
        "datapath_rows",
        "Rows that the kernel should hold, places that wait to be looked at, addresses claimed twice, records that cannot be used.",
        levels.iter().map(|(labels, level)| (&labels[..] as &Labels<'_>, *level)),
    );
}

fn drift(families: &mut Families, reports: &[NetworkReport]) {
    let mut counts: Vec<([(&str, &str); 2], u64)> = Vec::new();
    for report in reports {
        let drift = &report.counts.drift;
        for (kind, count) in [
            ("fdb", drift.fdb),
            ("neighbour", drift.neighbours),
            ("device", drift.devices),
            ("learned", drift.learned),
        ] {
            let labels = [("network", report.network.as_str()), ("kind", kind)];
            counts.push((labels, count));
        }
    }
    families.labelled(
        "datapath_drift_repaired_total",
        "What somebody else had changed in the kernel and was set right.",
        counts
            .iter()
            .map(|(labels, count)| (&labels[..] as &Labels<'_>, *count)),
    );
}

fn syncs(families: &mut Families, reports: &[NetworkReport]) {
    let network = |report: &NetworkReport| report.network.clone();
    let names: Vec<String> = reports.iter().map(network).collect();
    let each = |read: fn(&NetworkReport) -> u64| {
        let counts = names.iter().zip(reports);
        counts.map(move |(name, report)| (name.as_str(), read(report)))
    };
    families.counters(
        "datapath_failures_total",
        "Operations that the kernel refused.",
        "network",
        each(|report| report.counts.failures),
    );
    families.counters(
        "datapath_freezes_total",
        "Times at which hosts failed together and the data path was kept as it was.",
        "network",
        each(|report| report.counts.freezes),
    );
    families.counters(
        "datapath_operations_total",
        "Operations on the kernel.",
        "network",
        each(|report| report.syncs.as_ref().map_or(0, |syncs| syncs.operations)),
    );
    let mut seconds: Vec<([(&str, &str); 2], f64)> = Vec::new();
    let mut ages = Vec::new();
    for report in reports {
        let Some(syncs) = &report.syncs else {
            continue;
        };
        let network = ("network", report.network.as_str());
        seconds.push(([network, ("kind", "full")], syncs.full_took_seconds));
        seconds.push((
            [network, ("kind", "increment")],
            syncs.increment_took_seconds,
        ));
        ages.extend(age(syncs).map(|age| (report.network.as_str(), age)));
    }
    families.levels(
        "datapath_sync_seconds",
        "How long the last look at everything and the last change took.",
        seconds
            .iter()
            .map(|(labels, level)| (&labels[..] as &Labels<'_>, *level)),
    );
    families.gauges(
        "datapath_full_sync_age_seconds",
        "Time since everything was last compared with the kernel.",
        "network",
        ages,
    );
}

fn age(syncs: &SyncReport) -> Option<f64> {
    syncs.full_seconds_ago
}
