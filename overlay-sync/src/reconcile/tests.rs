//! The reconciler on a kernel in memory, with made-up time.

use std::sync::Mutex;

use networkdb::{Generation, LamportTime, NodeId, Stamp, Version};

use super::*;
use crate::desired::Claim;
use crate::kernel::memory::MemoryKernel;
use crate::kernel::{DeviceFault, FdbRow, Vni};
use crate::mac::Mac;
use crate::record::PeerRecord;

/// A reconciler, its kernel, and the hands of its clock.
struct Rig {
    reconciler: Reconciler<MemoryKernel>,
    kernel: MemoryKernel,
    now: Arc<Mutex<Instant>>,
    network: NetworkId,
}

fn config() -> NetworkConfig {
    let text = br#"{"segments":[{"vni":4097,"subnets":["10.0.1.0/24"]}]}"#;
    NetworkConfig::from_json(text).unwrap()
}

fn vni() -> Vni {
    Vni::new(4_097).unwrap()
}

fn mac(last: u8) -> Mac {
    Mac::new([2, 0, 0, 0, 0, last]).unwrap()
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

fn vtep(host: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, host])
}

fn key(endpoint: u8) -> Key {
    Key::new(format!("endpoint{endpoint}")).unwrap()
}

fn host(number: u8) -> NodeId {
    NodeId::new(format!("host{number}")).unwrap()
}

fn claim(endpoint: u8, host_number: u8, time: u64) -> Claim {
    Claim {
        record: Ok(PeerRecord {
            endpoint: format!("10.0.1.{endpoint}/24").parse().unwrap(),
            mac: mac(endpoint),
            vtep: vtep(host_number),
        }),
        version: Version {
            time: LamportTime(time),
            owner: host(host_number),
            stamp: Stamp {
                generation: Generation(1),
                joined: LamportTime(1),
            },
            tombstone: false,
            value_hash: 0,
        },
        owner: host(host_number),
    }
}

impl Rig {
    /// With the network taken up, and nothing known.
    fn start(kernel: MemoryKernel) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a beginning for made-up times")]
        let now = Arc::new(Mutex::new(Instant::now()));
        let hands = Arc::clone(&now);
        let settings = Settings {
            node: host(1),
            local: vtep(1),
            port: 4_789,
            flavour: Flavour::Quiet,
            probes: false,
            timing: Timing::default(),
        };
        let clock = Clock::new(move || *hands.lock().unwrap());
        let mut rig = Self {
            reconciler: Reconciler::new(kernel.clone(), settings, clock),
            kernel,
            now,
            network: NetworkId::new("net").unwrap(),
        };
        assert!(rig.reconciler.attach(&rig.network, Some(config())));
        rig
    }

    /// With hosts 2 to 5, endpoints 12 to 15 behind them, all known and in the kernel.
    fn settled() -> Self {
        let mut rig = Self::start(MemoryKernel::default());
        for host in 2..=5 {
            rig.set(10 + host, host, 1);
        }
        rig.reconciler.settle(&rig.network);
        rig.pass(Duration::from_secs(1));
        rig.kernel.take_applied();
        rig
    }

    fn set(&mut self, endpoint: u8, host: u8, time: u64) {
        let claim = claim(endpoint, host, time);
        self.reconciler.set(&self.network, key(endpoint), claim);
    }

    fn hide(&mut self, endpoint: u8) {
        self.reconciler.hide(&self.network, &key(endpoint));
    }

    /// Works until nothing is due.
    fn work(&mut self) {
        for _ in 0..100 {
            let now = *self.now.lock().unwrap();
            let next = self.reconciler.poll();
            if next.is_none_or(|next| next > now) {
                return;
            }
        }
        panic!("there is always something due");
    }

    /// Lets time pass, working whenever something is due.
    fn pass(&mut self, time: Duration) {
        let end = *self.now.lock().unwrap() + time;
        loop {
            self.work();
            let next = self.reconciler.poll().unwrap_or(end).min(end);
            *self.now.lock().unwrap() = next;
            if next == end {
                return self.work();
            }
        }
    }

    /// The endpoints that the kernel forwards to, with their hosts.
    fn rows(&self) -> BTreeMap<u8, IpAddr> {
        let actual = self.kernel.actual(&self.network);
        let segment = actual.segments.get(&vni());
        let rows = segment.into_iter().flat_map(|segment| &segment.fdb);
        let ours = rows.filter(|(_, row)| row.is_ours);
        ours.map(|(mac, row)| (mac.bytes()[5], row.vtep)).collect()
    }

    fn report(&self) -> NetworkReport {
        self.reconciler.reports().remove(0)
    }
}

