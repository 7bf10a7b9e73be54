//! Faults, drawn by the seed: which kinds a run has, when they strike, and whom.
//!
//! **What a run never does**, because nothing promises to survive it: to let a node that keeps nothing on disk (or a
//! disk) be lost while a group could not spare it. A group spares a node if its leader says that no change is under way
//! and, without the node and all that are lost already, a majority of its voters is left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};

use super::clients::REGISTERS;
use super::disk::Disk;
use super::machine::Machine;
use super::network::Weather;
use super::world::{Alarm, World};
use crate::id::{NodeId, PartitionId};
use crate::mutation::{Mutation, planted};
use crate::replication::Role;
use crate::time::Timestamp;

/// Fewest nodes that are left in a swarm, and most that come.
const NODES: (usize, usize) = (3, 8);

/// A group whose voters changed within this time cannot spare anybody: those who are left must know of it, even if
/// their disks are slow.
const SETTLED: Duration = Duration::from_secs(5);

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// A process dies, and the kernel closes its connections.
    Kill,
    /// A machine loses power, and nobody is told.
    PowerCut,
    /// All durable machines lose power within a moment.
    Blackout,
    /// A machine loses its disk; what starts on it is another node.
    Wipe,
    /// A process stands still for a while.
    Pause,
    /// Whoever leads what is being read is cut off, and may stand still until others have taken over.
    Depose,
    /// Two sides do not hear each other.
    Cut,
    /// One side is not heard by the other.
    CutOneWay,
    /// Some pairs do not hear each other, all are still connected by others.
    CutPartly,
    /// One node joins.
    Join,
    /// One node leaves.
    Leave,
    /// Several join and leave at once.
    Storm,
    /// A node hands over what it leads, stops and comes back.
    Stop,
    /// A disk is slow for a while, or hangs.
    SlowDisk,
    /// A disk is full for a while.
    FullDisk,
    /// A node writes down the state of all its replicas and cuts its logs.
    KeepStates,
    /// Links lose messages, are slow, or unruly, for a while.
    Weather,
}

const ALL: [Fault; 17] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::Blackout,
    Fault::Wipe,
    Fault::Pause,
    Fault::Depose,
    Fault::Cut,
    Fault::CutOneWay,
    Fault::CutPartly,
    Fault::Join,
    Fault::Leave,
    Fault::Storm,
    Fault::Stop,
    Fault::SlowDisk,
    Fault::FullDisk,
    Fault::KeepStates,
    Fault::Weather,
];

/// What ends after a while.
#[derive(Debug, Clone, Copy)]
enum Lasting {
    Cut,
    /// Then this one stands still.
    CutThenPause(NodeId),
    /// Then readers come to this one, which led this key.
    Deposed(NodeId, &'static str),
    /// Then it is heard again.
    Depose,
    /// Then this one's disk is lost.
    Wipe(NodeId),
    Weather,
    FullDisk(NodeId),
    SlowDisk(NodeId),
    Stop(NodeId),
}

#[derive(Debug)]
pub(super) struct Storm {
    kinds: Vec<Fault>,
    /// Longest time between two faults.
    pace_ms: u64,
    durable: Durability,
    /// By the number of the alarm that ends it.
    lasting: BTreeMap<u32, Lasting>,
    next: u32,
    pub(super) is_over: bool,
}

/// Which nodes of a run keep what they know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    None,
    All,
    Some,
}

impl Durability {
    pub(super) fn draw(self, world: &mut World) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some => world.rng.random(),
        }
    }
}

impl Storm {
    /// Each run has some kinds of faults only: so that rare ones are not drowned by frequent ones.
    pub(super) fn new(world: &mut World, durable: Durability) -> Self {
        let mut kinds: Vec<Fault> = ALL.to_vec();
        kinds.shuffle(&mut world.rng);
        kinds.truncate(world.rng.random_range(3..=10));
        // Old leaders are what reads must be guarded against in every run.
        kinds.extend([Fault::Depose; 3]);
        if durable != Durability::None && world.rng.random_bool(0.4) {
            // It needs groups that have not changed lately, so it is tried often, and nodes neither come nor go.
            kinds.retain(|kind| !matches!(kind, Fault::Join | Fault::Leave | Fault::Storm));
            kinds.extend([Fault::Wipe; 3]);
        }
        let pace_ms = world.rng.random_range(400..2500);
        world.network.weather = Weather::usual();
        world.alarm(Duration::from_millis(500), Alarm::Fault);
        Self { kinds, pace_ms, durable, lasting: BTreeMap::new(), next: 0, is_over: false }
    }

