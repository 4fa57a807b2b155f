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
#![allow(unused_imports, clippy::wildcard_imports, reason = "its parts share one set of names")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(
    clippy::wildcard_enum_match_arm,
    clippy::too_many_lines,
    reason = "it picks out the few messages it watches, and its dispatch is one list"
)]

#[path = "sim/checks.rs"]
mod checks;
#[path = "sim/clients.rs"]
mod clients;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/members.rs"]
mod members;
#[path = "sim/nodes.rs"]
mod nodes;

use std::collections::{BTreeMap, BinaryHeap};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mmapd::machine::{
    Applied, Command, Conditions, Content, Life, Once, Op, Request, Span, Tags, Tidy, Txn, Written,
};
use mmapd::node::{
    Answer, Arrived, CompactionJob, Core, CoreOptions, Event, NotCompacted, Now, OpenOptions,
    Outgoing, Shipment, Work, open,
};
use mmapd::raft;
use mmapd::raft::message::{Envelope, Message};
use mmapd::raft::planted::Planted;
use mmapd::raft::types::{Index, LogId, Membership, NodeId};
use mmapd::store::disk::FileKind;
use mmapd::store::simdisk::{Rng, SimDisk};
use mmapd::store::{
    CheckpointJob, Db, DbOptions, Disk, Identity, LogOptions, Receiver, Shrink, SpareJob,
    StoreError, SyncJob, Tree, Unpaced,
};
use mmapd::wire::{self, Address};

use mmapd::linear::{Action, Expect, History, OpId, Outcome};

/// One tick in microseconds.
const TICK_US: u64 = 25_000;
/// How long a client waits before it gives up on an operation.
const PATIENCE_US: u64 = 1_500_000;
/// How often a client asks for a write that it gave a name.
const TRIES: u64 = 5;
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
    /// Disks that report success for some syncs and do nothing.
    pub(crate) lies: Option<Lie>,
    /// Some syncs fail.
    pub(crate) failing_syncs: bool,
    /// Nodes stay down for seconds, so that the log they need is gone.
    pub(crate) long_downs: bool,
    /// Disks of a minority lose or change what was durable.
    pub(crate) rot: bool,
    /// Half-way the state of one node is changed behind its back.
    pub(crate) diverge: bool,
    /// Reads trust the lease of their leader, if they are asked of one.
    pub(crate) lease: bool,
    /// Operators change the members.
    pub(crate) members: bool,
    /// Mean time between their requests in microseconds.
    pub(crate) change_every_us: u64,
    /// Members lose their disks.
    pub(crate) wipes: bool,
    /// Leaders are asked to step down.
    pub(crate) transfers: bool,
    /// Clocks run at different speeds, are wrong by days, and jump.
    pub(crate) skewed: bool,
    /// Clients name their writes and ask again; others use times to live, leases, locks and
    /// transactions.
    pub(crate) named: bool,
}

/// Which promise of a disk is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// The sync of a batch of the log.
    Log,
    /// The sync of the pages of a checkpoint, before that of its meta page.
    Database,
    /// Everything, and the disk that comes instead has the same name.
    Life,
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
            segment_bytes: if tiny { 12 << 10 } else { 256 << 10 },
            retain_bytes: if tiny { 4 << 10 } else { 1 << 20 },
            checkpoint_log_bytes: if tiny { 6 << 10 } else { 128 << 10 },
            inflight: if tiny { 1 } else { 64 },
            batch_bytes: if tiny { 600 } else { 64 << 10 },
            planted: None,
            lies: None,
            failing_syncs: rng.below(3) == 0,
            long_downs: tiny,
            rot: rng.below(2) == 0,
            diverge: false,
            lease: seed.is_multiple_of(3),
            members: rng.below(4) > 0,
            change_every_us: [300_000, 800_000, 2_000_000][pick(&mut rng, 3)],
            wipes: rng.below(2) == 0,
            transfers: rng.below(2) == 0,
            // A lease trusts clocks as far as the settings say.
            skewed: rng.below(3) > 0 && !seed.is_multiple_of(3),
            named: rng.below(2) == 0,
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
    /// Snapshots sent, and those installed.
    pub(crate) snapshots: u64,
    pub(crate) installed: u64,
    pub(crate) restarts: u64,
    pub(crate) cut_tails: u64,
    pub(crate) checkpoints: u64,
    /// Compactions whose file took the place of the old one.
    pub(crate) compactions: u64,
    pub(crate) failed_syncs: u64,
    /// Disks that were damaged; entries and databases that were had again; logs that lost
    /// entries without a name.
    pub(crate) rotten: u64,
    pub(crate) repaired: u64,
    pub(crate) rebuilt: u64,
    pub(crate) amnesias: u64,
    /// Changes of members: asked for, answered with yes, with no, and with neither.
    pub(crate) changes_asked: u64,
    pub(crate) changes: u64,
    pub(crate) changes_refused: u64,
    pub(crate) changes_unknown: u64,
    /// Configurations that were committed, and how many of them were joint.
    pub(crate) configs: u64,
    pub(crate) joint: u64,
    /// Members whose disks were lost, former members that ended, leaders that handed over.
    pub(crate) wipes: u64,
    pub(crate) retired: u64,
    pub(crate) transfers: u64,
    /// Writes that were asked for again, and those of them that had happened already.
    pub(crate) retries: u64,
    pub(crate) replays: u64,
    /// Leases that were granted.
    pub(crate) leases: u64,
    pub(crate) trace: u64,
}

