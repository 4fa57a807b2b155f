//! What a node does about damage that the scrubber found on its disk.
//!
//! * *Entries of the log*: what memory still holds whole is written once more; the rest is
//!   had from the peers, as after a start.
//! * *The database*: it is written anew from memory. Whatever is damaged there as well makes
//!   it suspect, and it is made anew from the peers.
//! * *The meta page*: the other one is whole, and the next checkpoint but one writes it.

use super::Core;
use super::health::bad_database;
use crate::node::work::Work;
use crate::raft::types::Index;
use crate::store::{Finding, Scrub, StoreError};

impl<W> Core<W> {
    /// Hands out what a pass of the scrubber looks at.
    pub(super) fn begin_scrub(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        self.health.scrubbed = self.db.generation();
        work.scrub = Some(Scrub::new(self.reader.clone(), self.db.pin()?));
        Ok(())
    }

    /// The scrubber found damage.
    pub(super) fn found(&mut self, finding: &Finding) {
        self.health.disk_damage = true;
        match finding {
            Finding::Log { first, last, .. } => {
                let held = first.0.max(self.log.first().0)..=last.0.min(self.raft.last().index.0);
                for index in held.map(Index) {
                    if self.reader.frames(index, index, usize::MAX).is_some() {
                        self.health.rewrite.insert(index);
                    } else if self.others().is_empty() {
                        tracing::error!(entry = %index, "it cannot be repaired: there is no other copy");
                    } else {
                        self.log.mark_damaged(index, index);
                    }
                }
            }
            Finding::Db { page, .. } => {
                if self.health.scrubbed == self.db.generation() && !self.is_rebuilding() {
                    self.db.doubt(*page);
                    self.distrust_copy();
                    self.health.rewrite_db = true;
                }
            }
            Finding::Meta { .. } => self.checkpoint_wanted = true,
        }
    }

    /// The database could not be written anew from memory, which is damaged as well.
    pub(super) fn cannot_rewrite(
        &mut self,
        why: String,
        work: &mut Work<W>,
    ) -> Result<(), StoreError> {
        if self.others().is_empty() {
            tracing::error!(%why, "the database cannot be repaired: there is no other copy");
            return Ok(());
        }
        self.lose_database(bad_database("page", why), work)
    }

    /// Writes the entries once more that are damaged on the disk only. They are marked and
    /// repaired in one go: a leader shall not step down because of them.
    pub(super) fn rewrite_found(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        if self.health.rewrite.is_empty() || self.syncing || self.log.has_staged() {
            return Ok(());
        }
        let mut copies = Vec::new();
        for index in std::mem::take(&mut self.health.rewrite) {
            if let Some((frames, _)) = self.reader.frames(index, index, usize::MAX) {
                for frame in frames {
                    copies.extend_from_slice(&frame);
                }
                self.log.mark_damaged(index, index);
            }
        }
        work.measured.repaired += self.log.repair(&copies)?;
        Ok(())
    }
}
