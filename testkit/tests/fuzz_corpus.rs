//! The corpus of the fuzz targets, replayed; what a fuzzer once found stays found.

use std::fs;
use std::path::Path;

use testkit::fuzz;

/// Runs a target over its files, then over pieces of them.
fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let files = fs::read_dir(corpus.join(target)).expect("the target has a corpus");
    let mut count = 0;
    for file in files {
        let bytes = fs::read(file.expect("a readable directory").path()).expect("a readable file");
        for end in [bytes.len(), bytes.len() / 2, bytes.len().saturating_sub(1)] {
            run(&bytes[..end]);
        }
        count += 1;
    }
    assert!(count >= 10, "only {count} files for {target}");
}

#[test]
fn datagrams_of_the_corpus_do_no_harm() {
    replay("datagrams", fuzz::datagrams);
}

#[test]
fn streams_of_the_corpus_do_no_harm() {
    replay("streams", fuzz::streams);
}

#[test]
fn key_files_of_the_corpus_do_no_harm() {
    replay("key_file", fuzz::key_file);
}

#[test]
fn messages_of_the_corpus_do_no_harm() {
    replay("messages", fuzz::messages);
}
