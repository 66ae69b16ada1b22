//! The loop over services, with a kernel and a balancer in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use networkdb::{Generation, Key, LamportTime, NetworkId, NodeId, Stamp, Version};

use crate::desired::Claim;
use crate::kernel::Flavour;
use crate::kernel::balancer::memory::MemoryBalancer;
use crate::kernel::memory::MemoryKernel;
use crate::mac::Mac;
use crate::network::NetworkConfig;
use crate::reconcile::{Clock, Reconciler, Settings, Timing};
use crate::record::{EndpointRecord, PeerRecord};
use crate::service::plan::ServiceOp;
use crate::service::table::ServiceClaim;
use crate::service::{Balancing, Frontend, Service, Target};

struct Rig {
    reconciler: Reconciler<MemoryKernel>,
    balancer: MemoryBalancer,
    now: Arc<Mutex<Instant>>,
    network: NetworkId,
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

fn version(owner: &NodeId, time: u64) -> Version {
    Version {
        time: LamportTime(time),
        owner: owner.clone(),
        stamp: Stamp {
            generation: Generation(1),
            joined: LamportTime(1),
        },
        tombstone: false,
        value_hash: 0,
    }
}

fn node(number: u8) -> NodeId {
    NodeId::new(format!("host{number}")).unwrap()
}

fn target(last: u8) -> Target {
    Target {
        ip: ip(last),
        port: 0,
    }
}

impl Rig {
    /// This is host 1; all records are known.
    fn start() -> Self {
        let mut rig = Self::starting(MemoryBalancer::default());
        rig.reconciler.settle(&rig.network);
        rig.pass(Duration::from_secs(1));
        rig
    }

    fn starting(balancer: MemoryBalancer) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a beginning for made-up times")]
        let now = Arc::new(Mutex::new(Instant::now()));
        let hands = Arc::clone(&now);
        let settings = Settings {
            node: node(1),
            local: IpAddr::from([192, 0, 2, 1]),
            port: 4_789,
            flavour: Flavour::Quiet,
            probes: false,
            timing: Timing::default(),
        };
        let clock = Clock::new(move || *hands.lock().unwrap());
        let mut reconciler = Reconciler::new(MemoryKernel::default(), settings, clock);
        reconciler.balance(Box::new(balancer.clone()), true);
        let network = NetworkId::new("net").unwrap();
        let layout = r#"{"segments": [{"vni": 4097, "subnets": ["10.0.1.0/24"]}]}"#;
        let config = NetworkConfig::from_json(layout.as_bytes()).unwrap();
        assert!(reconciler.attach(&network, Some(config)));
        Self {
            reconciler,
            balancer,
            now,
            network,
        }
    }

    /// An endpoint of the only service, on a host.
    fn set(&mut self, last: u8, host: u8, is_service_disabled: bool, time: u64) {
        let record = EndpointRecord {
            name: format!("web.{last}"),
            service_name: "web".to_owned(),
            service_id: "web".to_owned(),
            virtual_ip: Some(ip(200)),
            endpoint_ip: ip(last),
            ingress_ports: Vec::new(),
            aliases: Vec::new(),
            task_aliases: Vec::new(),
            is_service_disabled,
        };
        let owner = node(host);
        let claim = ServiceClaim {
            record: Ok(record),
            version: version(&owner, time),
            owner,
        };
        let key = Key::new(format!("endpoint{last}")).unwrap();
        self.reconciler.set_endpoint(&self.network, key, claim);
    }

    /// Does what the driver does with wishes.
    fn grant(&mut self) {
        for (network, key, record) in self.reconciler.wishes() {
            let owner = node(1);
            let claim = Claim {
                record: Ok(record.expect("nothing is to go")),
                version: version(&owner, 1),
                owner,
            };
            self.reconciler.set(&network, key, claim);
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = *self.now.lock().unwrap() + time;
        for _ in 0..10_000 {
            let next = self.reconciler.poll().unwrap_or(end).min(end);
            self.grant();
            let mut now = self.now.lock().unwrap();
            if next > *now {
                *now = next;
            } else if *now == end {
                return;
            }
        }
        panic!("there is always something due");
    }

    fn weights(&self) -> BTreeMap<Target, u32> {
        let held = self.balancer.held(&self.network);
        let service = held.services.get(&Frontend::Address(ip(200)));
        service
            .map(|service| service.targets.clone())
            .unwrap_or_default()
    }

    fn second(&mut self) {
        self.pass(Duration::from_secs(1));
    }
}

#[test]
fn a_service_gets_an_own_address_and_follows_its_records() {
    let mut rig = Rig::start();
    rig.set(11, 1, false, 1);
    rig.set(12, 2, false, 2);
    rig.second();
    assert_eq!(rig.weights(), [(target(11), 1), (target(12), 1)].into());
    let held = rig.balancer.held(&rig.network);
    let source = *held.sources.values().next().unwrap();
    assert!(held.addresses.values().next().unwrap().contains(&source));
    rig.balancer.take_applied();
    rig.pass(Duration::from_secs(120));
    assert_eq!(rig.balancer.take_applied(), []);
    rig.set(12, 2, true, 3);
    rig.balancer
        .set_connections([((Frontend::Address(ip(200)), target(12)), 1)].into());
    rig.second();
    assert_eq!(rig.weights(), [(target(11), 1), (target(12), 0)].into());
    rig.balancer.take_applied();
    rig.balancer.set_connections(BTreeMap::new());
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.weights(), [(target(11), 1)].into());
    let ended = ServiceOp::Forget(Frontend::Address(ip(200)), target(12));
    assert_eq!(rig.balancer.take_applied().last(), Some(&ended));
}

