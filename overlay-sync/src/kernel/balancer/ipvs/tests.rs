use super::changes::{Changes, Orphans};
use super::*;
use crate::service::{Forwarding, Scheduler};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn target(text: &str) -> Target {
    Target {
        ip: ip(text),
        port: 0,
    }
}

fn port(protocol: Protocol, port: u16) -> Published {
    Published {
        is_v6: false,
        protocol,
        port,
    }
}

fn mode(index: u32) -> Mode {
    Mode {
        scheduler: Some(Scheduler::RoundRobin),
        forwarding: Forwarding::Nat,
        index,
    }
}

#[test]
fn only_what_is_there_as_a_whole_is_held() {
    let of = [
        (ip("10.0.0.1"), 256),
        (ip("10.0.0.2"), 257),
        (ip("fd00::1"), 258),
    ];
    let mut marks = Marks {
        of: of.into(),
        is_whole: true,
    };
    let services = [
        (mark_key(ip("10.0.0.1"), 256), mode(256)),
        // Of the other family, and of no address.
        (mark_key(ip("10.0.0.1"), 258), mode(258)),
        (mark_key(ip("10.0.0.1"), 300), mode(300)),
    ];
    let services = services.into();
    let found = known(&marks, &services);
    let frontends: Vec<_> = found.keys().copied().collect();
    assert_eq!(frontends, [Frontend::Address(ip("10.0.0.1"))]);
    marks.is_whole = false;
    assert!(known(&marks, &services).is_empty());
}

#[test]
fn numbers_of_ports_stay_and_are_nobody_elses() {
    let marks = Marks {
        of: [(ip("10.0.0.1"), 256), (ip("10.0.0.2"), 259)].into(),
        is_whole: true,
    };
    let ports = [
        (port(Protocol::Tcp, 80), 258),
        // Nobody's, the same as another's, the same as a mark.
        (port(Protocol::Tcp, 81), 0),
        (port(Protocol::Udp, 80), 258),
        (port(Protocol::Udp, 81), 259),
    ];
    let mut services: BTreeMap<_, _> = ports
        .iter()
        .map(|(port, index)| (port_key(*port), mode(*index)))
        .collect();
    let somebodys = Key::Port {
        protocol: 6,
        ip: ip("10.0.0.9"),
        port: 80,
    };
    services.insert(somebodys, mode(0));
    let numbers: Vec<_> = indices(&marks, &services).into_values().collect();
    assert_eq!(numbers, [258, 257, 260, 261]);
}

#[test]
fn what_nobody_here_would_make_is_not_held() {
    let destination = Destination {
        target: target("10.0.0.9"),
        forwarding: Some(Forwarding::Nat),
        weight: 1,
        active: 0,
        inactive: 0,
    };
    assert_eq!(held(&mode(256), &[destination]).targets.len(), 1);
    let tunnel = Destination {
        forwarding: None,
        ..destination
    };
    assert!(held(&mode(256), &[destination, tunnel]).targets.is_empty());
    let other = Mode {
        scheduler: None,
        ..mode(256)
    };
    assert!(held(&other, &[destination]).targets.is_empty());
}

#[test]
fn orphan_is_adopted_by_who_shares_a_target() {
    let key = |mark| mark_key(ip("10.0.0.1"), mark);
    let mut orphans = Orphans(
        [
            (key(256), [target("10.0.0.8")].into()),
            (key(257), [target("10.0.0.9")].into()),
        ]
        .into(),
    );
    let service = Service {
        targets: [(target("10.0.0.9"), 1), (target("10.0.0.7"), 1)].into(),
        ..Service::default()
    };
    let v4 = Frontend::Address(ip("10.0.0.1"));
    let v6 = Frontend::Address(ip("fd00::1"));
    assert_eq!(orphans.adopt(v6, &service), None);
    assert_eq!(orphans.adopt(v4, &service), Some(257));
    assert_eq!(orphans.adopt(v4, &service), None);
    assert_eq!(orphans.0.len(), 1);
}

#[test]
fn last_operation_on_a_frontend_counts() {
    let frontend = Frontend::Address(ip("10.0.0.1"));
    let ops = [
        ServiceOp::Set(frontend, Service::default()),
        ServiceOp::Forget(frontend, target("10.0.0.9")),
        ServiceOp::Remove(frontend),
    ];
    let changes = Changes::new(&ops);
    assert_eq!(changes.ops[&frontend], (2, None));
    assert_eq!(changes.ops.len(), 1);
}

/// Where the kernel has IPVS, the tests in a virtual machine say more (`testkit::balancing`).
#[test]
fn kernel_without_it_is_said_so() {
    if let Err(refusal) = probe(None) {
        let text = refusal.to_string();
        assert!(text.starts_with("the kernel"), "{text}");
        assert!(text.contains("CONFIG_IP_VS"), "{text}");
    }
}
