//! What happened: every change of a key, by revision and by key.
//!
//! An event holds what was there *before*. What it wrote is what the next event of the same
//! key found, or what the key holds now, so each value is kept once, and a state of the past
//! is told by the first event after it.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0 | kind | 1 put, 2 delete |
//! | 1 | reason | 0 request, 1 its time was over, 2 its lease was |
//! | 2..4 | key length | |
//! | 4.. | key, then the record before, or nothing | |
//!
//! Keys are found by their hash. Two that share it are told apart by the event itself.

use std::ops::Bound;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_128;

use super::leases::damaged;
use super::record::{OwnedRecord, Record};
use super::state::place;
use crate::store::{Snapshot, StoreError, Tree};

const HEAD: usize = 4;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody asked for it.
    Request,
    /// Its time to live was over.
    Ttl,
    /// Its lease was.
    Lease,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision that it is part of.
    pub revision: u64,
    /// What happened.
    pub kind: Kind,
    /// Why.
    pub reason: Reason,
    /// To which key.
    pub key: Bytes,
    /// What was written; `None`: it was removed.
    pub record: Option<OwnedRecord>,
    /// What was there before.
    pub prev: Option<OwnedRecord>,
}

impl Change {
    /// Roughly how much memory it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let value = |record: &Option<OwnedRecord>| record.as_ref().map_or(0, |it| it.value.len());
        128 + self.key.len() + value(&self.record) + value(&self.prev)
    }
}

/// A revision that is no longer in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The oldest that can be had: changes after it are known.
    pub oldest: u64,
}

pub(super) fn event_place(revision: u64, nth: u32) -> Vec<u8> {
    place(&[&[0], &revision.to_be_bytes(), &nth.to_be_bytes()])
}

/// What the places of the events of a key begin with.
fn of_key(key: &[u8]) -> Vec<u8> {
    place(&[&[1], &xxh3_128(key).to_be_bytes()])
}

pub(super) fn index_place(key: &[u8], revision: u64, nth: u32) -> Vec<u8> {
    place(&[&of_key(key), &revision.to_be_bytes(), &nth.to_be_bytes()])
}

/// A revision and the place of an event in it.
type At = (u64, u32);

/// What is at the end of either kind of place.
pub(super) fn position(place: &[u8]) -> Option<At> {
    let (rest, nth) = place.split_last_chunk::<4>()?;
    let (_, revision) = rest.split_last_chunk::<8>()?;
    Some((u64::from_be_bytes(*revision), u32::from_be_bytes(*nth)))
}

pub(super) fn encode(kind: Kind, reason: Reason, key: &[u8], prev: Option<&[u8]>) -> Vec<u8> {
    let kind = match kind {
        Kind::Put => 1,
        Kind::Delete => 2,
    };
    let reason = match reason {
        Reason::Request => 0,
        Reason::Ttl => 1,
        Reason::Lease => 2,
    };
    let len = u16::try_from(key.len()).expect("keys are short").to_le_bytes();
    place(&[&[kind, reason], &len, key, prev.unwrap_or_default()])
}

/// What an event adds to the size of the history, with its places.
pub(super) fn weight(value: &[u8]) -> u64 {
    value.len() as u64 + 64
}

/// An event as it lies in the tree.
pub(super) struct Event<'a> {
    kind: Kind,
    reason: Reason,
    pub(super) key: &'a [u8],
    prev: &'a [u8],
}

impl<'a> Event<'a> {
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let &[kind, reason, low, high] = head else { return None };
        let kind = match kind {
            1 => Kind::Put,
            2 => Kind::Delete,
            _ => return None,
        };
        let reason = match reason {
            0 => Reason::Request,
            1 => Reason::Ttl,
            2 => Reason::Lease,
            _ => return None,
        };
        let (key, prev) = rest.split_at_checked(usize::from(u16::from_le_bytes([low, high])))?;
        Some(Self { kind, reason, key, prev })
    }

    /// What was there before.
    fn prev(&self) -> Result<Option<Record<'a>>, StoreError> {
        if self.prev.is_empty() {
            return Ok(None);
        }
        Record::decode(self.prev).map(Some).ok_or_else(|| damaged("event"))
    }
}

/// Reads the history of a snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct History<'a>(pub(super) &'a Snapshot);

