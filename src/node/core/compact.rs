//! Compaction of the database: a new file is written beside the old one while entries go on
//! being applied, then takes its place.
//!
//! The job copies the newest snapshot, applies to the copy what was applied here meanwhile,
//! and hands it over when little is missing. The node applies the rest, a slice a turn, and
//! changes the files when both hold the same state, digest and chain included. From the
//! start until then the log keeps everything after the snapshot; after it, everything after
//! the checkpoint before the last one of the new file, as always.
//!
//! A node that stops ends the job at its next piece. A crash leaves an unfinished file, which
//! the next start removes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::apply::apply_batch;
use super::{APPLY_BATCH, APPLY_MAX, Core};
use crate::node::work::{Answer, Compacted, Garbage, NotCompacted, Work};
use crate::raft::types::Index;
use crate::store::compact::CompactJob;
use crate::store::db::discard;
use crate::store::pace::{Background, Pace};
use crate::store::{Db, Disk, LogReader, StoreError, is_no_space};

/// Entries that may be left to the turn that puts the copy in the place of the database.
const LEFT_TO_SWAP: u64 = 64;
/// Entries that such a turn applies to the copy, if it does not apply more to the database.
const SWAP_SLICE: u64 = 128;
/// Batches that the job applies at last to come that near. Under a load that applies as fast
/// as the job does it would come no nearer.
const LAST_BATCHES: u32 = 16;

/// The compaction that is under way.
#[derive(Debug)]
pub(super) struct Compacting<W> {
    /// Nobody waits when damage on the disk is the reason.
    waiter: Option<W>,
    since_us: u64,
    /// The log keeps what follows this.
    after: Index,
    /// What the job may apply, since it is applied here.
    applied: Arc<AtomicU64>,
    /// Of the database that is copied: when another file took its place, the copy is of no use.
    generation: u64,
    distrusted: bool,
    /// The copy, when little is missing.
    copy: Option<Box<Db>>,
    path: PathBuf,
}

/// A compaction to be run on a thread of its own.
#[derive(Debug)]
pub struct CompactionJob {
    copying: CompactJob,
    disk: Arc<dyn Disk>,
    log: LogReader,
    applied: Arc<AtomicU64>,
    dirty_max: u64,
}

/// What became of a [`CompactionJob`].
#[derive(Debug)]
pub struct CompactionDone {
    copy: Result<Box<Db>, NotCompacted>,
}

