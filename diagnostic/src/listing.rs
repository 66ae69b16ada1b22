//! A large table, shown a part at a time, so that a reply takes no more memory than one part.
//!
//! Writers go on while it is shown. Every entry that stays is shown once. The number of entries comes first, so it is that of
//! the moment at which the reply begins; entries that come or go before their turn are shown or not.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::Frame;
use networkdb::node::TableHandle;

use crate::json::Writer;
use crate::reply::{Format, entry_line, entry_members};

/// Bytes of a part; one entry more when it is large.
const PART_BYTES: usize = 64 << 10;

/// The entries of a table that are still to be shown.
#[derive(Debug)]
pub(crate) struct Listing {
    table: TableHandle,
    format: Format,
    entries: usize,
    shown: usize,
    /// Where the walk goes on.
    position: Option<u64>,
    /// JSON as far as it is written.
    writer: Writer,
    stage: Stage,
    /// A part that was made before the reply began.
    first: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Head,
    Entries,
    End,
}

impl Listing {
    /// Shows a table of so many entries.
    pub(crate) fn new(table: TableHandle, entries: usize, format: Format) -> Self {
        Self {
            table,
            format,
            entries,
            shown: 0,
            position: Some(0),
            writer: Writer::new(format.is_pretty),
            stage: Stage::Head,
            first: None,
        }
    }

    /// Puts a part back that was looked at.
    pub(crate) fn after(self, first: Bytes) -> Self {
        let first = Some(first);
        Self { first, ..self }
    }

    /// Makes the next part; `None` after the last.
    pub(crate) fn next_part(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let part = if self.format.is_json {
            self.json_part()
        } else {
            self.text_part()
        };
        part.map(Bytes::from)
    }

    fn text_part(&mut self) -> Option<Vec<u8>> {
        let mut part = Vec::new();
        if self.stage == Stage::Head {
            part.extend(format!("OK\ntotal entries: {}\n", self.entries).into_bytes());
            self.stage = Stage::Entries;
        }
        let format = self.format;
        while part.len() < PART_BYTES && self.position.is_some() {
            self.step(|shown, key, value, owner| {
                entry_line(&mut part, shown, key, value, owner, format);
            });
        }
        Some(part).filter(|part| !part.is_empty())
    }

    fn json_part(&mut self) -> Option<Vec<u8>> {
        if self.stage == Stage::End {
            return None;
        }
        let mut writer = std::mem::replace(&mut self.writer, Writer::new(false));
        if self.stage == Stage::Head {
            writer.open(b'{');
            writer.member("message").string(b"OK");
            writer.member("details").open(b'{');
            let size = i64::try_from(self.entries).unwrap_or(i64::MAX);
            writer.member("size").number(size);
            writer.member("entries").open(b'[');
            self.stage = Stage::Entries;
        }
        let format = self.format;
        while writer.len() < PART_BYTES && self.position.is_some() {
            self.step(|_, key, value, owner| {
                writer.element().object(|writer| {
                    entry_members(writer, key, value, owner, format);
                });
            });
        }
        if self.position.is_none() {
            for bracket in [b']', b'}', b'}'] {
                writer.close(bracket);
            }
            self.stage = Stage::End;
        }
        let part = writer.take_text();
        self.writer = writer;
        Some(part)
    }

    /// Shows the entries of one bucket of the table.
    fn step(&mut self, mut show: impl FnMut(usize, &str, &[u8], &str)) {
        let Some(position) = self.position else {
            return;
        };
        let shown = &mut self.shown;
        self.position = self.table.walk_from(position, |key, value, owner| {
            show(*shown, key, value, owner.as_str());
            *shown += 1;
        });
    }
}

impl HttpBody for Listing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.get_mut().next_part();
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }
}
