//! A netlink socket of one network namespace: batches of requests, and dumps.
//!
//! The kernel handles a request while it is sent (`rtnetlink_rcv` in net/core/rtnetlink.c, `genl_rcv` in
//! net/netlink/genetlink.c), so an answer is there as soon as the send returns. Of a batch only the last request asks for an answer; of the others, those that fail get one all
//! the same, and its sequence number tells which.

use std::fmt;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, recv, sockopt};

/// Bytes of requests per send: some three hundred rows. The cost per row does not fall beyond that.
const BATCH_BYTES: usize = 32 * 1_024;

/// Room for one message of the kernel, which are at most 32 KiB (`netlink_dump` in net/netlink/af_netlink.c).
const RECEIVE_BYTES: usize = 64 * 1_024;

/// Buffers of the socket, in bytes; what comes with a failure of each request of a batch has room.
const BUFFER_BYTES: usize = 4 * 1_024 * 1_024;

/// How long an answer may take that should be there already.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How often a dump is repeated because the kernel's tables changed under it.
const DUMPS_MAX: usize = 10;

/// Bytes of a message's header (`struct nlmsghdr` in linux/netlink.h).
const HEADER: usize = 16;

/// Where the flags of a message are in its header.
const FLAGS: usize = 6;

/// Bytes of what an answer has before its attributes: an error number and the request's header (`struct nlmsgerr`).
const ERROR_HEADER: usize = 4 + HEADER;

/// The attribute of an answer that says in words what is wrong (`NLMSGERR_ATTR_MSG`).
const ERROR_TEXT: u16 = 1;

/// One request.
#[derive(Debug)]
pub(super) struct Request<M = RouteNetlinkMessage> {
    /// What is asked.
    pub(super) message: M,
    /// `NLM_F_CREATE` and the like.
    pub(super) flags: u16,
    /// Errors that mean that it is so already.
    pub(super) forgives: &'static [Errno],
}

/// The kernel said no.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// The kernel's error number; 0 when it is none of the kernel's.
    pub(super) errno: i32,
    /// What it said beyond the number.
    text: Option<String>,
}

impl Refusal {
    /// Makes one of this side's own.
    pub(super) fn own(text: &str) -> Self {
        Self {
            errno: 0,
            text: Some(text.to_owned()),
        }
    }

    /// Tells whether it is this error.
    pub(super) fn is(&self, errno: Errno) -> bool {
        self.errno == errno.raw_os_error()
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or_default();
        let text = (errno == 0).then(|| error.to_string());
        Self { errno, text }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self {
            errno: errno.raw_os_error(),
            text: None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.text, self.errno) {
            (Some(text), 0) => f.write_str(text),
            (Some(text), errno) => write!(f, "{text} ({})", io::Error::from_raw_os_error(errno)),
            (None, errno) => write!(f, "{}", io::Error::from_raw_os_error(errno)),
        }
    }
}

/// A socket for requests. It belongs for good to the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
}

