//! The node without threads, clocks and sockets: events in, work out.
//!
//! Owns the three parts - the protocol, the log, the database - and is the only place that
//! turns decisions of one into effects on another. The shell around it (`run.rs`, or the
//! simulator) delivers events with [`Core::handle`], then calls [`Core::turn`] once, and
//! carries out the [`Work`] it gets.
//!
//! The order inside a turn is the durability contract:
//!
//! 1. Whatever the protocol decided while handling events is *staged*, nothing is written.
//! 2. If no sync is running, all that is staged is written as one batch and becomes
//!    readable; a sync job covers it. While a sync runs, the next batch gathers: group
//!    commit needs no timer.
//! 3. Entries are sent to followers once written, before they are durable here, so that
//!    all disks work at once (thesis 10.2.1). The protocol counts our own copy only when
//!    the sync job has returned.
//! 4. What is committed and durable here is applied, and clients are answered.
//!
//! Left out: anything that waits. A job that takes time is handed to the shell.

mod apply;
mod compact;
mod files;
mod found;
mod handover;
mod health;
mod members;
mod replicate;
mod tidy;
mod window;

pub use compact::{CompactionDone, CompactionJob};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use health::Health;
use members::Lives;

use super::open::Parts;
use super::work::{Answer, Arrived, Event, Garbage, Work};
use crate::machine::Tidy;
use crate::raft::Raft;
use crate::raft::message::{
    Append, AppendSource, Effects, Input, IoToken, Message, ReadOutcome, Refusal, Replicate,
};
use crate::raft::types::{EntryKind, Index, LogId, NodeId};
use crate::store::{Db, Disk, Log, LogReader, Published, StoreError, frame};
use crate::wire::{self, Address};

/// Entries applied in one turn before the others get theirs: keeps heartbeats flowing
/// while a restarted node replays its log.
const APPLY_MAX: u64 = 2048;
/// Ticks until a spare segment is tried again for which there was no room.
const SPARE_TICKS: u64 = 400;
/// Entries applied as one change of the tree.
const APPLY_BATCH: u64 = 512;

/// Settings of the driver itself.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// Bytes of entries in one message.
    pub batch_bytes: usize,
    /// Bytes of entries on their way to one follower.
    pub inflight_bytes: usize,
    /// Log bytes after which a checkpoint is due.
    pub checkpoint_log_bytes: u64,
    /// Bytes of changed pages in memory after which a checkpoint is due.
    pub checkpoint_dirty_bytes: u64,
    /// Ticks after which changes are written out even if they are few.
    pub checkpoint_ticks: u64,
    /// Ticks of silence after which a follower no longer holds back compaction.
    pub active_ticks: u32,
    /// Ticks without a write after which a mark proves the last one: until then damage of it
    /// could pass for a torn end.
    pub mark_ticks: u64,
    /// Bytes of log kept behind the checkpoints for followers that lag.
    pub log_retain_bytes: u64,
    /// Nodes compare the digests of their states at multiples of this many entries.
    pub digest_entries: u64,
    /// What is kept of the past, when this node leads.
    pub tidy: Tidy,
}

/// Time as the shell sees it, once a turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Milliseconds since 1970; goes into entries.
    pub wall_ms: u64,
    /// Microseconds of a clock that never jumps, and goes on while the machine sleeps: for
    /// measuring, and for leases.
    pub mono_us: u64,
}

