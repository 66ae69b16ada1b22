//! The parameters of a request, read as Go reads them: the form of the body first, then the query.
//!
//! A part that cannot be decoded is as if it were not there. Names are case sensitive and the first value of a name
//! counts. This is the one place where text of a request becomes a name or a value.

use std::borrow::Cow;
use std::ops::Range;
use std::str::FromStr;

use memchr::{memchr2_iter, memchr3};
use networkdb::NameError;

use crate::failure::Failure;
use crate::reply::Format;
use crate::value;

/// Parameters that most requests do not exceed.
const PARAMS_USUAL: usize = 6;
/// Parameters in one request. More are refused, so that a body of `&a&a&a` cannot fill the memory.
const PARAMS_MAX: usize = 1_000;

/// The parameters of one request.
#[derive(Clone, Debug, Default)]
pub struct Params {
    /// Names and values, one after the other.
    decoded: Vec<u8>,
    pairs: Vec<Pair>,
    format: Format,
}

/// Where a parameter is.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    name: Range<usize>,
    value: Range<usize>,
}

/// A request has more than [`PARAMS_MAX`] parameters.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("more than {PARAMS_MAX} parameters")]
pub(crate) struct TooManyParams;

impl Params {
    /// Reads the parameters of a form and of a query.
    pub(crate) fn parse(form: &[u8], query: &[u8]) -> Result<Self, TooManyParams> {
        let mut params = Self {
            decoded: Vec::with_capacity(form.len() + query.len()),
            pairs: Vec::with_capacity(PARAMS_USUAL),
            format: Format::default(),
        };
        for text in [form, query] {
            if is_plain(text) {
                params.take_plain(text)?;
                continue;
            }
            for part in parts(text) {
                if let Some(pair) = decode_part(part, &mut params.decoded) {
                    params.push(pair)?;
                }
            }
        }
        let json = params.get("json");
        params.format = Format {
            is_json: json.is_some(),
            is_pretty: json == Some(b"pretty"),
            is_raw: params.get("unsafe").is_some(),
        };
        Ok(params)
    }

    fn push(&mut self, pair: Pair) -> Result<(), TooManyParams> {
        if self.pairs.len() == PARAMS_MAX {
            return Err(TooManyParams);
        }
        self.pairs.push(pair);
        Ok(())
    }

    /// Takes a text whole of which nothing has to be decoded, as that of most requests.
    fn take_plain(&mut self, text: &[u8]) -> Result<(), TooManyParams> {
        let offset = self.decoded.len();
        self.decoded.extend_from_slice(text);
        let (mut start, mut equals) = (offset, None);
        for at in memchr2_iter(b'&', b'=', text) {
            if text[at] == b'&' {
                self.push_plain(start, equals, offset + at)?;
                (start, equals) = (offset + at + 1, None);
            } else if equals.is_none() {
                equals = Some(offset + at);
            }
        }
        self.push_plain(start, equals, offset + text.len())
    }

    /// Takes what is decoded between two places, unless that is empty.
    fn push_plain(
        &mut self,
        start: usize,
        equals: Option<usize>,
        end: usize,
    ) -> Result<(), TooManyParams> {
        if start == end {
            return Ok(());
        }
        let (name, value) = match equals {
            Some(equals) => (start..equals, equals + 1..end),
            None => (start..end, end..end),
        };
        self.push(Pair { name, value })
    }

    /// Returns the first value of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let mut pairs = self.pairs.iter();
        let pair = pairs.find(|pair| pair.name(&self.decoded) == name.as_bytes())?;
        Some(pair.value(&self.decoded))
    }

    /// Returns a parameter as text, empty when it is absent.
    pub fn text(&self, name: &str) -> Result<&str, Failure> {
        str::from_utf8(self.get(name).unwrap_or_default())
            .map_err(|_| Failure::new(format!("parameter {name} is not UTF-8")))
    }

    /// Returns a parameter as the name of a network, table or key.
    pub fn name<T: FromStr<Err = NameError>>(&self, name: &str) -> Result<T, Failure> {
        let text = self.text(name)?;
        text.parse()
            .map_err(|error| Failure::new(format!("parameter {name}: {error}")))
    }

    /// Returns the parameter `value` as bytes: raw with `unsafe`, else decoded from base64.
    pub(crate) fn value(&self) -> Result<Vec<u8>, Failure> {
        let text = self.get("value").unwrap_or_default();
        if self.format.is_raw {
            return Ok(text.to_vec());
        }
        value::decode(text).map_err(|error| Failure::new(error.to_string()))
    }

    /// Returns how the reply is to be written.
    pub(crate) fn format(&self) -> Format {
        self.format
    }
}

