//! The quiet after the faults: everything has to come right within a bound.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Failure, World, count_visible, visible_in};
use crate::sim::Conditions;

/// How long the cluster may take to agree once faults have stopped.
const AGREE_WITHIN: Duration = Duration::from_secs(180);
/// How often it is looked at meanwhile.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

impl World {
    /// Stops all faults; nodes that are down or out of the cluster stay so.
    pub fn calm(&mut self) -> Result<(), Failure> {
        let at = self.sim.elapsed().as_secs_f64();
        self.story.push(format!("# [{at:11.6}] faults stop"));
        self.sim.heal();
        self.sim.set_conditions(Conditions::good());
        for node in 0..self.held.len() {
            self.sim.resume(node);
            self.check_step(node)?;
        }
        Ok(())
    }

    /// Checks all invariants once no fault is left: first when the nodes agree, again when all dead records are gone.
    ///
    /// `spoiled` runs, in which unsealed bytes were forged, have to agree and say nothing of what they agree on.
    pub fn settle(&mut self) -> Result<(), Failure> {
        let calm_since = self.sim.elapsed();
        if self.is_spoiled {
            return Ok(());
        }
        self.run_until("members are not true", Self::members_are_true)?;
        self.run_until("attachments are not true", Self::attachments_are_true)?;
        self.run_until("nodes do not agree", Self::nodes_agree)?;
        self.judge(calm_since)?;
        let config = self.sim.config();
        let (reap, keep) = (config.reap_interval, config.node_reap_interval);
        let keep = keep + reap;
        self.run_for(keep * 3 / 2)?;
        self.run_until("dead records stay", Self::dead_are_gone)?;
        self.run_until("members are not true", Self::members_are_true)?;
        self.run_until("nodes do not agree", Self::nodes_agree)?;
        self.run_until("digests differ", Self::digests_agree)?;
        self.run_for(reap / 2)?;
        if let Err((invariant, why)) = self.dead_are_gone() {
            return Err(self.failure(invariant, format!("dead records came back: {why}")));
        }
        self.judge(calm_since)
    }

    /// Lets virtual time pass until a condition holds, for so long and no longer.
    pub(super) fn run_until(
        &mut self,
        what: &str,
        holds: impl Fn(&Self) -> Result<(), (u8, String)>,
    ) -> Result<(), Failure> {
        let until = self.sim.elapsed() + AGREE_WITHIN;
        loop {
            let Err((invariant, why)) = holds(self) else {
                return Ok(());
            };
            if self.sim.elapsed() >= until {
                let what = format!("{what} after {AGREE_WITHIN:?}: {why}");
                return Err(self.failure(invariant, what));
            }
            self.run_for(LOOK_PERIOD)?;
        }
    }

    /// Nodes that are up and take part.
    fn members(&self) -> Vec<usize> {
        let up = self.sim.up().into_iter();
        up.filter(|node| self.in_cluster[*node]).collect()
    }

    /// Nodes that are up, take part and are attached.
    fn attached(&self, network: usize) -> Vec<usize> {
        let members = self.members().into_iter();
        members
            .filter(|node| self.held[*node].contains_key(&network))
            .collect()
    }

    pub(super) fn members_are_true(&self) -> Result<(), (u8, String)> {
        let members = self.members();
        if self.sim.lists_exactly(&members) {
            return Ok(());
        }
        let counts: Vec<(usize, usize)> = members
            .iter()
            .map(|node| (*node, self.sim.engine(*node).roster().members().len()))
            .filter(|(_, count)| *count != members.len())
            .take(8)
            .collect();
        let expected = members.len();
        Err((
            6,
            format!("{expected} are live, (node, members it lists): {counts:?}"),
        ))
    }

    fn attachments_are_true(&self) -> Result<(), (u8, String)> {
        for (network, name) in self.networks.iter().enumerate() {
            let attached = self.attached(network);
            let ids: Vec<_> = attached.iter().map(|node| self.sim.id(*node)).collect();
            for node in self.members() {
                let listed = self.sim.engine(node).roster().attached(name);
                if !listed.iter().eq(ids.iter().copied()) {
                    let why = format!("n{node} lists {listed:?} in {name}, it is {ids:?}");
                    return Err((1, why));
                }
            }
        }
        Ok(())
    }

