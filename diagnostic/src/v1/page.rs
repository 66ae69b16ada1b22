//! The endpoint that lists the entries of a table, page by page.
//!
//! A table is not ordered by key, so a page is a walk over the whole of it that keeps the keys of one page and no more;
//! values are read when the keys are known. The cursor is the last key of a page: the next page starts after it, whatever
//! has come and gone, so that no key which stays is missed or told twice.

use std::collections::BinaryHeap;

use axum::extract::State;
use networkdb::node::NetworkDb;
use networkdb::{Key, NetworkId, TableName};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::entries::Entry;
use super::extract::{Names, OfTable, Params};
use super::problem::Problem;
use super::{Api, Json, networks, walking};

/// Entries of a page when the client does not say.
const LIMIT: u16 = 100;
/// Entries that a page may have.
const LIMIT_MAX: u16 = 1_000;
/// Characters that a prefix may have.
const PREFIX_MAX: usize = 255;
/// Bytes of values after which a page ends early.
const VALUE_BYTES_MAX: usize = 4 << 20;

/// Which page of a table.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Entries of the page at most; large values end it earlier.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u16>,
    /// Where the page starts: what the one before it gave as `next`.
    #[param(value_type = Option<String>, min_length = 2, max_length = 510, pattern = "^([0-9a-f]{2}){1,255}$")]
    cursor: Option<Cursor>,
    /// Only keys that start with this.
    #[param(max_length = 255)]
    prefix: Option<String>,
}

/// A page of entries, sorted by key.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page {
    /// The entries.
    entries: Vec<Entry>,
    /// The cursor of the next page; null at the end.
    next: Option<String>,
}

/// The key that a page starts after, in hex.
#[derive(Debug)]
struct Cursor(Vec<u8>);

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let pairs = text.as_bytes().chunks(2);
        let byte = |pair: &[u8]| {
            let is_hex = pair.len() == 2
                && pair
                    .iter()
                    .all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
            let pair = str::from_utf8(pair).ok().filter(|_| is_hex)?;
            u8::from_str_radix(pair, 16).ok()
        };
        let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
        let bytes = bytes.filter(|bytes| (1..=255).contains(&bytes.len()));
        let no_cursor = || serde::de::Error::custom("the cursor is none that a page gave");
        bytes.map(Self).ok_or_else(no_cursor)
    }
}

/// Writes the cursor of the page after a key.
fn cursor(key: &str) -> String {
    key.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The first keys after some key that start with a prefix, sorted.
#[derive(Debug)]
struct First<'a> {
    after: Option<&'a [u8]>,
    prefix: &'a str,
    limit: usize,
    keys: BinaryHeap<Box<str>>,
}

impl First<'_> {
    fn offer(&mut self, key: &str) {
        let is_after = self.after.is_none_or(|after| key.as_bytes() > after);
        if !is_after || !key.starts_with(self.prefix) {
            return;
        }
        if self.keys.len() >= self.limit {
            if self.keys.peek().is_some_and(|last| key >= &**last) {
                return;
            }
            self.keys.pop();
        }
        self.keys.push(key.into());
    }
}

fn page(db: &NetworkDb, network: &NetworkId, table: &TableName, which: &Which) -> Page {
    let limit = usize::from(which.limit.unwrap_or(LIMIT));
    let mut first = First {
        after: which.cursor.as_ref().map(|cursor| &cursor.0[..]),
        prefix: which.prefix.as_deref().unwrap_or_default(),
        // One more, to know whether there is a next page.
        limit: limit + 1,
        keys: BinaryHeap::new(),
    };
    db.walk(network, table, |key, _, _| first.offer(key));
    let mut keys = first.keys.into_sorted_vec();
    let mut has_more = keys.len() > limit;
    keys.truncate(limit);
    let (mut entries, mut bytes, mut last) = (Vec::new(), 0, None);
    for name in &keys {
        if bytes >= VALUE_BYTES_MAX {
            has_more = true;
            break;
        }
        last = Some(name);
        let key = Key::new(name).expect("written from a key");
        // One that has gone meanwhile is left out.
        if let Ok(entry) = db.entry(network, table, &key) {
            bytes += entry.value.len();
            entries.push(entry.into());
        }
    }
    let next = last.filter(|_| has_more).map(|key| cursor(key));
    Page { entries, next }
}

/// Lists entries in the order of their keys, a page at a time.
#[utoipa::path(get, path = "/v1/networks/{network}/tables/{table}/entries", tag = "entries",
    operation_id = "listEntries", params(OfTable, Which), responses(
    (status = 200, description = "The page.", body = Page), (status = 404, response = Problem),
))]
pub(crate) async fn list(
    State(api): State<Api>,
    Names(names): Names<OfTable>,
    Params(which): Params<Which>,
) -> Result<Json<Page>, Problem> {
    if !(1..=LIMIT_MAX).contains(&which.limit.unwrap_or(LIMIT)) {
        return Err(Problem::bad_request(format!(
            "limit must be 1 to {LIMIT_MAX}"
        )));
    }
    if which
        .prefix
        .as_ref()
        .is_some_and(|it| it.chars().count() > PREFIX_MAX)
    {
        return Err(Problem::bad_request(format!(
            "prefix is longer than {PREFIX_MAX} characters"
        )));
    }
    networks::check(&api.db, &names.network)?;
    let page = walking(move || page(&api.db, &names.network, &names.table, &which)).await;
    Ok(Json(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_keys_after_a_key_are_kept_and_no_more() {
        let mut first = First {
            after: Some(b"b"),
            prefix: "",
            limit: 2,
            keys: BinaryHeap::new(),
        };
        for key in ["e", "a", "d", "b", "c", "f"] {
            first.offer(key);
            assert!(first.keys.len() <= 2);
        }
        assert_eq!(first.keys.into_sorted_vec(), ["c".into(), "d".into()]);
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let read = |text: &str| {
            let value = serde_json::Value::from(text);
            serde_json::from_value::<Cursor>(value).ok().map(|it| it.0)
        };
        assert_eq!(read(&cursor("é/x")), Some("é/x".into()));
        for text in ["", "0", "0g", "+1", "AA", &"00".repeat(256)] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
