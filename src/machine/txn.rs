//! Several steps as one: if all comparisons hold then these, else those.
//!
//! Whether it can happen at all is decided before its first step: a batch of entries cannot
//! be taken back half-way.

use bytes::Bytes;

use super::command::{
    Applied, Compare, Content, DELETE_MAX, Life, Op, OpResult, Relation, Span, Subject, Txn,
};
use super::history::Reason;
use super::record::{OwnedRecord, Record};
use super::state::State;
use super::view::View;
use super::{Range, decode};
use crate::store::{StoreError, Tree};

/// Bytes of keys and values that the steps of one transaction answer with, roughly.
pub const ANSWER_MAX: usize = 8 << 20;

/// Why a transaction makes no sense, whatever the state is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTxn {
    /// One key twice: only one write could be what its revision says.
    #[error("key \"{}\" is written or deleted twice", .0.escape_ascii())]
    Twice(Bytes),
    /// More than one lease.
    #[error("a transaction makes one lease at most")]
    TwoLeases,
    /// A key on a lease that is not made before.
    #[error("there is no lease step before the put that names the new lease")]
    NoLease,
}

impl Txn {
    /// Does it make sense?
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), BadTxn> {
        [&self.then, &self.otherwise].into_iter().try_for_each(|ops| check(ops))
    }

    /// Does it only read, whichever way it goes?
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.then.iter().chain(&self.otherwise).all(|op| matches!(op, Op::Get { .. }))
    }
}

fn check(ops: &[Op]) -> Result<(), BadTxn> {
    let mut keys: Vec<&Bytes> = Vec::new();
    let mut spans: Vec<&Span> = Vec::new();
    let mut granted = false;
    for op in ops {
        match op {
            Op::Put { key, content, .. } => {
                keys.push(key);
                if content.life == Life::NewLease && !granted {
                    return Err(BadTxn::NoLease);
                }
            }
            Op::Delete { span, .. } => spans.push(span),
            Op::Get { .. } => {}
            Op::Grant { .. } if granted => return Err(BadTxn::TwoLeases),
            Op::Grant { .. } => granted = true,
        }
    }
    keys.sort();
    if let Some([twice, _]) = keys.array_windows::<2>().find(|[one, other]| one == other) {
        return Err(BadTxn::Twice((*twice).clone()));
    }
    spans.retain(|span| !span.is_empty());
    spans.sort_by(|one, other| one.start.cmp(&other.start));
    for span in &spans {
        let first = keys.partition_point(|key| key[..] < span.start[..]);
        if let Some(key) = keys.get(first).filter(|key| span.contains(key)) {
            return Err(BadTxn::Twice((*key).clone()));
        }
    }
    let overlap = spans.array_windows::<2>().find(|[one, other]| one.contains(&other.start));
    overlap.map_or(Ok(()), |[_, other]| Err(BadTxn::Twice(other.start.clone())))
}

/// Does it hold for a key in this state?
fn holds(compare: &Compare, record: Option<&Record<'_>>) -> bool {
    let number = |relation: Relation, of: fn(&Record<'_>) -> u64, wanted: u64| {
        relation.holds(&record.map_or(0, of), &wanted)
    };
    match &compare.what {
        Subject::Exists(exists) => record.is_some() == *exists,
        Subject::Value(relation, wanted) => {
            record.is_some_and(|record| relation.holds(record.value, &wanted[..]))
        }
        Subject::Version(relation, wanted) => number(*relation, |it| it.version, *wanted),
        Subject::CreateRevision(relation, wanted) => {
            number(*relation, |it| it.create_revision, *wanted)
        }
        Subject::ModRevision(relation, wanted) => number(*relation, |it| it.mod_revision, *wanted),
    }
}

/// What is answered, up to [`ANSWER_MAX`] bytes.
struct Answers {
    room: usize,
}

