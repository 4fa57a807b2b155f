//! The front of the log: what the database holds is dropped, or stands in for all of it.

use super::error::StoreError;
use super::hard_state::PendingInstall;
use super::log::{Known, Log, Staged};
use super::reader::Places;
use super::segment::path_of;
use crate::raft::types::{Index, LogId};

/// Length of the segment that a log continues with after a snapshot.
const FIRST_SEGMENT: u64 = 1 << 20;

impl Log {
    /// Drops segments all of whose entries have an index of at most `upto`; returns the new
    /// entry before the first when something was dropped.
    ///
    /// # Errors
    /// `Io`: the process must end.
    pub fn compact(&mut self, upto: Index) -> Result<Option<LogId>, StoreError> {
        // A log needs the chain of what is before its first entry.
        let keep = self.segments.iter().rposition(|Known { header, .. }| {
            header.prev.index <= upto && header.prev_chain.is_some()
        });
        let Some(keep @ 1..) = keep else { return Ok(None) };
        let header = self.segments[keep].header;
        let chain = header.prev_chain.expect("looked for above");
        let gone: Vec<Known> = self.segments.drain(..keep).collect();
        {
            let mut places = self.places();
            let dropped = header.prev.index.0 - places.base.index.0;
            let dropped = usize::try_from(dropped).expect("places fit memory");
            places.places.drain(..dropped);
            places.base = header.prev;
            places.base_chain = chain;
            places.damaged = places.damaged.split_off(&header.prev.index.next());
            for segment in &gone {
                places.segments.remove(&segment.number);
            }
        }
        self.count_damaged();
        self.remove(&gone)?;
        Ok(Some(header.prev))
    }

    /// Oldest first, each durably before the next: what a crash leaves has no gap, so that a
    /// gap always means that a segment was lost.
    fn remove(&self, gone: &[Known]) -> Result<(), StoreError> {
        for segment in gone {
            self.disk.remove(&path_of(&self.options.dir, segment.header.sequence))?;
            self.disk.sync_dir(&self.options.dir)?;
        }
        Ok(())
    }

    /// Forgets everything and continues after `base`, of which the database is a snapshot.
    /// Call it between [`Log::begin_install`] and [`Log::end_install`].
    ///
    /// # Errors
    /// `Io`: the process must end.
    pub fn reset(&mut self, base: LogId, chain: u64) -> Result<(), StoreError> {
        assert!(self.syncing.is_none(), "no batch is on its way");
        self.staged = Staged::default();
        self.seal()?;
        let gone = std::mem::take(&mut self.segments);
        *self.places() = Places { base, base_chain: chain, ..Places::default() };
        self.written = base;
        self.mark_staged = false;
        self.count_damaged();
        // Short: whoever waits for the log waits for its zeros. A spare is made meanwhile.
        let len = self.options.segment_bytes.min(FIRST_SEGMENT);
        self.begin_segment(base, Some(chain), len, true)?;
        self.synced = self.position();
        self.unproven = self.synced;
        self.proven = self.synced;
        self.remove(&gone)
    }

    /// Notes durably that a snapshot is about to replace the database.
    ///
    /// # Errors
    /// `Io`: the process must end.
    pub fn begin_install(&mut self, install: PendingInstall) -> Result<(), StoreError> {
        self.hard.saved.install = Some(install);
        self.note_durable();
        self.hard.save()
    }

    /// Notes durably that log and database agree again.
    ///
    /// # Errors
    /// `Io`: the process must end.
    pub fn end_install(&mut self) -> Result<(), StoreError> {
        self.hard.saved.install = None;
        self.note_durable();
        self.hard.save()
    }

    /// Notes durably that this stop was asked for, so that nothing found at the next start
    /// can be a torn tail.
    ///
    /// # Errors
    /// `Io`: the process must end.
    pub fn mark_clean(&mut self) -> Result<(), StoreError> {
        assert!(self.syncing.is_none() && !self.has_staged(), "everything is durable");
        self.hard.saved.clean = true;
        self.note_durable();
        self.hard.save()
    }
}
