//! What is committed and durable here becomes the state, and clients are answered.

use super::{APPLY_BATCH, APPLY_MAX, Core};
use crate::machine;
use crate::node::work::{Answer, Work};
use crate::raft::message::Input;
use crate::raft::types::{EntryKind, Index, LogId};
use crate::store::StoreError;

impl<W> Core<W> {
    /// Applies what is committed and durable here, and answers whoever waited for it.
    pub(super) fn apply(&mut self, work: &mut Work<W>) -> Result<(), StoreError> {
        let stop = Index(self.commit.0.min(self.applied.0 + APPLY_MAX));
        while self.applied < stop {
            let upto = Index(stop.0.min(self.applied.0 + APPLY_BATCH));
            let outcomes = self.apply_batch(upto)?;
            work.measured.applied += upto.0 - self.applied.0;
            self.applied = upto;
            for (id, applied) in outcomes {
                self.answer(id, applied, work);
            }
            self.step(Input::Applied { index: upto }, work)?;
        }
        let applied = self.applied;
        let ready = self.readable.extract_if(.., |(index, _)| *index <= applied);
        work.answers.extend(ready.map(|(_, waiter)| (waiter, Answer::Readable)));
        Ok(())
    }

    fn apply_batch(
        &mut self,
        upto: Index,
    ) -> Result<Vec<(LogId, Option<machine::Applied>)>, StoreError> {
        let mut outcomes = Vec::new();
        let mut txn = self.db.begin();
        for place in self.applied.0 + 1..=upto.0 {
            let entry = self.reader.entry(Index(place)).ok_or_else(|| StoreError::Corrupt {
                file: "the log".into(),
                what: "entry",
                offset: 0,
                why: format!("entry {place} is committed and cannot be read"),
            })?;
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
        Ok(outcomes)
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
