//! The log of a node that lost some of it: which entries cannot be read, how they come back,
//! and the note that part of the log is gone for good.
//!
//! A copy of a damaged entry may come from anybody. It is believed when its chain is the one
//! that the damaged header names, or when the entry after it continues from it: the chain is
//! a hash over all that came before, so only the original passes. Copies are therefore
//! examined from the last to the first, each with its successor at hand.

use std::collections::BTreeMap;

use super::error::StoreError;
use super::frame::{self, Head};
use super::log::Log;
use super::reader::{Damaged, Place, Places};
use super::segment::{ALIGN, BATCH, REPAIR};
use crate::raft::types::{HardState, Index, Term};

/// Copies by index, each with its header.
type Copies<'a> = BTreeMap<Index, Vec<(Head, &'a [u8])>>;

impl Log {
    /// The first run of damaged entries, its first and last index.
    #[must_use]
    pub fn damaged(&self) -> Option<(Index, Index)> {
        self.damaged.first().copied()
    }

    /// The first run of damaged entries at or behind `index`, without what lies before it.
    #[must_use]
    pub fn damaged_from(&self, index: Index) -> Option<(Index, Index)> {
        let at = self.damaged.partition_point(|(_, last)| *last < index);
        self.damaged.get(at).map(|(first, last)| ((*first).max(index), *last))
    }

    /// Looks again at what is damaged, after a change.
    pub(super) fn count_damaged(&mut self) {
        let places = self.reader.lock();
        let runs = places.damaged_runs();
        drop(places);
        self.damaged = runs;
    }

    /// These entries were found damaged on the disk while the node runs. Their names are what
    /// the map still says; until they are repaired nobody reads them. One that the map does
    /// not show any more is left as it is: its name is not known.
    pub fn mark_damaged(&mut self, first: Index, last: Index) {
        {
            let mut places = self.places();
            let last = last.min(places.last());
            let mut index = first.max(places.base.index.next());
            while index <= last {
                if !places.damaged.contains_key(&index)
                    && let Some(head) = places.head(index)
                {
                    let (id, chain) = (head.id, Some(head.chain));
                    places.damaged.insert(index, Damaged { id, chain, head: Some(head) });
                }
                index = index.next();
            }
        }
        self.count_damaged();
    }

    /// Takes copies of damaged entries: frames as any other node has them, from anywhere in
    /// the log. Those that are proven to be the originals are durable when it returns; how
    /// many. The others are ignored, and so is everything behind bytes that are not a frame.
    ///
    /// # Errors
    /// `Io`: the process must end.
    ///
    /// # Panics
    /// When something is staged or being synced.
    pub fn repair(&mut self, frames: &[u8]) -> Result<u64, StoreError> {
        assert!(self.syncing.is_none() && !self.has_staged(), "nothing else is being written");
        let proven = {
            let places = self.reader.lock();
            prove(&places, &offered(&places, frames))
        };
        let Some((first, _)) = proven.first_key_value() else { return Ok(0) };
        let first = *first;
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for (index, copy) in &proven {
            starts.push((*index, bytes.len() as u64));
            bytes.extend_from_slice(copy);
        }
        let behind = self.reader.lock().last().next();
        self.make_room(behind, bytes.len() as u64 + BATCH as u64 + ALIGN)?;
        let count = u32::try_from(starts.len()).expect("far fewer than bytes");
        let (offset, at) = self.append_batch(first, count, REPAIR, &bytes)?;
        let active = self.active.as_ref().expect("room was made");
        let (map, number) = (active.appender.map().clone(), active.number);
        map.sync(offset, map.written() - offset)?;
        self.synced = self.position();
        {
            let mut places = self.places();
            for (index, start) in starts {
                let eighths = u32::try_from((at + start) / 8).expect("segments are small");
                places.mend(index, Place { segment: number, eighths });
            }
        }
        self.count_damaged();
        Ok(u64::from(count))
    }

    /// Stages an empty batch that proves that what was written last was durable, so that
    /// damage of it is not taken for a torn end. `false`: there is nothing to prove.
    pub fn stage_mark(&mut self) -> bool {
        let idle = self.syncing.is_none() && !self.has_staged() && self.active.is_some();
        self.mark_staged = idle && self.unproven > self.proven;
        self.mark_staged
    }

    /// Term and vote, as they will be saved next.
    #[must_use]
    pub fn hard_state(&self) -> HardState {
        self.hard.saved.hard
    }

    /// Set while entries may be missing that this node acknowledged: the newest term in which
    /// it may have done so.
    #[must_use]
    pub fn amnesia(&self) -> Option<Term> {
        self.hard.saved.amnesia
    }

    /// Notes durably that acknowledged entries may be missing, and moves on to a new term.
    ///
    /// # Errors
    /// `Io`: the process must end.
    pub fn begin_amnesia(&mut self) -> Result<(), StoreError> {
        let newest = self.written().term;
        self.note_durable();
        self.hard.begin_amnesia(newest, self.synced)
    }

    /// Notes durably that whatever was missing has been made up for.
    ///
    /// # Errors
    /// `Io`: the process must end.
    pub fn end_amnesia(&mut self) -> Result<(), StoreError> {
        self.hard.saved.amnesia = None;
        self.note_durable();
        self.hard.save_at_once()
    }
}

/// The copies of entries that are damaged here.
fn offered<'a>(places: &Places, frames: &'a [u8]) -> Copies<'a> {
    let mut copies = Copies::new();
    let mut rest = frames;
    while let (Ok(head), Ok(frame)) = (frame::head(rest), frame::decode(rest)) {
        let (bytes, behind) = rest.split_at(frame.size);
        if places.damaged.get(&head.id.index).is_some_and(|damaged| damaged.id == head.id) {
            copies.entry(head.id.index).or_default().push((head, bytes));
        }
        rest = behind;
    }
    copies
}

fn prove<'a>(places: &Places, copies: &Copies<'a>) -> BTreeMap<Index, &'a [u8]> {
    let mut proven = BTreeMap::new();
    let mut after: Option<Head> = None;
    for (index, candidates) in copies.iter().rev() {
        let next = index.next();
        if after.is_none_or(|head| head.id.index != next) {
            after = places.head(next);
        }
        let Some(damaged) = places.damaged.get(index) else { continue };
        let before = places.known(index.prev()).and_then(|(_, chain)| chain);
        let original = candidates.iter().find(|(head, _)| {
            let named = match damaged.chain {
                Some(chain) => head.chain == chain,
                None => after.is_some_and(|after| after.continues(head.chain)),
            };
            named && before.is_none_or(|before| head.continues(before))
        });
        if let Some((head, bytes)) = original {
            proven.insert(*index, *bytes);
            after = Some(*head);
        }
    }
    proven
}