fn endpoints(rig: &Rig) -> Vec<u8> {
    rig.rows().into_keys().collect()
}

#[test]
fn the_first_change_is_applied_at_once_and_the_next_ones_together() {
    let mut rig = Rig::settled();
    rig.set(21, 2, 2);
    rig.work();
    assert_eq!(rig.rows()[&21], vtep(2), "without any time passing");
    rig.kernel.take_applied();
    for endpoint in 22..30 {
        rig.set(endpoint, 2, 2);
        rig.work();
    }
    assert_eq!(rig.kernel.take_applied(), [], "gathered");
    rig.pass(Timing::default().gather);
    assert_eq!(rig.rows().len(), 4 + 9);
    assert_eq!(rig.report().syncs.unwrap().increments, 2);
}

#[test]
fn what_is_right_already_is_not_written_again_at_a_start() {
    let before = Rig::settled();
    let mut after = Rig::start(before.kernel);
    for host in 2..=5 {
        after.set(10 + host, host, 1);
    }
    after.pass(Duration::from_secs(1));
    after.reconciler.settle(&after.network);
    after.pass(Duration::from_secs(120));
    assert_eq!(after.kernel.take_applied(), []);
    assert_eq!(after.report().state, State::Synced);
}

#[test]
fn nothing_is_removed_before_all_records_are_known() {
    let before = Rig::settled();
    let mut after = Rig::start(before.kernel);
    after.set(12, 2, 1);
    after.set(30, 3, 2);
    after.pass(Duration::from_secs(10));
    assert_eq!(endpoints(&after), [12, 13, 14, 15, 30]);
    assert_eq!(after.report().state, State::Settling);
    after.reconciler.settle(&after.network);
    after.work();
    assert_eq!(endpoints(&after), [12, 30]);
    let counts = after.report().counts;
    assert_eq!(
        counts.drift,
        Default::default(),
        "what an earlier run left is no drift"
    );
}

#[test]
fn a_start_that_learns_nothing_follows_what_it_knows_after_the_hold() {
    let before = Rig::settled();
    let mut after = Rig::start(before.kernel);
    after.pass(Duration::from_secs(59));
    assert_eq!(endpoints(&after).len(), 4);
    after.pass(Duration::from_secs(1));
    assert_eq!(endpoints(&after).len(), 0);
}

#[test]
fn every_sabotage_is_repaired_and_counted() {
    let mut rig = Rig::settled();
    let network = rig.network.clone();
    let right = rig.kernel.actual(&network);
    type Sabotage = fn(&mut crate::kernel::ActualSegment);
    let sabotages: [(&str, Sabotage); 6] = [
        ("row gone", |segment| {
            segment.fdb.retain(|row, _| *row != mac(12))
        }),
        ("neighbour gone", |segment| {
            segment.neighbours.retain(|row, _| *row != ip(12));
        }),
        ("other host", |segment| {
            segment.fdb.get_mut(&mac(13)).unwrap().vtep = vtep(99);
        }),
        ("learned", |segment| {
            segment.fdb.insert(
                mac(14),
                FdbRow {
                    vtep: vtep(9),
                    is_ours: false,
                    is_permanent: false,
                    has_more: false,
                },
            );
        }),
        ("down", |segment| {
            segment.faults.insert(DeviceFault::VxlanDown);
        }),
        ("device gone", |segment| {
            *segment = crate::kernel::ActualSegment::default()
        }),
    ];
    let mut drift = 0;
    for (what, sabotage) in sabotages {
        rig.pass(Duration::from_secs(1));
        rig.kernel.sabotage(&network, |actual| {
            sabotage(actual.segments.get_mut(&vni()).unwrap());
        });
        rig.reconciler.notice(&Notice::Network(network.clone()));
        rig.pass(Duration::from_millis(500));
        assert_eq!(rig.kernel.actual(&network), right, "{what}");
        let counted = rig.report().counts.drift;
        let sum = counted.fdb + counted.neighbours + counted.devices;
        assert!(sum > drift, "{what}");
        drift = sum;
    }
}

#[test]
fn what_nobody_tells_of_is_found_by_the_timer() {
    let mut rig = Rig::settled();
    let network = rig.network.clone();
    rig.kernel
        .sabotage(&network, |actual| *actual = Default::default());
    rig.pass(Duration::from_secs(31));
    assert_eq!(endpoints(&rig), [12, 13, 14, 15]);
}

