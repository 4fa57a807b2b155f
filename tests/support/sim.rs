//! A whole cluster in one thread: the real core, driver, codecs and store on simulated disks.
//! Network, time, and what a crash leaves of the files are drawn from one seed.
//!
//! Nothing here waits: events lie in a heap ordered by virtual time, and the world takes
//! the next one. A node is `mmapd::node::Core`; its sync and checkpoint jobs run when their
//! event is due, so a crash before that finds them not run.
//!
//! Checked after every event: one leader a term; terms and commit never fall; the chain of
//! applied entries is the same on all nodes (state machine safety, log matching), and so is
//! the digest of the state; a new leader holds everything that was committed. Checked at the
//! end: what clients saw is linearizable, and the healed cluster settles.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BinaryHeap};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mmapd::machine::{Applied, Command, Conditions, Tags};
use mmapd::node::{
    Answer, Arrived, Core, CoreOptions, Event, Now, OpenOptions, Outgoing, Shipment, Work,
    incoming_path, open,
};
use mmapd::raft;
use mmapd::raft::config::Planted;
use mmapd::raft::types::{Index, LogId, NodeId};
use mmapd::store::simdisk::{Rng, SimDisk};
use mmapd::store::{
    CheckpointJob, DbOptions, Disk, Identity, LogOptions, Receiver, StoreError, SyncJob,
};
use mmapd::wire::{self, Address};

use super::history::{Action, Expect, History, OpId, Outcome};

/// One tick in microseconds.
const TICK_US: u64 = 25_000;
/// How long a client waits before it gives up on an operation.
const PATIENCE_US: u64 = 1_500_000;
/// Keys that clients fight over.
const KEYS: u64 = 4;

/// What can go wrong, and how often; drawn from the seed unless set.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    /// Of a thousand packets, how many are lost.
    pub(crate) loss: u64,
    /// Of a thousand packets, how many arrive twice.
    pub(crate) duplicate: u64,
    /// Longest extra delay of a packet in microseconds.
    pub(crate) delay_us: u64,
    /// Mean time between faults in microseconds.
    pub(crate) every_us: u64,
    /// Restart at once after a vote was granted or a leader appeared, in a thousand.
    pub(crate) biased: u64,
}

/// The shape of one run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) clients: u64,
    /// Virtual time under faults.
    pub(crate) chaos_us: u64,
    pub(crate) faults: Faults,
    pub(crate) segment_bytes: u64,
    pub(crate) retain_bytes: u64,
    pub(crate) checkpoint_log_bytes: u64,
    pub(crate) inflight: usize,
    pub(crate) batch_bytes: usize,
    /// A bug of the core to plant in every node.
    pub(crate) planted: Option<Planted>,
    /// Every n-th sync of every disk silently does nothing; 0: none.
    pub(crate) lying_syncs: bool,
}

impl Plan {
    /// Everything drawn from the seed: each seed gets its own mix of faults and limits.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let tiny = rng.below(2) == 0;
        Self {
            seed,
            nodes: if rng.below(5) == 0 { 5 } else { 3 },
            clients: 3 + rng.below(4),
            chaos_us: 20_000_000,
            faults: Faults {
                loss: [0, 10, 100][pick(&mut rng, 3)],
                duplicate: [0, 20, 100][pick(&mut rng, 3)],
                delay_us: [500, 5_000, 60_000][pick(&mut rng, 3)],
                every_us: [300_000, 1_000_000, 3_000_000][pick(&mut rng, 3)],
                biased: [0, 100, 300][pick(&mut rng, 3)],
            },
            segment_bytes: if tiny { 64 << 10 } else { 256 << 10 },
            retain_bytes: if tiny { 32 << 10 } else { 1 << 20 },
            checkpoint_log_bytes: if tiny { 16 << 10 } else { 128 << 10 },
            inflight: if tiny { 1 } else { 64 },
            batch_bytes: if tiny { 600 } else { 64 << 10 },
            planted: None,
            lying_syncs: false,
        }
    }
}

fn pick(rng: &mut Rng, len: u64) -> usize {
    usize::try_from(rng.below(len)).expect("small")
}

/// What was wrong, in one sentence. The seed is the rest of the report.
#[derive(Debug)]
pub(crate) struct Violation(pub(crate) String);