/// A proposal of ours that waits to be applied.
#[derive(Debug)]
struct Waiting<W> {
    id: LogId,
    waiter: W,
    since_us: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Core<W> {
    us: Address,
    options: CoreOptions,
    raft: Raft,
    log: Log,
    reader: LogReader,
    db: Db,
    disk: Arc<dyn Disk>,
    effects: Effects,
    now: Now,
    ticks: u64,
    /// The tick of the last write.
    wrote_at_tick: u64,
    /// Newest token given out by the protocol for what is staged.
    io: IoToken,
    syncing: bool,
    checkpointing: bool,
    /// The disk was full until the node had to stop.
    checkpoints_ended: bool,
    compacting: Option<compact::Compacting<W>>,
    /// Committed and durable here.
    commit: Index,
    applied: Index,
    /// Replication orders for entries that are not written yet, or for which the follower's
    /// window has no room.
    orders: Vec<Replicate>,
    windows: window::Windows,
    /// When the heartbeat that each peer has not answered yet was sent.
    heartbeats: BTreeMap<NodeId, u64>,
    /// Own proposals by index, ascending.
    waiting: VecDeque<Waiting<W>>,
    /// Reads by token until the protocol decides them.
    reads: BTreeMap<u64, W>,
    next_read: u64,
    /// Reads that wait until an index is applied.
    readable: Vec<(Index, W)>,
    arrived: Option<Arrived<W>>,
    log_bytes_since_checkpoint: u64,
    checkpoint_at_tick: u64,
    /// A peer needs a newer checkpoint than the last one.
    checkpoint_wanted: bool,
    /// Not before this tick another spare segment is made: there was no room for one.
    spare_at_tick: u64,
    /// Time of the newest entry, staged or written.
    time_ms: u64,
    health: Health,
    lives: Lives,
    tidying: tidy::Tidying,
    /// The files say that entries were lost, nobody knows which.
    amnesia_noted: bool,
    /// Peers that a snapshot is on its way to.
    shipping: BTreeSet<NodeId>,
}

impl<W> Core<W> {
    /// A node over files that [`super::open`] has opened and made consistent.
    pub fn new(parts: Parts, options: CoreOptions) -> Self {
        let Parts { us, raft, log, db, disk, lost: _ } = parts;
        let time_ms = db.state().time_ms;
        let stateless = db.state().applied.index.next() < log.first();
        let applied = db.state().applied.index.max(log.first().prev());
        db.published().withhold(stateless);
        let rebuild_to = stateless.then_some(applied);
        let health = Health::new(stateless, rebuild_to);
        Self {
            spare_at_tick: 0,
            amnesia_noted: raft.is_amnesiac(),
            health,
            shipping: BTreeSet::new(),
            lives: Lives::default(),
            tidying: tidy::Tidying::default(),
            checkpoint_wanted: false,
            us,
            options,
            reader: log.reader(),
            raft,
            log,
            db,
            disk,
            effects: Effects::default(),
            now: Now::default(),
            ticks: 0,
            wrote_at_tick: 0,
            io: IoToken::default(),
            syncing: false,
            checkpointing: false,
            checkpoints_ended: false,
            compacting: None,
            commit: applied,
            applied,
            orders: Vec::new(),
            windows: window::Windows::default(),
            heartbeats: BTreeMap::new(),
            waiting: VecDeque::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            readable: Vec::new(),
            arrived: None,
            log_bytes_since_checkpoint: 0,
            checkpoint_at_tick: 0,
            time_ms,
        }
    }

    /// The clock for the events that follow.
    pub fn set_now(&mut self, now: Now) {
        self.now = now;
    }

    /// The protocol's state, to look at.
    pub fn raft(&self) -> &Raft {
        &self.raft
    }

    /// The log, to look at.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The database, to look at.
    pub fn db(&self) -> &Db {
        &self.db
    }

    /// Where readers find the newest state.
    pub fn published(&self) -> Published {
        self.db.published()
    }

    /// Last entry applied.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// Is all that is known to be committed applied?
    pub fn is_caught_up(&self) -> bool {
        self.applied >= self.raft.commit() && !self.is_rebuilding()
    }

    /// Is the state being made anew?
    pub fn is_rebuilding(&self) -> bool {
        self.health.rebuild_to.is_some()
    }

