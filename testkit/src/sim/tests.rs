//! The simulator itself.

use super::*;

fn trace(seed: u64) -> (u64, Duration, Vec<(usize, usize, Bytes)>) {
    let mut setup = Setup::new(seed);
    setup.conditions = Conditions::lossy(0.1);
    let mut sim = Sim::cluster(setup, 8);
    sim.sent = Some(Vec::new());
    let network = NetworkId::new("net").unwrap();
    for node in 0..8 {
        sim.with(node, |engine, now| engine.join_network(&network, now));
    }
    sim.run_for(Duration::from_secs(5));
    (sim.steps(), sim.elapsed(), sim.sent.unwrap())
}

#[test]
fn the_same_seed_gives_the_same_run_byte_for_byte() {
    let first = trace(7);
    assert_eq!(first, trace(7));
    assert_ne!(first, trace(8));
}
