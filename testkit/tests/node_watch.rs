//! Watches of nodes with real sockets, and the counters that only a node with sockets has.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use networkdb::engine::TableChange;
use networkdb::node::{NetworkDb, NodeConfig, Position, Told, Watch, WatchEvent, WatchFilter};
use networkdb::{GossipKey, Key, Keyring, NetworkId, TableName};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(30);

fn network(name: &str) -> NetworkId {
    NetworkId::new(name).expect("a valid name")
}

fn table(name: &str) -> TableName {
    TableName::new(name).expect("a valid name")
}

fn key(name: &str) -> Key {
    Key::new(name).expect("a valid name")
}

fn config() -> NodeConfig {
    NodeConfig {
        bind: ([127, 0, 0, 1], 0).into(),
        ..NodeConfig::default()
    }
}

async fn start(config: NodeConfig) -> NetworkDb {
    NetworkDb::start(config).await.expect("the node starts")
}

async fn join(node: &NetworkDb, other: &NetworkDb) {
    let addr = other.gossip_addr().to_string();
    node.join(&[addr]).await.expect("the other answers");
}

async fn create(node: &NetworkDb, network: &NetworkId, table: &TableName, name: &str) {
    let value = name.to_owned();
    let created = node.create_entry(network, table, &key(name), value).await;
    created.expect("the key is free");
}

async fn next(watch: &mut Watch) -> WatchEvent {
    let next = tokio::time::timeout(DEADLINE, watch.next()).await;
    next.expect("in time").expect("the node is not closed")
}

async fn next_change(watch: &mut Watch) -> TableChange {
    let event = next(watch).await;
    let WatchEvent::Change(change) = event else {
        panic!("not asked for: {event:?}");
    };
    change
}

