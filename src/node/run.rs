//! The threads around the core.
//!
//! | thread | does | why apart |
//! |---|---|---|
//! | `node` | what takes long of the turns of the core, and what others leave | they have other things to do |
//! | `sync` | runs sync jobs, one at a time | a slow disk must not delay heartbeats |
//! | `checkpoint` | runs checkpoint jobs | they take longer than a sync |
//! | `compact` | runs compactions | checkpoints go on meanwhile, or memory would fill |
//! | `scrub` | reads the disk for damage | it takes hours |
//! | the runtime's | sockets | |
//!
//! Whoever brings mail may take a turn (`desk.rs`), one thread at a time: it takes what lies in
//! the inbox, lets it happen, and hands out the work, and waits for none of it. The inbox is
//! bounded; when it is full, clients are refused and peers' streams wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::clock::Clock;
use super::core::{CompactionJob, Core};
use super::desk::{COMMANDS, Inbox, Left, READS, Seat, TakesTurns};
use super::handle::{Mail, Status, Waiter};
use super::measure::Measure;
use super::pace::DiskPace;
use super::scrub::{Order, Scrubber};
use super::ticks::Ticks;
use super::work::{Answer, Event, Garbage, Work};
use crate::peers::{Peers, Shipped};
use crate::raft::types::NodeId;
use crate::store::{CheckpointJob, SpareJob, StoreError, SyncJob};

/// Mail taken in one turn.
const TURN_MAX: usize = 1024;
/// Entries that a guest applies; more are for the node's own thread.
const GUEST_APPLIES: u64 = 64;

/// Why a node cannot go on. The process must end without another acknowledgement.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A thread of the node found one of its invariants broken.
    #[error("a broken invariant stopped the {0} thread")]
    Panicked(&'static str),
}

/// Where threads report that they cannot go on.
pub(super) type FatalSender = mpsc::UnboundedSender<Fatal>;

/// Reports a panic of the thread it lives on.
struct Alarm {
    thread: &'static str,
    fatal: FatalSender,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            drop(self.fatal.send(Fatal::Panicked(self.thread)));
        }
    }
}

/// Starts a thread that runs until its body is done; an error or a panic is reported.
fn spawn(
    name: &'static str,
    fatal: &FatalSender,
    body: impl FnOnce() -> Result<(), StoreError> + Send + 'static,
) -> Result<thread::JoinHandle<()>, StoreError> {
    let alarm = Alarm { thread: name, fatal: fatal.clone() };
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            if let Err(error) = body() {
                drop(alarm.fatal.send(Fatal::Store(error)));
            }
        })
        .map_err(StoreError::io("start thread", name))
}

/// What a turn needs besides the core.
pub(super) struct Shell {
    pub(super) inbox: mpsc::Receiver<Mail>,
    pub(super) outbox: Inbox,
    /// A unit of logical time.
    pub(super) tick: Duration,
    pub(super) status: watch::Sender<Arc<Status>>,
    /// The newest entry that readers find applied.
    pub(super) applied: watch::Sender<u64>,
    pub(super) peers: Peers,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) measure: Measure,
    pub(super) pace: Arc<DiskPace>,
    pub(super) fatal: FatalSender,
    pub(super) scrubs: std_mpsc::Sender<Order>,
    /// Is a pass of the scrubber under way?
    pub(super) scrubbing: Arc<AtomicBool>,
}

impl Shell {
    /// Somebody found damage in what came from our disk: it is looked for at once.
    fn look_for_damage(scrubs: &std_mpsc::Sender<Order>, scrubbing: &AtomicBool) {
        if !scrubbing.swap(true, Ordering::AcqRel) {
            let (nobody, _) = tokio::sync::oneshot::channel();
            drop(scrubs.send(Order::Run(nobody)));
        }
    }
}

