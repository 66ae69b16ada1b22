//! Who is in the cluster: an adapter around the SWIM implementation `foca`, and the only file that names it.
//!
//! A member is a [`Member`]: node id, address, generation and epoch. `foca` keeps one member per node id, of the highest
//! (generation, epoch); the epoch rises when a node that was declared down comes back under the same generation. Packets
//! of the failure detector are opaque bytes to the rest of the engine: 8 bytes that name the receiver, then the sender,
//! its incarnation, the message and updates, encoded with bincode 2. Timing follows the cluster's size: the number of transmissions of an update as in memberlist (4 ceil(log10(n+1))) and four more, because
//! `foca` has no push-pull of its own, and suspicion times log10(n) above ten members.
//!
//! Relies on: the driver delivers timers, late ones included. Implements `docs/ALGORITHM.md`, section "Members".

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use foca::{Foca, Identity, NoCustomBroadcast, Notification, PeriodicParams};
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::event::Digest;
use crate::config::CheckedConfig;
use crate::id::{Generation, NodeId};
use crate::wire::frame::DATAGRAM_OVERHEAD;

/// Bytes that name the receiver of a packet.
const RECEIVER_BYTES: usize = 8;

/// A member of the cluster as the failure detector knows it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(from = "Encoded")]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Where it is reached.
    pub addr: SocketAddr,
    /// Which run of it.
    pub generation: Generation,
    /// Rises when the node comes back under the same generation.
    pub epoch: u64,
    /// Hash of the node's id: `foca` compares it with that of every member, for each update.
    #[serde(skip)]
    tag: Digest,
}

/// What is sent of a [`Member`].
#[derive(Deserialize)]
struct Encoded {
    node: NodeId,
    addr: SocketAddr,
    generation: Generation,
    epoch: u64,
}

impl From<Encoded> for Member {
    fn from(encoded: Encoded) -> Self {
        let Encoded {
            node,
            addr,
            generation,
            epoch,
        } = encoded;
        Self::new(node, addr, generation, epoch)
    }
}

impl Member {
    /// Returns a member; `epoch` must rise when a node comes back under the same generation.
    #[must_use]
    pub fn new(node: NodeId, addr: SocketAddr, generation: Generation, epoch: u64) -> Self {
        Self {
            tag: Digest::of(&[b"node", node.as_str().as_bytes()]),
            node,
            addr,
            generation,
            epoch,
        }
    }

    /// Hashes the member for the cluster's digest.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&[
            b"member",
            self.node.as_str().as_bytes(),
            self.addr.to_string().as_bytes(),
            &self.generation.0.to_le_bytes(),
            &self.epoch.to_le_bytes(),
        ])
    }

    /// The same node in another run, above all it was before.
    pub(crate) fn in_run(&self, generation: Generation) -> Self {
        Self {
            generation,
            epoch: self.epoch + 1,
            ..self.clone()
        }
    }

    /// Names the member as the receiver of a packet: a hash of its id and one of all of it. It knows itself, and idle nodes
    /// send little else than probes.
    fn as_receiver(&self) -> [u8; RECEIVER_BYTES] {
        let (node, all) = (self.tag.0.to_le_bytes(), self.digest().0.to_le_bytes());
        let mut receiver = [0; RECEIVER_BYTES];
        let (of_node, of_all) = receiver.split_at_mut(RECEIVER_BYTES / 2);
        of_node.copy_from_slice(&node[..RECEIVER_BYTES / 2]);
        of_all.copy_from_slice(&all[..RECEIVER_BYTES / 2]);
        receiver
    }

    pub(crate) fn precedence(&self) -> (Generation, u64, SocketAddr) {
        (self.generation, self.epoch, self.addr)
    }
}

impl Identity for Member {
    type Addr = Digest;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            epoch: self.epoch.checked_add(1)?,
            ..self.clone()
        })
    }

    fn addr(&self) -> Digest {
        self.tag
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.precedence() > adversary.precedence()
    }
}

/// What the failure detector wants done or has found.
#[derive(Debug)]
pub(crate) enum SwimOutput {
    /// Send a packet.
    Send(SocketAddr, Bytes),
    /// Give the timer back after a while.
    Timer(Duration, SwimTimer),
    /// The member is up.
    Up(Member),
    /// The member's address, generation or epoch has changed; it may be down.
    Renamed(Member),
    /// The member is down.
    Down(Member),
}