#[tokio::test]
async fn a_watch_gets_the_networks_and_tables_it_asked_for_and_nothing_else() {
    let node = start(config()).await;
    let networks = [network("net1"), network("net10")];
    let tables = [table("t"), table("tt")];
    for network in &networks {
        node.join_network(network).await.expect("not joined yet");
        for table in &tables {
            create(&node, network, table, "before").await;
        }
    }
    let filters = [
        (Some(0), Some(0), 1),
        (Some(0), None, 2),
        (None, Some(1), 2),
        (None, None, 4),
    ];
    let mut watches = Vec::new();
    for (network, table, places) in filters {
        let filter = WatchFilter {
            network: network.map(|number: usize| networks[number].clone()),
            table: table.map(|number: usize| tables[number].clone()),
            members: false,
        };
        let watch = node.watch(filter.clone()).await.expect("not closed");
        watches.push((watch, filter, places));
    }
    for network in &networks {
        for table in &tables {
            create(&node, network, table, "after").await;
        }
    }
    node.close().await;
    for (mut watch, filter, places) in watches {
        let mut told = Vec::new();
        while let Some(WatchEvent::Change(change)) = watch.next().await {
            assert!(filter.network.as_ref().is_none_or(|n| *n == change.network));
            assert!(filter.table.as_ref().is_none_or(|t| *t == change.table));
            if change.value.is_some() {
                told.push(change.key);
            }
        }
        let count = |name| told.iter().filter(|told| told.as_str() == name).count();
        assert_eq!((count("before"), count("after")), (places, places));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_and_what_follows_have_neither_gap_nor_double_while_others_write() {
    const WRITERS: usize = 4;
    const KEYS: usize = 500;
    let node = start(config()).await;
    let (network, table) = (network("net"), table("t"));
    node.join_network(&network).await.expect("not joined yet");
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (node, network, table) = (node.clone(), network.clone(), table.clone());
        tasks.spawn(async move {
            for number in 0..KEYS {
                let name = format!("{writer} {number}");
                create(&node, &network, &table, &name).await;
                let name = key(&name);
                if number % 3 > 0 {
                    let updated = node.update_entry(&network, &table, &name, "new").await;
                    updated.expect("it was created");
                }
                if number % 3 > 1 {
                    let deleted = node.delete_entry(&network, &table, &name).await;
                    deleted.expect("it was created");
                }
            }
        });
    }
    // Opened while the writers write; each folds for itself until it has seen the last word.
    let mut folds = JoinSet::new();
    for _ in 0..10 {
        let mut watch = node
            .watch(WatchFilter::default())
            .await
            .expect("not closed");
        folds.spawn(async move {
            let mut seen: BTreeMap<Key, Bytes> = BTreeMap::new();
            loop {
                let change = next_change(&mut watch).await;
                if change.key.as_str() == "last" {
                    return seen;
                }
                let before = match change.value {
                    Some(value) => seen.insert(change.key, value),
                    None => seen.remove(&change.key),
                };
                // A gap or a double would show here.
                assert_eq!(before, change.previous);
            }
        });
        tokio::task::yield_now().await;
    }
    while let Some(written) = tasks.join_next().await {
        written.expect("no writer panics");
    }
    let shown = node.table(&network, &table).into_iter();
    let shown: BTreeMap<Key, Bytes> = shown.map(|entry| (entry.key, entry.value)).collect();
    create(&node, &network, &table, "last").await;
    while let Some(seen) = folds.join_next().await {
        assert!(seen.expect("no watcher panics") == shown);
    }
}

#[tokio::test]
async fn members_that_come_and_go_are_told_to_those_who_asked_for_them() {
    let (first, second) = (start(config()).await, start(config()).await);
    let filter = WatchFilter {
        members: true,
        ..WatchFilter::default()
    };
    let mut watch = first.watch(filter).await.expect("not closed");
    let mut other = first
        .watch(WatchFilter::default())
        .await
        .expect("not closed");
    let itself = WatchEvent::MemberUp {
        node: first.id().clone(),
        addr: first.gossip_addr(),
    };
    assert_eq!(next(&mut watch).await, itself);
    join(&second, &first).await;
    let (node, addr) = (second.id().clone(), second.gossip_addr());
    let up = WatchEvent::MemberUp {
        node: node.clone(),
        addr,
    };
    assert_eq!(next(&mut watch).await, up);
    second.close().await;
    let down = WatchEvent::MemberDown { node, left: true };
    assert_eq!(next(&mut watch).await, down);
    first.close().await;
    assert_eq!(other.next().await, None);
}

#[tokio::test]
async fn a_watch_goes_on_where_another_one_was() {
    let node = start(config()).await;
    let (network, table) = (network("net"), table("t"));
    node.join_network(&network).await.expect("not joined yet");
    create(&node, &network, &table, "before").await;
    let mut watch = watch_from(&node, None).await;
    assert_eq!(key_of(&mut watch).await, ("before".to_owned(), None));
    let Some(Told::Synced(synced)) = watch.next_told().await else {
        panic!("the snapshot has one entry");
    };
    for name in ["a", "b"] {
        create(&node, &network, &table, name).await;
    }
    let (first, position) = key_of(&mut watch).await;
    assert_eq!(first, "a");
    drop(watch);
    create(&node, &network, &table, "c").await;
    let mut watch = watch_from(&node, position).await;
    for name in ["b", "c"] {
        assert_eq!(key_of(&mut watch).await.0, name);
    }
    let mut watch = watch_from(&node, Some(synced)).await;
    assert_eq!(key_of(&mut watch).await.0, "a");
    let other: Position = "1-1".parse().expect("a position");
    let mut watch = watch_from(&node, Some(other)).await;
    let resync = Told::Snapshot(WatchEvent::Resync);
    assert_eq!(watch.next_told().await, Some(resync));
}

async fn watch_from(node: &NetworkDb, position: Option<Position>) -> Watch {
    let watch = node.watch_from(WatchFilter::default(), position).await;
    watch.expect("not closed")
}

async fn key_of(watch: &mut Watch) -> (String, Option<Position>) {
    match watch.next_told().await {
        Some(Told::Snapshot(WatchEvent::Change(change))) => (change.key.to_string(), None),
        Some(Told::Event(WatchEvent::Change(change), position)) => {
            (change.key.to_string(), position)
        }
        other => panic!("no change: {other:?}"),
    }
}

#[tokio::test]
async fn the_owner_of_an_entry_is_told_who_took_it_over() {
    let (first, second) = (start(config()).await, start(config()).await);
    join(&second, &first).await;
    let (network, table) = (network("net"), table("t"));
    for node in [&first, &second] {
        node.join_network(&network).await.expect("not joined yet");
    }
    let mut watch = first
        .watch(WatchFilter::default())
        .await
        .expect("not closed");
    let mut theirs = second
        .watch(WatchFilter::default())
        .await
        .expect("not closed");
    create(&first, &network, &table, "k").await;
    assert_eq!(next_change(&mut watch).await.previous, None);
    next_change(&mut theirs).await;
    let name = key("k");
    let updated = second.update_entry(&network, &table, &name, "theirs");
    updated.await.expect("it is visible here");
    let (mut changes, mut lost) = (Vec::new(), Vec::new());
    while changes.is_empty() || lost.is_empty() {
        match next(&mut watch).await {
            WatchEvent::Change(change) => changes.push(change.value),
            WatchEvent::Lost(entry) => lost.push((entry.key, entry.by)),
            other @ (WatchEvent::MemberUp { .. }
            | WatchEvent::MemberDown { .. }
            | WatchEvent::Resync) => panic!("not asked for: {other:?}"),
        }
    }
    assert_eq!(changes, [Some(Bytes::from_static(b"theirs"))]);
    assert_eq!(lost, [(key("k"), second.id().clone())]);
}

#[tokio::test]
async fn what_the_seal_refuses_is_counted() {
    let key = GossipKey::generate(&mut StdRng::seed_from_u64(1));
    let with_keys = NodeConfig {
        keyring: Some(Keyring::new(key)),
        ..config()
    };
    let node = start(with_keys).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let noise = stranger.send_to(&[7; 200], node.gossip_addr());
    noise.expect("loopback takes it");
    let counted = async {
        while node.stats().await.expect("not closed").refused_seal == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, counted)
        .await
        .expect("it is counted");
    assert_eq!(
        node.stats().await.expect("not closed").datagrams_received,
        0
    );
}

#[tokio::test]
async fn what_the_socket_refuses_to_send_is_counted() {
    let node = start(config()).await;
    // It says that it is reached by IPv6, which a socket of IPv4 cannot send to.
    let elsewhere = NodeConfig {
        advertise: Some(Ipv6Addr::LOCALHOST.into()),
        ..config()
    };
    let other = start(elsewhere).await;
    join(&other, &node).await;
    let counted = async {
        while node.stats().await.expect("not closed").datagrams_unsent == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let counted = tokio::time::timeout(DEADLINE, counted).await;
    counted.expect("it is counted");
}