/// Starts the threads of a node; join the handle after [`Mail::Stop`] was sent.
pub(super) fn start(
    core: Core<Waiter>,
    shell: Shell,
    scrubber: Scrubber,
) -> Result<thread::JoinHandle<()>, StoreError> {
    let (syncs, checkpoints, compactions) =
        (spawn_sync(&shell)?, spawn_checkpoint(&shell)?, spawn_compact(&shell)?);
    spawn("scrub", &shell.fatal, move || {
        scrubber.run();
        Ok(())
    })?;
    let (fatal, desk, tick) = (shell.fatal.clone(), shell.outbox.clone(), shell.tick);
    let mut turns = Turns {
        core,
        shell,
        syncs,
        checkpoints,
        compactions,
        members: BTreeMap::new(),
        clock: Clock::new(),
        mail: Vec::with_capacity(TURN_MAX),
        work: Work::default(),
        ticks: Ticks::new(tick, Instant::now()),
        stopping: false,
        ended: None,
    };
    turns.follow_members();
    spawn("node", &fatal, move || match desk.own(turns) {
        Ended::Stopped => Ok(()),
        Ended::Failed(error) => Err(error),
        // Whoever panicked has said so.
        Ended::Panicked => Ok(()),
    })
}

/// The thread that makes the log durable.
fn spawn_sync(shell: &Shell) -> Result<std_mpsc::Sender<SyncJob>, StoreError> {
    let (syncs, sync_queue) = std_mpsc::channel::<SyncJob>();
    let (outbox, pace) = (shell.outbox.clone(), Arc::clone(&shell.pace));
    spawn("sync", &shell.fatal, move || {
        for job in sync_queue {
            let done = Mail::Event(Event::Synced(job.run()?));
            pace.log_synced();
            if outbox.synced(done).is_err() {
                break;
            }
        }
        Ok(())
    })?;
    Ok(syncs)
}

/// The thread that writes checkpoints.
fn spawn_checkpoint(shell: &Shell) -> Result<std_mpsc::Sender<CheckpointJob>, StoreError> {
    let (checkpoints, checkpoint_queue) = std_mpsc::channel::<CheckpointJob>();
    let (outbox, pace) = (shell.outbox.clone(), Arc::clone(&shell.pace));
    let measure = shell.measure.clone();
    spawn("checkpoint", &shell.fatal, move || {
        let clock = Clock::new();
        for job in checkpoint_queue {
            let start = clock.now().mono_us;
            let done = match job.run_paced(&*pace) {
                Ok(done) => done
                    .map_or(Event::CheckpointGivenUp, |done| Event::Checkpointed(Box::new(done))),
                // What it reads was read before, and may be had from others.
                Err(error @ StoreError::Corrupt { .. }) => Event::CheckpointFailed(error),
                Err(error) => return Err(error),
            };
            measure.checkpoint(clock.now().mono_us - start);
            if outbox.blocking_send(Mail::Event(done)).is_err() {
                break;
            }
        }
        Ok(())
    })?;
    Ok(checkpoints)
}

/// The thread for what nobody waits for.
fn spawn_compact(shell: &Shell) -> Result<std_mpsc::Sender<Slow>, StoreError> {
    let (compactions, compaction_queue) = std_mpsc::channel::<Slow>();
    let (outbox, pace) = (shell.outbox.clone(), Arc::clone(&shell.pace));
    spawn("compact", &shell.fatal, move || {
        for task in compaction_queue {
            match task {
                Slow::Spare(job) => {
                    let done = job.run(&*pace)?;
                    pace.spare(done.is_made());
                    if outbox.blocking_send(Mail::Event(Event::SpareMade(done))).is_err() {
                        break;
                    }
                }
                Slow::Compact(job) => {
                    let done = Mail::Event(Event::Compacted(job.run(&*pace)?));
                    if outbox.blocking_send(done).is_err() {
                        break;
                    }
                }
                Slow::Drop(garbage) => drop(garbage),
            }
        }
        Ok(())
    })?;
    Ok(compactions)
}

/// What nobody waits for.
enum Slow {
    Spare(SpareJob),
    Compact(CompactionJob),
    Drop(Garbage),
}

/// The core, and all that a turn needs.
pub(super) struct Turns {
    core: Core<Waiter>,
    shell: Shell,
    syncs: std_mpsc::Sender<SyncJob>,
    checkpoints: std_mpsc::Sender<CheckpointJob>,
    compactions: std_mpsc::Sender<Slow>,
    /// Whom packets go to.
    members: BTreeMap<NodeId, String>,
    clock: Clock,
    /// Empty between turns.
    mail: Vec<Mail>,
    work: Work<Waiter>,
    ticks: Ticks,
    stopping: bool,
    /// No turn is taken any more.
    ended: Option<Ended>,
}

