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

/// Where the kernel has IPVS, the tests in a virtual machine say more.
#[test]
fn kernel_without_it_is_said_so() {
    if let Err(refusal) = probe(None) {
        let text = refusal.to_string();
        assert!(text.starts_with("the kernel"), "{text}");
        assert!(text.contains("CONFIG_IP_VS"), "{text}");
    }
}

/// Tests that need a kernel with IPVS, root and nft, and change it: they are for a virtual machine.
mod kernel {
    use std::process::{Command as Program, Output};
    use std::time::Instant;

    use super::*;

    fn vip(last: u8) -> Frontend {
        Frontend::Address(IpAddr::from([10, 0, 0, last]))
    }

    fn service(weights: &[(&str, u32)]) -> Service {
        let targets = weights.iter();
        Service {
            targets: targets.map(|(ip, weight)| (target(ip), *weight)).collect(),
            ..Service::default()
        }
    }

    /// A new namespace.
    fn namespace(name: &str) -> File {
        let path = format!("/run/netns/{name}");
        run(&["ip", "netns", "add", name]);
        // Without any address there, the kernel takes all addresses of IPv4 for broadcasts.
        run(&["ip", "-n", name, "link", "set", "lo", "up"]);
        File::open(path).unwrap()
    }

    fn output(command: &[&str]) -> Output {
        Program::new(command[0])
            .args(&command[1..])
            .output()
            .unwrap()
    }

    fn run(command: &[&str]) -> String {
        let output = output(command);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn apply(namespace: &File, ops: &[ServiceOp]) {
        let refused = Ipvs.apply(namespace, ops);
        assert!(refused.is_empty(), "{:?}", refused[0]);
    }

    fn read(namespace: &File) -> BTreeMap<Frontend, (u32, Service)> {
        Ipvs.read(namespace).unwrap()
    }

    #[test]
    #[ignore = "needs a kernel with IPVS to itself"]
    fn what_is_set_is_read() {
        let ns = namespace("set");
        assert!(read(&ns).is_empty());
        let published = Published {
            is_v6: true,
            protocol: Protocol::Udp,
            port: 53,
        };
        let of_port = Service {
            scheduler: Scheduler::SourceHash,
            forwarding: Forwarding::Nat,
            targets: [(
                Target {
                    ip: ip("fd00::9"),
                    port: 5_353,
                },
                1,
            )]
            .into(),
        };
        let direct = Service {
            scheduler: Scheduler::LeastConnections,
            forwarding: Forwarding::Direct,
            targets: [(target("fd00::9"), 0)].into(),
        };
        let v6 = Frontend::Address(ip("fd00::1"));
        let nothing = Service {
            forwarding: Forwarding::Direct,
            ..Service::default()
        };
        let all = [
            (Frontend::Published(published), of_port),
            (vip(1), service(&[("10.0.0.9", 1), ("10.0.0.8", 0)])),
            (v6, direct),
            (vip(2), nothing),
        ];
        let ops = all
            .clone()
            .map(|(frontend, service)| ServiceOp::Set(frontend, service));
        apply(&ns, &ops);
        let found = read(&ns);
        let services: BTreeMap<_, _> = found
            .iter()
            .map(|(k, (_, service))| (*k, service.clone()))
            .collect();
        assert_eq!(services, all.into());
        let numbers: Vec<_> = found.values().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [256, 257, 258, 259]);
        let before = run(&["nsenter", "--net=/run/netns/set", "ipvsadm", "-Sn"]);
        apply(&ns, &ops);
        assert_eq!(
            run(&["nsenter", "--net=/run/netns/set", "ipvsadm", "-Sn"]),
            before
        );
        assert!(before.contains("-A -f 256 -s rr\n"), "{before}");
        assert!(
            before.contains("-A -u [fd6e:6462::2]:53 -s sh -b sh-fallback\n"),
            "{before}"
        );
        apply(&ns, &[ServiceOp::Remove(vip(1))]);
        assert_eq!(read(&ns)[&v6].0, 258);
        apply(&ns, &[ServiceOp::Set(vip(3), Service::default())]);
        assert_eq!(read(&ns)[&vip(3)].0, 256);
        let gone = [vip(1), vip(2), vip(3), v6, Frontend::Published(published)];
        apply(&ns, &gone.map(ServiceOp::Remove));
        assert!(read(&ns).is_empty());
        assert_eq!(
            run(&["nsenter", "--net=/run/netns/set", "ipvsadm", "-Sn"]),
            ""
        );
    }

