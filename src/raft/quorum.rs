//! Who must agree: majorities, and both majorities during a joint change
//! (thesis 4.3).

use std::borrow::Cow;

use super::planted::{Flaw, Planted};
use super::types::{Membership, NodeId};

/// The deciding sets of one configuration.
#[derive(Clone, Debug)]
pub struct Quorum<'a> {
    voters: Cow<'a, [NodeId]>,
    outgoing: &'a [NodeId],
    flaw: Flaw,
}

/// How a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// Enough agree.
    Won,
    /// Enough refuse that the rest cannot change it.
    Lost,
    /// Neither yet.
    Open,
}

impl<'a> Quorum<'a> {
    /// The deciding sets of `membership`. `own`, who asks, matters to planted bugs only.
    #[must_use]
    pub fn of(membership: &'a Membership, own: NodeId, flaw: Flaw) -> Self {
        let mut voters = Cow::Borrowed(&membership.voters[..]);
        let mut outgoing = &membership.outgoing[..];
        if flaw.is(Planted::LearnerCounts) {
            voters.to_mut().extend(&membership.learners);
        }
        if flaw.is(Planted::JointUnion) {
            voters.to_mut().extend(outgoing.iter().filter(|id| !membership.voters.contains(id)));
            outgoing = &[];
        }
        if flaw.is(Planted::RemovedLeaderCounts) && !voters.contains(&own) {
            voters.to_mut().push(own);
        }
        Self { voters, outgoing, flaw }
    }

    /// The highest value that a majority has reached, in each deciding set
    /// (Raft 5.3): an index on disk, or a confirmed read round.
    #[must_use]
    pub fn reached<V: Copy + Ord + Default>(&self, value: impl Fn(NodeId) -> V) -> V {
        let incoming = self.reached_by(&self.voters, &value);
        if self.outgoing.is_empty() {
            incoming
        } else {
            incoming.min(self.reached_by(self.outgoing, &value))
        }
    }

    /// What the ballots say; `None`: that node has not answered.
    #[must_use]
    pub fn tally(&self, ballot: impl Fn(NodeId) -> Option<bool>) -> Tally {
        let incoming = self.tally_of(&self.voters, &ballot);
        if self.outgoing.is_empty() {
            return incoming;
        }
        match (incoming, self.tally_of(self.outgoing, &ballot)) {
            (Tally::Won, Tally::Won) => Tally::Won,
            (Tally::Lost, _) | (_, Tally::Lost) => Tally::Lost,
            (Tally::Open, _) | (_, Tally::Open) => Tally::Open,
        }
    }

    fn reached_by<V: Copy + Ord + Default>(
        &self,
        set: &[NodeId],
        value: impl Fn(NodeId) -> V,
    ) -> V {
        let mut values: Vec<V> = set.iter().map(|&id| value(id)).collect();
        values.sort_unstable();
        // Everyone from this slot upwards has reached it.
        let slot = values.len().checked_sub(self.majority(values.len()));
        slot.and_then(|slot| values.get(slot)).copied().unwrap_or_default()
    }

    fn tally_of(&self, set: &[NodeId], ballot: impl Fn(NodeId) -> Option<bool>) -> Tally {
        let granted = set.iter().filter(|&&id| ballot(id) == Some(true)).count();
        let refused = set.iter().filter(|&&id| ballot(id) == Some(false)).count();
        let majority = self.majority(set.len());
        if set.is_empty() {
            Tally::Lost
        } else if granted >= majority {
            Tally::Won
        } else if set.len() - refused < majority {
            Tally::Lost
        } else {
            Tally::Open
        }
    }

    fn majority(&self, members: usize) -> usize {
        let is_half_enough = self.flaw.is(Planted::QuorumHalf);
        if is_half_enough { members.div_ceil(2).max(1) } else { members / 2 + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(voters: &[u64], outgoing: &[u64]) -> Membership {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        Membership { voters: ids(voters), outgoing: ids(outgoing), ..Membership::default() }
    }

    fn quorum(config: &Membership) -> Quorum<'_> {
        Quorum::of(config, NodeId(1), Flaw::default())
    }

    #[test]
    fn reached_is_what_over_half_have() {
        for (values, want, why) in [
            (&[][..], 0, "nobody decides nothing"),
            (&[7], 7, "one voter is its own majority"),
            (&[7, 3], 3, "two voters must both have it"),
            (&[9, 0, 4], 4, "the slowest of three may lag"),
            (&[9, 9, 4, 1], 4, "half of four is no majority"),
            (&[5, 1, 5, 1, 5], 5, "three of five"),
        ] {
            let ids: Vec<u64> = (1..).take(values.len()).collect();
            let config = config(&ids, &[]);
            let value = |id: NodeId| values[usize::try_from(id.0).unwrap() - 1];
            assert_eq!(quorum(&config).reached(value), want, "{why}");
        }
    }

    #[test]
    fn a_joint_change_needs_both_majorities() {
        let config = config(&[1, 2, 3], &[3, 4, 5]);
        let quorum = quorum(&config);
        assert_eq!(quorum.reached(|id| if id.0 <= 3 { 9 } else { 2 }), 2, "the old ones lag");
        let ballot = |yes: &'static [u64], no: &'static [u64]| {
            move |id: NodeId| {
                if yes.contains(&id.0) { Some(true) } else { no.contains(&id.0).then_some(false) }
            }
        };
        assert_eq!(quorum.tally(ballot(&[1, 2, 3], &[])), Tally::Open);
        assert_eq!(quorum.tally(ballot(&[1, 2, 3], &[4, 5])), Tally::Lost);
        assert_eq!(quorum.tally(ballot(&[2, 3, 4], &[])), Tally::Won);
    }

    /// Scenario 50: against counting, for every set of up to five small values.
    #[test]
    fn reached_agrees_with_counting() {
        for size in 1..=5_usize {
            let ids: Vec<u64> = (1..).take(size).collect();
            let config = config(&ids, &[]);
            for code in 0..4_usize.pow(5) {
                let value = |id: NodeId| (code >> (2 * (id.0 - 1))) & 3;
                let counted = (0..4)
                    .rev()
                    .find(|&v| 2 * ids.iter().filter(|&&id| value(NodeId(id)) >= v).count() > size)
                    .unwrap();
                assert_eq!(quorum(&config).reached(value), counted);
            }
        }
    }
}
