//! How values travel as text: standard base64 with padding, read as Go's decoder reads it.
//!
//! Line breaks are skipped, left-over bits of the last symbol are ignored, and the offset in an error is the one that
//! clients of the original server know.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Symbols of a complete group.
const GROUP: usize = 4;

/// Why a text is not base64.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("illegal base64 data at input byte {offset}")]
pub(crate) struct Base64Error {
    /// Offset of the first bad byte, or of the last group's start when it is incomplete.
    offset: usize,
}

/// Encodes a value for a reply.
pub(crate) fn encode(value: &[u8]) -> String {
    STANDARD.encode(value)
}

/// Appends an encoded value.
pub(crate) fn encode_to(value: &[u8], text: &mut Vec<u8>) {
    let start = text.len();
    let bytes = value.len().div_ceil(GROUP - 1) * GROUP;
    text.resize(start + bytes, 0);
    let encoded = STANDARD.encode_slice(value, &mut text[start..]);
    assert_eq!(encoded, Ok(bytes), "the padded length is known");
}

/// Decodes a value of a request.
pub(crate) fn decode(text: &[u8]) -> Result<Vec<u8>, Base64Error> {
    let mut value = Vec::with_capacity(text.len() / GROUP * 3 + 3);
    let mut group = [0; GROUP];
    let mut filled = 0;
    for (offset, &byte) in text.iter().enumerate() {
        if is_line_break(byte) {
            continue;
        }
        if byte == b'=' {
            check_padding(text, offset, filled)?;
            value.extend_from_slice(&bytes_of(group)[..filled - 1]);
            return Ok(value);
        }
        group[filled] = sextet(byte).ok_or(Base64Error { offset })?;
        filled += 1;
        if filled == GROUP {
            value.extend_from_slice(&bytes_of(group));
            (group, filled) = ([0; GROUP], 0);
        }
    }
    if filled == 0 {
        return Ok(value);
    }
    // Counted back from the end, so line breaks inside the last group move the offset, as in the original.
    let offset = text.len() - filled;
    Err(Base64Error { offset })
}

/// Checks everything from the first `=`, which follows `filled` symbols of a group, to the end.
fn check_padding(text: &[u8], first: usize, filled: usize) -> Result<(), Base64Error> {
    if filled < 2 {
        return Err(Base64Error { offset: first });
    }
    let mut last = first;
    if filled == 2 {
        last = match next_symbol(text, first + 1) {
            Some(second) if text[second] == b'=' => second,
            Some(other) => return Err(Base64Error { offset: other - 1 }),
            None => return Err(Base64Error { offset: text.len() }),
        };
    }
    match next_symbol(text, last + 1) {
        Some(offset) => Err(Base64Error { offset }),
        None => Ok(()),
    }
}

/// Returns the offset of the first byte at or after `from` that is no line break.
fn next_symbol(text: &[u8], from: usize) -> Option<usize> {
    (from..text.len()).find(|&offset| !is_line_break(text[offset]))
}

fn is_line_break(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

fn bytes_of([a, b, c, d]: [u8; GROUP]) -> [u8; 3] {
    [a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offset(text: &str) -> usize {
        decode(text.as_bytes()).unwrap_err().offset
    }

    #[test]
    fn padded_text_is_decoded() {
        for (text, value) in [
            ("", ""),
            ("aGVsbG8=", "hello"),
            ("aGk=", "hi"),
            ("aA==", "h"),
        ] {
            assert_eq!(decode(text.as_bytes()).unwrap(), value.as_bytes());
        }
    }

    #[test]
    fn line_breaks_and_left_over_bits_are_ignored() {
        assert_eq!(decode(b"\naG\r\nk=\n\n").unwrap(), b"hi");
        assert_eq!(decode(b"aA=\n=\r").unwrap(), b"h");
        assert_eq!(decode(b"aB==").unwrap(), b"h");
    }

    #[test]
    fn incomplete_group_is_reported_at_its_start() {
        assert_eq!(offset("v"), 0);
        assert_eq!(offset("aGk"), 0);
        assert_eq!(offset("aGVsbG8"), 4);
        assert_eq!(offset("aGVsb\n"), 5);
    }

    #[test]
    fn bad_byte_is_reported_at_its_offset() {
        assert_eq!(offset("!AAA"), 0);
        assert_eq!(offset("AAAAA-AA"), 5);
        assert_eq!(offset("AA A"), 2);
        assert_eq!(offset("AAAA\u{e9}"), 4);
    }

    #[test]
    fn wrong_padding_is_reported_where_the_original_does() {
        assert_eq!(offset("="), 0);
        assert_eq!(offset("AAAA="), 4);
        assert_eq!(offset("A==="), 1);
        assert_eq!(offset("AA="), 3);
        assert_eq!(offset("AA=A"), 2);
        assert_eq!(offset("AA=\nA"), 3);
        assert_eq!(offset("AAA=A"), 4);
        assert_eq!(offset("AA==\nAAAA"), 5);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(value: Vec<u8>) {
            prop_assert_eq!(decode(encode(&value).as_bytes()).unwrap(), value);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused_within_the_text(text: Vec<u8>) {
            if let Err(error) = decode(&text) {
                prop_assert!(error.offset <= text.len());
            }
        }

        #[test]
        fn any_symbols_are_decoded_or_refused(text in "[A-D=\r\n]{0,12}") {
            let expected = STANDARD.decode(text.replace(['\r', '\n'], "")).is_ok();
            prop_assert!(!expected || decode(text.as_bytes()).is_ok());
        }
    }
}