impl CompactionJob {
    /// Writes the new file and applies to it what is applied here, until little is missing.
    ///
    /// # Errors
    /// Those of the store that are fatal; a full disk is not.
    pub fn run(self, pace: &dyn Pace) -> Result<CompactionDone, StoreError> {
        let (disk, path) = (Arc::clone(&self.disk), self.copying.path().to_owned());
        let copy = match self.copy(&Background(pace)) {
            Ok(Some(copy)) => Ok(Box::new(copy)),
            Ok(None) => Err(NotCompacted::Superseded),
            Err(StoreError::Ended) => Err(NotCompacted::Ended),
            Err(error) if is_no_space(&error) => Err(NotCompacted::NoSpace),
            Err(StoreError::Full { .. }) => Err(NotCompacted::NoSpace),
            Err(error @ StoreError::Corrupt { .. }) => {
                Err(NotCompacted::Damaged(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        if copy.is_err() {
            discard(&*disk, &path)?;
        }
        Ok(CompactionDone { copy })
    }

    /// `None`: the log does not have the entries any more.
    fn copy(self, pace: &dyn Pace) -> Result<Option<Db>, StoreError> {
        let Self { copying, log, applied, dirty_max, disk: _ } = self;
        let mut copy = copying.run(pace)?;
        let missing = |copy: &Db| {
            applied.load(Ordering::Acquire).saturating_sub(copy.state().applied.index.0)
        };
        loop {
            let left = missing(&copy);
            if left <= APPLY_MAX {
                break;
            }
            if !follow(&mut copy, &log, left, pace)? {
                return Ok(None);
            }
            if copy.dirty_bytes() >= dirty_max {
                checkpoint(&mut copy, pace)?;
            }
        }
        // Whoever takes the turn that swaps the two shall find nothing but the rest to do: clients
        // wait for it. What comes during the checkpoint stays in memory.
        checkpoint(&mut copy, pace)?;
        for _ in 0..LAST_BATCHES {
            let left = missing(&copy);
            if left <= LEFT_TO_SWAP {
                break;
            }
            if !follow(&mut copy, &log, left, pace)? {
                return Ok(None);
            }
        }
        Ok(Some(copy))
    }
}

/// Applies the next batch of so many entries that are missing; `false`: the log does not have
/// them any more.
fn follow(
    copy: &mut Db,
    log: &LogReader,
    missing: u64,
    pace: &dyn Pace,
) -> Result<bool, StoreError> {
    if pace.is_ending() {
        return Err(StoreError::Ended);
    }
    let upto = copy.state().applied.index.0 + missing.min(APPLY_BATCH);
    Ok(apply_batch(copy, log, Index(upto))?.is_some())
}

fn checkpoint(copy: &mut Db, pace: &dyn Pace) -> Result<(), StoreError> {
    if let Some(job) = copy.begin_checkpoint()? {
        drop(copy.finish_checkpoint(job.run_at(pace)?)?);
    }
    Ok(())
}

/// Tells whoever waits, if anybody does.
fn answer<W>(waiter: Option<W>, outcome: Result<Compacted, NotCompacted>, work: &mut Work<W>) {
    work.answers.extend(waiter.map(|waiter| (waiter, Answer::Compacted(outcome))));
}

impl<W> Core<W> {
    /// Starts a compaction, unless one is under way.
    pub(super) fn begin_compaction(&mut self, waiter: Option<W>, work: &mut Work<W>) {
        if self.compacting.is_some() {
            return answer(waiter, Err(NotCompacted::Busy), work);
        }
        let copying = self.db.begin_compaction();
        let applied = Arc::new(AtomicU64::new(self.applied.0));
        self.compacting = Some(Compacting {
            waiter,
            since_us: self.now.mono_us,
            after: copying.applied().index,
            applied: Arc::clone(&applied),
            generation: self.db.generation(),
            distrusted: false,
            copy: None,
            path: copying.path().to_owned(),
        });
        work.compaction = Some(CompactionJob {
            copying,
            disk: Arc::clone(&self.disk),
            log: self.reader.clone(),
            applied,
            dirty_max: self.options.checkpoint_dirty_bytes,
        });
    }

    /// The job is done.
    pub(super) fn compacted(
        &mut self,
        done: CompactionDone,
        work: &mut Work<W>,
    ) -> Result<(), StoreError> {
        match done.copy {
            Ok(copy) => {
                if let Some(compacting) = &mut self.compacting {
                    compacting.copy = Some(copy);
                }
                Ok(())
            }
            Err(why) => {
                let Some(compacting) = self.compacting.take() else { return Ok(()) };
                if compacting.waiter.is_none()
                    && let NotCompacted::Damaged(why) = why
                {
                    return self.cannot_rewrite(why, work);
                }
                answer(compacting.waiter, Err(why), work);
                Ok(())
            }
        }
    }

    /// The copy may hold damage that nobody looked for: it must not take the place.
    pub(super) fn distrust_copy(&mut self) {
        if let Some(compacting) = &mut self.compacting {
            compacting.distrusted = true;
        }
    }

    /// The log keeps what follows this.
    pub(super) fn compaction_needs(&self) -> Option<Index> {
        self.compacting.as_ref().map(|compacting| compacting.after)
    }

    /// Is a copy about to take the place of the database?
    pub(super) fn is_swapping(&self) -> bool {
        self.compacting.as_ref().is_some_and(|compacting| compacting.copy.is_some())
    }

    /// Is a job at work?
    pub(super) fn is_copying(&self) -> bool {
        self.compacting.as_ref().is_some_and(|compacting| compacting.copy.is_none())
    }

    /// Entries up to `applied` may be applied to the copy as well.
    pub(super) fn tell_compaction(&self) {
        if let Some(compacting) = &self.compacting {
            compacting.applied.store(self.applied.0, Ordering::Release);
        }
    }

    /// Applies to the copy what is missing, a little, or twice as much as this turn applied here,
    /// and puts it in the place of the database when nothing is. Also while a checkpoint keeps
    /// the database: what comes in those seconds would be more than a turn may take.
    pub(super) fn swap_compacted(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        if !self.is_swapping() || self.arrived.is_some() {
            return Ok(());
        }
        let Some(mut compacting) = self.compacting.take() else { return Ok(()) };
        let Some(mut copy) = compacting.copy.take() else { return Ok(()) };
        let gone = compacting.generation != self.db.generation()
            || compacting.distrusted
            || self.is_rebuilding();
        let refusal = if gone {
            Some(NotCompacted::Superseded)
        } else {
            let most = SWAP_SLICE.max(2 * work.measured.applied);
            let upto = self.applied.0.min(copy.state().applied.index.0 + most);
            while copy.state().applied.index.0 < upto {
                let next = upto.min(copy.state().applied.index.0 + APPLY_BATCH);
                apply_batch(&mut copy, &self.reader, Index(next))?
                    .ok_or_else(|| super::apply::unreadable(copy.state().applied.index.next()))?;
            }
            if upto < self.applied.0 || self.checkpointing {
                compacting.copy = Some(copy);
                self.compacting = Some(compacting);
                return Ok(());
            }
            (copy.state() != self.db.state()).then_some(NotCompacted::Differs)
        };
        let Compacting { waiter, since_us, path, .. } = compacting;
        if let Some(why) = refusal {
            work.garbage.push(Garbage::Db(copy));
            discard(&*self.disk, &path)?;
            answer(waiter, Err(why), work);
            return Ok(());
        }
        let before_bytes = self.db.size_bytes();
        let old = self.db.adopt(*copy)?;
        work.garbage.push(Garbage::Db(Box::new(old)));
        work.measured.compaction_us = Some(self.now.mono_us.saturating_sub(since_us));
        let compacted = Compacted {
            before_bytes,
            after_bytes: self.db.size_bytes(),
            live_bytes: self.db.live_bytes(),
            revision: self.db.state().revision,
        };
        answer(waiter, Ok(compacted), work);
        Ok(())
    }
}
