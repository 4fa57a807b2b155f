//! The batches of one segment, whole ones and damaged ones, as recovery reads them.

use super::error::StoreError;
use super::frame::{self, Frames};
use super::hard_state::Saved;
use super::map::AppendMap;
use super::reader::{Damaged, Place};
use super::recovery::{Found, classify, corrupt, dirty_end};
use super::salvage::{self, Walked};
use super::segment::{ALIGN, BATCH, BatchHeader, HEADER, SegmentHeader};
use crate::raft::types::{EntryKind, HardState, Index, LogId};

/// The end of what was read so far has to be confirmed by what follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    pub(super) first: Index,
    /// As in [`Found::reading`].
    pub(super) segment: (u64, u64),
    pub(super) need: Need,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// A chain that continues from the last entry.
    Chain,
    /// The same term as that of the last entry: then those without headers have it, too.
    Term,
    /// Any entry: the chain of the last one is lost, so nothing new could continue it.
    Entry,
}

/// Where the batches of a segment end.
pub(super) struct End {
    /// Bytes of the file up to there.
    pub(super) at: u64,
    pub(super) sealed: bool,
    /// Largest position that a batch here proves durable.
    pub(super) proven: u64,
}

impl Found {
    /// Reads batches until the first spot that is not one, nor a damaged one of which all
    /// names are known. `saved`: this is the newest segment, which may end in a torn batch.
    pub(super) fn scan(
        &mut self,
        map: &AppendMap,
        header: &SegmentHeader,
        number: u32,
        saved: Option<&Saved>,
    ) -> Result<End, StoreError> {
        let end = End { at: HEADER, sealed: false, proven: header.base };
        let (prev, chain) = (header.prev, header.prev_chain);
        let mut scan = Scan { map, header, number, saved, end, prev, chain };
        loop {
            let start = scan.end.at.next_multiple_of(ALIGN);
            let batch = scan.batch(start);
            if let Some((batch, _)) = batch
                && batch.is_seal()
            {
                self.anchor(&mut scan, start, &batch)?;
                scan.end.at = start + BATCH as u64;
                scan.end.sealed = true;
                return Ok(scan.end);
            }
            let whole = match batch {
                Some((batch, frames)) => self.take(&mut scan, start, &batch, frames)?,
                None => false,
            };
            if !whole && !self.damage(&mut scan, start)? {
                return Ok(scan.end);
            }
        }
    }

    /// Adds a batch that is whole; `false`: it is not.
    fn take(
        &mut self,
        scan: &mut Scan<'_>,
        start: u64,
        batch: &BatchHeader,
        frames: &[u8],
    ) -> Result<bool, StoreError> {
        if batch.is_repair() {
            if !whole_copies(frames, batch.count) {
                return Ok(false);
            }
            self.mend(scan, start, frames)?;
        } else if batch.is_mark() {
            self.anchor(scan, start, batch)?;
        } else {
            self.go_before(scan, batch.first, start)?;
            let Some(entries) = whole(frames, batch, scan.prev, scan.chain) else {
                return Ok(false);
            };
            // Not before it is known to stay: a torn batch would be gone at the next start.
            self.anchor(scan, start, batch)?;
            self.add(scan, start, batch.first, Walked { entries, resynced: false })?;
        }
        self.pass(scan, start, batch);
        Ok(true)
    }

    /// Behind a batch whose header is valid.
    fn pass(&mut self, scan: &mut Scan<'_>, start: u64, batch: &BatchHeader) {
        let state = HardState { term: batch.term, vote: batch.vote };
        if state.term >= self.batch_state.term {
            self.batch_state = state;
        }
        scan.end.proven = scan.end.proven.max(batch.synced);
        scan.end.at = start + BATCH as u64 + u64::from(batch.bytes);
    }