impl Answers {
    fn fits(&mut self, key: &[u8], record: &Record<'_>) -> bool {
        let weight = key.len() + record.content_type.len() + record.value.len() + 64;
        // The first one always does.
        let fits = self.room == ANSWER_MAX || weight <= self.room;
        self.room = self.room.saturating_sub(weight);
        fits
    }
}

impl State<'_, '_> {
    /// The command of that name.
    pub(super) fn transact(&mut self, txn: &Txn) -> Result<Applied, StoreError> {
        let mut succeeded = true;
        for compare in &txn.compares {
            let stored = self.stored(&compare.key)?;
            let record = stored.as_deref().map(|bytes| decode(&compare.key, bytes)).transpose()?;
            succeeded &= holds(compare, record.as_ref());
        }
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        if let Some(refused) = self.refuse(ops)? {
            return Ok(refused);
        }
        let mut answers = Answers { room: ANSWER_MAX };
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(self.step(op, &mut answers)?);
        }
        Ok(Applied::Txn { succeeded, revision: self.store_revision(), results })
    }

    /// Why these steps cannot happen, if so.
    fn refuse(&mut self, ops: &[Op]) -> Result<Option<Applied>, StoreError> {
        let (mut deleted, mut granted) = (0, false);
        for op in ops {
            match op {
                Op::Put { content: Content { life: Life::NewLease, .. }, .. } if granted => {}
                Op::Put { content, .. } => {
                    if let Some(refused) = self.lease_missing(content.life)? {
                        return Ok(Some(refused));
                    }
                }
                Op::Delete { span, .. } => {
                    deleted += self.txn.count(Tree::Kv, span.bounds(), DELETE_MAX + 1)?;
                    if deleted > DELETE_MAX {
                        return Ok(Some(Applied::TooMany { actual: deleted }));
                    }
                }
                Op::Grant { .. } => {
                    // Its id is the revision, and somebody may have chosen the same one.
                    if granted || self.any_lease(self.revision)?.is_some() {
                        return Ok(Some(Applied::LeaseExists { id: self.revision }));
                    }
                    granted = true;
                }
                Op::Get { .. } => {}
            }
        }
        Ok(None)
    }

    fn step(&mut self, op: &Op, answers: &mut Answers) -> Result<OpResult, StoreError> {
        match op {
            Op::Put { key, content, prev } => {
                let stored = self.stored(key)?;
                let old = stored.as_deref().map(|bytes| decode(key, bytes)).transpose()?;
                let prev = *prev && old.is_some_and(|old| answers.fits(key, &old));
                self.write(key, content, stored.as_deref(), prev).map(OpResult::Put)
            }
            Op::Delete { span, prev } => {
                let mut before = Vec::new();
                let deleted = self.erase_span(span, |key, record| {
                    if *prev && answers.fits(key, &record) {
                        before.push((Bytes::copy_from_slice(key), record.to_owned()));
                    }
                })?;
                Ok(OpResult::Deleted { deleted, prev: before })
            }
            Op::Get { span, limit } => {
                let (mut items, mut more) = (Vec::new(), false);
                let most = usize::try_from(*limit).unwrap_or(usize::MAX);
                // In pieces, so that no more is copied than is answered.
                let mut from = std::ops::Bound::Included(span.start.to_vec());
                let end = span.bounds().1.map(<[u8]>::to_vec);
                'all: loop {
                    let bounds =
                        (from.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice));
                    let found = self.txn.collect(Tree::Kv, bounds, 64)?;
                    let Some((last, _)) = found.last() else { break };
                    from = std::ops::Bound::Excluded(last.clone());
                    for (key, bytes) in found {
                        let record = decode(&key, &bytes)?;
                        if items.len() == most || !answers.fits(&key, &record) {
                            more = true;
                            break 'all;
                        }
                        items.push((Bytes::from(key.clone()), record.to_owned()));
                    }
                }
                Ok(OpResult::Got { items, more })
            }
            Op::Grant { ttl_ms } => self.grant(self.revision, *ttl_ms).map(OpResult::Granted),
        }
    }
}

