//! Names that come from others, made safe: as files of the archive, as parts of a URL, and in lines of text.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Bytes that a file's name may have before what comes after them becomes a hash.
const FILE_BYTES_MAX: usize = 100;

/// Characters that are shown of a name in a line.
const SHOWN_MAX: usize = 128;

/// Returns the name as one part of a path, whatever is in it.
pub(super) fn file(name: &str) -> String {
    let escaped = encode(name, b"._-");
    if escaped.len() <= FILE_BYTES_MAX && !escaped.bytes().all(|byte| byte == b'.') {
        return escaped;
    }
    if escaped.len() <= FILE_BYTES_MAX {
        // Also the empty name: none of them may end as "", "." or "..".
        return format!("%{}", escaped.replace('.', "%2E"));
    }
    // All in it is ASCII, so it may be cut anywhere; no two names have one hash.
    let mut cut = escaped[..FILE_BYTES_MAX - 17].to_owned();
    cut.push('-');
    for byte in &Sha256::digest(name)[..8] {
        push(&mut cut, format_args!("{byte:02x}"));
    }
    cut
}

/// Returns the name as one part of the path or the query of a URL.
pub(super) fn url(name: &str) -> String {
    match name {
        // As they are they would mean a directory.
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        name => encode(name, b"-._~"),
    }
}

/// Returns the name in quotes, on one line and without anything that a terminal would obey.
pub(super) fn shown(name: &str) -> String {
    let mut text = String::from("\"");
    for (index, c) in name.chars().enumerate() {
        if index == SHOWN_MAX {
            text.push_str("...");
            break;
        }
        if c == '"' || c == '\\' {
            text.push('\\');
            text.push(c);
        } else if is_plain(c) {
            text.push(c);
        } else {
            push(&mut text, format_args!("{}", c.escape_unicode()));
        }
    }
    text.push('"');
    text
}

/// Returns text that others wrote on one line, without anything that a terminal would obey.
pub(super) fn line(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        if is_plain(c) {
            line.push(c);
        } else {
            push(&mut line, format_args!("{}", c.escape_unicode()));
        }
    }
    line
}

/// Whether a character stays where it is put: no control character, nothing that turns the direction of text around.
fn is_plain(c: char) -> bool {
    let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !turns
}

fn encode(name: &str, kept: &[u8]) -> String {
    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            encoded.push(byte.into());
        } else {
            push(&mut encoded, format_args!("%{byte:02X}"));
        }
    }
    encoded
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a string takes every write");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_leaves_its_directory() {
        let long = "a".repeat(101);
        let longer = "a".repeat(255);
        let names = [
            "",
            ".",
            "..",
            "...",
            "%",
            "%2E",
            "%2E%2E",
            "/etc/passwd",
            "../x",
            "a\nb",
            "é",
            "a b",
            &long,
            &longer,
        ];
        let files: BTreeSet<_> = names.iter().map(|name| file(name)).collect();
        assert_eq!(files.len(), names.len(), "{files:?}");
        for file in &files {
            assert!((1..=FILE_BYTES_MAX).contains(&file.len()), "{file}");
            assert!(!file.starts_with('.') || file.contains('x'), "{file}");
            let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"%._-".contains(&byte);
            assert!(file.bytes().all(is_safe), "{file}");
        }
        assert_eq!(file("net-1_x.y"), "net-1_x.y");
        assert_eq!(file("a/b"), "a%2Fb");
    }

    #[test]
    fn parts_of_urls_are_encoded() {
        assert_eq!(url("a/b ?&é"), "a%2Fb%20%3F%26%C3%A9");
        assert_eq!(url(".."), "%2E%2E");
        assert_eq!(url("net1"), "net1");
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(
            shown("a\nFLAG \x1b[31m\"\\"),
            r#""a\u{a}FLAG \u{1b}[31m\"\\""#
        );
        assert_eq!(shown("\u{202e}x\u{200b}"), r#""\u{202e}x\u{200b}""#);
        assert_eq!(shown(&"x".repeat(200)).len(), 128 + 5);
        assert_eq!(line("é ok\r"), "é ok\\u{d}");
    }
}
