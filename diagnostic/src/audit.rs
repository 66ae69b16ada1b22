//! What the log says about a request: who asked for what with which outcome, and never a value.

use std::net::SocketAddr;

use hyper::Uri;
use tracing::info;

use crate::params::{decode_part, parts};

/// Longest URL in the log. Twice the room that four names of the longest kind need when every byte is escaped.
const URL_BYTES_MAX: usize = 8_192;

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
    let mut url = path.to_owned();
    let mut decoded = Vec::new();
    for (index, part) in query
        .iter()
        .flat_map(|query| parts(query.as_bytes()))
        .enumerate()
    {
        url.push(if index == 0 { '?' } else { '&' });
        if url.len() > URL_BYTES_MAX {
            break;
        }
        decoded.clear();
        match decode_part(part, &mut decoded) {
            Some(pair) if pair.name(&decoded) == b"value" => {
                let bytes = pair.value(&decoded).len();
                url.push_str(&format!("value=<{bytes} bytes>"));
            }
            // Split at an ASCII byte, the part of a string is a string.
            Some(_) => url.push_str(&String::from_utf8_lossy(part)),
            None if part.is_empty() => {}
            None => url.push_str(&format!("<{} undecodable bytes>", part.len())),
        }
    }
    if url.len() > URL_BYTES_MAX {
        url.truncate(url.floor_char_boundary(URL_BYTES_MAX));
        url.push_str("...");
    }
    url
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
        fn no_value_is_ever_shown(before in "[a-z=&;%+]{0,8}", after in "[a-z=&;%+]{0,8}") {
            let query = format!("{before}&value=SECRET{after}&{after}");
            prop_assert!(!redacted("/", Some(&query)).contains("SECRET"));
        }
    }
}