    /// Within a segment a batch continues what the segment holds so far, or replaces the end
    /// of it.
    fn go_before(&self, scan: &mut Scan<'_>, first: Index, at: u64) -> Result<(), StoreError> {
        if first.0.checked_sub(1) == Some(scan.prev.index.0) {
            return Ok(());
        }
        let before = first.prev();
        let known = if first == Index(0) {
            None
        } else if before == scan.header.prev.index {
            Some((scan.header.prev, scan.header.prev_chain))
        } else {
            self.known_in(before, scan)
        };
        match known {
            Some(found) => {
                (scan.prev, scan.chain) = found;
                Ok(())
            }
            None => Err(corrupt(scan.map.name(), at, "a batch leaves a hole in the log")),
        }
    }

    /// A batch also names the chain of the entry before it, which may be damaged.
    fn anchor(
        &mut self,
        scan: &mut Scan<'_>,
        start: u64,
        batch: &BatchHeader,
    ) -> Result<(), StoreError> {
        let Some(chain) = batch.prev_chain else { return Ok(()) };
        let index = scan.prev.index;
        if batch.first.0.checked_sub(1) != Some(index.0) {
            let why = "batches before this one are missing";
            return Err(corrupt(scan.map.name(), start, why));
        }
        if scan.chain.is_some_and(|known| known != chain) {
            let why = "a batch does not continue the entry before it";
            return Err(corrupt(scan.map.name(), start, why));
        }
        scan.chain = Some(chain);
        if let Some(damaged) = self.places.damaged.get_mut(&index) {
            damaged.chain = Some(chain);
        }
        let last = index == self.places.last();
        self.doubt = self.doubt.filter(|doubt| !last || matches!(doubt.need, Need::Term));
        Ok(())
    }

    /// Term and chain of an entry that an earlier batch of this scan, or an earlier segment,
    /// holds. The segment being scanned is not among the kept ones yet.
    fn known_in(&self, index: Index, scan: &Scan<'_>) -> Option<(LogId, Option<u64>)> {
        match self.places.place(index) {
            Some(place)
                if place.segment == scan.number && !self.places.damaged.contains_key(&index) =>
            {
                let rest = scan.map.bytes(u64::from(place.eighths) * 8, frame::HEADER)?;
                frame::head(rest).ok().map(|head| (head.id, Some(head.chain)))
            }
            _ => self.places.known(index),
        }
    }

    /// Adds the entries of a batch in place of whatever was there and after it.
    fn add(
        &mut self,
        scan: &mut Scan<'_>,
        start: u64,
        first: Index,
        walked: Walked,
    ) -> Result<(), StoreError> {
        self.forget(first);
        for entry in &walked.entries {
            let headless = entry.chain.is_none();
            if let Some(doubt) = self.doubt {
                let confirmed = match doubt.need {
                    Need::Chain => !headless,
                    Need::Term => {
                        if headless {
                            entry.term_known
                        } else {
                            entry.id.term == scan.prev.term
                        }
                    }
                    Need::Entry => true,
                };
                if confirmed {
                    self.doubt = None;
                } else if !(headless && matches!(doubt.need, Need::Term)) {
                    let why = format!("the names of entries from {} on are lost", doubt.first);
                    return Err(corrupt(scan.map.name(), start, &why));
                }
            }
            if headless {
                let need = if entry.term_known { Need::Entry } else { Need::Term };
                let (first, segment) = (entry.id.index, self.reading);
                let doubt = Doubt { first, segment, need };
                self.doubt = Some(Doubt { need, ..self.doubt.unwrap_or(doubt) });
            }
            self.push(scan, start, entry)?;
        }
        if walked.resynced {
            let first = walked.entries.iter().find(|entry| entry.chain.is_none());
            let first = first.map_or(first_of(&walked.entries), |entry| entry.id.index);
            self.doubt = Some(Doubt { first, segment: self.reading, need: Need::Chain });
        }
        Ok(())
    }

    fn push(&mut self, scan: &mut Scan<'_>, start: u64, entry: &Held) -> Result<(), StoreError> {
        let place = scan.place(start, entry.at)?;
        self.places.places.push_back(place);
        if let Some(damaged) = entry.bad {
            self.places.damaged.insert(entry.id.index, damaged);
        }
        self.remember(entry);
        (scan.prev, scan.chain) = (entry.id, entry.chain);
        Ok(())
    }

