//! What the log says about a request: who asked for what with which outcome, and never a value.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use hyper::Uri;
use tracing::info;

use crate::params::{decode_part, is_plain, name_and_value};

/// Longest URL in the log. Twice the room that four names of the longest kind need when every byte is escaped.
const URL_BYTES_MAX: usize = 8_192;

/// More bytes than a length in place of a short value takes.
const ROOM_FOR_LENGTHS: usize = 32;

/// Writes the line of one request.
pub(crate) fn log(remote: SocketAddr, method: &str, uri: &Uri, outcome: &str) {
    // The subscriber may have the level off; then the URL is not worth building.
    if tracing::enabled!(tracing::Level::INFO) {
        let url = redacted(uri.path(), uri.query());
        info!(component = "diagnostic", %remote, method, url, outcome, "request");
    }
}

/// Returns a URL with every `value`, and every part that cannot be decoded, cut to its length.
fn redacted(path: &str, query: Option<&str>) -> String {
    let room = query.map_or(0, |query| query.len() + ROOM_FOR_LENGTHS);
    let mut url = String::with_capacity(path.len() + room);
    url.push_str(path);
    // Most queries are written as they are meant, and need no place to be decoded in.
    let is_plain = query.is_none_or(|query| is_plain(query.as_bytes()));
    let mut decoded = Vec::new();
    let parts = query.into_iter().flat_map(|query| query.split('&'));
    for (index, part) in parts.enumerate() {
        url.push(if index == 0 { '?' } else { '&' });
        if url.len() > URL_BYTES_MAX {
            break;
        }
        let part_is = match is_plain || part.is_empty() {
            true => Part::plain(part),
            false => Part::escaped(part, &mut decoded),
        };
        match part_is {
            Part::Value(bytes) => push(&mut url, format_args!("value=<{bytes} bytes>")),
            Part::Other => url.push_str(part),
            Part::Undecodable => {
                let bytes = part.len();
                push(&mut url, format_args!("<{bytes} undecodable bytes>"));
            }
        }
    }
    if url.len() > URL_BYTES_MAX {
        url.truncate(url.floor_char_boundary(URL_BYTES_MAX));
        url.push_str("...");
    }
    url
}

/// What a part of a query is.
#[derive(Debug, Eq, PartialEq)]
enum Part {
    /// A `value` of so many bytes.
    Value(usize),
    Other,
    Undecodable,
}

impl Part {
    /// Looks at a part of which nothing has to be decoded.
    fn plain(part: &str) -> Self {
        match name_and_value(part.as_bytes()) {
            (b"value", value) => Self::Value(value.len()),
            _ => Self::Other,
        }
    }

    fn escaped(part: &str, decoded: &mut Vec<u8>) -> Self {
        decoded.clear();
        match decode_part(part.as_bytes(), decoded) {
            Some(pair) if pair.name(decoded) == b"value" => Self::Value(pair.value(decoded).len()),
            Some(_) => Self::Other,
            None => Self::Undecodable,
        }
    }
}

fn push(url: &mut String, text: fmt::Arguments<'_>) {
    url.write_fmt(text).expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn value_is_cut_to_its_length_however_it_is_written() {
        for (query, shown) in [
            (
                "nid=a&value=secret&key=b%20c",
                "nid=a&value=<6 bytes>&key=b%20c",
            ),
            ("v%61lue=s%65cret", "value=<6 bytes>"),
            ("value=secret%zz&nid=a", "<15 undecodable bytes>&nid=a"),
            ("nid=a;value=secret", "<18 undecodable bytes>"),
            ("value&&unsafe", "value=<0 bytes>&&unsafe"),
            (
                "values=1&value=&avalue=2",
                "values=1&value=<0 bytes>&avalue=2",
            ),
            ("value=a=b&value=c&", "value=<3 bytes>&value=<1 bytes>&"),
            ("value=é", "value=<2 bytes>"),
        ] {
            assert_eq!(redacted("/x", Some(query)), format!("/x?{shown}"));
        }
        assert_eq!(redacted("/ready", None), "/ready");
    }

    #[test]
    fn long_url_is_cut() {
        let query = format!("a={}&value=1", "é".repeat(URL_BYTES_MAX));
        let url = redacted("/", Some(&query));
        assert!(url.len() <= URL_BYTES_MAX + 3);
        assert!(url.ends_with("é..."));
    }

    proptest! {
        #[test]
        fn what_needs_no_decoding_is_told_apart_the_same(part in "(value)?[a-ev=]{1,4}") {
            prop_assert_eq!(Part::plain(&part), Part::escaped(&part, &mut Vec::new()));
        }

        #[test]
        fn no_value_is_ever_shown(before in "[a-z=&;%+]{0,8}", after in "[a-z=&;%+]{0,8}") {
            let query = format!("{before}&value=SECRET{after}&{after}");
            prop_assert!(!redacted("/", Some(&query)).contains("SECRET"));
        }
    }
}