#[test]
fn notices_of_our_own_changes_and_of_rows_of_others_cause_no_look() {
    let mut rig = Rig::settled();
    let network = rig.network.clone();
    let looks = rig.report().syncs.unwrap().full;
    let row = |host, is_ours| FdbRow {
        vtep: vtep(host),
        is_ours,
        is_permanent: true,
        has_more: false,
    };
    let notice = |endpoint, row| Notice::Fdb {
        network: network.clone(),
        vni: vni(),
        mac: mac(endpoint),
        row,
    };
    rig.reconciler.notice(&notice(12, Some(row(2, true))));
    rig.reconciler.notice(&notice(77, Some(row(9, false))));
    rig.reconciler.notice(&notice(78, None));
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.report().syncs.unwrap().full, looks);
    rig.reconciler.notice(&notice(12, Some(row(3, true))));
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.report().syncs.unwrap().full, looks + 1);
}

#[test]
fn looks_that_others_cause_are_not_endless() {
    let mut rig = Rig::settled();
    let looks = rig.report().syncs.unwrap().full;
    for _ in 0..1_000 {
        rig.reconciler.notice(&Notice::Network(rig.network.clone()));
        rig.pass(Duration::from_millis(1));
    }
    let more = rig.report().syncs.unwrap().full - looks;
    assert!((10..=25).contains(&more), "{more}");
}

#[test]
fn what_the_kernel_refuses_is_tried_again_and_told() {
    let mut rig = Rig::settled();
    rig.kernel.refuse(|op| matches!(op, Op::SetFdb { .. }));
    rig.set(21, 2, 2);
    rig.work();
    let report = rig.report();
    assert_eq!(report.state, State::Failing);
    assert_eq!(
        report.syncs.unwrap().last_error.unwrap(),
        "set fdb vni 4097 02:00:00:00:00:15 dst 192.0.2.2: no buffer space available"
    );
    rig.pass(Duration::from_secs(20));
    assert!(!rig.rows().contains_key(&21));
    rig.kernel.refuse_nothing();
    rig.pass(Duration::from_secs(30));
    assert_eq!(rig.rows()[&21], vtep(2));
    let report = rig.report();
    assert_eq!(report.state, State::Synced);
    assert_eq!(report.syncs.unwrap().last_error, None);
    assert_eq!(
        report.counts.drift,
        Default::default(),
        "a retry is no drift"
    );
}

#[test]
fn a_change_meanwhile_does_not_wait_for_the_retry() {
    let mut rig = Rig::settled();
    rig.kernel
        .refuse(|op| matches!(op, Op::SetFdb { mac, .. } if mac.bytes()[5] == 21));
    rig.set(21, 2, 2);
    rig.pass(Duration::from_secs(10));
    rig.set(22, 2, 3);
    rig.pass(Duration::from_millis(5));
    assert_eq!(rig.rows()[&22], vtep(2));
}

#[test]
fn a_dump_that_fails_is_tried_again() {
    let mut rig = Rig::start(MemoryKernel::default());
    rig.kernel.fail_dump(KernelError::Refused {
        what: "dump".into(),
        reason: "interrupted".into(),
        errno: 4,
    });
    rig.set(12, 2, 1);
    rig.work();
    assert!(rig.rows().is_empty());
    rig.pass(Duration::from_millis(100));
    assert_eq!(rig.rows()[&12], vtep(2));
}

#[test]
fn one_host_that_fails_goes_at_once_and_comes_back() {
    let mut rig = Rig::settled();
    rig.hide(12);
    rig.work();
    assert_eq!(endpoints(&rig), [13, 14, 15]);
    rig.pass(Duration::from_secs(1));
    rig.set(12, 2, 1);
    rig.work();
    assert_eq!(endpoints(&rig), [12, 13, 14, 15]);
}

#[test]
fn most_hosts_at_once_are_kept_and_those_gone_a_moment_ago_come_back() {
    let mut rig = Rig::settled();
    rig.hide(12);
    rig.pass(Duration::from_secs(1));
    assert_eq!(endpoints(&rig), [13, 14, 15]);
    rig.hide(13);
    rig.pass(Duration::from_secs(1));
    rig.hide(14);
    rig.pass(Duration::from_secs(1));
    assert_eq!(endpoints(&rig), [12, 13, 14, 15]);
    let report = rig.report();
    assert_eq!(report.state, State::Frozen);
    assert_eq!(report.counts.freezes, 1);
    rig.hide(15);
    rig.pass(Duration::from_secs(50));
    assert_eq!(endpoints(&rig), [12, 13, 14, 15]);
    rig.pass(Duration::from_secs(10));
    assert!(endpoints(&rig).is_empty(), "the hold is over");
    assert_eq!(rig.report().state, State::Synced);
}

