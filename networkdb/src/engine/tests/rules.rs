//! The rules about a node's own records, dead records and late timers, each with the message that would break it.

use super::*;
use crate::id::{Key, Stamp, TableName, Version};
use crate::wire::PushPull;

pub(super) const REAP: Duration = Duration::from_secs(60);

pub(super) struct Rig {
    pub(super) engine: Engine,
    pub(super) now: Instant,
}

fn name(key: &str) -> (TableName, Key) {
    place(key)
}

pub(super) fn node(id: &str) -> NodeId {
    NodeId::new(id).expect("a valid name")
}

pub(super) fn generation(run: u64) -> Generation {
    Generation(run << 16)
}

impl Rig {
    /// Node `n` in its tenth run, attached to the network.
    pub(super) fn new() -> Self {
        let mut rig = Self::resuming(Vec::new());
        rig.engine.join_network(&network(), rig.now).unwrap();
        rig
    }

    pub(super) fn resuming(attachments: Vec<(NetworkId, LamportTime)>) -> Self {
        let (_, now) = engine();
        let identity = Identity {
            node: node("n"),
            advertise: ([127, 0, 0, 1], 7_946).into(),
            generation: generation(10),
            epoch: 1,
            network_time: LamportTime(50),
            table_time: LamportTime(50),
            attachments,
        };
        let config = Config {
            reap_interval: REAP,
            ..Config::lan()
        };
        let config = config.check().unwrap();
        Self {
            engine: Engine::new(config, &identity, 1, now),
            now,
        }
    }

    pub(super) fn stamp(&self) -> Stamp {
        self.engine.own_stamp(&network()).expect("attached")
    }

    pub(super) fn create(&mut self, key: &str, value: &'static str) {
        create(&mut self.engine, key, value, self.now).unwrap();
    }

    pub(super) fn receive(&mut self, message: &Message) {
        let mut payload = BytesMut::new();
        payload.put_u8(KIND_GOSSIP);
        payload.put_slice(&message.encode());
        let payload = payload.freeze();
        self.engine.handle(Input::Datagram { payload }, self.now);
    }

    pub(super) fn lookup(&self, key: &str) -> Lookup {
        let (table, key) = name(key);
        self.engine.store.lookup(&network(), &table, &key)
    }

    /// Hears of a member that is up.
    pub(super) fn meet(&mut self, member: &Member) {
        let config = Config::lan().check().unwrap();
        let theirs = Membership::new(member.clone(), config, StdRng::seed_from_u64(1));
        let part = PushPull {
            node: member.node.clone(),
            network_time: LamportTime(50),
            table_time: LamportTime(50),
            members: theirs.export(std::iter::empty()),
            nodes: Vec::new(),
            attachments: Vec::new(),
            compare: None,
            differing: None,
            more: false,
        };
        self.engine.import_cluster(&part, false, self.now);
    }

    /// Loses a member without a word.
    pub(super) fn lose(&mut self, member: &Member) {
        self.engine.swim(|swim| swim.declare_down(member.clone()));
        self.engine.drain_membership(self.now);
    }

    fn time_of(&self, key: &str) -> u64 {
        match self.lookup(key) {
            Lookup::Visible { time, .. } => time.0,
            other @ (Lookup::Deleted | Lookup::Hidden | Lookup::Absent) => {
                panic!("{key} is {other:?}")
            }
        }
    }

    /// Lets time pass in steps of the reaper.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += REAP / 60;
            self.engine
                .handle(Input::Timer(Timer(TimerKind::Reap)), self.now);
        }
    }

    pub(super) fn digest(&self) -> Digest {
        self.engine.store.network(&network()).unwrap().digest()
    }

    pub(super) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.engine.poll_output()).collect()
    }
}

/// The table records of a message, none when it is about something else.
pub(super) fn records_of(message: &Message) -> Vec<TableRecord> {
    if let Message::Records(records) = message {
        return records.clone();
    }
    if let Message::Table(record) = message {
        return vec![record.clone()];
    }
    Vec::new()
}