    #[test]
    #[ignore = "needs a kernel with IPVS to itself"]
    fn weight_comes_back_and_what_others_changed_too() {
        let ns = namespace("upsert");
        let ipvsadm = |args: &[&str]| {
            run(&[&["nsenter", "--net=/run/netns/upsert", "ipvsadm"], args].concat())
        };
        let set = |weights: &[(&str, u32)]| apply(&ns, &[ServiceOp::Set(vip(1), service(weights))]);
        let both = [("10.0.0.8", 1), ("10.0.0.9", 1)];
        set(&both);
        set(&[("10.0.0.8", 1), ("10.0.0.9", 0)]);
        assert!(ipvsadm(&["-Sn"]).contains("-r 10.0.0.9:0 -m -w 0"));
        set(&both);
        assert_eq!(read(&ns)[&vip(1)].1, service(&both));
        for change in [
            &["-E", "-f", "256", "-s", "wlc"][..],
            &["-E", "-f", "256", "-s", "wrr"],
            &["-e", "-f", "256", "-r", "10.0.0.9", "-i"],
            &["-e", "-f", "256", "-r", "10.0.0.9", "-m", "-w", "7"],
            &["-a", "-f", "256", "-r", "10.0.0.7", "-m"],
            &["-d", "-f", "256", "-r", "10.0.0.9"],
            &["-D", "-f", "256"],
            &["-C"],
        ] {
            ipvsadm(change);
            assert_ne!(
                read(&ns).get(&vip(1)),
                Some(&(256, service(&both))),
                "{change:?}"
            );
            set(&both);
            assert_eq!(read(&ns)[&vip(1)], (256, service(&both)), "{change:?}");
        }
    }

    #[test]
    #[ignore = "needs a kernel with IPVS to itself"]
    fn half_of_a_service_is_put_right() {
        let ns = namespace("half");
        let inside =
            |command: &[&str]| run(&[&["nsenter", "--net=/run/netns/half"], command].concat());
        let one = service(&[("10.0.0.8", 1)]);
        let two = service(&[("10.0.0.9", 1)]);
        apply(
            &ns,
            &[
                ServiceOp::Set(vip(1), one.clone()),
                ServiceOp::Set(vip(2), two.clone()),
            ],
        );
        for damage in [
            &["nft", "flush", "ruleset"][..],
            &["nft", "flush", "chain", "inet", "networkdb-ipvs", "input"],
            &["nft", "flush", "map", "inet", "networkdb-ipvs", "marks4"],
        ] {
            inside(damage);
            assert!(read(&ns).is_empty(), "{damage:?}");
            // In the other order, so that only what they have tells which is whose.
            apply(&ns, &[ServiceOp::Set(vip(2), two.clone())]);
            apply(&ns, &[ServiceOp::Set(vip(1), one.clone())]);
            let found = read(&ns);
            assert_eq!(
                (&found[&vip(1)].1, &found[&vip(2)].1),
                (&one, &two),
                "{damage:?}"
            );
            assert_eq!(found[&vip(2)].0, 257, "{damage:?}");
        }
        inside(&["ipvsadm", "-A", "-f", "999", "-s", "rr"]);
        inside(&["ipvsadm", "-A", "-f", "9", "-s", "rr"]);
        inside(&["ipvsadm", "-D", "-f", "257"]);
        apply(&ns, &[ServiceOp::Set(vip(1), one.clone())]);
        let left = inside(&["ipvsadm", "-Sn"]);
        assert!(!left.contains("999"), "{left}");
        assert!(left.contains("-A -f 9 "), "somebody else's: {left}");
        let marks = inside(&["nft", "list", "map", "inet", "networkdb-ipvs", "marks4"]);
        assert!(!marks.contains("10.0.0.2"), "{marks}");
    }

    #[test]
    #[ignore = "needs a kernel with IPVS to itself"]
    fn clearing_leaves_what_is_somebody_elses() {
        let ns = namespace("clear");
        let inside =
            |command: &[&str]| run(&[&["nsenter", "--net=/run/netns/clear"], command].concat());
        apply(&ns, &[ServiceOp::Set(vip(1), service(&[("10.0.0.8", 1)]))]);
        inside(&["ipvsadm", "-A", "-f", "9", "-s", "rr"]);
        for _ in 0..2 {
            Ipvs.clear(&ns).unwrap();
            assert_eq!(inside(&["ipvsadm", "-Sn"]), "-A -f 9 -s rr\n");
            assert_eq!(inside(&["nft", "list", "tables"]), "");
        }
    }

    #[test]
    #[ignore = "needs a kernel with IPVS to itself"]
    #[expect(
        clippy::disallowed_methods,
        clippy::print_stdout,
        reason = "it measures"
    )]
    fn thousand_services_take_a_moment() {
        let ns = namespace("many");
        let target = |n: u32, m: u32| Target {
            ip: IpAddr::from((0x0a01_0000 + n * 16 + m).to_be_bytes()),
            port: 0,
        };
        let set = |n: u32| {
            let targets = (0..10).map(|m| (target(n, m), 1)).collect();
            let vip = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            let service = Service {
                targets,
                ..Service::default()
            };
            ServiceOp::Set(Frontend::Address(vip), service)
        };
        let ops: Vec<_> = (1..=1_000).map(set).collect();
        for what in ["set", "set again"] {
            let start = Instant::now();
            apply(&ns, &ops);
            println!("{what}: {:?}", start.elapsed());
        }
        let start = Instant::now();
        assert_eq!(read(&ns).len(), 1_000);
        println!("read: {:?}", start.elapsed());
    }
}
