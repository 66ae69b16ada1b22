//! What the driver of a real node does, in virtual time: hands inputs to an engine and does what it wants done.

use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use networkdb::engine::{Input, Output, StreamId, TableChange};
use networkdb::wire::frame::FRAME_BYTES_MAX;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::net::{Recorded, Recorder, changed};
use super::node::Far;
use super::queue::Happening;
use super::{Down, Sim};

/// Bytes of a forged datagram that imitates nothing.
const NOISE_BYTES: usize = 120;

/// Frames that fit the sockets of a connection; the sender of later ones waits until the other side has read some.
const SOCKET_FRAMES: usize = 4;
/// Connections that a host takes before its node has seen them, on top of those that the node may have open.
const BACKLOG: usize = 64;

impl Sim {
    pub(super) fn happen(&mut self, number: usize, what: Happening) {
        let node = &mut self.nodes[number];
        if node.engine.is_none() {
            return;
        }
        let Some(what) = node.wait(what) else {
            return;
        };
        let local = node.clock.read(self.now);
        if let Happening::Timer(_, due) = what
            && due > local
        {
            let at = node.clock.when(due, self.now);
            self.schedule(at, number, what);
            return;
        }
        for input in self.inputs_of(number, what) {
            if let Some(engine) = &mut self.nodes[number].engine {
                engine.handle(input, local);
            }
        }
        self.drain(number);
    }

    fn inputs_of(&mut self, number: usize, what: Happening) -> Vec<Input> {
        let node = &mut self.nodes[number];
        vec![match what {
            Happening::Datagram {
                from,
                bytes,
                is_forged,
            } => {
                let payloads = self.open_datagram(number, from, &bytes, is_forged);
                let inputs = payloads.into_iter();
                return inputs.map(|payload| Input::Datagram { payload }).collect();
            }
            Happening::Timer(timer, _) => {
                node.timers -= 1;
                Input::Timer(timer)
            }
            Happening::Accepted(stream, peer) => Input::StreamAccepted { stream, peer },
            Happening::Frame(stream, payload) => {
                self.read_frame(number, stream);
                Input::StreamFrame { stream, payload }
            }
            Happening::FrameSent(stream) => Input::FrameSent { stream },
            Happening::Closed(stream, error) => {
                node.streams.remove(&stream);
                Input::StreamClosed { stream, error }
            }
        }]
    }

    /// Opens the seal of a datagram and answers a challenge; what may not count must not open.
    fn open_datagram(
        &mut self,
        number: usize,
        from: SocketAddr,
        bytes: &Bytes,
        is_forged: bool,
    ) -> Vec<Bytes> {
        let (node, rng) = (&mut self.nodes[number], &mut self.rng);
        let local = node.clock.read(self.now);
        let Ok(opened) = node.seal.open(bytes, from, local, || rng.random()) else {
            return Vec::new();
        };
        if let (Some(received), Some(from)) = (&mut self.received, self.by_addr.get(&from)) {
            let payloads = opened.payloads.iter().cloned();
            received.extend(payloads.map(|payload| (*from, number, payload)));
        }
        if self.setup.keyring.is_some() {
            let now = self.now;
            let was_taken = self.recorder.as_mut().is_some_and(|all| {
                let mut taken = opened.payloads.iter().map(|p| all.opened(number, p, now));
                taken.any(|was_taken| was_taken)
            });
            if is_forged || was_taken {
                let how = if is_forged { "forged" } else { "replayed" };
                self.offend(format!("invariant 8: n{number} took a {how} datagram"));
            }
        }
        if let (Some(reply), Some(to)) = (opened.reply, self.by_addr.get(&from).copied()) {
            self.deliver_sealed(number, to, &reply);
        }
        opened.payloads
    }

    pub(super) fn perform(&mut self, number: usize, output: Output) {
        match output {
            Output::SendDatagram { to, payload } => self.send(number, to, &payload),
            Output::SetTimer { after, timer } => {
                let node = &mut self.nodes[number];
                node.timers += 1;
                let due = node.clock.read(self.now) + after;
                let at = node.clock.when(due, self.now);
                self.schedule(at, number, Happening::Timer(timer, due));
            }
            Output::OpenStream { stream, to } => self.open(number, stream, to),
            Output::SendFrame { stream, payload } => self.send_frame(number, stream, payload),
            Output::CloseStream { stream } => self.close(number, stream),
            Output::Notify(change) => self.see(number, change),
            Output::Joined { result, .. } => {
                self.nodes[number].joined += usize::from(result.is_ok());
            }
            Output::Persist => {
                let node = &mut self.nodes[number];
                let state = node.engine.as_ref().map(|engine| engine.persistent());
                node.disk_before = std::mem::replace(&mut node.disk, state);
            }
            Output::Twin { .. } => {
                self.nodes[number].met_twin = true;
                self.crash(number);
            }
            Output::MemberDown { node, left: false } => {
                let at = self.elapsed();
                self.downs.push(Down {
                    at,
                    by: number,
                    node,
                });
            }
            Output::Inspected { token, result } => {
                self.nodes[number].inspected.push((token, result));
            }
            Output::JoinProgress { progress, .. } => self.nodes[number].progress.push(progress),
            Output::NetworkReady { network, is_synced } => {
                self.nodes[number].ready.push((network, is_synced));
            }
            Output::MemberUp { .. } | Output::MemberDown { left: true, .. } | Output::Lost(_) => {}
        }
    }

