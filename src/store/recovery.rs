//! What the log holds after a stop, asked for or not.
//!
//! All segments but the last were sealed and synced, so every byte of them must be whole.
//! The last is read batch by batch up to the first spot that is not one. Whether that spot
//! is the *torn* end of a batch that was never acknowledged, or *corrupt*, is decided by
//! what was proven durable:
//!
//! * it lies below a position that some record proves durable, or a later batch stands
//!   behind it, or the last stop was clean: corrupt;
//! * some sector of the batch there was never written (files are made of zeros): torn, and
//!   the batch is cut off whole, since a batch is written only when the one before it is
//!   durable;
//! * otherwise corrupt: a write that was torn cannot look so.
//!
//! Corrupt is never cut: that could lose what was acknowledged. The kept end of the log is
//! written and synced again before it counts, because after a kill it may be in the page
//! cache alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::disk::{Disk, FileKind};
use super::error::StoreError;
use super::frame::Frames;
use super::hard_state::Saved;
use super::log::{Active, Known};
use super::map::{AppendMap, Appender};
use super::reader::{Place, Places};
use super::segment::{
    ALIGN, BATCH, BatchHeader, HEADER, SEAL_ROOM, SegmentHeader, path_of, sequence_of,
};
use crate::raft::types::{EntryKind, HardState, Index, LogId};

const SECTOR: u64 = 512;
const PAGE: u64 = 4096;
/// No sequence, position or index comes near: counting on from here never overflows.
pub(super) const REACHABLE: u64 = 1 << 62;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) places: Places,
    pub(super) segments: Vec<Known>,
    /// Segments before the one that the log begins anew with: nothing of them counts.
    superseded: Vec<Known>,
    pub(super) active: Option<Active>,
    pub(super) next_sequence: u64,
    pub(super) next_position: u64,
    pub(super) next_number: u32,
    /// Position up to which everything is durable.
    pub(super) end: u64,
    pub(super) runs: Vec<LogId>,
    pub(super) configs: BTreeMap<Index, Vec<u8>>,
    /// Newest term and vote named by a batch.
    pub(super) batch_state: HardState,
    pub(super) cut: Option<String>,
}

/// Where the batches of a segment end.
struct End {
    /// Bytes of the file up to there.
    at: u64,
    sealed: bool,
    /// Largest position that a batch here proves durable.
    proven: u64,
}

/// Reads the log in `dir`.
///
/// # Errors
/// `Corrupt`, `Foreign`, `Io`.
pub(super) fn recover(disk: &dyn Disk, dir: &Path, saved: &Saved) -> Result<Found, StoreError> {
    let mut found = Found::default();
    let sequences = tidy(disk, dir)?;
    let newest = sequences.last().copied();
    for sequence in sequences {
        let path = path_of(dir, sequence);
        let map = open_segment(disk, &path)?;
        let header = check_header(&map, sequence, saved)?;
        if !found.segments.is_empty() && header.base != found.next_position {
            return Err(corrupt(map.name(), 56, "it does not begin where the one before ends"));
        }
        found.next_segment(&header, &map, saved)?;
        found.next_sequence = sequence + 1;
        found.next_position = header.base + map.len();
        let number = found.next_number;
        let end = found.scan(&map, &header, number)?;
        found.next_number += 1;
        // Behind the seal there is only padding: when the segment after this one was removed
        // because nothing was in it, its first position is still the one that was durable.
        found.end = if end.sealed { found.next_position } else { header.base + end.at };
        if Some(sequence) != newest {
            if !end.sealed {
                return Err(corrupt(map.name(), end.at, "a sealed segment ends early"));
            }
            found.keep(header, Arc::new(map), number);
        } else if end.sealed {
            // The seal may be in the cache alone, after a sync of it that failed.
            let proven = end.proven.max(saved.durable);
            let (appender, from) = rewrite(map, &header, proven, end.at)?;
            appender.map().sync(from, (end.at - from).max(1))?;
            found.keep(header, appender.map().clone(), number);
        } else {
            found.finish_newest(disk, dir, saved, (header, map, number), &end)?;
        }
    }
    // Before the record of the installation that superseded them is cleared: without it they
    // would contradict what follows them. Oldest first, so that no gap is ever left.
    for segment in std::mem::take(&mut found.superseded) {
        disk.remove(&path_of(dir, segment.header.sequence))?;
        disk.sync_dir(dir)?;
    }
    if found.end < saved.durable {
        return Err(corrupt(
            &dir.display().to_string(),
            found.end,
            &format!("the log was durable up to position {}", saved.durable),
        ));
    }
    Ok(found)
}