    /// The next fault strikes.
    pub(super) fn strike(&mut self, world: &mut World) {
        if self.is_over {
            return;
        }
        let next = world.ms(50, self.pace_ms);
        world.alarm(next, Alarm::Fault);
        let Some(fault) = self.kinds.choose(&mut world.rng).copied() else { return };
        let up = world.up();
        let Some(node) = up.choose(&mut world.rng).copied() else { return };
        match fault {
            Fault::Kill => self.kill(world, node, false),
            Fault::PowerCut => self.kill(world, node, true),
            Fault::Blackout => blackout(world),
            Fault::Wipe => self.wipe(world, &up),
            Fault::Pause => {
                world.count("pauses");
                let pause = if world.rng.random() { world.ms(50, 500) } else { world.ms(500, 6_000) };
                world.pause(node, pause);
            }
            Fault::Depose => self.depose(world),
            Fault::Cut | Fault::CutOneWay | Fault::CutPartly => self.cut(world, fault, &up),
            Fault::Join => self.join(world),
            Fault::Leave => leave(world, node),
            Fault::Storm => {
                world.count("membership storms");
                for _ in 0..world.rng.random_range(2..=3) {
                    self.join(world);
                }
                for node in up.into_iter().take(2) {
                    leave(world, node);
                }
            }
            Fault::Stop => self.stop(world, node),
            Fault::SlowDisk => self.slow_disk(world, node),
            Fault::FullDisk => self.full_disk(world, node),
            Fault::KeepStates => keep_states(world, node),
            Fault::Weather => self.weather(world),
        }
    }

    fn last(&mut self, world: &mut World, what: Lasting, low_ms: u64, high_ms: u64) {
        let after = world.ms(low_ms, high_ms);
        self.last_for(world, what, after);
    }

    fn last_for(&mut self, world: &mut World, what: Lasting, after: Duration) {
        self.lasting.insert(self.next, what);
        world.alarm(after, Alarm::Over(self.next));
        self.next += 1;
    }

    /// A fault that lasts is over.
    pub(super) fn over(&mut self, world: &mut World, number: u32) {
        match self.lasting.remove(&number) {
            Some(Lasting::Cut) => world.heal(),
            Some(Lasting::Deposed(leader, key)) => world.deposed = Some((leader, key)),
            Some(Lasting::Depose) => {
                world.deposed = None;
                world.heal();
            }
            Some(Lasting::CutThenPause(node)) => {
                world.heal();
                let pause = world.ms(2_500, 5_000);
                world.pause(node, pause);
            }
            Some(Lasting::Wipe(node)) => {
                if world.core(node).is_some() {
                    self.lose(world, node, true);
                }
            }
            Some(Lasting::Weather) => world.network.weather = Weather::usual(),
            Some(Lasting::FullDisk(node)) => room(world, node),
            Some(Lasting::SlowDisk(node)) => {
                if let Some(disk) = disk_of(world, node) {
                    disk.latency_us = (100, 2_000);
                }
            }
            Some(Lasting::Stop(node)) if world.core(node).is_some() => {
                world.crash(node, false);
                let after = world.ms(50, 1_500);
                world.restart_in(node, after);
            }
            Some(Lasting::Stop(_)) | None => {}
        }
    }

    fn kill(&mut self, world: &mut World, node: NodeId, power: bool) {
        if !world.machines[&node].is_durable() {
            return self.lose(world, node, power);
        }
        world.count(if power { "power cuts" } else { "kills" });
        world.crash(node, power);
        let long = world.rng.random_bool(0.1);
        let after = if long { world.ms(2_000, 15_000) } else { world.ms(20, 3_000) };
        world.restart_in(node, after);
    }

    /// The node is lost for good, if that can be spared; another one comes in its place.
    fn lose(&mut self, world: &mut World, node: NodeId, power: bool) {
        if world.machines[&node].is_leaving || !can_be_spared(world, node) {
            return;
        }
        world.count(if world.machines[&node].is_durable() { "wipes" } else { "nodes lost" });
        world.crash(node, power);
        let again = world.ms(20, 300);
        let Some(machine) = world.machines.get_mut(&node) else { return };
        if machine.is_durable() && planted(Mutation::WipedNodeVotes) {
            machine.disk = Some(Disk::new());
            return world.restart_in(node, again);
        }
        machine.is_gone = true;
        self.join(world);
    }

