//! What an endpoint answers, and how each answer looks as text and as JSON.
//!
//! The two forms and the type of the content are those of Docker's server, down to the byte. Text has the type of binary
//! data as soon as its beginning holds a control byte, which happens when raw values are shown.

use std::io::Write;

use bytes::Bytes;
use hyper::header::HeaderValue;
use networkdb::node::{Entry, NetworkDb, Peer};
use networkdb::{Key, NetworkId, TableName};

use crate::body::Body;
use crate::failure::Failure;
use crate::json::Writer;
use crate::listing::Listing;
use crate::value;

static TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
static BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");
static JSON: HeaderValue = HeaderValue::from_static("application/json");

/// How much of a text decides whether it is binary.
const SNIFFED_BYTES: usize = 512;

/// How a client wants its reply.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Format {
    /// JSON instead of text.
    pub(crate) is_json: bool,
    /// Indented JSON.
    pub(crate) is_pretty: bool,
    /// Values as they are instead of in base64.
    pub(crate) is_raw: bool,
}

/// The answer of an endpoint.
#[derive(Clone, Debug)]
pub struct Reply(Answer);

#[derive(Clone, Debug)]
enum Answer {
    Done,
    Info(String),
    Failed(Failure),
    Missing {
        usage: String,
    },
    Unknown {
        path: Vec<u8>,
    },
    Peers(Vec<Peer>),
    Entry {
        key: Key,
        value: Bytes,
    },
    Table(Vec<Entry>),
    LargeTable {
        db: NetworkDb,
        network: NetworkId,
        table: TableName,
        entries: usize,
    },
    Counts {
        entries: i64,
        queue: i64,
    },
    Text(Vec<u8>),
}

/// A reply in the form the client asked for.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) content_type: &'static HeaderValue,
    pub(crate) body: Body,
}

impl Reply {
    /// `OK` and nothing else.
    #[must_use]
    pub fn done() -> Self {
        Self(Answer::Done)
    }

    /// `OK` and a text.
    pub fn info(text: impl Into<String>) -> Self {
        Self(Answer::Info(text.into()))
    }

    /// A text without anything before it, also when JSON was asked for.
    pub fn text(text: impl Into<Vec<u8>>) -> Self {
        Self(Answer::Text(text.into()))
    }

    /// `FAIL` and the reason.
    pub(crate) fn failed(failure: Failure) -> Self {
        Self(Answer::Failed(failure))
    }

    /// A parameter is missing; `usage` is the path with all of them.
    pub(crate) fn missing(usage: String) -> Self {
        Self(Answer::Missing { usage })
    }

    /// No endpoint has this path.
    pub(crate) fn unknown(path: Vec<u8>) -> Self {
        Self(Answer::Unknown { path })
    }

    /// A list of nodes.
    pub(crate) fn peers(peers: Vec<Peer>) -> Self {
        Self(Answer::Peers(peers))
    }

    /// One entry. The owner is not shown, because the original never shows it here.
    pub(crate) fn entry(entry: Entry) -> Self {
        let Entry { key, value, .. } = entry;
        Self(Answer::Entry { key, value })
    }

    /// A list of entries with their owners.
    pub(crate) fn table(entries: Vec<Entry>) -> Self {
        Self(Answer::Table(entries))
    }

    /// A list of so many entries with their owners that is read while it is sent.
    pub(crate) fn large_table(
        db: NetworkDb,
        network: NetworkId,
        table: TableName,
        entries: usize,
    ) -> Self {
        Self(Answer::LargeTable {
            db,
            network,
            table,
            entries,
        })
    }

    /// The counters of a network, both -1 when it is unknown.
    pub(crate) fn counts(entries: i64, queue: i64) -> Self {
        Self(Answer::Counts { entries, queue })
    }