/// Node `z` in its first run, as the failure detector knows it.
pub(super) fn other(epoch: u64) -> Member {
    Member::new(node("z"), ([127, 0, 0, 1], 1).into(), generation(1), epoch)
}

/// A tombstone of the same write at a later time.
pub(super) fn dead(owner: &str, stamp: Stamp, time: u64, key: &str) -> TableRecord {
    let live = live(owner, stamp, time, key, "");
    TableRecord {
        version: Version {
            tombstone: true,
            value_hash: 0,
            ..live.version
        },
        kind: WriteKind::Delete,
        body: Body::Tombstone,
        residual: Some(REAP),
        ..live
    }
}

pub(super) fn live(
    owner: &str,
    stamp: Stamp,
    time: u64,
    key: &str,
    value: &'static str,
) -> TableRecord {
    let (table, key) = name(key);
    let value = Bytes::from_static(value.as_bytes());
    TableRecord {
        network: network(),
        table,
        key,
        version: Version {
            time: LamportTime(time),
            owner: node(owner),
            stamp,
            tombstone: false,
            value_hash: value_hash(&value),
        },
        kind: WriteKind::Create,
        body: Body::Value(value),
        residual: None,
    }
}

pub(super) fn attachment(id: &str, stamp: Stamp, left: bool) -> AttachmentRecord {
    AttachmentRecord {
        network: network(),
        node: node(id),
        stamp,
        left,
        time: stamp.joined,
        residual: left.then_some(REAP),
    }
}

pub(super) fn stamp(run: u64, joined: u64) -> Stamp {
    Stamp {
        generation: generation(run),
        joined: LamportTime(joined),
    }
}

#[test]
fn a_live_entry_of_this_node_that_it_does_not_hold_is_vetoed() {
    let mut rig = Rig::new();
    let lost = live("n", rig.stamp(), 3, "k", "v");
    rig.receive(&Message::Table(lost));
    assert_eq!(rig.lookup("k"), Lookup::Deleted);
}

#[test]
fn a_veto_keeps_the_time_and_does_not_beat_what_another_node_wrote_since() {
    let mut rig = Rig::new();
    let lost = live("n", rig.stamp(), 3, "k", "v");
    rig.receive(&Message::Table(lost));
    let taken_over = live("z", stamp(1, 1), 3, "k", "theirs");
    rig.receive(&Message::Table(taken_over));
    let (table, key) = name("k");
    let local = &rig.engine.networks[&network()];
    let held = local.tables.table(&table).unwrap().holding(&key).unwrap();
    assert_eq!(held.version.owner, node("z"));
}

#[test]
fn a_resumed_run_takes_its_own_entries_as_found() {
    let mut rig = Rig::resuming(vec![(network(), LamportTime(40))]);
    assert_eq!(rig.stamp(), stamp(10, 40));
    rig.receive(&Message::Table(live("n", stamp(10, 40), 45, "k", "v")));
    assert!(matches!(rig.lookup("k"), Lookup::Visible { .. }));
}

#[test]
fn an_entry_beaten_by_an_earlier_run_of_this_node_is_written_anew_at_its_time() {
    let mut rig = Rig::new();
    rig.create("k", "now");
    let earlier = live("n", stamp(9, 7), 5_000, "k", "then");
    rig.receive(&Message::Table(earlier));
    assert_eq!(rig.time_of("k"), 5_000);
    let Lookup::Visible { value, .. } = rig.lookup("k") else {
        panic!("not visible");
    };
    assert_eq!(value, "now");
}

#[test]
fn a_leave_of_this_node_that_it_did_not_write_gets_a_stamp_above_and_entries_stay() {
    let mut rig = Rig::new();
    rig.create("k", "v");
    let before = (rig.stamp(), rig.time_of("k"));
    rig.receive(&Message::Attachment(attachment("n", before.0, true)));
    assert!(rig.stamp() > before.0);
    assert_eq!(rig.time_of("k"), before.1, "a refutation keeps the time");
}