/// Segments without the hard state that was made before them: term and vote are lost, and a
/// node that forgot its vote could give it twice.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(super) fn refuse_without_hard_state(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    let names = disk.list(dir)?;
    let segments = names.iter().any(|name| sequence_of(name).is_some());
    if segments && !names.iter().any(|name| name == "hard.state") {
        let why = "hard.state is missing beside the segments; this node's term and vote are lost, \
                   so remove its data and let it rejoin";
        return Err(corrupt(&dir.display().to_string(), 0, why));
    }
    Ok(())
}

/// Removes drafts, and lists the segments, which must follow each other.
fn tidy(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, StoreError> {
    let mut sequences = Vec::new();
    for name in disk.list(dir)? {
        if name.ends_with(".tmp") {
            disk.remove(&dir.join(name))?;
        } else if let Some(sequence) = sequence_of(&name) {
            sequences.push(sequence);
        }
    }
    sequences.sort_unstable();
    match sequences.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        None => Ok(sequences),
        Some(pair) => Err(corrupt(
            &dir.display().to_string(),
            0,
            &format!("the segment after number {:x} is missing", pair[0]),
        )),
    }
}

fn open_segment(disk: &dyn Disk, path: &Path) -> Result<AppendMap, StoreError> {
    match disk.open(path, FileKind::Log, 0)? {
        Some(region) => Ok(AppendMap::sealed(region)),
        None => Err(corrupt(&path.display().to_string(), 0, "vanished while it was opened")),
    }
}

fn check_header(
    map: &AppendMap,
    sequence: u64,
    saved: &Saved,
) -> Result<SegmentHeader, StoreError> {
    let bytes = map.bytes(0, 4096).unwrap_or_default();
    let header = SegmentHeader::decode(bytes)
        .ok_or_else(|| corrupt(map.name(), 0, "the header of the segment is damaged"))?;
    if header.identity != saved.identity {
        return Err(StoreError::Foreign {
            file: map.name().to_owned(),
            found: format!("node {} of another life", header.identity.node.0),
            wanted: format!("node {}", saved.identity.node.0),
        });
    }
    if header.sequence != sequence {
        return Err(corrupt(map.name(), 48, "the file has another segment's number"));
    }
    if header.sequence.max(header.base).max(header.prev.index.0) > REACHABLE {
        return Err(corrupt(map.name(), 48, "no log ever reaches such numbers"));
    }
    Ok(header)
}

impl Found {
    fn keep(&mut self, header: SegmentHeader, map: Arc<AppendMap>, number: u32) {
        self.places.segments.insert(number, map.clone());
        self.segments.push(Known { header, map, number });
    }

    /// A segment continues the log where its header says; a log that was reset for a
    /// snapshot, or whose compaction a crash cut short, begins anew there.
    fn next_segment(
        &mut self,
        header: &SegmentHeader,
        map: &AppendMap,
        saved: &Saved,
    ) -> Result<(), StoreError> {
        let first = self.segments.is_empty();
        let continues = self.places.identity(header.prev.index);
        // The maps of earlier segments answer only for entries in kept segments.
        if !first && continues == Some((header.prev, header.prev_chain)) {
            return Ok(());
        }
        let compacting = header.prev.index < self.places.base.index;
        if first || compacting || saved.install.is_some() {
            self.places.base = header.prev;
            self.places.base_chain = header.prev_chain;
            self.places.places.clear();
            self.runs.clear();
            self.configs.clear();
            for segment in &self.segments {
                self.places.segments.remove(&segment.number);
            }
            self.superseded.append(&mut self.segments);
            return Ok(());
        }
        Err(corrupt(map.name(), 64, "the segment does not continue the one before"))
    }

