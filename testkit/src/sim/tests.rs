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

#[test]
fn nodes_made_acquainted_show_a_write_and_repair_what_was_lost() {
    let (network, table) = (
        NetworkId::new("net").expect("a valid name"),
        TableName::new("table").expect("a valid name"),
    );
    let key = Key::new("key").expect("a valid name");
    let mut sim = Sim::acquainted(Setup::new(1), 100, &network);
    assert!(sim.members_agree());
    sim.set_conditions(Conditions::lossy(0.5));
    let value = Bytes::from_static(b"value");
    let created = sim.with(7, |engine, now| {
        engine.create_entry(&network, &table, &key, value, now)
    });
    created.expect("the node is up").expect("the key is free");
    let agreed = sim.run_until(Duration::from_secs(60), |sim| {
        let digest = |node| {
            sim.engine(node)
                .store()
                .network(&network)
                .map(|all| all.digest())
        };
        (0..100).all(|node| digest(node) == digest(7))
    });
    assert!(agreed.is_some());
    assert_eq!(sim.engine(99).roster().attached(&network).len(), 100);
    assert_eq!(sim.downs(), []);
}