/// What a run did, to be printed and compared.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) events: u64,
    pub(crate) operations: u64,
    pub(crate) unknown: u64,
    pub(crate) crashes: u64,
    pub(crate) terms: u64,
    pub(crate) committed: u64,
    pub(crate) snapshots: u64,
    pub(crate) trace: u64,
}

/// Who waits for an answer of a core.
#[derive(Clone, Copy, Debug)]
enum Wait {
    /// A client's attempt.
    Client { client: usize, attempt: u64 },
    /// A sender of a snapshot.
    Sender { node: usize, life: u64, to: NodeId },
}

enum Happening {
    Tick { node: usize, life: u64 },
    Deliver { node: usize, bytes: Vec<u8> },
    Sync { node: usize, life: u64, job: SyncJob },
    Checkpoint { node: usize, life: u64, job: CheckpointJob },
    Snapshot { node: usize, from: usize, from_life: u64, shipment: Shipment },
    SnapshotSent { node: usize, life: u64, to: NodeId, installed: Option<LogId> },
    Client { client: usize },
    Patience { client: usize, attempt: u64 },
    Restart { node: usize, life: u64 },
    Resume { node: usize },
    Fault,
    Heal { cut: u64 },
}

struct Due {
    at: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

struct SimNode {
    id: NodeId,
    disk: SimDisk,
    /// Counts restarts: what belongs to an earlier life is ignored.
    life: u64,
    core: Option<Core<Wait>>,
    paused: bool,
    /// Happenings that wait for the end of a pause.
    held: Vec<Happening>,
    term: u64,
}

struct Client {
    attempt: u64,
    op: Option<(OpId, Action, Vec<u8>, Command)>,
    node: usize,
    /// Last known revision of each key, for conditional writes.
    seen: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    serial: u64,
}

/// The world of one seed.
pub(crate) struct Sim {
    plan: Plan,
    rng: Rng,
    now: u64,
    order: u64,
    queue: BinaryHeap<Due>,
    nodes: Vec<SimNode>,
    clients: Vec<Client>,
    /// `cut[a][b]`: nothing gets from a to b.
    cut: Vec<Vec<bool>>,
    cuts: u64,
    chaos: bool,
    history: History,
    leaders: BTreeMap<u64, NodeId>,
    /// Chain and digest by applied index.
    chains: BTreeMap<u64, u64>,
    digests: BTreeMap<u64, u128>,
    report: Report,
}

impl Sim {
    pub(crate) fn new(plan: Plan) -> Self {
        let nodes = usize::try_from(plan.nodes).expect("small");
        let mut sim = Self {
            rng: Rng::new(plan.seed),
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            nodes: (0..nodes)
                .map(|place| SimNode {
                    id: NodeId(place as u64 + 1),
                    disk: SimDisk::new(plan.seed ^ (place as u64 + 1) << 40),
                    life: 0,
                    core: None,
                    paused: false,
                    held: Vec::new(),
                    term: 0,
                })
                .collect(),
            clients: (0..plan.clients)
                .map(|_| Client { attempt: 0, op: None, node: 0, seen: BTreeMap::new(), serial: 0 })
                .collect(),
            cut: vec![vec![false; nodes]; nodes],
            cuts: 0,
            chaos: true,
            history: History::default(),
            leaders: BTreeMap::new(),
            chains: BTreeMap::new(),
            digests: BTreeMap::new(),
            report: Report::default(),
            plan,
        };
        for client in 0..sim.clients.len() {
            sim.later(100_000 + 1000 * client as u64, Happening::Client { client });
        }
        sim.later(2_000_000, Happening::Fault);
        sim
    }

    /// Chaos, then peace: safety all the time, liveness at the end.
    pub(crate) fn run(mut self) -> Result<Report, Violation> {
        for node in 0..self.nodes.len() {
            self.start(node)?;
        }
        self.run_until(self.plan.chaos_us)?;
        self.heal_all()?;
        self.run_until(self.now + 6_000_000)?;
        self.finish_clients();
        self.check_settled()?;
        let verdict = self.history.check();
        if !verdict.is_ok() {
            return Err(Violation(verdict.to_string()));
        }
        self.report.operations = self.history.len() as u64;
        self.report.unknown = self.history.unknown() as u64;
        self.report.terms = self.leaders.len() as u64;
        self.report.committed = self.chains.keys().next_back().copied().unwrap_or(0);
        Ok(self.report)
    }

