//! What all nodes together have shown, and what they may never show.

use std::collections::BTreeMap;

use mmapd::raft::types::{Index, LogId, NodeId, Term};

use crate::disk::{Entry, Log};

/// What was seen so far. Each method takes what happened and fails if it may not.
#[derive(Debug, Default)]
pub struct Seen {
    leaders: BTreeMap<Term, NodeId>,
    votes: BTreeMap<(Term, NodeId), NodeId>,
    /// Every entry that was ever in a log: its payload and its predecessor.
    entries: BTreeMap<LogId, (u64, LogId)>,
    /// What was applied anywhere; the entry at index i is at i - 1.
    committed: Vec<Entry>,
    /// The term of the node that applied each of them first.
    committed_in: Vec<Term>,
    /// Payloads that clients were told to be committed.
    acknowledged: Vec<Entry>,
    /// Reads under way: what they may not be older than.
    reads: BTreeMap<u64, Index>,
}

impl Seen {
    /// The terms that were led, by whom.
    #[must_use]
    pub fn leaders(&self) -> &BTreeMap<Term, NodeId> {
        &self.leaders
    }

    /// The one committed sequence.
    #[must_use]
    pub fn committed(&self) -> &[Entry] {
        &self.committed
    }

    /// What clients were told.
    #[must_use]
    pub fn acknowledged(&self) -> &[Entry] {
        &self.acknowledged
    }

    /// `voter` says that it votes for `candidate`.
    pub fn vote(&mut self, term: Term, voter: NodeId, candidate: NodeId) {
        let vote = *self.votes.entry((term, voter)).or_insert(candidate);
        assert_eq!(vote, candidate, "{voter} votes twice in term {term}");
    }

    /// `id` leads: nobody else may in that term, and it has what was committed before.
    pub fn leads(&mut self, term: Term, id: NodeId, log: &Log) {
        if let Some(leader) = self.leaders.get(&term) {
            assert_eq!(*leader, id, "two leaders in term {term}");
            return;
        }
        self.leaders.insert(term, id);
        self.vote(term, id, id);
        // A paused candidate may win its old term late: it need not hold what later terms
        // committed, and cannot commit anything.
        for (entry, committed_in) in self.committed.iter().zip(&self.committed_in) {
            let is_held = log.at(entry.id.index) == Some(*entry);
            assert!(is_held || *committed_in >= term, "leader {id} lacks the committed {entry:?}");
        }
    }

    /// Somebody wrote these into its log: two logs with an entry of one name are equal up
    /// to there.
    pub fn written(&mut self, entries: &[Entry], log: &Log) {
        for entry in entries {
            let before = log.at(entry.id.index.prev()).map_or_else(LogId::default, |prev| prev.id);
            let known = self.entries.entry(entry.id).or_insert((entry.payload, before));
            assert_eq!(*known, (entry.payload, before), "two entries {}", entry.id);
        }
    }

    /// Somebody in `term` applies `entry`: the same as everybody at that index, and durable
    /// on a majority of `disks`.
    pub fn applied<'a>(
        &mut self,
        entry: Entry,
        term: Term,
        disks: impl ExactSizeIterator<Item = &'a Log>,
    ) {
        let place = usize::try_from(entry.id.index.0).expect("a small log") - 1;
        if let Some(known) = self.committed.get(place) {
            assert_eq!(*known, entry, "two entries committed at {}", entry.id.index);
            return;
        }
        assert_eq!(self.committed.len(), place, "a gap in what is applied");
        let all = disks.len();
        let count = disks.filter(|disk| disk.at(entry.id.index) == Some(entry)).count();
        assert!(2 * count > all, "{} is committed and on {count} of {all} disks", entry.id);
        self.committed.push(entry);
        self.committed_in.push(term);
    }

    /// A client is told that this is committed.
    pub fn acknowledge(&mut self, entry: Entry) {
        self.acknowledged.push(entry);
    }

    /// A client asks for a read: it may not miss what anybody has applied by now.
    pub fn asks(&mut self, token: u64) {
        self.reads.insert(token, Index(self.committed.len() as u64));
    }

    /// The read is answered: at `index`, or not at all.
    pub fn answers(&mut self, token: u64, index: Option<Index>) {
        let floor = self.reads.remove(&token).expect("a read is answered once");
        if let Some(index) = index {
            assert!(index >= floor, "a read at {index} began after {floor} was applied");
        }
    }
}
