//! What is judged and printed, from the JSON of an agent to the lines.

use std::collections::BTreeMap;

use clap::{CommandFactory as _, Parser as _};
use serde_json::{Value, json};

use crate::Verdict;
use crate::args::{Args, Command};
use crate::facts::{Balanced, Consistency, Services};
use crate::gossip::Gossip;
use crate::verify::{NetworkCheck, choose};
use crate::{facts, print};

/// This node.
const ME: &str = "n3";

/// A service of a network of the seed's session: three replicas, the third on this host.
fn service(name: &str, subnet: u8, third: &str) -> Value {
    let member = |slot: u8| {
        json!({"address": format!("10.0.{subnet}.{slot}"), "name": match slot {
            3 => format!("{name}.3.{third}"),
            slot => format!("{name}.{slot}.elsewhere"),
        }, "key": format!("{name}{slot}"), "node": format!("n{slot}"), "state": "active"})
    };
    let vip = format!("10.0.{subnet}.100");
    json!({"id": format!("{name}-id"), "name": name, "vip": vip, "ports": [], "aliases": [],
        "members": [member(1), member(2), member(3)], "lost": [], "refused": [],
        "frontends": [frontend(&vip, Some(256 + u32::from(subnet)), &targets(subnet))]})
}

fn targets(subnet: u8) -> Vec<(String, u32)> {
    (1..=3)
        .map(|slot| (format!("10.0.{subnet}.{slot}"), 1))
        .collect()
}

fn frontend(name: &str, index: Option<u32>, targets: &[(String, u32)]) -> Value {
    let targets: BTreeMap<_, _> = targets.iter().cloned().collect();
    json!({"frontend": name, "index": index, "scheduler": "rr", "targets": targets})
}

fn balanced(network: &str, services: &[Value]) -> Value {
    let held: Vec<&Value> = services
        .iter()
        .flat_map(|service| service["frontends"].as_array().unwrap())
        .collect();
    json!({"wanted": {"network": network, "ingress": network == "ingress", "services": services,
            "sources": [], "rejected": [], "syncs": {}, "drift": 0, "failures": 0},
        "balancer": "ipvs", "held": held, "unreached": [], "plan": [], "operations": 0})
}

fn ov2() -> Value {
    balanced(
        "ov2",
        &[
            service("s1", 1, "wwx5tuxhnvoz5vrb8ohphby0r"),
            service("s2", 2, "ltrdwef0iqf90rqauw3ehcs56"),
            service("s3", 3, "nyhwvdvnocb4wftyhb8dr4fj8"),
        ],
    )
}

/// A network of one service on a host that has none of its containers.
fn single() -> Value {
    let mut one = service("s1", 1, "x");
    for member in one["members"].as_array_mut().unwrap() {
        member["node"] = json!("n1");
    }
    balanced("net", &[one])
}

/// The ingress network with a service that publishes a port of each protocol that is named.
fn ingress(service_name: &str, ports: &[&str]) -> Value {
    let mut web = service(service_name, 0, "x");
    let frontends = web["frontends"].as_array_mut().unwrap();
    for (index, port) in (300..).zip(ports) {
        let backend = |slot: u8| (format!("10.0.0.{slot}:80"), 1);
        let backends = [backend(1), backend(2), backend(3)];
        frontends.push(frontend(&format!("0.0.0.0:{port}"), Some(index), &backends));
    }
    balanced("ingress", &[web])
}

fn check(balanced: &Value) -> NetworkCheck {
    let balanced: Balanced = serde_json::from_value(balanced.clone()).unwrap();
    NetworkCheck::new(ME, &balanced)
}

