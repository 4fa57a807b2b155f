//! Reading the state: one snapshot with the meaning of its bytes.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::command::Span;
use super::history::{Change, Gone, History};
use super::leases::{self, Lease};
use super::locks::{self, Claim};
use super::record::Record;
use super::state::{below, borrowed};
use crate::raft::types::Index;
use crate::store::scan::prefix_end;
use crate::store::{Snapshot, StoreError, Tree};

/// The state as of one revision. Cheap to clone; holds on to the pages it can see, so keep
/// it no longer than a request.
#[derive(Clone, Debug)]
pub struct View {
    snapshot: Arc<Snapshot>,
}

/// Which keys, in which order.
#[derive(Clone, Debug)]
pub struct Range {
    /// Where to begin, in key order.
    pub start: Bound<Vec<u8>>,
    /// Where to end, in key order.
    pub end: Bound<Vec<u8>>,
    /// From the end to the start.
    pub reverse: bool,
}

/// A key with its record.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    /// The key.
    pub key: &'a [u8],
    /// What is stored there.
    pub record: Record<'a>,
}

impl Range {
    /// All keys that begin with `prefix`; the empty prefix means all keys.
    #[must_use]
    pub fn prefix(prefix: &[u8]) -> Self {
        Self { start: Bound::Included(prefix.to_vec()), end: prefix_end(prefix), reverse: false }
    }

    /// Upwards through a span.
    #[must_use]
    pub fn of(span: &Span) -> Self {
        let (start, end) = span.bounds();
        let owned = |bound: Bound<&[u8]>| bound.map(<[u8]>::to_vec);
        Self { start: owned(start), end: owned(end), reverse: false }
    }

    fn contains(&self, key: &[u8]) -> bool {
        let after = match &self.start {
            Bound::Included(start) => key >= &start[..],
            Bound::Excluded(start) => key > &start[..],
            Bound::Unbounded => true,
        };
        let before = match &self.end {
            Bound::Included(end) => key <= &end[..],
            Bound::Excluded(end) => key < &end[..],
            Bound::Unbounded => true,
        };
        after && before
    }
}

/// A lease and what hangs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// Its id.
    pub id: u64,
    /// How long it lasts, and when it ends.
    pub lease: Lease,
    /// How many keys hang on it.
    pub keys: u64,
}

/// A lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockView {
    /// Who holds it.
    pub holder: Claim,
    /// Who waits for it, first come first.
    pub waiting: Vec<Claim>,
}