    /// Returns the first words of the reply.
    pub(crate) fn message(&self) -> &'static str {
        match self.0 {
            Answer::Failed(_) => "FAIL",
            Answer::Missing { .. } => "missing parameter",
            Answer::Unknown { .. } => "not implemented",
            Answer::Done
            | Answer::Info(_)
            | Answer::Peers(_)
            | Answer::Entry { .. }
            | Answer::Table(_)
            | Answer::LargeTable { .. }
            | Answer::Counts { .. }
            | Answer::Text(_) => "OK",
        }
    }

    /// Writes the reply in a form.
    pub(crate) fn render(&self, format: Format) -> Rendered {
        if let Answer::Text(body) = &self.0 {
            return Rendered::text(body.clone());
        }
        if let Answer::LargeTable {
            db,
            network,
            table,
            entries,
        } = &self.0
        {
            let table = db.open_table(network, table);
            return Rendered::listing(Listing::new(table, *entries, format), format);
        }
        if !format.is_json {
            if let Answer::Done = self.0 {
                let body = Body::from(self.message());
                let content_type = &TEXT;
                return Rendered { content_type, body };
            }
            return Rendered::text(self.plain(format));
        }
        let mut writer = Writer::new(format.is_pretty);
        writer.object(|writer| {
            writer.member("message").string(self.message().as_bytes());
            self.details(writer.member("details"), format);
        });
        Rendered {
            content_type: &JSON,
            body: writer.into_text().into(),
        }
    }

    /// About how long the text is.
    fn bytes_usual(&self) -> usize {
        match &self.0 {
            // To the byte in base64, so that what is sent needs no second allocation.
            Answer::Entry { key, value } => 28 + key.as_str().len() + value.len().div_ceil(3) * 4,
            Answer::Done
            | Answer::Info(_)
            | Answer::Failed(_)
            | Answer::Missing { .. }
            | Answer::Unknown { .. }
            | Answer::Peers(_)
            | Answer::Table(_)
            | Answer::LargeTable { .. }
            | Answer::Counts { .. }
            | Answer::Text(_) => 256,
        }
    }

    fn plain(&self, format: Format) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.bytes_usual());
        body.extend_from_slice(self.message().as_bytes());
        body.push(b'\n');
        self.lines(&mut body, format)
            .expect("a vector takes every write");
        body
    }

    fn lines(&self, body: &mut Vec<u8>, format: Format) -> std::io::Result<()> {
        match &self.0 {
            Answer::Done | Answer::LargeTable { .. } => {}
            Answer::Info(text) => body.write_all(text.as_bytes())?,
            Answer::Failed(failure) => write!(body, "Error: {failure}")?,
            Answer::Missing { usage } => write!(body, "Usage: {usage}")?,
            Answer::Unknown { path } => {
                body.write_all(b"Usage: ")?;
                body.write_all(&unknown_path(path))?;
            }
            Answer::Peers(peers) => {
                writeln!(body, "total entries: {}", peers.len())?;
                for (index, peer) in peers.iter().enumerate() {
                    let ip = peer.addr.ip().to_canonical();
                    writeln!(body, "{index}) {} -> {ip}", peer.id)?;
                }
            }
            Answer::Entry { key, value } => entry_line(body, 0, key.as_str(), value, "", format),
            Answer::Table(entries) => {
                writeln!(body, "total entries: {}", entries.len())?;
                for (index, entry) in entries.iter().enumerate() {
                    let owner = entry.owner.as_str();
                    entry_line(body, index, entry.key.as_str(), &entry.value, owner, format);
                }
            }
            Answer::Counts { entries, queue } => {
                writeln!(body, "entries: {entries}, qlen: {queue}")?;
            }
            Answer::Text(text) => body.write_all(text)?,
        }
        Ok(())
    }

    fn details(&self, writer: &mut Writer, format: Format) {
        match &self.0 {
            Answer::Done | Answer::LargeTable { .. } => writer.null(),
            Answer::Info(text) => note(writer, "info", text.as_bytes()),
            Answer::Failed(failure) => note(writer, "error", failure.to_string().as_bytes()),
            Answer::Missing { usage } => note(writer, "usage", usage.as_bytes()),
            Answer::Unknown { path } => note(writer, "usage", &unknown_path(path)),
            Answer::Peers(peers) => sized(writer, peers, |writer, peer| {
                let ip = peer.addr.ip().to_canonical().to_string();
                // The name of this member is a slip of the original that clients depend on.
                let id = peer.id.as_str().as_bytes();
                writer.member("-=name").string(id);
                writer.member("ip").string(ip.as_bytes());
            }),
            Answer::Entry { key, value } => {
                writer.object(|writer| entry_members(writer, key.as_str(), value, "", format));
            }
            Answer::Table(entries) => sized(writer, entries, |writer, entry| {
                let owner = entry.owner.as_str();
                entry_members(writer, entry.key.as_str(), &entry.value, owner, format);
            }),
            Answer::Counts { entries, queue } => writer.object(|writer| {
                writer.member("entries").number(*entries);
                writer.member("QueueLen").number(*queue);
            }),
            Answer::Text(text) => writer.string(text),
        }
    }
}

