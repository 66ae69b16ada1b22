//! Doing what a scenario says, and telling the model.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use networkdb::engine::{Body, TableRecord, WriteError, WriteKind, value_hash};
use networkdb::id::Version;
use networkdb::wire::Message;
use networkdb::{Generation, Key, LamportTime, NodeId, Stamp, TableName};

use super::{Failure, World, versions_in};
use crate::op::{Op, Place};
use crate::sim::{Conditions, Disk};

/// First byte of a datagram that holds a gossip message.
const KIND_GOSSIP: u8 = 2;
/// The table of bursts.
const BURST_TABLE: &str = "burst";

impl World {
    /// Does one thing, writes it into the story and checks what follows.
    pub fn act(&mut self, op: &Op) -> Result<(), Failure> {
        let line = self.story.len();
        let at = self.sim.elapsed().as_secs_f64();
        self.story.push(format!("[{at:11.6}] {op}"));
        self.steps += 1;
        if let Err(refused) = self.perform(op)? {
            self.story[line].push_str(" -> ");
            self.story[line].push_str(&refused);
        }
        for node in 0..self.held.len() {
            self.look(node);
            self.check_step(node)?;
        }
        Ok(())
    }

    fn perform(&mut self, op: &Op) -> Result<Result<(), String>, Failure> {
        match *op {
            Op::Create(place, value) => return Ok(self.write(place, Some(value), true)),
            Op::Update(place, value) => return Ok(self.write(place, Some(value), false)),
            Op::Delete(place) => return Ok(self.write(place, None, false)),
            Op::Attach(node, network) => return Ok(self.attach(node, network)),
            Op::Detach(node, network) => return Ok(self.detach(node, network)),
            Op::Leave(node) => return Ok(self.leave(node)),
            Op::Join(node, through) => {
                if !self.sim.is_running(node) {
                    return Ok(Err("not running".to_owned()));
                }
                self.in_cluster[node] = true;
                self.sim.join(node, through);
            }
            Op::Crash(node, disk) => return Ok(self.crash(node, disk)),
            Op::Start(node) => return Ok(self.start(node)),
            Op::Run(millis) => self.run_for(Duration::from_millis(millis))?,
            Op::Poison(node, network, power) => self.poison(node, network, power),
            Op::Burst(node, network, keys) => return Ok(self.burst(node, network, keys)),
            Op::Pause(_)
            | Op::Suspend(_)
            | Op::Resume(_)
            | Op::Rate(..)
            | Op::Block(..)
            | Op::Clog(..)
            | Op::Split(_)
            | Op::Heal
            | Op::Weather(..)
            | Op::Digests(_)
            | Op::Cut(..)
            | Op::Replay(_)
            | Op::Forge(..) => self.disturb(op),
        }
        Ok(Ok(()))
    }

    /// Operations that change how nodes run and what the network does, and nothing else.
    fn disturb(&mut self, op: &Op) {
        self.is_skewed |= matches!(op, Op::Rate(..) | Op::Suspend(_));
        match *op {
            Op::Pause(node) => self.sim.pause(node),
            Op::Suspend(node) => self.sim.suspend(node),
            Op::Resume(node) => self.sim.resume(node),
            Op::Rate(node, rate) => self.sim.set_rate(node, rate),
            Op::Block(from, to) => self.sim.set_blocked(from, to, true),
            Op::Clog(from, to, growth) => self.sim.clog(from, to, Duration::from_millis(growth)),
            Op::Heal => self.sim.heal(),
            Op::Split(ref nodes) => {
                let others = (0..self.held.len()).filter(|node| !nodes.contains(node));
                let others: Vec<usize> = others.collect();
                self.sim.partition(nodes, &others);
            }
            Op::Weather(lost, doubled, changed, delay) => {
                self.is_spoiled |= changed > 0 && !self.sim.is_sealed();
                let good = Conditions::good();
                self.sim.set_conditions(Conditions {
                    loss: f64::from(lost) / 100.0,
                    duplication: f64::from(doubled) / 100.0,
                    corruption: f64::from(changed) / 100.0,
                    delay_max: good.delay_min.max(Duration::from_millis(delay)),
                    ..good
                });
            }
            Op::Digests(lost) => self.sim.set_digest_loss(f64::from(lost) / 100.0),
            Op::Cut(node, frames) => self.sim.cut_after(node, frames),
            Op::Replay(seed) => {
                self.is_spoiled |= !self.sim.is_sealed();
                self.sim.replay(seed);
            }
            Op::Forge(node, seed) => {
                self.is_spoiled |= !self.sim.is_sealed();
                self.sim.forge(node, seed);
            }
            Op::Create(..)
            | Op::Update(..)
            | Op::Delete(_)
            | Op::Attach(..)
            | Op::Detach(..)
            | Op::Leave(_)
            | Op::Join(..)
            | Op::Crash(..)
            | Op::Start(_)
            | Op::Poison(..)
            | Op::Burst(..)
            | Op::Run(_) => {}
        }
    }

    fn version_at(&self, place: Place) -> Option<Version> {
        let held = self.held[place.node].get(&place.network)?;
        versions_in(&held.tables).remove(&place.key)
    }

