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
//! Corrupt is never cut: that could lose what was acknowledged. When others hold copies, the
//! batch is read as far as it goes and its damaged entries are kept by name (`salvage.rs`),
//! until `Log::repair` brings them back; where names are lost, that is the result. A node
//! alone has nobody to ask and refuses.
//!
//! The kept end of the log is
//! written and synced again before it counts, because after a kill it may be in the page
//! cache alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::batches::{Doubt, End};
use super::disk::{Disk, FileKind, Region};
use super::error::StoreError;
use super::hard_state::Saved;
use super::log::{Active, Known};
use super::map::{AppendMap, Appender};
use super::reader::Places;
use super::salvage::Lost;
use super::segment::{
    ALIGN, BATCH, BatchHeader, HEADER, SEAL_ROOM, SECTOR, SegmentHeader, path_of, sequence_of,
};
use super::spare::is_spare;
use crate::raft::types::{HardState, Index, LogId};

const PAGE: u64 = 4096;
/// Bytes that are compared with zero at once.
const PIECE: usize = 4096;
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
    /// Others hold copies.
    pub(super) repairable: bool,
    /// Number and first position of the segment that is being read.
    pub(super) reading: (u64, u64),
    pub(super) doubt: Option<Doubt>,
}

/// What recovery comes to.
pub(super) enum Outcome {
    /// All names are known.
    Known(Box<Found>),
    /// Some are lost.
    Lost(Lost),
}