#[test]
fn a_start_takes_nothing_away_until_all_records_are_known() {
    let mut before = Rig::start();
    before.set(11, 1, false, 1);
    before.set(12, 2, false, 2);
    before.second();
    let held = before.balancer.held(&before.network);
    let mut rig = Rig::starting(before.balancer.clone());
    rig.set(11, 1, false, 1);
    rig.second();
    assert_eq!(rig.balancer.held(&rig.network), held);
    // The address of before is used on.
    let sources = |rig: &Rig| rig.balancer.held(&rig.network).sources;
    assert_eq!(sources(&rig), held.sources);
    rig.balancer.take_applied();
    rig.reconciler.settle(&rig.network);
    rig.second();
    assert_eq!(rig.weights(), [(target(11), 1)].into());
    assert_eq!(sources(&rig), held.sources);
    let ended = ServiceOp::Forget(Frontend::Address(ip(200)), target(12));
    assert!(rig.balancer.take_applied().contains(&ended));
}

#[test]
fn what_others_change_is_set_right_and_counted() {
    let mut rig = Rig::start();
    rig.set(11, 1, false, 1);
    rig.second();
    let right = rig.balancer.held(&rig.network);
    rig.balancer.sabotage(&rig.network, |held: &mut Balancing| {
        let wrong = [(target(99), 1)].into();
        let service = Service {
            targets: wrong,
            ..Service::default()
        };
        held.services.insert(Frontend::Address(ip(200)), service);
        held.addresses.clear();
    });
    rig.pass(Duration::from_secs(31));
    assert_eq!(rig.balancer.held(&rig.network), right);
    // Two addresses and a service.
    assert_eq!(rig.reconciler.services()[0].drift, 3);
}

#[test]
fn what_was_refused_is_told_and_tried_again() {
    let mut rig = Rig::start();
    rig.set(11, 1, false, 1);
    rig.second();
    rig.balancer.refuse(true);
    rig.set(12, 2, false, 2);
    rig.pass(Duration::from_secs(10));
    assert_eq!(rig.weights(), [(target(11), 1)].into());
    let error = rig.reconciler.services()[0].syncs.last_error.clone();
    assert!(error.unwrap().contains("no buffer space"));
    rig.balancer.refuse(false);
    rig.pass(Duration::from_secs(31));
    assert_eq!(rig.weights(), [(target(11), 1), (target(12), 1)].into());
    let report = &rig.reconciler.services()[0];
    assert_eq!(report.syncs.last_error, None);
    assert_eq!(report.drift, 0);
}

#[test]
fn members_of_hosts_that_fail_together_stay() {
    let mut rig = Rig::start();
    for host in 2..=5_u8 {
        rig.set(10 + host, host, false, host.into());
        let record = PeerRecord {
            endpoint: format!("10.0.1.{}/24", 10 + host).parse().unwrap(),
            mac: Mac::new([2, 0, 0, 0, 0, host]).unwrap(),
            vtep: IpAddr::from([192, 0, 2, host]),
        };
        let owner = node(host);
        let claim = Claim {
            record: Ok(record),
            version: version(&owner, host.into()),
            owner,
        };
        let key = Key::new(format!("endpoint{}", 10 + host)).unwrap();
        rig.reconciler.set(&rig.network, key, claim);
    }
    rig.second();
    assert_eq!(rig.weights().len(), 4);
    let hide = |rig: &mut Rig, host: u8| {
        let key = Key::new(format!("endpoint{}", 10 + host)).unwrap();
        let record = crate::reconcile::network::Record::Endpoint(key);
        rig.reconciler.hide_record(&rig.network, &record);
    };
    // One is believed at once.
    hide(&mut rig, 2);
    rig.second();
    assert_eq!(rig.weights().len(), 3);
    // With more of them it is the gossip that has failed: all are back, and stay.
    hide(&mut rig, 3);
    hide(&mut rig, 4);
    rig.second();
    assert_eq!(rig.weights().len(), 4);
    // Until the hold is over.
    rig.pass(Duration::from_secs(61));
    assert_eq!(rig.weights(), [(target(15), 1)].into());
}
