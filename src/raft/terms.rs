//! Which term each entry has: all that the core remembers of the log.
//!
//! Terms only grow along a log, so it is a short list of stretches of equal
//! terms. A log of a million entries from three leaders is three of them.
//!
//! Left out: the entries. Whoever needs their bytes asks the log file.

use super::types::{Index, LogId, Term};

/// The term of every position that the log holds, as runs of equal terms.
///
/// Invariants, true between calls and verified by [`Terms::check`]:
/// * the first run starts right after `base`, and there is one iff the log is
///   not empty;
/// * `runs` strictly increases, by index and by term;
/// * no run starts after `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    base: LogId,
    runs: Vec<LogId>,
    last: Index,
}

impl Terms {
    /// The log after `base` with these runs, up to `last`.
    #[must_use]
    pub fn new(base: LogId, runs: Vec<LogId>, last: Index) -> Self {
        let terms = Self { base, runs, last };
        terms.check();
        terms
    }

    /// The entry before the first that is held.
    #[must_use]
    pub fn base(&self) -> LogId {
        self.base
    }

    /// The last entry; `base` when there is none after it.
    #[must_use]
    pub fn last(&self) -> LogId {
        let term = self.runs.last().map_or(self.base.term, |run| run.term);
        LogId { term, index: self.last }
    }

    /// First entry of each stretch of equal terms.
    #[must_use]
    pub fn runs(&self) -> &[LogId] {
        &self.runs
    }

    /// The term at `index`; `None` when it is compacted away or not written yet.
    #[must_use]
    pub fn at(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        if index < self.base.index || index > self.last {
            return None;
        }
        self.runs[..self.runs_up_to(index)].last().map(|run| run.term)
    }

    /// The name of the entry at `index`, if it is held.
    #[must_use]
    pub fn id_at(&self, index: Index) -> Option<LogId> {
        self.at(index).map(|term| LogId { term, index })
    }

    /// The greatest entry with index at most `bound.index` and term at most
    /// `bound.term`; `None` when that would be before `base`.
    ///
    /// Both sides of a refused append ask this: whatever is past the answer
    /// cannot be common to a log that has `bound`, because along a log terms do
    /// not shrink (Raft 5.3). So every question skips at least one whole term.
    #[must_use]
    pub fn common(&self, bound: LogId) -> Option<LogId> {
        let mut index = bound.index.min(self.last);
        while index > self.base.index {
            let run = self.runs[self.runs_up_to(index) - 1];
            if run.term <= bound.term {
                return Some(LogId { term: run.term, index });
            }
            index = run.index.prev();
        }
        (index == self.base.index && self.base.term <= bound.term).then_some(self.base)
    }

    /// The first of `first..=last` that is not held with this term.
    #[must_use]
    pub fn first_mismatch(&self, first: Index, last: Index, term: Term) -> Option<Index> {
        let mut index = first;
        while index <= last {
            if self.at(index) != Some(term) {
                return Some(index);
            }
            let run = self.runs_up_to(index);
            let run_end = self.runs.get(run).map_or(self.last, |newer| newer.index.prev());
            index = run_end.next();
        }
        None
    }

    /// Adds entries of `term` at the end, up to `last`.
    pub fn append(&mut self, term: Term, last: Index) {
        assert!(last > self.last, "an append adds something");
        let newest = self.last();
        assert!(term >= newest.term, "terms do not shrink along a log");
        if self.runs.last().is_none_or(|run| run.term < term) {
            self.runs.push(LogId { term, index: self.last.next() });
        }
        self.last = last;
    }

    /// Drops everything from `from` on.
    pub fn truncate(&mut self, from: Index) {
        assert!(from > self.base.index, "what is compacted stays");
        if from > self.last {
            return;
        }
        self.runs.retain(|run| run.index < from);
        self.last = from.prev();
    }

    /// Forgets everything up to and including `upto`.
    pub fn compact(&mut self, upto: LogId) {
        if upto.index <= self.base.index {
            return;
        }
        assert_eq!(self.at(upto.index), Some(upto.term), "only what is held can be compacted");
        let first = upto.index.next();
        let next_term = self.at(first);
        self.runs.retain(|run| run.index > first);
        if let Some(term) = next_term {
            self.runs.insert(0, LogId { term, index: first });
        }
        self.base = upto;
        self.check();
    }

    /// Forgets everything: the log is empty after `base`.
    pub fn reset(&mut self, base: LogId) {
        *self = Self { base, runs: Vec::new(), last: base.index };
    }

    /// How many runs start at or before `index`.
    fn runs_up_to(&self, index: Index) -> usize {
        self.runs.partition_point(|run| run.index <= index)
    }

    /// The invariants above.
    pub fn check(&self) {
        assert!(self.runs.is_sorted_by(|a, b| a.index < b.index && a.term < b.term));
        assert!(self.runs.last().is_none_or(|run| run.index <= self.last));
        assert_eq!(self.runs.is_empty(), self.last == self.base.index, "runs cover the log");
        if let Some(first) = self.runs.first() {
            assert_eq!(first.index, self.base.index.next(), "the first run follows the base");
            assert!(first.term >= self.base.term);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId { term: Term(term), index: Index(index) }
    }

    /// Entries 4..=10 after a compacted 2.3: terms 2 2 4 4 4 7 7.
    fn sample() -> Terms {
        Terms::new(id(2, 3), vec![id(2, 4), id(4, 6), id(7, 9)], Index(10))
    }

    #[test]
    fn at_knows_what_is_held() {
        for (index, want, why) in [
            (2, None, "compacted"),
            (3, Some(2), "the base itself"),
            (5, Some(2), "inside the first run"),
            (6, Some(4), "start of a run"),
            (10, Some(7), "the last"),
            (11, None, "not written"),
        ] {
            assert_eq!(sample().at(Index(index)), want.map(Term), "{why}");
        }
    }

    #[test]
    fn common_skips_whole_terms() {
        for (bound, want, why) in [
            (id(7, 20), Some(id(7, 10)), "shorter log: its last entry"),
            (id(6, 10), Some(id(4, 8)), "term 7 is skipped as a whole"),
            (id(3, 10), Some(id(2, 5)), "terms 7 and 4 are skipped"),
            (id(1, 10), None, "only the compacted part could agree"),
            (id(4, 7), Some(id(4, 7)), "the index bounds it"),
            (id(2, 3), Some(id(2, 3)), "the base counts"),
        ] {
            assert_eq!(sample().common(bound), want, "{why}");
        }
    }

    #[test]
    fn truncate_append_and_compact_keep_the_invariants() {
        let mut terms = sample();
        terms.truncate(Index(7));
        assert_eq!(terms.last(), id(4, 6));
        terms.append(Term(8), Index(9));
        assert_eq!(terms.runs(), [id(2, 4), id(4, 6), id(8, 7)]);
        assert_eq!(terms.first_mismatch(Index(5), Index(6), Term(4)), Some(Index(5)));
        assert_eq!(terms.first_mismatch(Index(7), Index(9), Term(8)), None);
        assert_eq!(terms.first_mismatch(Index(7), Index(12), Term(8)), Some(Index(10)));
        terms.compact(id(8, 8));
        assert_eq!((terms.base(), terms.runs()), (id(8, 8), &[id(8, 9)][..]));
        terms.compact(id(8, 9));
        assert_eq!((terms.last(), terms.runs().len()), (id(8, 9), 0));
    }
}
