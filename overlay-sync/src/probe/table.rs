//! The hosts that are probed through a network's tunnel, and what came of it. Reads no clock and no socket.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::report::{TunnelReport, TunnelState};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two probes of a host whose way is known.
const PERIOD: Duration = Duration::from_secs(2);

/// Between two probes of a host of which something is to be found out.
const HASTE: Duration = Duration::from_millis(100);

/// A host that has not answered so often in a row is not reached, and a size that was lost so often does not pass.
const LOST_MAX: u32 = 3;

/// At every so many probes the largest size is tried again, should less pass.
const AFRESH: u64 = 10;

/// Weight of what was known of a round trip before one more, in eighths.
const SMOOTHING: u32 = 7;

/// The hosts of one network.
#[derive(Debug)]
pub(crate) struct Table {
    mtu: u32,
    hosts: BTreeMap<IpAddr, Host>,
}

/// A probe to be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Due {
    pub host: IpAddr,
    pub number: u64,
    /// Bytes of payload.
    pub bytes: u32,
}

#[derive(Debug)]
struct Host {
    next: Instant,
    under_way: Option<UnderWay>,
    turns: u64,
    round_trip: Option<Duration>,
    sent: u64,
    lost: u64,
    /// Small probes in a row without an answer.
    silent: u32,
    /// The largest size that has passed, and the smallest that has not.
    passes: u32,
    fails: Option<u32>,
    /// The size that is tried now, and how often in a row it was lost.
    trying: u32,
    tries: u32,
    mtu: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    number: u64,
    bytes: u32,
    sent: Instant,
}

impl Table {
    pub(crate) fn new(mtu: u32) -> Self {
        Self {
            mtu,
            hosts: BTreeMap::new(),
        }
    }

    /// Takes which hosts there are, and what should fit into a packet; other sizes are found out anew.
    pub(crate) fn set(&mut self, mtu: u32, hosts: impl Iterator<Item = IpAddr>, now: Instant) {
        if mtu != self.mtu {
            *self = Self::new(mtu);
        }
        let mut before = std::mem::take(&mut self.hosts);
        for host in hosts {
            let known = before.remove(&host).unwrap_or_else(|| Host::new(now));
            self.hosts.insert(host, known);
        }
    }

    pub(crate) fn has(&self, host: IpAddr) -> bool {
        self.hosts.contains_key(&host)
    }

    /// When something is due next; none without hosts.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.hosts.values().map(Host::deadline).min()
    }

    /// Returns the probes that are due, those that have waited longest first, up to some; `number` gives each its own.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        most: usize,
        mut number: impl FnMut() -> u64,
    ) -> Vec<Due> {
        let mut waiting = Vec::new();
        for (ip, host) in &mut self.hosts {
            host.give_up(now);
            if host.under_way.is_none() && host.next <= now {
                waiting.push((host.next, *ip));
            }
        }
        waiting.sort_unstable();
        waiting.truncate(most);
        let mtu = self.mtu;
        let mut begin = |(_, ip): (Instant, IpAddr)| {
            let host = self.hosts.get_mut(&ip)?;
            let (number, bytes) = (number(), host.size(mtu));
            host.under_way = Some(UnderWay {
                number,
                bytes,
                sent: now,
            });
            host.sent += u64::from(bytes == SMALL);
            Some(Due {
                host: ip,
                number,
                bytes,
            })
        };
        waiting.into_iter().filter_map(&mut begin).collect()
    }

    /// A host has answered. Returns whether that was asked for.
    pub(crate) fn answered(&mut self, host: IpAddr, number: u64, mtu: u32, now: Instant) -> bool {
        let wanted = self.mtu;
        let Some(host) = self.hosts.get_mut(&host) else {
            return false;
        };
        let Some(probe) = host.under_way.take_if(|probe| probe.number == number) else {
            return false;
        };
        host.mtu = Some(mtu);
        host.silent = 0;
        host.passed(probe, wanted, now);
        true
    }

    /// Whether no host answers, as after the devices were made anew.
    pub(crate) fn is_silent(&self) -> bool {
        !self.hosts.is_empty() && self.hosts.values().all(|host| host.silent > 0)
    }

    pub(crate) fn report(&self) -> Vec<TunnelReport> {
        let hosts = self.hosts.iter();
        hosts.map(|(ip, host)| host.report(*ip, self.mtu)).collect()
    }
}

/// The size that always fits: the smallest there is.
const SMALL: u32 = 46;