    /// Lets one event happen. Nothing reaches disk or network before [`Core::turn`].
    ///
    /// # Errors
    /// Those of the store, all fatal.
    pub fn handle(&mut self, event: Event<W>, work: &mut Work<W>) -> Result<(), StoreError> {
        match event {
            Event::Tick => self.tick(work),
            Event::Packet(packet) => self.receive(packet, work),
            Event::ChangeMembers(waiter, change) => self.change_members(waiter, &change, work),
            Event::Propose(batch) => self.propose(batch, work),
            Event::Read(waiters) => self.ask_to_read(waiters, work, |token| Input::Read { token }),
            Event::LeaseRead(waiters) => {
                // Read after these waiters came, so a lease that holds now held for them.
                self.step(Input::Clock { now: self.now.mono_us }, work)?;
                self.ask_to_read(waiters, work, |token| Input::LeaseRead { token })
            }
            Event::Synced(synced) => {
                self.syncing = false;
                let io = self.log.synced(synced);
                self.step(Input::Durable { io }, work)
            }
            Event::Checkpointed(done) => {
                self.checkpointing = false;
                let pages = self.db.finish_checkpoint(*done)?;
                work.garbage.push(Garbage::Pages(pages));
                self.compact(work)
            }
            Event::CheckpointGivenUp => {
                (self.checkpointing, self.checkpoints_ended) = (false, true);
                Ok(())
            }
            Event::Compact(waiter) => {
                self.begin_compaction(Some(waiter), work);
                Ok(())
            }
            Event::SpareMade(done) => {
                if !done.is_made() {
                    self.spare_at_tick = self.ticks + SPARE_TICKS;
                }
                self.log.spare_ready(done);
                Ok(())
            }
            Event::Compacted(done) => self.compacted(done, work),
            Event::Unreachable(peer) => self.step(Input::Unreachable { peer }, work),
            Event::LeaderGone(peer) => self.step(Input::LeaderGone { peer }, work),
            Event::SnapshotArrived(arrived) => {
                if let Some(older) = self.arrived.replace(arrived) {
                    work.answers.push((older.waiter, Answer::Installed(None)));
                }
                Ok(())
            }
            Event::SnapshotSent(to, installed) => {
                self.shipping.remove(&to);
                self.step(Input::SnapshotSent { to, installed }, work)
            }
            Event::CheckpointFailed(why) => {
                self.checkpointing = false;
                self.lose_database(why, work)
            }
            Event::ScrubWanted => self.begin_scrub(work),
            Event::Damaged(finding) => {
                self.found(&finding);
                Ok(())
            }
            Event::Scrubbed { clean } => {
                self.health.disk_damage = !clean;
                Ok(())
            }
            Event::HandOver(to, waiter) => self.hand_over(to, waiter, work),
            Event::StepDown => match self.raft.most_caught_up() {
                Some(to) => self.step(Input::Transfer { to }, work),
                None => Ok(()),
            },
        }
    }

    fn tick(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        self.ticks += 1;
        self.look_after(work)?;
        // Heartbeats carry the rounds of a lease, which begin now.
        self.step(Input::Clock { now: self.now.mono_us }, work)?;
        self.step(Input::Tick, work)?;
        self.record_lives(work)?;
        self.tidy_when_due(work)?;
        if !self.syncing && self.ticks - self.wrote_at_tick >= self.options.mark_ticks {
            // Written in this turn; once, so an idle node stays idle.
            self.log.stage_mark();
        }
        Ok(())
    }

    fn ask_to_read(
        &mut self,
        waiters: Vec<W>,
        work: &mut Work<W>,
        input: impl Fn(u64) -> Input,
    ) -> Result<(), StoreError> {
        for waiter in waiters {
            self.next_read += 1;
            self.reads.insert(self.next_read, waiter);
            self.step(input(self.next_read), work)?;
        }
        Ok(())
    }

    /// Writes, sends and applies what the events since the last turn led to: both halves.
    ///
    /// # Errors
    /// Those of the store, all fatal: the process must end without another answer.
    pub fn turn(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        self.begin_turn(work)?;
        self.end_turn(work)
    }

    /// The first half of a turn: what must be durable is written, and followers get it. Its work
    /// may be carried out before the second half, so that disks and networks are busy while this
    /// node applies what they did before.
    ///
    /// # Errors
    /// As of [`Core::turn`].
    pub fn begin_turn(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        self.heal(work)?;
        self.install_arrived(work)?;
        self.write(work)?;
        self.send_entries(work);
        work.again = true;
        Ok(())
    }