    fn nodes_agree(&self) -> Result<(), (u8, String)> {
        for network in 0..self.networks.len() {
            let mut first: Option<(usize, BTreeMap<usize, _>)> = None;
            for node in self.attached(network) {
                let visible = visible_in(&self.held[node][&network].tables);
                match &first {
                    None => first = Some((node, visible)),
                    Some((other, theirs)) if *theirs != visible => {
                        let why = format!(
                            "net{network}: n{other} shows {theirs:?}, n{node} shows {visible:?}"
                        );
                        return Err((1, why));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    fn digests_agree(&self) -> Result<(), (u8, String)> {
        for network in 0..self.networks.len() {
            let attached = self.attached(network).into_iter();
            let mut digests = attached.map(|node| self.held[node][&network].tables.digest());
            let first = digests.next();
            if digests.any(|digest| Some(digest) != first) {
                return Err((1, format!("nodes attached to net{network} differ")));
            }
        }
        let members = self.members().into_iter();
        let mut digests = members.map(|node| self.sim.engine(node).cluster_digest());
        let first = digests.next();
        if digests.any(|digest| Some(digest) != first) {
            return Err((1, "nodes know different nodes or attachments".to_owned()));
        }
        Ok(())
    }

    fn dead_are_gone(&self) -> Result<(), (u8, String)> {
        for network in 0..self.networks.len() {
            for node in self.attached(network) {
                let tables = &self.held[node][&network].tables;
                let (held, visible) = (tables.len(), count_visible(tables));
                if held != visible {
                    let why = format!(
                        "n{node} holds {held} records of net{network}, {visible} are visible"
                    );
                    return Err((1, why));
                }
            }
        }
        let members = self.members();
        let attached = (0..self.networks.len()).map(|network| self.attached(network).len());
        let live = (members.len(), attached.sum::<usize>());
        for node in members {
            let known = self.sim.engine(node).cluster_records();
            if known != live {
                let why =
                    format!("n{node} knows {known:?} nodes and attachments, {live:?} are live");
                return Err((1, why));
            }
        }
        Ok(())
    }

    /// Asks the model about everything that is visible, and everything that should be.
    fn judge(&mut self, calm_since: Duration) -> Result<(), Failure> {
        let keep = self.sim.config().reap_interval;
        // A clock may be a tenth fast, a suspended one any time slow; a record is a few round trips older than it says.
        let counts = if self.is_skewed {
            keep * 3 / 4
        } else {
            keep * 49 / 50
        };
        let since = calm_since.saturating_sub(counts);
        for network in 0..self.networks.len() {
            for node in self.attached(network) {
                let visible = visible_in(&self.held[node][&network].tables);
                for (key, (value, _)) in &visible {
                    if let Err(why) = self.model.judge_visible(value, since) {
                        let what =
                            format!("n{node} shows {value:?} under net{network} k{key}, but {why}");
                        return Err(self.failure(2, what));
                    }
                }
            }
        }
        for (network, key) in self.model.keys() {
            let Some((hash, owner)) = self.model.demand(network, key) else {
                continue;
            };
            if self.sim.engine_if_up(owner).is_none() || !self.in_cluster[owner] {
                continue;
            }
            for node in self.attached(network) {
                let visible = visible_in(&self.held[node][&network].tables);
                if visible.get(&key).is_none_or(|(_, found)| *found != hash) {
                    let found = visible.get(&key);
                    let what = format!(
                        "n{owner} wrote net{network} k{key} last, n{node} shows {found:?} instead"
                    );
                    return Err(self.failure(3, what));
                }
            }
        }
        for node in self.sim.up() {
            self.check_watch(node)?;
            if self.sim.met_twin(node) {
                return Err(self.failure(6, format!("n{node} was told to stop, and has no twin")));
            }
        }
        Ok(())
    }
}