/// A timer of the failure detector.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SwimTimer(foca::Timer<Member>);

impl SwimTimer {
    /// Whether it begins the next probe, of which there is one a probe period.
    pub(crate) fn is_probe(&self) -> bool {
        matches!(self.0, foca::Timer::ProbeRandomMember(_))
    }

    /// The member that it declares down, unless that has refuted the suspicion by then.
    pub(crate) fn suspect(&self) -> Option<&Member> {
        if let foca::Timer::ChangeSuspectToDown { member_id, .. } = &self.0 {
            return Some(member_id);
        }
        None
    }
}

/// What a packet is in a probe, with the probe's number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Turn {
    Ping(u8),
    Ack(u8),
    Other,
}

/// What the failure detector knows of a member beside whether it is up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Detected {
    pub generation: Generation,
    pub incarnation: u16,
    pub is_suspect: bool,
}

/// What came of the members of a push-pull.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Imported {
    /// How many were not understood.
    pub malformed: u64,
    /// A live member with this node's id, at another address and in a later run.
    pub claim: Option<Member>,
}

/// Why bytes were not understood or not taken.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SwimError(foca::Error);

#[derive(Debug)]
struct Codec;

/// Limit on what one decoded member or header may claim to hold; they take some 600 bytes at most.
fn bincode_config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<4_096>()
}