    /// Takes copies of damaged entries, which were proven to be that when they were written.
    fn mend(&mut self, scan: &Scan<'_>, start: u64, frames: &[u8]) -> Result<(), StoreError> {
        let mut at = 0;
        while let Some(head) = frames.get(at..).and_then(|rest| frame::head(rest).ok()) {
            let index = head.id.index;
            let damaged = self.places.damaged.get(&index);
            let meant = damaged.is_some_and(|damaged| {
                damaged.id == head.id && damaged.chain.is_none_or(|chain| chain == head.chain)
            });
            if meant
                && let Some(bytes) = frames.get(at..at + head.size)
                && let Ok(frame) = frame::decode(bytes)
            {
                if frame.kind == EntryKind::Config {
                    self.configs.insert(index, frame.payload.to_vec());
                }
                self.places.mend(index, scan.place(start, at as u64)?);
            }
            at += head.size;
        }
        Ok(())
    }

    /// The spot at `start` is not a whole batch. `Ok(false)`: the log ends here.
    fn damage(&mut self, scan: &mut Scan<'_>, start: u64) -> Result<bool, StoreError> {
        let Scan { map, header, .. } = *scan;
        let dirty = dirty_end(map, scan.end.at);
        let why = match (scan.saved, dirty) {
            (Some(_), None) => return Ok(false),
            (Some(saved), Some(dirty)) => {
                let proven = scan.end.proven.max(saved.durable);
                match classify(map, header, scan.end.at, dirty, proven, saved.clean) {
                    None => return Ok(false),
                    Some(why) => format!("a damaged batch that is no torn tail: {why}"),
                }
            }
            (None, None) if self.repairable => {
                // Only the seal is missing, or the next segment will not fit.
                scan.end.sealed = true;
                return Ok(false);
            }
            (None, _) => "a sealed segment ends early".to_owned(),
        };
        let dirty = dirty.unwrap_or(start);
        let Some((batch, frames)) = scan.batch(start) else {
            if self.repairable && self.without_header(scan, start, dirty)? {
                return Ok(true);
            }
            let why = format!("{why}; entries after {} are lost", scan.prev.index);
            return Err(corrupt(map.name(), start, &why));
        };
        if batch.is_repair() {
            if !self.repairable {
                return Err(corrupt(map.name(), start, &why));
            }
            self.mend(scan, start, frames)?;
            self.pass(scan, start, &batch);
            return Ok(true);
        }
        self.go_before(scan, batch.first, start)?;
        self.anchor(scan, start, &batch)?;
        let before = (scan.prev, scan.chain);
        let walked = salvage::walk(frames, (batch.first, batch.count), before, batch.term)
            .map_err(|lost| corrupt(map.name(), start, &format!("{why}; {lost}")))?;
        if !self.repairable {
            let lost = names(&walked.entries);
            let why = format!("{why}; of entries {}, {lost} cannot be read", batch.entries());
            return Err(corrupt(map.name(), start, &why));
        }
        self.add(scan, start, batch.first, walked)?;
        self.pass(scan, start, &batch);
        Ok(true)
    }

    /// The header of the batch is lost: its frames do without when all of them are whole.
    fn without_header(
        &mut self,
        scan: &mut Scan<'_>,
        start: u64,
        dirty: u64,
    ) -> Result<bool, StoreError> {
        let next = salvage::next_batch(scan.map, scan.header, start, dirty).map(|(at, _)| at);
        let Some((frames, end)) = salvage::headless(scan.map, start, next, dirty) else {
            return Ok(false);
        };
        if let Ok(head) = frame::head(frames) {
            let index = head.id.index;
            // At one index and term there is only one entry: the same again is a copy.
            if self.known_in(index, scan).is_some_and(|(id, _)| id == head.id) {
                self.mend(scan, start, frames)?;
            } else {
                self.go_before(scan, index, start)?;
                let Some(entries) = run_of(frames, scan.prev, scan.chain) else {
                    return Ok(false);
                };
                self.add(scan, start, index, Walked { entries, resynced: false })?;
            }
        }
        scan.end.at = end;
        Ok(true)
    }

