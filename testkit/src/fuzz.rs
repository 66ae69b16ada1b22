//! What the fuzz targets do with their bytes; `testkit/tests/fuzz_corpus.rs` replays the corpus through the same functions.
//!
//! The targets for datagrams and streams read their input as a script: an operation, a length, and that many bytes, again
//! and again. So the fuzzer can build up state before it breaks something. Nothing here reads a clock or draws a number.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use networkdb::engine::{Engine, Identity, Input, Output, StreamId, Timer};
use networkdb::wire::Message;
use networkdb::wire::frame::{DatagramSeal, HELLO_BYTES, Hello};
use networkdb::{
    Config, Generation, Key, Keyring, LamportTime, NetworkId, NodeId, TableName, wire,
};

/// Operations of one script that are done; the rest is ignored.
const OPERATIONS_MAX: usize = 64;
/// Timers that fire after one operation.
const TIMERS_MAX: usize = 16;
/// Entries of the node that is synced: enough that ranges which differ are cut once more.
const ENTRIES: usize = 32;
/// A key ring of one key that is no secret.
const KEYS: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// Cuts a script into operations and their bytes.
fn script(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let next = move || {
        let [operation, high, low, rest @ ..] = bytes else {
            return None;
        };
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (argument, rest) = rest.split_at(length);
        bytes = rest;
        Some((*operation, argument))
    };
    std::iter::from_fn(next).take(OPERATIONS_MAX)
}

/// Makes an operation of a script.
#[must_use]
pub fn operation(operation: u8, argument: &[u8]) -> Vec<u8> {
    let length = u16::try_from(argument.len()).unwrap_or(u16::MAX);
    let argument = &argument[..usize::from(length)];
    [&[operation][..], &length.to_be_bytes(), argument].concat()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a virtual clock has to start at some instant; only differences count"
)]
fn some_instant() -> Instant {
    Instant::now()
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid name")
}

/// The address of the node under test and of its only peer.
fn addr(last: u8) -> SocketAddr {
    ([127, 0, 0, last], 7_946).into()
}

/// An engine with something to lose, and a clock of its own.
struct Node {
    engine: Engine,
    seal: DatagramSeal,
    now: Instant,
    timers: BTreeMap<(Instant, u64), Timer>,
    streams: Vec<StreamId>,
    count: u64,
}

impl Node {
    fn new() -> Self {
        let now = some_instant();
        let identity = Identity {
            node: id("me"),
            advertise: addr(1),
            generation: Generation(1 << 16),
            epoch: 1,
            network_time: LamportTime(0),
            table_time: LamportTime(0),
            attachments: Vec::new(),
        };
        let config = Config::lan().check().expect("the preset is valid");
        let mut engine = Engine::new(config, &identity, 1, now);
        engine.set_watching(true);
        let network = NetworkId::new("net").expect("a valid name");
        let table = TableName::new("table").expect("a valid name");
        let key = Key::new("key").expect("a valid name");
        let joined = engine.join_network(&network, now);
        joined.expect("not attached yet");
        let value = Bytes::from_static(b"value");
        let created = engine.create_entry(&network, &table, &key, value, now);
        created.expect("the key is free");
        let ring = Keyring::parse(KEYS).expect("a valid key");
        let mut node = Self {
            seal: DatagramSeal::new("default", &id("me"), Some(ring), [1; 16]),
            engine,
            now,
            timers: BTreeMap::new(),
            streams: Vec::new(),
            count: 0,
        };
        node.drain();
        node
    }

    /// Writes so many entries into a second table.
    fn fill(&mut self, entries: usize) {
        let network = NetworkId::new("net").expect("a valid name");
        let table = TableName::new("many").expect("a valid name");
        for number in 0..entries {
            let key = Key::new(format!("key-{number}")).expect("a valid name");
            let created = self
                .engine
                .create_entry(&network, &table, &key, Bytes::new(), self.now);
            created.expect("the key is free");
        }
        self.drain();
    }

