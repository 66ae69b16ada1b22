//! What the text of an answer says; Docker's servers and ours answer alike.

use std::collections::BTreeSet;

/// Longest part of an answer that is shown.
const EXCERPT_CHARS_MAX: usize = 300;

/// Returns true when a server has done as it was asked. A refusal may have OK in it, too, in a name.
pub(crate) fn is_ok(text: &str) -> bool {
    text.lines().next().is_some_and(|line| line.trim() == "OK")
}

/// Returns the number that follows some words.
pub(crate) fn number_after(text: &str, words: &str) -> Option<u64> {
    let (_, rest) = text.split_once(words)?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    rest[..end.unwrap_or(rest.len())].parse().ok()
}

/// Returns the keys of a list of entries.
pub(crate) fn keys(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter_map(|line| line.split_once(") k:`"));
    let keys = lines.filter_map(|(_, rest)| rest.split_once("` -> v:`"));
    keys.map(|(key, _)| key).collect()
}

/// Returns the beginning of an answer.
pub(crate) fn excerpt(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(EXCERPT_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None if text.is_empty() => "nothing".into(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ok_is_the_first_line() {
        for text in ["OK", "OK\n", "OK\nOK", "OK\ntotal entries: 0\n"] {
            assert!(is_ok(text), "{text}");
        }
        for text in [
            "",
            "FAIL\nError: network OK is not joined",
            "404 page not found OK",
            "OKAY",
        ] {
            assert!(!is_ok(text), "{text}");
        }
    }

    #[test]
    fn numbers_follow_their_words() {
        for (text, words, number) in [
            (
                "OK\ntotal entries: 12\n0) a -> b\n",
                "total entries: ",
                Some(12),
            ),
            ("total elements: 0\n", "total elements: ", Some(0)),
            ("OK\nentries: 2, qlen: 7\n", "qlen: ", Some(7)),
            ("OK\nentries: -1, qlen: -1\n", "qlen: ", None),
            ("Table t not watched\n", "total elements: ", None),
            (
                "total entries: 99999999999999999999",
                "total entries: ",
                None,
            ),
            ("", "qlen: ", None),
        ] {
            assert_eq!(number_after(text, words), number, "{text}");
        }
    }

    #[test]
    fn keys_are_read_from_tables_and_from_watchers() {
        let table = "OK\ntotal entries: 2\n0) k:`key-0-1` -> v:`dg==` owner:`n1`\n1) k:`key-1-0` -> v:`dg==` owner:`n2`\n";
        assert_eq!(keys(table), BTreeSet::from(["key-0-1", "key-1-0"]));
        let watched = "total elements: 1\n0) k:`key-0-1` -> v:`v`\n";
        assert_eq!(keys(watched), BTreeSet::from(["key-0-1"]));
        assert_eq!(keys("OK\ntotal entries: 0\n"), BTreeSet::new());
    }

    #[test]
    fn long_answers_are_cut() {
        assert_eq!(excerpt(&"é".repeat(301)), "é".repeat(300) + "...");
        assert_eq!(excerpt(" \n"), "nothing");
    }
}
