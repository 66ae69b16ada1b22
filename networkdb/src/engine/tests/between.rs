//! A few engines and what lies between them: everything that is sent arrives a millisecond later, in order, and every
//! timer fires when it is due.

use super::rules::{generation, node};
use super::*;

const DELAY: Duration = Duration::from_millis(1);

pub(super) struct Net {
    pub(super) engines: Vec<Engine>,
    pub(super) now: Instant,
    /// Datagrams are lost.
    pub(super) is_deaf: bool,
    /// Frames stay in the sockets of this node.
    pub(super) is_stuck: Option<usize>,
    /// What was said in frames and datagrams, and by whom.
    pub(super) said: Vec<(usize, Message)>,
    /// What drivers were told beside that.
    pub(super) told: Vec<(usize, Output)>,
    waiting: BTreeMap<(Instant, u64), (usize, Input)>,
    sequence: u64,
    /// The two ends of every stream.
    ends: BTreeMap<(usize, StreamId), (usize, StreamId)>,
}

pub(super) fn addr(number: usize) -> SocketAddr {
    let port = u16::try_from(number + 1).expect("a few engines");
    ([127, 0, 0, 1], port).into()
}

impl Net {
    /// So many engines that do not know each other, in their first runs.
    pub(super) fn new(engines: usize, config: &Config) -> Self {
        let (_, now) = engine();
        let mut net = Self {
            engines: Vec::new(),
            now,
            is_deaf: false,
            is_stuck: None,
            said: Vec::new(),
            told: Vec::new(),
            waiting: BTreeMap::new(),
            sequence: 0,
            ends: BTreeMap::new(),
        };
        for _ in 0..engines {
            net.add(config);
        }
        net
    }

    /// So many members of one cluster, all attached to the network, and quiet.
    pub(super) fn attached(engines: usize, config: &Config) -> Self {
        let mut net = Self::new(engines, config);
        for number in 0..engines {
            if number > 0 {
                net.engines[number].join(addr(0), 0, net.now);
            }
            net.run(100);
            let joined = net.engines[number].join_network(&network(), net.now);
            joined.expect("not attached yet");
        }
        net.run(5_000);
        net
    }

    pub(super) fn add(&mut self, config: &Config) -> usize {
        let number = self.engines.len();
        let identity = Identity {
            node: node(&format!("n{number}")),
            advertise: addr(number),
            generation: generation(1),
            epoch: 1,
            network_time: LamportTime(0),
            table_time: LamportTime(0),
            attachments: Vec::new(),
        };
        let config = config.clone().check().expect("valid");
        let seed = number as u64;
        let engine = Engine::new(config, &identity, seed, self.now);
        self.engines.push(engine);
        number
    }

    /// Lets so many milliseconds pass.
    pub(super) fn run(&mut self, millis: u64) {
        let until = self.now + Duration::from_millis(millis);
        self.drain();
        while let Some(next) = self.waiting.first_entry() {
            let at = next.key().0;
            if at > until {
                break;
            }
            let (to, input) = next.remove();
            self.now = at;
            self.engines[to].handle(input, at);
            self.drain();
        }
        self.now = until;
    }

    pub(super) fn forget_what_was_said(&mut self) {
        self.drain();
        self.said.clear();
        self.told.clear();
    }

    fn drain(&mut self) {
        for number in 0..self.engines.len() {
            while let Some(output) = self.engines[number].poll_output() {
                self.perform(number, output);
            }
        }
    }

    fn perform(&mut self, from: usize, output: Output) {
        match output {
            Output::SendDatagram { to, payload } => {
                if payload[0] == KIND_GOSSIP {
                    let decoded = wire::decode(payload.slice(1..));
                    let all = decoded.messages.into_iter();
                    self.said.extend(all.map(|message| (from, message)));
                }
                let to = usize::from(to.port()) - 1;
                if !self.is_deaf && to < self.engines.len() {
                    self.after(DELAY, to, Input::Datagram { payload });
                }
            }
            Output::SetTimer { after, timer } => self.after(after, from, Input::Timer(timer)),
            Output::OpenStream { stream, to } => {
                let number = usize::from(to.port()) - 1;
                if number >= self.engines.len() {
                    let error = Some("refused".to_owned());
                    self.after(DELAY, from, Input::StreamClosed { stream, error });
                    return;
                }
                let StreamId::Outgoing(name) = stream else {
                    panic!("only an outgoing stream can be opened");
                };
                let there = StreamId::Incoming((from as u64) << 32 | name);
                self.ends.insert((from, stream), (number, there));
                self.ends.insert((number, there), (from, stream));
                let (stream, peer) = (there, addr(from));
                self.after(DELAY, number, Input::StreamAccepted { stream, peer });
            }
            Output::SendFrame { stream, payload } => {
                let all = wire::decode_frame(payload.clone()).messages.into_iter();
                self.said.extend(all.map(|message| (from, message)));
                if self.is_stuck == Some(from) {
                    return;
                }
                self.after(DELAY, from, Input::FrameSent { stream });
                if let Some((to, stream)) = self.ends.get(&(from, stream)).copied() {
                    self.after(DELAY, to, Input::StreamFrame { stream, payload });
                }
            }
            Output::CloseStream { stream } => {
                if let Some((to, stream)) = self.ends.remove(&(from, stream)) {
                    self.ends.remove(&(to, stream));
                    let error = None;
                    self.after(DELAY, to, Input::StreamClosed { stream, error });
                }
            }
            told @ (Output::Notify(_)
            | Output::Joined { .. }
            | Output::NetworkReady { .. }
            | Output::JoinProgress { .. }
            | Output::Inspected { .. }
            | Output::MemberUp { .. }
            | Output::MemberDown { .. }
            | Output::Lost(_)
            | Output::Twin { .. }
            | Output::Persist) => self.told.push((from, told)),
        }
    }

    fn after(&mut self, delay: Duration, to: usize, input: Input) {
        self.sequence += 1;
        let at = (self.now + delay, self.sequence);
        self.waiting.insert(at, (to, input));
    }

    pub(super) fn create(&mut self, by: usize, table: &str, key: &str, value: &[u8]) {
        let (table, key) = (
            crate::id::TableName::new(table).expect("a valid name"),
            crate::id::Key::new(key).expect("a valid name"),
        );
        let value = Bytes::copy_from_slice(value);
        let created = self.engines[by].create_entry(&network(), &table, &key, value, self.now);
        created.expect("the key is free");
    }

    pub(super) fn digest(&self, number: usize) -> Digest {
        let tables = self.engines[number].store.network(&network());
        tables.expect("attached").digest()
    }

    pub(super) fn assert_equal(&self) {
        for number in 1..self.engines.len() {
            assert_eq!(self.digest(number), self.digest(0), "of n{number}");
        }
    }

    pub(super) fn stats(&self, number: usize) -> Stats {
        *self.engines[number].stats()
    }

    /// Everything of a kind that was said.
    pub(super) fn all<T>(&self, pick: impl Fn(&Message) -> Option<T>) -> Vec<(usize, T)> {
        let said = self.said.iter();
        said.filter_map(|(by, message)| Some((*by, pick(message)?)))
            .collect()
    }
}