    fn handle(&mut self, input: Input) {
        self.engine.handle(input, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll_output() {
            match output {
                Output::SetTimer { after, timer } => {
                    self.count += 1;
                    self.timers.insert((self.now + after, self.count), timer);
                }
                Output::OpenStream { stream, .. } => self.streams.push(stream),
                Output::SendFrame { stream, .. } => {
                    self.engine.handle(Input::FrameSent { stream }, self.now);
                }
                Output::SendDatagram { payload, .. } => {
                    drop(self.seal.seal(&payload, self.now));
                }
                Output::CloseStream { stream } => self.streams.retain(|other| *other != stream),
                Output::Notify(_)
                | Output::Joined { .. }
                | Output::NetworkReady { .. }
                | Output::JoinProgress { .. }
                | Output::Inspected { .. }
                | Output::MemberUp { .. }
                | Output::MemberDown { .. }
                | Output::Lost(_)
                | Output::Twin { .. }
                | Output::Persist => {}
            }
        }
    }

    /// Lets time pass; at most [`TIMERS_MAX`] timers fire, late ones included.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        for _ in 0..TIMERS_MAX {
            match self.timers.first_entry() {
                Some(entry) if entry.key().0 <= self.now => {
                    let timer = entry.remove();
                    self.handle(Input::Timer(timer));
                }
                Some(_) | None => return,
            }
        }
    }

    fn accept(&mut self) -> StreamId {
        self.count += 1;
        let stream = StreamId::Incoming(self.count);
        self.streams.push(stream);
        let peer = addr(2);
        self.handle(Input::StreamAccepted { stream, peer });
        stream
    }

    /// Does one operation on streams, the engine or the clock.
    fn operate(&mut self, operation: u8, argument: &[u8]) {
        let payload = Bytes::copy_from_slice(argument);
        let number = u64::from(argument.first().copied().unwrap_or(0));
        let picked = |streams: &[StreamId]| {
            let at = usize::try_from(number)
                .unwrap_or(0)
                .min(streams.len().checked_sub(1)?);
            streams.get(at).copied()
        };
        match operation % 8 {
            0 => self.handle(Input::Datagram { payload }),
            1 => {
                let stream = self.accept();
                self.handle(Input::StreamFrame { stream, payload });
            }
            2 => {
                if let Some(stream) = self.streams.last().copied() {
                    self.handle(Input::StreamFrame { stream, payload });
                }
            }
            3 => self.pass(Duration::from_millis(number * number)),
            4 => {
                self.engine.join(addr(2), number, self.now);
                self.drain();
            }
            5 => {
                if let Some(stream) = picked(&self.streams) {
                    self.streams.retain(|other| *other != stream);
                    let error = (number > 128).then(|| "reset".to_owned());
                    self.handle(Input::StreamClosed { stream, error });
                }
            }
            6 => {
                if let Some(stream) = picked(&self.streams) {
                    let payload = payload.slice(1.min(payload.len())..);
                    self.handle(Input::StreamFrame { stream, payload });
                }
            }
            _ => self.open(&payload),
        }
    }

    /// Gives bytes to the seal, and what comes out to the engine.
    fn open(&mut self, datagram: &[u8]) {
        let opened = self.seal.open(datagram, addr(2), self.now, || [7; 8]);
        for payload in opened.map_or(Vec::new(), |opened| opened.payloads) {
            self.handle(Input::Datagram { payload });
        }
    }
}

/// Datagrams of a peer with the key reach a node: as they are, sealed, and damaged after that.
///
/// Even operations are payloads for the engine; odd ones go through the seals of both, with a bit changed on the way when
/// the operation is above 127.
pub fn datagrams(bytes: &[u8]) {
    let mut node = Node::new();
    let ring = Keyring::parse(KEYS).expect("a valid key");
    let mut peer = DatagramSeal::new("default", &id("peer"), Some(ring), [2; 16]);
    for (operation, argument) in script(bytes) {
        match operation % 4 {
            0 => node.operate(0, argument),
            1 => node.open(argument),
            2 => node.operate(3, argument),
            _ => {
                let mut datagram = peer.seal(argument, node.now).to_vec();
                if operation > 127 {
                    let at = argument.len() * 7 % datagram.len();
                    datagram[at] ^= 1 << (operation % 8);
                }
                // Three hops at most: datagram, challenge, response.
                let opened = node.seal.open(&datagram, addr(2), node.now, || [7; 8]);
                let Ok(opened) = opened else { continue };
                for payload in opened.payloads {
                    node.handle(Input::Datagram { payload });
                }
                let Some(challenge) = opened.reply else {
                    continue;
                };
                let response = peer.open(&challenge, addr(1), node.now, || [8; 8]);
                let response = response.expect("an honest challenge is answered").reply;
                node.open(&response.expect("the key is still there"));
            }
        }
    }
}

/// Frames of several streams reach a node that joins, syncs and is joined; each is also taken for a hello and a sealed frame.
pub fn streams(bytes: &[u8]) {
    let mut node = Node::new();
    node.fill(ENTRIES);
    let ring = Keyring::parse(KEYS).expect("a valid key");
    for (operation, argument) in script(bytes) {
        node.operate(operation, argument);
        let Some((hello, frame)) = argument.split_first_chunk::<HELLO_BYTES>() else {
            continue;
        };
        let opening = Hello::opening("default", Some(&ring), [1; 16]);
        let answer = Hello::from_bytes(*hello);
        drop(opening.answered(&answer, "default", Some(&ring)));
        for ring in [None, Some(&ring)] {
            let Ok((_, _, mut incoming)) = Hello::answer(&answer, "default", ring, [2; 16]) else {
                continue;
            };
            if let Some((length, body)) = frame.split_first_chunk::<4>()
                && incoming.body_bytes(*length).is_ok()
            {
                drop(incoming.open(body.to_vec()));
            }
        }
    }
}

/// A key file is read; one that is accepted names as many keys as it has, and its primary survives being written.
pub fn key_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(ring) = Keyring::parse(text) else {
        return;
    };
    let written = ring.primary().to_base64();
    let again = Keyring::parse(&written).expect("what was read can be written");
    assert_eq!(again.primary(), ring.primary());
    for key in ring.ids() {
        assert!(ring.key(key).is_some(), "{key:?} is in the ring");
    }
}

/// One write alone is not sent as several.
fn plain(message: &Message) -> Message {
    if let Message::Records(records) = message
        && let [record] = &records[..]
    {
        return Message::Table(record.clone());
    }
    message.clone()
}

/// Protobuf messages are decoded; what passes the checks survives being encoded and decoded again.
pub fn messages(bytes: &[u8]) {
    let decoded = wire::decode(Bytes::copy_from_slice(bytes));
    let mut encoded = Vec::new();
    let messages: Vec<Message> = decoded.messages.iter().map(plain).collect();
    for message in &messages {
        let bytes = message.encode();
        let again = wire::decode(bytes.clone());
        assert_eq!(again.messages, std::slice::from_ref(message));
        assert_eq!((again.malformed, again.unknown), (0, 0));
        encoded.push(bytes);
    }
    if !encoded.is_empty() {
        let again = wire::decode(wire::compound(encoded));
        assert_eq!(again.messages, messages);
    }
}
