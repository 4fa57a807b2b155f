//! What happened: every change of a key, in order.
//!
//! An event holds what was there *before*. What it wrote is what the next event of the same
//! key found, or what the key holds now, so each value is kept once, and a state of the past
//! is told by the first event after it.
//!
//! It lies at its revision and its number among the events of that revision. Little-endian:
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0 | kind | 1 put, 2 delete |
//! | 1 | reason | 0 request, 1 its time was over, 2 its lease was |
//! | 2..4 | key length | |
//! | 4..8 | depth | how many events of the key are linked, with this one |
//! | 8..16 | jump revision | of an earlier event of the key, 0: none |
//! | 16..20 | jump number | |
//! | 20.. | key, then what was there: see below | |
//!
//! There was a record, or, when the key had been deleted and the history still told so, the
//! place of that event as in 8..20, or nothing.
//!
//! **The events of one key** are a list from the newest to the oldest. The key's record knows
//! the place of the newest, which wrote it; of a key that is gone the tree `Deleted` does. An
//! event finds the one before it by the record that it replaced, and a jump leads further back
//! (Myers, *An applicative random-access stack*, 1983): depths are written as sums of numbers
//! 2^k - 1, of which only the smallest may occur twice, and a jump skips the smallest one. So a
//! walk to any event looks at some 3 log2 of them, and an event is linked by what the two
//! before it say, however many there are. Nothing is ever written to link or to forget one: a
//! place whose revision is no longer kept is the end.
//!
//! Left out: an index of events by key. It cost two random pages for each put.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::leases::damaged;
use super::record::{OwnedRecord, Record};
use super::state::place;
use crate::store::{Snapshot, StoreError, Tree};

const HEAD: usize = 20;
/// Events that are read at once, so that most find what they wrote in those after them.
const PIECE: usize = 64;

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

/// A revision and the number of an event in it.
pub(super) type At = (u64, u32);

/// Where no event is.
pub(super) const NOWHERE: At = (0, 0);

/// After all events of a revision.
pub(super) fn end_of(revision: u64) -> At {
    (revision, u32::MAX)
}

/// Where an event lies in its tree.
pub(super) fn event_place(at: At) -> [u8; 12] {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&at.0.to_be_bytes());
    place[8..].copy_from_slice(&at.1.to_be_bytes());
    place
}

/// What is at such a place.
pub(super) fn position(place: &[u8]) -> Option<At> {
    let (revision, nth) = place.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*revision), u32::from_be_bytes(nth.try_into().ok()?)))
}

/// An event's place as a value.
pub(super) fn pointer(at: At) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&at.0.to_le_bytes());
    bytes[8..].copy_from_slice(&at.1.to_le_bytes());
    bytes
}

/// What such a value says.
pub(super) fn pointed(bytes: &[u8]) -> Option<At> {
    let (revision, nth) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*revision), u32::from_le_bytes(nth.try_into().ok()?)))
}

/// How an event leads to earlier ones of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) depth: u32,
    pub(super) jump: At,
}

impl Link {
    /// Of an event that follows none.
    pub(super) const FIRST: Self = Self { depth: 1, jump: NOWHERE };

    /// Of an event that follows the one at `back`, which has this link; `jump_of` tells the
    /// jump of one that this link leads to.
    pub(super) fn next<E>(
        self,
        back: At,
        jump_of: impl FnOnce(At) -> Result<At, E>,
    ) -> Result<Self, E> {
        let jump = if is_doubled(self.depth) { jump_of(self.jump)? } else { back };
        // A list can as well begin anew on top of another.
        Ok(Self { depth: self.depth.checked_add(1).unwrap_or(1), jump })
    }
}

/// Does the smallest of the numbers 2^k - 1 that make up `depth` occur twice?
fn is_doubled(depth: u32) -> bool {
    let mut rest = u64::from(depth);
    while rest != 0 {
        let largest = (1 << (rest + 1).ilog2()) - 1;
        rest -= largest;
        if rest == largest {
            return true;
        }
    }
    false
}

/// What an event found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before<'a> {
    /// Nothing, and nothing is known of the key.
    Nothing,
    /// Nothing, since the event there removed it.
    Deleted(At),
    /// A record, in its stored form.
    Stored(&'a [u8]),
}

