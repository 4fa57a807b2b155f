//! Which configuration rules at which place of the log.
//!
//! A configuration rules from the moment its entry is appended, committed or not
//! (thesis 4.1), and stops to rule when that entry is cut off. So the history
//! follows the log: it grows, is truncated and compacted with it.

use super::types::{Index, Membership};

/// The configurations of the log, oldest first.
#[derive(Clone, Debug)]
pub(super) struct ConfigHistory {
    /// As of the base of the log.
    base: Membership,
    tail: Vec<(Index, Membership)>,
}

impl ConfigHistory {
    pub(super) fn new(base: Membership, tail: Vec<(Index, Membership)>) -> Self {
        assert!(tail.is_sorted_by(|a, b| a.0 < b.0), "configurations come in log order");
        Self { base, tail }
    }

    /// The one that rules.
    pub(super) fn current(&self) -> &Membership {
        self.tail.last().map_or(&self.base, |(_, config)| config)
    }

    /// The place of the one that rules; 0 when it is older than the log.
    pub(super) fn newest(&self) -> Index {
        self.tail.last().map_or(Index(0), |(index, _)| *index)
    }

    /// The one that rules at `index`.
    pub(super) fn at(&self, index: Index) -> &Membership {
        let older = self.tail.partition_point(|(at, _)| *at <= index);
        self.tail[..older].last().map_or(&self.base, |(_, config)| config)
    }

    /// Those that may be the newest committed one, when all up to `commit` is known to be.
    pub(super) fn possible(&self, commit: Index) -> impl Iterator<Item = &Membership> {
        let later = self.tail.partition_point(|(at, _)| *at <= commit);
        let later = self.tail[later..].iter().map(|(_, config)| config);
        std::iter::once(self.at(commit)).chain(later)
    }

    pub(super) fn append(&mut self, index: Index, config: Membership) {
        assert!(self.tail.last().is_none_or(|(newest, _)| *newest < index));
        self.tail.push((index, config));
    }

    /// Entries from `from` on are gone.
    pub(super) fn truncate(&mut self, from: Index) {
        self.tail.retain(|(index, _)| *index < from);
    }

    /// Entries up to and including `upto` are compacted.
    pub(super) fn compact(&mut self, upto: Index) {
        let older = self.tail.partition_point(|(index, _)| *index <= upto);
        if let Some((_, newest)) = self.tail.drain(..older).next_back() {
            self.base = newest;
        }
    }

    /// The log is empty after a base with this configuration.
    pub(super) fn reset(&mut self, base: Membership) {
        *self = Self { base, tail: Vec::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::NodeId;

    fn of(voter: u64) -> Membership {
        Membership { voters: vec![NodeId(voter)], ..Membership::default() }
    }

    /// Scenarios 56, 57 and 77: what rules follows the log.
    #[test]
    fn the_configuration_follows_the_log() {
        let mut history = ConfigHistory::new(of(1), vec![(Index(4), of(2))]);
        history.append(Index(7), of(3));
        assert_eq!(history.current(), &of(3), "it rules when it is appended");
        assert_eq!(history.at(Index(6)), &of(2));
        let possible = |commit| history.possible(Index(commit)).cloned().collect::<Vec<_>>();
        assert_eq!(possible(3), [of(1), of(2), of(3)], "what is not known to be committed");
        assert_eq!((possible(4), possible(7)), (vec![of(2), of(3)], vec![of(3)]));
        history.truncate(Index(7));
        assert_eq!(history.current(), &of(2), "it stops to rule when it is cut off");
        history.compact(Index(5));
        assert_eq!((history.current(), history.at(Index(5))), (&of(2), &of(2)));
        history.truncate(Index(6));
        assert_eq!(history.current(), &of(2), "what is compacted stays");
    }
}
