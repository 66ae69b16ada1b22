//! JSON text with the escapes and the indent of Go's encoder, which clients compare byte for byte.

/// Spaces of one level of indent.
const INDENT: &[u8] = b"  ";

/// Writes one JSON document.
#[derive(Debug)]
pub(crate) struct Writer {
    text: Vec<u8>,
    is_pretty: bool,
    depth: usize,
    /// True while the innermost object or list has no member.
    is_empty: bool,
}

impl Writer {
    /// Starts a document.
    pub(crate) fn new(is_pretty: bool) -> Self {
        Self {
            text: Vec::new(),
            is_pretty,
            depth: 0,
            is_empty: true,
        }
    }

    /// Returns the document.
    pub(crate) fn into_text(self) -> Vec<u8> {
        self.text
    }

    /// Takes what was written so far; the document goes on.
    pub(crate) fn take_text(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.text)
    }

    /// Returns how much was written since the start or [`Writer::take_text`].
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// Starts an object or list, which [`Writer::close`] ends.
    pub(crate) fn open(&mut self, bracket: u8) {
        self.text.push(bracket);
        self.depth += 1;
        self.is_empty = true;
    }

    /// Ends the innermost object or list.
    pub(crate) fn close(&mut self, bracket: u8) {
        self.depth -= 1;
        if !self.is_empty {
            self.new_line();
        }
        self.text.push(bracket);
        self.is_empty = false;
    }

    /// Starts the next element of a list; its value is written after this.
    pub(crate) fn element(&mut self) -> &mut Self {
        self.separate();
        self
    }

    /// Writes an object whose members `fill` writes with [`Writer::member`].
    pub(crate) fn object(&mut self, fill: impl FnOnce(&mut Self)) {
        self.nested([b'{', b'}'], fill);
    }

    /// Writes a list with one element per item.
    pub(crate) fn list<T>(&mut self, items: &[T], mut fill: impl FnMut(&mut Self, &T)) {
        self.nested([b'[', b']'], |writer| {
            for item in items {
                fill(writer.element(), item);
            }
        });
    }

    /// Starts the next member of an object; its value is written after this.
    pub(crate) fn member(&mut self, name: &str) -> &mut Self {
        self.separate();
        self.string(name.as_bytes());
        self.text.push(b':');
        if self.is_pretty {
            self.text.push(b' ');
        }
        self
    }

    /// Writes text; every byte that is not UTF-8 becomes U+FFFD.
    pub(crate) fn string(&mut self, bytes: &[u8]) {
        self.text.push(b'"');
        for chunk in bytes.utf8_chunks() {
            self.escaped(chunk.valid());
            for _ in chunk.invalid() {
                self.text.extend_from_slice(b"\\ufffd");
            }
        }
        self.text.push(b'"');
    }

    /// Writes a number.
    pub(crate) fn number(&mut self, number: i64) {
        self.text.extend_from_slice(number.to_string().as_bytes());
    }

    /// Writes `null`.
    pub(crate) fn null(&mut self) {
        self.text.extend_from_slice(b"null");
    }

    fn nested(&mut self, [open, close]: [u8; 2], fill: impl FnOnce(&mut Self)) {
        self.open(open);
        fill(self);
        self.close(close);
    }

    fn separate(&mut self) {
        if !self.is_empty {
            self.text.push(b',');
        }
        self.is_empty = false;
        self.new_line();
    }

    fn new_line(&mut self) {
        if self.is_pretty {
            self.text.push(b'\n');
            for _ in 0..self.depth {
                self.text.extend_from_slice(INDENT);
            }
        }
    }

    fn escaped(&mut self, text: &str) {
        let mut copied = 0;
        for (at, character) in text.char_indices() {
            let short = match character {
                '"' => "\\\"",
                '\\' => "\\\\",
                '\n' => "\\n",
                '\r' => "\\r",
                '\t' => "\\t",
                '\u{8}' => "\\b",
                '\u{c}' => "\\f",
                // Go's encoder guards text that is pasted into HTML or JavaScript.
                '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => "",
                _ => continue,
            };
            self.text.extend_from_slice(&text.as_bytes()[copied..at]);
            copied = at + character.len_utf8();
            if short.is_empty() {
                let escape = format!("\\u{:04x}", u32::from(character));
                self.text.extend_from_slice(escape.as_bytes());
            } else {
                self.text.extend_from_slice(short.as_bytes());
            }
        }
        self.text.extend_from_slice(&text.as_bytes()[copied..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn string(bytes: &[u8]) -> String {
        let mut writer = Writer::new(false);
        writer.string(bytes);
        String::from_utf8(writer.into_text()).unwrap()
    }

    #[test]
    fn text_is_escaped_as_go_does() {
        assert_eq!(string(b"a<b>&\"\\/'"), r#""a\u003cb\u003e\u0026\"\\/'""#);
        assert_eq!(
            string(b"\n\r\t\x08\x0c\x00\x1f\x7f"),
            "\"\\n\\r\\t\\b\\f\\u0000\\u001f\x7f\""
        );
        assert_eq!(
            string("\u{2028}é\u{2029}🦀".as_bytes()),
            r#""\u2028é\u2029🦀""#
        );
    }

    #[test]
    fn every_invalid_byte_is_replaced_on_its_own() {
        assert_eq!(string(b"a\xffb"), r#""a\ufffdb""#);
        assert_eq!(string(b"\xf0\x9f\x98"), r#""\ufffd\ufffd\ufffd""#);
        assert_eq!(string("\u{fffd}".as_bytes()), "\"\u{fffd}\"");
    }

    #[test]
    fn documents_are_compact_or_indented_by_two() {
        let document = |is_pretty| {
            let mut writer = Writer::new(is_pretty);
            writer.object(|writer| {
                writer.member("a").null();
                writer.member("b").list(&[1, -2], |writer, number| {
                    writer.object(|writer| writer.member("n").number(*number));
                });
                writer.member("c").object(|_| {});
            });
            String::from_utf8(writer.into_text()).unwrap()
        };
        assert_eq!(
            document(false),
            r#"{"a":null,"b":[{"n":1},{"n":-2}],"c":{}}"#
        );
        let pretty = "{\n  \"a\": null,\n  \"b\": [\n    {\n      \"n\": 1\n    },\n    {\n      \"n\": -2\n    }\n  ],\n  \"c\": {}\n}";
        assert_eq!(document(true), pretty);
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(text: String) {
            let read: String = serde_json::from_str(&string(text.as_bytes())).unwrap();
            prop_assert_eq!(read, text);
        }

        #[test]
        fn any_bytes_make_valid_json(bytes: Vec<u8>) {
            prop_assert!(serde_json::from_str::<String>(&string(&bytes)).is_ok());
        }
    }
}
