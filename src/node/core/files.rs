//! What happens to the files beside appending: checkpoints, compaction of the log, snapshots
//! that leave and that arrive.

use super::Core;
use crate::node::work::{Answer, Arrived, Shipment, Work};
use crate::raft::message::{Input, SnapshotMeta};
use crate::raft::progress::Progress;
use crate::raft::types::{Index, NodeId};
use crate::store::{PendingInstall, PinnedCheckpoint, StoreError};

/// A checkpoint of that part of what makes one due is made as soon as it writes no more than
/// so many times the bytes of the log that it stands for.
const CHEAP_PART: u64 = 4;
const CHEAP_TIMES: u64 = 4;
/// A checkpoint of that part of what makes one due is made as soon as nothing was written for
/// that part of the time.
const CALM_PART: u64 = 16;

/// In a large store nearly every entry changes pages of its own: the more of them a checkpoint
/// has together, the more often it writes a page of the upper levels once for several. So that
/// part of it may change before one is due, but no more than so many times as in a small one.
const LARGE_PART: u64 = 32;
const LARGE_TIMES: u64 = 5;

impl<W> Core<W> {
    /// Bytes of the database that may have changed in memory before a checkpoint is due.
    pub(super) fn dirty_due(&self) -> u64 {
        let least = self.options.checkpoint_dirty_bytes;
        (self.db.live_bytes() / LARGE_PART).clamp(least, LARGE_TIMES * least)
    }

    /// Would [`Core::checkpoint_when_due`] begin one?
    pub(super) fn is_checkpoint_due(&self) -> bool {
        let dirty = self.db.dirty_bytes();
        let due = dirty >= self.dirty_due()
            || self.is_cheap(dirty)
            || self.is_calm(dirty)
            || self.checkpoint_wanted
            || self.log_bytes_since_checkpoint >= self.options.checkpoint_log_bytes
            || (dirty > 0 && self.ticks >= self.checkpoint_at_tick + self.options.checkpoint_ticks);
        let busy = self.checkpointing || self.checkpoints_ended || self.is_swapping();
        due && !busy && self.arrived.is_none() && !self.health.stateless
    }

    pub(super) fn checkpoint_when_due(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        if !self.is_checkpoint_due() {
            return Ok(());
        }
        self.checkpoint_wanted = false;
        self.checkpoint_at_tick = self.ticks;
        self.log_bytes_since_checkpoint = 0;
        if let Some(job) = self.db.begin_checkpoint()? {
            self.checkpointing = true;
            work.checkpoint = Some(job);
        }
        Ok(())
    }

    /// Does writing now cost little more than writing later? Where many entries went into few
    /// pages, most of those are full and will not change again: a start has less to apply, and
    /// memory fewer pages. Where each entry changes a page of its own, the more of them wait the
    /// more often a page is written once for several.
    fn is_cheap(&self, dirty: u64) -> bool {
        dirty >= self.options.checkpoint_dirty_bytes / CHEAP_PART
            && dirty <= CHEAP_TIMES.saturating_mul(self.log_bytes_since_checkpoint)
    }

    /// Has a load ceased that left much to write? Nobody minds then, and the next start finds
    /// nothing to apply.
    fn is_calm(&self, dirty: u64) -> bool {
        let ticks = self.options.checkpoint_ticks / CALM_PART;
        dirty >= self.options.checkpoint_dirty_bytes / CALM_PART
            && self.ticks - self.wrote_at_tick > ticks
    }

    /// Pins the last durable checkpoint if it holds entry `upto`; otherwise one that does is
    /// made soon.
    ///
    /// # Errors
    /// Those of the store.
    pub fn pin_for_backup(&mut self, upto: Index) -> Result<Option<PinnedCheckpoint>, StoreError> {
        if self.db.durable().index < upto || self.is_rebuilding() {
            self.checkpoint_wanted = true;
            return Ok(None);
        }
        self.db.pin()
    }

    /// Drops log segments that neither a crash nor, within reason, a follower needs.
    pub(super) fn compact(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        if self.log.size_bytes() <= self.options.log_retain_bytes {
            return Ok(());
        }
        let mut upto = self.db.log_needed_from().index;
        if let Some(needed) = self.compaction_needs() {
            upto = upto.min(needed);
        }
        if self.log.size_bytes() <= 4 * self.options.log_retain_bytes
            && let Some(slowest) = self.slowest_active_match()
        {
            upto = upto.min(slowest);
        }
        if let Some(base) = self.log.compact(upto)? {
            self.step(Input::Compacted { upto: base }, work)?;
        }
        Ok(())
    }