    /// Reads batches until the first spot that is not one.
    fn scan(
        &mut self,
        map: &AppendMap,
        header: &SegmentHeader,
        number: u32,
    ) -> Result<End, StoreError> {
        let mut end = End { at: HEADER, sealed: false, proven: header.base };
        let (mut prev, mut chain) = (header.prev, header.prev_chain);
        loop {
            let start = end.at.next_multiple_of(ALIGN);
            let Some(batch) = map
                .bytes(start, BATCH)
                .and_then(|bytes| BatchHeader::decode(bytes, header.salt, header.base + start))
            else {
                return Ok(end);
            };
            let frames_at = start + BATCH as u64;
            let len = usize::try_from(batch.bytes).unwrap_or(usize::MAX);
            let Some(frames) = map.bytes(frames_at, len) else { return Ok(end) };
            if batch.is_seal() {
                end.at = frames_at;
                end.sealed = true;
                return Ok(end);
            }
            // Within a segment a batch continues what the segment holds so far, or replaces
            // the end of it.
            if batch.first.0.checked_sub(1) != Some(prev.index.0) {
                let before = batch.first.prev();
                let known = if batch.first == Index(0) {
                    None
                } else if before == header.prev.index {
                    Some((header.prev, header.prev_chain))
                } else {
                    self.identity_in(before, map, number)
                };
                let Some(found) = known else {
                    return Err(corrupt(map.name(), start, "a batch leaves a hole in the log"));
                };
                (prev, chain) = found;
            }
            let Some(entries) = whole(frames, &batch, prev, chain) else { return Ok(end) };
            self.forget(batch.first);
            for entry in &entries {
                let at = (frames_at + entry.at) / 8;
                let eighths = u32::try_from(at)
                    .map_err(|_| corrupt(map.name(), start, "a frame lies beyond its segment"))?;
                self.places.places.push_back(Place { segment: number, eighths });
                self.remember(entry);
            }
            if let Some(last) = entries.last() {
                (prev, chain) = (last.id, last.chain);
            }
            let state = HardState { term: batch.term, vote: batch.vote };
            if state.term >= self.batch_state.term {
                self.batch_state = state;
            }
            end.proven = end.proven.max(batch.synced);
            end.at = frames_at + u64::from(batch.bytes);
        }
    }

    /// Term and chain of an entry that an earlier batch of this scan, or an earlier segment,
    /// holds. The segment being scanned is not among the kept ones yet.
    fn identity_in(&self, index: Index, map: &AppendMap, number: u32) -> Option<(LogId, u64)> {
        match self.places.place(index) {
            Some(place) if place.segment == number => {
                let rest = map.bytes(u64::from(place.eighths) * 8, super::frame::HEADER)?;
                let len = u32::from_le_bytes(*rest.get(4..)?.first_chunk()?);
                let size = super::frame::size_of(usize::try_from(len).ok()?);
                let bytes = map.bytes(u64::from(place.eighths) * 8, size)?;
                super::frame::decode(bytes).ok().map(|frame| (frame.id, frame.chain))
            }
            _ => self.places.identity(index),
        }
    }

    fn forget(&mut self, first: Index) {
        self.places.truncate(first);
        while self.runs.last().is_some_and(|run| run.index >= first) {
            self.runs.pop();
        }
        self.configs.split_off(&first);
    }

    fn remember(&mut self, entry: &Held) {
        if self.runs.last().is_none_or(|run| run.term != entry.id.term) {
            self.runs.push(entry.id);
        }
        if let Some(config) = &entry.config {
            self.configs.insert(entry.id.index, config.clone());
        }
    }

    /// Decides what the spot after the last whole batch is, and makes the segment ready to
    /// be appended to.
    fn finish_newest(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        saved: &Saved,
        (header, map, number): (SegmentHeader, AppendMap, u32),
        end: &End,
    ) -> Result<(), StoreError> {
        let proven = end.proven.max(saved.durable);
        if end.at + SEAL_ROOM > map.len() {
            return Err(corrupt(map.name(), map.len(), "the file was cut: a seal has no room"));
        }
        let dirty = dirty_end(&map, end.at);
        if let Some(dirty) = dirty {
            classify(&map, &header, end.at, dirty, proven, saved.clean)?;
            self.cut =
                Some(format!("{} bytes after byte {} of {}", dirty - end.at, end.at, map.name()));
        } else if header.base + end.at < proven {
            return Err(corrupt(map.name(), end.at, "durable bytes are gone"));
        }
        let empty = end.at == HEADER;
        if empty && !self.segments.is_empty() && !self.places.places.is_empty() {
            // Made for a batch that never came; the next one may begin elsewhere.
            drop(map);
            disk.remove(&path_of(dir, header.sequence))?;
            disk.sync_dir(dir)?;
            self.next_sequence = header.sequence;
            self.next_position = header.base;
            self.end = header.base;
            return Ok(());
        }
        // What was read may be in the cache alone: write it again, and sync, before it counts.
        let (mut appender, from) = rewrite(map, &header, proven, end.at)?;
        let mut synced_to = end.at;
        if let Some(dirty) = dirty {
            synced_to = dirty.next_multiple_of(PAGE).min(appender.map().len());
            let zeros = vec![0; usize::try_from(synced_to - end.at).unwrap_or(0)];
            appender.scrub(end.at, &zeros)?;
        }
        appender.map().sync(from, (synced_to - from).max(1))?;
        self.keep(header, appender.map().clone(), number);
        self.active = Some(Active { header, appender, number });
        Ok(())
    }
}

