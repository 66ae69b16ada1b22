//! Who is told what: rounds of digests, and rounds of relays.

use super::rules::{Rig, attachment, node, stamp};
use super::*;
use crate::wire::Digests;

fn member(id: &str, port: u16) -> Member {
    let addr = ([127, 0, 0, 1], port).into();
    Member::new(node(id), addr, stamp(1, 1).generation, 1)
}

fn other_network(number: usize) -> NetworkId {
    NetworkId::new(format!("net-{number}")).expect("a valid name")
}

/// What a round of digests sends: to whom, and what.
fn round(rig: &mut Rig) -> Vec<(SocketAddr, Digests)> {
    rig.outputs();
    let timer = Timer(TimerKind::DigestRound);
    rig.engine.handle(Input::Timer(timer), rig.now);
    let sent = rig.outputs().into_iter().filter_map(|output| {
        let Output::SendDatagram { to, payload } = output else {
            return None;
        };
        assert_eq!(payload[0], KIND_GOSSIP);
        Some((to, wire::decode(payload.slice(1..)).messages))
    });
    let sent = sent.flat_map(|(to, messages)| messages.into_iter().map(move |one| (to, one)));
    let digests = |message| {
        let Message::Digests(digests) = message else {
            panic!("{message:?}");
        };
        digests
    };
    sent.map(|(to, message)| (to, digests(message))).collect()
}

/// A node that is attached to more networks than one datagram has room for digests, and knows of two members.
fn attached_to_many() -> Rig {
    let mut rig = Rig::new();
    for number in 0..60 {
        let joined = rig.engine.join_network(&other_network(number), rig.now);
        joined.unwrap();
    }
    for (id, port) in [("y", 7_947), ("z", 7_948)] {
        rig.meet(&member(id, port));
        let joined = attachment(id, stamp(1, 1), false);
        rig.receive(&Message::Attachment(joined));
    }
    rig
}

#[test]
fn a_round_compares_the_cluster_and_all_shared_networks_with_one_member() {
    let mut rig = attached_to_many();
    let sent = round(&mut rig);
    assert_eq!(sent.len(), 1);
    let digests = &sent[0].1;
    assert_eq!(digests.cluster, Some(rig.engine.cluster_digest()));
    assert_eq!(digests.networks, [(network(), rig.digest())]);
}

#[test]
fn a_round_leaves_no_network_out_that_anybody_else_is_attached_to() {
    let mut rig = attached_to_many();
    for number in 0..60 {
        let joined = AttachmentRecord {
            network: other_network(number),
            ..attachment("z", stamp(1, 1), false)
        };
        rig.receive(&Message::Attachment(joined));
    }
    for _ in 0..8 {
        let sent = round(&mut rig);
        let clusters = sent.iter().filter(|(_, all)| all.cluster.is_some());
        assert_eq!(clusters.count(), 1);
        let all = sent.iter().flat_map(|(_, all)| &all.networks);
        let all: Vec<&NetworkId> = all.map(|(network, _)| network).collect();
        let each: BTreeSet<&&NetworkId> = all.iter().collect();
        assert_eq!((all.len(), each.len()), (61, 61));
        // 60 networks at 32 bytes or more do not fit one datagram.
        assert!((2..=3).contains(&sent.len()), "{}", sent.len());
    }
}

#[test]
fn a_node_alone_sends_no_digests() {
    assert_eq!(round(&mut Rig::new()), []);
}

#[test]
fn several_digests_count_as_each_of_them() {
    let mut rig = Rig::new();
    let z = member("z", 7_948);
    rig.meet(&z);
    let joined = attachment("z", stamp(1, 1), false);
    rig.receive(&Message::Attachment(joined));
    let before = *rig.engine.stats();
    let (equal, unknown) = (rig.digest(), other_network(1));
    rig.receive(&Message::Digests(Digests {
        node: z.node,
        cluster: Some(rig.engine.cluster_digest()),
        networks: vec![
            (network(), equal),
            (network(), equal.plus(equal).plus(Digest(1))),
            (unknown, equal),
        ],
    }));
    let stats = rig.engine.stats();
    assert_eq!(stats.digests_equal - before.digests_equal, 2);
    assert_eq!(stats.digests_different - before.digests_different, 1);
    assert_eq!(stats.refused_network - before.refused_network, 1);
}

#[test]
fn rounds_grow_with_the_logarithm_of_the_nodes_that_relay() {
    let (engine, _) = engine();
    let mut last = 1;
    for (nodes, rounds) in [(65, 3), (1_000, 3), (1_200, 4), (10_000, 4), (50_000, 4)] {
        for number in last..nodes {
            let id = NodeId::new(format!("m{number}")).unwrap();
            let addr = SocketAddr::new([10, 0, 0, 1].into(), number);
            engine.roster.set_member(&id, Some(addr));
        }
        last = nodes;
        assert_eq!(engine.rounds(&Scope::Cluster, false), rounds, "{nodes}");
        assert_eq!(engine.rounds(&Scope::Cluster, true), 1);
    }
}