    pub(super) fn ship(&mut self, to: NodeId, work: &mut Work<W>) -> Result<(), StoreError> {
        let pinned = if self.may_lead(to) { self.db.pin()? } else { None };
        let Some(pinned) = pinned else {
            self.shipping.remove(&to);
            return self.step(Input::SnapshotSent { to, installed: None }, work);
        };
        let state = pinned.state();
        let membership = self.raft.membership_at(state.applied.index).clone();
        let meta = SnapshotMeta { last: state.applied, membership };
        self.shipping.insert(to);
        work.snapshots.push(Shipment { to, term: self.raft.term(), meta, pinned });
        Ok(())
    }

    /// Installs a received snapshot once no job is running: the log and the database change
    /// together, and a crash in between is finished at the next start.
    pub(super) fn install_arrived(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        if self.syncing || self.checkpointing || self.log.has_staged() {
            return Ok(());
        }
        let Some(arrived) = self.arrived.take() else { return Ok(()) };
        let Arrived { waiter, from, term, meta, chain, path } = arrived;
        if self.health.stateless && meta.last.index <= self.commit {
            return self.restore_state(Arrived { waiter, from, term, meta, chain, path }, work);
        }
        self.effects.install = None;
        let input = Input::SnapshotReceived { from, term, meta: meta.clone() };
        self.step(input, work)?;
        let Some(Some(meta)) = self.effects.install.take() else {
            self.disk.remove(&path)?;
            work.answers.push((waiter, Answer::Installed(None)));
            return Ok(());
        };
        self.log.begin_install(PendingInstall { last: meta.last, chain })?;
        self.db.install(&path)?;
        if self.reader.term_at(meta.last.index) != Some(meta.last.term) {
            self.log.reset(meta.last, chain)?;
        }
        self.log.end_install()?;
        self.applied = meta.last.index;
        self.health.stateless = false;
        self.commit = self.commit.max(self.applied);
        self.time_ms = self.time_ms.max(self.db.state().time_ms);
        work.measured.installed = true;
        self.jump_over(meta.last.index, work);
        work.answers.push((waiter, Answer::Installed(Some(meta.last))));
        self.step(Input::SnapshotInstalled { meta }, work)
    }

    /// Takes a snapshot in place of the lost database. The log has been there, and goes on
    /// from it: the protocol need not know.
    fn restore_state(&mut self, arrived: Arrived<W>, work: &mut Work<W>) -> Result<(), StoreError> {
        let Arrived { waiter, meta, chain, path, .. } = arrived;
        let last = meta.last;
        if self.reader.term_at(last.index) != Some(last.term) {
            // Older than what our log begins with: the next one will be newer.
            self.disk.remove(&path)?;
            work.answers.push((waiter, Answer::Installed(None)));
            return Ok(());
        }
        self.log.begin_install(PendingInstall { last, chain })?;
        self.db.install(&path)?;
        self.log.end_install()?;
        self.health.stateless = false;
        self.applied = last.index;
        self.time_ms = self.time_ms.max(self.db.state().time_ms);
        work.measured.installed = true;
        self.jump_over(last.index, work);
        work.answers.push((waiter, Answer::Installed(Some(last))));
        if last.index > self.raft.applied() {
            self.step(Input::Applied { index: last.index }, work)?;
        }
        Ok(())
    }

    /// The places that a snapshot jumps over may hold our proposals or not.
    fn jump_over(&mut self, last: Index, work: &mut Work<W>) {
        while self.waiting.front().is_some_and(|first| first.id.index <= last) {
            let jumped = self.waiting.pop_front().expect("just seen");
            work.answers.push((jumped.waiter, Answer::Unknown));
        }
    }

    /// How far the slowest follower is that still answers: entries after it will be asked
    /// for soon.
    fn slowest_active_match(&self) -> Option<Index> {
        let active = self.raft.progress().filter(|(_, progress)| self.is_active(progress));
        active.map(|(_, progress)| progress.matched).min()
    }

    fn is_active(&self, progress: &Progress) -> bool {
        progress.silent_ticks < self.options.active_ticks
    }
}