impl Host {
    fn new(now: Instant) -> Self {
        Self {
            next: now,
            under_way: None,
            turns: 0,
            round_trip: None,
            sent: 0,
            lost: 0,
            silent: 0,
            passes: 0,
            fails: None,
            trying: SMALL,
            tries: 0,
            mtu: None,
        }
    }

    fn deadline(&self) -> Instant {
        self.under_way
            .map_or(self.next, |probe| probe.sent + PATIENCE)
    }

    /// Chooses the size of the next probe: small ones and large ones by turns, and small ones only while none is answered.
    fn size(&mut self, mtu: u32) -> u32 {
        self.turns += 1;
        let is_large = self.turns.is_multiple_of(2);
        if !is_large || self.silent > 0 || self.round_trip.is_none() {
            return SMALL;
        }
        if self.tries == 0 {
            let size = match self.fails {
                Some(fails) if fails > self.passes + 1 => self.passes.midpoint(fails),
                // Found to a byte: whether what passed still does, and at times whether all does.
                Some(_) if !self.turns.is_multiple_of(AFRESH) => self.passes,
                Some(_) | None => mtu,
            };
            self.trying = size.max(SMALL);
        }
        self.trying
    }

    /// Whether sizes are being tried.
    fn is_searching(&self) -> bool {
        self.tries > 0 || self.fails.is_some_and(|fails| fails > self.passes + 1)
    }

    fn pause(&self) -> Duration {
        if self.is_searching() || (1..LOST_MAX).contains(&self.silent) || self.passes == 0 {
            HASTE
        } else {
            PERIOD
        }
    }

    fn passed(&mut self, probe: UnderWay, mtu: u32, now: Instant) {
        if probe.bytes == self.trying {
            self.tries = 0;
        }
        if probe.bytes == SMALL {
            let measured = now.saturating_duration_since(probe.sent);
            let known = self.round_trip.unwrap_or(measured);
            self.round_trip = Some((known * SMOOTHING + measured) / (SMOOTHING + 1));
        }
        self.passes = self.passes.max(probe.bytes);
        if probe.bytes >= mtu || self.fails.is_some_and(|fails| fails <= probe.bytes) {
            self.fails = None;
        }
        self.next = now + self.pause();
    }

    /// Takes a probe for lost that was not answered in time.
    fn give_up(&mut self, now: Instant) {
        let is_late = |probe: &mut UnderWay| now >= probe.sent + PATIENCE;
        let Some(probe) = self.under_way.take_if(is_late) else {
            return;
        };
        if probe.bytes == SMALL {
            self.lost += 1;
            self.silent = self.silent.saturating_add(1);
        } else {
            self.tries += 1;
        }
        if self.tries >= LOST_MAX {
            self.tries = 0;
            self.fails = Some(
                self.fails
                    .map_or(probe.bytes, |known| known.min(probe.bytes)),
            );
            // What passed once need not pass any more.
            if self.passes >= probe.bytes {
                self.passes = SMALL;
            }
        }
        self.next = now + self.pause();
    }

