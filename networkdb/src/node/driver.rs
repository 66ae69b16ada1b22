//! The one task that drives the engine: takes commands, datagrams, frames and timers, does what the engine wants done.
//!
//! It decides nothing. The clock is read in one place, [`now`]. Channels are bounded: commands wait for their turn, frames
//! hold back their connection, datagrams that do not fit are dropped and counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::history::{History, Position};
use super::report::{Report, log_progress};
use super::shared::SharedEngine;
use super::tcp;
use super::watch::{WatchEvent, Watcher};
use super::{NodeStatus, Refusals, StopReason, Timings};
use crate::engine::{
    Accepted, Engine, Input, InspectToken, Inspected, JoinProgress, JoinToken, MemberStatus,
    NetworkError, NetworkStats, Output, Persistent, Question, StreamId, Timer, Write, WriteError,
};
use crate::histogram::Histogram;
use crate::id::{NetworkId, NodeId};
use crate::keyring::Keyring;
use crate::stats::Stats;
use crate::wire::frame::DatagramSeal;

/// Datagrams and frames that wait for the engine. When it is full, datagrams are dropped and connections held back.
pub(crate) const EVENTS_WAITING: usize = 4_096;
/// Commands that wait for the engine. When it is full, callers wait.
pub(crate) const COMMANDS_WAITING: usize = 1_024;
/// Inputs handled before timers and the other channel get their turn.
const BATCH: usize = 64;
/// How long a farewell may take to leave the socket before the node stops.
const FAREWELL: Duration = Duration::from_millis(20);

/// What happens outside.
#[derive(Debug)]
pub(crate) enum Event {
    Datagram {
        from: SocketAddr,
        datagram: Bytes,
        /// When it was received.
        at: Instant,
    },
    StreamAccepted {
        stream: StreamId,
        peer: SocketAddr,
        frames: mpsc::Sender<Bytes>,
    },
    StreamFrame {
        stream: StreamId,
        payload: Bytes,
        /// When it was received.
        at: Instant,
        /// Given back when the engine has handled the frame.
        permit: OwnedSemaphorePermit,
    },
    FrameSent {
        stream: StreamId,
    },
    StreamClosed {
        stream: StreamId,
        error: Option<String>,
    },
}

/// What a handle asks for. A reply that nobody waits for any more is dropped.
#[derive(Debug)]
pub(crate) enum Command {
    Write(Write, oneshot::Sender<Result<Accepted, WriteError>>),
    WriteMany(
        Vec<Write>,
        oneshot::Sender<Vec<Result<Accepted, WriteError>>>,
    ),
    JoinNetwork(NetworkId, oneshot::Sender<Result<(), NetworkError>>),
    LeaveNetwork(NetworkId, oneshot::Sender<Result<(), NetworkError>>),
    Join(SocketAddr, oneshot::Sender<Result<(), String>>),
    SetBootstrap(Vec<SocketAddr>),
    Leave(oneshot::Sender<()>),
    /// A watch, and where it was before when it goes on.
    Watch(Watcher, Option<Position>, oneshot::Sender<()>),
    /// Watchers that have taken what they had want more of their snapshot, or a new one.
    Resync,
    SetKeyring(Keyring, oneshot::Sender<()>),
    NetworkStats(NetworkId, oneshot::Sender<Option<NetworkStats>>),
    JoinProgress(NetworkId, oneshot::Sender<Option<JoinProgress>>),
    Inspect(Question, NodeId, oneshot::Sender<Result<Inspected, String>>),
    Stats(oneshot::Sender<Stats>),
    Timings(oneshot::Sender<Timings>),
    Status(oneshot::Sender<NodeStatus>),
    Members(oneshot::Sender<Vec<MemberStatus>>),
    Close(oneshot::Sender<()>),
}

/// Everything the task owns.
pub(crate) struct Driver {
    pub engine: Arc<SharedEngine>,
    pub seal: DatagramSeal,
    pub socket: Arc<UdpSocket>,
    pub context: tcp::Context,
    pub commands: mpsc::Receiver<Command>,
    pub events: mpsc::Receiver<Event>,
    pub persist: watch::Sender<Persistent>,
    pub refusals: Arc<Refusals>,
    pub lost: super::Lost,
    /// Receiver and listener; they hold the sockets.
    pub listening: Vec<JoinHandle<()>>,
    /// Ends when the last state is on disk.
    pub storing: Option<JoinHandle<()>>,
    /// The periodic lines in the log.
    pub report: Report,
    /// Another process runs under this node's id.
    pub twin: Option<SocketAddr>,
    /// Told why the node has stopped by itself.
    pub stopped: watch::Sender<Option<StopReason>>,
    /// What watchers were told.
    pub history: History,
    pub state: State,
}