    fn write(&mut self, place: Place, value: Option<u64>, is_new: bool) -> Result<(), String> {
        let before = self.version_at(place);
        let before = before.and_then(|v| self.model.find(place.network, place.key, &v));
        let network = self.networks[place.network].clone();
        let table = self.table_of(place.key).clone();
        let key = Key::new(format!("k{}", place.key)).expect("a short name");
        let value = value.map(|value| Bytes::from(format!("w{value}")));
        let result = self.sim.with(place.node, |engine, now| match value {
            Some(value) if is_new => engine.create_entry(&network, &table, &key, value, now),
            Some(value) => engine.update_entry(&network, &table, &key, value, now),
            None => engine.delete_entry(&network, &table, &key, now),
        });
        match result {
            None => return Err("not running".to_owned()),
            Some(result) => result.map_err(|error| error.to_string())?,
        }
        let version = self.version_at(place).ok_or("the write left nothing")?;
        let at = self.sim.elapsed();
        self.model.write(place, before, &version, at);
        Ok(())
    }

    fn attach(&mut self, node: usize, network: usize) -> Result<(), String> {
        let name = self.networks[network].clone();
        let result = self
            .sim
            .with(node, |engine, now| engine.join_network(&name, now));
        result
            .ok_or("not running")?
            .map_err(|error| error.to_string())?;
        self.model.attach(node, network);
        Ok(())
    }

    fn detach(&mut self, node: usize, network: usize) -> Result<(), String> {
        let name = self.networks[network].clone();
        let result = self
            .sim
            .with(node, |engine, now| engine.leave_network(&name, now));
        result
            .ok_or("not running")?
            .map_err(|error| error.to_string())?;
        self.model.detach(node, network, self.sim.elapsed(), true);
        Ok(())
    }

    fn end_all(&mut self, node: usize, is_lasting: bool) {
        let at = self.sim.elapsed();
        for network in 0..self.networks.len() {
            self.model.detach(node, network, at, is_lasting);
        }
    }

    fn leave(&mut self, node: usize) -> Result<(), String> {
        if !self.sim.is_running(node) {
            return Err("not running".to_owned());
        }
        self.in_cluster[node] = false;
        self.end_all(node, true);
        self.sim.leave(node);
        Ok(())
    }

    fn crash(&mut self, node: usize, disk: Disk) -> Result<(), String> {
        let Some(engine) = self.sim.engine_if_up(node) else {
            return Err("not up".to_owned());
        };
        let state = engine.persistent();
        self.sim.crash_with(node, disk);
        self.model.forget(node, None);
        let is_same = self.sim.disk(node).is_some_and(|kept| {
            kept.generation == state.generation && kept.attachments == state.attachments
        });
        if !is_same {
            if disk != Disk::Lost {
                self.model.doubt(node);
            }
            self.end_all(node, false);
        }
        Ok(())
    }

    fn start(&mut self, node: usize) -> Result<(), String> {
        if self.sim.engine_if_up(node).is_some() {
            return Err("already up".to_owned());
        }
        self.sim.start(node);
        let networks = self.sim.engine(node).store().networks();
        for network in 0..self.networks.len() {
            let is_attached = networks.contains(&self.networks[network]);
            match (is_attached, self.model.is_attached(node, network)) {
                (true, false) => self.model.attach(node, network),
                (false, true) => {
                    let at = self.sim.elapsed();
                    self.model.detach(node, network, at, false);
                }
                (true, true) | (false, false) => {}
            }
        }
        Ok(())
    }

    /// Writes many keys of a table that is not the model's, so that they go by feeds.
    fn burst(&mut self, node: usize, network: usize, keys: usize) -> Result<(), String> {
        let network = self.networks[network].clone();
        let table = TableName::new(BURST_TABLE).expect("a short name");
        let value = Bytes::from(format!("n{node} at step {}", self.steps));
        let result = self.sim.with(node, |engine, now| {
            (0..keys).try_for_each(|number| {
                let key = Key::new(format!("burst-{number}")).expect("a short name");
                match engine.update_entry(&network, &table, &key, value.clone(), now) {
                    Err(WriteError::Missing { .. }) => {
                        engine.create_entry(&network, &table, &key, value.clone(), now)
                    }
                    result => result,
                }
            })
        });
        let result = result.ok_or("not running")?;
        result.map_err(|error| error.to_string())
    }

    /// Lets a record of a node that nobody knows arrive, far ahead of this node's clock.
    fn poison(&mut self, node: usize, network: usize, power: u32) {
        let Some(engine) = self.sim.engine_if_up(node) else {
            return;
        };
        let ahead = engine.persistent().table_time_ceiling.0;
        let body = Bytes::from_static(b"poison");
        let joined = LamportTime(1);
        let record = TableRecord {
            network: self.networks[network].clone(),
            table: self.tables[0].clone(),
            key: Key::new("poison").expect("a short name"),
            version: Version {
                time: LamportTime(match power {
                    0..63 => ahead.saturating_add(1 << power),
                    _ => (1 << 63) - 1,
                }),
                owner: NodeId::new("ghost").expect("a short name"),
                stamp: Stamp {
                    generation: Generation(1),
                    joined,
                },
                tombstone: false,
                value_hash: value_hash(&body),
            },
            kind: WriteKind::Create,
            body: Body::Value(body),
            residual: None,
        };
        let message = Message::Table(record).encode();
        let mut payload = BytesMut::with_capacity(message.len() + 1);
        payload.put_u8(KIND_GOSSIP);
        payload.put_slice(&message);
        self.sim.deliver(node, payload.freeze());
    }
}