    fn see(&mut self, number: usize, change: TableChange) {
        let name = (change.network, change.table, change.key);
        let seen = &mut self.nodes[number].seen;
        let before = match change.value {
            Some(value) => seen.insert(name.clone(), value),
            None => seen.remove(&name),
        };
        if before != change.previous {
            let told = change.previous;
            self.offend(format!(
                "invariant 5: a watcher of n{number} had seen {before:?} under {name:?} and was told {told:?}"
            ));
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, payload: &Bytes) {
        let Some(to) = self.by_addr.get(&to).copied() else {
            return;
        };
        if let Some(sent) = &mut self.sent {
            sent.push((from, to, payload.clone()));
        }
        let Some(payload) = &self.meddled_datagram((from, to), payload) else {
            return;
        };
        if let Some(recorder) = &mut self.recorder {
            recorder.sent(to, payload, self.now);
        }
        let node = &mut self.nodes[from];
        let datagram = node.seal.seal(payload, node.clock.read(self.now));
        if datagram.len() > self.setup.config.datagram_bytes_max {
            let bytes = datagram.len();
            self.offend(format!(
                "invariant 7: n{from} sent a datagram of {bytes} bytes"
            ));
        }
        self.deliver_sealed(from, to, &datagram);
    }

    fn deliver_sealed(&mut self, from: usize, to: usize, datagram: &Bytes) {
        let addr = self.nodes[from].addr;
        if let Some(recorder) = &mut self.recorder {
            recorder.keep(Recorded {
                from: addr,
                to,
                bytes: datagram.clone(),
            });
        }
        let deliveries = self.network.deliveries(from, to, &mut self.rng);
        for delay in deliveries.into_iter().flatten() {
            let corrupted = self.network.corrupted(datagram, &mut self.rng);
            let what = Happening::Datagram {
                from: addr,
                is_forged: corrupted.is_some(),
                bytes: corrupted.unwrap_or_else(|| datagram.clone()),
            };
            self.schedule(self.now + delay, to, what);
        }
    }

    /// Starts to keep what is sent, so that [`Sim::replay`] can send it again.
    pub fn record(&mut self) {
        self.recorder.get_or_insert_with(Recorder::default);
    }

    /// Sends some datagram that was sent before once more to its receiver.
    pub fn replay(&mut self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let some = self.recorder.as_ref().and_then(|all| all.some(&mut rng));
        if let Some(Recorded { from, to, bytes }) = some {
            let is_forged = false;
            let what = Happening::Datagram {
                from,
                bytes,
                is_forged,
            };
            self.schedule(self.now, to, what);
        }
    }

    /// Sends a datagram that no node ever made: a changed one, or noise.
    pub fn forge(&mut self, to: usize, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let some = self.recorder.as_ref().and_then(|all| all.some(&mut rng));
        let noise = Recorded {
            from: self.nodes[0].addr,
            to,
            bytes: vec![1; NOISE_BYTES].into(),
        };
        let like = some.unwrap_or(noise);
        let what = Happening::Datagram {
            from: like.from,
            bytes: changed(&like.bytes, &mut rng),
            is_forged: true,
        };
        self.schedule(self.now, to, what);
    }

    /// Gives a node a payload as if a member had sealed it.
    pub fn deliver(&mut self, to: usize, payload: Bytes) {
        self.with(to, |engine, now| {
            engine.handle(Input::Datagram { payload }, now);
        });
    }

    fn open(&mut self, from: usize, stream: StreamId, addr: SocketAddr) {
        let to = self.by_addr.get(&addr).copied();
        let delay = self.network.delay(from, to.unwrap_or(from), &mut self.rng);
        let to = to.filter(|to| self.nodes[*to].engine.is_some());
        let room = 2 * self.setup.config.streams_max + BACKLOG;
        let is_open = |to: &usize| !self.is_cut(from, *to) && self.nodes[*to].streams.len() < room;
        let Some(to) = to.filter(is_open) else {
            let error = Some("connection refused".to_owned());
            self.schedule(self.now + delay, from, Happening::Closed(stream, error));
            return;
        };
        self.next_stream += 1;
        let far_stream = StreamId::Incoming(self.next_stream);
        let at = self.now + delay;
        let (near_run, far_run) = (self.nodes[from].run, self.nodes[to].run);
        let end = |node, run, stream, busy_until: Instant| Far {
            node,
            run,
            stream,
            busy_until,
            is_stalled: false,
            unread: 0,
            unsent: 0,
        };
        let near = end(to, far_run, far_stream, at);
        self.nodes[from].streams.insert(stream, near);
        let far = end(from, near_run, stream, at);
        self.nodes[to].streams.insert(far_stream, far);
        let peer = self.nodes[from].addr;
        self.schedule(at, to, Happening::Accepted(far_stream, peer));
    }

    /// Whether a connection cannot be made: its packets have to pass in both directions.
    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.network.is_blocked(from, to) || self.network.is_blocked(to, from)
    }