/// How a node ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was asked to, and all is in order.
    Stopped,
    /// Its store failed.
    Failed(StoreError),
    /// Somebody panicked during a turn.
    Panicked,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl TakesTurns for Turns {
    fn due(&self) -> Instant {
        self.ticks.due()
    }

    /// A failure of the store is the end; the node's own thread tells of it.
    fn take(&mut self, seat: Seat) -> Left {
        let _alarm = Alarm { thread: "node", fatal: self.shell.fatal.clone() };
        if self.ended.is_some() {
            return Left::Work;
        }
        match self.turn(seat) {
            Ok(left) => left,
            Err(error) => {
                self.ended = Some(Ended::Failed(error));
                Left::Work
            }
        }
    }

    fn gathers(&self) -> u8 {
        let commands = if self.core.gathers_commands() { COMMANDS } else { 0 };
        let reads = if self.core.gathers_reads() { READS } else { 0 };
        commands | reads
    }

    fn has_mail(&self) -> bool {
        !self.shell.inbox.is_empty()
    }

    fn ended(&mut self) -> Option<Ended> {
        self.ended.take()
    }
}

impl Turns {
    fn turn(&mut self, seat: Seat) -> Result<Left, StoreError> {
        let (mut mail, mut work) = (std::mem::take(&mut self.mail), std::mem::take(&mut self.work));
        while mail.len() < TURN_MAX
            && let Ok(item) = self.shell.inbox.try_recv()
        {
            mail.push(item);
        }
        let full = mail.len() == TURN_MAX;
        let passed = self.ticks.passed(Instant::now(), seat);
        mail.iter().for_each(|item| self.ticks.heard(item));
        self.core.set_now(self.clock.now());
        if self.let_happen(passed, &mut mail, &mut work)? {
            self.stopping = true;
            self.shell.pace.end();
            drop(self.shell.scrubs.send(Order::End));
        }
        self.core.begin_turn(&mut work)?;
        let syncs = work.sync.is_some();
        // The disk and the followers are slower than we are, so they begin first.
        self.hand_out(&mut work);
        let goes_on = match seat {
            Seat::Owner => true,
            Seat::Guest => self.core.ends_soon(GUEST_APPLIES),
            Seat::Syncer => self.core.ends_soon(if syncs { 0 } else { GUEST_APPLIES }),
        };
        if goes_on {
            self.core.end_turn(&mut work)?;
            let applied = self.core.applied().0;
            let tell = |told: &mut u64| std::mem::replace(told, applied) != applied;
            self.shell.applied.send_if_modified(tell);
            self.hand_out(&mut work);
        }
        if work.measured.applied > 0 {
            self.ticks.news(); // also where a heartbeat told what is committed
        }
        let is_due = self.ticks.picture(passed);
        self.shell.measure.turn(&self.core, &work.measured, is_due);
        work.measured = super::work::Measured::default();
        self.publish(is_due);
        let left = match (work.again, full) {
            (true, _) => Left::Work,
            (false, true) => Left::Mail,
            (false, false) => Left::Nothing,
        };
        (self.mail, self.work) = (mail, work);
        let wakes_owner = self.ticks.plan(seat, || self.core.quiet_ticks());
        if wakes_owner || self.stopping && seat != Seat::Owner {
            return Ok(Left::Work);
        }
        if self.stopping && self.core.is_idle() {
            self.core.stop()?;
            self.ended = Some(Ended::Stopped);
        }
        Ok(left)
    }

