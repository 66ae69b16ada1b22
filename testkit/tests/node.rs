//! Nodes with real sockets in one process, on loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use networkdb::engine::TableChange;
use networkdb::node::{
    CheckError, CheckOutcome, NetworkDb, NodeConfig, ReadError, StartError, WatchEvent,
    WatchFilter, Write, WriteAction,
};
use networkdb::{Config, GossipKey, Key, Keyring, NetworkId, NodeId, TableName, WriteError};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

const DEADLINE: Duration = Duration::from_secs(30);

fn network() -> NetworkId {
    NetworkId::new("net").expect("a valid name")
}

fn table() -> TableName {
    TableName::new("table").expect("a valid name")
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

fn keyring(seed: u64) -> Keyring {
    Keyring::new(GossipKey::generate(&mut StdRng::seed_from_u64(seed)))
}

async fn start(config: NodeConfig) -> NetworkDb {
    NetworkDb::start(config).await.expect("the node starts")
}

fn addr(node: &NetworkDb) -> String {
    node.gossip_addr().to_string()
}

async fn pair(with: NodeConfig) -> (NetworkDb, NetworkDb) {
    let first = start(with.clone()).await;
    let second = start(with).await;
    second
        .join(&[addr(&first)])
        .await
        .expect("the first answers");
    for node in [&first, &second] {
        node.join_network(&network()).await.expect("not joined yet");
    }
    (first, second)
}

async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting)
        .await
        .unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"));
}

#[tokio::test]
async fn a_write_is_readable_at_once_here_and_soon_there() {
    let (first, second) = pair(config()).await;
    let (network, table, key) = (network(), table(), key("k"));
    first
        .create_entry(&network, &table, &key, "v")
        .await
        .unwrap();
    assert_eq!(first.entry(&network, &table, &key).unwrap().value, "v");
    wait_for("the entry", || second.entry(&network, &table, &key).is_ok()).await;
    let entry = second.entry(&network, &table, &key).unwrap();
    assert_eq!(&entry.owner, first.id());
    second.delete_entry(&network, &table, &key).await.unwrap();
    wait_for("the delete", || {
        first.entry(&network, &table, &key) == Err(ReadError::Deleted)
    })
    .await;
    assert_eq!(first.digest(&network), second.digest(&network));
}

#[tokio::test]
async fn a_watch_is_a_snapshot_and_then_every_change() {
    let (first, second) = pair(config()).await;
    let (network, table) = (network(), table());
    first
        .create_entry(&network, &table, &key("a"), "1")
        .await
        .unwrap();
    let mut watch = first.watch(WatchFilter::default()).await.unwrap();
    let expect = |name: &str, previous: Option<&'static str>, value: Option<&'static str>| {
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        WatchEvent::Change(TableChange {
            network: network.clone(),
            table: table.clone(),
            key: key(name),
            previous: previous.map(bytes),
            value: value.map(bytes),
        })
    };
    assert_eq!(watch.next().await, Some(expect("a", None, Some("1"))));
    first
        .update_entry(&network, &table, &key("a"), "2")
        .await
        .unwrap();
    assert_eq!(watch.next().await, Some(expect("a", Some("1"), Some("2"))));
    second
        .create_entry(&network, &table, &key("b"), "3")
        .await
        .unwrap();
    assert_eq!(watch.next().await, Some(expect("b", None, Some("3"))));
    first
        .delete_entry(&network, &table, &key("a"))
        .await
        .unwrap();
    assert_eq!(watch.next().await, Some(expect("a", Some("2"), None)));
    second.close().await;
    assert_eq!(watch.next().await, Some(expect("b", Some("3"), None)));
    first.close().await;
    assert_eq!(watch.next().await, None);
}

#[tokio::test]
async fn values_larger_than_a_datagram_arrive() {
    let (first, second) = pair(config()).await;
    let (network, table) = (network(), table());
    for (name, bytes) in [("small", 1), ("packet", 1_400), ("large", 64 * 1_024)] {
        let value = vec![7_u8; bytes];
        first
            .create_entry(&network, &table, &key(name), value.clone())
            .await
            .unwrap();
        wait_for(name, || {
            second
                .entry(&network, &table, &key(name))
                .is_ok_and(|entry| entry.value == value)
        })
        .await;
    }
}