    /// Frames of a stream arrive in order; when one meets a blocked link, neither it nor any later one does.
    fn send_frame(&mut self, from: usize, stream: StreamId, payload: Bytes) {
        if payload.len() > FRAME_BYTES_MAX {
            let bytes = payload.len();
            self.offend(format!(
                "invariant 7: n{from} sent a frame of {bytes} bytes"
            ));
        }
        let Some(node) = self.nodes[from].streams.get(&stream).map(|far| far.node) else {
            return;
        };
        if self.burn(from) {
            return;
        }
        let delay = self.network.delay(from, node, &mut self.rng);
        let is_cut = self.is_cut(from, node);
        let payload = self.meddled_frame((from, node), payload);
        let Some(far) = self.nodes[from].streams.get_mut(&stream) else {
            return;
        };
        far.is_stalled |= is_cut;
        far.busy_until = far.busy_until.max(self.now + delay);
        let (at, run, far_stream, is_stalled) =
            (far.busy_until, far.run, far.stream, far.is_stalled);
        let is_swallowed = payload.is_none();
        far.unread += usize::from(!is_swallowed);
        if far.unread > SOCKET_FRAMES {
            far.unsent += 1;
        } else {
            self.schedule(self.now, from, Happening::FrameSent(stream));
        }
        if let Some(payload) = payload.filter(|_| !is_stalled) {
            let what = Happening::Frame(far_stream, payload);
            self.queue.push(at, (node, run), what);
        }
    }

    /// A node reads a frame: the other side may send one more.
    fn read_frame(&mut self, number: usize, stream: StreamId) {
        let Some(near) = self.nodes[number].streams.get(&stream) else {
            return;
        };
        let (sender, run, at_sender) = (near.node, near.run, near.stream);
        if self.nodes[sender].run != run {
            return;
        }
        let Some(far) = self.nodes[sender].streams.get_mut(&at_sender) else {
            return;
        };
        far.unread = far.unread.saturating_sub(1);
        if far.unsent > 0 {
            far.unsent -= 1;
            self.schedule(self.now, sender, Happening::FrameSent(at_sender));
        }
    }

    /// Counts a frame of a node whose connections are to be reset; returns whether they are.
    fn burn(&mut self, number: usize) -> bool {
        match self.nodes[number].fuse {
            None => false,
            Some(0) => {
                self.nodes[number].fuse = None;
                self.reset_streams(number);
                true
            }
            Some(left) => {
                self.nodes[number].fuse = Some(left - 1);
                false
            }
        }
    }

    /// Resets all connections of a node, seen by both sides.
    pub(super) fn reset_streams(&mut self, number: usize) {
        for (stream, far) in std::mem::take(&mut self.nodes[number].streams) {
            let error = || Some("connection reset".to_owned());
            if self.nodes[number].engine.is_some() {
                self.schedule(self.now, number, Happening::Closed(stream, error()));
            }
            if self.network.is_blocked(number, far.node) {
                continue;
            }
            let delay = self.network.delay(number, far.node, &mut self.rng);
            let what = Happening::Closed(far.stream, error());
            self.queue.push(self.now + delay, (far.node, far.run), what);
        }
    }

    fn close(&mut self, from: usize, stream: StreamId) {
        let Some(far) = self.nodes[from].streams.remove(&stream) else {
            return;
        };
        if !far.is_stalled && !self.is_cut(from, far.node) {
            let at = far.busy_until.max(self.now);
            let what = Happening::Closed(far.stream, None);
            self.queue.push(at, (far.node, far.run), what);
        }
    }
}
