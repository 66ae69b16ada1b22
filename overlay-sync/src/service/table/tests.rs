//! Rules of what should be balanced.

use networkdb::{Generation, LamportTime, Stamp};
use proptest::prelude::*;

use super::*;
use crate::record::Protocol;

const DRAIN: Duration = Duration::from_secs(60);

fn config(ingress: bool) -> NetworkConfig {
    let text = format!(
        r#"{{"segments": [{{"vni": 4097, "subnets": ["10.0.1.0/24", "fd00:1::/64"]}}], "ingress": {ingress}}}"#
    );
    NetworkConfig::from_json(text.as_bytes()).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a beginning for made-up times")]
fn start() -> Instant {
    Instant::now()
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

fn key(number: u8) -> Key {
    Key::new(format!("endpoint{number}")).unwrap()
}

/// A record of a service with VIP 10.0.1.200 + its number.
fn record(service: u8, address: u8) -> EndpointRecord {
    EndpointRecord {
        name: format!("s{service}.{address}"),
        service_name: format!("s{service}"),
        service_id: format!("id{service}"),
        virtual_ip: Some(ip(200 + service)),
        endpoint_ip: ip(address),
        ingress_ports: Vec::new(),
        aliases: Vec::new(),
        task_aliases: Vec::new(),
        is_service_disabled: false,
    }
}

fn claim(record: EndpointRecord, time: u64) -> ServiceClaim {
    let owner = NodeId::new("host1").unwrap();
    ServiceClaim {
        record: Ok(record),
        version: Version {
            time: LamportTime(time),
            owner: owner.clone(),
            stamp: Stamp {
                generation: Generation(1),
                joined: LamportTime(1),
            },
            tombstone: false,
            value_hash: 0,
        },
        owner,
    }
}

fn disabled(record: EndpointRecord) -> EndpointRecord {
    EndpointRecord {
        is_service_disabled: true,
        ..record
    }
}

/// A network whose balancer has its addresses.
fn services(ingress: bool) -> (Services, Instant) {
    let mut services = Services::new(config(ingress), DRAIN);
    let now = start();
    let sources = [
        ("10.0.1.0/24", "10.0.1.250"),
        ("fd00:1::/64", "fd00:1::250"),
    ];
    let sources = sources.map(|(net, ip)| (net.parse().unwrap(), ip.parse().unwrap()));
    services.set_sources(sources.into(), now);
    (services, now)
}

fn weights(services: &Services, vip: u8) -> Vec<(u8, u32)> {
    let service = services.desired().services.get(&Frontend::Address(ip(vip)));
    let targets = service.into_iter().flat_map(|service| &service.targets);
    let last = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    };
    targets
        .map(|(target, weight)| (last(target.ip), *weight))
        .collect()
}

#[test]
fn a_service_comes_grows_and_goes_with_its_records() {
    let (mut services, now) = services(false);
    assert!(services.set(key(1), claim(record(1, 5), 1), now));
    assert!(services.set(key(2), claim(record(1, 6), 2), now));
    assert_eq!(weights(&services, 201), [(5, 1), (6, 1)]);
    let addresses = &services.desired().addresses[&Vni::new(4_097).unwrap()];
    let wanted = ["10.0.1.201", "10.0.1.250", "fd00:1::250"].map(|ip| ip.parse().unwrap());
    assert_eq!(*addresses, wanted.into());
    // The same again is no change.
    assert!(!services.set(key(2), claim(record(1, 6), 3), now));
    assert!(services.remove(&key(1), now));
    assert_eq!(weights(&services, 201), [(6, 1)]);
    let gone = (Frontend::Address(ip(201)), Target { ip: ip(5), port: 0 });
    assert_eq!(services.take_forgotten(), [gone].into());
    assert!(services.remove(&key(2), now));
    assert_eq!(*services.desired(), Balancing::default());
    assert!(services.views().is_empty());
}

#[test]
fn an_endpoint_that_is_about_to_end_drains_and_is_gone_when_its_time_is_over() {
    let (mut services, now) = services(false);
    services.set(key(1), claim(record(1, 5), 1), now);
    services.set(key(2), claim(record(1, 6), 2), now);
    assert!(services.set(key(1), claim(disabled(record(1, 5)), 3), now));
    assert_eq!(weights(&services, 201), [(5, 0), (6, 1)]);
    assert_eq!(services.deadline(), Some(now + DRAIN));
    // A later version of the same does not begin anew.
    services.set(key(1), claim(disabled(record(1, 5)), 4), now + DRAIN / 2);
    assert_eq!(services.deadline(), Some(now + DRAIN));
    assert!(!services.expire(now + DRAIN / 2));
    assert!(services.expire(now + DRAIN));
    assert_eq!(weights(&services, 201), [(6, 1)]);
    assert_eq!(services.take_forgotten().len(), 1);
    assert_eq!(
        services.views()["id1"].members[&ip(5)].state,
        MemberState::Drained
    );
    // Enabled once more, it is back with its weight.
    assert!(services.set(key(1), claim(record(1, 5), 5), now + DRAIN));
    assert_eq!(weights(&services, 201), [(5, 1), (6, 1)]);
    assert!(services.take_forgotten().is_empty());
}

#[test]
fn a_drain_ends_with_the_last_connection() {
    let (mut services, now) = services(false);
    services.set(key(1), claim(record(1, 5), 1), now);
    services.set(key(1), claim(disabled(record(1, 5)), 2), now);
    let way = (Frontend::Address(ip(201)), Target { ip: ip(5), port: 0 });
    assert!(!services.drained(&[(way, 2)].into(), now));
    assert_eq!(weights(&services, 201), [(5, 0)]);
    assert!(services.drained(&[(way, 0)].into(), now));
    assert_eq!(weights(&services, 201), []);
    assert_eq!(services.deadline(), None);
}

/// Docker ignores that IPVS keeps weight 0 when a destination is added again, and forgets that another task has the address.
#[test]
fn an_address_that_is_used_again_has_weight_1_whatever_the_order() {
    let (mut services, now) = services(false);
    services.set(key(1), claim(record(1, 5), 1), now);
    services.set(key(1), claim(disabled(record(1, 5)), 2), now);
    assert_eq!(weights(&services, 201), [(5, 0)]);
    // The new task has the address before the record of the old one is gone.
    assert!(services.set(key(2), claim(record(1, 5), 3), now));
    assert_eq!(weights(&services, 201), [(5, 1)]);
    assert!(!services.remove(&key(1), now));
    assert_eq!(weights(&services, 201), [(5, 1)]);
    assert!(services.take_forgotten().is_empty());
    // The other way round: the new record is the one that is about to end.
    services.set(key(3), claim(disabled(record(1, 5)), 4), now);
    assert_eq!(weights(&services, 201), [(5, 1)]);
}

#[test]
fn the_newest_record_says_which_vip_and_which_ports() {
    let (mut services, now) = services(true);
    let mut new = record(1, 6);
    new.virtual_ip = Some(ip(210));
    services.set(key(1), claim(record(1, 5), 1), now);
    services.set(key(2), claim(new, 2), now);
    assert_eq!(weights(&services, 201), []);
    assert_eq!(weights(&services, 210), [(5, 1), (6, 1)]);
    // Without a VIP there is none.
    let mut without = record(1, 7);
    without.virtual_ip = None;
    services.set(key(3), claim(without, 3), now);
    assert_eq!(services.desired().services.len(), 0);
}

#[test]
fn published_ports_lead_to_the_port_of_each_endpoint() {
    let (mut services, now) = services(true);
    let port = |protocol, target_port| PortConfig {
        name: String::new(),
        protocol,
        target_port,
        published_port: 8_080,
    };
    let mut one = record(1, 5);
    one.ingress_ports = vec![port(Protocol::Tcp, 80), port(Protocol::Udp, 53)];
    let mut two = record(1, 6);
    two.ingress_ports = vec![port(Protocol::Tcp, 81), port(Protocol::Udp, 0)];
    let mut v6 = record(1, 0);
    v6.endpoint_ip = "fd00:1::7".parse().unwrap();
    v6.ingress_ports = vec![port(Protocol::Tcp, 80)];
    for (number, record) in [one, v6, two].into_iter().enumerate() {
        let number = u8::try_from(number).unwrap();
        services.set(key(number), claim(record, number.into()), now);
    }
    let lines = |services: &Services| -> Vec<String> {
        let all = services.desired().services.iter();
        all.map(|(frontend, service)| {
            let targets = service.targets.keys().map(ToString::to_string);
            format!("{frontend} {}", targets.collect::<Vec<_>>().join(" "))
        })
        .collect()
    };
    assert_eq!(
        lines(&services),
        [
            "10.0.1.201 10.0.1.5 10.0.1.6",
            "0.0.0.0:8080/tcp 10.0.1.5:80 10.0.1.6:81",
            "0.0.0.0:8080/udp 10.0.1.5:53 10.0.1.6:8080",
            "[::]:8080/tcp [fd00:1::7]:80",
            // It has no own word about this one.
            "[::]:8080/udp [fd00:1::7]:8080",
        ]
    );
    services.reconfigure(config(false), now);
    assert_eq!(lines(&services), ["10.0.1.201 10.0.1.5 10.0.1.6"]);
    assert_eq!(services.take_forgotten().len(), 6);
}

#[test]
fn what_two_services_claim_is_that_of_the_newer_record_and_it_is_said() {
    let (mut services, now) = services(false);
    services.set(key(1), claim(record(1, 5), 1), now);
    let mut thief = record(2, 6);
    thief.virtual_ip = Some(ip(201));
    services.set(key(2), claim(thief, 2), now);
    assert_eq!(weights(&services, 201), [(6, 1)]);
    let refused = &services.refused("id1")[0].1;
    assert_eq!(
        refused.to_string(),
        "10.0.1.201 is that of service id2, which has the newer record"
    );
    assert!(services.refused("id2").is_empty());
    services.remove(&key(2), now);
    assert_eq!(weights(&services, 201), [(5, 1)]);
    // An address belongs to one service.
    services.set(key(3), claim(record(3, 5), 3), now);
    assert_eq!(weights(&services, 201), []);
    assert_eq!(weights(&services, 203), [(5, 1)]);
    assert_eq!(services.views()["id1"].lost, [ip(5)].into());
    // So does one of a plain container.
    let mut plain = record(0, 5);
    (plain.service_id, plain.virtual_ip) = (String::new(), None);
    services.set(key(4), claim(plain, 4), now);
    assert_eq!(services.desired().services.len(), 0);
}

#[test]
fn a_vip_that_cannot_be_one_is_refused_with_the_reason() {
    let (mut services, now) = services(false);
    let mut tried = |vip: &str| {
        let mut record = record(1, 5);
        record.virtual_ip = Some(vip.parse().unwrap());
        services.set(key(1), claim(record, 1), now);
        assert!(services.desired().services.is_empty());
        services.refused("id1")[0].1.to_string()
    };
    assert_eq!(tried("10.9.9.9"), "10.9.9.9 is in no subnet of the network");
    assert_eq!(tried("10.0.1.1"), "10.0.1.1 is the address of the gateway");
    assert_eq!(
        tried("10.0.1.5"),
        "10.0.1.5 is the address of endpoint endpoint1"
    );
    let mut outside = record(1, 5);
    outside.endpoint_ip = "10.9.9.9".parse().unwrap();
    services.set(key(1), claim(outside, 2), now);
    let (_, _, why) = services.rejected().next().unwrap();
    assert_eq!(
        why.to_string(),
        "endpoint address 10.9.9.9 is in no subnet of the network"
    );
}

#[test]
fn without_an_own_address_nothing_is_led_to_endpoints() {
    let mut services = Services::new(config(false), DRAIN);
    let now = start();
    services.set(key(1), claim(record(1, 5), 1), now);
    assert!(services.desired().services.is_empty());
    let subnet: IpNet = "10.0.1.0/24".parse().unwrap();
    assert_eq!(services.needed_sources(), [subnet].into());
    assert!(services.set_sources([(subnet, ip(250))].into(), now));
    assert_eq!(weights(&services, 201), [(5, 1)]);
}

/// One step of a made-up history.
#[derive(Clone, Debug)]
enum Step {
    Set(u8, u8, u8, bool),
    Remove(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let set = (0..6_u8, 0..3_u8, 4..9_u8, any::<bool>());
    prop_oneof![
        3 => set.prop_map(|(key, service, address, is_disabled)| {
            Step::Set(key, service, address, is_disabled)
        }),
        1 => (0..6_u8).prop_map(Step::Remove),
    ]
}

proptest! {
    #[test]
    fn what_is_wanted_depends_on_the_records_and_not_on_their_history(
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let (mut lived, now) = services(true);
        let mut last = BTreeMap::new();
        for (time, step) in (1..).zip(steps) {
            match step {
                Step::Set(number, service, address, is_disabled) => {
                    let mut record = record(service, address);
                    record.is_service_disabled = is_disabled;
                    // Two services claim one VIP, and a third has none of its own.
                    record.virtual_ip = Some(ip(200 + service / 2));
                    let claim = claim(record, time);
                    last.insert(key(number), claim.clone());
                    lived.set(key(number), claim, now);
                }
                Step::Remove(number) => {
                    last.remove(&key(number));
                    lived.remove(&key(number), now);
                }
            }
        }
        let (mut fresh, _) = services(true);
        for (key, claim) in last {
            fresh.set(key, claim, now);
        }
        prop_assert_eq!(lived.desired(), fresh.desired());
        prop_assert_eq!(lived.views(), fresh.views());
        prop_assert_eq!(lived.deadline().is_some(), fresh.deadline().is_some());
    }
}
