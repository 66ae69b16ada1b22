//! chitchat 0.13 through the same rows, so that ratios are measured on one machine in one run.
//!
//! It runs at its default interval of 1 s and tuned to 200 ms, each with the detector's first interval set to match, as its
//! own tests do. It spreads the state of each node by gossip over UDP and has neither tables nor deletes by others, so a
//! write is a key of the writing node's own state.
//!
//! memberlist 0.8 is not here. It has no replicated state, only user broadcasts, so two rows would fit; for these it would
//! add some 220 packages to the lock file. The figures recorded once (one broadcast to all: 181 ms at N=5, 205 at 10, 387
//! at 30; a death known after 3 to 7 s) are behind chitchat's at 200 ms.

use std::time::Duration;

use super::Row;

mod chitchat;
mod rows;

/// The intervals measured, and what each is called.
const INTERVALS: [(Duration, &str); 2] = [
    (Duration::from_millis(200), "chitchat 200 ms"),
    (Duration::from_secs(1), "chitchat 1 s"),
];

/// Rows of the bench that chitchat can run, under the names of our own.
pub(super) const ROWS: &[Row] = &[
    Row {
        name: "ops",
        about: "chitchat: set and get at 1 M keys",
        run: rows::ops,
    },
    Row {
        name: "memory",
        about: "chitchat: bytes per key",
        run: rows::memory,
    },
    Row {
        name: "propagate",
        about: "chitchat: one key to all of 3, 10 and 30 nodes",
        run: rows::propagate,
    },
    Row {
        name: "bulk",
        about: "chitchat: 1 k to 100 k keys set at once on one of five nodes",
        run: rows::bulk,
    },
    Row {
        name: "join",
        about: "chitchat: a node joins that holds nothing",
        run: rows::join,
    },
    Row {
        name: "idle",
        about: "chitchat: traffic and CPU of ten nodes that do nothing",
        run: rows::idle,
    },
    Row {
        name: "detect",
        about: "chitchat: a node of five dies without a word",
        run: rows::detect,
    },
];