    fn run_until(&mut self, end: u64) -> Result<(), Violation> {
        while let Some(due) = self.queue.peek() {
            if due.at > end {
                break;
            }
            let due = self.queue.pop().expect("just seen");
            self.now = due.at;
            self.report.events += 1;
            self.happen(due.what)?;
        }
        self.now = end;
        Ok(())
    }

    fn later(&mut self, delay: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Due { at: self.now + delay, order: self.order, what });
    }

    fn happen(&mut self, what: Happening) -> Result<(), Violation> {
        let node = match &what {
            Happening::Tick { node, .. }
            | Happening::Deliver { node, .. }
            | Happening::Sync { node, .. }
            | Happening::Checkpoint { node, .. }
            | Happening::Snapshot { node, .. }
            | Happening::SnapshotSent { node, .. } => Some(*node),
            _ => None,
        };
        if let Some(node) = node
            && self.nodes[node].paused
        {
            self.nodes[node].held.push(what);
            return Ok(());
        }
        match what {
            Happening::Tick { node, life } => {
                if self.lives(node, life) {
                    self.later(TICK_US, Happening::Tick { node, life });
                    self.event(node, Event::Tick)?;
                }
                Ok(())
            }
            Happening::Deliver { node, bytes } => self.deliver(node, &bytes),
            Happening::Sync { node, life, job } => {
                if !self.lives(node, life) {
                    return Ok(());
                }
                match job.run() {
                    Ok(synced) => self.event(node, Event::Synced(synced)),
                    Err(error) => self.failed(node, &error),
                }
            }
            Happening::Checkpoint { node, life, job } => {
                if !self.lives(node, life) {
                    return Ok(());
                }
                match job.run() {
                    Ok(done) => self.event(node, Event::Checkpointed(done)),
                    Err(error) => self.failed(node, &error),
                }
            }
            Happening::Snapshot { node, from, from_life, shipment } => {
                self.receive_snapshot(node, from, from_life, shipment)
            }
            Happening::SnapshotSent { node, life, to, installed } => {
                if self.lives(node, life) {
                    self.event(node, Event::SnapshotSent(to, installed))?;
                }
                Ok(())
            }
            Happening::Client { client } => self.client(client),
            Happening::Patience { client, attempt } => {
                if self.clients[client].attempt == attempt {
                    self.end(client, None);
                }
                Ok(())
            }
            Happening::Restart { node, life } => {
                if self.nodes[node].core.is_none() && self.nodes[node].life == life {
                    self.start(node)?;
                }
                Ok(())
            }
            Happening::Resume { node } => self.resume(node),
            Happening::Fault => self.fault(),
            Happening::Heal { cut } => {
                if cut == self.cuts {
                    self.uncut();
                }
                Ok(())
            }
        }
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].core.is_some()
    }
}

/// Nodes.
impl Sim {
    fn start(&mut self, node: usize) -> Result<(), Violation> {
        let members =
            self.nodes.iter().map(|node| (node.id, format!("http://sim-{}", node.id.0))).collect();
        let it = &mut self.nodes[node];
        it.life += 1;
        let seed = self.plan.seed ^ it.life << 20 ^ it.id.0;
        let mut raft = raft::config::Config::new(it.id, seed);
        raft.max_inflight = self.plan.inflight;
        raft.planted = self.plan.planted;
        let options = OpenOptions {
            fresh: Identity { cluster: 7, node: it.id, incarnation: seed | 1 },
            members,
            log: LogOptions { dir: "/log".into(), segment_bytes: self.plan.segment_bytes },
            db: DbOptions {
                path: db_path(),
                map_max: 32 << 20,
                quota: u64::MAX,
                grow_step: 256 << 10,
            },
            raft,
        };
        let disk: Arc<dyn Disk> = Arc::new(it.disk.clone());
        let parts = match open(disk, options) {
            Ok((parts, _)) => parts,
            // A crash point inside recovery: the next start has to cope.
            Err(StoreError::Io { .. }) => return self.crash(node),
            Err(error) => {
                return Err(Violation(format!("{} does not start again: {error}", it.id)));
            }
        };
        let options = CoreOptions {
            batch_bytes: self.plan.batch_bytes,
            checkpoint_log_bytes: self.plan.checkpoint_log_bytes,
            checkpoint_dirty_bytes: 1 << 20,
            checkpoint_ticks: 80,
            active_ticks: 80,
            log_retain_bytes: self.plan.retain_bytes,
        };
        it.core = Some(Core::new(parts, options));
        it.paused = false;
        let life = it.life;
        let jitter = self.rng.below(TICK_US);
        self.later(jitter, Happening::Tick { node, life });
        self.event(node, Event::Tick)
    }

