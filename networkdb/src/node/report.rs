//! The lines that the log gets every few minutes, in the form that operators of Docker's NetworkDB know and grep for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::engine::{Engine, JoinProgress};
use crate::id::NetworkId;

/// When the next lines are due, and what the last ones said.
#[derive(Debug)]
pub(crate) struct Report {
    hostname: String,
    period: Duration,
    /// When the next lines are due.
    pub due: Option<Instant>,
    events: BTreeMap<NetworkId, u64>,
}

impl Report {
    pub(crate) fn new(hostname: &str, period: Duration, now: Instant) -> Self {
        Self {
            hostname: hostname.to_owned(),
            period,
            due: Some(now + period),
            events: BTreeMap::new(),
        }
    }

    /// Returns the host's name.
    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Logs one line a network, and one for the health score when it is not 0.
    pub(crate) fn log_if_due(&mut self, engine: &Engine, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.due = Some(now + self.period);
        for line in self.lines(engine) {
            tracing::info!("{line}");
        }
        if engine.health_score() > 0 {
            let (hostname, id) = (&self.hostname, engine.id());
            let score = engine.health_score();
            tracing::warn!(
                "NetworkDB stats {hostname}({id}) - healthscore:{score} (connectivity issues)"
            );
        }
    }

    fn lines(&mut self, engine: &Engine) -> Vec<String> {
        let mut events = BTreeMap::new();
        let mut lines = Vec::new();
        for network in engine.store().networks() {
            let Some(stats) = engine.network_stats(&network) else {
                continue;
            };
            let before = self.events.get(&network).copied().unwrap_or(0);
            let since = stats.events.saturating_sub(before);
            events.insert(network.clone(), stats.events);
            lines.push(format!(
                "NetworkDB stats {}({}) - netID:{network} leaving:false netPeers:{} entries:{} Queue qLen:{} netMsg/s:{}",
                self.hostname,
                engine.id(),
                engine.roster().attached(&network).len(),
                stats.entries,
                stats.queue,
                since / self.period.as_secs().max(1),
            ));
        }
        self.events = events;
        lines
    }
}

/// Logs how far a first sync is that takes long.
pub(crate) fn log_progress(network: &NetworkId, progress: &JoinProgress) {
    let (records, elapsed) = (progress.records, progress.elapsed);
    if progress.is_done {
        tracing::info!(%network, records, ?elapsed, "first sync is done");
    } else {
        tracing::info!(%network, records, ?elapsed, "first sync takes long");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::shared::tests::{attached, network};
    use super::*;
    use crate::id::{Key, TableName};

    #[test]
    fn a_line_tells_peers_entries_and_queue_of_a_network() {
        let now = super::super::driver::now();
        let mut engine = attached();
        let (table, key) = (TableName::new("t").unwrap(), Key::new("k").unwrap());
        engine
            .create_entry(&network(), &table, &key, Bytes::from_static(b"v"), now)
            .unwrap();
        let mut report = Report::new("host", Duration::from_secs(300), now);
        assert_eq!(
            report.lines(&engine),
            [
                "NetworkDB stats host(n1) - netID:net1 leaving:false netPeers:1 entries:1 Queue qLen:1 netMsg/s:0"
            ]
        );
    }
}