impl Rendered {
    fn text(body: Vec<u8>) -> Self {
        let content_type = content_type(&body);
        let body = body.into();
        Self { content_type, body }
    }

    fn listing(mut listing: Listing, format: Format) -> Self {
        let first = listing.next_part().unwrap_or_default();
        let content_type = if format.is_json {
            &JSON
        } else {
            content_type(&first)
        };
        let body = axum::body::Body::new(listing.after(first));
        let body = Body::streamed(body);
        Self { content_type, body }
    }
}

/// Returns the type of a text by the rule of Go's sniffer for text that begins with none of its signatures, which the
/// first words of every reply see to.
fn content_type(text: &[u8]) -> &'static HeaderValue {
    let is_binary = |byte: u8| {
        byte <= 0x08
            || byte == 0x0b
            || (0x0e..=0x1a).contains(&byte)
            || (0x1c..=0x1f).contains(&byte)
    };
    let beginning = &text[..text.len().min(SNIFFED_BYTES)];
    // Not `any`: a look at all bytes that never stops is one at many of them at once.
    let is_any = |found, &byte: &u8| found | is_binary(byte);
    if beginning.iter().fold(false, is_any) {
        &BINARY
    } else {
        &TEXT
    }
}

fn unknown_path(path: &[u8]) -> Vec<u8> {
    [b"URL path: ", path, b" no method implemented check /help\n"].concat()
}

/// Writes the line of one entry.
pub(crate) fn entry_line(
    body: &mut Vec<u8>,
    index: usize,
    key: &str,
    value: &[u8],
    owner: &str,
    format: Format,
) {
    match index {
        // That of a single entry, for which the machinery of formats is a good part of the work.
        0 => body.push(b'0'),
        _ => write!(body, "{index}").expect("a vector takes every write"),
    }
    body.extend_from_slice(b") k:`");
    body.extend_from_slice(key.as_bytes());
    body.extend_from_slice(b"` -> v:`");
    if format.is_raw {
        body.extend_from_slice(value);
    } else {
        value::encode_to(value, body);
    }
    body.extend_from_slice(b"` owner:`");
    body.extend_from_slice(owner.as_bytes());
    body.extend_from_slice(b"`\n");
}

/// Writes an object with one text.
fn note(writer: &mut Writer, name: &str, text: &[u8]) {
    writer.object(|writer| writer.member(name).string(text));
}

/// Writes a list with its size; an empty list is `null`.
fn sized<T>(writer: &mut Writer, items: &[T], fill: impl Fn(&mut Writer, &T)) {
    let size = i64::try_from(items.len()).expect("a list in memory is shorter than 2^63");
    writer.object(|writer| {
        writer.member("size").number(size);
        let entries = writer.member("entries");
        if items.is_empty() {
            entries.null();
        } else {
            entries.list(items, |writer, item| {
                writer.object(|writer| fill(writer, item));
            });
        }
    });
}