    /// Power loss: whatever was not synced may be gone or torn.
    fn crash(&mut self, node: usize) -> Result<(), Violation> {
        self.report.crashes += 1;
        let it = &mut self.nodes[node];
        it.core = None;
        it.held.clear();
        it.paused = false;
        it.disk = it.disk.crash(&mut self.rng);
        let life = it.life;
        for client in 0..self.clients.len() {
            if self.clients[client].node == node && self.clients[client].op.is_some() {
                self.end(client, None);
            }
        }
        let down = if self.rng.below(3) == 0 { 1_000 } else { 100_000 + self.rng.below(1_500_000) };
        self.later(down, Happening::Restart { node, life });
        Ok(())
    }

    /// The store of a node gave up. Only a planned stop of its disk may cause that.
    fn failed(&mut self, node: usize, error: &StoreError) -> Result<(), Violation> {
        match error {
            StoreError::Io { .. } => self.crash(node),
            _ => Err(Violation(format!("{} stopped: {error}", self.nodes[node].id))),
        }
    }

    fn event(&mut self, node: usize, event: Event<Wait>) -> Result<(), Violation> {
        let mut work = Work::default();
        let now = Now { wall_ms: 1_700_000_000_000 + self.now / 1000, mono_us: self.now };
        let Some(core) = self.nodes[node].core.as_mut() else { return Ok(()) };
        core.set_now(now);
        let mut result = core.handle(event, &mut work).and_then(|()| core.turn(&mut work));
        while result.is_ok() && work.again {
            result = core.turn(&mut work);
        }
        if let Err(error) = result {
            return self.failed(node, &error);
        }
        self.carry_out(node, work);
        self.check(node)
    }

    fn carry_out(&mut self, node: usize, work: Work<Wait>) {
        let life = self.nodes[node].life;
        let mut voted = false;
        for packet in work.packets {
            voted |= packet.lane == mmapd::node::Lane::Vote;
            self.send(node, packet);
        }
        if let Some(job) = work.sync {
            let slow = if self.rng.below(50) == 0 { 50_000 } else { 800 };
            let took = 100 + self.rng.below(slow);
            self.later(took, Happening::Sync { node, life, job });
        }
        if let Some(job) = work.checkpoint {
            let took = 1_000 + self.rng.below(30_000);
            self.later(took, Happening::Checkpoint { node, life, job });
        }
        for shipment in work.snapshots {
            let to = usize::try_from(shipment.to.0 - 1).expect("small");
            let what = Happening::Snapshot { node: to, from: node, from_life: life, shipment };
            self.later(20_000, what);
        }
        for (wait, answer) in work.answers {
            self.answered(node, wait, answer);
        }
        // Faults like the moments just after a promise (consensus paper, 4.9).
        if voted && self.chaos && self.rng.below(1000) < self.plan.faults.biased {
            let ops = self.nodes[node].disk.op_count() + 1 + self.rng.below(3);
            self.nodes[node].disk.stop_after(ops);
        }
    }

    fn send(&mut self, from: usize, packet: Outgoing) {
        let to = usize::try_from(packet.to.0 - 1).expect("small");
        let faults = self.plan.faults.clone();
        if self.cut[from][to] || (self.chaos && self.rng.below(1000) < faults.loss) {
            return;
        }
        let mut bytes = packet.head;
        for part in &packet.frames {
            bytes.extend_from_slice(part);
        }
        let copies = if self.chaos && self.rng.below(1000) < faults.duplicate { 2 } else { 1 };
        for _ in 0..copies {
            let extra = if self.chaos { faults.delay_us } else { 500 };
            let delay = 100 + self.rng.below(extra);
            self.later(delay, Happening::Deliver { node: to, bytes: bytes.clone() });
        }
    }

    fn deliver(&mut self, node: usize, bytes: &[u8]) -> Result<(), Violation> {
        let us = Address { cluster: 7, node: self.nodes[node].id, incarnation: 0 };
        let mut buffer = BytesMut::from(bytes);
        let packet = wire::decode(us, &mut buffer)
            .map_err(|error| Violation(format!("a packet of ours is not one: {error}")))?
            .ok_or_else(|| Violation("a packet of ours is cut short".into()))?;
        self.event(node, Event::Packet(packet))
    }

