//! What clients asked and were told.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use super::minimize::minimize;
use super::search::{Judgement, judge};
use super::verdict::{Verdict, Violation};

/// Bytes of a key or a value.
pub type Bytes = Vec<u8>;

/// What a write asks of the state before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match: *`.
    Present,
    /// `If-Match` with the `ETag` that this value had.
    Value(Bytes),
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read.
    Get,
    /// Write, on a condition or without one.
    Put {
        /// What is written.
        value: Bytes,
        /// On what condition, if any.
        expect: Option<Expect>,
    },
    /// Remove, on a condition or without one.
    Delete {
        /// On what condition, if any.
        expect: Option<Expect>,
    },
}

impl Action {
    /// An unconditional write.
    pub fn put(value: impl Into<Bytes>) -> Self {
        Self::Put { value: value.into(), expect: None }
    }

    /// A write on a condition.
    pub fn put_if(value: impl Into<Bytes>, expect: Expect) -> Self {
        Self::Put { value: value.into(), expect: Some(expect) }
    }

    /// An unconditional removal.
    pub fn delete() -> Self {
        Self::Delete { expect: None }
    }
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A read: the value, or that there is none, and the revision that wrote the value.
    Read {
        /// The value, if there is one.
        value: Option<Bytes>,
        /// The revision that wrote it, if told.
        revision: Option<u64>,
    },
    /// A write took effect.
    Done {
        /// Its revision, if told.
        revision: Option<u64>,
        /// Did the key exist before it (200 or 201, `deleted` 1 or 0)? If told.
        existed: Option<bool>,
    },
    /// The condition did not hold (412).
    Mismatch,
    /// Certainly did not happen.
    Failed,
    /// May have happened, may happen at any later time, or never. Also: never answered.
    Unknown,
}

impl Outcome {
    /// A read without a revision.
    pub fn read(value: Option<&[u8]>) -> Self {
        Self::Read { value: value.map(<[u8]>::to_vec), revision: None }
    }

    /// A write of which only the success is known.
    pub fn done() -> Self {
        Self::Done { revision: None, existed: None }
    }
}

/// One call with its answer.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who asked; for the report only.
    pub client: u64,
    /// What was asked.
    pub action: Action,
    /// What came back.
    pub outcome: Outcome,
    /// Not later than the request was sent.
    pub called: u64,
    /// Not earlier than the answer was received; `u64::MAX` while there is none.
    pub returned: u64,
}

/// Names an operation that is under way.
#[derive(Clone, Copy, Debug)]
pub struct OpId {
    key: usize,
    op: usize,
}

/// Everything the clients of one run asked and were told.
///
/// Times may be virtual, or counted by a [`Recorder`]; at equal times calls come before returns,
/// so that nothing is held against the store that the clock cannot tell.
#[derive(Clone, Debug, Default)]
pub struct History {
    index: HashMap<Bytes, usize>,
    keys: Vec<(Bytes, Vec<Operation>)>,
}

impl History {
    /// Notes that `client` is about to ask.
    pub fn begin(&mut self, client: u64, key: impl AsRef<[u8]>, action: Action, now: u64) -> OpId {
        let name = key.as_ref();
        let key = self.index.get(name).copied().unwrap_or_else(|| {
            self.index.insert(name.to_vec(), self.keys.len());
            self.keys.push((name.to_vec(), Vec::new()));
            self.keys.len() - 1
        });
        let ops = &mut self.keys[key].1;
        let outcome = Outcome::Unknown;
        ops.push(Operation { client, action, outcome, called: now, returned: u64::MAX });
        OpId { key, op: ops.len() - 1 }
    }

    /// Notes what it was told. An operation that never ends has an unknown outcome.
    pub fn end(&mut self, id: OpId, outcome: Outcome, now: u64) {
        let op = &mut self.keys[id.key].1[id.op];
        assert!(op.called <= now, "an answer does not precede its request");
        assert!(op.returned == u64::MAX, "an operation ends once");
        op.returned = now;
        op.outcome = outcome;
    }

    /// A whole operation at once.
    pub fn push(
        &mut self,
        (called, returned): (u64, u64),
        key: impl AsRef<[u8]>,
        action: Action,
        outcome: Outcome,
    ) {
        let id = self.begin(0, key, action, called);
        self.end(id, outcome, returned);
    }

    /// An operation that somebody else recorded.
    pub(super) fn take(&mut self, key: &[u8], op: Operation) {
        let id = self.begin(op.client, key, op.action.clone(), op.called);
        self.keys[id.key].1[id.op] = op;
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Operations so far.
    pub fn len(&self) -> usize {
        self.keys.iter().map(|(_, ops)| ops.len()).sum()
    }

    /// Operations whose outcome no client knows.
    pub fn unknown(&self) -> usize {
        let all = self.keys.iter().flat_map(|(_, ops)| ops);
        all.filter(|op| op.outcome == Outcome::Unknown).count()
    }

    /// Every key with its operations, in the order of their calls as recorded.
    pub fn keys(&self) -> impl Iterator<Item = (&[u8], &[Operation])> {
        self.keys.iter().map(|(key, ops)| (key.as_slice(), ops.as_slice()))
    }

    /// Judges the history with [`STEPS`] for each key.
    pub fn check(&self) -> Verdict {
        self.check_within(STEPS)
    }

    /// Judges the history with at most `steps` for each key.
    pub fn check_within(&self, steps: u64) -> Verdict {
        let mut verdict = Verdict { keys: self.keys.len(), ops: self.len(), ..Verdict::default() };
        for (key, ops) in &self.keys {
            match judge(ops, steps) {
                Judgement::Ok => {}
                Judgement::Undecided(why) => verdict.undecided.push((key.clone(), why)),
                Judgement::Violation { at, why } => {
                    let window = minimize(ops, at, steps);
                    verdict.violations.push(Violation { key: key.clone(), why, window });
                }
            }
        }
        verdict
    }
}

/// Steps one key may take; about a second of an unoptimised build.
pub const STEPS: u64 = 2_000_000;

/// Records from several threads, with a clock that only counts.
///
/// Counting under one lock orders a return before every call that follows it in real time, which
/// is all that linearizability asks of a clock.
#[derive(Debug, Default)]
pub struct Recorder {
    inner: Mutex<(u64, History)>,
}

impl Recorder {
    /// Call before the request is sent.
    pub fn begin(&self, client: u64, key: impl AsRef<[u8]>, action: Action) -> OpId {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 += 1;
        let now = inner.0;
        inner.1.begin(client, key, action, now)
    }

    /// Call after the answer was received.
    pub fn end(&self, id: OpId, outcome: Outcome) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 += 1;
        let now = inner.0;
        inner.1.end(id, outcome, now);
    }

    /// What was recorded so far.
    pub fn history(&self) -> History {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

/// Counts outcomes by name, for the line a test prints about its run.
pub fn tally(history: &History) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for op in history.keys.iter().flat_map(|(_, ops)| ops) {
        let name = match op.outcome {
            Outcome::Read { .. } => "reads",
            Outcome::Done { .. } => "writes",
            Outcome::Mismatch => "refused conditions",
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}