impl Socket {
    /// Opens one for devices, addresses and rows in the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        Self::open_for(NETLINK_ROUTE)
    }

    /// Opens one for generic netlink in the namespace of the calling thread.
    pub(super) fn open_generic() -> io::Result<Self> {
        Self::open_for(NETLINK_GENERIC)
    }

    fn open_for(protocol: isize) -> io::Result<Self> {
        let inner = netlink_sys::Socket::new(protocol)?;
        inner.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        // Answers hold the kernel's words and no copy of the request.
        inner.set_ext_ack(true)?;
        inner.set_cap_ack(true)?;
        // Without it the kernel ignores which device a dump is about.
        inner.set_netlink_get_strict_chk(true)?;
        enlarge(&inner)?;
        set_socket_timeout(&inner, Timeout::Recv, Some(ANSWER_MAX))?;
        Ok(Self {
            inner,
            sequence: 0,
            outgoing: Vec::with_capacity(2 * BATCH_BYTES),
            incoming: vec![0; RECEIVE_BYTES],
        })
    }

    /// Makes one request.
    pub(super) fn request(&mut self, request: Request) -> Result<(), Refusal> {
        let mut refusal = None;
        self.batch([request], |_, found| refusal = Some(found));
        refusal.map_or(Ok(()), Err)
    }

    /// Makes requests in their order, each whether or not one before it was refused, and tells which were.
    pub(super) fn batch<M: NetlinkSerializable>(
        &mut self,
        requests: impl IntoIterator<Item = Request<M>>,
        mut refused: impl FnMut(usize, Refusal),
    ) {
        let mut requests = requests.into_iter();
        let mut done = 0;
        loop {
            self.outgoing.clear();
            let first = self.sequence;
            let mut sent = Vec::new();
            let mut last = 0;
            while self.outgoing.len() < BATCH_BYTES
                && let Some(request) = requests.next()
            {
                last = self.outgoing.len();
                self.push(request.message, request.flags);
                sent.push(Some(request.forgives));
            }
            if sent.is_empty() {
                return;
            }
            self.ask_for_answer(last);
            let outcome = self.send().and_then(|()| {
                self.read_answers(first, &mut sent, |at, found| refused(done + at, found))
            });
            if let Err(error) = outcome {
                // Nobody knows of these whether they are done.
                let unanswered = (0..).zip(&sent).filter(|(_, sent)| sent.is_some());
                for (at, _) in unanswered {
                    refused(done + at, error.clone());
                }
            }
            done += sent.len();
        }
    }

    /// Reads a whole table. What `parse` returns none for is left out; it is given the type and the payload of a message.
    pub(super) fn dump<T>(
        &mut self,
        message: impl NetlinkSerializable,
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Refusal> {
        self.outgoing.clear();
        self.push(message, NLM_F_DUMP);
        for _ in 0..DUMPS_MAX {
            let sequence = self.sequence.wrapping_sub(1);
            self.send()?;
            if let Some(rows) = self.read_dump(sequence, &parse)? {
                return Ok(rows);
            }
        }
        Err(Refusal::own("it changes faster than it can be read"))
    }

    /// Asks for one object, and returns what `parse` makes of it.
    pub(super) fn get<T>(
        &mut self,
        message: impl NetlinkSerializable,
        parse: impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        self.outgoing.clear();
        self.push(message, NLM_F_ACK);
        let sequence = self.sequence.wrapping_sub(1);
        self.send()?;
        let mut found = None;
        loop {
            let received = self.receive()?;
            for frame in Frames(&self.incoming[..received]) {
                match frame.kind {
                    _ if frame.sequence != sequence => {}
                    NLMSG_ERROR => return refusal_of(frame.payload).map_or(Ok(found), Err),
                    kind => found = found.or(parse(kind, frame.payload)),
                }
            }
        }
    }

    /// Writes a request behind those that wait to be sent.
    fn push<M: NetlinkSerializable>(&mut self, message: M, flags: u16) {
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = self.outgoing.len();
        // Messages begin at multiples of four bytes (NLMSG_ALIGN).
        let bytes = message.buffer_len().next_multiple_of(4);
        self.outgoing.resize(start + bytes, 0);
        message.serialize(&mut self.outgoing[start..]);
    }

    /// Sets `NLM_F_ACK` in the request that begins here.
    fn ask_for_answer(&mut self, start: usize) {
        let flags = &mut self.outgoing[start + FLAGS..start + FLAGS + 2];
        let set = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
        flags.copy_from_slice(&set.to_ne_bytes());
    }

    fn send(&self) -> Result<(), Refusal> {
        // A datagram is sent as a whole or not at all.
        self.inner.send(&self.outgoing, 0)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<usize, Refusal> {
        receive_into(&self.inner, &mut self.incoming)
    }

    /// Reads answers until that of the last request is there; answered ones become none.
    fn read_answers(
        &mut self,
        first: u32,
        sent: &mut [Option<&'static [Errno]>],
        mut refused: impl FnMut(usize, Refusal),
    ) -> Result<(), Refusal> {
        let last = sent.len() - 1;
        loop {
            let received = self.receive()?;
            for frame in Frames(&self.incoming[..received]) {
                // What an earlier request left behind is out of range.
                let at = usize::try_from(frame.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if frame.kind != NLMSG_ERROR {
                    continue;
                }
                let Some(forgives) = sent.get_mut(at).and_then(Option::take) else {
                    continue;
                };
                if let Some(refusal) = refusal_of(frame.payload)
                    && !forgives.iter().any(|errno| refusal.is(*errno))
                {
                    refused(at, refusal);
                }
                if at == last {
                    return Ok(());
                }
            }
        }
    }

    /// Reads a dump; none when the table changed meanwhile, so that rows may lack or be there twice.
    fn read_dump<T>(
        &mut self,
        sequence: u32,
        parse: &impl Fn(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Refusal> {
        let mut rows = Vec::new();
        let mut is_whole = true;
        loop {
            let received = self.receive()?;
            for frame in Frames(&self.incoming[..received]) {
                if frame.sequence != sequence {
                    continue;
                }
                is_whole &= frame.flags & NLM_F_DUMP_INTR == 0;
                match frame.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let outcome = refusal_of(frame.payload).map_or(Ok(()), Err);
                        return outcome.map(|()| is_whole.then_some(rows));
                    }
                    kind => rows.extend(parse(kind, frame.payload)),
                }
            }
        }
    }
}

/// Receives one message of the kernel, which holds several of the protocol's, and returns its length.
pub(super) fn receive_into(
    socket: &netlink_sys::Socket,
    buffer: &mut [u8],
) -> Result<usize, Refusal> {
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::TRUNC) {
            Ok((_, bytes)) if bytes > buffer.len() => {
                return Err(Refusal::own("an answer is too long"));
            }
            Ok((_, bytes)) => return Ok(bytes),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Gives a socket large buffers: beyond the system's limit if the process may, else up to it.
pub(super) fn enlarge(socket: &netlink_sys::Socket) -> io::Result<()> {
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(socket, BUFFER_BYTES)?;
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        sockopt::set_socket_send_buffer_size(socket, BUFFER_BYTES)?;
    }
    Ok(())
}

/// Reads the outcome of an answer or of the end of a dump; none if it is success.
pub(super) fn refusal_of(payload: &[u8]) -> Option<Refusal> {
    let code = payload.first_chunk().copied().map(i32::from_ne_bytes)?;
    if code == 0 {
        return None;
    }
    let attributes = payload.get(ERROR_HEADER..).unwrap_or_default();
    let text = Attributes(attributes).find(|(kind, _)| *kind == ERROR_TEXT);
    Some(Refusal {
        errno: code.saturating_neg(),
        text: text.and_then(|(_, value)| text_of(value)),
    })
}

/// Reads a text that ends with a zero.
pub(super) fn text_of(value: &[u8]) -> Option<String> {
    let text = value.strip_suffix(&[0]).unwrap_or(value);
    String::from_utf8(text.to_vec()).ok()
}

/// One message of the protocol.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// Its type.
    pub(super) kind: u16,
    /// Its flags.
    flags: u16,
    /// Which request it belongs to.
    pub(super) sequence: u32,
    /// What comes behind the header.
    pub(super) payload: &'a [u8],
}

/// Splits what was received into messages; stops at the first that is none.
#[derive(Debug)]
pub(super) struct Frames<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        let header: &[u8; HEADER] = self.0.first_chunk()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).ok()?;
        let payload = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Frame {
            kind: u16::from_ne_bytes([e, f]),
            flags: u16::from_ne_bytes([g, h]),
            sequence: u32::from_ne_bytes([i, j, k, l]),
            payload,
        })
    }
}