/// What the driver keeps for itself.
#[derive(Default)]
pub(crate) struct State {
    timers: BTreeMap<(Instant, u64), Timer>,
    next_timer: u64,
    streams: BTreeMap<StreamId, mpsc::Sender<Bytes>>,
    joins: BTreeMap<JoinToken, oneshot::Sender<Result<(), String>>>,
    next_join: JoinToken,
    inspections: BTreeMap<InspectToken, oneshot::Sender<Result<Inspected, String>>>,
    next_inspection: InspectToken,
    networks: BTreeMap<NetworkId, Vec<oneshot::Sender<Result<(), NetworkError>>>>,
    watchers: Vec<Watcher>,
    sent: Stats,
    applying: Histogram,
}

/// Reads the clock, for this crate's node and for nothing else.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the driver reads the clock"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Answers a command. Nobody waits when this fails, and nothing is lost.
fn reply<T>(to: oneshot::Sender<T>, answer: T) {
    drop(to.send(answer));
}

impl Driver {
    /// Runs until the node is closed or the last handle is dropped.
    pub(crate) async fn run(mut self) {
        self.drain().await;
        let closed = loop {
            let timers = &self.state.timers;
            let deadline = timers.first_key_value().map(|((at, _), _)| *at);
            let deadline = deadline.into_iter().chain(self.report.due).min();
            // Writers wait while what they have written is on its way to peers that are reading it.
            let is_open = !self.engine.lock().is_congested(now());
            tokio::select! {
                command = self.commands.recv(), if is_open => match command {
                    Some(Command::Close(done)) => break Some(done),
                    Some(command) => {
                        self.command(command).await;
                        if let Some(done) = self.more_commands().await {
                            break Some(done);
                        }
                    }
                    None => break None,
                },
                Some(event) = self.events.recv() => {
                    self.event(event);
                    self.more_events();
                }
                // What a handle has written wants something done; that happens below.
                () = self.engine.written() => {}
                () = sleep_until(deadline) => {
                    self.expire();
                    self.report.log_if_due(&self.engine.lock(), now());
                }
            }
            self.drain().await;
            if let Some(addr) = self.twin {
                let reason = StopReason::Twin { addr };
                self.stopped.send_replace(Some(reason));
                break None;
            }
        };
        self.stop(closed).await;
    }

    /// Handles commands that wait already, so that their events leave in one packet.
    async fn more_commands(&mut self) -> Option<oneshot::Sender<()>> {
        for _ in 0..BATCH {
            match self.commands.try_recv() {
                Ok(Command::Close(done)) => return Some(done),
                Ok(command) => self.command(command).await,
                Err(_) => return None,
            }
        }
        None
    }

    fn more_events(&mut self) {
        for _ in 0..BATCH {
            let Ok(event) = self.events.try_recv() else {
                return;
            };
            self.event(event);
        }
    }

    async fn stop(mut self, closed: Option<oneshot::Sender<()>>) {
        self.engine.take_writes(false);
        if self.twin.is_none() {
            self.engine.lock().leave(now());
            self.drain().await;
        }
        // Streams are closed by dropping them; give the last datagrams a moment before the socket goes.
        tokio::time::sleep(FAREWELL).await;
        for watcher in &self.state.watchers {
            watcher.close();
        }
        for task in self.listening {
            task.abort();
            // An aborted task ends with an error; what counts is that its socket is closed.
            drop(task.await);
        }
        drop(self.socket);
        drop(self.persist);
        if let Some(storing) = self.storing
            && storing.await.is_err()
        {
            tracing::error!("the state is not stored");
        }
        if let Some(closed) = closed {
            reply(closed, ());
        }
    }