    /// A disk is lost at the worst moment: one of its fellows lags behind a cut, and when that is back, whoever led them
    /// stands still.
    fn wipe(&mut self, world: &mut World, up: &[NodeId]) {
        let spared = |node: &&NodeId| world.machines[*node].is_durable();
        let durable: Vec<NodeId> = up.iter().filter(spared).copied().collect();
        let Some(lost) = durable.into_iter().find(|node| can_be_spared(world, *node)) else { return };
        let mut others: Vec<NodeId> = up.iter().copied().filter(|node| *node != lost).collect();
        others.shuffle(&mut world.rng);
        if let [behind, leading, ..] = others[..] {
            for node in up {
                world.block(behind, *node);
                world.block(*node, behind);
            }
            self.last_for(world, Lasting::Wipe(lost), Duration::from_millis(500));
            self.last(world, Lasting::CutThenPause(leading), 900, 1_800);
        }
    }

    fn join(&mut self, world: &mut World) {
        if world.machines.values().filter(|machine| !machine.is_gone && !machine.is_leaving).count() < NODES.1
        {
            world.count("joins");
            let durable = self.durable.draw(world);
            world.start(durable, true);
        }
    }

    fn cut(&mut self, world: &mut World, fault: Fault, up: &[NodeId]) {
        world.count(match fault {
            Fault::CutOneWay => "one-way cuts",
            Fault::CutPartly => "partial cuts",
            _ => "cuts",
        });
        let mut nodes = up.to_vec();
        nodes.shuffle(&mut world.rng);
        if fault == Fault::CutPartly {
            for _ in 0..world.rng.random_range(1..=3) {
                if let (Some(a), Some(b)) =
                    (nodes.choose(&mut world.rng).copied(), nodes.choose(&mut world.rng).copied())
                {
                    world.block(a, b);
                    world.block(b, a);
                }
            }
        } else {
            let alone = world.rng.random_bool(0.5);
            let side = if alone { 1 } else { world.rng.random_range(1..nodes.len().max(2)) };
            let (left, right) = nodes.split_at(side.min(nodes.len()));
            let others: Vec<NodeId> =
                world.machines.keys().copied().filter(|node| !left.contains(node)).collect();
            for a in left {
                for b in if fault == Fault::Cut { &others } else { right } {
                    world.block(*a, *b);
                    if fault == Fault::Cut {
                        world.block(*b, *a);
                    }
                }
            }
        }
        self.last(world, Lasting::Cut, 200, 8_000);
    }

    /// Readers come to it when others lead: that its lease is over is all that keeps them from reading what is old.
    fn depose(&mut self, world: &mut World) {
        let Some(key) = REGISTERS.choose(&mut world.rng).copied() else { return };
        let Some(leader) = leader_of(world, world.partition_of(key.as_bytes())) else { return };
        if world.machines[&leader].is_paused {
            return;
        }
        world.count("leaders deposed");
        for node in world.machines.keys().copied().collect::<Vec<_>>() {
            world.block(leader, node);
            world.block(node, leader);
        }
        // Long enough for others to take over and to write. It goes on before it hears of them.
        let (readers_from, until) = if world.rng.random_bool(0.75) {
            let stands_still = world.ms(2_500, 4_000);
            world.pause(leader, stands_still);
            (stands_still.saturating_sub(world.ms(200, 900)), stands_still + world.ms(50, 300))
        } else {
            (world.ms(1_000, 1_500), world.ms(2_000, 3_000))
        };
        self.last_for(world, Lasting::Deposed(leader, key), readers_from);
        self.last_for(world, Lasting::Depose, until);
    }

    fn stop(&mut self, world: &mut World, node: NodeId) {
        let machine = &world.machines[&node];
        if machine.is_durable() && !machine.is_leaving && !machine.is_paused {
            world.count("stops");
            world.with(node, crate::node::core::Core::hand_over);
            self.last(world, Lasting::Stop(node), 20, 300);
        }
    }

    fn slow_disk(&mut self, world: &mut World, node: NodeId) {
        let now = world.now;
        let hangs = world.rng.random_bool(0.3);
        let hang = world.ms(200, 3_000);
        let slow = world.rng.random_range(5_000..150_000);
        let Some(disk) = disk_of(world, node) else { return };
        if hangs {
            disk.stuck_until = now + hang;
        } else {
            disk.latency_us = (slow / 10, slow);
        }
        world.count("slow disks");
        self.last(world, Lasting::SlowDisk(node), 500, 5_000);
    }

    fn full_disk(&mut self, world: &mut World, node: NodeId) {
        let now = world.now;
        if disk_of(world, node).is_none() || world.machines[&node].is_paused {
            return;
        }
        let full_for = world.ms(300, 4_000);
        if let Some(disk) = disk_of(world, node) {
            disk.stuck_until = disk.stuck_until.max(now + full_for);
        }
        world.count("full disks");
        world.with(node, |core, _| core.set_full(true));
        self.last_for(world, Lasting::FullDisk(node), full_for);
    }