impl<'a> Before<'a> {
    fn record(&self) -> Result<Option<Record<'a>>, StoreError> {
        match self {
            Self::Nothing | Self::Deleted(_) => Ok(None),
            Self::Stored(record) => {
                Record::decode(record).map(Some).ok_or_else(|| damaged("event"))
            }
        }
    }

    /// The event that made it so, kept or not.
    pub(super) fn made_by(&self) -> Result<At, StoreError> {
        Ok(match self {
            Self::Deleted(at) => *at,
            Self::Nothing | Self::Stored(_) => {
                self.record()?.map_or(NOWHERE, |record| record.written_at())
            }
        })
    }
}

/// An event as it lies in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    pub(super) kind: Kind,
    pub(super) reason: Reason,
    pub(super) key: &'a [u8],
    pub(super) link: Link,
    pub(super) before: Before<'a>,
}

impl<'a> Event<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let kind = match self.kind {
            Kind::Put => 1,
            Kind::Delete => 2,
        };
        let reason = match self.reason {
            Reason::Request => 0,
            Reason::Ttl => 1,
            Reason::Lease => 2,
        };
        let len = u16::try_from(self.key.len()).expect("keys are short").to_le_bytes();
        let (depth, jump) = (self.link.depth.to_le_bytes(), pointer(self.link.jump));
        let deleted;
        let before = match self.before {
            Before::Nothing => &[][..],
            Before::Deleted(at) => {
                deleted = pointer(at);
                &deleted
            }
            Before::Stored(record) => record,
        };
        place(&[&[kind, reason], &len, &depth, &jump, self.key, before])
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let &[kind, reason, low, high, ..] = head;
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
        let depth = u32::from_le_bytes(*head.get(4..)?.first_chunk()?);
        let link = Link { depth, jump: pointed(head.get(8..)?)? };
        let (key, before) = rest.split_at_checked(usize::from(u16::from_le_bytes([low, high])))?;
        let before = match before.len() {
            0 => Before::Nothing,
            12 => Before::Deleted(pointed(before)?),
            _ => Before::Stored(before),
        };
        Some(Self { kind, reason, key, link, before })
    }

    /// What it adds to the size of the history, with its place; a key that is gone has one more.
    pub(super) fn weight(&self) -> u64 {
        let before = match self.before {
            Before::Nothing => 0,
            Before::Deleted(_) => 12,
            Before::Stored(record) => record.len(),
        };
        let keys = match self.kind {
            Kind::Put => 1,
            Kind::Delete => 2,
        };
        (HEAD + keys * self.key.len() + before + 64) as u64
    }

    fn prev(&self) -> Result<Option<Record<'a>>, StoreError> {
        self.before.record()
    }

    /// The event of the key before this one, kept or not.
    pub(super) fn back(&self) -> Result<At, StoreError> {
        self.before.made_by()
    }
}

/// An event and its place, from a pair of the tree.
pub(super) fn decode<'a>(place: &[u8], event: &'a [u8]) -> Result<(At, Event<'a>), StoreError> {
    position(place).zip(Event::decode(event)).ok_or_else(|| damaged("event"))
}

/// The first event of a key after a place, if there is one, found from its newest.
pub(super) fn first_after<'a>(
    key: &[u8],
    newest: At,
    after: At,
    mut event_at: impl FnMut(At) -> Result<Event<'a>, StoreError>,
) -> Result<Option<Event<'a>>, StoreError> {
    let mut at = newest;
    if at <= after {
        return Ok(None);
    }
    loop {
        let event = event_at(at)?;
        let (back, jump) = (event.back()?, event.link.jump);
        if event.key != key || back >= at || jump > back {
            return Err(damaged("event"));
        }
        at = if jump > after {
            jump
        } else if back > after {
            back
        } else {
            return Ok(Some(event));
        };
    }
}

/// Reads the history of a snapshot.
#[derive(Clone, Copy, Debug)]
pub(super) struct History<'a>(pub(super) &'a Snapshot);