#[derive(Debug, thiserror::Error)]
enum CodecError {
    #[error(transparent)]
    Encode(#[from] bincode::error::EncodeError),
    #[error(transparent)]
    Decode(#[from] bincode::error::DecodeError),
    #[error("packet is full")]
    Full,
}

impl Codec {
    fn bytes_of(value: &impl Serialize) -> Result<Vec<u8>, CodecError> {
        Ok(bincode::serde::encode_to_vec(value, bincode_config())?)
    }

    fn encode(value: &impl Serialize, mut buf: impl BufMut) -> Result<(), CodecError> {
        let bytes = Self::bytes_of(value)?;
        if buf.remaining_mut() < bytes.len() {
            return Err(CodecError::Full);
        }
        buf.put_slice(&bytes);
        Ok(())
    }

    fn decode<T: serde::de::DeserializeOwned>(mut buf: impl Buf) -> Result<T, CodecError> {
        let (value, bytes) = bincode::serde::decode_from_slice(buf.chunk(), bincode_config())?;
        buf.advance(bytes);
        Ok(value)
    }
}

impl foca::Codec<Member> for Codec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &foca::Header<Member>,
        buf: impl BufMut,
    ) -> Result<(), CodecError> {
        // The receiver first, where it is replaced by a short name of it.
        let incarnation = header.src_incarnation;
        let parts = (&header.dst, &header.src, incarnation, &header.message);
        Self::encode(&parts, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<foca::Header<Member>, CodecError> {
        let (dst, src, src_incarnation, message) = Self::decode(buf)?;
        Ok(foca::Header {
            src,
            src_incarnation,
            dst,
            message,
        })
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Member>,
        buf: impl BufMut,
    ) -> Result<(), CodecError> {
        Self::encode(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<foca::Member<Member>, CodecError> {
        Self::decode(buf)
    }
}

/// Collects what `foca` wants, in order.
#[derive(Debug, Default)]
struct Runtime(VecDeque<SwimOutput>);

impl foca::Runtime<Member> for Runtime {
    fn notify(&mut self, notification: Notification<'_, Member>) {
        match notification {
            Notification::MemberUp(member) => {
                self.0.push_back(SwimOutput::Up(member.clone()));
            }
            Notification::Rename(_, member) => {
                self.0.push_back(SwimOutput::Renamed(member.clone()));
            }
            Notification::MemberDown(member) => {
                self.0.push_back(SwimOutput::Down(member.clone()));
            }
            Notification::Active
            | Notification::Idle
            | Notification::Defunct
            | Notification::Rejoin(_) => {}
        }
    }

    fn send_to(&mut self, to: Member, data: &[u8]) {
        let receiver = Codec::bytes_of(&to).map_or(0, |bytes| bytes.len());
        let packet = [&to.as_receiver(), &data[receiver..]].concat().into();
        self.0.push_back(SwimOutput::Send(to.addr, packet));
    }

    fn submit_after(&mut self, event: foca::Timer<Member>, after: Duration) {
        self.0.push_back(SwimOutput::Timer(after, SwimTimer(event)));
    }
}

/// The failure detector of one node.
pub(crate) struct Membership {
    foca: Foca<Member, Codec, StdRng, NoCustomBroadcast>,
    runtime: Runtime,
    config: CheckedConfig,
    sized_for: usize,
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("me", self.foca.identity())
            .field("members", &self.foca.num_members())
            .finish_non_exhaustive()
    }
}

impl Membership {
    pub(crate) fn new(me: Member, config: CheckedConfig, rng: StdRng) -> Self {
        let foca = Foca::new(me, foca_config(&config, 1), rng, Codec);
        Self {
            foca,
            runtime: Runtime::default(),
            config,
            sized_for: 1,
        }
    }

    /// This node as others know it; its epoch rises when it was declared down.
    pub(crate) fn me(&self) -> &Member {
        self.foca.identity()
    }

    pub(crate) fn handle_packet(&mut self, packet: &[u8]) -> Result<(), SwimError> {
        let Some((receiver, rest)) = packet.split_first_chunk::<RECEIVER_BYTES>() else {
            return Err(SwimError(foca::Error::MalformedPacket));
        };
        let Some(me) = self.called(*receiver) else {
            return Ok(());
        };
        let me = Codec::bytes_of(&me).expect("a member can be encoded");
        let packet = [&me, rest].concat();
        let result = self.foca.handle_data(&packet, &mut self.runtime);
        let connected = self.connect();
        self.resize();
        result.and(connected).map_err(SwimError)
    }

    /// Lets it probe on after it has gone on under another identity. `foca` stops its timers then, and starts them with the
    /// next packet of a member that is up, which never comes when all of them have forgotten this node.
    fn connect(&mut self) -> Result<(), foca::Error> {
        let nothing = std::iter::empty();
        self.foca.apply_many(nothing, false, &mut self.runtime)
    }

    pub(crate) fn handle_timer(&mut self, timer: SwimTimer) -> Result<(), SwimError> {
        let result = self.foca.handle_timer(timer.0, &mut self.runtime);
        self.resize();
        result.map_err(SwimError)
    }

    /// Calls a member that may be down, in case it is back.
    pub(crate) fn call(&mut self, member: Member) -> Result<(), SwimError> {
        self.foca
            .announce(member, &mut self.runtime)
            .map_err(SwimError)
    }

    /// Declares a member down that another source says has left.
    pub(crate) fn declare_down(&mut self, member: Member) -> Result<(), SwimError> {
        self.foca
            .apply_many(
                std::iter::once(foca::Member::down(member)),
                true,
                &mut self.runtime,
            )
            .map_err(SwimError)
    }

    /// Returns the members that are held for suspect, with their incarnation.
    pub(crate) fn suspects(&self) -> Vec<(Member, u16)> {
        let all = self.foca.iter_membership_state();
        all.filter(|known| known.state() == foca::State::Suspect)
            .map(|known| (known.id().clone(), known.incarnation()))
            .collect()
    }

    /// Suspects a member beyond the incarnation at which it is suspected, which is news to everybody and to itself.
    pub(crate) fn suspect_again(
        &mut self,
        member: Member,
        incarnation: u16,
    ) -> Result<(), SwimError> {
        let beyond = incarnation.saturating_add(1);
        let suspect = foca::Member::new(member, beyond, foca::State::Suspect);
        self.foca
            .apply_many(std::iter::once(suspect), true, &mut self.runtime)
            .map_err(SwimError)
    }

    /// How long a suspect has to refute, in a cluster of this size.
    pub(crate) fn suspicion(&self) -> Duration {
        suspicion(&self.config, self.sized_for)
    }

    /// Goes on under another generation.
    pub(crate) fn become_member(&mut self, me: Member) -> Result<(), SwimError> {
        let changed = self.foca.change_identity(me, &mut self.runtime);
        changed.and_then(|()| self.connect()).map_err(SwimError)
    }

    /// This node by a short name, perhaps in some other run; `None` when another node is meant.
    fn called(&self, receiver: [u8; RECEIVER_BYTES]) -> Option<Member> {
        let me = self.foca.identity();
        let mine = me.as_receiver();
        if receiver == mine {
            return Some(me.clone());
        }
        let of_node = ..RECEIVER_BYTES / 2;
        let is_node = receiver[of_node] == mine[of_node];
        // No run has generation zero: only what is said to any run of the node will be taken.
        is_node.then(|| Member {
            generation: Generation(0),
            ..me.clone()
        })
    }

    /// Returns who claims to have sent a packet, and what it is in a probe.
    pub(crate) fn turn(packet: &[u8]) -> Option<(Member, Turn)> {
        type Head = (Member, foca::Incarnation, foca::Message<Member>);
        let (sender, _, message): Head = Codec::decode(packet.get(RECEIVER_BYTES..)?).ok()?;
        let turn = match message {
            foca::Message::Ping(number) => Turn::Ping(number),
            foca::Message::Ack(number) => Turn::Ack(number),
            foca::Message::PingReq { .. }
            | foca::Message::IndirectPing { .. }
            | foca::Message::IndirectAck { .. }
            | foca::Message::ForwardedAck { .. }
            | foca::Message::Announce
            | foca::Message::Feed
            | foca::Message::Gossip
            | foca::Message::Broadcast
            | foca::Message::TurnUndead => Turn::Other,
        };
        Some((sender, turn))
    }

    /// Returns what is known of every member beside whether it is up.
    pub(crate) fn detected(&self) -> BTreeMap<NodeId, Detected> {
        let members = self.foca.iter_membership_state();
        members
            .map(|known| {
                let detected = Detected {
                    generation: known.id().generation,
                    incarnation: known.incarnation(),
                    is_suspect: known.state() == foca::State::Suspect,
                };
                (known.id().node.clone(), detected)
            })
            .collect()
    }

    /// Decodes a member of a push-pull.
    pub(crate) fn member(bytes: &Bytes) -> Option<Member> {
        let member: foca::Member<Member> = Codec::decode(bytes.as_ref()).ok()?;
        Some(member.id().clone())
    }

    /// Tells some members that this node goes.
    pub(crate) fn leave(&mut self) -> Result<(), SwimError> {
        self.foca
            .leave_cluster(&mut self.runtime)
            .map_err(SwimError)
    }

    /// Whether this very member is up.
    pub(crate) fn is_active(&self, member: &Member) -> bool {
        self.foca.iter_members().any(|known| known.id() == member)
    }

    /// Encodes this node, and then others as live members, for a push-pull.
    pub(crate) fn export<'a>(&'a self, others: impl Iterator<Item = &'a Member>) -> Vec<Bytes> {
        let me = self.foca.identity();
        let others = others.filter(|member| member.node != me.node);
        std::iter::once(me)
            .chain(others)
            .filter_map(|member| {
                let mut bytes = Vec::new();
                Codec::encode(&foca::Member::alive(member.clone()), &mut bytes).ok()?;
                Some(bytes.into())
            })
            .collect()
    }

    /// Takes the members of a push-pull but for those known already; what is news is gossiped on.
    ///
    /// `foca` looks through all its members for each it is told, so it is told no more than it has to.
    pub(crate) fn import(
        &mut self,
        members: &[Bytes],
        is_known: impl Fn(&Member) -> bool,
    ) -> Result<Imported, SwimError> {
        let mut malformed = 0;
        let decoded: Vec<foca::Member<Member>> = members
            .iter()
            .filter_map(|bytes| match Codec::decode(bytes.as_ref()) {
                Ok(member) => Some(member),
                Err(_) => {
                    malformed += 1;
                    None
                }
            })
            // A third party's word that somebody is down is left to gossip, where the node itself can refute it.
            .filter(|member: &foca::Member<Member>| member.state() != foca::State::Down)
            .collect();
        let me = self.foca.identity();
        let is_claim = |member: &&Member| {
            member.node == me.node && member.addr != me.addr && member.win_addr_conflict(me)
        };
        let claim = decoded.iter().map(foca::Member::id).find(is_claim).cloned();
        let is_news_to_others = self.foca.num_members() > 0;
        let news = decoded.into_iter().filter(|member| !is_known(member.id()));
        let result = self
            .foca
            .apply_many(news, is_news_to_others, &mut self.runtime);
        self.resize();
        result.map_err(SwimError)?;
        Ok(Imported { malformed, claim })
    }

    /// Returns the next thing to do, oldest first.
    pub(crate) fn poll_output(&mut self) -> Option<SwimOutput> {
        self.runtime.0.pop_front()
    }

    /// Re-derives what depends on the cluster's size when that has changed by an eighth.
    fn resize(&mut self) {
        let members = self.foca.num_members() + 1;
        if members.abs_diff(self.sized_for) * 8 <= self.sized_for {
            return;
        }
        self.sized_for = members;
        let config = foca_config(&self.config, members);
        self.foca
            .set_config(config)
            .expect("only transmissions and suspicion differ");
    }
}

fn foca_config(config: &CheckedConfig, members: usize) -> foca::Config {
    let (mut transmissions, mut left) = (4_u8, members);
    while left > 0 {
        transmissions += 4;
        left /= 10;
    }
    foca::Config {
        probe_period: config.probe_period,
        probe_rtt: config.probe_timeout,
        num_indirect_probes: config.probe_helpers,
        max_transmissions: NonZeroU8::new(transmissions).expect("at least 4"),
        suspect_to_down_after: suspicion(config, members),
        remove_down_after: Some(config.node_reap_interval),
        // One byte says that the packet is the failure detector's.
        max_packet_size: (config.datagram_bytes_max - DATAGRAM_OVERHEAD - 1)
            .try_into()
            .expect("a checked configuration leaves room"),
        notify_down_members: true,
        periodic_announce: Some(PeriodicParams {
            frequency: Duration::from_secs(30),
            num_members: nonzero_one(),
        }),
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams {
            frequency: config.member_gossip_period,
            num_members: config.probe_helpers,
        }),
    }
}

/// How long a suspect has to refute: longer in a larger cluster, through which word takes longer.
fn suspicion(config: &CheckedConfig, members: usize) -> Duration {
    let members = u32::try_from(members).unwrap_or(u32::MAX);
    let decades = (f64::from(members) + 1.0).log10();
    config.suspicion.mul_f64(decades.max(1.0))
}

fn nonzero_one() -> std::num::NonZeroUsize {
    std::num::NonZeroUsize::MIN
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::config::Config;

    fn member(name: &str, generation: u64) -> Member {
        let (node, addr) = (
            NodeId::new(name).unwrap(),
            "127.0.0.1:7946".parse().unwrap(),
        );
        Member::new(node, addr, Generation(generation), 1)
    }

    fn membership(name: &str) -> Membership {
        let config = Config::lan().check().unwrap();
        Membership::new(member(name, 1), config, StdRng::seed_from_u64(1))
    }

    fn ups(membership: &mut Membership) -> Vec<Member> {
        std::iter::from_fn(|| membership.poll_output())
            .filter_map(|output| match output {
                SwimOutput::Up(member) => Some(member),
                SwimOutput::Renamed(_)
                | SwimOutput::Send(..)
                | SwimOutput::Timer(..)
                | SwimOutput::Down(_) => None,
            })
            .collect()
    }

    #[test]
    fn members_survive_export_and_import() {
        let (a, mut b) = (membership("a"), membership("b"));
        assert_eq!(
            b.import(&a.export(std::iter::empty()), |_| false)
                .unwrap()
                .malformed,
            0
        );
        assert_eq!(ups(&mut b), [member("a", 1)]);
    }

    #[test]
    fn a_later_run_replaces_the_earlier_one() {
        let mut b = membership("b");
        b.import(&membership("a").export(std::iter::empty()), |_| false)
            .unwrap();
        ups(&mut b);
        let config = Config::lan().check().unwrap();
        let later = Membership::new(member("a", 2), config, StdRng::seed_from_u64(2));
        b.import(&later.export(std::iter::empty()), |_| false)
            .unwrap();
        assert!(b.is_active(&member("a", 2)));
        b.import(&membership("a").export(std::iter::empty()), |_| false)
            .unwrap();
        assert!(!b.is_active(&member("a", 1)));
    }

    #[test]
    fn a_packet_for_another_node_or_an_earlier_run_is_not_answered() {
        let (mut a, mut b) = (membership("a"), membership("b"));
        let sent = |a: &mut Membership, to: Member| {
            a.call(to).unwrap();
            let outputs = std::iter::from_fn(|| a.poll_output());
            let mut packets = outputs.filter_map(|output| match output {
                SwimOutput::Send(_, packet) => Some(packet),
                SwimOutput::Up(_)
                | SwimOutput::Renamed(_)
                | SwimOutput::Timer(..)
                | SwimOutput::Down(_) => None,
            });
            packets.next().unwrap()
        };
        let to_other = sent(&mut a, member("c", 1));
        b.handle_packet(&to_other).unwrap();
        assert_eq!(ups(&mut b), []);
        // A call is for any run of the node.
        let to_earlier = sent(&mut a, member("b", 7));
        let sender = Membership::turn(&to_earlier).map(|(sender, _)| sender);
        assert_eq!(sender, Some(member("a", 1)));
        b.handle_packet(&to_earlier).unwrap();
        assert_eq!(ups(&mut b), [member("a", 1)]);
    }

    #[test]
    fn hostile_packets_are_errors() {
        let mut a = membership("a");
        let noise = [&a.me().as_receiver()[..], &[0xff; 300]].concat();
        assert!(a.handle_packet(&noise).is_err());
        assert!(a.handle_packet(&noise[..7]).is_err());
        let imported = a
            .import(&[Bytes::from_static(b"\xff\xff")], |_| false)
            .unwrap();
        assert_eq!(imported.malformed, 1);
    }

    #[test]
    fn transmissions_and_suspicion_grow_with_the_cluster() {
        let config = Config::lan().check().unwrap();
        let small = foca_config(&config, 5);
        let large = foca_config(&config, 1_000);
        assert!(large.max_transmissions > small.max_transmissions);
        assert_eq!(small.suspect_to_down_after, config.suspicion);
        assert!(large.suspect_to_down_after > 2 * config.suspicion);
        // The logarithm is of one more.
        let ninety_nine = foca_config(&config, 99).suspect_to_down_after;
        assert_eq!(ninety_nine, 2 * config.suspicion);
    }

    #[test]
    fn a_packet_of_the_largest_size_fits_a_datagram() {
        let config = Config::lan().check().unwrap();
        let bytes = foca_config(&config, 5).max_packet_size.get();
        assert_eq!(bytes + 1 + DATAGRAM_OVERHEAD, config.datagram_bytes_max);
    }

    #[test]
    fn the_configuration_follows_the_size_when_that_has_changed_by_more_than_an_eighth() {
        let mut a = membership("a");
        let mut sized_for = |members: std::ops::Range<u32>| {
            let config = Config::lan().check().unwrap();
            let others: Vec<Bytes> = members
                .flat_map(|number| {
                    let me = member(&format!("m{number}"), 1);
                    let rng = StdRng::seed_from_u64(1);
                    Membership::new(me, config.clone(), rng).export(std::iter::empty())
                })
                .collect();
            a.import(&others, |_| false).unwrap();
            a.sized_for
        };
        // This node counts too.
        assert_eq!(sized_for(0..1), 2);
        assert_eq!(sized_for(1..103), 104);
        assert_eq!(sized_for(103..116), 104);
        assert_eq!(sized_for(116..117), 118);
    }

    #[test]
    fn what_does_not_fit_a_packet_is_not_cut() {
        let value = member("a", 1);
        let bytes = Codec::bytes_of(&value).unwrap();
        let mut room = vec![0; bytes.len()];
        Codec::encode(&value, &mut room[..]).unwrap();
        assert_eq!(room, bytes);
        let short = &mut room[1..];
        assert!(matches!(
            Codec::encode(&value, short),
            Err(CodecError::Full)
        ));
    }

    #[test]
    fn members_differ_in_their_digest_by_everything_that_makes_one() {
        let one = member("a", 1);
        let others = [
            member("b", 1),
            member("a", 2),
            Member {
                epoch: 2,
                ..one.clone()
            },
            Member {
                addr: "127.0.0.1:1".parse().unwrap(),
                ..one.clone()
            },
        ];
        assert!(others.iter().all(|other| other.digest() != one.digest()));
        assert!(
            others
                .iter()
                .all(|other| other.as_receiver() != one.as_receiver())
        );
        assert!(
            others[1..]
                .iter()
                .all(|other| other.win_addr_conflict(&one) != one.win_addr_conflict(other))
        );
        assert!(!one.win_addr_conflict(&one));
    }

    #[test]
    fn a_member_that_goes_on_in_another_run_has_a_higher_epoch() {
        let next = member("a", 1).in_run(Generation(3));
        assert_eq!((next.generation, next.epoch), (Generation(3), 2));
        assert_eq!(member("a", 1).renew().unwrap().epoch, 2);
    }

    /// What a member sends when some of its timers fire once.
    fn sent_by_timers(
        membership: &mut Membership,
        fires: impl Fn(&SwimTimer) -> bool,
    ) -> Vec<Bytes> {
        let outputs: Vec<SwimOutput> = std::iter::from_fn(|| membership.poll_output()).collect();
        for output in outputs {
            if let SwimOutput::Timer(_, timer) = output
                && fires(&timer)
            {
                membership.handle_timer(timer).unwrap();
            }
        }
        sent(membership)
    }

    fn sent(membership: &mut Membership) -> Vec<Bytes> {
        let outputs = std::iter::from_fn(|| membership.poll_output());
        let packets = outputs.filter_map(|output| match output {
            SwimOutput::Send(_, packet) => Some(packet),
            SwimOutput::Up(_)
            | SwimOutput::Renamed(_)
            | SwimOutput::Timer(..)
            | SwimOutput::Down(_) => None,
        });
        packets.collect()
    }

    fn names(packet: &Bytes, name: &str) -> bool {
        packet
            .windows(name.len())
            .any(|part| part == name.as_bytes())
    }

    #[test]
    fn a_member_that_was_imported_is_gossiped_to_those_known_before() {
        let mut a = membership("a");
        a.import(&membership("first").export(std::iter::empty()), |_| false)
            .unwrap();
        a.import(&membership("second").export(std::iter::empty()), |_| false)
            .unwrap();
        let packets = sent_by_timers(&mut a, |_| true);
        assert!(packets.iter().any(|packet| names(packet, "second")));
    }

    #[test]
    fn a_member_that_goes_says_so() {
        let mut a = membership("a");
        a.import(&membership("b").export(std::iter::empty()), |_| false)
            .unwrap();
        sent(&mut a);
        a.leave().unwrap();
        assert!(!sent(&mut a).is_empty());
    }

    #[test]
    fn a_member_that_is_told_it_was_down_probes_on() {
        let (mut a, mut b) = (membership("a"), membership("b"));
        a.import(&b.export(std::iter::empty()), |_| false).unwrap();
        b.import(&a.export(std::iter::empty()), |_| false).unwrap();
        b.declare_down(member("a", 1)).unwrap();
        sent(&mut b);
        for probe in sent_by_timers(&mut a, SwimTimer::is_probe) {
            b.handle_packet(&probe).unwrap();
        }
        for answer in sent(&mut b) {
            a.handle_packet(&answer).unwrap();
        }
        assert_eq!(a.me().epoch, 2, "it goes on under another identity");
        let probes = sent_by_timers(&mut a, SwimTimer::is_probe);
        assert!(!probes.is_empty(), "nobody else has said anything since");
    }

    #[test]
    fn a_suspicion_that_is_voiced_again_is_refuted_by_the_suspect() {
        let (mut a, mut b) = (membership("a"), membership("b"));
        a.import(&b.export(std::iter::empty()), |_| false).unwrap();
        b.import(&a.export(std::iter::empty()), |_| false).unwrap();
        a.suspect_again(member("b", 1), 0).unwrap();
        assert_eq!(a.suspects(), [(member("b", 1), 1)]);
        for _ in 0..2 {
            for packet in sent_by_timers(&mut a, |timer| !timer.is_probe()) {
                b.handle_packet(&packet).unwrap();
            }
            for packet in sent(&mut b) {
                a.handle_packet(&packet).unwrap();
            }
        }
        assert_eq!(a.suspects(), []);
    }

    #[test]
    fn a_probe_of_an_earlier_run_is_not_answered() {
        let config = Config::lan().check().unwrap();
        let run = |generation| {
            Membership::new(
                member("b", generation),
                config.clone(),
                StdRng::seed_from_u64(2),
            )
        };
        let (earlier, mut later) = (run(1), run(2));
        let mut a = membership("a");
        a.import(&earlier.export(std::iter::empty()), |_| false)
            .unwrap();
        later
            .import(&a.export(std::iter::empty()), |_| false)
            .unwrap();
        sent(&mut later);
        let probes = sent_by_timers(&mut a, SwimTimer::is_probe);
        assert!(!probes.is_empty());
        for probe in &probes {
            later.handle_packet(probe).unwrap();
        }
        assert!(sent(&mut later).is_empty());
        let mut same = run(1);
        same.import(&a.export(std::iter::empty()), |_| false)
            .unwrap();
        sent(&mut same);
        for probe in &probes {
            same.handle_packet(probe).unwrap();
        }
        assert!(
            !sent(&mut same).is_empty(),
            "the run that was meant answers"
        );
    }
}