    fn weather(&mut self, world: &mut World) {
        world.count("bad weather");
        let slow = world.rng.random_range(1_000..60_000);
        world.network.weather = Weather {
            latency_us: (80, slow),
            loss: [0.0, 0.01, 0.1][world.rng.random_range(0..3)],
            straggling: [0.0, 0.01, 0.05][world.rng.random_range(0..3)],
            unruly: world.rng.random(),
        };
        self.last(world, Lasting::Weather, 500, 6_000);
    }

    /// Everything that was cut, stopped, or is down and can come back does so at once. Returns when that was.
    pub(super) fn end(&mut self, world: &mut World) -> Timestamp {
        self.is_over = true;
        world.deposed = None;
        for lasting in std::mem::take(&mut self.lasting).into_values() {
            if let Lasting::Stop(node) = lasting {
                // Who was told to stop does: it has given up placing anything.
                world.crash(node, false);
            }
        }
        world.network.weather = Weather::fair();
        world.heal();
        for node in world.machines.keys().copied().collect::<Vec<_>>() {
            if let Some(disk) = disk_of(world, node) {
                disk.latency_us = (100, 2_000);
                disk.stuck_until = Timestamp::ZERO;
            }
            room(world, node);
            world.wake_now(node);
            world.restart_in(node, Duration::ZERO);
        }
        world.now
    }
}

fn disk_of(world: &mut World, node: NodeId) -> Option<&mut Disk> {
    world.machines.get_mut(&node)?.disk.as_mut()
}

fn room(world: &mut World, node: NodeId) {
    if world.machines.get(&node).is_some_and(Machine::is_durable) {
        world.with(node, |core, _| core.set_full(false));
    }
}

fn blackout(world: &mut World) {
    world.count("blackouts");
    let durable: Vec<NodeId> =
        world.up().into_iter().filter(|node| world.machines[node].is_durable()).collect();
    for node in durable {
        world.crash(node, true);
        let after = world.ms(100, 3_000);
        world.restart_in(node, after);
    }
}

fn leave(world: &mut World, node: NodeId) {
    let is_there = |machine: &&Machine| machine.is_up() && !machine.is_paused && !machine.is_leaving;
    let staying = world.machines.values().filter(is_there).count();
    if staying > NODES.0 && !world.machines[&node].is_leaving && !world.machines[&node].is_paused {
        world.count("leaves");
        world.leave(node);
    }
}

fn keep_states(world: &mut World, node: NodeId) {
    if world.machines[&node].is_durable() && !world.machines[&node].is_paused {
        world.count("states kept");
        let partitions = world.setting.partitions;
        world.with(node, |core, _| {
            for partition in (0..partitions).map(PartitionId) {
                core.keep_state(partition);
            }
        });
    }
}

/// The leader of the highest term, of those that are up.
fn leader_of(world: &mut World, partition: PartitionId) -> Option<NodeId> {
    let groups = world.machines.iter_mut().filter_map(|(node, machine)| {
        let group = machine.core.as_mut()?.serving()?.driver().group(partition)?;
        (group.role == Role::Leader).then_some((group.term, *node))
    });
    groups.max().map(|(_, node)| node)
}

/// Whether every group goes on without the node: by the word of the leader of the highest term, and because the others
/// have had time to hear, and to write down, who votes.
fn can_be_spared(world: &mut World, node: NodeId) -> bool {
    let gone: BTreeSet<NodeId> = world
        .machines
        .iter()
        .filter(|(other, machine)| machine.is_gone || **other == node)
        .map(|(other, _)| *other)
        .collect();
    let (partitions, now) = (world.setting.partitions, world.now);
    (0..partitions).map(PartitionId).all(|partition| {
        let changed = world.judge.changed(partition);
        let settled = changed.is_none_or(|changed| now.since(changed) >= SETTLED);
        let groups = world.machines.values_mut().filter_map(|machine| {
            let group = machine.core.as_mut()?.serving()?.driver().group(partition)?;
            Some(group)
        });
        let Some(leader) = groups.filter(|group| group.role == Role::Leader).max_by_key(|group| group.term)
        else {
            return false;
        };
        let left = leader.voters.iter().filter(|voter| !gone.contains(voter)).count();
        let is_in = leader.voters.contains(&node);
        (settled || !is_in) && !leader.changing && left > leader.voters.len() / 2
    })
}