    fn receive_snapshot(
        &mut self,
        node: usize,
        from: usize,
        from_life: u64,
        shipment: Shipment,
    ) -> Result<(), Violation> {
        self.report.snapshots += 1;
        let Shipment { to, term, meta, pinned } = shipment;
        let failed = Happening::SnapshotSent { node: from, life: from_life, to, installed: None };
        if self.nodes[node].core.is_none() || self.cut[from][node] {
            self.later(10_000, failed);
            return Ok(());
        }
        let disk: Arc<dyn Disk> = Arc::new(self.nodes[node].disk.clone());
        let path = incoming_path(&db_path());
        drop(disk.remove(&path));
        let identity = Identity { cluster: 7, node: to, incarnation: 1 };
        let received = (|| {
            let mut receiver = Receiver::create(disk, &path, identity, 32 << 20)?;
            let mut place = 0;
            while let Some(chunk) = pinned.chunk(place)? {
                receiver.push(&chunk)?;
                place += 1;
            }
            receiver.finish()
        })();
        match received {
            Ok(state) => {
                let waiter = Wait::Sender { node: from, life: from_life, to };
                let from = self.nodes[from].id;
                let chain = state.chain;
                self.event(
                    node,
                    Event::SnapshotArrived(Arrived { waiter, from, term, meta, chain, path }),
                )
            }
            Err(error) => {
                self.later(10_000, failed);
                self.failed(node, &error)
            }
        }
    }

    fn resume(&mut self, node: usize) -> Result<(), Violation> {
        if !self.nodes[node].paused {
            return Ok(());
        }
        self.nodes[node].paused = false;
        // Messages first, then one tick for all that were missed.
        let held = std::mem::take(&mut self.nodes[node].held);
        let (ticks, others): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|what| matches!(what, Happening::Tick { .. }));
        for what in others.into_iter().chain(ticks.into_iter().take(1)) {
            self.happen(what)?;
        }
        Ok(())
    }
}

fn db_path() -> PathBuf {
    "/db.mmapd".into()
}

/// Faults.
impl Sim {
    fn fault(&mut self) -> Result<(), Violation> {
        if !self.chaos {
            return Ok(());
        }
        let every = self.plan.faults.every_us;
        let next = every / 2 + self.rng.below(every);
        self.later(next, Happening::Fault);
        let node = pick(&mut self.rng, self.plan.nodes);
        match self.rng.below(10) {
            0..=2 => {
                if self.nodes[node].core.is_some() {
                    self.crash(node)?;
                }
            }
            3 => {
                // Somewhere inside the next few writes.
                let ops = self.nodes[node].disk.op_count() + 1 + self.rng.below(30);
                self.nodes[node].disk.stop_after(ops);
            }
            4 => {
                for node in 0..self.nodes.len() {
                    if self.nodes[node].core.is_some() {
                        self.crash(node)?;
                    }
                }
            }
            5 => {
                self.nodes[node].paused = true;
                let length = 50_000 + self.rng.below(1_500_000);
                self.later(length, Happening::Resume { node });
            }
            6 | 7 => self.partition(node),
            8 => {
                // The leader with one peer, cut off from the rest.
                let leader = self.leader().unwrap_or(node);
                self.partition(leader);
                let friend = pick(&mut self.rng, self.plan.nodes);
                self.cut[leader][friend] = false;
                self.cut[friend][leader] = false;
            }
            _ => {
                // One way only.
                let to = pick(&mut self.rng, self.plan.nodes);
                if node != to {
                    self.cut[node][to] = true;
                    self.heal_later();
                }
            }
        }
        Ok(())
    }

    fn partition(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            if other != node {
                self.cut[node][other] = true;
                self.cut[other][node] = true;
            }
        }
        self.heal_later();
    }

    fn heal_later(&mut self) {
        self.cuts += 1;
        let length = 200_000 + self.rng.below(3_000_000);
        let cut = self.cuts;
        self.later(length, Happening::Heal { cut });
    }

    fn uncut(&mut self) {
        for row in &mut self.cut {
            row.fill(false);
        }
    }

    fn heal_all(&mut self) -> Result<(), Violation> {
        self.chaos = false;
        self.uncut();
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.stop_after(u64::MAX);
            if self.nodes[node].paused {
                self.resume(node)?;
            }
            if self.nodes[node].core.is_none() {
                self.start(node)?;
            }
        }
        Ok(())
    }

    fn leader(&self) -> Option<usize> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(place, node)| Some((place, node.core.as_ref()?)))
            .filter(|(_, core)| core.raft().is_leader())
            .max_by_key(|(_, core)| core.raft().term())
            .map(|(place, _)| place)
    }
}

