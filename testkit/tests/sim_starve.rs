//! Nodes that hardly get to run, in a cluster of nodes that do.

use std::time::Duration;

use testkit::sim::starve::Starvation;

/// Pain 12. Nodes flapped when the processor was busy (moby#32195, consul#1212).
///
/// One node of twenty gets a few milliseconds between pauses of 1 to 3 s. The table in `docs/ALGORITHM.md` has more
/// nodes, more time, and what happens without the rules.
#[test]
fn starved_nodes_make_nobody_declare_a_node_down_that_runs() {
    for (seed, pause) in [(1, 1), (2, 2), (3, 3)] {
        let accused = Starvation {
            seed,
            nodes: 20,
            starved: 1,
            pause: Duration::from_secs(pause),
            time: Duration::from_secs(300),
            left_out: Vec::new(),
        }
        .run();
        assert_eq!(accused.false_positives, 0, "pauses of {pause} s");
        // A node that answers every few seconds is no dead one either.
        assert!(accused.detections <= 5, "pauses of {pause} s: {accused:?}");
    }
}