    /// The second half: what is committed becomes the state, and files are looked after. It may
    /// be left to a later turn; until then `work.again` says that there is more to do.
    ///
    /// # Errors
    /// As of [`Core::turn`].
    pub fn end_turn(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        self.apply(work)?;
        if self.tidying.more {
            self.tidy_when_due(work)?;
        }
        self.swap_compacted(work)?;
        self.checkpoint_when_due(work)?;
        // Applying may have let the protocol decide something that must be written.
        self.write(work)?;
        self.send_entries(work);
        self.heal(work)?;
        work.again = self.can_apply() || (self.is_swapping() && !self.checkpointing);
        Ok(())
    }

    /// Would the second half of this turn take no longer than to apply `entries`? Whoever has
    /// other things to do can leave it to somebody else if not.
    pub fn ends_soon(&self, entries: u64) -> bool {
        let applies = if self.can_apply() { self.commit.0 - self.applied.0 } else { 0 };
        applies <= entries && !self.is_swapping() && !self.is_checkpoint_due()
    }

    /// Does this node lead, and gather commands for the batch after the one that is being synced?
    pub fn gathers_commands(&self) -> bool {
        self.syncing && self.raft.is_leader()
    }

    /// Does this node lead, and gather reads for the round after the one that is under way?
    pub fn gathers_reads(&self) -> bool {
        self.raft.has_open_round()
    }

    fn propose(&mut self, batch: Vec<(W, Bytes)>, work: &mut Work<W>) -> Result<(), StoreError> {
        let (waiters, payloads): (Vec<W>, Vec<Bytes>) = batch.into_iter().unzip();
        let sizes = payloads
            .iter()
            .map(|payload| u32::try_from(payload.len()).expect("values are far below 4 GiB"))
            .collect();
        self.effects.proposed = None;
        self.step_with(Input::Propose { sizes }, &Bytes::new(), &payloads, work)?;
        match self.effects.proposed.take() {
            Some(Ok(first)) => self.wait_for(first, waiters, work),
            Some(Err(refusal)) => {
                let answer = match refusal {
                    Refusal::NotLeader(leader) => Answer::NotLeader(leader),
                    Refusal::Transferring => Answer::NotLeader(None),
                    Refusal::Overloaded => Answer::Overloaded,
                };
                let refused = waiters.into_iter().map(|waiter| (waiter, answer.clone()));
                work.answers.extend(refused);
            }
            None => unreachable!("the protocol answers every proposal in the same step"),
        }
        Ok(())
    }

    /// These wait for the entries from `first` on.
    fn wait_for(&mut self, first: LogId, waiters: Vec<W>, work: &mut Work<W>) {
        // Whatever waited at these places was in a suffix that is gone for good.
        while self.waiting.back().is_some_and(|last| last.id.index >= first.index) {
            let gone = self.waiting.pop_back().expect("just seen");
            work.answers.push((gone.waiter, Answer::Unknown));
        }
        let since_us = self.now.mono_us;
        for (place, waiter) in (first.index.0..).zip(waiters) {
            let id = LogId { term: first.term, index: Index(place) };
            self.waiting.push_back(Waiting { id, waiter, since_us });
        }
    }

    /// Steps the protocol with an input that brings no bytes.
    fn step(&mut self, input: Input, work: &mut Work<W>) -> Result<(), StoreError> {
        self.step_with(input, &Bytes::new(), &[], work)
    }