#[tokio::test]
async fn sealed_nodes_replicate_and_strangers_stay_out() {
    let with_keys = NodeConfig {
        keyring: Some(keyring(1)),
        ..config()
    };
    let (first, second) = pair(with_keys.clone()).await;
    let (network, table, key) = (network(), table(), key("k"));
    first
        .create_entry(&network, &table, &key, "v")
        .await
        .unwrap();
    wait_for("the entry", || second.entry(&network, &table, &key).is_ok()).await;
    let other_cluster = NodeConfig {
        protocol: Config {
            cluster: "other".to_owned(),
            ..Config::lan()
        },
        ..with_keys
    };
    let other_key = NodeConfig {
        keyring: Some(keyring(2)),
        ..config()
    };
    for (stranger, reason) in [
        (
            config(),
            "the other node has gossip keys and this one has none",
        ),
        (
            other_key,
            "the other node uses a gossip key that this one does not have",
        ),
        (other_cluster, "the other node belongs to another cluster"),
    ] {
        let stranger = start(stranger).await;
        let refused = stranger.join(&[addr(&first)]).await.unwrap_err();
        assert_eq!(refused.failures[0].reason, reason);
        assert_eq!(stranger.cluster_peers().len(), 1);
    }
    assert_eq!(first.cluster_peers().len(), 2);
}

#[tokio::test]
async fn keys_are_rotated_under_traffic_without_loss() {
    let (old, new) = (keyring(1), keyring(2));
    let line = |ring: &Keyring| ring.primary().to_base64();
    let both = |a: &Keyring, b: &Keyring| {
        Keyring::parse(&format!("{}\n{}", line(a), line(b))).expect("two keys")
    };
    let with_keys = NodeConfig {
        keyring: Some(old.clone()),
        ..config()
    };
    let (first, second) = pair(with_keys).await;
    let (network, table) = (network(), table());
    let steps = [both(&old, &new), both(&new, &old), new];
    for (step, ring) in steps.into_iter().enumerate() {
        first.set_keyring(ring.clone()).await.unwrap();
        first
            .create_entry(&network, &table, &key(&format!("a{step}")), "v")
            .await
            .unwrap();
        second
            .create_entry(&network, &table, &key(&format!("b{step}")), "v")
            .await
            .unwrap();
        second.set_keyring(ring).await.unwrap();
    }
    wait_for("all entries on both", || {
        first.table(&network, &table).len() == 6 && second.table(&network, &table).len() == 6
    })
    .await;
}