/// Clients.
impl Sim {
    fn client(&mut self, client: usize) -> Result<(), Violation> {
        if self.clients[client].op.is_some() {
            return Ok(());
        }
        let key = format!("k{}", self.rng.below(KEYS)).into_bytes();
        self.clients[client].serial += 1;
        let value = format!("{client}.{}", self.clients[client].serial).into_bytes();
        let mut value = value;
        if self.rng.below(8) == 0 {
            value.resize(200 + pick(&mut self.rng, 3000), b'.');
        }
        let action = match self.rng.below(10) {
            0..=4 => Action::put(value),
            5 => Action::put_if(value, Expect::Absent),
            6 => match self.clients[client].seen.get(&key) {
                Some((_, seen)) => Action::put_if(value, Expect::Value(seen.clone())),
                None => Action::put(value),
            },
            7 => Action::delete(),
            _ => Action::Get,
        };
        let command = self.command(client, &key, &action);
        let op = self.history.begin(client as u64, &key, action.clone(), self.now);
        self.clients[client].op = Some((op, action, key, command));
        self.clients[client].attempt += 1;
        let attempt = self.clients[client].attempt;
        self.later(PATIENCE_US, Happening::Patience { client, attempt });
        let node = pick(&mut self.rng, self.plan.nodes);
        self.attempt(client, node)
    }

    fn command(&self, client: usize, key: &[u8], action: &Action) -> Command {
        let key = Bytes::copy_from_slice(key);
        match action {
            Action::Put { value, expect } => {
                let conditions = match expect {
                    None => Conditions::default(),
                    Some(Expect::Absent) => {
                        Conditions { if_none_match: Some(Tags::Any), ..Conditions::default() }
                    }
                    Some(Expect::Present) => {
                        Conditions { if_match: Some(Tags::Any), ..Conditions::default() }
                    }
                    Some(Expect::Value(_)) => {
                        let (revision, _) = self.clients[client].seen[&key[..]];
                        Conditions {
                            if_match: Some(Tags::Revisions(vec![revision])),
                            ..Conditions::default()
                        }
                    }
                };
                let value = Bytes::copy_from_slice(value);
                Command::Put { key, value, content_type: String::new(), conditions, prev: false }
            }
            Action::Delete { .. } | Action::Get => {
                Command::Delete { key, conditions: Conditions::default(), prev: false }
            }
        }
    }

    fn attempt(&mut self, client: usize, node: usize) -> Result<(), Violation> {
        self.clients[client].node = node;
        let wait = Wait::Client { client, attempt: self.clients[client].attempt };
        let Some((_, action, _, command)) = &self.clients[client].op else { return Ok(()) };
        if self.nodes[node].core.is_none() || self.nodes[node].paused {
            return Ok(()); // patience will end it
        }
        let event = match action {
            Action::Get => Event::Read(vec![wait]),
            _ => Event::Propose(vec![(wait, command.encode())]),
        };
        self.event(node, event)
    }

    fn answered(&mut self, node: usize, wait: Wait, answer: Answer) {
        match wait {
            Wait::Sender { node, life, to } => {
                let Answer::Installed(installed) = answer else { return };
                self.later(1_000, Happening::SnapshotSent { node, life, to, installed });
            }
            Wait::Client { client, attempt } => {
                if self.clients[client].attempt == attempt && self.clients[client].op.is_some() {
                    self.client_answered(client, node, answer);
                }
            }
        }
    }

