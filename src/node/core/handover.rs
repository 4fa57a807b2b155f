//! Moving leadership because somebody wants it: is it possible, and to whom?

use super::Core;
use crate::node::work::{Answer, Work};
use crate::peers::NotHandedOver;
use crate::raft::message::Input;
use crate::raft::progress::Flow;
use crate::raft::types::NodeId;
use crate::store::StoreError;

/// A voter that lacks more than this could hardly be caught up within an election time-out,
/// for which writes wait meanwhile.
const BEHIND_MAX: u64 = 1024;

impl<W> Core<W> {
    /// Begins to hand over, and answers to whom, or why not. Whether it succeeds is seen
    /// from who leads next.
    pub(super) fn hand_over(
        &mut self,
        to: Option<NodeId>,
        waiter: W,
        work: &mut Work<W>,
    ) -> Result<(), StoreError> {
        let outcome = self.heir(to);
        if let Ok(to) = outcome
            && to != self.us.node
        {
            self.step(Input::Transfer { to }, work)?;
        }
        work.answers.push((waiter, Answer::HandingOver(outcome)));
        Ok(())
    }

    fn heir(&self, to: Option<NodeId>) -> Result<NodeId, NotHandedOver> {
        if !self.raft.is_leader() {
            return Err(NotHandedOver::NotLeader(self.raft.leader()));
        }
        let membership = self.raft.membership();
        let Some(to) = to else {
            let alone = membership.voters.iter().all(|id| *id == self.us.node);
            let nobody = if alone { NotHandedOver::Alone } else { NotHandedOver::AllSilent };
            let under_way = self.raft.transferring_to();
            return under_way.or_else(|| self.raft.most_caught_up()).ok_or(nobody);
        };
        if to == self.us.node {
            return Ok(to); // it leads already
        }
        if !membership.members().contains(&to) {
            return Err(NotHandedOver::NotAMember(to));
        }
        if !membership.voters.contains(&to) {
            return Err(NotHandedOver::Learner(to));
        }
        let Some((_, progress)) = self.raft.progress().find(|(id, _)| *id == to) else {
            return Err(NotHandedOver::Silent(to));
        };
        if !self.raft.is_heard(to) {
            return Err(NotHandedOver::Silent(to));
        }
        // A new leader has not heard yet what matches, and believes in the best.
        let (holds, reachable) = match progress.flow {
            Flow::Replicate { .. } => (progress.matched, true),
            Flow::Probe { .. } => (progress.next.prev(), true),
            Flow::Snapshot { .. } => (progress.matched, false),
        };
        let behind = self.raft.last().index.0.saturating_sub(holds.0);
        if behind > BEHIND_MAX || !reachable {
            return Err(NotHandedOver::Behind(to, behind));
        }
        Ok(to)
    }
}
