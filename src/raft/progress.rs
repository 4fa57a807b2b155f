//! Where a leader believes one follower to be.
//!
//! * *Probe*: not known where the logs agree. One append at a time, then wait.
//! * *Replicate*: known. Appends are sent ahead of the answers, up to a window.
//! * *Snapshot*: what it needs is compacted away; a snapshot is on its way.

use std::collections::VecDeque;

use super::types::Index;

/// How entries are sent to a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flow {
    /// One append at a time; `sent`: wait for its answer.
    Probe {
        /// An append is under way.
        sent: bool,
    },
    /// Appends are sent ahead; the last index of each that is under way.
    Replicate {
        /// In the order of sending.
        inflight: VecDeque<Index>,
    },
    /// A snapshot is under way.
    Snapshot {
        /// It ends here or later.
        pending: Index,
    },
}

/// One follower or learner, as its leader sees it.
///
/// Invariants: `matched < next`; `matched` never shrinks while the leader leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// It holds the leader's log up to here, durably.
    pub matched: Index,
    /// What to send next.
    pub next: Index,
    /// How to send.
    pub flow: Flow,
    /// Ticks since it was heard.
    pub silent_ticks: u32,
    /// Newest read round that it echoed.
    pub(super) read_seq: u64,
    /// The commit index that it was told and could use.
    pub(super) told_commit: Index,
}

impl Progress {
    /// A follower of a new leader whose log ends before `next`.
    pub(super) fn new(next: Index) -> Self {
        Self {
            matched: Index(0),
            next,
            flow: Flow::Probe { sent: false },
            silent_ticks: 0,
            read_seq: 0,
            told_commit: Index(0),
        }
    }

    /// Was it told all that it can use of the leader's commit index?
    pub(super) fn is_told(&self, commit: Index) -> bool {
        self.told_commit >= commit.min(self.matched)
    }

    /// May nothing be sent now?
    pub(super) fn is_paused(&self, max_inflight: usize) -> bool {
        match &self.flow {
            Flow::Probe { sent } => *sent,
            Flow::Replicate { inflight } => inflight.len() >= max_inflight,
            Flow::Snapshot { .. } => true,
        }
    }

    /// An append up to `upto` is sent.
    pub(super) fn sent(&mut self, upto: Index) {
        match &mut self.flow {
            Flow::Probe { sent } => *sent = true,
            Flow::Replicate { inflight } => {
                if upto >= self.next {
                    inflight.push_back(upto);
                    self.next = upto.next();
                }
            }
            Flow::Snapshot { .. } => unreachable!("no appends while a snapshot is on its way"),
        }
    }

    /// It holds the log up to `matched`. `base`: the leader's compacted prefix.
    pub(super) fn accepted(&mut self, matched: Index, base: Index) {
        self.matched = self.matched.max(matched);
        let caught = self.matched;
        let is_probe_answer = caught.next() >= self.next;
        self.next = self.next.max(caught.next());
        match &mut self.flow {
            // An older answer says less than what the probe asks for.
            Flow::Probe { .. } => {
                if is_probe_answer {
                    self.replicate();
                }
            }
            Flow::Replicate { inflight } => {
                while inflight.front().is_some_and(|&upto| upto <= caught) {
                    inflight.pop_front();
                }
            }
            Flow::Snapshot { .. } => {
                if caught >= base {
                    self.replicate();
                }
            }
        }
    }

    /// Go on after `matched`, ahead of the answers.
    fn replicate(&mut self) {
        self.next = self.matched.next();
        self.flow = Flow::Replicate { inflight: VecDeque::new() };
    }

    /// Ask where the logs agree, beginning at `next`.
    pub(super) fn probe(&mut self, next: Index) {
        self.next = next.max(self.matched.next());
        self.flow = Flow::Probe { sent: false };
    }

    /// Is a refusal of the append after `prev` an answer to what was sent last?
    /// Older ones would rewind what has been learned since. `hint`, the last entry
    /// that may be common, gives some away: it is never below what we know to
    /// match, unless it was said before that.
    pub(super) fn is_fresh_refusal(&self, prev: Index, hint: Index) -> bool {
        if prev <= self.matched || hint < self.matched {
            return false;
        }
        match self.flow {
            Flow::Probe { sent } => sent && prev.next() == self.next,
            Flow::Replicate { .. } => prev < self.next,
            Flow::Snapshot { .. } => false,
        }
    }
}
