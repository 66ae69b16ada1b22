//! A cluster over more than a day, with the reap intervals of real nodes.

use std::time::Duration;

use networkdb::Config;
use testkit::check::World;
use testkit::sim::Setup;
use testkit::sim::fault::{Fault, Size, Swarm};

/// Dead records go and stay away, whatever clocks and hosts did in 25 hours.
///
/// The failure detector is slow here, because most of the time goes into it. With the default settings:
/// `simulate --hours 25 --nodes 5`.
#[test]
fn after_twenty_five_hours_of_skewed_clocks_and_suspended_hosts_all_dead_records_are_gone() {
    let size = Size {
        nodes: 4,
        networks: 2,
        keys: 3,
        steps: 150,
    };
    let faults = [Fault::Crash, Fault::Partition, Fault::Pause, Fault::Leave];
    let mut swarm = Swarm::new(4, size, &faults).spread_over(Duration::from_secs(25 * 3_600));
    let short = swarm.setup();
    let setup = Setup {
        config: Config {
            member_gossip_period: Duration::from_secs(1),
            ..Config::wan()
        },
        ..short
    };
    assert_eq!(
        setup.config.node_reap_interval,
        Duration::from_secs(24 * 3_600)
    );
    let mut world = World::new(setup, size.nodes, size.networks).expect("the cluster forms");
    if let Err(failure) = swarm.run(&mut world) {
        panic!("{failure}\n{}", world.story.join("\n"));
    }
    assert!(world.sim.elapsed() > Duration::from_secs(25 * 3_600));
}