/// A transaction that only reads, on a snapshot: it needs no entry.
///
/// # Errors
/// Those of the store: damaged pages.
///
/// # Panics
/// When it does not only read: the caller looks.
pub fn read(view: &View, txn: &Txn) -> Result<Applied, StoreError> {
    let mut succeeded = true;
    for compare in &txn.compares {
        succeeded &= holds(compare, view.get(&compare.key)?.as_ref());
    }
    let ops = if succeeded { &txn.then } else { &txn.otherwise };
    let mut answers = Answers { room: ANSWER_MAX };
    let mut results = Vec::with_capacity(ops.len());
    for op in ops {
        let Op::Get { span, limit } = op else { panic!("this transaction writes") };
        let mut items: Vec<(Bytes, OwnedRecord)> = Vec::new();
        let mut more = false;
        view.scan(&Range::of(span), |item| {
            more = items.len() as u64 >= *limit || !answers.fits(item.key, &item.record);
            if !more {
                items.push((Bytes::copy_from_slice(item.key), item.record.to_owned()));
            }
            !more
        })?;
        results.push(OpResult::Got { items, more });
    }
    Ok(Applied::Txn { succeeded, revision: view.revision(), results })
}

impl State<'_, '_> {
    /// Removes all keys of a range, and shows each to `seen` before.
    pub(super) fn erase_span(
        &mut self,
        span: &Span,
        mut seen: impl FnMut(&[u8], Record<'_>),
    ) -> Result<u64, StoreError> {
        if span.is_empty() {
            return Ok(0);
        }
        let mut deleted = 0;
        loop {
            // What was found is gone, so the next piece begins where this one did.
            let found = self.txn.collect(Tree::Kv, span.bounds(), 64)?;
            if found.is_empty() {
                return Ok(deleted);
            }
            for (key, stored) in found {
                seen(&key, decode(&key, &stored)?);
                self.erase(&key, &stored, Reason::Request)?;
                deleted += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::command::Content;

    fn put(key: &'static [u8], life: Life) -> Op {
        let content = Content { value: Bytes::new(), content_type: String::new(), life };
        Op::Put { key: Bytes::from_static(key), content, prev: false }
    }

    fn delete(prefix: &[u8]) -> Op {
        Op::Delete { span: Span::prefix(prefix), prev: false }
    }

    #[test]
    fn each_key_changes_once() {
        let check = |ops: Vec<Op>| Txn { then: ops, ..Txn::default() }.check();
        let twice = |key: &'static [u8]| Err(BadTxn::Twice(Bytes::from_static(key)));
        assert_eq!(check(vec![put(b"b", Life::Endless), put(b"a", Life::Endless)]), Ok(()));
        assert_eq!(check(vec![put(b"a", Life::Endless), put(b"a", Life::Endless)]), twice(b"a"));
        assert_eq!(check(vec![delete(b"a"), put(b"ab", Life::Endless)]), twice(b"ab"));
        assert_eq!(check(vec![delete(b"a"), put(b"b", Life::Endless)]), Ok(()));
        assert_eq!(check(vec![delete(b"ab"), delete(b"a")]), twice(b"ab"));
        assert_eq!(check(vec![delete(b"a"), delete(b"b")]), Ok(()));
        assert_eq!(check(vec![put(b"a", Life::NewLease)]), Err(BadTxn::NoLease));
        let grant = || Op::Grant { ttl_ms: 1 };
        assert_eq!(check(vec![grant(), put(b"a", Life::NewLease)]), Ok(()));
        assert_eq!(check(vec![grant(), grant()]), Err(BadTxn::TwoLeases));
        let branches = Txn {
            then: vec![put(b"a", Life::Endless)],
            otherwise: vec![put(b"a", Life::Endless)],
            ..Txn::default()
        };
        assert_eq!(branches.check(), Ok(()), "only one of them happens");
    }
}
