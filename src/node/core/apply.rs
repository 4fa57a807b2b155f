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
        outcomes.push((id, applied));
    }
    txn.commit()?;
    Ok(Some(outcomes))
}

impl<W> Core<W> {
    /// Applies what is committed and durable here, and answers whoever waited for it.
    pub(super) fn apply(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        let stop = Index(self.commit.0.min(self.applied.0 + APPLY_MAX));
        while self.applied < stop {
            let upto = Index(stop.0.min(self.applied.0 + APPLY_BATCH));
            let outcomes = apply_batch(&mut self.db, &self.reader, upto)?
                .ok_or_else(|| unreadable(self.applied.next()))?;
            work.measured.applied += upto.0 - self.applied.0;
            self.applied = upto;
            for (id, applied) in outcomes {
                self.answer(id, applied, work);
            }
            self.step(Input::Applied { index: upto }, work)?;
        }
        self.tell_compaction();
        let applied = self.applied;
        let ready = self.readable.extract_if(.., |(index, _)| *index <= applied);
        work.answers.extend(ready.map(|(_, waiter)| (waiter, Answer::Readable)));
        Ok(())
    }

    fn answer(&mut self, id: LogId, applied: Option<machine::Applied>, work: &mut Work<W>) {
        while self.waiting.front().is_some_and(|first| first.id.index <= id.index) {
            let waiting = self.waiting.pop_front().expect("just seen");
            let answer = if waiting.id == id {
                let latency = self.now.mono_us.saturating_sub(waiting.since_us);
                work.measured.commit_latency_us.push(latency);
                applied.clone().map_or(Answer::Unknown, Answer::Written)
            } else {
                // Another entry was committed in its place, so this one never will be.
                Answer::NotLeader(self.raft.leader())
            };
            work.answers.push((waiting.waiter, answer));
        }
    }
}