/// Reads the log in `dir`. What is corrupt is an error unless others hold copies.
///
/// # Errors
/// `Corrupt`, `Foreign`, `Io`.
pub(super) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    saved: &Saved,
    repairable: bool,
) -> Result<Outcome, StoreError> {
    let mut found = Found { repairable, ..Found::default() };
    match found.read(disk, dir, saved) {
        Ok(()) => Ok(Outcome::Known(Box::new(found))),
        Err(error @ StoreError::Corrupt { .. }) if repairable => {
            let why = error.to_string();
            let doubt = found.doubt.map_or(found.reading, |doubt| doubt.segment);
            let (sequence, position) = doubt.min(found.reading);
            Ok(Outcome::Lost(Lost { sequence, position, term: found.batch_state.term, why }))
        }
        Err(error) => Err(error),
    }
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

/// Removes drafts, and lists the segments.
fn tidy(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, StoreError> {
    let mut sequences = Vec::new();
    for name in disk.list(dir)? {
        if name.ends_with(".tmp") || is_spare(&name) {
            disk.remove(&dir.join(name))?;
        } else if let Some(sequence) = sequence_of(&name) {
            sequences.push(sequence);
        }
    }
    sequences.sort_unstable();
    Ok(sequences)
}

pub(super) fn open_segment(disk: &dyn Disk, path: &Path) -> Result<AppendMap, StoreError> {
    map_of(disk.open(path, FileKind::Log, 0)?, path)
}

fn map_of(region: Option<Box<dyn Region>>, path: &Path) -> Result<AppendMap, StoreError> {
    match region {
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
    fn read(&mut self, disk: &dyn Disk, dir: &Path, saved: &Saved) -> Result<(), StoreError> {
        let sequences = tidy(disk, dir)?;
        let newest = sequences.last().copied();
        for sequence in sequences {
            let path = path_of(dir, sequence);
            self.reading = (sequence, self.next_position);
            if self.next_number > 0 && sequence != self.next_sequence {
                // From the gap on nothing can be trusted.
                self.reading.0 = self.next_sequence;
                let why = format!("the segment before number {sequence:x} is missing");
                return Err(corrupt(&dir.display().to_string(), 0, &why));
            }
            let map = if Some(sequence) == newest {
                open_segment(disk, &path)?
            } else {
                // The one after it was made when the sync of its seal had succeeded.
                map_of(disk.open_proven(&path, FileKind::Log, 0)?, &path)?
            };
            let header = check_header(&map, sequence, saved)?;
            if !self.segments.is_empty() && header.base != self.next_position {
                return Err(corrupt(map.name(), 56, "it does not begin where the one before ends"));
            }
            self.next_segment(&header, &map, saved)?;
            let number = self.next_number;
            self.next_number += 1;
            let tail = (Some(sequence) == newest).then_some(saved);
            let end = self.scan(&map, &header, number, tail)?;
            self.next_sequence = sequence + 1;
            self.next_position = header.base + map.len();
            // Behind the seal there is only padding: when the segment after this one was removed
            // because nothing was in it, its first position is still the one that was durable.
            self.end = if end.sealed { self.next_position } else { header.base + end.at };
            if tail.is_none() {
                self.keep(header, Arc::new(map), number);
                continue;
            }
            self.settle(&map)?;
            if end.sealed {
                // The seal may be in the cache alone, after a sync of it that failed.
                let proven = end.proven.max(saved.durable);
                let (appender, from) = rewrite(map, &header, proven, end.at)?;
                appender.map().sync(from, (end.at - from).max(1))?;
                self.keep(header, appender.map().clone(), number);
            } else {
                self.finish_newest(disk, dir, saved, (header, map, number), &end)?;
            }
        }
        // Before the record of the installation that superseded them is cleared: without it they
        // would contradict what follows them. Oldest first, so that no gap is ever left.
        for segment in std::mem::take(&mut self.superseded) {
            disk.remove(&path_of(dir, segment.header.sequence))?;
            disk.sync_dir(dir)?;
        }
        if self.end < saved.durable {
            self.reading = (self.next_sequence, self.end);
            return Err(corrupt(
                &dir.display().to_string(),
                self.end,
                &format!("the log was durable up to position {}", saved.durable),
            ));
        }
        Ok(())
    }

    /// Nothing follows any more that could confirm what is in doubt.
    fn settle(&self, map: &AppendMap) -> Result<(), StoreError> {
        match self.doubt {
            None => Ok(()),
            Some(doubt) => {
                let why = format!("nothing confirms the entries from {} on", doubt.first);
                Err(corrupt(map.name(), 0, &why))
            }
        }
    }

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
        // The maps of earlier segments answer only for entries in kept segments.
        if !first && self.confirms(header) {
            return Ok(());
        }
        let compacting = header.prev.index < self.places.base.index;
        if first || compacting || header.anew || saved.install.is_some() {
            let chain = header.prev_chain.ok_or_else(|| {
                corrupt(map.name(), 80, "the chain of the entry before the first is lost")
            })?;
            self.places.base = header.prev;
            self.places.base_chain = chain;
            self.places.places.clear();
            self.places.damaged.clear();
            self.doubt = None;
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

    /// Does the segment continue the log? It also names the entry before it once more, which
    /// may be damaged.
    fn confirms(&mut self, header: &SegmentHeader) -> bool {
        let index = header.prev.index;
        let Some((id, chain)) = self.places.known(index) else { return false };
        let same = chain.is_none() || header.prev_chain.is_none() || chain == header.prev_chain;
        if id != header.prev || !same {
            return false;
        }
        if let Some(damaged) = self.places.damaged.get_mut(&index) {
            damaged.chain = damaged.chain.or(header.prev_chain);
        }
        if index == self.places.last() {
            self.doubt = None;
        }
        true
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

/// The end of the last byte after `at` that is not zero; `None`: all of them are.
pub(super) fn dirty_end(map: &AppendMap, at: u64) -> Option<u64> {
    // Forwards, as the disk reads ahead, and without a look at each byte: nearly all are zero.
    let len = usize::try_from(map.written() - at).ok()?;
    let pieces = map.bytes(at, len)?.chunks(PIECE).zip((at..).step_by(PIECE));
    let dirty = pieces.filter(|(piece, _)| piece.iter().fold(0, |any, byte| any | byte) != 0);
    let (piece, from) = dirty.last()?;
    let last = piece.iter().rposition(|byte| *byte != 0)?;
    Some(from + last as u64 + 1)
}

/// `None`: torn. Anything else says why it is corrupt. See the module.
pub(super) fn classify(
    map: &AppendMap,
    header: &SegmentHeader,
    at: u64,
    dirty: u64,
    proven: u64,
    clean: bool,
) -> Option<&'static str> {
    let start = at.next_multiple_of(ALIGN);
    if header.base + at < proven {
        Some("it was durable")
    } else if clean {
        Some("the last stop was clean, so nothing can be torn")
    } else if later_batch(map, header, start, dirty) {
        Some("a later batch proves that it was durable")
    } else if never_written(map, header, start, dirty) {
        None
    } else {
        Some("no sector of it is missing, so it was not torn by a crash")
    }
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

pub(super) fn corrupt(file: &str, offset: u64, why: &str) -> StoreError {
    StoreError::Corrupt { file: file.to_owned(), what: "log", offset, why: why.to_owned() }
}
