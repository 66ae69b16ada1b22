//! Metrics of the data path; names and units by the conventions of Prometheus.

use diagnostic::{Families, Labels};
use overlay_sync::DataPath;
use overlay_sync::probe::report::TunnelState;
use overlay_sync::reconcile::report::{NetworkReport, State, SyncReport};
use overlay_sync::reconcile::services::ServicesReport;

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
    tunnels(&mut families, &reports);
    if let Ok(reports) = path.services().await {
        services(&mut families, &reports);
    }
    families
}

/// What is balanced; nothing where nothing is.
fn services(families: &mut Families, reports: &[ServicesReport]) {
    let mut members = Vec::new();
    for report in reports {
        let all = || report.services.iter().flat_map(|service| &service.members);
        for state in ["active", "draining", "drained"] {
            let count = all().filter(|member| member.state == state).count();
            let labels = [("network", report.network.as_str()), ("state", state)];
            members.push((labels, count as f64));
        }
    }
    let now = |read: fn(&ServicesReport) -> f64| {
        let levels = reports.iter();
        levels.map(move |report| (report.network.as_str(), read(report)))
    };
    families.gauges(
        "services",
        "Services by their network.",
        "network",
        now(|report| report.services.len() as f64),
    );
    families.gauges(
        "services_refused",
        "Addresses and ports that services ask for and do not get.",
        "network",
        now(|report| {
            let refused = report.services.iter().map(|service| service.refused.len());
            refused.sum::<usize>() as f64
        }),
    );
    families.levels(
        "service_members",
        "Endpoints behind services, by whether they get connections.",
        members
            .iter()
            .map(|(labels, level)| (&labels[..] as &Labels<'_>, *level)),
    );
    services_work(families, reports);
}

/// What was done for services.
fn services_work(families: &mut Families, reports: &[ServicesReport]) {
    let each = |read: fn(&ServicesReport) -> u64| {
        let counts = reports.iter();
        counts.map(move |report| (report.network.as_str(), read(report)))
    };
    families.counters(
        "services_drift_total",
        "Changes of services by somebody else that were set right.",
        "network",
        each(|report| report.drift),
    );
    families.counters(
        "services_failures_total",
        "Operations on services that the kernel refused.",
        "network",
        each(|report| report.failures),
    );
    families.counters(
        "services_operations_total",
        "Operations on services.",
        "network",
        each(|report| report.syncs.operations),
    );
    let mut seconds: Vec<([(&str, &str); 2], f64)> = Vec::new();
    for report in reports {
        let network = ("network", report.network.as_str());
        let syncs = &report.syncs;
        seconds.push(([network, ("kind", "full")], syncs.full_took_seconds));
        seconds.push((
            [network, ("kind", "increment")],
            syncs.increment_took_seconds,
        ));
    }
    families.levels(
        "services_sync_seconds",
        "How long the last look at all services and the last change took.",
        seconds
            .iter()
            .map(|(labels, level)| (&labels[..] as &Labels<'_>, *level)),
    );
    families.gauges(
        "services_full_sync_age_seconds",
        "Time since all services were last compared with the kernel.",
        "network",
        reports
            .iter()
            .filter_map(|report| Some((report.network.as_str(), age(&report.syncs)?))),
    );
}

/// What the probes through the tunnels have found; nothing where there are none.
fn tunnels(families: &mut Families, reports: &[NetworkReport]) {
    let states = [
        ("unknown", TunnelState::Unknown),
        ("passing", TunnelState::Passing),
        ("mtu-mismatch", TunnelState::MtuMismatch),
        ("unreachable", TunnelState::Unreachable),
    ];
    let [mut hosts, mut times] = [Vec::new(), Vec::new()];
    let mut probes = Vec::new();
    for report in reports {
        let Some(tunnels) = &report.tunnels else {
            continue;
        };
        let network = ("network", report.network.as_str());
        for (name, state) in states {
            let count = tunnels
                .iter()
                .filter(|tunnel| tunnel.state == state)
                .count();
            hosts.push(([network, ("state", name)], count as f64));
        }
        let (sent, lost) = tunnels.iter().fold((0, 0), |(sent, lost), tunnel| {
            (sent + tunnel.sent, lost + tunnel.lost)
        });
        probes.push(([network, ("outcome", "sent")], sent));
        probes.push(([network, ("outcome", "lost")], lost));
        let mut trips: Vec<f64> = tunnels.iter().filter_map(|it| it.round_trip_ms).collect();
        trips.sort_by(f64::total_cmp);
        if let (Some(median), Some(most)) = (trips.get(trips.len() / 2), trips.last()) {
            times.push(([network, ("host", "median")], median / 1e3));
            times.push(([network, ("host", "slowest")], most / 1e3));
        }
    }
    families.levels(
        "datapath_tunnel_hosts",
        "Other hosts by what probes through the tunnels have found.",
        hosts
            .iter()
            .map(|(labels, level)| (&labels[..] as &Labels<'_>, *level)),
    );
    families.levels(
        "datapath_tunnel_round_trip_seconds",
        "Time through the tunnel to another host and back.",
        times
            .iter()
            .map(|(labels, level)| (&labels[..] as &Labels<'_>, *level)),
    );
    families.labelled(
        "datapath_tunnel_probes_total",
        "Small probes sent through the tunnels, and those that were not answered; hosts that are gone no longer count.",
        probes.iter().map(|(labels, count)| (&labels[..] as &Labels<'_>, *count)),
    );
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
        let [mut fdb, mut bridges, mut neighbours] = [0; 3];
        for segment in &report.segments {
            fdb += segment.fdb;
            bridges += segment.bridges;
            neighbours += segment.neighbours;
        }
        let pending = report.syncs.as_ref().map_or(0, |syncs| syncs.pending);
        for (kind, count) in [
            ("fdb", fdb),
            ("bridge", bridges),
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