    fn report(&self, ip: IpAddr, mtu: u32) -> TunnelReport {
        let is_other = self.mtu.is_some_and(|other| other != mtu);
        let state = match self.round_trip {
            _ if self.silent >= LOST_MAX => TunnelState::Unreachable,
            None => TunnelState::Unknown,
            Some(_) if self.fails.is_some() || is_other => TunnelState::MtuMismatch,
            Some(_) if self.passes < mtu => TunnelState::Unknown,
            Some(_) => TunnelState::Passing,
        };
        TunnelReport {
            host: ip.to_string(),
            state,
            round_trip_ms: self.round_trip.map(|time| time.as_secs_f64() * 1e3),
            sent: self.sent,
            lost: self.lost,
            mtu,
            mtu_passes: (self.passes > 0).then_some(self.passes),
            mtu_lost: self.fails,
            mtu_of_host: self.mtu,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    /// Plays a minute with a host that answers what `passes`, a millisecond later; returns what is told in the end.
    fn play(
        table: &mut Table,
        start: Instant,
        mtu: u32,
        passes: impl Fn(u32) -> bool,
    ) -> TunnelReport {
        let mut number = 0;
        for millis in (0..60_000).step_by(10) {
            let now = start + Duration::from_millis(millis);
            let mut next = || {
                number += 1;
                number
            };
            for due in table.due(now, 10, &mut next) {
                if passes(due.bytes) {
                    let later = now + Duration::from_millis(1);
                    assert!(table.answered(due.host, due.number, mtu, later));
                    assert!(!table.answered(due.host, due.number, mtu, later), "once");
                }
            }
        }
        table.report().remove(0)
    }

    #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
    fn table(mtu: u32) -> (Table, Instant) {
        let (mut table, now) = (Table::new(mtu), Instant::now());
        table.set(mtu, [HOST].into_iter(), now);
        (table, now)
    }

    #[test]
    fn the_smallest_probe_is_that_of_ethernet() {
        assert_eq!(
            usize::try_from(SMALL),
            Ok(super::super::packet::PAYLOAD_MIN)
        );
    }

    #[test]
    fn a_way_that_carries_the_mtu_passes() {
        let (mut table, now) = table(1_450);
        let report = play(&mut table, now, 1_450, |_| true);
        assert_eq!(report.state, TunnelState::Passing);
        assert_eq!((report.mtu_passes, report.mtu_lost), (Some(1_450), None));
        assert_eq!(report.round_trip_ms, Some(1.0));
        assert_eq!(report.lost, 0);
        assert!((15..30).contains(&report.sent), "{report:?}");
    }

    #[test]
    fn what_passes_is_found_to_a_byte_and_followed() {
        let (mut table, now) = table(1_450);
        for (minute, limit) in (0..).zip([1_400, 1_399, 900]) {
            let start = now + Duration::from_secs(60 * minute);
            let report = play(&mut table, start, 1_450, |bytes| bytes <= limit);
            assert_eq!(report.state, TunnelState::MtuMismatch);
            assert_eq!(
                (report.mtu_passes, report.mtu_lost),
                (Some(limit), Some(limit + 1))
            );
            assert_eq!(report.lost, 0);
        }
        let later = now + Duration::from_secs(180);
        let report = play(&mut table, later, 1_450, |_| true);
        assert_eq!(report.state, TunnelState::Passing, "{report:?}");
    }

    #[test]
    fn a_host_that_does_not_answer_is_told_and_forgiven() {
        let (mut table, now) = table(1_450);
        let report = play(&mut table, now, 1_450, |_| false);
        assert_eq!(report.state, TunnelState::Unreachable);
        assert!(table.is_silent());
        assert_eq!(report.round_trip_ms, None);
        let report = play(&mut table, now + Duration::from_secs(60), 1_450, |_| true);
        assert_eq!(report.state, TunnelState::Passing);
        assert!(!table.is_silent());
    }

    #[test]
    fn another_mtu_of_the_other_host_is_told() {
        let (mut table, now) = table(1_450);
        let report = play(&mut table, now, 1_430, |_| true);
        assert_eq!(report.state, TunnelState::MtuMismatch);
        assert_eq!(report.mtu_of_host, Some(1_430));
    }

    #[test]
    fn answers_nobody_asked_for_change_nothing() {
        let (mut table, now) = table(1_450);
        assert!(!table.answered(HOST, 7, 1_450, now));
        let due = table.due(now, 10, || 7);
        assert_eq!(
            due,
            [Due {
                host: HOST,
                number: 7,
                bytes: SMALL
            }]
        );
        assert!(!table.answered(HOST, 8, 1_450, now));
        let other = "192.0.2.9".parse().unwrap();
        assert!(!table.answered(other, 7, 1_450, now));
        assert!(table.has(HOST) && !table.has(other));
    }

    #[test]
    fn every_host_gets_its_turn_when_there_are_too_many() {
        let (mut table, now) = table(1_450);
        let hosts = (0..200).map(|last| IpAddr::from([10, 0, 0, last]));
        table.set(1_450, hosts, now);
        // 40 a second, where a hundred would be due.
        for millis in (0..20_000).step_by(50) {
            let now = now + Duration::from_millis(millis);
            for due in table.due(now, 2, || millis) {
                table.answered(due.host, millis, 1_450, now);
            }
        }
        let sent = table.report().iter().map(|host| host.sent).min();
        assert!(sent >= Some(2), "{sent:?}");
    }

    #[test]
    fn no_more_are_sent_at_once_than_allowed_and_hosts_that_went_are_forgotten() {
        let (mut table, now) = table(1_450);
        let hosts = || (0..100).map(|last| IpAddr::from([10, 0, 0, last]));
        table.set(1_450, hosts(), now);
        assert_eq!(table.due(now, 30, || 1).len(), 30);
        assert_eq!(table.due(now, 100, || 1).len(), 70);
        assert_eq!(table.due(now, 100, || 1).len(), 0);
        table.set(1_450, hosts().take(3), now);
        assert_eq!(table.report().len(), 3);
        assert_eq!(table.deadline(), Some(now + PATIENCE));
        table.set(1_450, std::iter::empty(), now);
        assert_eq!(table.deadline(), None);
    }
}