#[test]
fn a_join_that_this_node_does_not_know_of_is_answered_with_its_leave() {
    let mut rig = Rig::resuming(Vec::new());
    rig.receive(&Message::Attachment(attachment("n", stamp(9, 7), false)));
    let known = rig.engine.attachments.get(&network(), &node("n")).unwrap();
    assert_eq!((known.stamp, known.left), (stamp(9, 7), true));
}

#[test]
fn a_later_run_of_this_node_that_others_know_raises_the_generation_and_entries_stay() {
    let mut rig = Rig::new();
    rig.create("k", "v");
    rig.receive(&Message::Node(NodeRecord {
        node: node("n"),
        generation: generation(20),
        left: false,
        time: LamportTime(60),
        residual: None,
    }));
    assert!(rig.engine.generation() > generation(20));
    assert_eq!(rig.stamp().generation, rig.engine.generation());
    assert!(matches!(rig.lookup("k"), Lookup::Visible { .. }));
}

#[test]
fn the_lower_of_two_runs_under_one_id_stops() {
    let twin = |run, port: u16| {
        let addr = ([127, 0, 0, 1], port).into();
        Member::new(node("n"), addr, generation(run), 1)
    };
    for (run, port, stops) in [(11, 1, true), (9, 1, false), (10, 7_946, false)] {
        let mut rig = Rig::new();
        rig.engine.meet_twin(&twin(run, port));
        let stopped = rig
            .outputs()
            .iter()
            .any(|output| matches!(output, Output::Twin { .. }));
        assert_eq!(stopped, stops, "run {run} on port {port}");
    }
}

#[test]
fn a_node_that_runs_below_its_last_generation_is_told_so_unless_that_is_a_twins() {
    let member = |run, port: u16| {
        let addr = ([127, 0, 0, 1], port).into();
        Member::new(node("z"), addr, generation(run), 1)
    };
    for (run, port, is_told) in [(4, 1, true), (4, 2, false), (5, 1, false), (6, 1, false)] {
        let mut rig = Rig::new();
        rig.engine.cluster.set_up(&member(5, 1));
        rig.outputs();
        rig.engine.meet_earlier_run(&member(run, port), rig.now);
        let told = rig.outputs();
        let to = member(run, port).addr;
        let is_it = |output: &Output| matches!(output, Output::SendDatagram { to: addr, .. } if *addr == to);
        assert_eq!(told.iter().any(is_it), is_told, "run {run} on port {port}");
    }
}

#[test]
fn the_owner_of_an_entry_that_was_taken_over_is_told_by_whom() {
    let mut rig = Rig::new();
    rig.create("k", "mine");
    rig.outputs();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 900, "k", "theirs")));
    let lost: Vec<NodeId> = rig
        .outputs()
        .into_iter()
        .filter_map(|output| {
            let Output::Lost(entry) = output else {
                return None;
            };
            Some(entry.by)
        })
        .collect();
    assert_eq!(lost, [node("z")]);
}

#[test]
fn a_tombstone_fades_in_its_last_sixth_and_is_reaped() {
    let mut rig = Rig::new();
    rig.create("k", "v");
    let (table, key) = name("k");
    rig.engine
        .delete_entry(&network(), &table, &key, rig.now)
        .unwrap();
    assert_ne!(rig.digest(), Digest::default());
    rig.pass(REAP * 11 / 12);
    assert_eq!(rig.lookup("k"), Lookup::Deleted);
    assert_eq!(rig.digest(), Digest::default());
    rig.pass(REAP / 6);
    assert_eq!(rig.lookup("k"), Lookup::Absent);
    assert_eq!(rig.engine.network_stats(&network()).unwrap().entries, 0);
}