impl<'a> History<'a> {
    pub(super) fn event(&self, at: At) -> Result<Event<'a>, StoreError> {
        let bytes = self.0.get(Tree::History, &event_place(at))?;
        bytes.and_then(Event::decode).ok_or_else(|| damaged("event"))
    }

    /// The newest event of a key, kept or not, and what the key holds.
    fn newest(&self, key: &[u8]) -> Result<(At, Option<Record<'a>>), StoreError> {
        if let Some(stored) = self.0.get(Tree::Kv, key)? {
            let record = super::decode(key, stored)?;
            return Ok((record.written_at(), Some(record)));
        }
        let deleted = self.0.get(Tree::Deleted, key)?;
        let at = deleted.map(|bytes| pointed(bytes).ok_or_else(|| damaged("deleted key")));
        Ok((at.transpose()?.unwrap_or(NOWHERE), None))
    }

    /// What a key was once everything up to a place had happened, and the event that made it so,
    /// kept or not.
    fn state_at(&self, key: &[u8], at: At) -> Result<(Option<Record<'a>>, At), StoreError> {
        let (newest, record) = self.newest(key)?;
        let after = at.max(end_of(self.0.state().compact_revision));
        match first_after(key, newest, after, |at| self.event(at))? {
            Some(next) => Ok((next.prev()?, next.back()?)),
            None => Ok((record, newest)),
        }
    }

    /// What a key was after everything up to and with `revision`, which must be kept.
    pub(super) fn at(&self, key: &[u8], revision: u64) -> Result<Option<Record<'a>>, StoreError> {
        Ok(self.state_at(key, end_of(revision))?.0)
    }

    fn change(at: At, event: &Event<'_>, after: Option<&Record<'_>>) -> Result<Change, StoreError> {
        let record = match event.kind {
            Kind::Delete => None,
            Kind::Put => Some(after.ok_or_else(|| damaged("event"))?.to_owned()),
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
        let mut scan = self.scan_after(revision);
        let (mut changes, mut looked, mut weight, mut last) = (Vec::new(), 0, 0, None);
        loop {
            let mut piece = Vec::new();
            while piece.len() < PIECE
                && let Some((found, stored)) = scan.next()?
            {
                piece.push(decode(found, stored)?);
            }
            if piece.is_empty() {
                return Ok((changes, None));
            }
            let after = self.after_each(&piece, &wanted)?;
            for ((at, event), after) in piece.iter().zip(after) {
                let enough = looked >= events || weight >= bytes;
                if enough && last.is_some_and(|last| last != at.0) {
                    return Ok((changes, last));
                }
                (looked, last) = (looked + 1, Some(at.0));
                if wanted(event.key) {
                    let change = Self::change(*at, event, after.as_ref())?;
                    weight += change.weight();
                    changes.push(change);
                }
            }
        }
    }

    /// What the key of each event was after it, if that is wanted. All events between the first and
    /// the last of `piece` are in it, so only the last of each key is looked for elsewhere.
    fn after_each(
        &self,
        piece: &[(At, Event<'a>)],
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Option<Record<'a>>>, StoreError> {
        let mut known: BTreeMap<&[u8], Option<Record<'a>>> = BTreeMap::new();
        let mut records = Vec::with_capacity(piece.len());
        for (at, event) in piece.iter().rev() {
            if !wanted(event.key) {
                records.push(None);
                continue;
            }
            let after = match known.get(event.key) {
                Some(after) => *after,
                None => match self.state_at(event.key, *at)? {
                    (after, last) if last == *at => after,
                    _ => return Err(damaged("event")),
                },
            };
            known.insert(event.key, event.prev()?);
            records.push(after);
        }
        records.reverse();
        Ok(records)
    }

    /// Calls `visit` with each event after `revision`, the oldest first.
    pub(super) fn each_after(
        &self,
        revision: u64,
        mut visit: impl FnMut(At, Event<'a>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut scan = self.scan_after(revision);
        while let Some((found, bytes)) = scan.next()? {
            let (at, event) = decode(found, bytes)?;
            visit(at, event)?;
        }
        Ok(())
    }

    fn scan_after(&self, revision: u64) -> crate::store::Scan<'a> {
        let start = event_place((revision.saturating_add(1), 0));
        self.0.scan(Tree::History, Bound::Included(&start), Bound::Unbounded, false)
    }

    /// The newest changes of a key before `before`, newest first, until there are `most` of them
    /// or they weigh `bytes`, and whether there are more.
    pub(super) fn of(
        &self,
        key: &[u8],
        before: u64,
        (most, bytes): (usize, usize),
    ) -> Result<(Vec<Change>, bool), StoreError> {
        let (mut changes, mut weight) = (Vec::new(), 0);
        let (mut after, mut at) = self.state_at(key, end_of(before.saturating_sub(1)))?;
        let gone = end_of(self.0.state().compact_revision);
        while at > gone {
            let event = self.event(at)?;
            let back = event.back()?;
            if event.key != key || back >= at {
                return Err(damaged("event"));
            }
            if changes.len() >= most || weight >= bytes {
                return Ok((changes, true));
            }
            let change = Self::change(at, &event, after.as_ref())?;
            weight += change.weight();
            changes.push(change);
            (at, after) = (back, event.prev()?);
        }
        Ok((changes, false))
    }
}