impl Report {
    /// Adds what another run did.
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.crashes += other.crashes;
        self.terms += other.terms;
        self.committed += other.committed;
        self.snapshots += other.snapshots;
        self.installed += other.installed;
        self.restarts += other.restarts;
        self.cut_tails += other.cut_tails;
        self.checkpoints += other.checkpoints;
        self.compactions += other.compactions;
        self.failed_syncs += other.failed_syncs;
        self.rotten += other.rotten;
        self.repaired += other.repaired;
        self.rebuilt += other.rebuilt;
        self.amnesias += other.amnesias;
        self.changes_asked += other.changes_asked;
        self.changes += other.changes;
        self.changes_refused += other.changes_refused;
        self.changes_unknown += other.changes_unknown;
        self.configs += other.configs;
        self.joint += other.joint;
        self.wipes += other.wipes;
        self.retired += other.retired;
        self.transfers += other.transfers;
        self.retries += other.retries;
        self.replays += other.replays;
        self.leases += other.leases;
    }
}

/// Who waits for an answer of a core.
#[derive(Clone, Copy, Debug)]
enum Wait {
    /// A client's attempt.
    Client { client: usize, attempt: u64 },
    /// A write beside the history.
    Aside,
    /// The write after everything was healed.
    Fresh,
    /// A sender of a snapshot.
    Sender { node: usize, life: u64, to: NodeId },
    /// An operator who asked for a compaction.
    Operator,
    /// An operator who asked for other members, and the node that joins by it.
    Change { joins: Option<usize> },
}

enum Happening {
    Tick { node: usize, life: u64 },
    Deliver { node: usize, bytes: Vec<u8> },
    Sync { node: usize, life: u64, job: SyncJob },
    Checkpoint { node: usize, life: u64, job: CheckpointJob },
    Compaction { node: usize, life: u64, job: CompactionJob },
    Spare { node: usize, life: u64, job: SpareJob },
    Snapshot { node: usize, from: usize, from_life: u64, shipment: Shipment },
    SnapshotSent { node: usize, life: u64, to: NodeId, installed: Option<LogId> },
    Client { client: usize },
    Patience { client: usize, attempt: u64 },
    Again { client: usize, attempt: u64 },
    Restart { node: usize, life: u64 },
    Resume { node: usize },
    Gone { node: usize, peer: NodeId },
    Members,
    Join { node: usize },
    StepDown,
    Fault,
    Diverge { node: usize },
    Crash { node: usize, life: u64 },
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
    /// Senders, and their lives, of snapshots that it has not answered for yet.
    receiving: Vec<(usize, u64)>,
    term: u64,
    commit: u64,
    applied: u64,
    /// Newest entry acknowledged to a leader, with its chain value.
    acked: Option<(u64, u64)>,
    /// Its wall clock is ahead by so much.
    skew_ms: i64,
    /// The length of its ticks.
    tick_us: u64,
    /// The life of its data folder.
    incarnation: u64,
    /// It shall run.
    present: bool,
    /// It was started since its disk is what it is.
    has_files: bool,
    /// What it was told when it joined.
    joined: Option<Membership>,
    /// Where its process reaches others, and which configuration it saw last.
    urls: BTreeMap<NodeId, String>,
    config: Option<Membership>,
    /// The end of what its disk holds for sure.
    durable: u64,
    /// The disk before: its life, and what it held.
    before: Option<(u64, u64)>,
    /// The configuration on its disk, while it does not run.
    lasting: Option<Membership>,
}