#[test]
fn a_faded_tombstone_that_meets_the_older_live_entry_is_renewed() {
    let mut rig = Rig::new();
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "v")));
    rig.receive(&Message::Table(TableRecord {
        version: Version {
            time: LamportTime(70),
            tombstone: true,
            value_hash: 0,
            ..live("z", stamp(1, 1), 70, "k", "v").version
        },
        kind: WriteKind::Delete,
        body: Body::Tombstone,
        residual: Some(REAP),
        ..live("z", stamp(1, 1), 70, "k", "v")
    }));
    rig.pass(REAP * 11 / 12);
    assert_eq!(rig.digest(), Digest::default());
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "v")));
    assert_ne!(rig.digest(), Digest::default());
    rig.pass(REAP / 2);
    assert_eq!(
        rig.lookup("k"),
        Lookup::Deleted,
        "it has its full life again"
    );
}

#[test]
fn a_dead_record_near_its_end_is_not_taken_by_a_node_that_does_not_know_it() {
    let mut rig = Rig::new();
    let tombstone = |residual| TableRecord {
        version: Version {
            time: LamportTime(70),
            owner: node("z"),
            stamp: stamp(1, 1),
            tombstone: true,
            value_hash: 0,
        },
        kind: WriteKind::Delete,
        body: Body::Tombstone,
        residual: Some(residual),
        ..live("z", stamp(1, 1), 70, "k", "v")
    };
    rig.receive(&Message::Table(tombstone(REAP / 7)));
    assert_eq!(rig.lookup("k"), Lookup::Absent);
    rig.receive(&Message::Table(tombstone(REAP / 5)));
    assert_eq!(rig.lookup("k"), Lookup::Deleted);
}

#[test]
fn an_overwritten_value_does_not_return_when_the_overwriter_leaves() {
    // Counter-example C1 of the study: what the leaver wrote stays as a stub and beats the older value.
    let mut rig = Rig::new();
    rig.receive(&Message::Table(live("b", stamp(1, 1), 61, "k", "newer")));
    rig.receive(&Message::Attachment(attachment("b", stamp(1, 1), true)));
    rig.receive(&Message::Table(live("z", stamp(1, 1), 60, "k", "older")));
    assert_eq!(rig.lookup("k"), Lookup::Absent);
}

#[test]
fn a_push_pull_carries_the_clocks() {
    let mut rig = Rig::new();
    let part = PushPull {
        node: node("z"),
        network_time: LamportTime(7_000),
        table_time: LamportTime(8_000),
        members: Vec::new(),
        nodes: Vec::new(),
        attachments: Vec::new(),
        compare: None,
        differing: None,
        more: false,
    };
    rig.engine.import_cluster(&part, false, rig.now);
    rig.create("k", "v");
    assert_eq!(rig.time_of("k"), 8_001);
}

#[test]
fn a_node_that_left_is_not_drawn_in_by_others() {
    // Seed 7 of the simulator: a member that had missed the farewell called the node, which answered.
    let mut rig = Rig::new();
    rig.engine.leave(rig.now);
    rig.outputs();
    let stream = StreamId::Incoming(1);
    let peer = ([127, 0, 0, 1], 1).into();
    rig.engine
        .handle(Input::StreamAccepted { stream, peer }, rig.now);
    assert!(matches!(rig.outputs()[..], [Output::CloseStream { .. }]));
    rig.receive(&Message::ClusterDigest {
        node: node("z"),
        digest: Digest(1),
    });
    assert_eq!(rig.engine.stats().digests_different, 0);
    rig.engine.set_bootstrap(vec![peer], rig.now);
    rig.receive(&Message::ClusterDigest {
        node: node("z"),
        digest: Digest(1),
    });
    assert_eq!(rig.engine.stats().digests_different, 1);
}

#[test]
fn a_poisoned_time_is_refused_and_counted() {
    let mut rig = Rig::new();
    rig.receive(&Message::Table(live(
        "z",
        stamp(1, 1),
        u64::MAX - 1,
        "k",
        "v",
    )));
    assert_eq!(rig.lookup("k"), Lookup::Absent);
    assert_eq!(rig.engine.stats().refused_clock, 1);
}