#[tokio::test]
async fn closing_tells_the_others_and_frees_the_port() {
    let (first, second) = pair(config()).await;
    let (network, table, key) = (network(), table(), key("k"));
    second
        .create_entry(&network, &table, &key, "v")
        .await
        .unwrap();
    wait_for("the entry", || first.entry(&network, &table, &key).is_ok()).await;
    let bound = second.gossip_addr();
    second.close().await;
    wait_for("the entry to go", || {
        first.entry(&network, &table, &key).is_err()
    })
    .await;
    assert_eq!(first.cluster_peers().len(), 1);
    let again = NodeConfig {
        bind: bound,
        ..config()
    };
    // A connection of another test may have the port for a moment.
    let started = async {
        loop {
            match NetworkDb::start(again.clone()).await {
                Err(StartError::Bind(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                started => return started.expect("the configuration is right"),
            }
        }
    };
    let started = tokio::time::timeout(DEADLINE, started)
        .await
        .expect("the port is free");
    assert_eq!(started.gossip_addr(), bound);
}

#[tokio::test]
async fn a_node_that_left_may_join_again() {
    let (first, second) = pair(config()).await;
    second.leave().await.unwrap();
    assert_eq!(second.cluster_peers().len(), 1);
    assert_eq!(second.networks(), []);
    wait_for("the member to go", || first.cluster_peers().len() == 1).await;
    second.join(&[addr(&first)]).await.unwrap();
    wait_for("the member to be back", || first.cluster_peers().len() == 2).await;
    second.join_network(&network()).await.unwrap();
}

#[tokio::test]
async fn the_state_directory_keeps_the_id_and_raises_the_generation() {
    let dir = tempfile::tempdir().unwrap();
    let with_state = NodeConfig {
        state_dir: Some(dir.path().to_owned()),
        ..config()
    };
    let first = start(with_state.clone()).await;
    let id = first.id().clone();
    let locked = NetworkDb::start(with_state.clone()).await.unwrap_err();
    assert!(locked.to_string().contains("locked"), "{locked}");
    first.close().await;
    let second = start(with_state.clone()).await;
    assert_eq!(second.id(), &id);
    second.close().await;
    let other = NodeConfig {
        node_id: Some(NodeId::new("other").unwrap()),
        ..with_state
    };
    let refused = NetworkDb::start(other).await.unwrap_err();
    assert!(matches!(refused, StartError::OtherNode { .. }), "{refused}");
}

#[tokio::test]
async fn plain_gossip_beyond_loopback_is_refused_with_advice() {
    let open = NodeConfig {
        bind: ([0, 0, 0, 0], 0).into(),
        ..config()
    };
    let refused = NetworkDb::start(open).await.unwrap_err().to_string();
    assert!(refused.contains("set gossip keys"), "{refused}");
}

#[tokio::test]
async fn a_port_in_use_and_an_unknown_host_are_named() {
    let node = start(config()).await;
    let taken = NodeConfig {
        bind: node.gossip_addr(),
        ..config()
    };
    let refused = NetworkDb::start(taken).await.unwrap_err().to_string();
    assert!(refused.contains(&addr(&node)), "{refused}");
    let lost = NodeConfig {
        join: vec!["no.such.host.invalid".to_owned()],
        ..config()
    };
    let refused = NetworkDb::start(lost).await.unwrap_err().to_string();
    assert!(refused.contains("no.such.host.invalid"), "{refused}");
    let nobody = node.join(&["127.0.0.1:1".to_owned()]).await.unwrap_err();
    assert!(nobody.to_string().contains("127.0.0.1:1"), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_was_far_behind_folds_to_what_readers_see() {
    const KEYS: usize = 80_000;
    const WRITERS: usize = 64;
    let node = start(config()).await;
    let (network, table) = (network(), table());
    node.join_network(&network).await.unwrap();
    let mut watch = node.watch(WatchFilter::default()).await.unwrap();
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (node, network, table) = (node.clone(), network.clone(), table.clone());
        writing.spawn(async move {
            for number in (writer..KEYS).step_by(WRITERS) {
                let name = key(&format!("k{number}"));
                node.create_entry(&network, &table, &name, "v")
                    .await
                    .unwrap();
                if number % 5 == 0 {
                    node.delete_entry(&network, &table, &name).await.unwrap();
                }
            }
        });
    }
    writing.join_all().await;
    // The snapshot after the resync is taken while another hundred entries are written.
    let more = async {
        for number in 0..100 {
            let name = key(&format!("late{number}"));
            node.create_entry(&network, &table, &name, "v")
                .await
                .unwrap();
        }
    };
    let entries = KEYS - KEYS / 5 + 100;
    let folding = async {
        let (mut seen, mut resyncs) = (std::collections::BTreeMap::new(), 0);
        while resyncs == 0 || seen.len() < entries {
            match watch.next().await.expect("the node is not closed") {
                WatchEvent::Resync => {
                    resyncs += 1;
                    seen.clear();
                }
                WatchEvent::Change(TableChange {
                    key,
                    previous,
                    value,
                    ..
                }) => {
                    let before = match value {
                        Some(value) => seen.insert(key, value),
                        None => seen.remove(&key),
                    };
                    assert_eq!(before, previous);
                }
                other @ (WatchEvent::Lost(_)
                | WatchEvent::MemberUp { .. }
                | WatchEvent::MemberDown { .. }) => panic!("not asked for: {other:?}"),
            }
        }
        (seen, resyncs)
    };
    let both = async { tokio::join!(more, folding) };
    let ((), (seen, resyncs)) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    assert_eq!(resyncs, 1);
    let shown = node.table(&network, &table).into_iter();
    assert!(shown.map(|entry| (entry.key, entry.value)).eq(seen));
}

#[tokio::test]
async fn a_batch_is_written_in_order_and_each_write_has_its_own_answer() {
    let (first, second) = pair(config()).await;
    let write = |name: &str, action| Write {
        network: network(),
        table: table(),
        key: key(name),
        action,
    };
    let value = |text: &'static str| Bytes::from_static(text.as_bytes());
    let mut writes = vec![
        write("a", WriteAction::Create(value("1"))),
        write("a", WriteAction::Create(value("2"))),
        write("a", WriteAction::Update(value("3"))),
        write("b", WriteAction::Delete),
        write("c", WriteAction::Create(value("4"))),
        write("c", WriteAction::Delete),
    ];
    let many = (0..3_000).map(|n| write(&format!("k{n}"), WriteAction::Create(value("v"))));
    writes.extend(many);
    let results = first.write_batch(writes).await.unwrap();
    let refused: Vec<usize> = (0..results.len())
        .filter(|at| results[*at].is_err())
        .collect();
    assert_eq!((results.len(), refused), (3_006, vec![1, 3]));
    assert_eq!(first.table(&network(), &table()).len(), 3_001);
    wait_for("all of it there", || {
        first.digest(&network()) == second.digest(&network())
            && second.table(&network(), &table()).len() == 3_001
    })
    .await;
    let entry = second.entry(&network(), &table(), &key("a")).unwrap();
    assert_eq!(entry.value, "3");
}

#[tokio::test]
async fn an_open_table_follows_its_network_through_leaving_and_joining_again() {
    let (first, second) = pair(config()).await;
    let opened = first.open_table(&network(), &table());
    assert_eq!(opened.entry(&key("k")), Err(ReadError::Absent));
    opened.create(&key("k"), "v").await.unwrap();
    assert_eq!(opened.entry(&key("k")).unwrap().value, "v");
    assert_eq!(opened.read(&key("k"), <[u8]>::len), Some(1));
    opened.update(&key("k"), "vw").await.unwrap();
    assert_eq!(opened.read(&key("k"), <[u8]>::len), Some(2));
    first.leave_network(&network()).await.unwrap();
    assert_eq!(opened.entry(&key("k")), Err(ReadError::Absent));
    assert!(opened.create(&key("k"), "v").await.is_err());
    first.join_network(&network()).await.unwrap();
    second
        .create_entry(&network(), &table(), &key("l"), "w")
        .await
        .unwrap();
    wait_for("the other's entry", || opened.entry(&key("l")).is_ok()).await;
    opened.delete(&key("l")).await.unwrap();
    assert_eq!(opened.entry(&key("l")), Err(ReadError::Deleted));
}

#[tokio::test]
async fn how_far_a_join_is_can_be_seen_while_it_waits() {
    const ENTRIES: usize = 30_000;
    let (first, second) = (start(config()).await, start(config()).await);
    second.join(&[addr(&first)]).await.unwrap();
    let (network, table) = (network(), table());
    first.join_network(&network).await.unwrap();
    let writes = (0..ENTRIES).map(|number| Write {
        network: network.clone(),
        table: table.clone(),
        key: key(&format!("k{number}")),
        action: WriteAction::Create(Bytes::from_static(&[7; 64])),
    });
    let results = first.write_batch(writes.collect()).await.unwrap();
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(second.join_progress(&network).await, None);
    let join = second.join_network(&network);
    tokio::pin!(join);
    let mut seen = Vec::new();
    loop {
        tokio::select! {
            joined = &mut join => break joined.unwrap(),
            progress = second.join_progress(&network) => seen.extend(progress),
        }
    }
    assert!(seen.is_sorted_by_key(|progress| progress.records));
    let under_way = seen.iter().filter(|progress| !progress.is_done);
    assert!(under_way.count() > 0, "it was seen on its way: {seen:?}");
    wait_for("all entries", || {
        first.digest(&network) == second.digest(&network)
    })
    .await;
    // The records are there before the sync says that these are all.
    let done = async {
        loop {
            let progress = second.join_progress(&network).await.expect("it syncs");
            if progress.is_done {
                return progress;
            }
            tokio::task::yield_now().await;
        }
    };
    let done = tokio::time::timeout(DEADLINE, done)
        .await
        .expect("the sync ends");
    assert!(done.records >= ENTRIES as u64, "{done:?}");
}

#[tokio::test]
async fn a_check_names_what_stays_different() {
    let hour = Duration::from_secs(3_600);
    let protocol = Config {
        digest_delay: hour,
        digest_period: hour,
        push_queue_max: 1,
        feed_from: usize::MAX,
        ..Config::lan()
    };
    let (first, second) = pair(NodeConfig {
        protocol,
        ..config()
    })
    .await;
    wait_for("the attachments", || first.peers(&network()).len() == 2).await;
    first
        .create_entry(&network(), &table(), &key("small"), "v")
        .await
        .expect("the key is free");
    wait_for("the entry", || {
        second.table(&network(), &table()).len() == 1
    })
    .await;
    let checked = second
        .check(&network(), None, DEADLINE)
        .await
        .expect("attached");
    assert_eq!(checked.len(), 1);
    assert_eq!(checked[0].peer.id, *first.id());
    assert_eq!(checked[0].outcome, CheckOutcome::Equal);
    // One or two are pushed; further ones are left to digests, which do not come.
    let mut round = 0;
    let differences = loop {
        round += 1;
        let writes = ["a", "b", "c", "d"].map(|name| Write {
            network: network(),
            table: table(),
            key: key(&format!("{name}{round}")),
            action: WriteAction::Create("v".into()),
        });
        let written = first.write_batch(writes.to_vec()).await;
        assert!(written.expect("it is open").iter().all(Result::is_ok));
        let checked = second
            .check(&network(), None, DEADLINE)
            .await
            .expect("attached");
        // The first syncs of the two may still have been under way.
        match &checked[0].outcome {
            CheckOutcome::Differs { differences, .. } => break differences.clone(),
            CheckOutcome::Equal if round < 100 => {}
            outcome @ (CheckOutcome::Equal | CheckOutcome::Failed { .. }) => panic!("{outcome:?}"),
        }
    };
    for difference in differences {
        let name = difference.key.as_str();
        assert!(["a", "b", "c", "d"].contains(&&name[..1]), "{name}");
        assert_eq!(difference.here, None);
        let there = difference.there.as_ref().expect("the first holds it");
        assert_eq!(there.owner, *first.id());
    }
    let other = NetworkId::new("other").expect("a valid name");
    let refused = second.check(&other, None, DEADLINE).await.unwrap_err();
    assert_eq!(refused, CheckError::NotAttached { network: other });
}

/// A write that is allowed as often as one likes.
fn put(name: &str) -> Write {
    Write {
        network: network(),
        table: table(),
        key: key(name),
        action: WriteAction::Put(Bytes::from_static(b"value")),
    }
}

#[tokio::test]
async fn a_write_on_the_spot_is_pushed_like_any_other_and_refused_by_a_closed_node() {
    let (first, second) = pair(config()).await;
    // Nothing else runs between this and the last await, so the node is free.
    let made = first.try_perform(put("k")).expect("the node is free");
    made.expect("this node is attached");
    let value = |node: &NetworkDb, name: &str| {
        let entry = node.entry(&network(), &table(), &key(name));
        entry.map(|entry| entry.value)
    };
    let written = Ok(Bytes::from_static(b"value"));
    assert_eq!(value(&first, "k"), written);
    wait_for("the entry is on the other node", || {
        value(&second, "k") == written
    })
    .await;
    let refused = Write {
        network: NetworkId::new("elsewhere").expect("a valid name"),
        ..put("k")
    };
    let refused = first.try_perform(refused).expect("the node is free");
    assert!(matches!(refused, Err(WriteError::NotAttached { .. })));
    first.close().await;
    assert_eq!(first.try_perform(put("late")), Err(put("late")));
    assert_eq!(value(&first, "late"), Err(ReadError::Absent));
    second.close().await;
}

#[tokio::test]
async fn who_writes_without_end_lets_others_run() {
    let node = start(config()).await;
    node.join_network(&network()).await.expect("not joined yet");
    let turns = Arc::new(AtomicUsize::new(0));
    let other = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    for number in 0..1_000 {
        let written = node.perform(put(&number.to_string())).await;
        written.expect("this node is attached");
    }
    other.abort();
    assert!(turns.load(Ordering::Relaxed) > 1);
    node.close().await;
}