struct Client {
    attempt: u64,
    op: Option<Pending>,
    node: usize,
    /// Last known revision of each key, for conditional writes.
    seen: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    serial: u64,
}

/// An operation without an answer.
struct Pending {
    id: OpId,
    action: Action,
    key: Vec<u8>,
    request: Request,
    /// It was asked for so often.
    tries: u64,
    /// One of these may yet be carried out.
    open: bool,
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
    /// The newest lease of the writes beside the history.
    lease: u64,
    chaos: bool,
    history: History,
    leaders: BTreeMap<u64, (NodeId, u64)>,
    /// Whom a life of a node voted for in a term, as seen on the wire.
    votes: BTreeMap<(NodeId, u64, u64), NodeId>,
    quiet: bool,
    fresh: bool,
    /// The node whose disk was damaged last, until it is whole again.
    rotten: Option<usize>,
    /// The node whose state was changed, until it notices.
    diverged: Option<usize>,
    /// The member whose disk was lost last, until its new life is a member.
    wiped: Option<usize>,
    /// Committed configurations, and the entries that they are; the founding one first.
    configs: Vec<(u64, Membership)>,
    /// The newest entry that is known to be committed, and its time.
    committed: u64,
    time_ms: u64,
    wrong: Option<String>,
    /// Chain, and digest and time, by applied index.
    chains: BTreeMap<u64, u64>,
    digests: BTreeMap<u64, (u128, u64)>,
    report: Report,
}

