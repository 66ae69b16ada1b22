//! Each rule of the data model with the steps that need it (`study/model.md`, C1 to C12), and what breaks without it.

use std::time::Duration;

use networkdb::engine::Rule;
use testkit::check::{Failure, World};
use testkit::sim::{Setup, Sim};

/// Dead records are kept for a minute, failed nodes for two.
const REAP: Duration = Duration::from_secs(60);

/// Three nodes, attached to one network, of which n0 has created k0 and all have it.
const START: &str = "
    n0 attach net0
    n1 attach net0
    n2 attach net0
    run 1000
    n0 create net0 k0 1
    run 1000
";

fn play(scenario: &str, left_out: &[Rule], seed: u64) -> Result<World, Failure> {
    let mut setup = Setup::new(seed);
    setup.config.reap_interval = REAP;
    setup.config.node_reap_interval = 2 * REAP;
    setup.config.left_out = left_out.to_vec();
    let mut world = World::new(setup, 3, 1)?;
    world.tell(START)?;
    world.tell(scenario)?;
    world.calm()?;
    world.settle()?;
    Ok(world)
}

/// Plays the steps after [`START`]: with all rules every invariant holds, whatever the seed.
fn holds(scenario: &str) {
    for seed in 0..5 {
        if let Err(failure) = play(scenario, &[], seed) {
            panic!("seed {seed}: {failure}");
        }
    }
}

/// The same, and without the rule one of the invariants is broken in at least one run.
fn needs(rule: Rule, scenario: &str) -> Vec<u8> {
    holds(scenario);
    let broken: Vec<u8> = (0..5)
        .filter_map(|seed| play(scenario, &[rule], seed).err())
        .map(|failure| failure.invariant)
        .collect();
    assert!(!broken.is_empty(), "nothing breaks without {rule:?}");
    broken
}

/// C1. n0 misses n1's update; n1 detaches; n2 must not take n0's old value for current.
#[test]
fn an_overwritten_value_does_not_return_when_the_overwriter_leaves() {
    let broken = needs(
        Rule::Stubs,
        "split n0
         n1 update net0 k0 2
         run 300
         n1 detach net0
         run 300
         heal",
    );
    assert!(broken.contains(&2), "{broken:?}");
}

/// C2. n0 deletes, the tombstone expires, n1 takes the key over; then n0 meets n2, which still has its old entry.
#[test]
fn a_veto_does_not_destroy_what_another_node_wrote_since() {
    let broken = needs(
        Rule::RefuteAtOwnTime,
        "split n2
         n0 delete net0 k0
         run 75000
         split n1
         n1 create net0 k0 2
         n0 create net0 k1 3
         n0 update net0 k1 4
         n0 update net0 k1 5
         n0 update net0 k1 6
         run 100
         heal
         split n1
         run 15000
         heal",
    );
    assert!(broken.contains(&3), "{broken:?}");
}

/// The owner deleted its entry; who was away for longer than tombstones are kept must not bring it back.
#[test]
fn an_entry_that_its_owner_deleted_does_not_return_after_a_partition_of_any_length() {
    let broken = needs(
        Rule::Veto,
        "split n2
         n0 delete net0 k0
         run 80000
         heal",
    );
    assert!(broken.contains(&2), "{broken:?}");
}

/// C3. n0 is down while n1 deletes its entry; n2 missed the delete.
#[test]
fn a_resumed_owner_does_not_resurrect_what_another_deleted() {
    holds(
        "split n2
         n0 crash kept
         run 300
         n1 delete net0 k0
         run 300
         n0 start
         run 200
         heal",
    );
}

/// C4. n0 detaches, crashes, and attaches again; n2 missed that it had left.
#[test]
fn a_restarted_owner_does_not_resurrect_what_it_left() {
    holds(
        "split n2
         n0 detach net0
         run 300
         n0 crash kept
         n0 start
         run 300
         n0 attach net0
         run 300
         heal",
    );
}

/// C5. n0 deletes, crashes and resumes; n2 missed the delete.
#[test]
fn a_resumed_owner_does_not_refute_its_own_delete() {
    holds(
        "split n2
         n0 delete net0 k0
         run 300
         n0 crash kept
         run 200
         n0 start
         run 200
         heal",
    );
}

/// C3 to C5, the other side: what a restart must not lose.
#[test]
fn entries_of_a_node_that_resumes_are_taken_as_found() {
    let broken = needs(
        Rule::TakeAsFound,
        "n0 crash kept
         run 500
         n0 start
         run 5000",
    );
    assert!(broken.contains(&3), "{broken:?}");
}

