//! Reading the log while it is written: frames for followers and entries for the state
//! machine, straight from the map.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;

use super::frame::{self, Frame, Head};
use super::map::AppendMap;
use crate::raft::types::{EntryKind, Index, LogId, Term};

/// Where a frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the segment, counted from the first that the process opened.
    pub(super) segment: u32,
    /// Bytes from its start, in units of 8.
    pub(super) eighths: u32,
}

/// An entry whose bytes are damaged, and what is known of it all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged {
    pub(super) id: LogId,
    pub(super) chain: Option<u64>,
    /// When it was readable.
    pub(super) head: Option<Head>,
}

/// What is where. One writer, under a lock that is held for moments.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// The entry before the first one held.
    pub(super) base: LogId,
    /// Its chain.
    pub(super) base_chain: u64,
    /// Of each entry held, in order.
    pub(super) places: VecDeque<Place>,
    /// Entries among them that cannot be read; their places mean nothing.
    pub(super) damaged: BTreeMap<Index, Damaged>,
    /// The segments, by the numbers in [`Place`].
    pub(super) segments: BTreeMap<u32, Arc<AppendMap>>,
    /// The open segment and how much of it is durable. Those before it are whole.
    pub(super) durable: (u32, u64),
}

impl Places {
    /// The number of the next segment from `number` on, its map, and how much is durable.
    pub(super) fn durable_from(&self, number: u32) -> Option<(u32, Arc<AppendMap>, u64)> {
        let (&number, map) = self.segments.range(number..).next()?;
        let (open, durable) = self.durable;
        let durable = match number.cmp(&open) {
            std::cmp::Ordering::Less => map.written(),
            std::cmp::Ordering::Equal => durable,
            std::cmp::Ordering::Greater => 0,
        };
        Some((number, Arc::clone(map), durable))
    }

    pub(super) fn last(&self) -> Index {
        Index(self.base.index.0 + self.places.len() as u64)
    }

    pub(super) fn place(&self, index: Index) -> Option<Place> {
        let at = index.0.checked_sub(self.base.index.0 + 1)?;
        self.places.get(usize::try_from(at).ok()?).copied()
    }

    /// The entries whose frames begin in these bytes of a segment, as inclusive runs.
    pub(super) fn runs_within(&self, segment: u32, bytes: Range<u64>) -> Vec<(Index, Index)> {
        let mut runs: Vec<(Index, Index)> = Vec::new();
        let first = self.base.index.0 + 1;
        for (index, place) in (first..).map(Index).zip(&self.places) {
            if place.segment != segment || !bytes.contains(&(u64::from(place.eighths) * 8)) {
                continue;
            }
            match runs.last_mut() {
                Some((_, last)) if last.next() == index => *last = index,
                _ => runs.push((index, index)),
            }
        }
        runs
    }

    /// Forgets entry `first` and all after it.
    pub(super) fn truncate(&mut self, first: Index) {
        let keep = first.0.saturating_sub(self.base.index.0 + 1);
        self.places.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        self.damaged.split_off(&first);
    }

    /// Says where a whole copy of a damaged entry is.
    pub(super) fn mend(&mut self, index: Index, place: Place) {
        let at = index.0.checked_sub(self.base.index.0 + 1);
        let slot = at.and_then(|at| self.places.get_mut(usize::try_from(at).ok()?));
        if let Some(slot) = slot {
            *slot = place;
            self.damaged.remove(&index);
        }
    }

    /// The damaged entries as inclusive runs.
    pub(super) fn damaged_runs(&self) -> Vec<(Index, Index)> {
        let mut runs: Vec<(Index, Index)> = Vec::new();
        for index in self.damaged.keys() {
            match runs.last_mut() {
                Some((_, last)) if last.next() == *index => *last = *index,
                _ => runs.push((*index, *index)),
            }
        }
        runs
    }