impl Sim {
    pub(crate) fn new(plan: Plan) -> Self {
        let nodes = members::SLOTS;
        let mut clocks = Rng::new(plan.seed ^ 0xc10c);
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
                    receiving: Vec::new(),
                    term: 0,
                    commit: 0,
                    applied: 0,
                    acked: None,
                    skew_ms: if plan.skewed {
                        clocks.below(600_000_000).cast_signed() - 300_000_000
                    } else {
                        0
                    },
                    tick_us: if plan.skewed {
                        TICK_US * (70 + clocks.below(61)) / 100
                    } else {
                        TICK_US
                    },
                    incarnation: clocks.below(1 << 60) | 1,
                    present: (place as u64) < plan.nodes,
                    has_files: false,
                    joined: None,
                    urls: BTreeMap::new(),
                    config: None,
                    durable: 0,
                    before: None,
                    lasting: None,
                })
                .collect(),
            clients: (0..plan.clients)
                .map(|_| Client { attempt: 0, op: None, node: 0, seen: BTreeMap::new(), serial: 0 })
                .collect(),
            cut: vec![vec![false; nodes]; nodes],
            cuts: 0,
            lease: 0,
            chaos: true,
            history: History::default(),
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            quiet: false,
            fresh: false,
            rotten: None,
            diverged: None,
            wiped: None,
            configs: Vec::new(),
            committed: 0,
            time_ms: 0,
            wrong: None,
            chains: BTreeMap::new(),
            digests: BTreeMap::new(),
            report: Report::default(),
            plan,
        };
        for client in 0..sim.clients.len() {
            sim.later(100_000 + 1000 * client as u64, Happening::Client { client });
        }
        sim.later(2_000_000, Happening::Fault);
        let founding = sim.founding();
        sim.configs.push((0, founding));
        if sim.plan.members {
            sim.later(1_000_000, Happening::Members);
        }
        if sim.plan.transfers {
            sim.later(1_500_000, Happening::StepDown);
        }
        if sim.plan.diverge {
            let node = pick(&mut sim.rng, sim.plan.nodes);
            sim.later(sim.plan.chaos_us / 2, Happening::Diverge { node });
        }
        sim
    }

    /// Chaos, then peace: safety all the time, liveness at the end.
    pub(crate) fn run(mut self) -> Result<Report, Violation> {
        let founders = usize::try_from(self.plan.nodes).expect("small");
        for node in 0..founders {
            self.start(node)?;
        }
        self.run_until(self.plan.chaos_us)?;
        self.heal_all()?;
        self.run_until(self.now + 1_000_000)?;
        // Changes under way at the end of the chaos have made members since, or do when a leader
        // is found at last.
        for patience in [3_000_000, 1_000_000] {
            self.heal_all()?;
            self.run_until(self.now + patience)?;
        }
        self.quiet = true;
        let term = self.leader_term();
        self.run_until(self.now + 2_000_000)?;
        self.finish_clients();
        self.write_afresh()?;
        self.run_until(self.now + 1_000_000)?;
        // Keys may still end by themselves, on one node after the other.
        for _ in 0..20 {
            if self.check_settled(term).is_ok() {
                break;
            }
            self.run_until(self.now + 50_000)?;
        }
        self.check_settled(term)?;
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
            | Happening::Compaction { node, .. }
            | Happening::Spare { node, .. }
            | Happening::Snapshot { node, .. }
            | Happening::SnapshotSent { node, .. }
            | Happening::Gone { node, .. } => Some(*node),
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
                    let tick_us = self.nodes[node].tick_us;
                    self.later(tick_us, Happening::Tick { node, life });
                    self.event(node, Event::Tick)?;
                }
                // About every two seconds; a disk that lies may not be asked to be the copy.
                let lives = self.lives(node, life) && self.plan.lies.is_none();
                if lives && self.rng.below(80) == 0 {
                    self.event(node, Event::Compact(Wait::Operator))?;
                }
                Ok(())
            }
            Happening::Deliver { node, bytes } => self.deliver(node, &bytes),
            Happening::Gone { node, peer } => self.event(node, Event::LeaderGone(peer)),
            Happening::Sync { node, life, job } => {
                if !self.lives(node, life) {
                    return Ok(());
                }
                if self.plan.lies == Some(Lie::Log) && self.chaos && self.rng.below(10) == 0 {
                    self.lie(node);
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
                if self.plan.lies == Some(Lie::Database) && self.chaos {
                    self.lie(node);
                } else if self.chaos && self.rng.below(1000) < self.plan.faults.biased {
                    let ops = self.nodes[node].disk.op_count() + self.rng.below(6);
                    self.nodes[node].disk.stop_after(ops);
                }
                self.report.checkpoints += 1;
                match job.run() {
                    Ok(done) => self.event(node, Event::Checkpointed(Box::new(done))),
                    Err(error) => self.failed(node, &error),
                }
            }
            Happening::Spare { node, life, job } => {
                if !self.lives(node, life) {
                    return Ok(());
                }
                match job.run(&Unpaced) {
                    Ok(done) => self.event(node, Event::SpareMade(done)),
                    Err(error) => self.failed(node, &error),
                }
            }
            Happening::Compaction { node, life, job } => {
                if !self.lives(node, life) {
                    return Ok(());
                }
                if self.chaos && self.rng.below(1000) < 2 * self.plan.faults.biased {
                    // Somewhere between the first page and the directory's sync.
                    let ops = self.nodes[node].disk.op_count() + self.rng.below(30);
                    self.nodes[node].disk.stop_after(ops);
                }
                match job.run(&Unpaced) {
                    Ok(done) => self.event(node, Event::Compacted(done)),
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
            Happening::Again { client, attempt } => {
                if self.clients[client].attempt == attempt {
                    self.again(client)
                } else {
                    Ok(())
                }
            }
            Happening::Restart { node, life } => {
                let it = &self.nodes[node];
                if it.core.is_none() && it.life == life && it.present {
                    self.start(node)?;
                }
                Ok(())
            }
            Happening::Resume { node } => self.resume(node),
            Happening::Members => self.members_nemesis(),
            Happening::Join { node } => self.join(node),
            Happening::StepDown => self.step_down(),
            Happening::Diverge { node } => self.diverge(node),
            Happening::Fault => self.fault(),
            Happening::Crash { node, life } => {
                if self.chaos && self.lives(node, life) {
                    self.crash(node)
                } else {
                    Ok(())
                }
            }
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

fn fold(trace: u64, numbers: &[u64]) -> u64 {
    numbers
        .iter()
        .fold(trace, |trace, number| (trace ^ number).wrapping_mul(0x100_0000_01b3).rotate_left(23))
}