impl<'a> History<'a> {
    fn event(&self, revision: u64, nth: u32) -> Result<Event<'a>, StoreError> {
        let bytes = self.0.get(Tree::History, &event_place(revision, nth))?;
        bytes.and_then(Event::decode).ok_or_else(|| damaged("event"))
    }

    /// The first event of a key from a place on, if there is one.
    fn next_of(&self, key: &[u8], from: At) -> Result<Option<(At, Event<'a>)>, StoreError> {
        let start = index_place(key, from.0, from.1);
        let end = crate::store::scan::prefix_end(&of_key(key));
        let end = end.as_ref().map(Vec::as_slice);
        let mut scan = self.0.scan(Tree::History, Bound::Included(&start), end, false);
        while let Some((found, _)) = scan.next()? {
            let at = position(found).ok_or_else(|| damaged("event"))?;
            let event = self.event(at.0, at.1)?;
            if event.key == key {
                return Ok(Some((at, event)));
            }
        }
        Ok(None)
    }

    /// What a key was after everything up to and with `revision`, which must be kept.
    pub(super) fn at(&self, key: &[u8], revision: u64) -> Result<Option<Record<'a>>, StoreError> {
        match self.next_of(key, (revision.saturating_add(1), 0))? {
            Some((_, event)) => event.prev(),
            None => {
                let stored = self.0.get(Tree::Kv, key)?;
                stored.map(|bytes| super::decode(key, bytes)).transpose()
            }
        }
    }

    fn change(&self, at: At, event: &Event<'a>) -> Result<Change, StoreError> {
        let record = match event.kind {
            Kind::Delete => None,
            Kind::Put => {
                let after = match self.next_of(event.key, (at.0, at.1 + 1))? {
                    Some((_, next)) => next.prev()?,
                    None => {
                        let stored = self.0.get(Tree::Kv, event.key)?;
                        stored.map(|bytes| super::decode(event.key, bytes)).transpose()?
                    }
                };
                Some(after.ok_or_else(|| damaged("event"))?.to_owned())
            }
        };
        Ok(Change {
            revision: at.0,
            kind: event.kind,
            reason: event.reason,
            key: Bytes::copy_from_slice(event.key),
            record,
            prev: event.prev()?.map(|record| record.to_owned()),
        })
    }

    /// Changes after `revision` in their order, until `enough` says so after a whole revision.
    pub(super) fn after(
        &self,
        revision: u64,
        mut enough: impl FnMut(&[Change]) -> bool,
    ) -> Result<Vec<Change>, StoreError> {
        let start = event_place(revision.saturating_add(1), 0);
        let mut scan =
            self.0.scan(Tree::History, Bound::Included(&start), Bound::Excluded(&[1]), false);
        let mut changes: Vec<Change> = Vec::new();
        while let Some((found, bytes)) = scan.next()? {
            let at = position(found).ok_or_else(|| damaged("event"))?;
            let event = Event::decode(bytes).ok_or_else(|| damaged("event"))?;
            if changes.last().is_some_and(|last| last.revision != at.0) && enough(&changes) {
                break;
            }
            changes.push(self.change(at, &event)?);
        }
        Ok(changes)
    }

    /// Changes of the keys that are `wanted` after `revision`, in their order, until so many
    /// events were looked at or the changes weigh so much; and the last revision that was
    /// looked at, if it is not the newest. Revisions stay whole.
    pub(super) fn wanted_after(
        &self,
        revision: u64,
        wanted: impl Fn(&[u8]) -> bool,
        events: usize,
        bytes: usize,
    ) -> Result<(Vec<Change>, Option<u64>), StoreError> {
        let start = event_place(revision.saturating_add(1), 0);
        let mut scan =
            self.0.scan(Tree::History, Bound::Included(&start), Bound::Excluded(&[1]), false);
        let (mut changes, mut looked, mut weight, mut last) = (Vec::new(), 0, 0, None);
        while let Some((found, stored)) = scan.next()? {
            let at = position(found).ok_or_else(|| damaged("event"))?;
            let enough = looked >= events || weight >= bytes;
            if enough && last.is_some_and(|last| last != at.0) {
                return Ok((changes, last));
            }
            (looked, last) = (looked + 1, Some(at.0));
            let event = Event::decode(stored).ok_or_else(|| damaged("event"))?;
            if wanted(event.key) {
                let change = self.change(at, &event)?;
                weight += change.weight();
                changes.push(change);
            }
        }
        Ok((changes, None))
    }

    /// Calls `visit` with the key of each event after `revision`.
    pub(super) fn keys_after(
        &self,
        revision: u64,
        mut visit: impl FnMut(&'a [u8]),
    ) -> Result<(), StoreError> {
        let start = event_place(revision.saturating_add(1), 0);
        let mut scan =
            self.0.scan(Tree::History, Bound::Included(&start), Bound::Excluded(&[1]), false);
        while let Some((_, bytes)) = scan.next()? {
            visit(Event::decode(bytes).ok_or_else(|| damaged("event"))?.key);
        }
        Ok(())
    }

    /// The newest changes of a key before `before`, newest first, until there are `most` of them
    /// or they weigh `bytes`, and whether there are more. Those up to and with `gone` are not
    /// told of.
    pub(super) fn of(
        &self,
        key: &[u8],
        before: u64,
        (most, bytes): (usize, usize),
        gone: u64,
    ) -> Result<(Vec<Change>, bool), StoreError> {
        let low = index_place(key, gone.saturating_add(1), 0);
        let high = index_place(key, before, 0);
        let (mut changes, mut weight) = (Vec::new(), 0);
        if low >= high {
            return Ok((changes, false));
        }
        let bounds = (Bound::Included(&low[..]), Bound::Excluded(&high[..]));
        let mut scan = self.0.scan(Tree::History, bounds.0, bounds.1, true);
        while let Some((found, _)) = scan.next()? {
            let at = position(found).ok_or_else(|| damaged("event"))?;
            let event = self.event(at.0, at.1)?;
            if event.key != key {
                continue;
            }
            if changes.len() >= most || weight >= bytes {
                return Ok((changes, true));
            }
            let change = self.change(at, &event)?;
            weight += change.weight();
            changes.push(change);
        }
        Ok((changes, false))
    }
}
