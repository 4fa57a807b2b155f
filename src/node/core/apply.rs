//! What is committed and durable here becomes the state, and clients are answered.

use super::{APPLY_BATCH, APPLY_MAX, Core};
use crate::machine;
use crate::node::work::{Answer, Work};
use crate::raft::message::Input;
use crate::raft::types::{EntryKind, Index, LogId};
use crate::store::{Db, LogReader, StoreError};

/// An entry that must be in the log is not.
pub(super) fn unreadable(index: Index) -> StoreError {
    StoreError::Corrupt {
        file: "the log".into(),
        what: "entry",
        offset: 0,
        why: format!("entry {index} is committed and cannot be read"),
    }
}

/// What may be in memory while a checkpoint is written is what makes one due, and two thirds of
/// that more: at its start it adds up checksums and may have to make room in the file.
const AHEAD: (u64, u64) = (5, 3);
/// So many times what makes a checkpoint due, with what is replaced and held by somebody.
const HELD_TIMES: u64 = 5;

/// What each command did, by entry.
type Outcomes = Vec<(LogId, Option<machine::Applied>)>;

/// Applies the entries after the last one applied, up to `upto`, as one change: the only way
/// by which entries become state. `None`: the log does not have them, and nothing changed.
pub(super) fn apply_batch(
    db: &mut Db,
    log: &LogReader,
    upto: Index,
) -> Result<Option<Outcomes>, StoreError> {
    let mut outcomes = Vec::new();
    let from = db.state().applied.index.0;
    let mut txn = db.begin();
    for place in from + 1..=upto.0 {
        let Some(entry) = log.entry(Index(place)) else { return Ok(None) };
        let id = entry.id;
        let applied = match entry.kind {
            EntryKind::Command => Some(machine::apply(&mut txn, &entry)?),
            EntryKind::Config => {
                txn.state_mut().membership = entry.payload.to_vec();
                None
            }
            EntryKind::Noop | EntryKind::Expire | EntryKind::Check => None,
        };
        let state = txn.state_mut();
        (state.applied, state.chain) = (id, entry.chain);
        // Entries without a command carry time as well, and a snapshot stands for all of them.
        state.time_ms = state.time_ms.max(entry.time_ms);
        outcomes.push((id, applied));
    }
    txn.commit()?;
    Ok(Some(outcomes))
}

impl<W> Core<W> {
    /// Applies what is committed and durable here, and answers whoever waited for it.
    pub(super) fn apply(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        let end = Index(self.applied.0 + APPLY_MAX);
        while self.can_apply() && self.applied < end {
            let upto = Index(self.applied.0 + APPLY_BATCH).min(end).min(self.commit);
            let upto = upto.min(self.digest_place());
            let upto = self.damaged_ahead().map_or(upto, |first| upto.min(first.prev()));
            let outcomes = match apply_batch(&mut self.db, &self.reader, upto) {
                Ok(outcomes) => outcomes.ok_or_else(|| unreadable(self.applied.next()))?,
                Err(error @ StoreError::Corrupt { .. }) => return self.lose_database(error, work),
                Err(error) => return Err(error),
            };
            work.measured.applied += upto.0 - self.applied.0;
            self.applied = upto;
            for (id, applied) in outcomes {
                if let Some(machine::Applied::Tidied { more }) = &applied {
                    self.tidying.more = *more;
                }
                self.answer(id, applied, work);
            }
            // After the loss of a database it has been there before.
            if upto > self.raft.applied() {
                self.step(Input::Applied { index: upto }, work)?;
            }
            self.tell_digest(work)?;
        }
        if self.is_rebuilding() {
            return Ok(());
        }
        self.tell_compaction();
        let applied = self.applied;
        let ready = self.readable.extract_if(.., |(index, _)| *index <= applied);
        work.answers.extend(ready.map(|(_, waiter)| (waiter, Answer::Readable)));
        Ok(())
    }

    /// Is there something that could be applied now?
    pub(super) fn can_apply(&self) -> bool {
        self.applied < self.commit
            && !self.health.stateless
            && !self.is_ahead_of_the_disk()
            && self.damaged_ahead() != Some(self.applied.next())
    }

    /// While a checkpoint is written, what changes stays in memory beside what it has still to
    /// write, and what a compaction or a slow reader holds: what is committed waits in the log
    /// before that gets too much. More may be held: it does not get less when the checkpoint ends.
    fn is_ahead_of_the_disk(&self) -> bool {
        let due = self.dirty_due();
        let changed = self.db.dirty_bytes() + self.db.writing_bytes();
        let held = self.db.held_bytes();
        self.checkpointing
            && (changed >= due * AHEAD.0 / AHEAD.1 || changed + held >= HELD_TIMES * due)
    }

    fn answer(&mut self, id: LogId, applied: Option<machine::Applied>, work: &mut Work<W>) {
        while self.waiting.front().is_some_and(|first| first.id.index <= id.index) {
            let waiting = self.waiting.pop_front().expect("just seen");
            let answer = if waiting.id == id {
                let latency = self.now.mono_us.saturating_sub(waiting.since_us);
                work.measured.commit_latency_us.push(latency);
                // Nobody waits for an entry without a command but whoever changed the members.
                applied.clone().map_or(Answer::Changed(Ok(id.index)), Answer::Written)
            } else {
                // Another entry was committed in its place, so this one never will be.
                Answer::NotLeader(self.raft.leader())
            };
            work.answers.push((waiting.waiter, answer));
        }
    }
}