    fn frame(&self, index: Index) -> Option<(Frame<'_>, &Arc<AppendMap>, u64)> {
        if self.damaged.contains_key(&index) {
            return None;
        }
        let place = self.place(index)?;
        let map = self.segments.get(&place.segment)?;
        let at = u64::from(place.eighths) * 8;
        let header = map.bytes(at, frame::HEADER)?;
        let len = u32::from_le_bytes(*header.get(4..)?.first_chunk()?);
        let size = frame::size_of(usize::try_from(len).ok()?);
        let frame = frame::decode(map.bytes(at, size)?).ok()?;
        (frame.id.index == index).then_some((frame, map, at))
    }

    /// Term and chain of an entry; also of the one before the first. The chain of a damaged
    /// entry may be lost.
    pub(super) fn known(&self, index: Index) -> Option<(LogId, Option<u64>)> {
        if index == self.base.index {
            return Some((self.base, Some(self.base_chain)));
        }
        if let Some(damaged) = self.damaged.get(&index) {
            return Some((damaged.id, damaged.chain));
        }
        self.frame(index).map(|(frame, ..)| (frame.id, Some(frame.chain)))
    }

    /// As [`Places::known`], when all of it is.
    pub(super) fn identity(&self, index: Index) -> Option<(LogId, u64)> {
        self.known(index).and_then(|(id, chain)| Some((id, chain?)))
    }

    /// The header of an entry's frame, when it is known.
    pub(super) fn head(&self, index: Index) -> Option<Head> {
        if let Some(damaged) = self.damaged.get(&index) {
            return damaged.head;
        }
        let place = self.place(index)?;
        let map = self.segments.get(&place.segment)?;
        // It has a checksum of its own, so it may stand before a damaged payload.
        let header = map.bytes(u64::from(place.eighths) * 8, frame::HEADER)?;
        frame::head(header).ok().filter(|head| head.id.index == index)
    }
}

/// An entry as the state machine takes it; the payload is a slice of the map.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub id: LogId,
    /// What the payload is.
    pub kind: EntryKind,
    /// The leader's clock when it was proposed.
    pub time_ms: u64,
    /// Hash of everything up to and including this entry.
    pub chain: u64,
    /// The payload.
    pub payload: Bytes,
}

/// Sees all entries that are written, durable or not. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(super) places: Arc<RwLock<Places>>,
}

/// Bytes of a segment, which stays mapped while they are in use.
struct Slice {
    map: Arc<AppendMap>,
    at: u64,
    len: usize,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self.map.bytes(self.at, self.len).unwrap_or_default()
    }
}

impl LogReader {
    pub(super) fn lock(&self) -> RwLockReadGuard<'_, Places> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The frames of entries `first ..= last`, verbatim, at most `max_bytes` of them but at
    /// least one and none behind a damaged one, and the last index among them. `None`: the
    /// first is damaged, or some are compacted away or not written.
    #[must_use]
    pub fn frames(
        &self,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Option<(Vec<Bytes>, Index)> {
        let places = self.lock();
        let mut slices: Vec<Slice> = Vec::new();
        let (mut total, mut index) = (0, first);
        while index <= last {
            if total > 0 && places.damaged.contains_key(&index) {
                break;
            }
            let (frame, map, at) = places.frame(index)?;
            if total > 0 && total + frame.size > max_bytes {
                break;
            }
            total += frame.size;
            match slices.last_mut() {
                Some(slice)
                    if Arc::ptr_eq(&slice.map, map) && slice.at + slice.len as u64 == at =>
                {
                    slice.len += frame.size;
                }
                _ => slices.push(Slice { map: map.clone(), at, len: frame.size }),
            }
            index = index.next();
        }
        (total > 0).then(|| (slices.into_iter().map(Bytes::from_owner).collect(), index.prev()))
    }

    /// The term of an entry, or of the one before the first.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.lock().known(index).map(|(id, _)| id.term)
    }

    /// One entry; `None`: compacted away, not written, or damaged since it was.
    #[must_use]
    pub fn entry(&self, index: Index) -> Option<Entry> {
        let places = self.lock();
        let (frame, map, at) = places.frame(index)?;
        let Frame { id, kind, time_ms, chain, payload, .. } = frame;
        let slice = Slice { map: map.clone(), at: at + frame::HEADER as u64, len: payload.len() };
        Some(Entry { id, kind, time_ms, chain, payload: Bytes::from_owner(slice) })
    }
}
