//! Measures what the project promises, over real sockets where it can.
//!
//! Each row runs in a process of its own, so that memory and CPU time are its own and a row that hangs or panics takes no
//! other with it. The process prints its figures as lines of JSON, the bench prints them as a table.
//!
//! | file | measures |
//! |---|---|
//! | `floor` | what the machine can do at most |
//! | `ops`, `memory` | the engine and the handle on one node |
//! | `propagate`, `rate`, `bulk` | how fast writes are everywhere |
//! | `join`, `repair`, `idle` | what a sync costs, and what nothing costs |
//! | `http` | the diagnostic server |
//! | `detect` | death and partition |
//! | `fdb` | the rows of an overlay network's peers in the kernel; needs root |
//! | `services` | a thousand services in the kernel; needs root |
//! | `datapath` | from a record on one host to the kernel of another; needs root |
//! | `processes` | some of these rows over real processes |
//! | `peers` | chitchat through the same rows (feature `peers`) |
//! | `scale` | large clusters, in the simulator |
//! | `plot` | SVGs of the figures |
//! | `figure`, `table`, `load`, `cluster` | samples, printing, keys and values, nodes on loopback |

use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;

mod bulk;
mod cluster;
mod datapath;
mod detect;
mod fdb;
pub mod figure;
mod floor;
mod http;
mod idle;
mod join;
pub mod load;
mod memory;
mod ops;
#[cfg(feature = "peers")]
mod peers;
pub mod plot;
mod processes;
mod propagate;
mod rate;
mod repair;
mod scale;
mod services;
pub mod table;

use figure::Figure;

/// How a row is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mode {
    /// Fewer repetitions and the smaller sizes.
    pub is_quick: bool,
    /// Nodes of the largest simulated cluster, unless that is for the row to choose.
    pub nodes: Option<usize>,
}

impl Mode {
    /// Chooses by mode.
    #[must_use]
    pub fn pick<T>(self, quick: T, full: T) -> T {
        if self.is_quick { quick } else { full }
    }
}

/// One row of the bench.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    run: fn(Mode, &mut Report) -> Result<()>,
}

impl Row {
    /// Measures it in this process.
    pub fn run(&self, mode: Mode) -> Result<()> {
        let mut report = Report { row: self.name };
        (self.run)(mode, &mut report)
    }

    /// How long it may take before it is given up.
    #[must_use]
    pub fn time_limit(&self, mode: Mode) -> Duration {
        match mode.nodes {
            // Whoever asks for more nodes has the time.
            Some(_) => Duration::from_secs(24 * 3_600),
            None => mode.pick(Duration::from_secs(60), Duration::from_secs(300)),
        }
    }
}

/// All rows, in the order in which they run.
pub const ROWS: &[Row] = &[
    Row {
        name: "floor",
        about: "what loopback and a bare hash map can do on this machine",
        run: floor::run,
    },
    Row {
        name: "ops",
        about: "writes, reads and walks of one node at 1 M entries",
        run: ops::run,
    },
    Row {
        name: "memory",
        about: "bytes per entry at 1 M entries",
        run: memory::run,
    },
    Row {
        name: "propagate",
        about: "one key to all of 3, 10, 30 and 100 nodes",
        run: propagate::run,
    },
    Row {
        name: "rate",
        about: "400 and 20,000 writes a second on one of five nodes",
        run: rate::run,
    },
    Row {
        name: "bulk",
        about: "1 k to 1 M keys written at once on one of five nodes",
        run: bulk::run,
    },
    Row {
        name: "repair",
        about: "1 and 100 entries differ among 100 k",
        run: repair::run,
    },
    Row {
        name: "join",
        about: "joining a network of 100 k and 1 M entries",
        run: join::run,
    },
    Row {
        name: "idle",
        about: "traffic and CPU of ten nodes that do nothing",
        run: idle::run,
    },
    Row {
        name: "http",
        about: "requests a second of the diagnostic server on one core",
        run: http::run,
    },
    Row {
        name: "detect",
        about: "a node of five dies without a word",
        run: detect::run,
    },
    Row {
        name: "heal",
        about: "a partition of six nodes ends",
        run: detect::heal,
    },
    Row {
        name: "roster",
        about: "a thousand nodes, with --quick a hundred, learn of each other",
        run: scale::roster,
    },
    Row {
        name: "fdb",
        about: "10 k and 100 k peers of an overlay network into the kernel; needs root",
        run: fdb::run,
    },
    Row {
        name: "services",
        about: "a thousand services of ten endpoints into the kernel; needs root",
        run: services::run,
    },
    Row {
        name: "datapath",
        about: "a record on one host until it is in the kernel of another; needs root",
        run: datapath::run,
    },
    Row {
        name: "scale",
        about: "what an event costs each node of small and large clusters",
        run: scale::scale,
    },
];

/// The same rows over real processes.
pub const PROCESS_ROWS: &[Row] = processes::ROWS;
/// The same rows for a peer.
#[cfg(feature = "peers")]
pub const PEER_ROWS: &[Row] = peers::ROWS;
/// The same rows for a peer; none without the feature `peers`.
#[cfg(not(feature = "peers"))]
pub const PEER_ROWS: &[Row] = &[];

/// Where a row leaves its figures.
#[derive(Debug)]
pub struct Report {
    row: &'static str,
}

impl Report {
    /// Hands a figure over at once: what was measured before a failure counts.
    pub fn add(&mut self, figure: Figure) {
        let figure = Figure {
            row: self.row.to_owned(),
            ..figure
        };
        let text = serde_json::to_string(&figure).expect("plain data");
        // A bench that is gone has nobody to tell.
        drop(writeln!(std::io::stdout(), "{text}"));
    }
}