    fn client_answered(&mut self, client: usize, node: usize, answer: Answer) {
        let Some((_, _, key, _)) = &self.clients[client].op else { return };
        let key = key.clone();
        let outcome = match answer {
            Answer::Written(Applied::Put { revision, version, .. }) => {
                let Some((_, Action::Put { value, .. }, ..)) = &self.clients[client].op else {
                    return;
                };
                let value = value.clone();
                self.clients[client].seen.insert(key, (revision, value));
                Outcome::Done { revision: Some(revision), existed: Some(version > 1) }
            }
            Answer::Written(Applied::Deleted { deleted, .. }) => {
                Outcome::Done { revision: None, existed: Some(deleted == 1) }
            }
            Answer::Written(Applied::ConditionFailed { .. }) => Outcome::Mismatch,
            Answer::Written(Applied::Unknown) | Answer::Unknown | Answer::Installed(_) => {
                Outcome::Unknown
            }
            Answer::NotLeader(_) | Answer::Overloaded | Answer::NotReadable(_) => Outcome::Failed,
            Answer::Readable => {
                let core = self.nodes[node].core.as_ref().expect("it answered");
                let view = mmapd::machine::View::new(core.published().snapshot());
                let found = view.get(&key).expect("the simulated disk is whole");
                let read = found.map(|record| (record.mod_revision, record.value.to_vec()));
                if let Some((revision, value)) = &read {
                    self.clients[client].seen.insert(key, (*revision, value.clone()));
                }
                Outcome::Read {
                    revision: read.as_ref().map(|(revision, _)| *revision),
                    value: read.map(|(_, value)| value),
                }
            }
        };
        self.end(client, Some(outcome));
    }

    /// Ends the operation of a client; without an outcome nobody knows it.
    fn end(&mut self, client: usize, outcome: Option<Outcome>) {
        let Some((op, action, ..)) = self.clients[client].op.take() else { return };
        self.clients[client].attempt += 1;
        let unknown = if action == Action::Get { Outcome::Failed } else { Outcome::Unknown };
        self.history.end(op, outcome.unwrap_or(unknown), self.now);
        let pause = 500 + self.rng.below(40_000);
        self.later(pause, Happening::Client { client });
    }

    fn finish_clients(&mut self) {
        for client in 0..self.clients.len() {
            self.end(client, None);
        }
    }
}

/// Checks.
impl Sim {
    fn check(&mut self, node: usize) -> Result<(), Violation> {
        let it = &mut self.nodes[node];
        let Some(core) = &it.core else { return Ok(()) };
        let (raft, id) = (core.raft(), it.id);
        let term = raft.term().0;
        self.report.trace = fold(self.report.trace, &[self.now, id.0, term, core.applied().0]);
        if raft.is_leader() {
            let leader = *self.leaders.entry(term).or_insert(id);
            if leader != id {
                return Err(Violation(format!("{leader} and {id} both lead term {term}")));
            }
        }
        let state = core.db().state();
        let (applied, chain, digest) = (state.applied.index.0, state.chain, state.digest);
        if let Some(other) = self.chains.insert(applied, chain)
            && other != chain
        {
            return Err(Violation(format!("{id} applied another entry {applied}")));
        }
        if let Some(other) = self.digests.insert(applied, digest)
            && other != digest
        {
            return Err(Violation(format!("{id} has another state at entry {applied}")));
        }
        let newly_leads = raft.is_leader() && it.term != term;
        it.term = term;
        if newly_leads {
            self.check_complete(node)?;
        }
        Ok(())
    }

    /// A new leader holds every entry that any node has applied (Raft 5.4).
    fn check_complete(&self, node: usize) -> Result<(), Violation> {
        let core = self.nodes[node].core.as_ref().expect("it leads");
        let Some((index, chain)) = self.chains.iter().next_back() else { return Ok(()) };
        let first = core.log().first().0;
        let found = core.log().chain_at(Index(*index));
        if *index >= first && found != Some(*chain) {
            let id = self.nodes[node].id;
            return Err(Violation(format!("{id} leads without committed entry {index}")));
        }
        Ok(())
    }

    fn check_settled(&mut self) -> Result<(), Violation> {
        let Some(leader) = self.leader() else {
            return Err(Violation("a healed cluster has no leader".into()));
        };
        let applied: Vec<u64> = self
            .nodes
            .iter()
            .map(|node| node.core.as_ref().map_or(0, |core| core.applied().0))
            .collect();
        let most = applied.iter().max().copied().unwrap_or(0);
        let commit = self.nodes[leader].core.as_ref().expect("it leads").raft().commit().0;
        if applied.iter().any(|applied| *applied + 200 < most) || commit == 0 {
            return Err(Violation(format!("a healed cluster is apart: applied {applied:?}")));
        }
        Ok(())
    }
}

fn fold(trace: u64, numbers: &[u64]) -> u64 {
    numbers
        .iter()
        .fold(trace, |trace, number| (trace ^ number).wrapping_mul(0x100_0000_01b3).rotate_left(23))
}