/// Writes what is not proven durable once more, up to byte `end`; returns where that begins.
fn rewrite(
    map: AppendMap,
    header: &SegmentHeader,
    proven: u64,
    end: u64,
) -> Result<(Appender, u64), StoreError> {
    let from = proven.saturating_sub(header.base).clamp(HEADER, end);
    let len = usize::try_from(end - from).unwrap_or(usize::MAX);
    let tail = map.bytes(from, len).unwrap_or_default().to_vec();
    let mut appender = map.into_appender(from);
    appender.append(&tail)?;
    Ok((appender, from))
}

/// What is kept of an entry while scanning.
struct Held {
    id: LogId,
    chain: u64,
    /// Bytes from the first frame of its batch.
    at: u64,
    config: Option<Vec<u8>>,
}

/// The entries of a batch, if every one of them is whole and they continue the log.
fn whole(frames: &[u8], batch: &BatchHeader, prev: LogId, chain: u64) -> Option<Vec<Held>> {
    let mut held: Vec<Held> = Vec::new();
    let mut at = 0;
    for frame in Frames::new(frames) {
        let frame = frame.ok()?;
        let first = held.is_empty();
        if first
            && (frame.id.index != batch.first
                || frame.id.term < prev.term
                || !frame.continues(chain))
        {
            return None;
        }
        let config = (frame.kind == EntryKind::Config).then(|| frame.payload.to_vec());
        held.push(Held { id: frame.id, chain: frame.chain, at, config });
        at += frame.size as u64;
    }
    (held.len() == usize::try_from(batch.count).ok()? && !held.is_empty()).then_some(held)
}

/// The end of the last byte after `at` that is not zero; `None`: all of them are.
pub(super) fn dirty_end(map: &AppendMap, at: u64) -> Option<u64> {
    let len = usize::try_from(map.written() - at).ok()?;
    let tail = map.bytes(at, len)?;
    let last = tail.iter().rposition(|byte| *byte != 0)?;
    Some(at + last as u64 + 1)
}

/// Torn is `Ok`, anything else is `Corrupt`. See the module.
pub(super) fn classify(
    map: &AppendMap,
    header: &SegmentHeader,
    at: u64,
    dirty: u64,
    proven: u64,
    clean: bool,
) -> Result<(), StoreError> {
    let start = at.next_multiple_of(ALIGN);
    let why = if header.base + at < proven {
        "it was durable"
    } else if clean {
        "the last stop was clean, so nothing can be torn"
    } else if later_batch(map, header, start, dirty) {
        "a later batch proves that it was durable"
    } else if never_written(map, header, start, dirty) {
        return Ok(());
    } else {
        "no sector of it is missing, so it was not torn by a crash"
    };
    Err(corrupt(map.name(), start, &format!("a damaged batch that is no torn tail: {why}")))
}

fn later_batch(map: &AppendMap, header: &SegmentHeader, start: u64, dirty: u64) -> bool {
    (start + ALIGN..dirty).step_by(64).any(|at| {
        map.bytes(at, BATCH)
            .and_then(|bytes| BatchHeader::decode(bytes, header.salt, header.base + at))
            .is_some_and(|batch| batch.synced > header.base + start)
    })
}

/// Is some sector's part of the batch at `start` all zero, as before it was written?
fn never_written(map: &AppendMap, header: &SegmentHeader, start: u64, dirty: u64) -> bool {
    let batch = map
        .bytes(start, BATCH)
        .and_then(|bytes| BatchHeader::decode(bytes, header.salt, header.base + start));
    let said = batch.map_or(0, |batch| u64::from(batch.bytes));
    let end = dirty.max(start + BATCH as u64 + said).min(map.written());
    let mut from = start;
    while from < end {
        let to = (from + 1).next_multiple_of(SECTOR).min(end);
        let len = usize::try_from(to - from).unwrap_or(usize::MAX);
        if map.bytes(from, len).is_some_and(|part| part.iter().all(|byte| *byte == 0)) {
            return true;
        }
        from = to;
    }
    false
}

fn corrupt(file: &str, offset: u64, why: &str) -> StoreError {
    StoreError::Corrupt { file: file.to_owned(), what: "log", offset, why: why.to_owned() }
}