    /// Steps the protocol and stages what it decided. `frames` are those of a received
    /// append, `payloads` those of a proposal.
    fn step_with(
        &mut self,
        input: Input,
        frames: &Bytes,
        payloads: &[Bytes],
        work: &mut Work<W>,
    ) -> Result<(), StoreError> {
        let mut effects = std::mem::take(&mut self.effects);
        self.raft.step(input, &mut effects);
        // A term or vote that can be forgotten can be given twice. It goes first in the
        // batch; what depends on it is held back inside the protocol until it is durable.
        if let Some(state) = effects.hard_state.take() {
            self.log.stage_hard_state(state);
        }
        for append in effects.appends.drain(..) {
            self.stage(append, frames, payloads)?;
        }
        if let Some(io) = effects.io.take() {
            self.io = io;
        }
        self.take_orders(&mut effects);
        for envelope in effects.messages.drain(..) {
            if matches!(envelope.message, Message::Heartbeat { .. }) {
                if !self.may_lead(envelope.to) {
                    continue;
                }
                self.heartbeats.insert(envelope.to, self.now.mono_us);
            }
            work.packets.push(self.outgoing(&envelope));
        }
        for to in effects.snapshots.drain(..) {
            self.ship(to, work)?;
        }
        if let Some(commit) = effects.commit.take() {
            assert!(commit >= self.commit, "what is committed stays committed");
            self.commit = commit;
        }
        for (token, outcome) in effects.reads.drain(..) {
            let Some(waiter) = self.reads.remove(&token) else { continue };
            match outcome {
                ReadOutcome::At(index) if index <= self.applied && !self.is_rebuilding() => {
                    work.answers.push((waiter, Answer::Readable));
                }
                ReadOutcome::At(index) => self.readable.push((index, waiter)),
                ReadOutcome::Refused(leader) => {
                    work.answers.push((waiter, Answer::NotReadable(leader)));
                }
            }
        }
        self.effects = effects;
        Ok(())
    }

    fn stage(
        &mut self,
        append: Append,
        frames: &Bytes,
        payloads: &[Bytes],
    ) -> Result<(), StoreError> {
        // The leader's clock, made monotone along the log: expiry must not run backwards.
        self.time_ms = self.time_ms.max(self.now.wall_ms);
        let first = LogId { term: append.term, index: append.first };
        match append.source {
            AppendSource::Noop => {
                // What a restart found in the log may be newer than what is applied.
                let before = self.reader.entry(append.first.prev());
                self.time_ms = self.time_ms.max(before.map_or(0, |entry| entry.time_ms));
                self.log.stage_own(first, EntryKind::Noop, &[], self.time_ms);
            }
            AppendSource::Config => {
                let config = wire::encode_membership(self.raft.membership_at(append.first));
                self.log.stage_own(first, EntryKind::Config, &config, self.time_ms);
            }
            AppendSource::Proposed => {
                for (place, payload) in (append.first.0..=append.last.0).zip(payloads) {
                    let id = LogId { term: append.term, index: Index(place) };
                    self.log.stage_own(id, EntryKind::Command, payload, self.time_ms);
                }
            }
            AppendSource::Received => {
                let from =
                    frame::offset_of(frames, append.first).ok_or_else(|| StoreError::Corrupt {
                        file: "a received append".into(),
                        what: "frames",
                        offset: 0,
                        why: format!("entry {} is not among them", append.first),
                    })?;
                self.log.stage_frames(append.first, frames.get(from..).unwrap_or_default())?;
                self.time_ms = self.time_ms.max(frame::newest_time(frames));
            }
        }
        Ok(())
    }

    fn receive(&mut self, packet: wire::Packet, work: &mut Work<W>) -> Result<(), StoreError> {
        if !self.is_of_a_known_life(&packet, work) {
            return Ok(());
        }
        let wire::Packet { from, incarnation: _, content, frames } = packet;
        let mut envelope = match content {
            wire::Content::Protocol(envelope) => envelope,
            wire::Content::Aside(aside) => return self.hear_aside(from, aside, frames, work),
        };
        if matches!(envelope.message, Message::HeartbeatReply { .. })
            && let Some(sent) = self.heartbeats.remove(&envelope.from)
        {
            let took = self.now.mono_us.saturating_sub(sent);
            work.measured.round_trips_us.push((envelope.from, took));
        }
        if let Message::Append { prev, entries, .. } = &mut envelope.message {
            // Damaged frames are dropped here, before anything of them reaches the log.
            match super::open::describe(*prev, &frames) {
                Some(run) => *entries = run,
                None => return Ok(()),
            }
        }
        self.step_with(Input::Receive(envelope), &frames, &[], work)
    }

    /// Notes in the files that this stop was asked for. Call it last, with no job running.
    ///
    /// # Errors
    /// Those of the store.
    pub fn stop(&mut self) -> Result<(), StoreError> {
        self.log.mark_clean()
    }

    /// Is no job of ours running? Then [`Core::stop`] may be called.
    pub fn is_idle(&self) -> bool {
        !self.syncing && !self.checkpointing && !self.is_copying()
    }
}