    fn expire(&mut self) {
        let now = now();
        while let Some(entry) = self.state.timers.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let timer = entry.remove();
            self.engine.lock().handle(Input::Timer(timer), now);
        }
    }

    async fn command(&mut self, command: Command) {
        let is_snapshot = matches!(command, Command::Watch(..) | Command::Resync);
        if is_snapshot {
            // A snapshot holds the changes that wait to be told; a new watcher must not get them again after it.
            self.engine.take_writes(false);
            self.drain().await;
        }
        self.carry_out(command);
        if is_snapshot {
            self.engine.take_writes(true);
        }
    }

    fn carry_out(&mut self, command: Command) {
        let (mut engine, now) = (self.engine.lock(), now());
        match command {
            Command::Write(write, to) => reply(to, engine.perform(write, now)),
            Command::WriteMany(writes, to) => {
                let writes = writes.into_iter();
                let results = writes.map(|write| engine.perform(write, now));
                reply(to, results.collect());
            }
            Command::JoinNetwork(network, to) => match engine.join_network(&network, now) {
                Ok(()) => self.state.networks.entry(network).or_default().push(to),
                Err(error) => reply(to, Err(error)),
            },
            Command::LeaveNetwork(network, to) => reply(to, engine.leave_network(&network, now)),
            Command::Join(addr, to) => {
                self.state.next_join += 1;
                self.state.joins.insert(self.state.next_join, to);
                engine.join(addr, self.state.next_join, now);
            }
            Command::SetBootstrap(addrs) => engine.set_bootstrap(addrs, now),
            Command::Leave(to) => {
                engine.leave(now);
                reply(to, ());
            }
            Command::Watch(watcher, from, to) => {
                engine.set_watching(true);
                watcher.start(from, &mut self.history);
                watcher.snapshot((engine.store(), engine.roster()), self.history.position());
                self.state.watchers.push(watcher);
                reply(to, ());
            }
            Command::Resync => {
                let position = self.history.position();
                for watcher in &self.state.watchers {
                    watcher.snapshot((engine.store(), engine.roster()), position);
                }
            }
            Command::SetKeyring(keyring, to) => {
                self.seal.set_keyring(keyring.clone());
                *self.context.keyring.write() = Some(keyring);
                reply(to, ());
            }
            Command::NetworkStats(network, to) => reply(to, engine.network_stats(&network)),
            Command::JoinProgress(network, to) => reply(to, engine.join_progress(&network, now)),
            Command::Inspect(question, peer, to) => {
                self.state.next_inspection += 1;
                let token = self.state.next_inspection;
                self.state.inspections.insert(token, to);
                engine.inspect(question, &peer, token, now);
            }
            Command::Stats(to) => reply(to, self.stats(&engine)),
            Command::Timings(to) => reply(to, self.timings(&engine, now)),
            Command::Status(to) => reply(to, self.status(&engine, now)),
            Command::Members(to) => reply(to, engine.members()),
            Command::Close(to) => reply(to, ()),
        }
    }

    fn status(&self, engine: &Engine, now: Instant) -> NodeStatus {
        NodeStatus {
            hostname: self.report.hostname().to_owned(),
            cluster: self.context.cluster.to_string(),
            generation: engine.generation(),
            has_left: engine.has_left(),
            is_sealed: self.context.keyring.read().is_some(),
            health_score: engine.health_score(),
            uptime: engine.uptime(now),
        }
    }

    fn timings(&self, engine: &Engine, now: Instant) -> Timings {
        let differing = engine.differing(now);
        Timings {
            applying: self.state.applying,
            convergence: *engine.convergence(),
            differing: differing.map(|(id, since)| (id.clone(), since)).collect(),
        }
    }

    /// The engine's counters with those of the sockets.
    fn stats(&self, engine: &Engine) -> Stats {
        let sent = &self.state.sent;
        Stats {
            datagrams_sent: sent.datagrams_sent,
            datagram_bytes_sent: sent.datagram_bytes_sent,
            datagrams_received: sent.datagrams_received,
            datagram_bytes_received: sent.datagram_bytes_received,
            datagrams_unsent: sent.datagrams_unsent,
            frames_sent: sent.frames_sent,
            frame_bytes_sent: sent.frame_bytes_sent,
            frames_received: sent.frames_received,
            frame_bytes_received: sent.frame_bytes_received,
            refused_seal: self.refusals.count() + self.seal.unproven(),
            dropped_inbox: self.lost.read(),
            ..*engine.stats()
        }
    }

    fn event(&mut self, event: Event) {
        let input = match event {
            Event::Datagram { from, datagram, at } => {
                self.datagram(from, &datagram, at);
                return;
            }
            Event::StreamAccepted {
                stream,
                peer,
                frames,
            } => {
                self.state.streams.insert(stream, frames);
                Input::StreamAccepted { stream, peer }
            }
            Event::StreamFrame {
                stream,
                payload,
                at,
                permit,
            } => {
                self.state.sent.frames_received += 1;
                self.state.sent.frame_bytes_received += payload.len() as u64;
                self.apply(Input::StreamFrame { stream, payload }, at);
                drop(permit);
                return;
            }
            Event::FrameSent { stream } => Input::FrameSent { stream },
            Event::StreamClosed { stream, error } => {
                self.state.streams.remove(&stream);
                Input::StreamClosed { stream, error }
            }
        };
        self.engine.lock().handle(input, now());
    }

    /// Hands what other nodes have sent to the engine; notes how long records took from the socket until readers see them.
    fn apply(&mut self, input: Input, received: Instant) {
        let records = |stats: &Stats| stats.events_received + stats.sync_records_received;
        let mut engine = self.engine.lock();
        let before = records(engine.stats());
        engine.handle(input, now());
        if records(engine.stats()) > before {
            let took = now().saturating_duration_since(received);
            self.state.applying.observe(took);
        }
    }

    fn datagram(&mut self, from: SocketAddr, datagram: &[u8], received: Instant) {
        let opened = self.seal.open(datagram, from, now(), super::random_bytes);
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.refusals.report(from, error);
                return;
            }
        };
        self.state.sent.datagrams_received += 1;
        self.state.sent.datagram_bytes_received += datagram.len() as u64;
        if let Some(reply) = opened.reply {
            // A challenge or response that is lost is asked for again by the next datagram.
            let sent = self.socket.try_send_to(&reply, from).is_ok();
            self.count_sent(sent, reply.len());
        }
        for payload in opened.payloads {
            self.apply(Input::Datagram { payload }, received);
        }
    }

    async fn drain(&mut self) {
        loop {
            // Not held while the output is dealt with.
            let output = self.engine.lock().poll_output();
            let Some(output) = output else { return };
            match output {
                Output::SendDatagram { to, payload } => self.send(to, &payload).await,
                Output::SetTimer { after, timer } => self.set_timer(after, timer),
                Output::OpenStream { stream, to } => self.open_stream(stream, to),
                Output::SendFrame { stream, payload } => self.send_frame(stream, payload),
                Output::CloseStream { stream } => {
                    self.state.streams.remove(&stream);
                }
                Output::Notify(change) => self.tell(&WatchEvent::Change(change)),
                Output::Lost(entry) => self.tell(&WatchEvent::Lost(entry)),
                Output::Twin { addr } => {
                    tracing::error!(%addr, "another process runs under the id of this node, in a later run: stopping");
                    self.twin = Some(addr);
                }
                Output::Joined { join, result } => {
                    if let Some(to) = self.state.joins.remove(&join) {
                        reply(to, result);
                    }
                }
                Output::Inspected { token, result } => {
                    if let Some(to) = self.state.inspections.remove(&token) {
                        reply(to, result);
                    }
                }
                Output::NetworkReady { network, is_synced } => {
                    if !is_synced {
                        tracing::warn!(%network, "first sync not done in time, it goes on in the background");
                    }
                    for to in self.state.networks.remove(&network).unwrap_or_default() {
                        reply(to, Ok(()));
                    }
                }
                Output::JoinProgress { network, progress } => log_progress(&network, &progress),
                Output::MemberUp { node, addr } => {
                    tracing::info!(%node, %addr, "member up");
                    self.tell(&WatchEvent::MemberUp { node, addr });
                }
                Output::MemberDown { node, left } => {
                    if left {
                        tracing::info!(%node, "member left");
                    } else {
                        tracing::warn!(%node, "member failed");
                    }
                    self.tell(&WatchEvent::MemberDown { node, left });
                }
                Output::Persist => {
                    let persistent = self.engine.lock().persistent();
                    self.persist.send_replace(persistent);
                }
            }
        }
    }

    fn tell(&mut self, event: &WatchEvent) {
        let number = self.history.note(event);
        for watcher in &self.state.watchers {
            watcher.push(event, number);
        }
        self.state.watchers.retain(Watcher::is_watched);
        if self.state.watchers.is_empty() && !self.history.goes_on_unwatched() {
            self.engine.lock().set_watching(false);
        }
    }

    async fn send(&mut self, to: SocketAddr, payload: &[u8]) {
        let datagram = self.seal.seal(payload, now());
        let mut sent = self.socket.try_send_to(&datagram, to);
        if matches!(&sent, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock) {
            sent = self.socket.send_to(&datagram, to).await;
        }
        self.count_sent(sent.is_ok(), datagram.len());
    }

    fn count_sent(&mut self, is_sent: bool, bytes: usize) {
        let sent = &mut self.state.sent;
        if is_sent {
            sent.datagrams_sent += 1;
            sent.datagram_bytes_sent += bytes as u64;
        } else {
            sent.datagrams_unsent += 1;
        }
    }

    fn set_timer(&mut self, after: Duration, timer: Timer) {
        self.state.next_timer += 1;
        let at = now() + after;
        self.state.timers.insert((at, self.state.next_timer), timer);
    }

    fn open_stream(&mut self, stream: StreamId, to: SocketAddr) {
        let (frames, waiting) = mpsc::channel(tcp::FRAMES_WAITING);
        self.state.streams.insert(stream, frames);
        tokio::spawn(tcp::connect(stream, to, waiting, self.context.clone()));
    }

    fn send_frame(&mut self, stream: StreamId, payload: Bytes) {
        let bytes = payload.len() as u64;
        let sent = self
            .state
            .streams
            .get(&stream)
            .is_some_and(|frames| frames.try_send(payload).is_ok());
        if sent {
            self.state.sent.frames_sent += 1;
            self.state.sent.frame_bytes_sent += bytes;
        }
    }
}