    fn forget(&mut self, first: Index) {
        self.places.truncate(first);
        while self.runs.last().is_some_and(|run| run.index >= first) {
            self.runs.pop();
        }
        self.configs.split_off(&first);
        if self.doubt.is_some_and(|doubt| doubt.first >= first) {
            self.doubt = None;
        }
    }

    fn remember(&mut self, entry: &Held) {
        if self.runs.last().is_none_or(|run| run.term != entry.id.term) {
            self.runs.push(entry.id);
        }
        if let Some(config) = &entry.config {
            self.configs.insert(entry.id.index, config.clone());
        }
    }
}

/// A segment that is being scanned.
struct Scan<'a> {
    map: &'a AppendMap,
    header: &'a SegmentHeader,
    number: u32,
    saved: Option<&'a Saved>,
    end: End,
    /// The entry that was read last, and its chain.
    prev: LogId,
    chain: Option<u64>,
}

impl<'a> Scan<'a> {
    /// The header and the frames of a batch, when the header is valid.
    fn batch(&self, start: u64) -> Option<(BatchHeader, &'a [u8])> {
        let bytes = self.map.bytes(start, BATCH)?;
        let batch = BatchHeader::decode(bytes, self.header.salt, self.header.base + start)?;
        let len = usize::try_from(batch.bytes).ok()?;
        Some((batch, self.map.bytes(start + BATCH as u64, len)?))
    }

    fn place(&self, start: u64, at: u64) -> Result<Place, StoreError> {
        let eighths = u32::try_from((start + BATCH as u64 + at) / 8)
            .map_err(|_| corrupt(self.map.name(), start, "a frame lies beyond its segment"))?;
        Ok(Place { segment: self.number, eighths })
    }
}

/// What is kept of an entry while scanning.
pub(super) struct Held {
    pub(super) id: LogId,
    /// `None`: its header is lost.
    pub(super) chain: Option<u64>,
    /// Bytes from the first frame of its batch.
    pub(super) at: u64,
    pub(super) config: Option<Vec<u8>>,
    /// It cannot be read.
    pub(super) bad: Option<Damaged>,
    /// Its term is; always so when it has a header.
    pub(super) term_known: bool,
}

fn first_of(entries: &[Held]) -> Index {
    entries.first().map_or(Index(0), |entry| entry.id.index)
}

/// The damaged ones, for the operator.
fn names(entries: &[Held]) -> String {
    let damaged = entries.iter().filter(|entry| entry.bad.is_some());
    damaged.map(|entry| entry.id.index.to_string()).collect::<Vec<_>>().join(", ")
}

/// The entries of a batch, if every one of them is whole and they continue the log.
fn whole(frames: &[u8], batch: &BatchHeader, prev: LogId, chain: Option<u64>) -> Option<Vec<Held>> {
    let held = run_of(frames, prev, chain)?;
    (held.len() == usize::try_from(batch.count).ok()? && first_of(&held) == batch.first)
        .then_some(held)
}

/// The entries of a run, one at least, if it continues the log.
fn run_of(frames: &[u8], prev: LogId, chain: Option<u64>) -> Option<Vec<Held>> {
    let mut held: Vec<Held> = Vec::new();
    let mut at = 0;
    for frame in Frames::new(frames) {
        let frame = frame.ok()?;
        if held.is_empty()
            && (frame.id.index.0.checked_sub(1) != Some(prev.index.0)
                || frame.id.term < prev.term
                || !chain.is_none_or(|chain| frame.continues(chain)))
        {
            return None;
        }
        let config = (frame.kind == EntryKind::Config).then(|| frame.payload.to_vec());
        let (id, chain) = (frame.id, Some(frame.chain));
        held.push(Held { id, chain, at, config, bad: None, term_known: true });
        at += frame.size as u64;
    }
    (!held.is_empty()).then_some(held)
}

/// Are these `count` whole frames, of any indexes?
fn whole_copies(frames: &[u8], count: u32) -> bool {
    let (mut rest, mut found) = (frames, 0);
    while let Ok(frame) = frame::decode(rest) {
        rest = rest.get(frame.size..).unwrap_or_default();
        found += 1;
    }
    rest.is_empty() && found == count && count > 0
}