/// Splits a query or form into its parts.
fn parts(query: &[u8]) -> impl Iterator<Item = &[u8]> {
    query.split(|&byte| byte == b'&')
}

impl Pair {
    pub(crate) fn name<'a>(&self, decoded: &'a [u8]) -> &'a [u8] {
        &decoded[self.name.clone()]
    }

    pub(crate) fn value<'a>(&self, decoded: &'a [u8]) -> &'a [u8] {
        &decoded[self.value.clone()]
    }
}

/// Whether nothing in a text has to be decoded, and nothing can be wrong with it.
pub(crate) fn is_plain(text: &[u8]) -> bool {
    memchr3(b'%', b'+', b';', text).is_none()
}

/// Splits a part at its first equals sign; without one it is a name.
pub(crate) fn name_and_value(part: &[u8]) -> (&[u8], &[u8]) {
    let equals = part.iter().position(|&byte| byte == b'=');
    match equals {
        Some(at) => (&part[..at], &part[at + 1..]),
        None => (part, b""),
    }
}

/// Decodes `name=value` and appends both; none when the part is empty or cannot be decoded.
pub(crate) fn decode_part(part: &[u8], decoded: &mut Vec<u8>) -> Option<Pair> {
    // Go drops a part with a semicolon whole, because others take it for a separator.
    if part.is_empty() || part.contains(&b';') {
        return None;
    }
    let (name, value) = name_and_value(part);
    let mut spaced = |text: &[u8]| {
        let start = decoded.len();
        let plain = |byte| if byte == b'+' { b' ' } else { byte };
        unescape(text, plain, decoded)?;
        Some(start..decoded.len())
    };
    Some(Pair {
        name: spaced(name)?,
        value: spaced(value)?,
    })
}

/// Decodes the percent escapes of a path; none when one is broken.
pub(crate) fn decode_path(path: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !path.contains(&b'%') {
        return Some(path.into());
    }
    let mut decoded = Vec::with_capacity(path.len());
    unescape(path, |byte| byte, &mut decoded)?;
    Some(decoded.into())
}