/// C6. n1's tombstone is in its last sixth when n2 returns with the entry, and n0, which would veto it, has restarted.
#[test]
fn a_delete_holds_to_the_end_of_its_interval() {
    needs(
        Rule::Renewal,
        "split n2
         n1 delete net0 k0
         run 500
         n0 crash kept
         run 53000
         heal
         run 1500
         n0 start
         run 500",
    );
}

/// C7. A live record of a node that nobody knows.
#[test]
fn what_belongs_to_nobody_expires() {
    holds("n0 poisoned net0 5");
}

/// C8. Without the last sixth nodes hand a dead record to each other for ever.
#[test]
fn dead_records_do_not_go_round_between_nodes_whose_clocks_differ() {
    holds(
        "n0 rate 900
         n1 rate 1100
         n2 rate 1000
         n0 delete net0 k0
         n1 detach net0",
    );
}

/// C9. Two runs of n0 that share no state, the first seen by n2 only.
#[test]
fn two_runs_of_a_node_never_share_a_stamp() {
    holds(
        "split n0 n2
         n0 crash lost
         n0 start
         n0 join n2
         run 1500
         n0 attach net0
         run 300
         n0 create net0 k1 2
         run 300
         n0 crash lost
         heal
         split n2
         n0 start
         n0 join n1
         run 3000
         n0 attach net0
         run 300
         heal",
    );
}

/// C10. n0 loses its state and writes with times of the past while it is alone.
#[test]
fn a_write_beaten_by_an_earlier_run_of_its_own_node_is_issued_again() {
    let broken = needs(
        Rule::Reissue,
        "n0 update net0 k0 2
         n0 update net0 k0 3
         n0 update net0 k0 4
         run 500
         n0 crash lost
         split n0
         n0 start
         n0 attach net0
         n0 create net0 k0 5
         run 500
         heal",
    );
    assert!(broken.contains(&3), "{broken:?}");
}

/// C11. Two processes with one id: the later run goes on, the earlier one is told to stop.
#[test]
fn of_two_processes_with_one_id_the_earlier_run_stops() {
    let mut sim = Sim::cluster(Setup::new(1), 3);
    sim.run_for(Duration::from_secs(5));
    let twin = sim.add_node_as(sim.id(2).clone());
    sim.join(twin, 0);
    let told = sim.run_until(Duration::from_secs(60), |sim| sim.met_twin(2));
    assert!(told.is_some(), "the earlier run goes on");
    sim.run_for(Duration::from_secs(30));
    assert!(
        !sim.met_twin(twin),
        "the later run was told to stop as well"
    );
    assert!(sim.members_agree());
}

/// The other side of C11: the later run was an earlier process at another address, and nobody answers there any more.
#[test]
fn a_node_that_hears_of_a_later_run_elsewhere_that_is_gone_goes_on_above_it() {
    let mut sim = Sim::cluster(Setup::new(2), 3);
    sim.run_for(Duration::from_secs(5));
    sim.partition(&[2], &[0, 1]);
    let elsewhere = sim.add_node_as(sim.id(2).clone());
    sim.partition(&[2], &[elsewhere]);
    sim.join(elsewhere, 0);
    sim.run_for(Duration::from_secs(10));
    sim.crash(elsewhere);
    sim.heal();
    let agreed = sim.run_until(Duration::from_secs(60), Sim::members_agree);
    assert!(agreed.is_some(), "the node that is left is no member");
    assert!(!sim.met_twin(2));
}

/// C12. The limit of the promise: a delete by another node holds for the reap interval, the owner may bring it back later.
#[test]
fn a_delete_by_another_node_holds_no_longer_than_its_interval() {
    let world = play(
        "split n0
         n1 delete net0 k0
         run 80000
         heal
         run 20000
         n1 create net0 k0 2",
        &[],
        1,
    )
    .expect("every invariant holds");
    assert!(world.story.last().is_some());
    let refused = world
        .story
        .iter()
        .any(|line| line.contains("already exists"));
    assert!(refused, "the owner brought it back: {:#?}", world.story);
}

/// A record about a node that is above its own: the disk that it resumed from was older.
#[test]
fn a_node_that_finds_a_later_record_of_itself_takes_a_stamp_above() {
    let broken = needs(
        Rule::SelfRefutation,
        "n0 detach net0
         run 1000
         n0 crash stale
         n0 start
         run 3000
         n0 create net0 k2 7
         run 1000",
    );
    assert!(broken.contains(&3) || broken.contains(&1), "{broken:?}");
}