impl View {
    /// A view of `snapshot`.
    #[must_use]
    pub fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot }
    }

    /// The store's revision: that of the last change it includes.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.snapshot.state().revision
    }

    /// The last entry it includes.
    #[must_use]
    pub fn applied(&self) -> Index {
        self.snapshot.state().applied.index
    }

    /// The digest of all keys, equal on all nodes that applied the same entries.
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.snapshot.state().digest
    }

    /// How many keys there are.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.snapshot.entries(Tree::Kv)
    }

    /// The record of a key, borrowed from the map.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn get(&self, key: &[u8]) -> Result<Option<Record<'_>>, StoreError> {
        let Some(bytes) = self.snapshot.get(Tree::Kv, key)? else { return Ok(None) };
        super::decode(key, bytes).map(Some)
    }

    /// The value of a key without a copy, if it is long enough to have pages of its own. The
    /// bytes hold on to the snapshot: see [`Held`](crate::store::Held).
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn held(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let Some(held) = Snapshot::hold(&self.snapshot, Tree::Kv, key)? else { return Ok(None) };
        let stored = Bytes::from_owner(held);
        let len = super::decode(key, &stored)?.value.len();
        Ok(Some(stored.slice(stored.len() - len..)))
    }

    /// Calls `visit` with each item of `range` in order until it says `false`.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn scan(
        &self,
        range: &Range,
        mut visit: impl FnMut(Item<'_>) -> bool,
    ) -> Result<(), StoreError> {
        let (start, end) = (range.start.as_ref(), range.end.as_ref());
        let mut scan = self.snapshot.scan(
            Tree::Kv,
            start.map(Vec::as_slice),
            end.map(Vec::as_slice),
            range.reverse,
        );
        while let Some((key, value)) = scan.next()? {
            let record = super::decode(key, value)?;
            if !visit(Item { key, record }) {
                break;
            }
        }
        Ok(())
    }

    /// The replicated clock in milliseconds: times to live count by it.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.snapshot.state().time_ms
    }

    /// Bytes that only the past takes, roughly.
    #[must_use]
    pub fn past_bytes(&self) -> u64 {
        let state = self.snapshot.state();
        state.history_bytes + state.session_bytes
    }

    /// Changes up to and with this revision are no longer known.
    #[must_use]
    pub fn compact_revision(&self) -> u64 {
        self.snapshot.state().compact_revision
    }

    /// Is the state after `revision` still known, and already?
    ///
    /// # Errors
    /// [`Gone`] with the oldest that is.
    pub fn kept(&self, revision: u64) -> Result<(), Gone> {
        let oldest = self.compact_revision();
        if revision < oldest { Err(Gone { oldest }) } else { Ok(()) }
    }

    /// What a key was after everything up to and with `revision`, which must be [kept].
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    ///
    /// [kept]: View::kept
    pub fn get_at(&self, key: &[u8], revision: u64) -> Result<Option<Record<'_>>, StoreError> {
        if revision >= self.revision() {
            return self.get(key);
        }
        History(&self.snapshot).at(key, revision)
    }

    /// Like [`View::scan`], as everything was after `revision`, which must be [kept].
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    ///
    /// [kept]: View::kept
    pub fn scan_at(
        &self,
        range: &Range,
        revision: u64,
        mut visit: impl FnMut(Item<'_>) -> bool,
    ) -> Result<(), StoreError> {
        if revision >= self.revision() {
            return self.scan(range, visit);
        }
        let history = History(&self.snapshot);
        let mut changed: std::collections::BTreeSet<&[u8]> = std::collections::BTreeSet::new();
        history.each_after(revision, |_, event| {
            if range.contains(event.key) {
                changed.insert(event.key);
            }
            Ok(())
        })?;
        // Keys that changed since are told by the history, the others are as they were.
        let is_before =
            |one: &[u8], other: &[u8]| if range.reverse { one > other } else { one < other };
        let mut next = || if range.reverse { changed.pop_last() } else { changed.pop_first() };
        let mut due = next();
        let (mut error, mut going) = (None, true);
        let mut then =
            |key: &[u8], visit: &mut dyn FnMut(Item<'_>) -> bool| match history.at(key, revision) {
                Ok(Some(record)) => visit(Item { key, record }),
                Ok(None) => true,
                Err(wrong) => {
                    error = Some(wrong);
                    false
                }
            };
        self.scan(range, |item| {
            while let Some(key) = due.filter(|key| is_before(key, item.key)) {
                going = then(key, &mut visit);
                due = next();
                if !going {
                    return false;
                }
            }
            going = if due == Some(item.key) {
                due = next();
                then(item.key, &mut visit)
            } else {
                visit(item)
            };
            going
        })?;
        while going && let Some(key) = due {
            going = then(key, &mut visit);
            due = next();
        }
        error.map_or(Ok(()), Err)
    }

    /// Changes after `revision`, which must be [kept], in their order, by whole revisions,
    /// until there are `events` of them or they weigh `bytes`.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    ///
    /// [kept]: View::kept
    pub fn changes(
        &self,
        revision: u64,
        events: usize,
        bytes: usize,
    ) -> Result<Vec<Change>, StoreError> {
        Ok(self.changes_of(revision, |_| true, events, bytes)?.0)
    }

    /// Changes of the keys that are `wanted` after `revision`, which must be [kept], in their
    /// order and by whole revisions, until `events` of all keys were looked at or the changes
    /// weigh `bytes`; and the revision up to which these are all.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    ///
    /// [kept]: View::kept
    pub fn changes_of(
        &self,
        revision: u64,
        wanted: impl Fn(&[u8]) -> bool,
        events: usize,
        bytes: usize,
    ) -> Result<(Vec<Change>, u64), StoreError> {
        let history = History(&self.snapshot);
        let (changes, last) = history.wanted_after(revision, wanted, events, bytes)?;
        Ok((changes, last.unwrap_or(self.revision()).max(revision)))
    }

    /// The newest changes of a key before revision `before`, newest first, until there are
    /// `most` of them or they weigh `bytes`, and whether there are more.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn history(
        &self,
        key: &[u8],
        before: u64,
        most: usize,
        bytes: usize,
    ) -> Result<(Vec<Change>, bool), StoreError> {
        History(&self.snapshot).of(key, before, (most, bytes))
    }

    /// A lease.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn lease(&self, id: u64) -> Result<Option<LeaseView>, StoreError> {
        let stored = self.snapshot.get(Tree::Meta, &leases::lease_place(id))?;
        stored.map(|bytes| self.lease_of(id, bytes)).transpose()
    }

    /// Up to `most` leases in the order of their ids, those after `after`.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn leases(&self, after: u64, most: usize) -> Result<Vec<LeaseView>, StoreError> {
        let low = leases::lease_place(after);
        let end = below(b"L").1;
        let bounds = (Bound::Excluded(&low[..]), end.as_ref().map(Vec::as_slice));
        let mut scan = self.snapshot.scan(Tree::Meta, bounds.0, bounds.1, false);
        let mut found = Vec::new();
        while found.len() < most
            && let Some((place, bytes)) = scan.next()?
        {
            let id = place.last_chunk::<8>().ok_or_else(|| leases::damaged("lease"))?;
            found.push(self.lease_of(u64::from_be_bytes(*id), bytes)?);
        }
        Ok(found)
    }

    fn lease_of(&self, id: u64, bytes: &[u8]) -> Result<LeaseView, StoreError> {
        let lease = Lease::decode(bytes).ok_or_else(|| leases::damaged("lease"))?;
        let mut keys = 0;
        self.lease_keys(id, |_| {
            keys += 1;
            true
        })?;
        Ok(LeaseView { id, lease, keys })
    }

    /// Calls `visit` with each key that hangs on a lease until it says `false`.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn lease_keys(
        &self,
        id: u64,
        mut visit: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        let prefix = leases::keys_place(id);
        let bounds = below(&prefix);
        let (low, high) = borrowed(&bounds);
        let mut scan = self.snapshot.scan(Tree::Meta, low, high, false);
        while let Some((place, _)) = scan.next()? {
            if !visit(place.get(prefix.len()..).unwrap_or_default()) {
                break;
            }
        }
        Ok(())
    }

    /// A lock that somebody holds, and up to `most` of those who wait for it.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn lock(&self, name: &[u8], most: usize) -> Result<Option<LockView>, StoreError> {
        let claim = |bytes: &[u8]| Claim::decode(bytes).ok_or_else(|| leases::damaged("lock"));
        let held = self.snapshot.get(Tree::Meta, &locks::lock_place(name))?;
        let Some(holder) = held.map(claim).transpose()? else { return Ok(None) };
        let bounds = below(&locks::queue_place(name));
        let (low, high) = borrowed(&bounds);
        let mut scan = self.snapshot.scan(Tree::Meta, low, high, false);
        let mut waiting = Vec::new();
        while waiting.len() < most
            && let Some((_, bytes)) = scan.next()?
        {
            waiting.push(claim(bytes)?);
        }
        Ok(Some(LockView { holder, waiting }))
    }

    /// What has become of a ticket for a lock: it holds it, it waits (its token is 0), or it is
    /// gone.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn claim(&self, name: &[u8], ticket: u64) -> Result<Option<Claim>, StoreError> {
        for place in [locks::lock_place(name), locks::waiting_place(name, ticket)] {
            let Some(bytes) = self.snapshot.get(Tree::Meta, &place)? else { continue };
            let claim = Claim::decode(bytes).ok_or_else(|| leases::damaged("lock"))?;
            if claim.ticket == ticket {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// Up to `most` names of locks that are held, those after `after`, in their order.
    ///
    /// # Errors
    /// Those of the store: damaged pages.
    pub fn locks(&self, after: &[u8], most: usize) -> Result<Vec<(Bytes, Claim)>, StoreError> {
        let low = locks::lock_place(after);
        let end = below(b"l").1;
        let bounds = (Bound::Excluded(&low[..]), end.as_ref().map(Vec::as_slice));
        let mut scan = self.snapshot.scan(Tree::Meta, bounds.0, bounds.1, false);
        let mut found = Vec::new();
        while found.len() < most
            && let Some((place, bytes)) = scan.next()?
        {
            let name = Bytes::copy_from_slice(place.get(1..).unwrap_or_default());
            let claim = Claim::decode(bytes).ok_or_else(|| leases::damaged("lock"))?;
            found.push((name, claim));
        }
        Ok(found)
    }
}