    /// Lets the mail of one turn happen: peers first, so that after a pause the leader is
    /// heard before the election time-out is; then time; then clients, all of them as one
    /// proposal. Of several ticks only the last leads to anything, so the others come first.
    fn let_happen(
        &mut self,
        ticks: u32,
        mail: &mut Vec<Mail>,
        work: &mut Work<Waiter>,
    ) -> Result<bool, StoreError> {
        let mut stop = false;
        for _ in 1..ticks {
            self.core.handle(Event::Tick, work)?;
        }
        let (mut proposals, mut reads, mut lease_reads) = (Vec::new(), Vec::new(), Vec::new());
        for item in mail.drain(..) {
            match item {
                Mail::Propose(waiter, payload) => proposals.push((waiter, payload)),
                Mail::Read(waiter) => reads.push(waiter),
                Mail::LeaseRead(waiter) => lease_reads.push(waiter),
                Mail::Event(event) => self.core.handle(event, work)?,
                Mail::Backup(upto, asker) => {
                    // Who went away gives the pages back at once.
                    drop(asker.send(self.core.pin_for_backup(upto)?));
                }
                Mail::Stop => stop = true,
            }
        }
        if ticks > 0 {
            self.core.handle(Event::Tick, work)?;
        }
        if !proposals.is_empty() {
            self.core.handle(Event::Propose(proposals), work)?;
        }
        if !reads.is_empty() {
            self.core.handle(Event::Read(reads), work)?;
        }
        if !lease_reads.is_empty() {
            self.core.handle(Event::LeaseRead(lease_reads), work)?;
        }
        Ok(stop)
    }

    /// Connections follow the membership. Those to former members stay, and cost nothing.
    fn follow_members(&mut self) {
        let us = self.core.raft().id();
        for (id, url) in self.core.addresses() {
            if *id != us && self.members.get(id) != Some(url) {
                self.shell.measure.peers().add(*id);
                self.shell.peers.add(*id, url);
                self.members.insert(*id, url.clone());
            }
        }
    }

    fn hand_out(&mut self, work: &mut Work<Waiter>) {
        self.follow_members();
        // The disk is the slowest, so it starts first. A worker that is gone has reported
        // why, and the process is about to end.
        if let Some(job) = work.sync.take() {
            drop(self.syncs.send(job));
        }
        for packet in work.packets.drain(..) {
            self.shell.peers.send(packet.to, packet.way, packet.head, packet.frames);
        }
        for (waiter, answer) in work.answers.drain(..) {
            self.shell.measure.answered(&answer);
            // A client that went away is not waiting.
            drop::<Result<(), Answer>>(waiter.send(answer));
        }
        if let Some(job) = work.checkpoint.take() {
            drop(self.checkpoints.send(job));
        }
        if let Some(scrub) = work.scrub.take() {
            drop(self.shell.scrubs.send(Order::Look(Box::new(scrub))));
        }
        let spare = work.spare.take().map(Slow::Spare).into_iter();
        let slow = spare.chain(work.compaction.take().map(Slow::Compact));
        for task in slow.chain(work.garbage.drain(..).map(Slow::Drop)) {
            drop(self.compactions.send(task));
        }
        for shipment in work.snapshots.drain(..) {
            let (peers, outbox) = (self.shell.peers.clone(), self.shell.outbox.clone());
            let measure = self.shell.measure.clone();
            let (scrubs, scrubbing) =
                (self.shell.scrubs.clone(), Arc::clone(&self.shell.scrubbing));
            self.shell.runtime.spawn(async move {
                let super::work::Shipment { to, term, meta, pinned } = shipment;
                let shipped = peers.ship(to, term, &meta, pinned, measure.resumes()).await;
                tracing::info!(peer = %to, snapshot = %meta.last, ?shipped, "snapshot sent");
                let installed = match shipped {
                    Shipped::Installed(last) => Some(last),
                    Shipped::Lost => None,
                    Shipped::Damaged => {
                        Shell::look_for_damage(&scrubs, &scrubbing);
                        None
                    }
                };
                measure.shipped(installed.is_some());
                drop(outbox.send(Mail::Event(Event::SnapshotSent(to, installed))).await);
            });
        }
    }

    /// Gives others a new picture of the node, when one is due or its role or leader changed.
    fn publish(&mut self, is_due: bool) {
        let old = self.shell.status.borrow().clone();
        let raft = self.core.raft();
        let changed = old.term != raft.term().0
            || old.leader != raft.leader().map(|leader| leader.0)
            || old.role != super::measure::role_name(raft);
        if !changed && !is_due {
            return;
        }
        let mut status = self.shell.measure.status(&self.core, self.clock.now().mono_us);
        if self.shell.pace.no_space() {
            status.alarms.push("no-space".to_owned());
        }
        self.shell.measure.alarms(&status);
        if changed {
            tracing::info!(
                term = status.term,
                role = ?status.role,
                leader = status.leader,
                last_log_index = status.last_log_index,
                "role or leader changed"
            );
        }
        self.shell.status.send_replace(Arc::new(status));
    }
}