/// Appends a text with its percent escapes decoded and every other byte passed through `plain`; none when an escape is
/// broken, and some of it is appended then.
fn unescape(text: &[u8], plain: impl Fn(u8) -> u8, decoded: &mut Vec<u8>) -> Option<()> {
    let is_plain = |&byte: &u8| byte != b'%' && plain(byte) == byte;
    if text.iter().all(is_plain) {
        decoded.extend_from_slice(text);
        return Some(());
    }
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            decoded.push(hex_digit(digits[0])? << 4 | hex_digit(digits[1])?);
            rest = after;
        } else {
            decoded.push(plain(byte));
            rest = after;
        }
    }
    Some(())
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use networkdb::Key;
    use proptest::prelude::*;

    use super::*;

    fn query(query: &str) -> Params {
        Params::parse(b"", query.as_bytes()).unwrap()
    }

    #[test]
    fn escapes_and_plus_are_decoded() {
        let params = query("key=a%2Fb+c%2b&va%6cue=%c3%a9");
        assert_eq!(params.get("key").unwrap(), b"a/b c+");
        assert_eq!(params.get("value").unwrap(), "é".as_bytes());
    }

    #[test]
    fn first_value_counts_and_names_are_case_sensitive() {
        let params = query("key=1&key=2&KEY=3");
        assert_eq!(params.get("key").unwrap(), b"1");
        assert_eq!(params.get("KEY").unwrap(), b"3");
        assert_eq!(params.get("Key"), None);
    }

    #[test]
    fn form_goes_before_query() {
        let params = Params::parse(b"key=form", b"key=query&nid=n").unwrap();
        assert_eq!(params.get("key").unwrap(), b"form");
        assert_eq!(params.get("nid").unwrap(), b"n");
    }

    #[test]
    fn undecodable_parts_are_as_if_they_were_not_there() {
        let params = query("key=%zz&nid=a;b&%=c&tname=%4&&value=%&key=k");
        assert_eq!(params.get("key").unwrap(), b"k");
        assert_eq!(params.pairs.len(), 1);
    }

    #[test]
    fn empty_value_counts_as_present() {
        let params = query("nid=&unsafe&=x");
        assert_eq!(params.get("nid").unwrap(), b"");
        assert_eq!(params.get("unsafe").unwrap(), b"");
        assert_eq!(params.get("").unwrap(), b"x");
        assert_eq!(params.get("key"), None);
    }

    #[test]
    fn value_after_the_first_equals_sign_is_kept_whole() {
        assert_eq!(
            query("value=aGk=&x").value().unwrap(),
            b"hi",
            "the padding is part of the value"
        );
        assert_eq!(query("value=aGk=&unsafe").value().unwrap(), b"aGk=");
    }

    #[test]
    fn names_are_refused_with_the_parameter_that_holds_them() {
        let refused = |text: &str| query(text).name::<Key>("key").unwrap_err().to_string();
        assert_eq!(refused("key="), "parameter key: key is empty");
        assert_eq!(refused("key=%ff"), "parameter key is not UTF-8");
        let long = format!("key={}", "x".repeat(256));
        assert_eq!(
            refused(&long),
            "parameter key: key is 256 bytes long, the limit is 255"
        );
        assert_eq!(query("key=%ff&value=%ff&unsafe").value().unwrap(), b"\xff");
    }

    #[test]
    fn format_depends_on_presence_and_on_the_word_pretty() {
        let format = |text| {
            let format = query(text).format();
            (format.is_json, format.is_pretty, format.is_raw)
        };
        assert_eq!(format(""), (false, false, false));
        assert_eq!(format("json"), (true, false, false));
        assert_eq!(format("json=&unsafe=false"), (true, false, true));
        assert_eq!(format("json=pretty"), (true, true, false));
        assert_eq!(format("json=1&json=pretty"), (true, false, false));
    }

    #[test]
    fn parameters_are_bounded() {
        let many = "a&".repeat(PARAMS_MAX);
        assert!(Params::parse(b"", many.as_bytes()).is_ok());
        assert_eq!(
            Params::parse(b"one", many.as_bytes()).unwrap_err(),
            TooManyParams
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(form: Vec<u8>, query: Vec<u8>) {
            if let Ok(params) = Params::parse(&form, &query) {
                for name in ["", "nid", "key", "value"] {
                    drop((params.text(name), params.name::<Key>(name), params.value()));
                }
            }
            decode_path(&query);
        }

        #[test]
        fn what_needs_no_decoding_is_read_the_same(text in "[ab=&]{0,16}") {
            let plain = Params::parse(b"", text.as_bytes()).unwrap();
            let mut decoded = Vec::new();
            let decode = |part| decode_part(part, &mut decoded);
            let pairs: Vec<Pair> = parts(text.as_bytes()).filter_map(decode).collect();
            prop_assert_eq!(plain.pairs.len(), pairs.len());
            for (plain_pair, pair) in plain.pairs.iter().zip(&pairs) {
                prop_assert_eq!(plain_pair.name(&plain.decoded), pair.name(&decoded));
                prop_assert_eq!(plain_pair.value(&plain.decoded), pair.value(&decoded));
            }
        }

        #[test]
        fn escaped_bytes_are_read_back(name: Vec<u8>, value: Vec<u8>) {
            let escaped = |bytes: &[u8]| bytes.iter().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let text = format!("x&{}={}", escaped(&name), escaped(&value));
            let params = Params::parse(b"", text.as_bytes()).unwrap();
            prop_assert_eq!(params.pairs[1].name(&params.decoded), name);
            prop_assert_eq!(params.pairs[1].value(&params.decoded), value);
        }
    }
}