/// Splits attributes into types and values; stops at the first that is none. They are read by hand as only a few matter,
/// and what newer kernels add must not spoil those.
#[derive(Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let [a, b, c, d] = *self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two highest bits are flags (NLA_TYPE_MASK).
        Some((u16::from_ne_bytes([c, d]) & 0x3fff, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_frames_stop_at_what_is_none() {
        let attributes = [5, 0, 3, 0x80, 7, 0, 0, 0, 6, 0, 4, 0, 1, 2];
        let read: Vec<_> = Attributes(&attributes).collect();
        assert_eq!(read, [(3, &[7][..]), (4, &[1, 2][..])]);
        for bad in [&[3, 0, 0, 0][..], &[9, 0, 0, 0, 0], &[4, 0, 0], &[]] {
            assert_eq!(Attributes(bad).count(), 0, "{bad:?}");
        }
        let mut frames = vec![20, 0, 0, 0, 2, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
        frames.extend_from_slice(&[99, 0, 0, 0, 2, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        let read: Vec<_> = Frames(&frames).collect();
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].kind, read[0].flags, read[0].sequence), (2, 1, 9));
        assert_eq!(read[0].payload, [1, 2, 3, 4]);
    }

    #[test]
    fn refusal_says_what_the_kernel_said() {
        let mut payload = (-17_i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        assert!(refusal_of(&payload).unwrap().is(Errno::EXIST));
        payload.extend([8, 0, 1, 0, b'n', b'o', b'!', 0]);
        let text = refusal_of(&payload).unwrap().to_string();
        assert!(text.starts_with("no! (File exists"), "{text}");
        assert!(refusal_of(&[0; 20]).is_none());
    }
}