fn lines(balanced: &Value) -> String {
    let lines = print::network(&check(balanced));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Changes what the kernel holds under a number.
fn held(balanced: &mut Value, index: u32) -> &mut Value {
    balanced["operations"] = json!(1);
    let held = balanced["held"].as_array_mut().unwrap();
    held.iter_mut().find(|one| one["index"] == index).unwrap()
}

#[test]
fn the_session_of_the_documentation_is_printed_line_by_line() {
    let printed = lines(&ov2()) + &lines(&ingress("web", &["8080/tcp"]));
    // The order of containers and services is that of a Python dictionary there, of names here.
    assert_eq!(
        printed,
        "\
Verifying LB programming for containers on network ov2
Verifying container /s1.3.wwx5tuxhnvoz5vrb8ohphby0r...
service s1... OK
service s2... OK
service s3... OK
Verifying container /s2.3.ltrdwef0iqf90rqauw3ehcs56...
service s1... OK
service s2... OK
service s3... OK
Verifying container /s3.3.nyhwvdvnocb4wftyhb8dr4fj8...
service s1... OK
service s2... OK
service s3... OK
Verifying LB programming for containers on network ingress
Verifying container Ingress...
service web... OK
"
    );
    assert_eq!(check(&ov2()).verdict(), Verdict::Right);
}

/// Bug (a) of the original: it looks for a container of the name of the balancer's endpoint, and ends when there is none.
#[test]
fn the_balancers_own_endpoint_is_no_container() {
    let mut network = single();
    let own = json!({"address": "10.0.1.9", "name": "lb-net", "key": "lb", "node": "n1", "state": "active"});
    let members = network["wanted"]["services"][0]["members"].as_array_mut();
    members.unwrap().push(own);
    assert_eq!(
        lines(&network),
        "\
Verifying LB programming for containers on network net
Verifying container /net-endpoint...
service s1... OK
"
    );
}

/// Bug (b): a rule that is there was told to be missing, with an empty address.
#[test]
fn a_missing_rule_of_the_host_is_told_with_its_address_and_one_that_is_there_is_not() {
    let mut network = ingress("web", &["8080/tcp", "8443/tcp"]);
    assert!(!lines(&network).contains("DNAT"));
    network["unreached"] = json!(["0.0.0.0:8080/tcp"]);
    held(&mut network, 300)["targets"] = json!({});
    assert_eq!(
        lines(&network),
        "\
Verifying LB programming for containers on network ingress
Verifying container Ingress...
Service web: host nftables DNAT rule for port 8080/tcp -> ingress sandbox 169.254.254.2:8080 missing
"
    );
    let found = check(&network);
    assert_eq!(found.verdict(), Verdict::Wrong);
    let ports: Vec<_> = found.ports.iter().map(|it| (&it.port[..], it.ok)).collect();
    assert_eq!(ports, [("8080/tcp", false), ("8443/tcp", true)]);
    network["unreached"] = json!(["[::]:8080/tcp"]);
    for place in ["held", "wanted"] {
        let text = network[place]
            .to_string()
            .replace("0.0.0.0:8080", "[::]:8080");
        network[place] = serde_json::from_str(&text).unwrap();
    }
    let told = "port 8080/tcp -> ingress sandbox [fd6e:6462::2]:8080 missing";
    assert!(lines(&network).contains(told), "{}", lines(&network));
}

/// Bug (c): only the numbers of tasks were compared.
#[test]
fn a_wrong_member_is_found_though_the_count_is_right() {
    let mut network = single();
    held(&mut network, 257)["targets"] = json!({"10.0.1.1": 1, "10.0.1.2": 1, "10.0.1.10": 1});
    assert_eq!(
        lines(&network),
        "\
Verifying LB programming for containers on network net
Verifying container /net-endpoint...
Incorrect LB Programming for service s1
control-plane backend tasks:
10.0.1.1
10.0.1.2
10.0.1.3
kernel IPVS backend tasks:
10.0.1.1
10.0.1.2
10.0.1.10
"
    );
    assert_eq!(check(&network).verdict(), Verdict::Wrong);
    network["balancer"] = json!("nftables");
    assert!(lines(&network).contains("\nkernel nftables backend tasks:\n"));
}

/// Bug (d): it looks into the containers, where nothing is balanced; ours is of the network's namespace for each of them.
#[test]
fn what_differs_in_the_networks_namespace_is_told_for_every_container() {
    let mut network = ov2();
    held(&mut network, 258)["targets"] = json!({"10.0.2.1": 1});
    let printed = lines(&network);
    assert_eq!(printed.matches("Verifying container /").count(), 3);
    let told = "Incorrect LB Programming for service s2\n";
    assert_eq!(printed.matches(told).count(), 3);
    assert_eq!(printed.matches("service s1... OK\n").count(), 3);
}

/// Bug (f): a UDP port was looked for as one of TCP.
#[test]
fn ports_are_told_apart_by_protocol_and_their_targets_by_port() {
    let mut network = ingress("dns", &["53/tcp", "53/udp"]);
    network["unreached"] = json!(["0.0.0.0:53/udp"]);
    held(&mut network, 301)["targets"] = json!({});
    let told = "Service dns: host nftables DNAT rule for port 53/udp -> ingress sandbox 169.254.254.2:53 missing\n";
    assert!(lines(&network).ends_with(told), "{}", lines(&network));
    assert!(!lines(&network).contains("53/tcp"));
    let mut network = ingress("dns", &["53/udp"]);
    held(&mut network, 300)["targets"] =
        json!({"10.0.0.1:80": 1, "10.0.0.2:80": 1, "10.0.0.3:81": 1});
    assert_eq!(
        lines(&network),
        "\
Verifying LB programming for containers on network ingress
Verifying container Ingress...
Incorrect LB Programming for service dns port 53/udp
control-plane backend tasks:
10.0.0.1:80
10.0.0.2:80
10.0.0.3:80
kernel IPVS backend tasks:
10.0.0.1:80
10.0.0.2:80
10.0.0.3:81
"
    );
}

#[test]
fn a_port_of_the_wrong_protocol_is_one_too_many_and_one_too_few() {
    let mut network = ingress("dns", &["53/udp"]);
    held(&mut network, 300)["frontend"] = json!("0.0.0.0:53/tcp");
    assert_eq!(
        lines(&network),
        "\
Verifying LB programming for containers on network ingress
Verifying container Ingress...
LB Index 300 present in IPVS but missing in networkdb
LB Index of service dns (0.0.0.0:53/udp) present in networkdb but missing in IPVS
"
    );
}

#[test]
fn weights_are_compared_where_the_kernel_has_them() {
    let mut network = single();
    network["wanted"]["services"][0]["frontends"][0]["targets"]["10.0.1.2"] = json!(0);
    network["operations"] = json!(1);
    assert_eq!(
        lines(&network),
        "\
Verifying LB programming for containers on network net
Verifying container /net-endpoint...
Incorrect LB Programming for service s1
control-plane backend tasks:
10.0.1.1 weight 1
10.0.1.2 weight 0
10.0.1.3 weight 1
kernel IPVS backend tasks:
10.0.1.1 weight 1
10.0.1.2 weight 1
10.0.1.3 weight 1
"
    );
    // nftables has none with weight 0: that one lacks is right, that it is there is not.
    network["balancer"] = json!("nftables");
    assert_eq!(check(&network).verdict(), Verdict::Wrong);
    held(&mut network, 257)["targets"] = json!({"10.0.1.1": 1, "10.0.1.3": 1});
    network["operations"] = json!(0);
    assert_eq!(check(&network).verdict(), Verdict::Right);
}

#[test]
fn services_that_are_on_one_side_only_or_refused_are_named() {
    let mut network = single();
    network["held"] = json!([frontend("10.0.1.77", Some(400), &[])]);
    network["operations"] = json!(2);
    network["balancer"] = json!("nftables");
    network["wanted"]["services"][0]["refused"] = json!([{"frontend": "10.9.9.9", "reason": "its VIP 10.9.9.9 is in no subnet of the network"}]);
    assert_eq!(
        lines(&network),
        "\
Verifying LB programming for containers on network net
Verifying container /net-endpoint...
LB Index 400 present in nftables but missing in networkdb
LB Index of service s1 (10.0.1.100) present in networkdb but missing in nftables
service s1: its VIP 10.9.9.9 is in no subnet of the network
"
    );
}

#[test]
fn a_network_without_services_is_skipped_unless_something_is_left_of_them() {
    let mut network = balanced("net", &[]);
    assert_eq!(
        lines(&network),
        "\
Verifying LB programming for containers on network net
Network net has no services. Skipping check
"
    );
    assert_eq!(check(&network).verdict(), Verdict::Right);
    network["held"] = json!([frontend("10.0.1.77", Some(400), &[])]);
    network["operations"] = json!(1);
    assert!(lines(&network).contains("LB Index 400 present in IPVS but missing in networkdb\n"));
    assert_eq!(check(&network).verdict(), Verdict::Wrong);
}

#[test]
fn what_only_the_plan_says_is_told_as_the_plan_says_it() {
    let mut network = single();
    network["plan"] = json!(["add address 10.0.1.100 vni 4097"]);
    network["operations"] = json!(3);
    let told = "\
service s1... OK
Changes needed on network net:
  add address 10.0.1.100 vni 4097
  and 2 more
";
    assert!(lines(&network).ends_with(told), "{}", lines(&network));
    assert_eq!(check(&network).verdict(), Verdict::Wrong);
}

#[test]
fn why_nothing_is_balanced_is_told() {
    let mut network = single();
    network["wanted"]["reason"] = json!("two networks are the ingress network");
    assert!(lines(&network).contains("Network net: two networks are the ingress network\n"));
    assert_eq!(check(&network).verdict(), Verdict::Wrong);
}

#[test]
fn the_ingress_network_comes_last_and_by_its_name() {
    let network =
        |id: &str, ingress: bool| json!({"network": id, "ingress": ingress, "services": []});
    let services = json!({"node": ME, "networks": [network("a1", true), network("b", false), network("c", false)]});
    let services: Services = serde_json::from_value(services).unwrap();
    assert_eq!(choose(&services, None), ["b", "c", "a1"]);
    assert_eq!(choose(&services, Some("c")), ["c", "a1"]);
    assert_eq!(choose(&services, Some("a1")), ["a1"]);
    assert_eq!(choose(&services, Some("ingress")), ["a1"]);
    assert_eq!(choose(&services, Some("unknown")), ["unknown", "a1"]);
    let none = Services {
        node: ME.to_owned(),
        networks: Vec::new(),
    };
    assert_eq!(choose(&none, Some("ingress")), ["ingress"]);
}

fn gossip(found: Value) -> Gossip {
    let found: Consistency = serde_json::from_value(found).unwrap();
    Gossip::new("bg2", found, &[])
}

fn peer(id: &str, hash: Option<&str>, differences: &[Value]) -> Value {
    json!({"id": id, "hash": hash, "differences": differences, "is_cut": false})
}

#[test]
fn the_session_of_gossip_consistency_is_printed_line_by_line() {
    let hash = "c5".repeat(32);
    let peers = [peer("sjf", Some(&hash), &[]), peer("6jy", Some(&hash), &[])];
    let found = gossip(json!({"network": "ov2", "hash": hash, "peers": peers}));
    let expected = format!(
        "Node id: 6jy gossip hash {hash}\n\nNode id: bg2 gossip hash {hash}\n\nNode id: sjf gossip hash {hash}"
    );
    assert_eq!(print::gossip(&found).join("\n"), expected);
    assert_eq!(found.verdict(), Verdict::Right);
}

#[test]
fn nodes_that_differ_are_named_and_then_the_keys() {
    let version = |owner: &str, time: u64, is_deleted: bool| json!({"owner": owner, "time": time, "is_deleted": is_deleted, "version": "x"});
    let difference = |key: &str, here: Value, there: Value| json!({"table": "endpoint_table", "key": key, "here": here, "there": there});
    let keys = [
        difference("k1", version("n1", 7, false), json!(null)),
        difference("k2", version("n1", 8, false), version("n2", 9, true)),
    ];
    let peers = [peer("a", Some("22"), &keys), peer("z", Some("11"), &[])];
    let found = gossip(json!({"network": "ov2", "hash": "11", "peers": peers}));
    assert_eq!(
        print::gossip(&found).join("\n"),
        "\
Node id: a gossip hash 22

Node id: bg2 gossip hash 11

Node id: z gossip hash 11

Node a differs from bg2: 2 keys
  endpoint_table k1: here n1 time 7, there nothing
  endpoint_table k2: here n1 time 8, there n2 time 9 deleted"
    );
    assert_eq!(found.verdict(), Verdict::Wrong);
    let peers = [peer("a", Some("22"), &[])];
    let found = gossip(json!({"network": "ov2", "hash": "11", "peers": peers}));
    let told = "Node a differs from bg2: no key, but they take different nodes for failed";
    assert_eq!(print::gossip(&found).last().unwrap(), told);
    assert_eq!(found.verdict(), Verdict::Wrong);
}

#[test]
fn a_node_without_an_answer_or_without_a_hash_is_not_taken_for_equal() {
    let mut silent = peer("a", None, &[]);
    silent["reason"] = json!("no answer within 5s");
    let peers = [silent, peer("z", None, &[])];
    let found = gossip(json!({"network": "ov2", "hash": "11", "peers": peers}));
    let lines = print::gossip(&found);
    assert_eq!(lines[0], "Node id: a did not answer: no answer within 5s");
    let old =
        "Node id: z did not answer: it has no hash, because it is too old or its table too large";
    assert_eq!(lines[4], old);
    assert_eq!(found.verdict(), Verdict::Unknown);
}

#[test]
fn a_node_that_is_down_by_the_next_look_is_told_of() {
    let mut silent = peer("z", None, &[]);
    silent["reason"] = json!("the other node went down");
    let peers = [peer("a", Some("22"), &[]), silent];
    let before = gossip(json!({"network": "ov2", "hash": "11", "peers": peers}));
    assert!(before.differs());
    let peers = [peer("a", Some("11"), &[])];
    let found = json!({"network": "ov2", "hash": "11", "peers": peers});
    let found: Consistency = serde_json::from_value(found).unwrap();
    let after = Gossip::new("bg2", found, &before.silent());
    assert!(!after.differs());
    let last = print::gossip(&after).pop().unwrap();
    assert_eq!(last, "Node id: z did not answer: the other node went down");
    assert_eq!(after.verdict(), Verdict::Unknown);
}

#[test]
fn the_command_line_is_well_formed() {
    Args::command().debug_assert();
    let args = Args::try_parse_from(["ssd", "ov2", "gossip-consistency"]).unwrap();
    assert_eq!(args.network.as_deref(), Some("ov2"));
    assert_eq!(args.command, Some(Command::GossipConsistency));
    args.check().unwrap();
    for wrong in [
        &["ssd", "gossip-consistency"][..],
        &["ssd", "--repair", "ov2", "gossip-consistency"],
    ] {
        assert!(Args::try_parse_from(wrong).unwrap().check().is_err());
    }
    assert!(Args::try_parse_from(["ssd", "ov2", "gossip-hash"]).is_err());
    let args = Args::try_parse_from(["ssd", "--json", "--repair"]).unwrap();
    args.check().unwrap();
    assert!(args.network.is_none());
}

#[test]
fn facts_are_told_in_json_too() {
    let mut network = ingress("dns", &["53/udp"]);
    network["unreached"] = json!(["0.0.0.0:53/udp"]);
    held(&mut network, 300)["targets"] = json!({});
    let told = serde_json::to_value(check(&network)).unwrap();
    assert_eq!(told["ok"], false);
    let port = json!({"service": "dns", "port": "53/udp", "to": "169.254.254.2:53", "ok": false});
    assert_eq!(told["ports"], json!([port]));
    let frontends = &told["services"][0]["frontends"];
    assert_eq!(frontends[0]["state"], "ok");
    assert_eq!(frontends[0]["expected"], frontends[0]["actual"]);
    assert_eq!(frontends[1]["state"], "unreached");
    let refused = facts::Refused {
        frontend: "10.9.9.9".to_owned(),
        reason: "no subnet".to_owned(),
    };
    let told = serde_json::to_value(&refused).unwrap();
    assert_eq!(told, json!({"frontend": "10.9.9.9", "reason": "no subnet"}));
}