/// Writes what an object says of one entry.
pub(crate) fn entry_members(
    writer: &mut Writer,
    key: &str,
    value: &[u8],
    owner: &str,
    format: Format,
) {
    writer.member("key").string(key.as_bytes());
    if format.is_raw {
        writer.member("value").string(value);
    } else {
        writer
            .member("value")
            .string(value::encode(value).as_bytes());
    }
    writer.member("owner").string(owner.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use axum::body::HttpBody as _;

    use super::*;

    /// Reads a body that never waits.
    fn whole(body: Body) -> Vec<u8> {
        let (mut body, mut bytes) = (pin!(body), Vec::new());
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut context) {
            bytes.extend(frame.unwrap().into_data().unwrap());
        }
        bytes
    }

    const PLAIN: Format = Format {
        is_json: false,
        is_pretty: false,
        is_raw: false,
    };
    const COMPACT: Format = Format {
        is_json: true,
        ..PLAIN
    };

    fn raw(value: &'static [u8]) -> Reply {
        Reply(Answer::Entry {
            key: Key::new("k").unwrap(),
            value: Bytes::from_static(value),
        })
    }

    fn text(reply: &Reply, format: Format) -> (&'static HeaderValue, Vec<u8>) {
        let Rendered { content_type, body } = reply.render(format);
        (content_type, whole(body))
    }

    #[test]
    fn control_bytes_make_a_text_binary() {
        for byte in 0..=u8::MAX {
            let binary = byte < 0x20 && ![b'\t', b'\n', 0x0c, b'\r', 0x1b].contains(&byte);
            let expected = if binary { &BINARY } else { &TEXT };
            assert_eq!(content_type(&[b'O', b'K', byte]), expected, "{byte:#x}");
        }
    }

    #[test]
    fn only_the_first_512_bytes_are_looked_at() {
        let mut body = vec![b'x'; 513];
        body[512] = 0;
        assert_eq!(content_type(&body), &TEXT);
        body[511] = 0;
        assert_eq!(content_type(&body), &BINARY);
    }

    #[test]
    fn raw_value_is_shown_byte_for_byte_and_escaped_in_json() {
        let reply = raw(b"\n\x02c1<nil>\xff");
        let format = Format {
            is_raw: true,
            ..PLAIN
        };
        let expected = b"OK\n0) k:`k` -> v:`\n\x02c1<nil>\xff` owner:``\n".to_vec();
        assert_eq!(text(&reply, format), (&BINARY, expected));
        let format = Format {
            is_json: true,
            ..format
        };
        let expected = br#"{"message":"OK","details":{"key":"k","value":"\n\u0002c1\u003cnil\u003e\ufffd","owner":""}}"#;
        assert_eq!(text(&reply, format), (&JSON, expected.to_vec()));
    }

    #[test]
    fn the_size_of_an_entry_in_base64_is_known() {
        for value in [&b""[..], b"v", b"va", b"val", b"value"] {
            let reply = raw(value);
            assert_eq!(reply.plain(PLAIN).len(), reply.bytes_usual());
        }
    }

    #[test]
    fn path_of_any_bytes_is_shown() {
        let reply = Reply::unknown(b"/\xff<".to_vec());
        let expected =
            b"not implemented\nUsage: URL path: /\xff< no method implemented check /help\n";
        assert_eq!(text(&reply, PLAIN), (&TEXT, expected.to_vec()));
        let expected = br#"{"message":"not implemented","details":{"usage":"URL path: /\ufffd\u003c no method implemented check /help\n"}}"#;
        assert_eq!(text(&reply, COMPACT), (&JSON, expected.to_vec()));
    }

    #[test]
    fn text_stays_text_when_json_is_asked_for() {
        assert_eq!(text(&Reply::text("a\n"), COMPACT), (&TEXT, b"a\n".to_vec()));
    }

    #[test]
    fn addresses_are_shown_without_port_and_mapping() {
        let peer = |addr: &str| Peer {
            id: networkdb::NodeId::new("n").unwrap(),
            addr: addr.parse().unwrap(),
        };
        let reply = Reply::peers(vec![
            peer("[::ffff:10.0.0.1]:7946"),
            peer("[2001:db8::1]:7946"),
        ]);
        let expected = b"OK\ntotal entries: 2\n0) n -> 10.0.0.1\n1) n -> 2001:db8::1\n".to_vec();
        assert_eq!(text(&reply, PLAIN), (&TEXT, expected));
    }
}