#[test]
fn a_frozen_network_thaws_when_its_hosts_are_back() {
    let mut rig = Rig::settled();
    for endpoint in 12..=15 {
        rig.hide(endpoint);
    }
    rig.pass(Duration::from_secs(10));
    for host in 2..=4 {
        rig.set(10 + host, host, 1);
    }
    rig.pass(Duration::from_secs(3));
    assert_eq!(endpoints(&rig), [12, 13, 14, 15]);
    rig.pass(Duration::from_secs(2));
    assert_eq!(endpoints(&rig), [12, 13, 14], "the last one is dead");
    assert_eq!(rig.report().state, State::Synced);
}

#[test]
fn a_record_deleted_in_a_frozen_network_goes_at_once() {
    let mut rig = Rig::settled();
    for endpoint in 12..=15 {
        rig.hide(endpoint);
    }
    rig.work();
    rig.reconciler.remove(&rig.network.clone(), &key(13));
    rig.pass(Duration::from_millis(5));
    assert_eq!(endpoints(&rig), [12, 14, 15]);
}

#[test]
fn an_isolated_node_keeps_everything_as_long_as_it_hears_nobody() {
    let mut rig = Rig::settled();
    rig.reconciler.set_evidence(Evidence {
        suspects: BTreeSet::new(),
        is_isolated: true,
    });
    rig.hide(12);
    rig.pass(Duration::from_secs(20));
    assert_eq!(endpoints(&rig), [12, 13, 14, 15]);
    assert!(rig.reconciler.wants_evidence());
    rig.reconciler.set_evidence(Evidence::default());
    rig.pass(Duration::from_secs(5));
    assert_eq!(endpoints(&rig), [13, 14, 15], "only that one was dead");
}

#[test]
fn devices_follow_the_underlay_without_losing_rows() {
    let mut rig = Rig::settled();
    rig.kernel.set_underlay_mtu(1_400);
    rig.reconciler.notice(&Notice::Underlay);
    rig.pass(Duration::from_millis(10));
    let applied = rig.kernel.take_applied();
    assert_eq!(applied.len(), 1);
    assert!(matches!(&applied[0], Op::SetDevice(device) if device.mtu == 1_350));
    assert_eq!(rig.rows().len(), 4);
}

#[test]
fn a_layout_that_cannot_be_used_leaves_the_data_path_alone() {
    let mut rig = Rig::settled();
    let mut large = config();
    large.mtu = Some(9_000);
    assert!(!rig.reconciler.attach(&rig.network, Some(large)));
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.rows().len(), 4);
    assert_eq!(rig.kernel.take_applied(), []);
    let mut encrypted = config();
    encrypted.encrypted = true;
    let other = NetworkId::new("secret").unwrap();
    assert!(!rig.reconciler.attach(&other, Some(encrypted)));
    let report = rig.reconciler.reports().pop().unwrap();
    assert_eq!(report.state, State::Refused);
    assert!(report.reason.unwrap().contains("not supported"));
    rig.pass(Duration::from_secs(1));
    assert!(!rig.kernel.actual(&other).has_namespace);
}

#[test]
fn a_network_that_is_left_is_removed_and_others_stay() {
    let mut rig = Rig::settled();
    let other = NetworkId::new("other").unwrap();
    rig.reconciler.attach(&other, Some(config()));
    rig.work();
    rig.reconciler.detach(&rig.network.clone());
    assert!(!rig.kernel.actual(&rig.network).has_namespace);
    assert!(rig.kernel.actual(&other).has_namespace);
}

#[test]
fn a_plan_changes_nothing_and_a_repair_does_it() {
    let mut rig = Rig::settled();
    let network = rig.network.clone();
    rig.kernel.sabotage(&network, |actual| {
        actual.segments.get_mut(&vni()).unwrap().fdb.clear();
    });
    let plan = rig.reconciler.plan(&network).unwrap();
    assert_eq!(plan.operations, 4);
    assert_eq!(
        plan.plan[0],
        "set fdb vni 4097 02:00:00:00:00:0c dst 192.0.2.2"
    );
    assert!(rig.rows().is_empty());
    assert_eq!(rig.reconciler.repair(&network).unwrap().len(), 4);
    assert_eq!(rig.rows().len(), 4);
    assert_eq!(rig.reconciler.plan(&network).unwrap().operations, 0);
    let unknown = NetworkId::new("unknown").unwrap();
    assert!(matches!(
        rig.reconciler.plan(&unknown),
        Err(AskError::NotAttached(_))
    ));
}
